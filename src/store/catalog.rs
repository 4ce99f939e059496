//! The catalog of chunks and members: written in batches under the fence, read page by page (I5).

use rusqlite::{OptionalExtension, Transaction, params};

use super::Store;
use super::rows::{CHUNK, OF_FILE, chunk_row, word_of_kind};
use super::types::Claim;
use crate::chunk::{CatalogChunk, Chunk, ChunkRecord, MemberRecord};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::member::CatalogMember;

/// Maximum number of rows that one transaction writes.
const MAX_BATCH_ROWS: usize = 10_000;
/// Maximum number of chunks that one transaction deletes, each with its members.
const MAX_DELETED_CHUNKS: u32 = 64;

impl Store {
    /// Adds chunks with their members to the archive of a claimed run. They are not visible before it is complete.
    pub fn add_chunks(&self, claim: &Claim, chunks: &[CatalogChunk]) -> Result<()> {
        let mut rest = chunks;
        while !rest.is_empty() {
            let mut rows = 0;
            let fitting = rest
                .iter()
                .take_while(|chunk| {
                    rows += chunk.rows();
                    rows <= MAX_BATCH_ROWS
                })
                .count();
            let (batch, later) = rest.split_at(fitting.max(1));
            self.write_fenced(claim, |transaction| {
                let file = archive_file_of(transaction, claim.run())?;
                batch.iter().try_for_each(|chunk| insert_chunk(transaction, file, chunk))
            })?;
            rest = later;
        }
        Ok(())
    }

    /// Removes the rows that [`Store::add_chunks`] added for a run that ends without an archive, a batch at a time.
    pub fn discard_chunks(&self, claim: &Claim) -> Result<()> {
        loop {
            let removed = self.write_fenced(claim, |transaction| {
                let Some(file) = pending_file_of(transaction, claim.run())? else { return Ok(0) };
                remove_references(transaction, file)
            })?;
            if removed == 0 {
                return Ok(());
            }
        }
    }

    /// Records that the chunks of the archive of a claimed run were read back and are identical to what was written.
    pub fn mark_verified(&self, claim: &Claim, now: Timestamp) -> Result<()> {
        let mut from = 0_i64;
        loop {
            let to = from + MAX_BATCH_ROWS as i64;
            let marked = self.write_fenced(claim, |transaction| {
                let file = archive_file_of(transaction, claim.run())?;
                transaction.execute(
                    "UPDATE chunk SET proved_at_ms = ?4 WHERE id IN (SELECT chunk_id FROM archive_chunk \
                     WHERE archive_file_id = ?1 AND sequence >= ?2 AND sequence < ?3)",
                    params![file, from, to, now.millis()],
                )
            })?;
            if marked == 0 {
                return Ok(());
            }
            from = to;
        }
    }

    /// Returns the chunks of the archive file that a run made in order, reading the catalog page by page.
    pub fn archive_chunks(&self, run: i64) -> ArchiveChunks {
        ArchiveChunks { store: self.clone(), run, page: Vec::new().into_iter(), next: 0 }
    }

    /// Returns whether the catalog holds chunks of the archive that a run made. It holds none of the old system's.
    pub fn has_chunks(&self, run: i64) -> Result<bool> {
        Ok(!self.chunks(run, 0, 1)?.is_empty())
    }

    /// Returns up to `limit` chunks of the archive file that a run made, from `sequence` on.
    pub(super) fn chunks(&self, run: i64, sequence: u64, limit: u32) -> Result<Vec<Chunk>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT {CHUNK} FROM archive_chunk JOIN chunk ON chunk.id = chunk_id \
                     WHERE {OF_FILE} AND sequence >= ?2 ORDER BY sequence LIMIT ?3"
                ))?
                .query_map(params![run, sequence, limit], chunk_row)?
                .collect()
        })
    }
}

/// Chunks that one query reads.
const PAGE_CHUNKS: u32 = 1_000;

/// The chunks of one archive file in order, see [`Store::archive_chunks`].
#[derive(Debug)]
pub struct ArchiveChunks {
    store: Store,
    run: i64,
    page: std::vec::IntoIter<Chunk>,
    next: u64,
}

impl Iterator for ArchiveChunks {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Result<Chunk>> {
        if self.page.len() == 0 {
            match self.store.chunks(self.run, self.next, PAGE_CHUNKS) {
                Ok(chunks) => self.page = chunks.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
        let chunk = self.page.next()?;
        self.next = chunk.sequence + 1;
        Some(Ok(chunk))
    }
}

fn archive_file_of(transaction: &Transaction<'_>, run: i64) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached("SELECT archive_file_id FROM archive WHERE run_id = ?1")?
        .query_row([run], |row| row.get(0))
}

fn pending_file_of(transaction: &Transaction<'_>, run: i64) -> rusqlite::Result<Option<i64>> {
    transaction
        .query_row(
            "SELECT archive_file_id FROM archive WHERE run_id = ?1 AND state IN ('writing', 'sealed')",
            [run],
            |row| row.get(0),
        )
        .optional()
}

/// Removes up to a batch of a file's references to chunks, and the chunks that no other file refers to; returns how
/// many references were removed.
pub(super) fn remove_references(transaction: &Transaction<'_>, file: i64) -> rusqlite::Result<usize> {
    let chunks: Vec<(i64, i64)> = transaction
        .prepare_cached("SELECT sequence, chunk_id FROM archive_chunk WHERE archive_file_id = ?1 LIMIT ?2")?
        .query_map(params![file, MAX_DELETED_CHUNKS], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let (mut removed, mut rows) = (0, 0);
    for (sequence, chunk) in &chunks {
        let members: usize = transaction
            .prepare_cached("SELECT count(*) FROM member WHERE chunk_id = ?1")?
            .query_row([chunk], |row| row.get(0))?;
        rows += 2 + members;
        if removed > 0 && rows > MAX_BATCH_ROWS {
            break;
        }
        removed += 1;
        transaction
            .prepare_cached("DELETE FROM archive_chunk WHERE archive_file_id = ?1 AND sequence = ?2")?
            .execute([file, *sequence])?;
        transaction
            .prepare_cached(
                "DELETE FROM chunk WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM archive_chunk WHERE chunk_id = ?1)",
            )?
            .execute([chunk])?;
    }
    Ok(removed)
}

pub(super) fn insert_chunk(transaction: &Transaction<'_>, file: i64, entry: &CatalogChunk) -> rusqlite::Result<()> {
    let chunk = &entry.chunk;
    transaction
        .prepare_cached(
            "INSERT INTO chunk (stored_length, stored_digest, content_length, content_digest, read_started_at_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            chunk.stored_length,
            chunk.stored_digest,
            chunk.content_length,
            chunk.content_digest,
            entry.read_started.millis()
        ])?;
    let id = transaction.last_insert_rowid();
    transaction
        .prepare_cached(
            "INSERT INTO archive_chunk (archive_file_id, sequence, chunk_id, stored_offset) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![file, chunk.sequence, id, chunk.offset])?;
    let ChunkRecord::New { members } = &entry.record else { return Err(rusqlite::Error::InvalidQuery) };
    let mut offset = 0;
    for (ordinal, member) in members.iter().enumerate() {
        let MemberRecord::New(member) = member else { return Err(rusqlite::Error::InvalidQuery) };
        insert_member(transaction, id, ordinal, offset, member)?;
        offset += member.entry_bytes;
    }
    Ok(())
}

fn insert_member(
    transaction: &Transaction<'_>,
    chunk: i64,
    ordinal: usize,
    offset: u64,
    entry: &CatalogMember,
) -> rusqlite::Result<()> {
    let member = &entry.member;
    transaction
        .prepare_cached(
            "INSERT INTO member (chunk_id, ordinal, path, kind, size, mode, uid, gid, user_name, group_name, \
                 modified_s, modified_ns, changed_s, changed_ns, device, inode, device_major, device_minor, \
                 link_target, xattr_digest, content_digest, content_offset, changed_while_read) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, \
                 ?22, ?23)",
        )?
        .execute(params![
            chunk,
            ordinal,
            member.path.as_bytes(),
            word_of_kind(member.kind),
            member.size.cast_signed(),
            member.mode,
            member.uid,
            member.gid,
            member.user_name,
            member.group_name,
            member.modified.seconds,
            member.modified.nanoseconds,
            entry.changed.seconds,
            entry.changed.nanoseconds,
            entry.device.cast_signed(),
            entry.inode.cast_signed(),
            member.device_number.map(|(major, _)| major),
            member.device_number.map(|(_, minor)| minor),
            member.link_target,
            entry.xattr_digest,
            entry.content_digest,
            offset,
            !entry.is_reusable,
        ])
        .map(drop)
}

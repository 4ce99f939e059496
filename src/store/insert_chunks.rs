//! Adding chunks and members to the catalog, as runs of rows with consecutive ids.

use rusqlite::{OptionalExtension, Transaction, params};

use super::insert_rows::{NewRow, Table};
use super::rows::{HOLDS_CHUNK, unfit};
use super::stored_files::insert_part;
use crate::chunk::{CatalogChunk, Chunk, ChunkRecord, MAX_RUN, MemberRecord};
use crate::member::CatalogMember;

const CHUNK: Table = Table {
    name: "chunk",
    columns: &["stored_length", "stored_digest", "content_length", "content_digest", "read_started_at_ms", "crc"],
};

const MEMBER: Table = Table {
    name: "member",
    columns: &[
        "path",
        "kind",
        "size",
        "mode",
        "uid",
        "gid",
        "user_name",
        "group_name",
        "modified_s",
        "modified_ns",
        "changed_s",
        "changed_ns",
        "device",
        "inode",
        "device_major",
        "device_minor",
        "link_target",
        "xattr_digest",
        "content_digest",
        "entry_bytes",
        "is_reusable",
    ],
};

const CHUNK_MEMBERS: Table = Table { name: "chunk_members", columns: &["chunk_id", "ordinal", "member_id", "members"] };

/// Adds chunks with their members to the archive file of a run, which may have a base.
pub(super) fn insert_chunks(transaction: &Transaction<'_>, run: i64, chunks: &[CatalogChunk]) -> rusqlite::Result<()> {
    let (file, base_file, whole_file) = transaction
        .prepare_cached(
            "SELECT archive.archive_file_id, base.archive_file_id, part.stored_file_id FROM run \
             JOIN archive ON archive.run_id = run.id \
             LEFT JOIN part ON part.archive_file_id = archive.archive_file_id AND archive.layout = 'whole' \
             LEFT JOIN archive AS base ON base.run_id = run.base_run_id AND base.state = 'complete' \
             WHERE run.id = ?1 AND archive.state = 'writing'",
        )?
        .query_row([run], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let inserter = ChunkInserter { transaction, run, base_file };
    let ids = inserter.insert_rows(chunks)?;
    let mut spans = SpanInserter { transaction, file, whole_file, span: None };
    ids.into_iter().zip(chunks).try_for_each(|(id, entry)| spans.add(id, entry))?;
    spans.store()
}

/// Adds the rows of chunks and of members.
struct ChunkInserter<'t> {
    transaction: &'t Transaction<'t>,
    run: i64,
    /// The file of the base, to whose chunks the new archive may refer.
    base_file: Option<i64>,
}

impl ChunkInserter<'_> {
    /// Returns the row of each chunk, after adding those that are new.
    fn insert_rows(&self, chunks: &[CatalogChunk]) -> rusqlite::Result<Vec<i64>> {
        let is_new = |entry: &&CatalogChunk| matches!(entry.record, ChunkRecord::New { .. });
        let new: Vec<&CatalogChunk> = chunks.iter().filter(is_new).collect();
        let members: Vec<&CatalogMember> = chunks.iter().flat_map(CatalogChunk::new_members).collect();
        let mut next_member =
            MEMBER.insert_numbered(self.transaction, &members, |row, member| set_member(row, member))?;
        let mut next_chunk = CHUNK.insert_numbered(self.transaction, &new, |row, entry| set_chunk(row, entry))?;
        let (mut ids, mut runs) = (Vec::with_capacity(chunks.len()), Vec::new());
        for entry in chunks {
            ids.push(match &entry.record {
                ChunkRecord::Reused { id, reread } => {
                    self.take_reused(*id, *reread, entry)?;
                    *id
                }
                ChunkRecord::New { members } => {
                    runs_of(next_chunk, members, &mut next_member, &mut runs);
                    next_chunk += 1;
                    next_chunk - 1
                }
            });
        }
        runs.iter().filter(|run| run.holds_known).try_for_each(|run| self.check_known(run))?;
        CHUNK_MEMBERS.insert(self.transaction, &runs, |row, run| {
            row.set(params![run.chunk, run.ordinal, run.member_id, run.members])
        })?;
        Ok(ids)
    }

    /// Records that a chunk of the base was read again, if it was. Fails if it is not one of the base.
    fn take_reused(&self, id: i64, reread: bool, entry: &CatalogChunk) -> rusqlite::Result<()> {
        self.check_reused(id, entry)?;
        if reread {
            self.transaction
                .prepare_cached("UPDATE chunk SET read_started_at_ms = ?2 WHERE id = ?1")?
                .execute([id, entry.read_started.millis()])?;
        }
        Ok(())
    }

    /// Fails unless the chunk is one of the base with these bytes: nothing else keeps its row from being removed. It
    /// lies where the base has it, or was copied into a segment of the run.
    fn check_reused(&self, id: i64, entry: &CatalogChunk) -> rusqlite::Result<()> {
        let (chunk, place) = (&entry.chunk, entry.place);
        let is_of_base: bool = self
            .transaction
            .prepare_cached(&format!(
                "SELECT EXISTS (SELECT 1 FROM chunk WHERE id = ?1 AND stored_length = ?2 AND stored_digest = ?3 \
                     AND content_length = ?4) \
                 AND EXISTS (SELECT 1 FROM span INDEXED BY span_of_chunk WHERE {HOLDS_CHUNK} AND archive_file_id = ?5 \
                     AND (?6 IS NULL OR stored_file_id = ?6 AND ?7 BETWEEN file_offset AND file_offset + bytes - ?2 \
                         OR EXISTS (SELECT 1 FROM stored_file WHERE id = ?6 AND run_id = ?8 AND state = 'writing')))"
            ))?
            .query_row(
                params![
                    id,
                    chunk.stored_length,
                    chunk.stored_digest,
                    chunk.content_length,
                    self.base_file,
                    place.map(|place| place.segment),
                    place.map(|place| place.offset),
                    self.run
                ],
                |row| row.get(0),
            )?;
        if is_of_base { Ok(()) } else { Err(unfit(format!("chunk {id} is not the one of the base"))) }
    }

    /// Fails unless the catalog has all members of a run.
    fn check_known(&self, run: &MemberRun) -> rusqlite::Result<()> {
        let found: i64 = self
            .transaction
            .prepare_cached("SELECT count(*) FROM member WHERE id >= ?1 AND id < ?1 + ?2")?
            .query_row([run.member_id, run.members], |row| row.get(0))?;
        if found == run.members {
            return Ok(());
        }
        Err(unfit(format!("the catalog has {found} of {} members from {}", run.members, run.member_id)))
    }
}

fn set_chunk(row: &mut NewRow<'_, '_>, entry: &CatalogChunk) -> rusqlite::Result<()> {
    let chunk = &entry.chunk;
    row.set(params![
        chunk.stored_length,
        chunk.stored_digest,
        chunk.content_length,
        chunk.content_digest,
        entry.read_started.millis(),
        entry.place.map(|place| place.crc),
    ])
}

fn set_member(row: &mut NewRow<'_, '_>, entry: &CatalogMember) -> rusqlite::Result<()> {
    let member = &entry.member;
    row.set(params![
        member.path.as_bytes(),
        member.kind,
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
        entry.entry_bytes,
        entry.is_reusable,
    ])
}

/// Members of one chunk with consecutive ids.
struct MemberRun {
    chunk: i64,
    ordinal: usize,
    member_id: i64,
    members: i64,
    /// Some of them are rows that should exist already.
    holds_known: bool,
}

/// Adds the runs of the members of a chunk. New ones have the ids from `next_member` on.
fn runs_of(chunk: i64, members: &[MemberRecord], next_member: &mut i64, runs: &mut Vec<MemberRun>) {
    let first = runs.len();
    for (ordinal, record) in members.iter().enumerate() {
        let (id, is_known) = match record {
            MemberRecord::Known(id) => (*id, true),
            MemberRecord::New(_) => {
                *next_member += 1;
                (*next_member - 1, false)
            }
        };
        match runs[first..].last_mut() {
            Some(run) if id == run.member_id + run.members && run.members < MAX_RUN => {
                run.members += 1;
                run.holds_known |= is_known;
            }
            _ => runs.push(MemberRun { chunk, ordinal, member_id: id, members: 1, holds_known: is_known }),
        }
    }
}

/// Adds the spans of an archive file.
struct SpanInserter<'t> {
    transaction: &'t Transaction<'t>,
    file: i64,
    /// The stored file that the archive file is, in the whole layout.
    whole_file: Option<i64>,
    span: Option<Span>,
}

/// The span to which the last chunk was added.
struct Span {
    sequence: u64,
    chunk_id: i64,
    chunks: i64,
    offset: u64,
    stored_file: i64,
    file_offset: u64,
    bytes: u64,
    /// It has a row, with fewer chunks.
    is_stored: bool,
}

impl Span {
    fn starting(id: i64, chunk: &Chunk, (stored_file, file_offset): (i64, u64)) -> Self {
        Span {
            sequence: chunk.sequence,
            chunk_id: id,
            chunks: 1,
            offset: chunk.offset,
            stored_file,
            file_offset,
            bytes: chunk.stored_length,
            is_stored: false,
        }
    }

    /// Adds a chunk if it follows the others, in both files and by its id; returns whether it does.
    fn extend(&mut self, id: i64, chunk: &Chunk, place: (i64, u64)) -> bool {
        let follows = self.chunks < MAX_RUN
            && chunk.sequence == self.sequence + self.chunks.unsigned_abs()
            && id == self.chunk_id + self.chunks
            && chunk.offset == self.offset + self.bytes
            && place == (self.stored_file, self.file_offset + self.bytes);
        if follows {
            self.chunks += 1;
            self.bytes += chunk.stored_length;
        }
        follows
    }
}

impl SpanInserter<'_> {
    /// Adds the next chunk.
    fn add(&mut self, id: i64, entry: &CatalogChunk) -> rusqlite::Result<()> {
        let chunk = &entry.chunk;
        let place = match (entry.place, self.whole_file) {
            (Some(place), None) => (place.segment, place.offset),
            (None, Some(whole_file)) => (whole_file, chunk.offset),
            _ => return Err(unfit(format!("chunk {} does not lie where its archive does", chunk.sequence))),
        };
        if self.span.as_mut().is_some_and(|span| span.extend(id, chunk, place)) {
            return Ok(());
        }
        self.store()?;
        let mut before = self.span_before(chunk.sequence)?;
        let is_extended = before.as_mut().is_some_and(|span| span.extend(id, chunk, place));
        self.span = if is_extended { before } else { Some(Span::starting(id, chunk, place)) };
        Ok(())
    }

    /// Returns the span before a chunk, which an earlier batch may have ended.
    fn span_before(&self, sequence: u64) -> rusqlite::Result<Option<Span>> {
        self.transaction
            .prepare_cached(
                "SELECT sequence, chunk_id, chunks, archive_offset, bytes, stored_file_id, file_offset FROM span \
                 WHERE archive_file_id = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT 1",
            )?
            .query_row(params![self.file, sequence], |row| {
                Ok(Span {
                    sequence: row.get(0)?,
                    chunk_id: row.get(1)?,
                    chunks: row.get(2)?,
                    offset: row.get(3)?,
                    bytes: row.get(4)?,
                    stored_file: row.get(5)?,
                    file_offset: row.get(6)?,
                    is_stored: true,
                })
            })
            .optional()
    }

    /// Writes the last span.
    fn store(&mut self) -> rusqlite::Result<()> {
        let Some(span) = self.span.take() else { return Ok(()) };
        if span.is_stored {
            return self
                .transaction
                .prepare_cached("UPDATE span SET chunks = ?3, bytes = ?4 WHERE archive_file_id = ?1 AND sequence = ?2")?
                .execute(params![self.file, span.sequence, span.chunks, span.bytes])
                .map(drop);
        }
        insert_part(self.transaction, self.file, span.stored_file)?;
        self.transaction
            .prepare_cached(
                "INSERT INTO span (archive_file_id, sequence, chunk_id, chunks, archive_offset, stored_file_id, \
                     file_offset, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                self.file,
                span.sequence,
                span.chunk_id,
                span.chunks,
                span.offset,
                span.stored_file,
                span.file_offset,
                span.bytes
            ])
            .map(drop)
    }
}

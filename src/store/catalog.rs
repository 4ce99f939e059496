//! The catalog of chunks: written in batches under the fence, read page by page (I5).

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::Store;
use super::insert_chunks::insert_chunks;
use super::remove_chunks::{MAX_BATCH_ROWS, remove_batch};
use super::rows::{FROM_CHUNK, OF_FILE};
use super::stored_files::discard_segments;
use super::types::Claim;
use crate::chunk::{CatalogChunk, Chunk, Place};
use crate::clock::Timestamp;
use crate::error::Result;

impl Store {
    /// Adds chunks with their members to the archive of a claimed run. They are not visible before it is complete.
    /// Chunks and members may be those of the base that the run holds.
    ///
    /// Errors: if the base does not have a chunk or a member that it should have.
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
            self.write_fenced(claim, |transaction| insert_chunks(transaction, claim.run(), batch))?;
            rest = later;
        }
        Ok(())
    }

    /// Removes the rows that [`Store::add_chunks`] added for a run that ends without an archive, a batch at a time.
    pub fn discard_chunks(&self, claim: &Claim) -> Result<()> {
        loop {
            let is_more = self.write_fenced(claim, |transaction| {
                let file = unshared_pending_file(transaction, claim.run())?;
                let Some(file) = file else { return Ok(false) };
                let is_more = remove_batch(transaction, file)?;
                if !is_more {
                    discard_segments(transaction, claim.run(), file)?;
                }
                Ok(is_more)
            })?;
            if !is_more {
                return Ok(());
            }
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
    pub(super) fn chunks(&self, run: i64, sequence: u64, limit: u64) -> Result<Vec<Chunk>> {
        let rows = self.read(|connection| chunk_rows(connection, run, sequence, limit))?;
        Ok(rows.into_iter().map(|row| row.chunk).collect())
    }
}

/// Chunks that one query reads.
const PAGE_CHUNKS: u64 = 1_000;

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

/// A chunk of an archive file, with its row.
pub(super) struct ChunkRow {
    pub(super) id: i64,
    pub(super) chunk: Chunk,
    pub(super) place: Option<Place>,
    pub(super) read_started: Timestamp,
}

/// Returns up to `limit` chunks of the archive file that a run made, from `sequence` on.
pub(super) fn chunk_rows(
    connection: &Connection,
    run: i64,
    sequence: u64,
    limit: u64,
) -> rusqlite::Result<Vec<ChunkRow>> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT span.sequence, span.chunk_id, archive_offset, chunk.id, stored_length, stored_digest, content_length, \
             content_digest, read_started_at_ms, stored_file_id, file_offset, crc \
         FROM span CROSS JOIN chunk ON chunk.id >= span.chunk_id AND chunk.id < span.chunk_id + span.chunks \
         WHERE {OF_FILE} AND {FROM_CHUNK} ORDER BY span.sequence, chunk.id"
    ))?;
    let mut rows = statement.query(params![run, sequence])?;
    let mut found = Vec::new();
    // The catalog stores the offsets of the first chunk of a span only.
    let (mut offset, mut file_offset) = (0, 0);
    while (found.len() as u64) < limit
        && let Some(row) = rows.next()?
    {
        let (first, id): (i64, i64) = (row.get(1)?, row.get(3)?);
        if id == first {
            (offset, file_offset) = (row.get(2)?, row.get(10)?);
        }
        let chunk = Chunk {
            sequence: row.get::<_, u64>(0)? + id.abs_diff(first),
            offset,
            stored_length: row.get(4)?,
            stored_digest: row.get(5)?,
            content_length: row.get(6)?,
            content_digest: row.get(7)?,
        };
        let crc: Option<u32> = row.get(11)?;
        let segment = row.get(9)?;
        let place = crc.map(|crc| Place { segment, offset: file_offset, crc });
        (offset, file_offset) = (chunk.end(), file_offset + chunk.stored_length);
        if chunk.sequence >= sequence {
            found.push(ChunkRow { id, chunk, place, read_started: Timestamp::from_millis(row.get(8)?) });
        }
    }
    Ok(found)
}

/// Returns the file of an archive that is not complete, unless it is that of another archive, too.
fn unshared_pending_file(transaction: &Transaction<'_>, run: i64) -> rusqlite::Result<Option<i64>> {
    transaction
        .query_row(
            "SELECT archive_file_id FROM archive WHERE run_id = ?1 AND state IN ('writing', 'sealed') \
             AND NOT EXISTS (SELECT 1 FROM archive AS other WHERE other.archive_file_id = archive.archive_file_id \
                 AND other.run_id <> archive.run_id)",
            [run],
            |row| row.get(0),
        )
        .optional()
}

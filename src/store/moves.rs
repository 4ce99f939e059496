//! Moving spans from the stored files that hold their bytes to a segment that holds copies of these.
//!
//! Until the last span of a segment is moved, both copies are valid. Then it is `deleting`, but stays a part of the
//! archive files whose indexes still list it: those are replaced before it is removed.

use rusqlite::{OptionalExtension, Transaction, params};

use super::Store;
use super::remove_chunks::MAX_BATCH_ROWS;
use super::rows::exactly_one;
use super::stored_files::{insert_part, record_stored_bytes};
use super::types::{CopiedRange, Moved, SegmentIntent, StoredBytes, StoredChunk, StoredFile, StoredTrailer};
use crate::clock::Timestamp;
use crate::error::Result;

/// Spans that one transaction looks at. Each may be split into as many as it has chunks.
const BATCH_SPANS: usize = 1_000;

/// The id of no archive file.
const NO_ARCHIVE_FILE: i64 = 0;

impl Store {
    /// Records the names of a segment before it is created that will hold copies of bytes of other files; it is named
    /// after the archive of `run`, which is complete. Returns its row.
    pub fn add_copying_segment(&self, run: i64, names: &SegmentIntent) -> Result<i64> {
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO stored_file (segment_name, temporary_name, run_id, state, health) \
                     VALUES (?1, ?2, ?3, 'writing', 'unproven')",
                )?
                .execute(params![names.segment_name, names.temporary_name, run])?;
            Ok(transaction.last_insert_rowid())
        })
    }

    /// Records that a segment with copies is whole and synced.
    pub fn record_copying_segment(&self, segment: i64, stored: &StoredBytes) -> Result<()> {
        self.write(|transaction| record_stored_bytes(transaction, segment, stored))
    }

    /// Returns the chunks in a stored file, each once, in order.
    pub fn chunks_in(&self, stored_file: i64) -> Result<Vec<StoredChunk>> {
        self.chunks_of_other_archives(stored_file, NO_ARCHIVE_FILE)
    }

    /// Returns the trailers of archives in a stored file, in order.
    pub fn trailers_in(&self, stored_file: i64) -> Result<Vec<StoredTrailer>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT (SELECT max(run_id) FROM archive WHERE archive.archive_file_id = span.archive_file_id), \
                         file_offset, bytes FROM span INDEXED BY span_of_stored_file \
                     WHERE stored_file_id = ?1 AND chunk_id IS NULL ORDER BY file_offset",
                )?
                .query_map([stored_file], |row| {
                    Ok(StoredTrailer { run: row.get(0)?, offset: row.get(1)?, bytes: row.get(2)? })
                })?
                .collect()
        })
    }

    /// Makes the spans of archive files refer to the copies in `segment`, which is in place and was read back, a batch
    /// at a time. `copied` is sorted. A span of which only some chunks are copied is split. A segment that is left
    /// without spans is to be deleted.
    pub fn move_spans(&self, schedule: i64, segment: i64, copied: &[CopiedRange], now: Timestamp) -> Result<Moved> {
        let mut sources: Vec<i64> = copied.iter().map(|range| range.from.stored_file).collect();
        sources.dedup();
        for source in sources {
            let copied: Vec<CopiedRange> =
                copied.iter().filter(|range| range.from.stored_file == source).copied().collect();
            let mut next = Some(Cursor::default());
            while let Some(from) = next {
                let batch = self.write(|transaction| {
                    if has_running_run(transaction, schedule)? {
                        return Ok(None);
                    }
                    let mover = Mover { transaction, source, segment, copied: &copied };
                    let next = mover.move_batch(from)?;
                    keep(transaction, segment, now)?;
                    Ok(Some(next))
                })?;
                match batch {
                    Some(batch) => next = batch,
                    None => return Ok(Moved::RunBegan),
                }
            }
        }
        Ok(Moved::All)
    }

    /// Returns the complete archives that have a stored file as a part but no span in it: their indexes may still list
    /// it. Archives whose files are one, too.
    pub fn archives_moved_from(&self, stored_file: i64) -> Result<Vec<i64>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT run_id FROM part CROSS JOIN archive ON archive.archive_file_id = part.archive_file_id \
                     WHERE part.stored_file_id = ?1 AND archive.state = 'complete' AND NOT EXISTS ( \
                         SELECT 1 FROM span INDEXED BY span_of_stored_file \
                         WHERE span.stored_file_id = ?1 AND span.archive_file_id = part.archive_file_id) \
                     ORDER BY run_id",
                )?
                .query_map([stored_file], |row| row.get(0))?
                .collect()
        })
    }

    /// Records that no index of these archives lists a stored file in which they have no span.
    pub fn remove_moved_parts(&self, stored_file: i64, runs: &[i64]) -> Result<()> {
        self.write(|transaction| {
            let mut delete = transaction.prepare_cached(
                "DELETE FROM part WHERE stored_file_id = ?1 \
                 AND archive_file_id = (SELECT archive_file_id FROM archive WHERE run_id = ?2) AND NOT EXISTS ( \
                     SELECT 1 FROM span INDEXED BY span_of_stored_file \
                     WHERE span.stored_file_id = ?1 AND span.archive_file_id = part.archive_file_id)",
            )?;
            runs.iter().try_for_each(|run| delete.execute([stored_file, *run]).map(drop))
        })
    }

    /// Returns whether a stored file is still a part of an archive file.
    pub fn is_part(&self, stored_file: i64) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM part WHERE stored_file_id = ?1)")?
                .query_row([stored_file], |row| row.get(0))
        })
    }

    /// Marks a segment for deletion that was to get copies, if it did not become part of an archive.
    pub fn abandon_segment(&self, segment: &StoredFile) -> Result<()> {
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "UPDATE stored_file SET state = 'deleting' WHERE id = ?1 AND state = 'writing' \
                     AND NOT EXISTS (SELECT 1 FROM part WHERE stored_file_id = ?1)",
                )?
                .execute([segment.id])
                .map(drop)
        })
    }

    /// Returns the segments that were to get copies and whose writer may have been killed: those of no run that has an
    /// archive in work.
    pub fn copying_segments(&self) -> Result<Vec<StoredFile>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT * FROM stored_file WHERE state = 'writing' AND state <> 'kept' \
                     AND segment_name IS NOT NULL AND NOT EXISTS (SELECT 1 FROM archive \
                         WHERE archive.run_id = stored_file.run_id AND archive.state <> 'complete')",
                )?
                .query_map([], super::stored_files::stored_file_row)?
                .collect()
        })
    }

    /// Returns what is known of the index of an archive in segments.
    pub fn index_file(&self, run: i64) -> Result<Option<StoredFile>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT stored_file.* FROM archive JOIN stored_file ON stored_file.id = archive.index_file_id \
                     WHERE archive.run_id = ?1",
                )?
                .query_row([run], super::stored_files::stored_file_row)
                .optional()
        })
    }

    /// Records the file of the index of an archive, which was read and is right.
    pub fn record_replaced_index(&self, run: i64, stored: &StoredBytes) -> Result<()> {
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached(
                    "UPDATE stored_file SET size = ?2, device = ?3, inode = ?4, modified_ns = ?5, health = 'good' \
                     WHERE id = (SELECT index_file_id FROM archive WHERE run_id = ?1 AND state = 'complete')",
                )?
                .execute(params![
                    run,
                    stored.size,
                    stored.device.cast_signed(),
                    stored.inode.cast_signed(),
                    stored.modified_ns
                ])?;
            exactly_one(changed)
        })
    }
}

fn has_running_run(transaction: &Transaction<'_>, schedule: i64) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM run WHERE schedule_id = ?1 AND state = 'running')")?
        .query_row([schedule], |row| row.get(0))
}

/// Records that a segment is there to stay, if it is part of an archive: until then it may be removed.
fn keep(transaction: &Transaction<'_>, segment: i64, now: Timestamp) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE stored_file SET state = 'kept', temporary_name = NULL, health = 'good', verified_at_ms = ?2 \
             WHERE id = ?1 AND state = 'writing' AND EXISTS (SELECT 1 FROM part WHERE stored_file_id = ?1)",
        )?
        .execute(params![segment, now.millis()])
        .map(drop)
}

/// The span looked at last, in the order of the index of spans by their stored files.
#[derive(Clone, Copy, Default)]
struct Cursor {
    archive_file: i64,
    file_offset: i64,
    is_set: bool,
}

struct Mover<'t> {
    transaction: &'t Transaction<'t>,
    source: i64,
    segment: i64,
    copied: &'t [CopiedRange],
}

/// A span in the source.
struct Span {
    archive_file: i64,
    sequence: i64,
    chunk_id: Option<i64>,
    chunks: i64,
    archive_offset: u64,
    file_offset: u64,
    bytes: u64,
}

/// Some chunks of a span, and where they lie from now on.
struct Piece {
    chunks: i64,
    bytes: u64,
    stored_file: i64,
    file_offset: u64,
}

impl Mover<'_> {
    /// Moves the spans after the cursor, as many as a transaction may write; returns the next cursor, or `None` if all
    /// were looked at.
    fn move_batch(&self, from: Cursor) -> rusqlite::Result<Option<Cursor>> {
        let (mut rows, mut at) = (1, from);
        let spans = self.spans_after(from)?;
        let is_last = spans.len() < BATCH_SPANS;
        for span in spans {
            // A span of n chunks becomes n of them at most, and each may need a part.
            if rows + 2 * span.chunks.unsigned_abs() as usize + 4 > MAX_BATCH_ROWS {
                return Ok(Some(at));
            }
            at = Cursor { archive_file: span.archive_file, file_offset: span.file_offset.cast_signed(), is_set: true };
            rows += self.move_span(&span)?;
        }
        if !is_last {
            return Ok(Some(at));
        }
        self.transaction
            .prepare_cached(
                "UPDATE stored_file SET state = 'deleting' WHERE id = ?1 AND segment_name IS NOT NULL \
                 AND NOT EXISTS (SELECT 1 FROM span WHERE stored_file_id = ?1)",
            )?
            .execute([self.source])?;
        Ok(None)
    }

    fn spans_after(&self, from: Cursor) -> rusqlite::Result<Vec<Span>> {
        self.transaction
            .prepare_cached(
                "SELECT archive_file_id, sequence, chunk_id, chunks, archive_offset, file_offset, bytes \
                 FROM span INDEXED BY span_of_stored_file \
                 WHERE stored_file_id = ?1 AND (archive_file_id, file_offset) > (?2, ?3) \
                 ORDER BY archive_file_id, file_offset LIMIT ?4",
            )?
            .query_map(
                params![self.source, from.archive_file, if from.is_set { from.file_offset } else { -1 }, BATCH_SPANS],
                |row| {
                    Ok(Span {
                        archive_file: row.get(0)?,
                        sequence: row.get(1)?,
                        chunk_id: row.get(2)?,
                        chunks: row.get(3)?,
                        archive_offset: row.get(4)?,
                        file_offset: row.get(5)?,
                        bytes: row.get(6)?,
                    })
                },
            )?
            .collect()
    }

    /// Moves what is copied of a span; returns how many rows were written.
    fn move_span(&self, span: &Span) -> rusqlite::Result<usize> {
        if let Some(offset) = self.copy_of(span.file_offset, span.bytes) {
            insert_part(self.transaction, span.archive_file, self.segment)?;
            let changed = self
                .transaction
                .prepare_cached(
                    "UPDATE span SET stored_file_id = ?4, file_offset = ?5 \
                     WHERE archive_file_id = ?1 AND sequence = ?2 AND archive_offset = ?3",
                )?
                .execute(params![span.archive_file, span.sequence, span.archive_offset, self.segment, offset])?;
            return exactly_one(changed).map(|()| 2);
        }
        let pieces = self.pieces(span)?;
        if pieces.iter().all(|piece| piece.stored_file == self.source) {
            return Ok(0);
        }
        self.split(span, &pieces)
    }

    /// Returns the offset of the copy of these bytes of the source.
    fn copy_of(&self, offset: u64, bytes: u64) -> Option<u64> {
        let at = self.copied.partition_point(|range| range.from.offset <= offset).checked_sub(1)?;
        self.copied[at].new_offset(offset, bytes)
    }

    /// Returns the pieces of a span that lie side by side from now on; none if it does not consist of whole chunks.
    fn pieces(&self, span: &Span) -> rusqlite::Result<Vec<Piece>> {
        let lengths: Vec<u64> = self
            .transaction
            .prepare_cached("SELECT stored_length FROM chunk WHERE id >= ?1 AND id < ?1 + ?2 ORDER BY id")?
            .query_map(params![span.chunk_id, span.chunks], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut pieces: Vec<Piece> = Vec::new();
        if lengths.len() as i64 != span.chunks || lengths.iter().sum::<u64>() != span.bytes {
            return Ok(pieces);
        }
        let mut at = span.file_offset;
        for bytes in lengths {
            let copy = self.copy_of(at, bytes).map(|offset| (self.segment, offset));
            let (stored_file, file_offset) = copy.unwrap_or((self.source, at));
            at += bytes;
            match pieces.last_mut() {
                Some(last) if (last.stored_file, last.file_offset + last.bytes) == (stored_file, file_offset) => {
                    last.chunks += 1;
                    last.bytes += bytes;
                }
                _ => pieces.push(Piece { chunks: 1, bytes, stored_file, file_offset }),
            }
        }
        Ok(pieces)
    }

    fn split(&self, span: &Span, pieces: &[Piece]) -> rusqlite::Result<usize> {
        insert_part(self.transaction, span.archive_file, self.segment)?;
        self.transaction
            .prepare_cached("DELETE FROM span WHERE archive_file_id = ?1 AND sequence = ?2 AND archive_offset = ?3")?
            .execute(params![span.archive_file, span.sequence, span.archive_offset])?;
        let (mut chunks, mut bytes) = (0, 0);
        for piece in pieces {
            self.transaction
                .prepare_cached(
                    "INSERT INTO span (archive_file_id, sequence, chunk_id, chunks, archive_offset, stored_file_id, \
                         file_offset, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )?
                .execute(params![
                    span.archive_file,
                    span.sequence + chunks,
                    span.chunk_id.map(|id| id + chunks),
                    piece.chunks,
                    span.archive_offset + bytes,
                    piece.stored_file,
                    piece.file_offset,
                    piece.bytes
                ])?;
            chunks += piece.chunks;
            bytes += piece.bytes;
        }
        Ok(pieces.len() + 2)
    }
}

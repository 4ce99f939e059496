//! What verification finds out about the physical files of archives in segments.

use std::collections::BTreeSet;
use std::ops::Range;

use rusqlite::{OptionalExtension, Transaction, params};

use super::Store;
use super::stored_files::parts_of;
use super::types::{Archive, Health, StoredChunk, StoredFile, StoredRange};
use crate::clock::Timestamp;
use crate::error::Result;

impl Store {
    /// Returns the physical files that an archive file holds ranges of.
    pub fn parts(&self, archive_file: i64) -> Result<Vec<StoredFile>> {
        self.read(|connection| parts_of(connection, archive_file))
    }

    /// Returns the offset at which the last chunk of an archive file ends and its trailer begins.
    pub fn end_of_chunks(&self, archive_file: i64) -> Result<u64> {
        self.read(|connection| {
            let end = connection
                .prepare_cached(
                    "SELECT archive_offset + bytes FROM span WHERE archive_file_id = ?1 AND chunks > 0 \
                     ORDER BY sequence DESC LIMIT 1",
                )?
                .query_row([archive_file], |row| row.get(0))
                .optional()?;
            Ok(end.unwrap_or_default())
        })
    }

    /// Returns where ranges of an archive file are stored.
    pub fn stored_ranges(&self, archive_file: i64, ranges: &[Range<u64>]) -> Result<Vec<StoredRange>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT stored_file_id, archive_offset, file_offset, bytes FROM span \
                 WHERE archive_file_id = ?1 AND archive_offset < ?3 AND archive_offset + bytes > ?2",
            )?;
            let mut found = Vec::new();
            for range in ranges {
                let mut rows = statement.query(params![archive_file, range.start, range.end])?;
                while let Some(row) = rows.next()? {
                    let (archive_offset, file_offset, bytes): (u64, u64, u64) = (row.get(1)?, row.get(2)?, row.get(3)?);
                    let start = range.start.max(archive_offset);
                    let end = range.end.min(archive_offset + bytes);
                    let offset = file_offset + (start - archive_offset);
                    found.push(StoredRange { stored_file: row.get(0)?, offset, bytes: end - start });
                }
            }
            Ok(found)
        })
    }

    /// Returns the chunks in a physical file, each once, that are in no span of this archive file, in order.
    pub fn chunks_of_other_archives(&self, stored_file: i64, archive_file: i64) -> Result<Vec<StoredChunk>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT span.file_offset, chunk.id = span.chunk_id, stored_length, stored_digest, EXISTS ( \
                     SELECT 1 FROM span AS own INDEXED BY span_of_chunk \
                     WHERE own.chunk_id BETWEEN chunk.id - 255 AND chunk.id AND own.chunk_id + own.chunks > chunk.id \
                         AND own.archive_file_id = ?2) \
                 FROM span INDEXED BY span_of_stored_file \
                 CROSS JOIN chunk ON chunk.id >= span.chunk_id AND chunk.id < span.chunk_id + span.chunks \
                 WHERE span.stored_file_id = ?1 AND span.archive_file_id <> ?2 \
                 ORDER BY span.archive_file_id, span.file_offset, chunk.id",
            )?;
            let mut rows = statement.query([stored_file, archive_file])?;
            // Many archives may have the same ones.
            let mut found = BTreeSet::new();
            let mut next = 0;
            while let Some(row) = rows.next()? {
                let offset = if row.get(1)? { row.get(0)? } else { next };
                let chunk = StoredChunk { offset, length: row.get(2)?, digest: row.get(3)? };
                next = offset + chunk.length;
                if !row.get::<_, bool>(4)? {
                    found.insert(chunk);
                }
            }
            Ok(found.into_iter().collect())
        })
    }

    /// Records that all that is known of a physical file of an archive was read, and which ranges of it are damaged.
    /// Returns the runs of the complete archives that have a part of these.
    ///
    /// Records nothing if the archive was deleted meanwhile: then nothing of it may be concluded about the file, as its
    /// archive file may be that of another archive by now.
    pub fn record_verified(
        &self,
        archive: &Archive,
        stored_file: i64,
        damaged: &[StoredRange],
        now: Timestamp,
    ) -> Result<Vec<i64>> {
        self.write(|transaction| {
            if !is_complete(transaction, archive)? {
                return Ok(Vec::new());
            }
            transaction.prepare_cached("DELETE FROM damage WHERE stored_file_id = ?1")?.execute([stored_file])?;
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO damage (stored_file_id, file_offset, length, found_at_ms) \
                 SELECT id, ?2, ?3, ?4 FROM stored_file WHERE id = ?1",
            )?;
            for range in damaged {
                insert.execute(params![stored_file, range.offset, range.bytes, now.millis()])?;
            }
            let health = if damaged.is_empty() { Health::Good } else { Health::Damaged };
            transaction
                .prepare_cached("UPDATE stored_file SET health = ?2, verified_at_ms = ?3 WHERE id = ?1")?
                .execute(params![stored_file, health.as_str(), now.millis()])?;
            transaction
                .prepare_cached(
                    "SELECT DISTINCT archive.run_id FROM damage \
                     CROSS JOIN span INDEXED BY span_of_stored_file ON span.stored_file_id = damage.stored_file_id \
                         AND span.file_offset < damage.file_offset + damage.length \
                         AND span.file_offset + span.bytes > damage.file_offset \
                     CROSS JOIN archive ON archive.archive_file_id = span.archive_file_id \
                     WHERE damage.stored_file_id = ?1 AND archive.state = 'complete' ORDER BY archive.run_id",
                )?
                .query_map([stored_file], |row| row.get(0))?
                .collect()
        })
    }

    /// Records that a physical file of an archive does not exist; nothing if the archive was deleted meanwhile.
    pub fn record_missing(&self, archive: &Archive, stored_file: i64) -> Result<()> {
        self.write(|transaction| {
            if !is_complete(transaction, archive)? {
                return Ok(());
            }
            transaction
                .prepare_cached("UPDATE stored_file SET health = 'missing' WHERE id = ?1")?
                .execute([stored_file])
                .map(drop)
        })
    }

    /// Records the health of the index of an archive. Without `verified_at` the recorded time is kept.
    pub fn record_index_health(&self, run: i64, health: Health, verified_at: Option<Timestamp>) -> Result<()> {
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "UPDATE stored_file SET health = ?2, verified_at_ms = coalesce(?3, verified_at_ms) \
                     WHERE id = (SELECT index_file_id FROM archive WHERE run_id = ?1 AND state = 'complete')",
                )?
                .execute(params![run, health.as_str(), verified_at.map(Timestamp::millis)])
                .map(drop)
        })
    }
}

/// Returns whether an archive is complete and has the archive file that it had when it was read.
fn is_complete(transaction: &Transaction<'_>, archive: &Archive) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM archive WHERE run_id = ?1 AND archive_file_id = ?2 AND state = 'complete')",
        )?
        .query_row([archive.run, archive.archive_file], |row| row.get(0))
}

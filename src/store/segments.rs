//! Segments: being written by a run, kept, and being deleted.

use std::ops::Range;

use rusqlite::params;

use super::Store;
use super::rows::OF_FILE;
use super::stored_files::{record_stored_bytes, stored_file_row};
use super::types::{Claim, SegmentIntent, SegmentRange, StoredBytes, StoredFile};
use crate::error::Result;

impl Store {
    /// Records the names of a segment that a claimed run will write, before it writes it; returns its row.
    pub fn add_segment(&self, claim: &Claim, names: &SegmentIntent) -> Result<i64> {
        self.write_fenced(claim, |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO stored_file (segment_name, temporary_name, run_id, state, health) \
                     VALUES (?1, ?2, ?3, 'writing', 'unproven')",
                )?
                .execute(params![names.segment_name, names.temporary_name, claim.run()])?;
            Ok(transaction.last_insert_rowid())
        })
    }

    /// Records that a segment of a claimed run is whole and synced.
    pub fn record_segment(&self, claim: &Claim, segment: i64, stored: &StoredBytes) -> Result<()> {
        self.write_fenced(claim, |transaction| record_stored_bytes(transaction, segment, stored))
    }

    /// Returns the segments that a run which is not complete has written, in order.
    pub fn segments_of_run(&self, run: i64) -> Result<Vec<StoredFile>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT * FROM stored_file WHERE run_id = ?1 AND state = 'writing' ORDER BY id")?
                .query_map([run], stored_file_row)?
                .collect()
        })
    }

    /// Returns the names of all segments that were written for the archive of a run, those being deleted, too.
    pub fn segment_names(&self, run: i64) -> Result<Vec<String>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT segment_name FROM stored_file WHERE run_id = ?1")?
                .query_map([run], |row| row.get(0))?
                .collect()
        })
    }

    /// Returns the ranges of an archive file, by offset and in order, that lie in segments which other runs have
    /// written; those side by side are one.
    pub fn inherited_ranges(&self, run: i64) -> Result<Vec<Range<u64>>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT archive_offset, bytes FROM span CROSS JOIN stored_file ON stored_file.id = span.stored_file_id \
                 WHERE {OF_FILE} AND stored_file.run_id <> ?1 ORDER BY sequence, archive_offset"
            ))?;
            let mut rows = statement.query([run])?;
            let mut ranges: Vec<Range<u64>> = Vec::new();
            while let Some(row) = rows.next()? {
                let start: u64 = row.get(0)?;
                let end = start + row.get::<_, u64>(1)?;
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
            }
            Ok(ranges)
        })
    }

    /// Returns up to `limit` ranges of the archive file of a run, in order, from this offset on.
    pub fn ranges(&self, run: i64, from: u64, limit: u32) -> Result<Vec<SegmentRange>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT archive_offset, segment_name, file_offset, bytes \
                     FROM span CROSS JOIN stored_file ON stored_file.id = span.stored_file_id \
                     WHERE {OF_FILE} AND archive_offset >= ?2 AND segment_name IS NOT NULL \
                     ORDER BY sequence, archive_offset LIMIT ?3"
                ))?
                .query_map(params![run, from, limit], |row| {
                    Ok(SegmentRange {
                        archive_offset: row.get(0)?,
                        segment_name: row.get(1)?,
                        offset: row.get(2)?,
                        bytes: row.get(3)?,
                    })
                })?
                .collect()
        })
    }

    /// Returns the segments whose files are to be removed.
    pub fn segments_being_deleted(&self) -> Result<Vec<StoredFile>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT * FROM stored_file WHERE state = 'deleting' AND state <> 'kept' ORDER BY id")?
                .query_map([], stored_file_row)?
                .collect()
        })
    }

    /// Removes the row of a segment whose file is removed.
    pub fn remove_segment(&self, segment: i64) -> Result<()> {
        self.write(|transaction| {
            transaction
                .prepare_cached("DELETE FROM stored_file WHERE id = ?1 AND state = 'deleting'")?
                .execute([segment])
                .map(drop)
        })
    }

    /// Returns the CRC of the archive of a run, and its size; `None` unless it lies in segments.
    pub fn archive_crc(&self, run: i64) -> Result<Option<(u32, u64)>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT crc, size FROM archive JOIN archive_file ON archive_file.id = archive.archive_file_id \
                     WHERE run_id = ?1",
                )?
                .query_row([run], |row| Ok(row.get::<_, Option<u32>>(0)?.zip(row.get(1)?)))
        })
    }
}

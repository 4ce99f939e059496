//! How much of each segment archives use.

use rusqlite::params;

use super::Store;
use super::types::{KeptSegment, StoredRange};
use crate::clock::Timestamp;
use crate::error::Result;

impl Store {
    /// Returns the segments in which archives of a schedule have parts, all of them complete, and which can be read as
    /// far as is known: not those that are missing, or damaged as a whole.
    pub fn kept_segments(&self, schedule: i64) -> Result<Vec<KeptSegment>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT DISTINCT stored_file.id, segment_name, size FROM archive \
                     CROSS JOIN part ON part.archive_file_id = archive.archive_file_id \
                     CROSS JOIN stored_file ON stored_file.id = part.stored_file_id \
                     WHERE archive.schedule_id = ?1 AND archive.state = 'complete' AND segment_name IS NOT NULL \
                         AND stored_file.state = 'kept' AND (stored_file.health IN ('good', 'unproven') OR EXISTS ( \
                             SELECT 1 FROM damage WHERE damage.stored_file_id = stored_file.id \
                             AND stored_file.health = 'damaged')) \
                         AND NOT EXISTS (SELECT 1 FROM part AS other \
                             CROSS JOIN archive AS user ON user.archive_file_id = other.archive_file_id \
                             WHERE other.stored_file_id = stored_file.id AND user.state <> 'complete') \
                     ORDER BY stored_file.id",
                )?
                .query_map([schedule], |row| Ok(KeptSegment { id: row.get(0)?, name: row.get(1)?, size: row.get(2)? }))?
                .collect()
        })
    }

    /// Returns the archive files that have a part of a stored file, newest first.
    pub fn archive_files_with_part(&self, stored_file: i64) -> Result<Vec<i64>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT archive_file_id FROM part WHERE stored_file_id = ?1 ORDER BY archive_file_id DESC",
                )?
                .query_map([stored_file], |row| row.get(0))?
                .collect()
        })
    }

    /// Returns the complete archives that have a part of a stored file, oldest first.
    pub fn archives_with_part(&self, stored_file: i64) -> Result<Vec<i64>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT run_id FROM part CROSS JOIN archive ON archive.archive_file_id = part.archive_file_id \
                     WHERE part.stored_file_id = ?1 AND archive.state = 'complete' ORDER BY run_id",
                )?
                .query_map([stored_file], |row| row.get(0))?
                .collect()
        })
    }

    /// Returns the ranges of a stored file that an archive file holds, in order.
    pub fn ranges_in(&self, stored_file: i64, archive_file: i64) -> Result<Vec<std::ops::Range<u64>>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT file_offset, file_offset + bytes FROM span INDEXED BY span_of_stored_file \
                     WHERE stored_file_id = ?1 AND archive_file_id = ?2 ORDER BY file_offset",
                )?
                .query_map([stored_file, archive_file], |row| Ok(row.get(0)?..row.get(1)?))?
                .collect()
        })
    }

    /// Returns the ranges of a stored file that are known to be damaged, in order.
    pub fn damaged_ranges(&self, stored_file: i64) -> Result<Vec<std::ops::Range<u64>>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT file_offset, file_offset + length FROM damage WHERE stored_file_id = ?1 \
                     ORDER BY file_offset",
                )?
                .query_map([stored_file], |row| Ok(row.get(0)?..row.get(1)?))?
                .collect()
        })
    }

    /// Records that a range of a stored file was read and is damaged. What else is known of the file stays.
    pub fn record_damage(&self, range: StoredRange, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO damage (stored_file_id, file_offset, length, found_at_ms) \
                     SELECT id, ?2, ?3, ?4 FROM stored_file WHERE id = ?1",
                )?
                .execute(params![range.stored_file, range.offset, range.bytes, now.millis()])?;
            transaction
                .prepare_cached("UPDATE stored_file SET health = 'damaged' WHERE id = ?1")?
                .execute([range.stored_file])
                .map(drop)
        })
    }
}

//! What a repair searches for, and what it records.

use rusqlite::params;

use super::Store;
use super::base::NOT_HELD;
use super::rows::{HOLDS_CHUNK, InnerPath};
use super::stored_files::WHOLE_FILE;
use super::types::{Archive, ChunkDigest, StoredBytes, StoredPlace};
use crate::clock::Timestamp;
use crate::error::Result;

impl Store {
    /// Returns up to `limit` chunks of the catalog with ids above `after`, in order.
    pub fn chunk_digests(&self, after: i64, limit: u32) -> Result<Vec<ChunkDigest>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, stored_length, stored_digest FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
                )?
                .query_map(params![after, limit], |row| {
                    Ok(ChunkDigest { id: row.get(0)?, stored_length: row.get(1)?, stored_digest: row.get(2)? })
                })?
                .collect()
        })
    }

    /// Returns where complete archives store a chunk, each place once.
    pub fn places_of_chunk(&self, chunk: i64) -> Result<Vec<StoredPlace>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT DISTINCT coalesce(segment_name, file_name), file_offset + ( \
                         SELECT coalesce(sum(stored_length), 0) FROM chunk WHERE id >= span.chunk_id AND id < ?1) \
                     FROM span INDEXED BY span_of_chunk \
                     CROSS JOIN stored_file ON stored_file.id = span.stored_file_id \
                     CROSS JOIN archive ON archive.archive_file_id = span.archive_file_id \
                     WHERE {HOLDS_CHUNK} AND archive.state = 'complete' AND health <> 'missing'"
                ))?
                .query_map([chunk], |row| {
                    Ok(StoredPlace { file_name: row.get::<_, InnerPath>(0)?.0, offset: row.get(1)? })
                })?
                .collect()
        })
    }

    /// Returns whether an archive with this archive file is the base of a running run.
    pub fn is_base_of_running_run(&self, archive_file: i64) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT EXISTS (SELECT 1 FROM archive WHERE archive_file_id = ?1 AND NOT {NOT_HELD})"
                ))?
                .query_row([archive_file], |row| row.get(0))
        })
    }

    /// Records that an archive file was replaced as a whole by another one, whose bytes were read back and are those
    /// that were written once. Returns false if no complete archive has it any more.
    pub fn record_replaced_file(&self, archive: &Archive, stored: &StoredBytes, now: Timestamp) -> Result<bool> {
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached(&format!(
                    "UPDATE stored_file SET size = ?2, device = ?3, inode = ?4, modified_ns = ?5, health = 'good', \
                         verified_at_ms = ?6 WHERE id = {WHOLE_FILE} AND EXISTS (SELECT 1 FROM archive \
                             WHERE archive_file_id = ?1 AND state = 'complete')"
                ))?
                .execute(params![
                    archive.archive_file,
                    stored.size,
                    stored.device.cast_signed(),
                    stored.inode.cast_signed(),
                    stored.modified_ns,
                    now.millis()
                ])?;
            Ok(changed == 1)
        })
    }
}

//! Rows of archive files and of the physical files that they are parts of.

use rusqlite::{Transaction, params};

use super::rows::exactly_one;
use super::types::Health;
use crate::clock::Timestamp;

/// The stored file that is the archive file `?1`, in the whole layout.
pub(super) const WHOLE_FILE: &str = "(SELECT stored_file_id FROM part WHERE archive_file_id = ?1)";

/// What is recorded of a physical file once its bytes are known.
pub(super) struct StoredBytes {
    pub(super) size: u64,
    pub(super) device: u64,
    pub(super) inode: u64,
    /// When they changed last, in nanoseconds since 1970.
    pub(super) modified_ns: Option<i64>,
}

/// Inserts an archive file that will be one stored file; returns its id.
pub(super) fn insert_whole_file(transaction: &Transaction<'_>, codec: &str, level: u8) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached("INSERT INTO archive_file (codec, level) VALUES (?1, ?2)")?
        .execute(params![codec, level])?;
    let archive_file = transaction.last_insert_rowid();
    transaction.prepare_cached("INSERT INTO stored_file (state, health) VALUES ('writing', 'unproven')")?.execute([])?;
    insert_part(transaction, archive_file, transaction.last_insert_rowid())?;
    Ok(archive_file)
}

/// Records that an archive file holds ranges of a stored file.
pub(super) fn insert_part(transaction: &Transaction<'_>, archive_file: i64, stored_file: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO part (archive_file_id, stored_file_id) VALUES (?1, ?2)")?
        .execute([archive_file, stored_file])
        .map(drop)
}

/// Records the bytes of an archive file that is one stored file.
pub(super) fn record_whole_file(
    transaction: &Transaction<'_>,
    archive_file: i64,
    digest: Option<[u8; 32]>,
    stored: &StoredBytes,
) -> rusqlite::Result<()> {
    let changed = transaction
        .prepare_cached("UPDATE archive_file SET size = ?2, digest = ?3 WHERE id = ?1")?
        .execute(params![archive_file, stored.size, digest])?;
    exactly_one(changed)?;
    let changed = transaction
        .prepare_cached(&format!(
            "UPDATE stored_file SET size = ?2, device = ?3, inode = ?4, modified_ns = ?5 WHERE id = {WHOLE_FILE}"
        ))?
        .execute(params![
            archive_file,
            stored.size,
            stored.device.cast_signed(),
            stored.inode.cast_signed(),
            stored.modified_ns
        ])?;
    exactly_one(changed)
}

/// Adds the bytes that follow the chunks of an archive file that is one stored file: its trailer, or, of an archive of
/// the old system, all of it. Its size must be recorded and its chunks added before.
pub(super) fn insert_rest(transaction: &Transaction<'_>, archive_file: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO span (archive_file_id, sequence, chunks, archive_offset, stored_file_id, file_offset, bytes) \
             SELECT ?1, coalesce(last.sequence + last.chunks, 0), 0, coalesce(last.archive_offset + last.bytes, 0), \
                 part.stored_file_id, coalesce(last.archive_offset + last.bytes, 0), \
                 size - coalesce(last.archive_offset + last.bytes, 0) \
             FROM archive_file JOIN part ON part.archive_file_id = archive_file.id \
             LEFT JOIN span AS last ON last.archive_file_id = archive_file.id AND last.sequence = \
                 (SELECT max(sequence) FROM span WHERE span.archive_file_id = ?1) \
             WHERE archive_file.id = ?1 AND size > coalesce(last.archive_offset + last.bytes, 0)",
        )?
        .execute([archive_file])
        .map(drop)
}

/// Records that the bytes of an archive file are there to stay.
pub(super) fn keep_parts(transaction: &Transaction<'_>, archive_file: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE stored_file SET state = 'kept' WHERE state = 'writing' \
             AND id IN (SELECT stored_file_id FROM part WHERE archive_file_id = ?1)",
        )?
        .execute([archive_file])
        .map(drop)
}

/// Records what is known about all parts of an archive file. Without `verified_at` the recorded times are kept.
pub(super) fn record_parts_health(
    transaction: &Transaction<'_>,
    archive_file: i64,
    health: Health,
    verified_at: Option<Timestamp>,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE stored_file SET health = ?2, verified_at_ms = coalesce(?3, verified_at_ms) \
             WHERE id IN (SELECT stored_file_id FROM part WHERE archive_file_id = ?1)",
        )?
        .execute(params![archive_file, health.as_str(), verified_at.map(Timestamp::millis)])
        .map(drop)
}

/// Deletes the row of an archive file whose spans are removed, and those of whole files that are part of none any more.
pub(super) fn delete_archive_file(transaction: &Transaction<'_>, archive_file: i64) -> rusqlite::Result<()> {
    let parts: Vec<i64> = transaction
        .prepare_cached("DELETE FROM part WHERE archive_file_id = ?1 RETURNING stored_file_id")?
        .query_map([archive_file], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    transaction.prepare_cached("DELETE FROM archive_file WHERE id = ?1")?.execute([archive_file])?;
    let mut delete = transaction.prepare_cached(
        "DELETE FROM stored_file WHERE id = ?1 AND segment_name IS NULL \
         AND NOT EXISTS (SELECT 1 FROM part WHERE stored_file_id = ?1)",
    )?;
    parts.iter().try_for_each(|part| delete.execute([part]).map(drop))
}

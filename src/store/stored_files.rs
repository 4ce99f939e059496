//! Rows of archive files and of the physical files that they are parts of.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::rows::{InnerPath, exactly_one};
use super::types::{Health, StoredBytes, StoredFile};
use crate::clock::Timestamp;

/// The stored file that is the archive file `?1`, in the whole layout.
pub(super) const WHOLE_FILE: &str = "(SELECT stored_file_id FROM part \
     JOIN stored_file ON stored_file.id = stored_file_id WHERE archive_file_id = ?1 AND segment_name IS NULL)";

/// What is recorded of an archive file once its bytes are known.
pub(super) struct ArchiveBytes {
    pub(super) size: u64,
    pub(super) digest: Option<[u8; 32]>,
    /// Value of the POSIX CRC; `None` in the whole layout.
    pub(super) crc: Option<u32>,
}

/// Inserts an archive file; returns its id.
pub(super) fn insert_archive_file(transaction: &Transaction<'_>, codec: &str, level: u8) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached("INSERT INTO archive_file (codec, level) VALUES (?1, ?2)")?
        .execute(params![codec, level])?;
    Ok(transaction.last_insert_rowid())
}

/// Inserts an archive file that will be one stored file; returns its id.
pub(super) fn insert_whole_file(transaction: &Transaction<'_>, codec: &str, level: u8) -> rusqlite::Result<i64> {
    let archive_file = insert_archive_file(transaction, codec, level)?;
    let stored_file = insert_stored_file(transaction)?;
    insert_part(transaction, archive_file, stored_file)?;
    Ok(archive_file)
}

/// Inserts a physical file that is named by its archive; returns its id.
pub(super) fn insert_stored_file(transaction: &Transaction<'_>) -> rusqlite::Result<i64> {
    transaction.prepare_cached("INSERT INTO stored_file (state, health) VALUES ('writing', 'unproven')")?.execute([])?;
    Ok(transaction.last_insert_rowid())
}

/// Records that an archive file holds ranges of a stored file.
pub(super) fn insert_part(transaction: &Transaction<'_>, archive_file: i64, stored_file: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR IGNORE INTO part (archive_file_id, stored_file_id) VALUES (?1, ?2)")?
        .execute([archive_file, stored_file])
        .map(drop)
}

/// Records the bytes of an archive file.
pub(super) fn record_archive_file(
    transaction: &Transaction<'_>,
    archive_file: i64,
    bytes: &ArchiveBytes,
) -> rusqlite::Result<()> {
    let changed = transaction
        .prepare_cached("UPDATE archive_file SET size = ?2, digest = ?3, crc = ?4 WHERE id = ?1")?
        .execute(params![archive_file, bytes.size, bytes.digest, bytes.crc])?;
    exactly_one(changed)
}

/// Records the bytes of an archive file that is one stored file.
pub(super) fn record_whole_file(
    transaction: &Transaction<'_>,
    archive_file: i64,
    digest: Option<[u8; 32]>,
    stored: &StoredBytes,
) -> rusqlite::Result<()> {
    record_archive_file(transaction, archive_file, &ArchiveBytes { size: stored.size, digest, crc: None })?;
    let stored_file = transaction
        .prepare_cached("SELECT stored_file_id FROM part WHERE archive_file_id = ?1")?
        .query_row([archive_file], |row| row.get(0))?;
    record_stored_bytes(transaction, stored_file, stored)
}

/// Records the bytes of a physical file.
pub(super) fn record_stored_bytes(
    transaction: &Transaction<'_>,
    stored_file: i64,
    stored: &StoredBytes,
) -> rusqlite::Result<()> {
    let changed = transaction
        .prepare_cached(
            "UPDATE stored_file SET size = ?2, device = ?3, inode = ?4, modified_ns = ?5 \
             WHERE id = ?1 AND state = 'writing'",
        )?
        .execute(params![
            stored_file,
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
    let stored_file = transaction
        .prepare_cached("SELECT stored_file_id FROM part WHERE archive_file_id = ?1")?
        .query_row([archive_file], |row| row.get(0))?;
    let (_, end) = end_of_chunks(transaction, archive_file)?;
    insert_trailer(transaction, archive_file, stored_file, end)
}

/// Adds the bytes that follow the chunks of an archive file, which lie at this offset of a stored file.
pub(super) fn insert_trailer(
    transaction: &Transaction<'_>,
    archive_file: i64,
    stored_file: i64,
    file_offset: u64,
) -> rusqlite::Result<()> {
    let (sequence, end) = end_of_chunks(transaction, archive_file)?;
    transaction
        .prepare_cached(
            "INSERT INTO span (archive_file_id, sequence, chunks, archive_offset, stored_file_id, file_offset, bytes) \
             SELECT id, ?2, 0, ?3, ?4, ?5, size - ?3 FROM archive_file WHERE id = ?1 AND size > ?3",
        )?
        .execute(params![archive_file, sequence, end, stored_file, file_offset])
        .map(drop)
}

/// Returns the number of chunks of an archive file, and the offset at which the last one ends.
fn end_of_chunks(transaction: &Transaction<'_>, archive_file: i64) -> rusqlite::Result<(u64, u64)> {
    let last = transaction
        .prepare_cached(
            "SELECT sequence + chunks, archive_offset + bytes FROM span WHERE archive_file_id = ?1 \
             ORDER BY sequence DESC, archive_offset DESC LIMIT 1",
        )?
        .query_row([archive_file], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(last.unwrap_or_default())
}

/// The physical files of the archive of run `?1` and of its archive file `?2`.
const FILES_OF_ARCHIVE: &str = "(SELECT stored_file_id FROM part WHERE archive_file_id = ?2 \
     UNION ALL SELECT index_file_id FROM archive WHERE run_id = ?1)";

/// Records that the bytes of an archive are there to stay.
pub(super) fn keep_parts(transaction: &Transaction<'_>, run: i64, archive_file: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(&format!(
            "UPDATE stored_file SET state = 'kept', temporary_name = NULL WHERE state = 'writing' \
             AND id IN {FILES_OF_ARCHIVE}"
        ))?
        .execute([run, archive_file])
        .map(drop)
}

/// Records what is known about what a run has written: the whole file, or its own segments and its index.
pub(super) fn record_written_health(
    transaction: &Transaction<'_>,
    run: i64,
    archive_file: i64,
    health: Health,
    verified_at: Option<Timestamp>,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(&format!(
            "UPDATE stored_file SET health = ?3, verified_at_ms = coalesce(?4, verified_at_ms) \
             WHERE id IN {FILES_OF_ARCHIVE} AND (segment_name IS NULL OR state = 'writing')"
        ))?
        .execute(params![run, archive_file, health.as_str(), verified_at.map(Timestamp::millis)])
        .map(drop)
}

/// Records that a rescan has read all of an archive. What is known of segments of other archives stays.
pub(super) fn record_read_health(
    transaction: &Transaction<'_>,
    run: i64,
    archive_file: i64,
    now: Timestamp,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(&format!(
            "UPDATE stored_file SET health = 'good', verified_at_ms = ?3 \
             WHERE id IN {FILES_OF_ARCHIVE} AND health = 'unproven'"
        ))?
        .execute(params![run, archive_file, now.millis()])
        .map(drop)
}

/// Deletes the row of the index of an archive that was deleted.
pub(super) fn delete_index_file(transaction: &Transaction<'_>, index: Option<i64>) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM stored_file WHERE id = ?1")?.execute([index]).map(drop)
}

/// Deletes the row of an archive file whose spans are removed. Of the stored files that are part of no other one, whole
/// files lose their rows; segments are to be deleted.
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
    let mut mark = transaction.prepare_cached(
        "UPDATE stored_file SET state = 'deleting' WHERE id = ?1 AND segment_name IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM part WHERE stored_file_id = ?1)",
    )?;
    parts.iter().try_for_each(|part| {
        delete.execute([part])?;
        mark.execute([part]).map(drop)
    })
}

/// Takes the segments from an archive file whose spans are removed; those that its run has written are to be deleted.
pub(super) fn discard_segments(transaction: &Transaction<'_>, run: i64, archive_file: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "DELETE FROM part WHERE archive_file_id = ?1 AND stored_file_id IN \
             (SELECT id FROM stored_file WHERE segment_name IS NOT NULL)",
        )?
        .execute([archive_file])?;
    transaction
        .prepare_cached("UPDATE stored_file SET state = 'deleting' WHERE run_id = ?1 AND state = 'writing'")?
        .execute([run])
        .map(drop)
}

/// Returns the physical files that an archive file holds ranges of; not those that it was moved from, which an index
/// may still list.
pub(super) fn parts_of(connection: &Connection, archive_file: i64) -> rusqlite::Result<Vec<StoredFile>> {
    connection
        .prepare_cached(
            "SELECT stored_file.* FROM part JOIN stored_file ON stored_file.id = part.stored_file_id \
             WHERE part.archive_file_id = ?1 AND stored_file.state <> 'deleting'",
        )?
        .query_map([archive_file], stored_file_row)?
        .collect()
}

pub(super) fn stored_file_row(row: &Row<'_>) -> rusqlite::Result<StoredFile> {
    Ok(StoredFile {
        id: row.get("id")?,
        segment_name: row.get::<_, Option<InnerPath>>("segment_name")?.map(|path| path.0),
        temporary_name: row.get::<_, Option<InnerPath>>("temporary_name")?.map(|path| path.0),
        identity: match (row.get::<_, Option<i64>>("device")?, row.get::<_, Option<i64>>("inode")?) {
            (Some(device), Some(inode)) => Some((device.cast_unsigned(), inode.cast_unsigned())),
            _ => None,
        },
        size: row.get("size")?,
        modified_ns: row.get("modified_ns")?,
        verified_at: row.get::<_, Option<i64>>("verified_at_ms")?.map(Timestamp::from_millis),
    })
}

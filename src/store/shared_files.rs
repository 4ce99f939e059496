//! Archives that share the row of a physical file although their names are those of several files, as after a copy of
//! the archive folder without its hard links.

use rusqlite::{Transaction, params};

use super::Store;
use super::stored_files::{WHOLE_FILE, delete_archive_file, insert_part};
use super::types::Health;
use crate::error::Result;

impl Store {
    /// Returns the inode number that a physical file had when it was written or taken in.
    pub fn known_inode(&self, archive_file: i64) -> Result<Option<u64>> {
        self.read(|connection| {
            let inode: Option<i64> = connection
                .prepare_cached(&format!("SELECT inode FROM stored_file WHERE id = {WHOLE_FILE}"))?
                .query_row([archive_file], |row| row.get(0))?;
            Ok(inode.map(i64::cast_unsigned))
        })
    }

    /// Records that a row is that of another file, with this device and inode number, which was not verified.
    pub fn record_other_file(&self, archive_file: i64, (device, inode): (u64, u64)) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    &format!(
                        "UPDATE stored_file SET device = ?2, inode = ?3, verified_at_ms = NULL WHERE id = {WHOLE_FILE}"
                    ),
                    [archive_file, device.cast_signed(), inode.cast_signed()],
                )
                .map(drop)
        })
    }

    /// Gives complete archives that share the row of a physical file a row of their own, for their file, which was not
    /// verified; `identity` is its device and inode number, `None` if it does not exist. They keep their chunks.
    ///
    /// All spans are copied in one transaction, as an archive with a part of them would be listed without the rest.
    pub fn split_file(&self, archive_file: i64, runs: &[i64], identity: Option<(u64, u64)>) -> Result<()> {
        self.write(|transaction| {
            let mut changed = 0;
            let (own, own_stored) = copy_whole_file(transaction, archive_file, identity)?;
            let mut update = transaction.prepare_cached(
                "UPDATE archive SET archive_file_id = ?3 \
                 WHERE run_id = ?2 AND archive_file_id = ?1 AND state = 'complete'",
            )?;
            for run in runs {
                changed += update.execute([archive_file, *run, own])?;
            }
            if changed == 0 {
                // They were deleted meanwhile.
                return delete_archive_file(transaction, own);
            }
            transaction
                .execute(
                    "INSERT INTO span (archive_file_id, sequence, chunk_id, chunks, archive_offset, stored_file_id, \
                         file_offset, bytes) \
                     SELECT ?2, sequence, chunk_id, chunks, archive_offset, ?3, file_offset, bytes FROM span \
                     WHERE archive_file_id = ?1",
                    [archive_file, own, own_stored],
                )
                .map(drop)
        })
    }
}

/// Copies the row of an archive file and that of the stored file that it is, without spans; returns the ids.
fn copy_whole_file(
    transaction: &Transaction<'_>,
    archive_file: i64,
    identity: Option<(u64, u64)>,
) -> rusqlite::Result<(i64, i64)> {
    transaction.execute(
        "INSERT INTO archive_file (size, digest, codec, level, padded) \
         SELECT size, digest, codec, level, padded FROM archive_file WHERE id = ?1",
        [archive_file],
    )?;
    let own = transaction.last_insert_rowid();
    transaction.execute(
        &format!(
            "INSERT INTO stored_file (state, size, modified_ns, device, inode, health, verified_at_ms) \
             SELECT state, size, modified_ns, coalesce(?2, device), coalesce(?3, inode), coalesce(?4, health), \
                 CASE WHEN ?4 IS NULL THEN NULL ELSE verified_at_ms END \
             FROM stored_file WHERE id = {WHOLE_FILE}"
        ),
        params![
            archive_file,
            identity.map(|(device, _)| device.cast_signed()),
            identity.map(|(_, inode)| inode.cast_signed()),
            identity.is_none().then(|| Health::Missing.as_str())
        ],
    )?;
    let own_stored = transaction.last_insert_rowid();
    insert_part(transaction, own, own_stored)?;
    Ok((own, own_stored))
}

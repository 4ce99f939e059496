//! Archives that are not visible: being written, from the intent before the first byte to complete, or being deleted.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::Store;
use super::remove_chunks::remove_batch;
use super::rows::{JOINED, PENDING, exactly_one, extent_row};
use super::stored_files::{
    StoredBytes, delete_archive_file, insert_rest, insert_whole_file, keep_parts, record_parts_health,
    record_whole_file,
};
use super::types::{Claim, Completed, Health, Intent, PendingArchive, Sealed};
use crate::archive_name::ArchiveName;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::schedule::Compression;

impl Store {
    /// Returns the archive that a run has begun to write; `None` if there is none or it is complete.
    pub fn pending_archive(&self, run: i64) -> Result<Option<PendingArchive>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT archive.*, size, digest {JOINED} WHERE run_id = ?1 AND state <> 'complete'"
                ))?
                .query_row([run], pending_archive_row)
                .optional()
        })
    }

    /// Returns the archives that are marked for deletion.
    pub fn archives_being_deleted(&self) -> Result<Vec<PendingArchive>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT archive.*, size, digest {JOINED} WHERE {PENDING} AND state = 'deleting'"
                ))?
                .query_map([], pending_archive_row)?
                .collect()
        })
    }

    /// Returns the names, below the archive folder, of the files that attempts are writing.
    pub fn temporary_names(&self) -> Result<Vec<String>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT temporary_name FROM archive WHERE {PENDING} AND state IN ('writing', 'sealed') \
                     AND temporary_name IS NOT NULL"
                ))?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    /// Records that the file is whole and synced. Its catalog rows must be written before; they are not visible yet.
    pub fn seal(&self, claim: &Claim, sealed: &Sealed) -> Result<()> {
        self.write_fenced(claim, |transaction| {
            let file = seal_archive(transaction, claim.run(), sealed)?;
            let Sealed { size, device, inode, modified_ns, .. } = *sealed;
            let stored = StoredBytes { size, device, inode, modified_ns: Some(modified_ns) };
            record_whole_file(transaction, file, Some(sealed.digest), &stored)?;
            insert_rest(transaction, file)
        })
    }

    /// Gives a sealed archive another final name, before its file gets that. `created_at` is the time in the name.
    pub fn rename_sealed(&self, claim: &Claim, file_name: &str, created_at: Timestamp) -> Result<()> {
        self.write_fenced(claim, |transaction| {
            let changed = transaction
                .prepare_cached(
                    "UPDATE archive SET file_name = ?2, created_at_ms = ?3 WHERE run_id = ?1 AND state = 'sealed'",
                )?
                .execute(params![claim.run(), file_name, created_at.millis()])?;
            exactly_one(changed)
        })
    }

    /// Records that the file is a synced hard link of that of the base, whose row the archive shares from now on. No
    /// chunks may have been added.
    pub fn seal_as_link(&self, claim: &Claim, sealed: &Sealed) -> Result<()> {
        self.write_fenced(claim, |transaction| {
            let own: i64 = transaction.query_row(
                "SELECT archive_file_id FROM archive WHERE run_id = ?1 \
                 AND NOT EXISTS (SELECT 1 FROM span WHERE span.archive_file_id = archive.archive_file_id)",
                [claim.run()],
                |row| row.get(0),
            )?;
            let changed = transaction.execute(
                "UPDATE archive SET archive_file_id = base.archive_file_id \
                 FROM run JOIN archive AS base ON base.run_id = run.base_run_id AND base.state = 'complete' \
                 WHERE run.id = ?1 AND archive.run_id = ?1",
                [claim.run()],
            )?;
            exactly_one(changed)?;
            delete_archive_file(transaction, own)?;
            seal_archive(transaction, claim.run(), sealed).map(drop)
        })
    }

    /// Removes the rows of an archive whose file is deleted, a batch at a time; what other archives share is kept.
    pub fn remove_deleted(&self, run: i64) -> Result<()> {
        while self.write(|transaction| remove_batch_of_deleted(transaction, run))? {}
        Ok(())
    }
}

/// Records that the archive of a run is sealed; returns its archive file.
fn seal_archive(transaction: &Transaction<'_>, run: i64, sealed: &Sealed) -> rusqlite::Result<i64> {
    let origin = sealed.origin.as_ref();
    transaction
        .prepare_cached(
            "UPDATE archive SET state = 'sealed', source_root = ?2, scan_started_at_ms = ?3, members = ?4, files = ?5, \
             content_bytes = ?6, incomplete = ?7, boot_id = ?8, root_name = ?9, writer_version = ?10, \
             archive_mode = ?11, effective_uid = ?12, capabilities = ?13 WHERE run_id = ?1 AND state = 'writing' \
             RETURNING archive_file_id",
        )?
        .query_row(
            params![
                run,
                sealed.source_root,
                sealed.scan_started.millis(),
                sealed.extent.members,
                sealed.extent.files,
                sealed.extent.content_bytes,
                sealed.incomplete,
                sealed.boot_id,
                origin.map(|origin| origin.root_name.as_bytes()),
                origin.map(|origin| origin.writer_version),
                origin.map(|origin| origin.archive_mode),
                origin.map(|origin| origin.effective_uid),
                origin.map(|origin| origin.capabilities.as_str()),
            ],
            |row| row.get(0),
        )
}

/// Removes up to a batch of an archive that is being deleted; returns whether more is left.
fn remove_batch_of_deleted(transaction: &Transaction<'_>, run: i64) -> rusqlite::Result<bool> {
    let file: Option<i64> = transaction
        .prepare_cached("SELECT archive_file_id FROM archive WHERE run_id = ?1 AND state = 'deleting'")?
        .query_row([run], |row| row.get(0))
        .optional()?;
    let Some(file) = file else { return Ok(false) };
    let is_shared: bool = transaction
        .prepare_cached("SELECT count(*) > 1 FROM archive WHERE archive_file_id = ?1")?
        .query_row([file], |row| row.get(0))?;
    if !is_shared && remove_batch(transaction, file)? {
        return Ok(true);
    }
    transaction.prepare_cached("DELETE FROM archive WHERE run_id = ?1")?.execute([run])?;
    if !is_shared {
        delete_archive_file(transaction, file)?;
    }
    Ok(false)
}

/// Writes the names that a claimed run will use, before it uses them.
pub(super) fn write_intent(transaction: &Transaction<'_>, claim: &Claim, now: Timestamp) -> rusqlite::Result<Intent> {
    let (name, compression, source): (String, String, Vec<u8>) = transaction
        .prepare_cached("SELECT name, compression, source FROM schedule WHERE id = ?1")?
        .query_row([claim.schedule], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let compression: Compression = compression
        .parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e)))?;
    let archive = ArchiveName { schedule: &name, created_at: now, run: claim.run, extension: compression.extension() };
    let random = uuid::Uuid::new_v4().as_fields().0;
    let intent = Intent {
        file_name: format!("{name}/{}", archive.file_name()),
        temporary_name: format!("{name}/{}", archive.temporary_name(claim.attempt, random)),
        compression,
    };
    let file = insert_whole_file(transaction, compression.codec(), compression.level())?;
    transaction
        .prepare_cached(
            "INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, temporary_name, source_root, \
             scan_started_at_ms, created_at_ms) \
             VALUES (?1, ?2, ?7, 'writing', ?3, ?4, ?5, ?6, ?6)",
        )?
        .execute(params![
            claim.run,
            claim.schedule,
            intent.file_name,
            intent.temporary_name,
            source,
            now.millis(),
            file
        ])?;
    Ok(intent)
}

/// Why a run fails whose archive refers to bytes that were found damaged meanwhile.
const SHARES_DAMAGE: &str = "the file that it shares with the archive before it was found damaged";

/// Makes a sealed archive visible. Returns what is wrong with its file if another archive has the file or blocks of it,
/// too, and it was found damaged meanwhile.
pub(super) fn make_visible(
    transaction: &Transaction<'_>,
    run: i64,
    completed: &Completed,
) -> rusqlite::Result<Option<&'static str>> {
    let file = transaction
        .prepare_cached(
            "UPDATE archive SET state = 'complete', temporary_name = NULL, suspect = ?2 \
             WHERE run_id = ?1 AND state = 'sealed' RETURNING archive_file_id",
        )?
        .query_row(params![run, completed.suspect], |row| row.get(0))?;
    keep_parts(transaction, file)?;
    let health = match (&completed.damaged, completed.verified_at) {
        (Some(_), _) => Health::Damaged,
        // What it shares may be damaged or not: it was not read. The archive stays one that is not verified.
        _ if has_health(transaction, completed.shares_blocks_of, &[Health::Damaged])? => {
            return Ok(Some(SHARES_DAMAGE));
        }
        (None, Some(_)) => Health::Good,
        // The file of another archive keeps what is known about it.
        (None, None) => {
            let is_unfit = has_health(transaction, Some(file), &[Health::Damaged, Health::Missing])?;
            return Ok(is_unfit.then_some(SHARES_DAMAGE));
        }
    };
    record_parts_health(transaction, file, health, completed.verified_at)?;
    Ok(None)
}

/// Returns whether an archive file has one of these states of health.
fn has_health(transaction: &Transaction<'_>, archive_file: Option<i64>, among: &[Health]) -> rusqlite::Result<bool> {
    let health: Option<Health> = transaction
        .prepare_cached("SELECT health FROM archive_file_health WHERE archive_file_id = ?1")?
        .query_row([archive_file], |row| row.get(0))
        .optional()?;
    Ok(health.is_some_and(|health| among.contains(&health)))
}

/// Accepts an archive that is suspect.
pub(super) fn accept_archive(transaction: &Transaction<'_>, run: i64) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE archive SET acknowledged = 1 WHERE run_id = ?1")?.execute([run]).map(drop)
}

/// Deletes the intent of a run that ends without an archive. Its chunks must be removed before.
pub(super) fn delete_intent(transaction: &Transaction<'_>, run: i64) -> rusqlite::Result<()> {
    let file: Option<i64> = transaction
        .prepare_cached(
            "DELETE FROM archive WHERE run_id = ?1 AND state IN ('writing', 'sealed') RETURNING archive_file_id",
        )?
        .query_row([run], |row| row.get(0))
        .optional()?;
    let Some(file) = file else { return Ok(()) };
    let is_shared: bool = transaction
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM archive WHERE archive_file_id = ?1)")?
        .query_row([file], |row| row.get(0))?;
    if is_shared { Ok(()) } else { delete_archive_file(transaction, file) }
}

fn pending_archive_row(row: &Row<'_>) -> rusqlite::Result<PendingArchive> {
    Ok(PendingArchive {
        run: row.get("run_id")?,
        schedule: row.get("schedule_id")?,
        state: row.get("state")?,
        file_name: row.get::<_, InnerPath>("file_name")?.0,
        temporary_name: row.get::<_, Option<InnerPath>>("temporary_name")?.map(|path| path.0),
        size: row.get("size")?,
        digest: row.get("digest")?,
        extent: extent_row(row)?,
        incomplete: row.get("incomplete")?,
    })
}

/// The path of a file in the folder of a schedule. Pending archives are renamed and removed by it, also by root with
/// the database of another user, so that it must not lead elsewhere.
struct InnerPath(String);

impl FromSql for InnerPath {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let path = value.as_str()?;
        let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['/', '\0']);
        match path.split_once('/') {
            Some((folder, name)) if is_name(folder) && is_name(name) => Ok(InnerPath(path.to_owned())),
            _ => Err(FromSqlError::Other(format!("{path:?} does not lie in the folder of a schedule").into())),
        }
    }
}

//! Archives that are not visible: being written, from the intent before the first byte to complete, or being deleted.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::Store;
use super::remove_chunks::remove_batch;
use super::rows::{InnerPath, JOINED, PENDING, exactly_one, extent_row};
use super::stored_files::{
    ArchiveBytes, delete_archive_file, delete_index_file, insert_archive_file, insert_part, insert_rest,
    insert_stored_file, insert_trailer, insert_whole_file, keep_parts, record_archive_file, record_stored_bytes,
    record_whole_file, record_written_health,
};
use super::types::{Claim, Completed, Health, Intent, PendingArchive, Sealed, SealedSegments};
use crate::archive_name::ArchiveName;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::schedule::{Compression, Layout};

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
                         AND temporary_name IS NOT NULL \
                     UNION ALL SELECT temporary_name FROM stored_file WHERE state <> 'kept' \
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
            let digest = Some(sealed.digest);
            let Some(SealedSegments { crc, trailer_segment, trailer_offset }) = sealed.in_segments else {
                record_whole_file(transaction, file, digest, &sealed.file)?;
                return insert_rest(transaction, file);
            };
            let bytes = ArchiveBytes { size: sealed.size, digest, crc: Some(crc) };
            record_archive_file(transaction, file, &bytes)?;
            insert_part(transaction, file, trailer_segment)?;
            insert_trailer(transaction, file, trailer_segment, trailer_offset)
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

/// Records that the archive of a run is sealed, and its index; returns its archive file.
fn seal_archive(transaction: &Transaction<'_>, run: i64, sealed: &Sealed) -> rusqlite::Result<i64> {
    let index: Option<i64> = transaction
        .prepare_cached("SELECT index_file_id FROM archive WHERE run_id = ?1")?
        .query_row([run], |row| row.get(0))?;
    if let Some(index) = index {
        record_stored_bytes(transaction, index, &sealed.file)?;
    }
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
    let index: Option<i64> = transaction
        .prepare_cached("DELETE FROM archive WHERE run_id = ?1 RETURNING index_file_id")?
        .query_row([run], |row| row.get(0))?;
    delete_index_file(transaction, index)?;
    if !is_shared {
        delete_archive_file(transaction, file)?;
    }
    Ok(false)
}

/// Inserts the archive file of a run, and its index if it gets one.
fn insert_files(transaction: &Transaction<'_>, intent: &Intent) -> rusqlite::Result<(i64, Option<i64>)> {
    let (codec, level) = (intent.compression.codec(), intent.compression.level());
    match intent.layout {
        Layout::Whole => Ok((insert_whole_file(transaction, codec, level)?, None)),
        Layout::Segmented => {
            Ok((insert_archive_file(transaction, codec, level)?, Some(insert_stored_file(transaction)?)))
        }
    }
}

/// Writes the names that a claimed run will use, before it uses them.
pub(super) fn write_intent(transaction: &Transaction<'_>, claim: &Claim, now: Timestamp) -> rusqlite::Result<Intent> {
    let (name, compression, layout, source): (String, String, Layout, Vec<u8>) = transaction
        .prepare_cached("SELECT name, compression, layout, source FROM schedule WHERE id = ?1")?
        .query_row([claim.schedule], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let compression: Compression = compression
        .parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e)))?;
    let archive = ArchiveName { schedule: &name, created_at: now, run: claim.run, extension: compression.extension() };
    let random = uuid::Uuid::new_v4().as_fields().0;
    let (file_name, temporary_name) = match layout {
        Layout::Whole => (archive.file_name(), archive.temporary_name(claim.attempt, random)),
        Layout::Segmented => (archive.index_name(), archive.temporary_index_name(claim.attempt, random)),
    };
    let intent = Intent {
        file_name: format!("{name}/{file_name}"),
        temporary_name: format!("{name}/{temporary_name}"),
        compression,
        layout,
    };
    let (file, index) = insert_files(transaction, &intent)?;
    transaction
        .prepare_cached(
            "INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, temporary_name, source_root, \
             scan_started_at_ms, created_at_ms, layout, index_file_id) \
             VALUES (?1, ?2, ?7, 'writing', ?3, ?4, ?5, ?6, ?6, ?8, ?9)",
        )?
        .execute(params![
            claim.run,
            claim.schedule,
            intent.file_name,
            intent.temporary_name,
            source,
            now.millis(),
            file,
            layout.as_str(),
            index
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
    match &completed.damaged {
        Some(_) => {
            record_written_health(transaction, run, file, Health::Damaged, completed.verified_at)?;
            return keep_parts(transaction, run, file).map(|()| None);
        }
        // What it shares may be damaged or not: it was not read. The archive stays one that is not verified.
        None if has_health(transaction, completed.shares_blocks_of, &[Health::Damaged])? => {
            return keep_parts(transaction, run, file).map(|()| Some(SHARES_DAMAGE));
        }
        // Without a time, the file of another archive keeps what is known about it.
        None if completed.verified_at.is_some() => {
            record_written_health(transaction, run, file, Health::Good, completed.verified_at)?;
        }
        None => {}
    }
    keep_parts(transaction, run, file)?;
    let is_unfit = has_health(transaction, Some(file), &[Health::Damaged, Health::Missing])?;
    Ok(is_unfit.then_some(SHARES_DAMAGE))
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
    let deleted: Option<(i64, Option<i64>)> = transaction
        .prepare_cached(
            "DELETE FROM archive WHERE run_id = ?1 AND state IN ('writing', 'sealed') \
             RETURNING archive_file_id, index_file_id",
        )?
        .query_row([run], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((file, index)) = deleted else { return Ok(()) };
    delete_index_file(transaction, index)?;
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
        layout: row.get("layout")?,
    })
}

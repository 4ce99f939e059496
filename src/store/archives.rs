//! Archives as rows: from the intent before the first byte to complete, and what of it is good.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::claims::{Claim, Completed};
use super::runs::extent_row;
use super::{Store, exactly_one};
use crate::archive_name::ArchiveName;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::member::Extent;
use crate::schedule::Compression;

/// The names a run writes under; both below the archive folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Final name: `docs/docs-20261123T023000Z-17.tar`.
    pub file_name: String,
    /// Temporary name in the same folder.
    pub temporary_name: String,
    /// What the names promise, whatever the schedule is changed to meanwhile.
    pub compression: Compression,
}

/// How far an archive has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveState {
    /// Its file may be half written, under the temporary name.
    Writing,
    /// Its file is whole and synced, under either name.
    Sealed,
    /// Visible.
    Complete,
    /// On its way out: the file may be gone, the row goes after it.
    Deleting,
}

/// What is known of the bytes of an archive file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Never read back.
    Unverified,
    /// Read back and found to be what was written.
    Good,
    /// Read back and found to be something else.
    Damaged,
    /// Not there when it was looked for.
    Missing,
}

words!(ArchiveState, Writing = "writing", Sealed = "sealed", Complete = "complete", Deleting = "deleting");
words!(Health, Unverified = "unproven", Good = "good", Damaged = "damaged", Missing = "missing");

/// A complete archive.
#[derive(Clone, Debug)]
pub struct Archive {
    /// Number of the run that made it.
    pub run: i64,
    /// Row of its schedule.
    pub schedule_id: i64,
    /// Name of its schedule.
    pub schedule_name: String,
    /// Its file, below the archive folder.
    pub file_name: String,
    /// When it was made: the time in its name.
    pub created_at: Timestamp,
    /// Bytes of the file.
    pub size: u64,
    /// BLAKE3 over its chunks' digests.
    pub digest: Option<Vec<u8>>,
    /// Row of the physical file; hard-linked archives share it.
    pub archive_file: i64,
    /// What is known of its bytes.
    pub health: Health,
    /// When it was last read back.
    pub verified_at: Option<Timestamp>,
    /// Some source data is missing in it.
    pub incomplete: bool,
    /// Its source fell by more than half, and nobody confirmed that.
    pub suspect: bool,
    /// Never pruned.
    pub pinned: bool,
    /// Made by a run that was asked for by hand.
    pub manual: bool,
    /// Good in the sense of I8.
    pub good: bool,
    /// How much it holds.
    pub extent: Extent,
}

/// An archive that is not visible: being made, or being deleted.
#[derive(Clone, Debug)]
pub struct PendingArchive {
    /// Number of its run.
    pub run: i64,
    /// Row of its schedule.
    pub schedule: i64,
    /// How far it has come.
    pub state: ArchiveState,
    /// Final name, below the archive folder.
    pub file_name: String,
    /// Temporary name, until the file is in place.
    pub temporary_name: Option<String>,
    /// Bytes of the file, once sealed.
    pub size: Option<u64>,
    /// Digest of the file, once sealed.
    pub digest: Option<Vec<u8>>,
    /// How much it holds, once sealed.
    pub extent: Extent,
    /// Some source data is missing in it.
    pub incomplete: bool,
}

/// What is known of an archive when its file is whole and synced.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Bytes of the file.
    pub size: u64,
    /// BLAKE3 over its chunks' digests.
    pub digest: [u8; 32],
    /// Where the file lies.
    pub device: u64,
    /// Which file it is there.
    pub inode: u64,
    /// The source, resolved.
    pub source_root: Vec<u8>,
    /// When its source began to be read.
    pub scan_started: Timestamp,
    /// How much it holds.
    pub extent: Extent,
    /// Some source data is missing in it.
    pub incomplete: bool,
}

/// An archive of the old system, found under a stable name and moved aside.
#[derive(Clone, Debug)]
pub struct LegacyArchive {
    /// Its file as it is now, below the archive folder.
    pub file_name: String,
    /// When the file changed last.
    pub created_at: Timestamp,
    /// Bytes of the file.
    pub size: u64,
    /// Device it lies on.
    pub device: u64,
    /// Which file it is there.
    pub inode: u64,
    /// Its compression.
    pub codec: &'static str,
    /// How much it holds.
    pub extent: Extent,
    /// It could be read to its end.
    pub readable: bool,
    /// Its source, as the schedule has it.
    pub source_root: Vec<u8>,
}

/// Complete, not damaged, not a sudden change, and proven unless the schedule says no-verify (I8).
pub(super) const GOOD: &str = "(archive.state = 'complete' AND (archive.suspect = 0 OR archive.acknowledged = 1) \
     AND (archive_file.health = 'good' OR (archive_file.health = 'unproven' AND schedule.verify = 0)))";

pub(super) const JOINED: &str = "FROM archive JOIN archive_file ON archive_file.id = archive.archive_file_id \
     JOIN schedule ON schedule.id = archive.schedule_id";

impl Store {
    /// Returns complete archives, oldest first, of one schedule or of all.
    pub fn archives(&self, schedule: Option<i64>) -> Result<Vec<Archive>> {
        self.select_archives("(?1 IS NULL OR archive.schedule_id = ?1) ORDER BY archive.run_id", params![schedule])
    }

    /// Returns the complete archive of a run.
    pub fn archive(&self, run: i64) -> Result<Option<Archive>> {
        Ok(self.select_archives("archive.run_id = ?1", [run])?.pop())
    }

    /// Returns the newest good archive of a schedule: the one with the highest run number.
    pub fn newest_good(&self, schedule: i64) -> Result<Option<Archive>> {
        // The old system's archives have no digest of ours, and are older than any of ours whatever their number.
        let newest =
            format!("archive.schedule_id = ?1 AND {GOOD} ORDER BY digest IS NULL, archive.run_id DESC LIMIT 1");
        Ok(self.select_archives(&newest, [schedule])?.pop())
    }

    /// Says whether the catalog holds archives: then the archive folder must carry our identity (I9).
    pub fn has_archives(&self) -> Result<bool> {
        self.read(|connection| {
            connection.query_row("SELECT EXISTS (SELECT 1 FROM archive WHERE state <> 'writing')", [], |row| row.get(0))
        })
    }

    /// Returns what a run has begun to make, if it is not complete.
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

    /// Records that the file is whole and synced; its catalog rows are written by now, and not yet visible.
    pub fn seal(&self, claim: &Claim, sealed: &Sealed) -> Result<()> {
        self.write_fenced(claim, |transaction| {
            let changed = transaction
                .prepare_cached(
                    "UPDATE archive SET state = 'sealed', source_root = ?2, scan_started_at_ms = ?3, members = ?4, \
                     files = ?5, content_bytes = ?6, incomplete = ?7 WHERE run_id = ?1 AND state = 'writing'",
                )?
                .execute(params![
                    claim.run(),
                    sealed.source_root,
                    sealed.scan_started.millis(),
                    sealed.extent.members,
                    sealed.extent.files,
                    sealed.extent.content_bytes,
                    sealed.incomplete
                ])?;
            exactly_one(changed)?;
            let changed = transaction
                .prepare_cached(
                    "UPDATE archive_file SET size = ?2, digest = ?3, device = ?4, inode = ?5 \
                 WHERE id = (SELECT archive_file_id FROM archive WHERE run_id = ?1)",
                )?
                .execute(params![
                    claim.run(),
                    sealed.size,
                    sealed.digest,
                    sealed.device.cast_signed(),
                    sealed.inode.cast_signed()
                ])?;
            exactly_one(changed)
        })
    }

    /// Takes an archive of the old system into the catalog, pinned, under a run number of its own.
    pub fn add_legacy_archive(&self, schedule: i64, legacy: &LegacyArchive, now: Timestamp) -> Result<i64> {
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO run (schedule_id, trigger, state, not_before_ms, queued_at_ms, started_at_ms, \
                     finished_at_ms, members, content_bytes, archive_bytes, notes) \
                 VALUES (?1, 'rescan', 'succeeded', ?2, ?2, ?2, ?2, ?3, ?4, ?5, 'made by the old system, moved aside')",
                )?
                .execute(params![
                    schedule,
                    now.millis(),
                    legacy.extent.members,
                    legacy.extent.content_bytes,
                    legacy.size
                ])?;
            let run = transaction.last_insert_rowid();
            let health = if legacy.readable { Health::Good } else { Health::Damaged };
            transaction
                .prepare_cached(
                    "INSERT INTO archive_file (device, inode, size, codec, level, verified_at_ms, health) \
                 VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6)",
                )?
                .execute(params![
                    legacy.device.cast_signed(),
                    legacy.inode.cast_signed(),
                    legacy.size,
                    legacy.codec,
                    now.millis(),
                    health.as_str()
                ])?;
            transaction
                .prepare_cached(
                    "INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, pinned, source_root, \
                     scan_started_at_ms, created_at_ms, members, content_bytes) \
                 VALUES (?1, ?2, last_insert_rowid(), 'complete', ?3, 1, ?4, ?5, ?5, ?6, ?7)",
                )?
                .execute(params![
                    run,
                    schedule,
                    legacy.file_name,
                    legacy.source_root,
                    legacy.created_at.millis(),
                    legacy.extent.members,
                    legacy.extent.content_bytes
                ])?;
            Ok(run)
        })
    }

    /// Returns the archives that are marked as on their way out.
    pub fn archives_being_deleted(&self) -> Result<Vec<PendingArchive>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!("SELECT archive.*, size, digest {JOINED} WHERE state = 'deleting'"))?
                .query_map([], pending_archive_row)?
                .collect()
        })
    }

    /// Returns the names, below the archive folder, of the files that attempts are writing.
    pub fn temporary_names(&self) -> Result<Vec<String>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT temporary_name FROM archive WHERE temporary_name IS NOT NULL")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    /// Takes the rows of an archive away whose file is gone; what other archives share stays.
    pub fn remove_deleted(&self, run: i64) -> Result<()> {
        loop {
            let left = self.write(|transaction| {
                let file: Option<i64> = transaction
                    .prepare_cached("SELECT archive_file_id FROM archive WHERE run_id = ?1 AND state = 'deleting'")?
                    .query_row([run], |row| row.get(0))
                    .optional()?;
                let Some(file) = file else { return Ok(0) };
                let shared: bool = transaction
                    .prepare_cached("SELECT count(*) > 1 FROM archive WHERE archive_file_id = ?1")?
                    .query_row([file], |row| row.get(0))?;
                if !shared {
                    let removed = super::catalog::remove_references(transaction, file)?;
                    if removed > 0 {
                        return Ok(removed);
                    }
                }
                transaction.prepare_cached("DELETE FROM archive WHERE run_id = ?1")?.execute([run])?;
                if !shared {
                    transaction.prepare_cached("DELETE FROM archive_file WHERE id = ?1")?.execute([file])?;
                }
                Ok(0)
            })?;
            if left == 0 {
                return Ok(());
            }
        }
    }

    pub(super) fn select_archives(&self, condition: &str, parameters: impl rusqlite::Params) -> Result<Vec<Archive>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT archive.*, schedule.name AS schedule_name, size, digest, health, verified_at_ms, \
                     (SELECT trigger FROM run WHERE run.id = archive.run_id) = 'manual' AS manual, \
                     {GOOD} AS good {JOINED} WHERE archive.state = 'complete' AND {condition}"
                ))?
                .query_map(parameters, archive_row)?
                .collect()
        })
    }
}

/// Writes the names a run is going to use, before it uses them.
pub(super) fn write_intent(
    transaction: &Transaction<'_>,
    run: i64,
    schedule: i64,
    attempt: i64,
    now: Timestamp,
) -> rusqlite::Result<Intent> {
    let (name, compression, source): (String, String, Vec<u8>) = transaction
        .prepare_cached("SELECT name, compression, source FROM schedule WHERE id = ?1")?
        .query_row([schedule], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let compression: Compression = compression
        .parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e)))?;
    let archive = ArchiveName { schedule: &name, created_at: now, run, extension: compression.extension() };
    let random = uuid::Uuid::new_v4().as_fields().0;
    let intent = Intent {
        file_name: format!("{name}/{}", archive.file_name()),
        temporary_name: format!("{name}/{}", archive.temporary_name(attempt, random)),
        compression,
    };
    transaction
        .prepare_cached("INSERT INTO archive_file (codec, level, health) VALUES (?1, ?2, 'unproven')")?
        .execute(params![compression.codec(), compression.level()])?;
    transaction
        .prepare_cached(
            "INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, temporary_name, source_root, \
             scan_started_at_ms, created_at_ms) \
         VALUES (?1, ?2, last_insert_rowid(), 'writing', ?3, ?4, ?5, ?6, ?6)",
        )?
        .execute(params![run, schedule, intent.file_name, intent.temporary_name, source, now.millis()])?;
    Ok(intent)
}

/// Makes a sealed archive visible.
pub(super) fn complete(transaction: &Transaction<'_>, run: i64, completed: &Completed) -> rusqlite::Result<()> {
    let health = match (&completed.damaged, completed.verified_at) {
        (Some(_), _) => Health::Damaged,
        (None, Some(_)) => Health::Good,
        (None, None) => Health::Unverified,
    };
    let changed = transaction
        .prepare_cached(
            "UPDATE archive SET state = 'complete', temporary_name = NULL, suspect = ?2 \
         WHERE run_id = ?1 AND state = 'sealed'",
        )?
        .execute(params![run, completed.suspect])?;
    exactly_one(changed)?;
    let changed = transaction
        .prepare_cached(
            "UPDATE archive_file SET health = ?2, verified_at_ms = ?3 \
         WHERE id = (SELECT archive_file_id FROM archive WHERE run_id = ?1)",
        )?
        .execute(params![run, health.as_str(), completed.verified_at.map(Timestamp::millis)])?;
    exactly_one(changed)
}

/// Takes back the intent of a run that ends without an archive. Its chunks must be gone by now.
pub(super) fn forget_intent(transaction: &Transaction<'_>, run: i64) -> rusqlite::Result<()> {
    let file: Option<i64> = transaction
        .prepare_cached(
            "DELETE FROM archive WHERE run_id = ?1 AND state IN ('writing', 'sealed') RETURNING archive_file_id",
        )?
        .query_row([run], |row| row.get(0))
        .optional()?;
    match file {
        Some(file) => transaction.prepare_cached("DELETE FROM archive_file WHERE id = ?1")?.execute([file]).map(drop),
        None => Ok(()),
    }
}

fn archive_row(row: &Row<'_>) -> rusqlite::Result<Archive> {
    let acknowledged: bool = row.get("acknowledged")?;
    Ok(Archive {
        run: row.get("run_id")?,
        schedule_id: row.get("schedule_id")?,
        schedule_name: row.get("schedule_name")?,
        file_name: row.get("file_name")?,
        created_at: Timestamp::from_millis(row.get("created_at_ms")?),
        size: row.get("size")?,
        digest: row.get("digest")?,
        archive_file: row.get("archive_file_id")?,
        health: row.get("health")?,
        verified_at: row.get::<_, Option<i64>>("verified_at_ms")?.map(Timestamp::from_millis),
        incomplete: row.get("incomplete")?,
        suspect: row.get::<_, bool>("suspect")? && !acknowledged,
        pinned: row.get("pinned")?,
        manual: row.get("manual")?,
        good: row.get("good")?,
        extent: extent_row(row)?,
    })
}

fn pending_archive_row(row: &Row<'_>) -> rusqlite::Result<PendingArchive> {
    Ok(PendingArchive {
        run: row.get("run_id")?,
        schedule: row.get("schedule_id")?,
        state: row.get("state")?,
        file_name: row.get("file_name")?,
        temporary_name: row.get("temporary_name")?,
        size: row.get("size")?,
        digest: row.get("digest")?,
        extent: extent_row(row)?,
        incomplete: row.get("incomplete")?,
    })
}

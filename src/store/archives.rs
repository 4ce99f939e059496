//! Complete archives and which of them are good.

use rusqlite::{Connection, Row, params};

use super::Store;
use super::rows::{GOOD, JOINED, extent_row};
use super::stored_files::{insert_rest, insert_whole_file, keep_parts, record_whole_file, record_written_health};
use super::types::{Archive, ArchiveAge, FileSpace, Health, LegacyArchive, StoredBytes, sort_newest_first};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::schedule::Layout;

impl Store {
    /// Returns complete archives of one schedule or of all, oldest first.
    pub fn archives(&self, schedule: Option<i64>) -> Result<Vec<Archive>> {
        match schedule {
            Some(schedule) => self.select_archives("archive.schedule_id = ?1 ORDER BY archive.run_id", [schedule]),
            None => self.select_archives("TRUE ORDER BY archive.run_id", []),
        }
    }

    /// Returns the complete archive of a run.
    pub fn archive(&self, run: i64) -> Result<Option<Archive>> {
        Ok(self.select_archives("archive.run_id = ?1", [run])?.pop())
    }

    /// Returns the newest good archive of a schedule: see [`sort_newest_first`].
    pub fn newest_good(&self, schedule: i64) -> Result<Option<Archive>> {
        if self.has_rescanned_archives(schedule)? {
            return Ok(self.archives_newest_first(schedule)?.into_iter().find(|archive| archive.good));
        }
        // Archives of the old system have no digest and are older than all others, whatever their run number.
        let newest =
            format!("archive.schedule_id = ?1 AND {GOOD} ORDER BY digest IS NULL, archive.run_id DESC LIMIT 1");
        Ok(self.select_archives(&newest, [schedule])?.pop())
    }

    /// Returns complete archives of a schedule, newest first.
    pub(super) fn archives_newest_first(&self, schedule: i64) -> Result<Vec<Archive>> {
        let mut archives = self.archives(Some(schedule))?;
        sort_newest_first(&mut archives, |archive| ArchiveAge::from(archive));
        Ok(archives)
    }

    /// Returns whether a rescan has added archives of a schedule. Without them the order of numbers is that of age.
    pub(super) fn has_rescanned_archives(&self, schedule: i64) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM archive JOIN run ON run.id = run_id \
                     WHERE archive.schedule_id = ?1 AND trigger = 'rescan')",
                )?
                .query_row([schedule], |row| row.get(0))
        })
    }

    /// Returns whether the catalog holds archives: then the archive folder must state our identity (I9).
    pub fn has_archives(&self) -> Result<bool> {
        self.read(|connection| {
            connection.query_row("SELECT EXISTS (SELECT 1 FROM archive WHERE state <> 'writing')", [], |row| row.get(0))
        })
    }

    /// Returns whether the database holds schedules, deleted ones included, and so perhaps runs: it is not a new one in
    /// the place of one that was lost.
    pub fn is_used(&self) -> Result<bool> {
        self.read(|connection| connection.query_row("SELECT EXISTS (SELECT 1 FROM schedule)", [], |row| row.get(0)))
    }

    /// Adds an archive of the old system to the catalog, pinned, under a new run number; returns that number.
    pub fn add_legacy_archive(&self, schedule: i64, legacy: &LegacyArchive, now: Timestamp) -> Result<i64> {
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO run (schedule_id, trigger, state, not_before_ms, queued_at_ms, started_at_ms, \
                     finished_at_ms, members, content_bytes, archive_bytes, notes, error) \
                 VALUES (?1, 'rescan', ?6, ?2, ?2, ?2, ?2, ?3, ?4, ?5, 'made by the old system, moved aside', ?7)",
                )?
                .execute(params![
                    schedule,
                    now.millis(),
                    legacy.extent.members,
                    legacy.extent.content_bytes,
                    legacy.size,
                    if legacy.readable { "succeeded" } else { "failed" },
                    (!legacy.readable).then_some("the file cannot be read to its end as a tar archive")
                ])?;
            let run = transaction.last_insert_rowid();
            let health = if legacy.readable { Health::Good } else { Health::Damaged };
            let file = insert_whole_file(transaction, legacy.codec, 0)?;
            let LegacyArchive { size, device, inode, .. } = *legacy;
            let stored = StoredBytes { size, device, inode, modified_ns: None };
            record_whole_file(transaction, file, None, &stored)?;
            insert_rest(transaction, file)?;
            keep_parts(transaction, run, file)?;
            record_written_health(transaction, run, file, health, Some(now))?;
            transaction
                .prepare_cached(
                    "INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, pinned, source_root, \
                     scan_started_at_ms, created_at_ms, members, content_bytes) \
                 VALUES (?1, ?2, ?8, 'complete', ?3, 1, ?4, ?5, ?5, ?6, ?7)",
                )?
                .execute(params![
                    run,
                    schedule,
                    legacy.file_name,
                    legacy.source_root,
                    legacy.created_at.millis(),
                    legacy.extent.members,
                    legacy.extent.content_bytes,
                    file
                ])?;
            Ok(run)
        })
    }

    pub(super) fn select_archives(&self, condition: &str, parameters: impl rusqlite::Params) -> Result<Vec<Archive>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT archive.*, schedule.name AS schedule_name, size, digest, health, verified_at_ms, \
                     (SELECT count(*) FROM archive AS name \
                      WHERE name.archive_file_id = archive.archive_file_id AND name.state <> 'deleting') AS names, \
                     (SELECT trigger FROM run WHERE run.id = archive.run_id) = 'manual' AS manual, \
                     (SELECT trigger FROM run WHERE run.id = archive.run_id) = 'rescan' AS is_rescanned, \
                     {GOOD} AS good {JOINED} WHERE archive.state = 'complete' AND {condition}"
                ))?
                .query_map(parameters, archive_row)?
                .map(|archive| {
                    let archive = archive?;
                    let files = match archive.layout {
                        Layout::Whole => Vec::new(),
                        Layout::Segmented => space_of_files(connection, archive.run)?,
                    };
                    Ok(Archive { files, ..archive })
                })
                .collect()
        })
    }
}

/// Returns the space of the files of an archive in segments.
fn space_of_files(connection: &Connection, run: i64) -> rusqlite::Result<Vec<FileSpace>> {
    connection
        .prepare_cached(
            "SELECT stored_file.id, CASE stored_file.health WHEN 'missing' THEN 0 ELSE coalesce(size, 0) END, \
                 EXISTS (SELECT 1 FROM part AS other \
                     JOIN archive AS user ON user.archive_file_id = other.archive_file_id \
                     WHERE other.stored_file_id = stored_file.id AND user.run_id <> ?1 AND user.state <> 'deleting') \
             FROM stored_file WHERE id IN ( \
                 SELECT stored_file_id FROM archive JOIN part USING (archive_file_id) WHERE run_id = ?1 \
                 UNION ALL SELECT index_file_id FROM archive WHERE run_id = ?1)",
        )?
        .query_map([run], |row| Ok(FileSpace { stored_file: row.get(0)?, bytes: row.get(1)?, is_shared: row.get(2)? }))?
        .collect()
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
        names: row.get("names")?,
        health: row.get("health")?,
        verified_at: row.get::<_, Option<i64>>("verified_at_ms")?.map(Timestamp::from_millis),
        incomplete: row.get("incomplete")?,
        suspect: row.get::<_, bool>("suspect")? && !acknowledged,
        pinned: row.get("pinned")?,
        manual: row.get("manual")?,
        is_rescanned: row.get("is_rescanned")?,
        good: row.get("good")?,
        layout: row.get("layout")?,
        files: Vec::new(),
        extent: extent_row(row)?,
    })
}

//! What retention and verification record about archives: pins, health, marks for deletion.

use rusqlite::{OptionalExtension, params};

use super::Store;
use super::base::NOT_HELD;
use super::rows::{GOOD, JOINED};
use super::types::{Archive, Health};
use crate::chunk::PADDED_VERSION;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};

/// What `prune_held_run` holds, instead of a run number, from the return of a deleted name, or from a change of a
/// followed file by which less is kept, to the next prune.
pub(super) const HELD_FOR_FIRST_PRUNE: i64 = 0;

/// Lets the next prune of a schedule wait for a later good run.
pub(super) fn hold_next_prune(transaction: &rusqlite::Transaction<'_>, schedule: i64) -> rusqlite::Result<()> {
    let held = [schedule, HELD_FOR_FIRST_PRUNE];
    transaction.execute("UPDATE schedule SET prune_held_run = ?2 WHERE id = ?1", held).map(drop)
}

impl Store {
    /// Marks archives for deletion if every one of `anchors`, the good archives that make it safe, is still good.
    /// Pinned archives are not marked, nor the bases of running runs. Returns how many were marked.
    ///
    /// Errors: `Busy` if one is not; then nothing is marked.
    pub fn mark_deleting(&self, runs: &[i64], anchors: &[i64]) -> Result<usize> {
        self.write_or(|transaction| {
            for anchor in anchors {
                let is_good: bool = transaction
                    .query_row(
                        &format!("SELECT EXISTS (SELECT 1 {JOINED} WHERE archive.run_id = ?1 AND {GOOD})"),
                        [anchor],
                        |row| row.get(0),
                    )
                    .map_err(|e| self.database_error(e))?;
                if !is_good {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        "the archives changed while the retention policy was applied",
                    )
                    .hint("try again"));
                }
            }
            let mut mark = transaction
                .prepare_cached(&format!(
                    "UPDATE archive SET state = 'deleting' WHERE run_id = ?1 AND state = 'complete' AND pinned = 0 \
                     AND {NOT_HELD}"
                ))
                .map_err(|e| self.database_error(e))?;
            let marked: rusqlite::Result<usize> = runs.iter().map(|run| mark.execute([run])).sum();
            marked.map_err(|e| self.database_error(e))
        })
    }

    /// Returns whether a prune after the good run `run` may proceed. One of over half of the archives (`is_large`), and
    /// the first one after a deleted name came back, wait for a later good run; then it is recorded that they are held
    /// from this run on.
    pub fn may_prune(&self, schedule: i64, run: i64, is_large: bool) -> Result<bool> {
        self.write(|transaction| {
            let held: Option<i64> =
                transaction
                    .query_row("SELECT prune_held_run FROM schedule WHERE id = ?1", [schedule], |row| row.get(0))?;
            let is_first = held == Some(HELD_FOR_FIRST_PRUNE);
            if !is_first && (!is_large || held.is_some_and(|held| held < run)) {
                return Ok(true);
            }
            transaction.execute("UPDATE schedule SET prune_held_run = ?2 WHERE id = ?1", [schedule, run])?;
            Ok(false)
        })
    }

    /// Returns whether a prune of a schedule is held: the first one after a deleted name came back, or one that
    /// [`Store::may_prune`] has refused since.
    pub fn is_prune_held(&self, schedule: i64) -> Result<bool> {
        self.read(|connection| {
            connection.query_row("SELECT prune_held_run IS NOT NULL FROM schedule WHERE id = ?1", [schedule], |row| {
                row.get(0)
            })
        })
    }

    /// Clears the record of a held prune; a first prune that is still to come stays held.
    pub fn clear_held_prune(&self, schedule: i64) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE schedule SET prune_held_run = NULL WHERE id = ?1 AND prune_held_run > ?2",
                    [schedule, HELD_FOR_FIRST_PRUNE],
                )
                .map(drop)
        })
    }

    /// Clears the record of a held prune, also of a first one that is still to come: a user asked for it.
    pub fn release_held_prune(&self, schedule: i64) -> Result<()> {
        self.write(|transaction| {
            transaction.execute("UPDATE schedule SET prune_held_run = NULL WHERE id = ?1", [schedule]).map(drop)
        })
    }

    /// Pins or unpins an archive; returns whether it exists.
    pub fn set_pinned(&self, run: i64, pinned: bool) -> Result<bool> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE archive SET pinned = ?2 WHERE run_id = ?1 AND state = 'complete'",
                params![run, pinned],
            )?;
            Ok(changed == 1)
        })
    }

    /// Records what is known about all parts of the file of an archive. If the archive was deleted meanwhile, the file
    /// may still have other names, and a new file may have its id. `verified_at` is `None` if its bytes were not read,
    /// and the recorded times are kept.
    ///
    /// After damage the other archives of the schedule that may share the damaged blocks count as not verified, so that
    /// they are verified before one is a base, or before others are removed on the strength of it (I20).
    pub fn record_health(&self, archive: &Archive, health: Health, verified_at: Option<Timestamp>) -> Result<()> {
        self.write(|transaction| {
            if health == Health::Damaged {
                transaction
                    .prepare_cached(
                        "UPDATE stored_file SET verified_at_ms = NULL WHERE id IN (SELECT stored_file_id \
                         FROM archive AS damaged JOIN archive USING (schedule_id) \
                         JOIN part ON part.archive_file_id = archive.archive_file_id \
                         WHERE damaged.run_id = ?1 AND damaged.writer_version >= ?2 \
                             AND archive.state = 'complete' AND archive.writer_version >= ?2)",
                    )?
                    .execute(params![archive.run, PADDED_VERSION])?;
            }
            transaction
                .prepare_cached(
                    "UPDATE stored_file SET health = ?4, verified_at_ms = coalesce(?5, verified_at_ms) \
                     WHERE id IN (SELECT stored_file_id FROM part WHERE archive_file_id = coalesce( \
                         (SELECT archive_file_id FROM archive WHERE run_id = ?1 AND state = 'complete'), \
                         (SELECT id FROM archive_file WHERE id = ?2 AND digest = ?3)))",
                )?
                .execute(params![
                    archive.run,
                    archive.archive_file,
                    archive.digest,
                    health.as_str(),
                    verified_at.map(Timestamp::millis)
                ])
                .map(drop)
        })
    }

    /// Returns the newest complete archive of a schedule before a run that is not known to be damaged or missing.
    pub fn archive_before(&self, schedule: i64, run: i64) -> Result<Option<Archive>> {
        if self.has_rescanned_archives(schedule)? {
            let is_whole = |archive: &Archive| matches!(archive.health, Health::Good | Health::Unverified);
            let archives = self.archives_newest_first(schedule)?;
            return Ok(archives.into_iter().find(|archive| archive.run != run && is_whole(archive)));
        }
        let condition = "archive.schedule_id = ?1 AND archive.run_id < ?2 AND health IN ('good', 'unproven') \
                         ORDER BY digest IS NULL, archive.run_id DESC LIMIT 1";
        Ok(self.select_archives(condition, [schedule, run])?.pop())
    }

    /// Returns how many complete archives of a schedule are damaged or missing.
    pub fn unhealthy_archives(&self, schedule: i64) -> Result<u64> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT count(*) {JOINED} WHERE archive.schedule_id = ?1 AND archive.state = 'complete' \
                     AND health IN ('damaged', 'missing')"
                ))?
                .query_row([schedule], |row| row.get(0))
        })
    }

    /// Returns the complete archive with this file name below the archive folder.
    pub fn archive_named(&self, file_name: &str) -> Result<Option<Archive>> {
        let run: Option<i64> = self.read(|connection| {
            connection
                .query_row("SELECT run_id FROM archive WHERE file_name = ?1", [file_name], |row| row.get(0))
                .optional()
        })?;
        run.map_or(Ok(None), |run| self.archive(run))
    }
}

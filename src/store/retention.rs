//! What retention and verification write about archives: pins, health, confirmations, and which of them may go.

use rusqlite::{OptionalExtension, params};

use super::Store;
use super::rows::{GOOD, JOINED};
use super::types::{Archive, Health};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};

impl Store {
    /// Marks archives as on their way out, if every one of `anchors` is good still: those make it safe.
    ///
    /// Errors: `Busy` if the archives have changed since the choice was made; then nothing is marked.
    pub fn mark_deleting(&self, runs: &[i64], anchors: &[i64]) -> Result<()> {
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
                    return Err(Error::new(ErrorKind::Busy, "the archives changed while retention chose among them")
                        .hint("try again"));
                }
            }
            let mut mark = transaction
                .prepare_cached(
                    "UPDATE archive SET state = 'deleting' WHERE run_id = ?1 AND state = 'complete' AND pinned = 0",
                )
                .map_err(|e| self.database_error(e))?;
            runs.iter().try_for_each(|run| mark.execute([run]).map(drop)).map_err(|e| self.database_error(e))
        })
    }

    /// Says whether a prune of over half may go on after `run`: one that was held after an earlier good run may. Else
    /// remembers that it is held from this run on.
    pub fn may_prune_over_half(&self, schedule: i64, run: i64) -> Result<bool> {
        self.write(|transaction| {
            let held: Option<i64> =
                transaction
                    .query_row("SELECT prune_held_run FROM schedule WHERE id = ?1", [schedule], |row| row.get(0))?;
            if held.is_some_and(|held| held < run) {
                return Ok(true);
            }
            transaction.execute("UPDATE schedule SET prune_held_run = ?2 WHERE id = ?1", [schedule, run])?;
            Ok(false)
        })
    }

    /// Forgets that a prune was held.
    pub fn clear_held_prune(&self, schedule: i64) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE schedule SET prune_held_run = NULL WHERE id = ?1 AND prune_held_run IS NOT NULL",
                    [schedule],
                )
                .map(drop)
        })
    }

    /// Pins an archive, or lets go of it. Returns whether there is such an archive.
    pub fn set_pinned(&self, run: i64, pinned: bool) -> Result<bool> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE archive SET pinned = ?2 WHERE run_id = ?1 AND state = 'complete'",
                params![run, pinned],
            )?;
            Ok(changed == 1)
        })
    }

    /// Records what a look at a physical file found; one that was let go meanwhile needs no record. `verified_at` moves
    /// only where its bytes were read.
    pub fn record_health(&self, archive_file: i64, health: Health, verified_at: Option<Timestamp>) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE archive_file SET health = ?2, verified_at_ms = coalesce(?3, verified_at_ms) WHERE id = ?1",
                    params![archive_file, health.as_str(), verified_at.map(Timestamp::millis)],
                )
                .map(drop)
        })
    }

    /// Returns the newest complete archive of a schedule before a run whose bytes are not known to be damaged or gone.
    pub fn archive_before(&self, schedule: i64, run: i64) -> Result<Option<Archive>> {
        let condition = "archive.schedule_id = ?1 AND archive.run_id < ?2 AND health IN ('good', 'unproven') \
                         ORDER BY digest IS NULL, archive.run_id DESC LIMIT 1";
        Ok(self.select_archives(condition, [schedule, run])?.pop())
    }

    /// Returns how many complete archives of a schedule are damaged or missing.
    pub fn unhealthy_archives(&self, schedule: i64) -> Result<u64> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT count(*) FROM archive JOIN archive_file ON archive_file.id = archive_file_id \
                     WHERE schedule_id = ?1 AND state = 'complete' AND health IN ('damaged', 'missing')",
                )?
                .query_row([schedule], |row| row.get(0))
        })
    }

    /// Takes back the suspicion of an archive: a later one is like it.
    pub fn confirm_archive(&self, run: i64) -> Result<()> {
        self.write(|transaction| {
            transaction.execute("UPDATE archive SET acknowledged = 1 WHERE run_id = ?1", [run]).map(drop)
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

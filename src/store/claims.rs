//! Claims: who carries a run out, and the fence that every later write stands behind (I4).

use std::time::Duration;

use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use uuid::Uuid;

use super::archives::{self, Intent};
use super::enqueue::queued;
use super::runs::{RunCounts, RunState, Trigger};
use super::{Store, WorkerRow};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Problem;

/// A `not_before` further ahead than this was written under a wrong clock and counts as now.
const NOT_BEFORE_LIMIT: Duration = Duration::from_secs(3600);
/// Pauses before the second and the third try.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)];

/// Proof that this worker carries a run out. Only the store makes one, and ending the run uses it up.
#[derive(Debug)]
#[must_use = "a claim must end in complete, fail, cancel or requeue"]
pub struct Claim {
    run: i64,
    schedule: i64,
    worker: Uuid,
    attempt: i64,
    tries: i64,
    trigger: Trigger,
    verify: bool,
    reread: bool,
    scheduled_for: Option<Timestamp>,
    recovering: bool,
}

impl Claim {
    /// Returns the number of the run.
    pub fn run(&self) -> i64 {
        self.run
    }

    /// Returns the row of its schedule.
    pub fn schedule(&self) -> i64 {
        self.schedule
    }

    /// Returns which attempt this is; it only rises.
    pub fn attempt(&self) -> i64 {
        self.attempt
    }

    /// Says whether the archive is proved before the run counts as done.
    pub fn verify(&self) -> bool {
        self.verify
    }

    /// Says whether everything is to be read again, nothing reused.
    pub fn reread(&self) -> bool {
        self.reread
    }

    /// Returns the occurrence it stands for; `None` for a run that was asked for.
    pub fn scheduled_for(&self) -> Option<Timestamp> {
        self.scheduled_for
    }
}

/// What a run that is asked for by hand should be like.
#[derive(Clone, Copy, Debug)]
pub struct RunRequest {
    /// Prove the archive.
    pub verify: bool,
    /// Read everything again.
    pub reread: bool,
}

/// What became of asking for a run at once.
#[derive(Debug)]
pub enum ClaimNow {
    /// It is this worker's to carry out, queued before or not.
    Claimed(Claim),
    /// A run of the schedule is under way already.
    Running(i64),
}

/// What a successful end says of the run.
#[derive(Clone, Debug)]
pub struct Completed {
    /// Some source data is missing or doubtful.
    pub incomplete: bool,
    /// When the archive was proved; `None` if it was not to be.
    pub verified_at: Option<Timestamp>,
    /// The source fell by more than half against the archive before.
    pub suspect: bool,
    /// The archive was read back and is not what was written.
    pub damaged: Option<String>,
}

/// How a run goes back into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// It failed or was cut off: after a pause, while the budget of tries lasts.
    Retry,
    /// We stopped it: at once, and the try does not count.
    Refund,
}

/// Where a run went that could not be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeued {
    /// It waits for its next try.
    Queued {
        /// Not before then.
        not_before: Timestamp,
    },
    /// A newer run was queued already and stands for it.
    SupersededBy(i64),
    /// It will not be tried again.
    Ended,
}

/// A claim whose end could not be written, and why: it is still to be ended.
#[derive(Debug)]
pub struct EndError {
    /// The claim, given back.
    pub claim: Claim,
    /// What kept its end from being written.
    pub error: Error,
}

/// The result of ending a claim, which gives the claim back if that fails.
pub type EndResult<T> = std::result::Result<T, Box<EndError>>;

const RETURNING: &str = "RETURNING id, schedule_id, attempt, tries, trigger, verify, reread, scheduled_for_ms";

impl Store {
    /// Claims the queued run that has waited longest, writes the intent for its archive, or returns `None`.
    pub fn claim_next(&self, worker: &WorkerRow, now: Timestamp) -> Result<Option<(Claim, Intent)>> {
        self.write(|transaction| {
            let claim = transaction
                .prepare_cached(&format!(
                    "UPDATE run SET state = 'running', worker = :worker, attempt = attempt + 1, tries = tries + 1, \
                         started_at_ms = :now, cancel_requested_at_ms = NULL, error = NULL \
                     WHERE state = 'queued' AND id = (SELECT id FROM run AS waiting WHERE state = 'queued' \
                         AND (not_before_ms <= :now OR not_before_ms > :limit) \
                         AND NOT EXISTS (SELECT 1 FROM run AS other WHERE other.state = 'running' \
                             AND other.schedule_id = waiting.schedule_id) \
                         ORDER BY not_before_ms, id LIMIT 1) {RETURNING}"
                ))?
                .query_row(
                    named_params! {
                        ":worker": worker.uuid.to_string(),
                        ":now": now.millis(),
                        ":limit": now.plus(NOT_BEFORE_LIMIT).millis(),
                    },
                    |row| claim_row(row, worker.uuid),
                )
                .optional()?;
            claim.map(|claim| begin(transaction, claim, worker, now)).transpose()
        })
    }

    /// Claims a run of one schedule at once: adopts the queued one, else makes one; a running one is left to its
    /// worker.
    pub fn claim_now(
        &self,
        schedule: i64,
        request: RunRequest,
        worker: &WorkerRow,
        now: Timestamp,
    ) -> Result<(ClaimNow, Option<Intent>)> {
        self.write(|transaction| {
            let running: Option<i64> = transaction
                .prepare_cached("SELECT id FROM run WHERE schedule_id = ?1 AND state = 'running'")?
                .query_row([schedule], |r| r.get(0))
                .optional()?;
            if let Some(run) = running {
                return Ok((ClaimNow::Running(run), None));
            }
            if queued(transaction, schedule)?.is_none() {
                // Queued for an instant only: the same statement as ever makes it running.
                transaction
                    .prepare_cached(
                        "INSERT INTO run (schedule_id, trigger, state, not_before_ms, queued_at_ms) \
                     VALUES (?1, 'manual', 'queued', ?2, ?2)",
                    )?
                    .execute(params![schedule, now.millis()])?;
            }
            let claim = transaction
                .prepare_cached(&format!(
                    "UPDATE run SET state = 'running', worker = :worker, attempt = attempt + 1, tries = tries + 1, \
                         started_at_ms = :now, cancel_requested_at_ms = NULL, error = NULL, verify = :verify, \
                         reread = :reread \
                     WHERE state = 'queued' AND schedule_id = :schedule {RETURNING}"
                ))?
                .query_row(
                    named_params! {
                        ":worker": worker.uuid.to_string(),
                        ":now": now.millis(),
                        ":schedule": schedule,
                        ":verify": request.verify,
                        ":reread": request.reread,
                    },
                    |row| claim_row(row, worker.uuid),
                )?;
            let (claim, intent) = begin(transaction, claim, worker, now)?;
            Ok((ClaimNow::Claimed(claim), Some(intent)))
        })
    }

    /// Takes the run of a dead worker over, if it still is that worker's attempt; the attempt is recorded as
    /// interrupted.
    pub fn take_over(
        &self,
        run: i64,
        dead: Uuid,
        attempt: i64,
        worker: &WorkerRow,
        now: Timestamp,
    ) -> Result<Option<Claim>> {
        self.write(|transaction| {
            let claim = transaction
                .prepare_cached(&format!(
                    "UPDATE run SET worker = ?1, attempt = attempt + 1 \
                         WHERE id = ?2 AND state = 'running' AND worker = ?3 AND attempt = ?4 {RETURNING}"
                ))?
                .query_row(params![worker.uuid.to_string(), run, dead.to_string(), attempt], |row| {
                    claim_row(row, worker.uuid)
                })
                .optional()?;
            let Some(claim) = claim else { return Ok(None) };
            transaction
                .prepare_cached(
                    "UPDATE attempt SET outcome = 'interrupted', ended_at_ms = ?3, error = 'its process ended' \
                 WHERE run_id = ?1 AND attempt = ?2 AND outcome = 'running'",
                )?
                .execute(params![run, attempt, now.millis()])?;
            Ok(Some(Claim { recovering: true, ..claim }))
        })
    }

    /// Fails with `Fenced` unless the claim still holds; for use before touching final names.
    pub fn check_claim(&self, claim: &Claim) -> Result<()> {
        self.write_fenced(claim, |_| Ok(()))
    }

    /// Says whether somebody asked to cancel the run.
    pub fn cancel_requested(&self, run: i64) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT cancel_requested_at_ms IS NOT NULL FROM run WHERE id = ?1")?
                .query_row([run], |row| row.get(0))
        })
    }

    /// Ends a run whose sealed archive is in place: archive visible, run finished, in one transaction.
    pub fn complete(&self, claim: Claim, completed: &Completed, now: Timestamp) -> EndResult<RunState> {
        let state = match (&completed.damaged, completed.incomplete) {
            (Some(_), _) => RunState::Failed,
            (None, true) => RunState::Incomplete,
            (None, false) => RunState::Succeeded,
        };
        let done = self.write_fenced(&claim, |transaction| {
            archives::complete(transaction, claim.run, completed)?;
            transaction
                .prepare_cached("UPDATE schedule SET accepted_at_ms = NULL WHERE id = ?1")?
                .execute([claim.schedule])?;
            end(transaction, &claim, state, completed.damaged.as_deref(), now)
        });
        match done {
            Ok(()) => Ok(state),
            Err(error) => Err(Box::new(EndError { claim, error })),
        }
    }

    /// Ends a run without an archive: `failed` or `cancelled`. The catalog rows it wrote must be discarded before.
    pub fn end_without_archive(&self, claim: Claim, state: RunState, reason: &str, now: Timestamp) -> EndResult<()> {
        let done = self.write_fenced(&claim, |transaction| {
            archives::forget_intent(transaction, claim.run)?;
            end(transaction, &claim, state, Some(reason), now)
        });
        done.map_err(|error| Box::new(EndError { claim, error }))
    }

    /// Puts a run back into the queue, or ends it where that cannot be: asked for by hand, budget used up, schedule
    /// gone, or another one queued, which then stands for it. The catalog rows it wrote must be discarded before.
    pub fn requeue(&self, claim: Claim, how: Requeue, reason: &str, now: Timestamp) -> EndResult<Requeued> {
        let done = self.write_fenced(&claim, |transaction| {
            archives::forget_intent(transaction, claim.run)?;
            requeue(transaction, &claim, how, reason, now)
        });
        done.map_err(|error| Box::new(EndError { claim, error }))
    }

    /// Records what the run read and met, before it ends.
    pub fn record_counts(&self, claim: &Claim, counts: &RunCounts, problems: &[Problem]) -> Result<()> {
        self.write_fenced(claim, |transaction| {
            transaction
                .prepare_cached(
                    "UPDATE run SET members = ?2, files = ?3, content_bytes = ?4, archive_bytes = ?5, problems = ?6, \
                     losses = ?7, notes = ?8 WHERE id = ?1",
                )?
                .execute(params![
                    claim.run,
                    counts.extent.members,
                    counts.extent.files,
                    counts.extent.content_bytes,
                    counts.archive_bytes,
                    counts.problems,
                    counts.losses,
                    (!counts.notes.is_empty()).then(|| counts.notes.join("\n"))
                ])?;
            transaction.prepare_cached("DELETE FROM run_problem WHERE run_id = ?1")?.execute([claim.run])?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO run_problem (run_id, sequence, path, kind, reason) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for (sequence, problem) in problems.iter().enumerate() {
                insert.execute(params![claim.run, sequence, problem.path, problem.kind.as_str(), problem.reason])?;
            }
            Ok(())
        })
    }

    /// Runs `work` in a transaction that first makes sure the claim still holds.
    ///
    /// Errors: `Fenced` if it does not.
    pub(super) fn write_fenced<T>(
        &self,
        claim: &Claim,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.write_or(|transaction| {
            let held = hold(transaction, claim).map_err(|e| self.fault(e))?;
            if held != 1 {
                return Err(Error::new(
                    ErrorKind::Fenced,
                    format!("run @{} was taken over by another worker", claim.run),
                ));
            }
            work(transaction).map_err(|e| self.fault(e))
        })
    }
}

/// Writes the run of a claim as it stands; returns 0 if it is another's by now.
fn hold(transaction: &Transaction<'_>, claim: &Claim) -> rusqlite::Result<usize> {
    transaction
        .prepare_cached(
            "UPDATE run SET worker = worker WHERE id = ?1 AND state = 'running' AND worker = ?2 AND attempt = ?3",
        )?
        .execute(params![claim.run, claim.worker.to_string(), claim.attempt])
}

/// Writes what a fresh claim begins with: its attempt and the intent for its archive.
fn begin(
    transaction: &Transaction<'_>,
    mut claim: Claim,
    worker: &WorkerRow,
    now: Timestamp,
) -> rusqlite::Result<(Claim, Intent)> {
    transaction
        .prepare_cached(
            "INSERT INTO attempt (run_id, attempt, worker, pid, started_at_ms, outcome) \
         VALUES (?1, ?2, ?3, ?4, ?5, 'running')",
        )?
        .execute(params![claim.run, claim.attempt, worker.uuid.to_string(), worker.pid, now.millis()])?;
    let verify: bool = transaction
        .prepare_cached("SELECT verify FROM schedule WHERE id = ?1")?
        .query_row([claim.schedule], |row| row.get(0))?;
    claim.verify &= verify;
    let intent = archives::write_intent(transaction, claim.run, claim.schedule, claim.attempt, now)?;
    Ok((claim, intent))
}

fn end(
    transaction: &Transaction<'_>,
    claim: &Claim,
    state: RunState,
    reason: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    end_attempt(transaction, claim, state.as_str(), reason, now)?;
    let changed = transaction
        .prepare_cached(
            "UPDATE run SET state = ?2, finished_at_ms = ?3, error = ?4 WHERE id = ?1 AND state = 'running'",
        )?
        .execute(params![claim.run, state.as_str(), now.millis(), reason])?;
    super::exactly_one(changed)
}

/// A take-over has no attempt of its own until it finishes what it found.
fn end_attempt(
    transaction: &Transaction<'_>,
    claim: &Claim,
    outcome: &str,
    reason: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    if claim.recovering {
        return transaction
            .prepare_cached(
                "INSERT INTO attempt (run_id, attempt, worker, pid, started_at_ms, ended_at_ms, outcome, error) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5, 'recovered', ?6)",
            )?
            .execute(params![
                claim.run,
                claim.attempt,
                claim.worker.to_string(),
                std::process::id(),
                now.millis(),
                reason
            ])
            .map(drop);
    }
    let changed = transaction
        .prepare_cached(
            "UPDATE attempt SET outcome = ?3, ended_at_ms = ?4, error = ?5 \
         WHERE run_id = ?1 AND attempt = ?2 AND outcome = 'running'",
        )?
        .execute(params![claim.run, claim.attempt, outcome, now.millis(), reason])?;
    super::exactly_one(changed)
}

fn requeue(
    transaction: &Transaction<'_>,
    claim: &Claim,
    how: Requeue,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<Requeued> {
    let (tries, not_before, outcome, last) = match how {
        Requeue::Refund => (claim.tries - 1, now, "cancelled", RunState::Cancelled),
        Requeue::Retry => {
            let pause = usize::try_from(claim.tries - 1).ok().and_then(|n| RETRY_AFTER.get(n));
            match pause {
                Some(pause) => (claim.tries, now.plus(*pause), "failed", RunState::Failed),
                None => return end(transaction, claim, RunState::Failed, Some(reason), now).map(|()| Requeued::Ended),
            }
        }
    };
    let is_cancelled: bool = transaction
        .prepare_cached("SELECT cancel_requested_at_ms IS NOT NULL FROM run WHERE id = ?1")?
        .query_row([claim.run], |row| row.get(0))?;
    if is_cancelled {
        return end(transaction, claim, RunState::Cancelled, Some(reason), now).map(|()| Requeued::Ended);
    }
    let wanted: bool = transaction
        .prepare_cached("SELECT enabled = 1 AND deleted_at_ms IS NULL FROM schedule WHERE id = ?1")?
        .query_row([claim.schedule], |row| row.get(0))?;
    if claim.trigger != Trigger::Schedule || !wanted {
        return end(transaction, claim, last, Some(reason), now).map(|()| Requeued::Ended);
    }
    if let Some(newer) = queued(transaction, claim.schedule)? {
        end(transaction, claim, last, Some(reason), now)?;
        transaction
            .prepare_cached("UPDATE run SET superseded_by = ?2 WHERE id = ?1")?
            .execute(params![claim.run, newer])?;
        let changed = transaction
            .prepare_cached(
                "UPDATE run SET coalesced = coalesced + 1 + (SELECT coalesced FROM run WHERE id = ?2) WHERE id = ?1",
            )?
            .execute(params![newer, claim.run])?;
        return super::exactly_one(changed).map(|()| Requeued::SupersededBy(newer));
    }
    if !claim.recovering {
        end_attempt(transaction, claim, outcome, Some(reason), now)?;
    }
    let changed = transaction
        .prepare_cached(
            "UPDATE run SET state = 'queued', worker = NULL, tries = ?2, not_before_ms = ?3, error = ?4, \
         verify = 1, reread = 0 WHERE id = ?1 AND state = 'running'",
        )?
        .execute(params![claim.run, tries, not_before.millis(), reason])?;
    super::exactly_one(changed).map(|()| Requeued::Queued { not_before })
}

/// Ends the queued run of a schedule that is paused or deleted.
pub(super) fn cancel_queued(
    transaction: &Transaction<'_>,
    schedule: i64,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<usize> {
    transaction
        .prepare_cached(
            "UPDATE run SET state = 'cancelled', finished_at_ms = ?3, error = ?2 \
         WHERE schedule_id = ?1 AND state = 'queued'",
        )?
        .execute(params![schedule, reason, now.millis()])
}

fn claim_row(row: &Row<'_>, worker: Uuid) -> rusqlite::Result<Claim> {
    Ok(Claim {
        run: row.get("id")?,
        schedule: row.get("schedule_id")?,
        worker,
        attempt: row.get("attempt")?,
        tries: row.get("tries")?,
        trigger: row.get("trigger")?,
        verify: row.get("verify")?,
        reread: row.get("reread")?,
        scheduled_for: row.get::<_, Option<i64>>("scheduled_for_ms")?.map(Timestamp::from_millis),
        recovering: false,
    })
}

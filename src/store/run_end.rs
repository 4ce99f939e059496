//! The end of a run: with an archive, without one, or back in the queue for another try.

use std::time::Duration;

use rusqlite::{Transaction, params};

use super::Store;
use super::enqueue::queued_run;
use super::pending_archives::{accept_archive, delete_intent, make_visible};
use super::rows::exactly_one;
use super::types::{Claim, Completed, EndError, EndResult, Requeue, Requeued, RunState, Trigger};
use crate::clock::Timestamp;

/// Pauses before the second and the third try.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)];

impl Store {
    /// Ends a run whose sealed archive has its final name: makes the archive visible and ends the run in one
    /// transaction.
    pub fn complete(&self, claim: Claim, completed: &Completed, now: Timestamp) -> EndResult<RunState> {
        let done = self.write_fenced(&claim, |transaction| {
            let found = make_visible(transaction, claim.run, completed)?;
            let damage = completed.damaged.as_deref().or(found);
            let state = match (damage, completed.incomplete) {
                (Some(_), _) => RunState::Failed,
                (None, true) => RunState::Incomplete,
                (None, false) => RunState::Succeeded,
            };
            if let Some(before) = completed.accepts {
                accept_archive(transaction, before)?;
            }
            // `accept` holds for one archive, also for one that turns out to be damaged.
            transaction
                .prepare_cached("UPDATE schedule SET accepted_at_ms = NULL WHERE id = ?1")?
                .execute([claim.schedule])?;
            add_notes(transaction, claim.run, &completed.notes)?;
            end_run(transaction, &claim, state, damage.or(completed.reason.as_deref()), now).map(|()| state)
        });
        match done {
            Ok(state) => Ok(state),
            Err(error) => Err(Box::new(EndError { claim, error })),
        }
    }

    /// Ends a run without an archive, as `failed`, `cancelled` or `skipped`. The catalog rows that it wrote must be
    /// discarded before.
    pub fn end_without_archive(&self, claim: Claim, state: RunState, reason: &str, now: Timestamp) -> EndResult<()> {
        let done = self.write_fenced(&claim, |transaction| {
            delete_intent(transaction, claim.run)?;
            end_run(transaction, &claim, state, Some(reason), now)
        });
        done.map_err(|error| Box::new(EndError { claim, error }))
    }

    /// Returns a run to the queue, or ends it if it cannot be tried again: no tries left (checked first), cancelled,
    /// started by hand, its schedule paused or deleted, or superseded by another queued run. The catalog rows it wrote
    /// must be discarded before.
    pub fn requeue(&self, claim: Claim, how: Requeue, reason: &str, now: Timestamp) -> EndResult<Requeued> {
        let done = self.write_fenced(&claim, |transaction| {
            delete_intent(transaction, claim.run)?;
            requeue(transaction, &claim, how, reason, now)
        });
        done.map_err(|error| Box::new(EndError { claim, error }))
    }
}

/// Adds remarks to those that were recorded with the counts of a run.
fn add_notes(transaction: &Transaction<'_>, run: i64, notes: &[String]) -> rusqlite::Result<()> {
    if notes.is_empty() {
        return Ok(());
    }
    let changed = transaction
        .prepare_cached("UPDATE run SET notes = coalesce(notes || char(10), '') || ?2 WHERE id = ?1")?
        .execute(params![run, notes.join("\n")])?;
    exactly_one(changed)
}

fn end_run(
    transaction: &Transaction<'_>,
    claim: &Claim,
    state: RunState,
    reason: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    end_attempt(transaction, claim, state, reason, now)?;
    let changed = transaction
        .prepare_cached(
            "UPDATE run SET state = ?2, finished_at_ms = ?3, error = ?4 WHERE id = ?1 AND state = 'running'",
        )?
        .execute(params![claim.run, state.as_str(), now.millis(), reason])?;
    exactly_one(changed)
}

/// Ends the attempt of a claim. A take-over has ended the attempt of the dead worker and opened none of its own: its
/// row, `recovered`, is written here, whatever the end is.
fn end_attempt(
    transaction: &Transaction<'_>,
    claim: &Claim,
    outcome: RunState,
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
        .execute(params![claim.run, claim.attempt, outcome.as_str(), now.millis(), reason])?;
    exactly_one(changed)
}

/// The next try of a run.
struct NextTry {
    /// Tries used up before it.
    tries: i64,
    not_before: Timestamp,
    /// How the present attempt ends, and the run too if it cannot be tried again.
    outcome: RunState,
}

/// Returns the next try of a claimed run; `None` if no tries are left.
fn next_try(claim: &Claim, how: Requeue, now: Timestamp) -> Option<NextTry> {
    match how {
        Requeue::Refund => Some(NextTry { tries: claim.tries - 1, not_before: now, outcome: RunState::Cancelled }),
        Requeue::Retry => {
            let pause = usize::try_from(claim.tries - 1).ok().and_then(|n| RETRY_AFTER.get(n))?;
            Some(NextTry { tries: claim.tries, not_before: now.plus(*pause), outcome: RunState::Failed })
        }
    }
}

fn requeue(
    transaction: &Transaction<'_>,
    claim: &Claim,
    how: Requeue,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<Requeued> {
    let end = |state| end_run(transaction, claim, state, Some(reason), now);
    let Some(next) = next_try(claim, how, now) else {
        return end(RunState::Failed).map(|()| Requeued::Ended);
    };
    let is_cancelled: bool = transaction
        .prepare_cached("SELECT cancel_requested_at_ms IS NOT NULL FROM run WHERE id = ?1")?
        .query_row([claim.run], |row| row.get(0))?;
    if is_cancelled {
        return end(RunState::Cancelled).map(|()| Requeued::Ended);
    }
    let is_active: bool = transaction
        .prepare_cached("SELECT enabled = 1 AND deleted_at_ms IS NULL FROM schedule WHERE id = ?1")?
        .query_row([claim.schedule], |row| row.get(0))?;
    if claim.trigger != Trigger::Schedule || !is_active {
        return end(next.outcome).map(|()| Requeued::Ended);
    }
    if let Some(newer) = queued_run(transaction, claim.schedule)? {
        end(next.outcome)?;
        return coalesce_into(transaction, claim.run, newer).map(|()| Requeued::SupersededBy(newer));
    }
    if !claim.recovering {
        end_attempt(transaction, claim, next.outcome, Some(reason), now)?;
    }
    // What a user asked for by hand (`--no-verify`, `--reread`) does not hold for a retry.
    let changed = transaction
        .prepare_cached(
            "UPDATE run SET state = 'queued', worker = NULL, tries = ?2, not_before_ms = ?3, error = ?4, \
             verify = 1, reread = 0, base_run_id = NULL WHERE id = ?1 AND state = 'running'",
        )?
        .execute(params![claim.run, next.tries, next.not_before.millis(), reason])?;
    exactly_one(changed).map(|()| Requeued::Queued { not_before: next.not_before })
}

/// Records that a newer queued run covers the occurrences of an ended run.
fn coalesce_into(transaction: &Transaction<'_>, ended: i64, newer: i64) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE run SET superseded_by = ?2 WHERE id = ?1")?.execute([ended, newer])?;
    let changed = transaction
        .prepare_cached(
            "UPDATE run SET coalesced = coalesced + 1 + (SELECT coalesced FROM run WHERE id = ?2) WHERE id = ?1",
        )?
        .execute([newer, ended])?;
    exactly_one(changed)
}

/// Ends the queued run of a schedule as cancelled; returns how many runs that were (0 or 1).
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

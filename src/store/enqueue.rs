//! Turning due occurrences into queued runs: each exactly once, with any number of processes (I2).

use rusqlite::{OptionalExtension, Transaction, params};

use super::Store;
use super::rows::exactly_one;
use super::types::{Due, EnqueueOutcome, QueueNow, RunRequest, Watermark};
use crate::clock::Timestamp;
use crate::error::Result;

impl Store {
    /// Turns due occurrences into one queued run, or coalesces them into the one already queued, and moves the
    /// watermark.
    pub fn enqueue_due(&self, due: &Due, now: Timestamp) -> Result<EnqueueOutcome> {
        self.write(|transaction| {
            if !compare_and_set_watermark(transaction, due.schedule, due.from, due.to)? {
                return Ok(EnqueueOutcome::Overtaken);
            }
            let is_run: bool = transaction
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM run WHERE trigger = 'schedule' AND schedule_id = ?1 \
                 AND scheduled_for_ms = ?2)",
                )?
                .query_row(params![due.schedule, due.occurrence.millis()], |row| row.get(0))?;
            if is_run {
                return Ok(EnqueueOutcome::AlreadyRun);
            }
            if due.missed {
                return insert(transaction, due, "missed", Some(now), now).map(EnqueueOutcome::Missed);
            }
            match queued_run(transaction, due.schedule)? {
                Some(run) => coalesce(transaction, run, due, now).map(|()| EnqueueOutcome::Coalesced(run)),
                None => insert(transaction, due, "queued", None, now).map(EnqueueOutcome::Queued),
            }
        })
    }

    /// Queues a run of one schedule for the service, which may claim it at once: the queued one, else a new one. A
    /// running one is left to its worker.
    pub fn queue_now(&self, schedule: i64, request: RunRequest, now: Timestamp) -> Result<QueueNow> {
        self.write(|transaction| {
            if let Some(run) = running_run(transaction, schedule)? {
                return Ok(QueueNow::Running(run));
            }
            let run = queued_or_new_run(transaction, schedule, now)?;
            let attempt = transaction
                .prepare_cached(
                    "UPDATE run SET not_before_ms = min(not_before_ms, ?2), verify = ?3, reread = ?4 \
                     WHERE id = ?1 AND state = 'queued' RETURNING attempt",
                )?
                .query_row(params![run, now.millis(), request.verify, request.reread], |row| row.get(0))?;
            Ok(QueueNow::Queued { run, attempt })
        })
    }
}

/// Returns the queued run of a schedule, else a new one, which a user asked for.
pub(super) fn queued_or_new_run(transaction: &Transaction<'_>, schedule: i64, now: Timestamp) -> rusqlite::Result<i64> {
    if let Some(run) = queued_run(transaction, schedule)? {
        return Ok(run);
    }
    transaction
        .prepare_cached(
            "INSERT INTO run (schedule_id, trigger, state, not_before_ms, queued_at_ms) \
             VALUES (?1, 'manual', 'queued', ?2, ?2)",
        )?
        .execute(params![schedule, now.millis()])?;
    Ok(transaction.last_insert_rowid())
}

/// Returns the running run of a schedule.
pub(super) fn running_run(transaction: &Transaction<'_>, schedule: i64) -> rusqlite::Result<Option<i64>> {
    transaction
        .prepare_cached("SELECT id FROM run WHERE schedule_id = ?1 AND state = 'running'")?
        .query_row([schedule], |row| row.get(0))
        .optional()
}

/// Moves the watermark of an enabled schedule if it still is `from`; returns whether it was.
pub(super) fn compare_and_set_watermark(
    transaction: &Transaction<'_>,
    schedule: i64,
    from: Watermark,
    to: Watermark,
) -> rusqlite::Result<bool> {
    let changed = transaction
        .prepare_cached(
            "UPDATE schedule SET handled_until_ms = ?2, next_due_at_ms = ?3 \
         WHERE id = ?1 AND handled_until_ms = ?4 AND next_due_at_ms IS ?5 AND enabled = 1 AND deleted_at_ms IS NULL",
        )?
        .execute(params![
            schedule,
            to.handled_until.millis(),
            to.next_due.map(Timestamp::millis),
            from.handled_until.millis(),
            from.next_due.map(Timestamp::millis)
        ])?;
    Ok(changed == 1)
}

/// Returns the queued run of a schedule.
pub(super) fn queued_run(transaction: &Transaction<'_>, schedule: i64) -> rusqlite::Result<Option<i64>> {
    transaction
        .prepare_cached("SELECT id FROM run WHERE schedule_id = ?1 AND state = 'queued'")?
        .query_row([schedule], |row| row.get(0))
        .optional()
}

fn insert(
    transaction: &Transaction<'_>,
    due: &Due,
    state: &str,
    finished_at: Option<Timestamp>,
    now: Timestamp,
) -> rusqlite::Result<i64> {
    let changed = transaction
        .prepare_cached(
            "INSERT INTO run (schedule_id, trigger, scheduled_for_ms, coalesced, state, not_before_ms, queued_at_ms, \
             finished_at_ms) \
         VALUES (?1, 'schedule', ?2, ?3, ?4, ?5, ?5, ?6) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            due.schedule,
            due.occurrence.millis(),
            due.count.saturating_sub(1),
            state,
            now.millis(),
            finished_at.map(Timestamp::millis)
        ])?;
    exactly_one(changed)?;
    Ok(transaction.last_insert_rowid())
}

/// Coalesces due occurrences into the queued run, which starts over: at once, with all its tries.
fn coalesce(transaction: &Transaction<'_>, run: i64, due: &Due, now: Timestamp) -> rusqlite::Result<()> {
    let changed = transaction
        .prepare_cached(
            "UPDATE run SET scheduled_for_ms = ?2, coalesced = coalesced + ?3, not_before_ms = ?4, tries = 0 \
         WHERE id = ?1 AND state = 'queued'",
        )?
        .execute(params![run, due.occurrence.millis(), due.count, now.millis()])?;
    exactly_one(changed)
}

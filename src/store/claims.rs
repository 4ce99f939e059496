//! Claims: which worker carries out a run, and the fence that protects every later write (I4).

use std::time::Duration;

use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use uuid::Uuid;

use super::Store;
use super::enqueue::{queued_or_new_run, running_run};
use super::pending_archives::write_intent;
use super::types::{Claim, ClaimNow, Intent, RunCounts, RunRequest};
use super::workers::WorkerRow;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Problem;

/// A `not_before` further ahead than this was written under a wrong clock and counts as now.
const NOT_BEFORE_LIMIT: Duration = Duration::from_secs(3600);

/// What a claim consists of. An archive is verified unless its run or its schedule is `--no-verify`.
const RETURNING: &str = "RETURNING id, schedule_id, attempt, tries, trigger, reread, scheduled_for_ms, \
     verify AND (SELECT schedule.verify FROM schedule WHERE schedule.id = run.schedule_id) AS verify";

impl Store {
    /// Claims the queued run that has waited longest and writes the intent for its archive; `None` if no queued run may
    /// be claimed yet.
    pub fn claim_next(&self, worker: &WorkerRow, now: Timestamp) -> Result<Option<(Claim, Intent)>> {
        self.write(|transaction| {
            let run: Option<i64> = transaction
                .prepare_cached(
                    "SELECT id FROM run AS waiting WHERE state = 'queued' \
                         AND (not_before_ms <= :now OR not_before_ms > :limit) \
                         AND NOT EXISTS (SELECT 1 FROM run AS other WHERE other.state = 'running' \
                             AND other.schedule_id = waiting.schedule_id) \
                     ORDER BY not_before_ms, id LIMIT 1",
                )?
                .query_row(
                    named_params! { ":now": now.millis(), ":limit": now.plus(NOT_BEFORE_LIMIT).millis() },
                    |row| row.get(0),
                )
                .optional()?;
            run.map(|run| claim_queued(transaction, run, None, worker, now)).transpose()
        })
    }

    /// Claims a run of one schedule at once: the queued one, else a new one. A running one is left to its worker.
    pub fn claim_now(
        &self,
        schedule: i64,
        request: RunRequest,
        worker: &WorkerRow,
        now: Timestamp,
    ) -> Result<(ClaimNow, Option<Intent>)> {
        self.write(|transaction| {
            if let Some(run) = running_run(transaction, schedule)? {
                return Ok((ClaimNow::Running(run), None));
            }
            // A new one is queued within this transaction only: every run becomes running by the same statement.
            let run = queued_or_new_run(transaction, schedule, now)?;
            let (claim, intent) = claim_queued(transaction, run, Some(request), worker, now)?;
            Ok((ClaimNow::Claimed(claim), Some(intent)))
        })
    }

    /// Takes over the run of a dead worker if the run still has that worker and attempt, and records the attempt as
    /// interrupted; `None` otherwise.
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

    /// Fails with `Fenced` unless the claim is still valid; to be called before a file gets its final name.
    pub fn check_claim(&self, claim: &Claim) -> Result<()> {
        self.write_fenced(claim, |_| Ok(()))
    }

    /// Returns whether the cancellation of the run was requested.
    pub fn cancel_requested(&self, run: i64) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT cancel_requested_at_ms IS NOT NULL FROM run WHERE id = ?1")?
                .query_row([run], |row| row.get(0))
        })
    }

    /// Records what the run read and reported, before it ends.
    pub fn record_counts(&self, claim: &Claim, counts: &RunCounts, problems: &[Problem]) -> Result<()> {
        self.write_fenced(claim, |transaction| {
            transaction
                .prepare_cached(
                    "UPDATE run SET members = ?2, files = ?3, content_bytes = ?4, archive_bytes = ?5, problems = ?6, \
                     losses = ?7, notes = ?8, read_reasons = ?9 WHERE id = ?1",
                )?
                .execute(params![
                    claim.run,
                    counts.extent.members,
                    counts.extent.files,
                    counts.extent.content_bytes,
                    counts.archive_bytes,
                    counts.problems,
                    counts.losses,
                    (!counts.notes.is_empty()).then(|| counts.notes.join("\n")),
                    (!counts.read_reasons.is_empty()).then(|| serde_json::json!(counts.read_reasons).to_string())
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

    /// Runs `work` in a transaction that first checks the fence of the claim.
    ///
    /// Errors: `Fenced` if another worker has taken the run over.
    pub(super) fn write_fenced<T>(
        &self,
        claim: &Claim,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.write_or(|transaction| {
            if !check_fence(transaction, claim).map_err(|e| self.database_error(e))? {
                return Err(Error::new(
                    ErrorKind::Fenced,
                    format!("run @{} was taken over by another worker", claim.run),
                ));
            }
            work(transaction).map_err(|e| self.database_error(e))
        })
    }
}

/// Returns whether the run still has the worker and the attempt of the claim, by an update that changes no value.
fn check_fence(transaction: &Transaction<'_>, claim: &Claim) -> rusqlite::Result<bool> {
    let changed = transaction
        .prepare_cached(
            "UPDATE run SET worker = worker WHERE id = ?1 AND state = 'running' AND worker = ?2 AND attempt = ?3",
        )?
        .execute(params![claim.run, claim.worker.to_string(), claim.attempt])?;
    Ok(changed == 1)
}

/// Claims a queued run: makes it running, records the attempt and writes the intent for its archive. A request by hand
/// sets the run's options.
fn claim_queued(
    transaction: &Transaction<'_>,
    run: i64,
    request: Option<RunRequest>,
    worker: &WorkerRow,
    now: Timestamp,
) -> rusqlite::Result<(Claim, Intent)> {
    let claim = transaction
        .prepare_cached(&format!(
            "UPDATE run SET state = 'running', worker = :worker, attempt = attempt + 1, tries = tries + 1, \
                 started_at_ms = :now, cancel_requested_at_ms = NULL, error = NULL, \
                 verify = coalesce(:verify, verify), reread = coalesce(:reread, reread) \
             WHERE id = :run AND state = 'queued' {RETURNING}"
        ))?
        .query_row(
            named_params! {
                ":run": run,
                ":worker": worker.uuid.to_string(),
                ":now": now.millis(),
                ":verify": request.map(|request| request.verify),
                ":reread": request.map(|request| request.reread),
            },
            |row| claim_row(row, worker.uuid),
        )?;
    transaction
        .prepare_cached(
            "INSERT INTO attempt (run_id, attempt, worker, pid, started_at_ms, outcome) \
             VALUES (?1, ?2, ?3, ?4, ?5, 'running')",
        )?
        .execute(params![claim.run, claim.attempt, worker.uuid.to_string(), worker.pid, now.millis()])?;
    let intent = write_intent(transaction, &claim, now)?;
    Ok((claim, intent))
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

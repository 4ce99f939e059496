//! The history: runs with their attempts and problems.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::Store;
use super::pending_archives::accept_archive;
use super::rows::{extent_row, parse_uuid};
use super::run_end::cancel_queued;
use super::types::{Attempt, HistoryFilter, Run, RunCounts, RunState};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::progress::Problem;

const SELECT: &str =
    "SELECT run.*, schedule.name AS schedule_name FROM run JOIN schedule ON schedule.id = run.schedule_id";

impl Store {
    /// Returns a run.
    ///
    /// Errors: `NotFound` if it does not exist.
    pub fn run(&self, id: i64) -> Result<Run> {
        let found = self.read(|connection| {
            connection.prepare_cached(&format!("{SELECT} WHERE run.id = ?1"))?.query_row([id], run_row).optional()
        })?;
        found.ok_or_else(|| {
            Error::not_found(format!("there is no run @{id}")).hint("see `backup-manager history` for all runs")
        })
    }

    /// Returns runs, newest first.
    pub fn history(&self, filter: &HistoryFilter) -> Result<Vec<Run>> {
        let states = filter.states.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(",");
        let (since, limit) = (filter.since.map(Timestamp::millis), filter.limit.map_or(-1, i64::from));
        // A condition that is always true for an absent filter would keep SQLite from using an index for the others.
        let mut conditions = Vec::new();
        let mut parameters: Vec<(&str, &dyn ToSql)> = vec![(":limit", &limit)];
        if filter.schedule.is_some() {
            conditions.push("run.schedule_id = :schedule");
            parameters.push((":schedule", &filter.schedule));
        }
        if since.is_some() {
            conditions.push("run.queued_at_ms >= :since");
            parameters.push((":since", &since));
        }
        if !states.is_empty() {
            conditions.push("instr(',' || :states || ',', ',' || run.state || ',') > 0");
            parameters.push((":states", &states));
        }
        // The plus sign rules out reading all runs in the order of their numbers, which SQLite prefers to an index.
        let order = if since.is_some() && filter.schedule.is_none() { "+run.id" } else { "run.id" };
        let filters = if conditions.is_empty() { "TRUE".to_owned() } else { conditions.join(" AND ") };
        self.read(|connection| {
            connection
                .prepare_cached(&format!("{SELECT} WHERE {filters} ORDER BY {order} DESC LIMIT :limit"))?
                .query_map(parameters.as_slice(), run_row)?
                .collect()
        })
    }

    /// Returns the runs that are claimed by a worker, alive or dead, oldest first.
    pub fn running(&self) -> Result<Vec<Run>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "{SELECT} WHERE run.id IN (SELECT id FROM run WHERE state = 'running') ORDER BY run.id"
                ))?
                .query_map([], run_row)?
                .collect()
        })
    }

    /// Returns the runs that wait to be claimed, in the order in which they are.
    pub fn queued(&self) -> Result<Vec<Run>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "{SELECT} WHERE run.id IN (SELECT id FROM run WHERE state = 'queued') \
                     ORDER BY run.not_before_ms, run.id"
                ))?
                .query_map([], run_row)?
                .collect()
        })
    }

    /// Returns the earliest time at which a queued run may be claimed.
    pub fn next_not_before(&self) -> Result<Option<Timestamp>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT min(not_before_ms) FROM run WHERE state = 'queued'")?
                .query_row([], |row| row.get::<_, Option<i64>>(0))
                .map(|at| at.map(Timestamp::from_millis))
        })
    }

    /// Returns the last run of a schedule that ended, except those that were cancelled or superseded by another.
    pub fn last_ended(&self, schedule: i64) -> Result<Option<Run>> {
        self.read(|connection| last_ended(connection, schedule))
    }

    /// Returns the attempts at a run, in order.
    pub fn attempts(&self, run: i64) -> Result<Vec<Attempt>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT attempt, pid, started_at_ms, ended_at_ms, outcome, error FROM attempt WHERE run_id = ?1 \
                     ORDER BY attempt",
                )?
                .query_map([run], |row| {
                    Ok(Attempt {
                        attempt: row.get(0)?,
                        pid: row.get(1)?,
                        started_at: Timestamp::from_millis(row.get(2)?),
                        ended_at: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_millis),
                        outcome: row.get(4)?,
                        error: row.get(5)?,
                    })
                })?
                .collect()
        })
    }

    /// Returns up to `limit` problems of a run, in the order they were reported.
    pub fn problems(&self, run: i64, limit: u32) -> Result<Vec<Problem>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT path, kind, reason FROM run_problem WHERE run_id = ?1 ORDER BY sequence LIMIT ?2",
                )?
                .query_map(params![run, limit], |row| {
                    let path: Vec<u8> = row.get(0)?;
                    Ok(Problem { path: path.into(), kind: row.get(1)?, reason: row.get(2)? })
                })?
                .collect()
        })
    }

    /// Returns the number of losses of a run that the run before it with an archive did not have.
    pub fn new_problems(&self, run: &Run) -> Result<u64> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    // NOT IN builds an index of the older paths once; NOT EXISTS would read them all for each new path.
                    "SELECT count(*) FROM run_problem AS new WHERE new.run_id = ?1 \
                     AND new.kind NOT IN ('grew', 'skipped') AND new.path NOT IN ( \
                         SELECT old.path FROM run_problem AS old WHERE old.run_id = ( \
                             SELECT max(id) FROM run WHERE schedule_id = ?2 AND id < ?1 AND trigger <> 'rescan' \
                             AND state IN ('succeeded', 'incomplete')))",
                )?
                .query_row(params![run.id, run.schedule_id], |row| row.get(0))
        })
    }

    /// Accepts that the next run of a schedule finds its source emptied or shrunken, which applies once, and that files
    /// changed without their times; and of the last run that ended, which is returned, the problems as known, and the
    /// archive if it is suspect.
    pub fn accept(&self, schedule: i64, now: Timestamp) -> Result<Option<i64>> {
        self.write(|transaction| {
            transaction.execute(
                "UPDATE schedule SET accepted_at_ms = ?2, reuse_off_at_ms = NULL WHERE id = ?1",
                params![schedule, now.millis()],
            )?;
            let Some(run) = last_ended(transaction, schedule)?.map(|run| run.id) else { return Ok(None) };
            transaction.execute("UPDATE run SET acknowledged_at_ms = ?2 WHERE id = ?1", params![run, now.millis()])?;
            accept_archive(transaction, run)?;
            Ok(Some(run))
        })
    }

    /// Requests the cancellation of the running run of a schedule and ends its queued one; returns how many runs that
    /// were.
    pub fn cancel(&self, schedule: i64, now: Timestamp) -> Result<usize> {
        self.write(|transaction| {
            let running = transaction.execute(
                "UPDATE run SET cancel_requested_at_ms = ?2 WHERE schedule_id = ?1 AND state = 'running'",
                params![schedule, now.millis()],
            )?;
            Ok(running + cancel_queued(transaction, schedule, "cancelled on request", now)?)
        })
    }

    /// Requests the cancellation of a run if it is running, and ends it if it is queued. Returns the state in which it
    /// was found.
    pub fn cancel_run(&self, run: i64, now: Timestamp) -> Result<RunState> {
        self.write(|transaction| {
            let (state, schedule) = transaction
                .prepare_cached("SELECT state, schedule_id FROM run WHERE id = ?1")?
                .query_row([run], |row| Ok((row.get(0)?, row.get(1)?)))?;
            match state {
                RunState::Running => {
                    transaction
                        .prepare_cached("UPDATE run SET cancel_requested_at_ms = ?2 WHERE id = ?1")?
                        .execute(params![run, now.millis()])?;
                }
                // It is the only queued run of its schedule.
                RunState::Queued => drop(cancel_queued(transaction, schedule, "cancelled on request", now)?),
                _ => {}
            }
            Ok(state)
        })
    }
}

fn last_ended(connection: &Connection, schedule: i64) -> rusqlite::Result<Option<Run>> {
    connection
        .prepare_cached(&format!(
            "{SELECT} WHERE run.schedule_id = ?1 AND run.superseded_by IS NULL AND run.trigger <> 'rescan' \
             AND run.state IN ('succeeded', 'incomplete', 'failed', 'missed') ORDER BY run.id DESC LIMIT 1"
        ))?
        .query_row([schedule], run_row)
        .optional()
}

fn run_row(row: &Row<'_>) -> rusqlite::Result<Run> {
    let time = |name: &str| -> rusqlite::Result<Option<Timestamp>> {
        Ok(row.get::<_, Option<i64>>(name)?.map(Timestamp::from_millis))
    };
    let notes: Option<String> = row.get("notes")?;
    let read_reasons = row.get::<_, Option<String>>("read_reasons")?.map(|json| serde_json::from_str(&json));
    let unfit_json = |e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e));
    Ok(Run {
        id: row.get("id")?,
        schedule_id: row.get("schedule_id")?,
        schedule_name: row.get("schedule_name")?,
        trigger: row.get("trigger")?,
        scheduled_for: time("scheduled_for_ms")?,
        coalesced: row.get("coalesced")?,
        state: row.get("state")?,
        attempt: row.get("attempt")?,
        worker: row.get::<_, Option<String>>("worker")?.map(|text| parse_uuid(&text)).transpose()?,
        not_before: Timestamp::from_millis(row.get("not_before_ms")?),
        queued_at: Timestamp::from_millis(row.get("queued_at_ms")?),
        started_at: time("started_at_ms")?,
        finished_at: time("finished_at_ms")?,
        counts: RunCounts {
            extent: extent_row(row)?,
            archive_bytes: row.get("archive_bytes")?,
            problems: row.get("problems")?,
            losses: row.get("losses")?,
            notes: notes.map(|text| text.lines().map(str::to_owned).collect()).unwrap_or_default(),
            read_reasons: read_reasons.transpose().map_err(unfit_json)?.unwrap_or_default(),
        },
        accepted: time("acknowledged_at_ms")?.is_some(),
        base_run: row.get("base_run_id")?,
        superseded_by: row.get("superseded_by")?,
        error: row.get("error")?,
    })
}

//! The runs that have not ended, as `status` prints them: running ones, and queued ones with what they wait for.

use chrono_tz::Tz;
use serde::Serialize;

use super::{Context, documents, terminal};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::liveness::{self, RunHeartbeat};
use crate::store::{Run, ScheduleRow, Store, Trigger};

/// All runs that have not ended.
pub(super) struct ActiveRuns {
    running: Vec<RunningRun>,
    queued: Vec<Run>,
}

/// A run in the state `running`. Its process may have died.
pub(super) struct RunningRun {
    run: Run,
    /// The heartbeat of its process, a service or a command, if it wrote one.
    pub(super) heartbeat: Option<RunHeartbeat>,
    is_cut_off: bool,
    /// Whether its schedule was deleted meanwhile.
    is_deleted: bool,
}

impl ActiveRuns {
    /// Reads the runs; `schedules` are those that are not deleted.
    pub(super) fn read(context: &Context, store: &Store, schedules: &[ScheduleRow]) -> Result<ActiveRuns> {
        let running = store.running()?.into_iter().map(|run| {
            let is_deleted = schedules.iter().all(|row| row.id != run.schedule_id);
            RunningRun::read(context, run, is_deleted)
        });
        Ok(ActiveRuns { running: running.collect(), queued: store.queued()? })
    }

    /// Returns the running run of a schedule.
    pub(super) fn of_schedule(&self, schedule: i64) -> Option<&RunningRun> {
        self.running.iter().find(|running| running.run.schedule_id == schedule)
    }

    /// Returns a line for each run.
    pub(super) fn text(&self, context: &Context, zone: &Tz) -> String {
        let running = self.running.iter().map(|running| running.line(context));
        let queued = self.queued.iter().map(|run| queued_line(run, context.now(), zone));
        running.chain(queued).collect()
    }

    pub(super) fn running_documents(&self) -> Vec<NamedRunDocument<'_>> {
        let named = self.running.iter().map(|running| NamedRunDocument {
            schedule: &running.run.schedule_name,
            deleted: running.is_deleted,
            run: running.document(),
        });
        named.collect()
    }

    pub(super) fn queued_documents(&self, zone: &Tz) -> Vec<QueuedDocument<'_>> {
        self.queued.iter().map(|run| QueuedDocument::new(run, zone)).collect()
    }
}

impl RunningRun {
    fn read(context: &Context, run: Run, is_deleted: bool) -> RunningRun {
        let folder = context.home.workers();
        let is_cut_off = run.worker.is_some_and(|worker| !liveness::is_alive(&folder, &worker));
        let heartbeat = run.worker.and_then(|worker| liveness::read_run_heartbeat(&folder, &worker, run.id));
        RunningRun { run, heartbeat, is_cut_off, is_deleted }
    }

    fn line(&self, context: &Context) -> String {
        let phase = match &self.heartbeat {
            _ if self.is_cut_off => {
                "interrupted, its process died: the service or the next `run` recovers it".to_owned()
            }
            Some(heartbeat) => {
                format!("{}, {}", heartbeat.phase, terminal::describe(&heartbeat.progress(context.now())))
            }
            None => "in progress".to_owned(),
        };
        let deleted = if self.is_deleted { " (schedule deleted)" } else { "" };
        format!("running: {} @{}{deleted}: {phase}\n", self.run.schedule_name, self.run.id)
    }

    pub(super) fn document(&self) -> RunningDocument<'_> {
        let heartbeat = self.heartbeat.as_ref();
        RunningDocument {
            run: self.run.id,
            by_hand: self.run.trigger == Trigger::Manual,
            cut_off: self.is_cut_off,
            phase: heartbeat.map_or("", |heartbeat| heartbeat.phase.as_str()),
            members: heartbeat.map_or(0, |heartbeat| heartbeat.members),
            bytes: heartbeat.map_or(0, |heartbeat| heartbeat.bytes),
            bytes_total: heartbeat.and_then(|heartbeat| heartbeat.bytes_total),
        }
    }
}

/// Only a run that was tried and is to be tried again has a reason.
fn queued_line(run: &Run, now: Timestamp, zone: &Tz) -> String {
    let what = format!("queued: {} @{}", run.schedule_name, run.id);
    match &run.error {
        Some(error) if run.not_before > now => {
            format!("{what} will be tried again at {}: {error}\n", run.not_before.rfc3339(zone))
        }
        Some(error) => format!("{what} will be tried again as soon as a service can: {error}\n"),
        None => format!("{what}\n"),
    }
}

/// A run that has not ended. Without a heartbeat of its process the numbers are 0 and the phase is empty.
#[derive(Serialize)]
pub(super) struct RunningDocument<'a> {
    /// Its number.
    run: i64,
    /// Whether a command carries it out rather than the schedule.
    by_hand: bool,
    /// Whether its process has died.
    cut_off: bool,
    phase: &'a str,
    members: u64,
    bytes: u64,
    /// Null until the size of the source is known.
    bytes_total: Option<u64>,
}

/// A running run, with the name of its schedule.
#[derive(Serialize)]
pub(super) struct NamedRunDocument<'a> {
    schedule: &'a str,
    /// Whether the schedule was deleted meanwhile.
    deleted: bool,
    #[serde(flatten)]
    run: RunningDocument<'a>,
}

/// A run that waits.
#[derive(Serialize)]
pub(super) struct QueuedDocument<'a> {
    schedule: &'a str,
    /// Its number.
    run: i64,
    /// The earliest time at which it begins.
    not_before: String,
    /// Why its last try failed; null if it was not tried yet.
    error: Option<&'a str>,
}

impl<'a> QueuedDocument<'a> {
    fn new(run: &'a Run, zone: &Tz) -> Self {
        QueuedDocument {
            schedule: &run.schedule_name,
            run: run.id,
            not_before: documents::time(run.not_before, zone),
            error: run.error.as_deref(),
        }
    }
}

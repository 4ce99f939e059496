//! The daily tasks of a service: copying the database, pruning the history, verifying old archives, restore tests.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::compaction::{CompactionContext, compact_segments};
use super::shared_files::separate_files;
use super::{copy_database, drill, verify};
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::progress::Observer;
use crate::store::{Archive, ScheduleRow, Store, Task, TaskState};

const DAY: Duration = Duration::from_secs(86_400);
/// Time from one start of a task to the next: a little less than a day, so that its time of day does not drift.
const DAILY: Duration = Duration::from_secs(23 * 3600);

/// How often the service runs its maintenance tasks. Zero days mean never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// Days in which every archive is verified at least once.
    pub reverify_days: u32,
    /// Days from one restore test of a schedule to the next.
    pub drill_days: u32,
    /// Days for which the history keeps runs without archives.
    pub history_days: u32,
}

impl Default for Intervals {
    fn default() -> Self {
        Intervals { reverify_days: 30, drill_days: 7, history_days: 400 }
    }
}

/// What one call of [`run_maintenance`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaintenanceReport {
    /// Runs whose archives were verified.
    pub verified: Vec<i64>,
    /// Those of them whose archives are not good.
    pub bad: Vec<i64>,
    /// Whether the database was copied.
    pub copied: bool,
    /// Tasks that were due and not done in full. They are due again.
    pub failed: Vec<Task>,
    /// Number of runs removed from the history.
    pub forgotten: usize,
    /// Names of the schedules whose newest good archive went through a restore test.
    pub drilled: Vec<String>,
}

/// What the daily tasks need.
#[derive(Clone, Copy)]
pub struct MaintenanceContext<'a> {
    /// The paths of the installation.
    pub home: &'a Home,
    /// The database.
    pub store: &'a Store,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Receives progress and notes.
    pub observer: &'a dyn Observer,
    /// Number of threads that decode.
    pub threads: usize,
    /// Folder for restore tests; `None` for one in the archive folder.
    pub scratch: Option<&'a Path>,
    /// Ends the work early.
    pub cancel: &'a CancelToken,
}

/// Runs the daily tasks that are due. A task that fails is logged, does not keep the others from running, and is due
/// again at the next check; so is one that was interrupted.
///
/// Errors: `Interrupted` after `cancel`; `Failed` if the archive folder is not ours or the database cannot be written.
pub fn run_maintenance(context: &MaintenanceContext<'_>, intervals: Intervals) -> Result<MaintenanceReport> {
    let MaintenanceContext { home, store, .. } = *context;
    let mut report = MaintenanceReport::default();
    // Without our folder there are no archives to verify and there is no place for a copy.
    archive_folder::ensure_ours(home, store)?;
    // Before the copy, which then knows where the bytes of archives lie.
    run_task(context, Task::Compaction, DAILY, &mut report, |_, _| compact(context))?;
    // Once a day, and before that if the last copy was made before the first schedule.
    let copy_every = if store.lacks_copy_of_first_schedule(context.clock.now())? { Duration::ZERO } else { DAILY };
    run_task(context, Task::Copy, copy_every, &mut report, |report, _| copy(context, report))?;
    if intervals.history_days > 0 {
        run_task(context, Task::History, DAILY, &mut report, |report, _| {
            let limit = context.clock.now().minus(DAY * intervals.history_days);
            report.forgotten = prune_history(store, limit, context.cancel)?;
            Ok(true)
        })?;
    }
    if intervals.reverify_days > 0 {
        run_task(context, Task::Reverify, DAILY, &mut report, |report, is_retry| {
            separate_files(home, store, None)?;
            let archives = store.archives(None)?;
            let due = due_for_verification(archives, intervals.reverify_days, is_retry, context.clock.now());
            verify_due_archives(context, &due, report)
        })?;
    }
    if intervals.drill_days > 0 {
        run_task(context, Task::Drill, DAILY, &mut report, |report, _| {
            drill_due_schedules(context, intervals.drill_days, report)
        })?;
    }
    Ok(report)
}

/// Runs `work` if its task is due: if its last start is at least `every` ago, or if it failed then. `work` gets whether
/// it failed, and returns whether all of it was done.
fn run_task(
    context: &MaintenanceContext<'_>,
    task: Task,
    every: Duration,
    report: &mut MaintenanceReport,
    work: impl FnOnce(&mut MaintenanceReport, bool) -> Result<bool>,
) -> Result<()> {
    let MaintenanceContext { store, clock, .. } = *context;
    let is_retry = store.task_state(task)? == TaskState::Failed;
    if !store.begin_task(task, every, clock.now())? {
        return Ok(());
    }
    let done = work(report, is_retry);
    if !matches!(done, Ok(true)) {
        store.record_task_failure(task)?;
        report.failed.push(task);
    }
    match done {
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
        Err(error) => {
            log::error!("{} failed and will be tried again: {error}", task.describe());
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

fn copy(context: &MaintenanceContext<'_>, report: &mut MaintenanceReport) -> Result<bool> {
    let path = copy_database(context.home, context.store, context.clock.now())?;
    log::info!("copied the database to {}", path.display());
    report.copied = true;
    Ok(true)
}

/// Compacts the segments of all schedules, and returns whether all of it was done.
fn compact(context: &MaintenanceContext<'_>) -> Result<bool> {
    let MaintenanceContext { home, store, clock, cancel, .. } = *context;
    let context = CompactionContext { home, store, now: clock.now(), cancel, warn: &|what| log::warn!("{what}") };
    let mut is_done = true;
    for row in store.schedules()? {
        match compact_segments(&context, &row) {
            Ok(done) => {
                is_done &= !done.is_postponed;
                if done.segments > 0 {
                    log::info!("{}: compaction freed {}", row.schedule.name, done.describe());
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                is_done = false;
                log::error!("{}: segments not compacted, will be tried again: {error}", row.schedule.name);
            }
        }
    }
    Ok(is_done)
}

/// Removes runs without archives that ended before `limit`, batch by batch, and returns their number.
fn prune_history(store: &Store, limit: Timestamp, cancel: &CancelToken) -> Result<usize> {
    let mut removed = 0;
    while !cancel.is_cancelled() {
        match store.prune_history(limit)? {
            0 => break,
            count => removed += count,
        }
    }
    Ok(removed)
}

/// Returns the archives to verify today, each physical file once, least recently verified first: one day's share of
/// all bytes, and whatever would otherwise be late. A retry verifies only the latter: today's share was read already,
/// as far as it can be read.
fn due_for_verification(mut archives: Vec<Archive>, days: u32, is_retry: bool, now: Timestamp) -> Vec<Archive> {
    let mut seen = BTreeSet::new();
    archives.retain(|archive| seen.insert(archive.file_key()));
    // A time in the future was written under a wrong clock and is ignored.
    let verified_at = |archive: &Archive| archive.verified_at.filter(|at| *at <= now);
    archives.sort_by_key(|archive| (verified_at(archive), archive.run));
    let total_bytes: u64 = archives.iter().map(|archive| archive.size).sum();
    let share_bytes = if is_retry { 0 } else { total_bytes.div_ceil(u64::from(days)) };
    // The task runs once a day: an archive not verified today is verified tomorrow at the latest.
    let late = now.minus(DAY * days.saturating_sub(2));
    let recent = now.minus(DAY);
    let mut taken_bytes = 0_u64;
    archives.retain(|archive| {
        let at = verified_at(archive);
        let is_late = at.is_none_or(|at| at <= late);
        let is_taken = is_late || taken_bytes < share_bytes && at.is_none_or(|at| at <= recent);
        taken_bytes += if is_taken { archive.size } else { 0 };
        is_taken
    });
    archives
}

/// Verifies archives and returns whether each could be read, good or bad.
fn verify_due_archives(
    context: &MaintenanceContext<'_>,
    due: &[Archive],
    report: &mut MaintenanceReport,
) -> Result<bool> {
    let MaintenanceContext { home, store, clock, cancel, threads, .. } = *context;
    let mut is_done = true;
    for archive in due {
        if cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Interrupted, "the service stops"));
        }
        let run = archive.run;
        match verify::verify_archive(home, store, archive, threads, cancel, clock.now()) {
            Ok(findings) => {
                report.verified.push(run);
                if !findings.is_good() {
                    report.bad.push(run);
                    let health = findings.health.as_str();
                    log::error!("{}: {health}: see `backup-manager verify @{run}`", archive.describe());
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            // Retention removed it.
            Err(_) if store.archive(run)?.is_none() => {}
            Err(error) => {
                is_done = false;
                log::error!("{}: not verified, will be tried again: {error}", archive.describe());
            }
        }
    }
    if !report.bad.is_empty() {
        archive_folder::refresh_stable_links(home, store, &store.schedules()?, clock.now())?;
    }
    Ok(is_done)
}

/// Tests a restore of each schedule for which that is due, and returns whether each test could be done.
fn drill_due_schedules(context: &MaintenanceContext<'_>, days: u32, report: &mut MaintenanceReport) -> Result<bool> {
    let now = context.clock.now();
    let limit = now.minus(DAY * days).plus(DAY - DAILY);
    let mut is_done = true;
    for row in context.store.schedules()? {
        let last = context.store.last_drill(row.id)?.map(|drill| drill.started_at);
        // A drill in the future was recorded under a wrong clock.
        let is_due = last.is_none_or(|at| at <= limit || at > now);
        if !is_due || context.store.newest_good(row.id)?.is_none() {
            continue;
        }
        match drill_schedule(context, &row) {
            Ok(()) => report.drilled.push(row.schedule.name.to_string()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                is_done = false;
                log::error!("{}: restore test not done, will be tried again: {error}", row.schedule.name);
            }
        }
    }
    Ok(is_done)
}

fn drill_schedule(context: &MaintenanceContext<'_>, row: &ScheduleRow) -> Result<()> {
    let drill_context = drill::DrillContext {
        clock: context.clock,
        observer: context.observer,
        cancel: context.cancel,
        threads: context.threads,
        sample_bytes: drill::SAMPLE_BYTES,
        scratch: context.scratch,
    };
    let outcome = drill::drill(context.home, context.store, row, &drill_context)?;
    let archive = outcome.archive.describe();
    match outcome.differences.first() {
        None => log::info!("{archive}: restore test passed: {}", outcome.describe()),
        Some(why) => log::error!("{archive}: restore test failed: {why}"),
    }
    Ok(())
}

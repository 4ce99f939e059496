//! The daily tasks of a service: copying the database, pruning the history, verifying old archives, restore tests.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::{copy_database, drill, verify};
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::progress::Observer;
use crate::store::{Archive, ScheduleRow, Store, Task};

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
    /// Whether the copy was due and failed.
    pub copy_failed: bool,
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

/// Runs the daily tasks that are due. A problem with one archive, restore test or copy is logged and does not keep the
/// others from running.
///
/// Errors: `Interrupted` after `cancel`; `Failed` if the archive folder is not ours or the database cannot be written.
pub fn run_maintenance(context: &MaintenanceContext<'_>, intervals: Intervals) -> Result<MaintenanceReport> {
    let MaintenanceContext { home, store, clock, cancel, .. } = *context;
    let mut report = MaintenanceReport::default();
    let now = clock.now();
    // Without our folder there are no archives to verify and there is no place for a copy.
    archive_folder::ensure_ours(home, store)?;
    copy_if_due(context, &mut report)?;
    if intervals.history_days > 0 && store.begin_task(Task::History, DAILY, now)? {
        let limit = now.minus(DAY * intervals.history_days);
        report.forgotten = prune_history(store, limit, cancel)?;
    }
    if intervals.reverify_days > 0 && store.begin_task(Task::Reverify, DAILY, now)? {
        let due = due_for_verification(store.archives(None)?, intervals.reverify_days, now);
        verify_due_archives(context, &due, &mut report)?;
    }
    if intervals.drill_days > 0 && store.begin_task(Task::Drill, DAILY, now)? {
        drill_due_schedules(context, intervals.drill_days, &mut report)?;
    }
    Ok(report)
}

/// Copies the database once a day, and before that if the last copy was made before the first schedule. A copy that
/// failed is due again at the next check.
fn copy_if_due(context: &MaintenanceContext<'_>, report: &mut MaintenanceReport) -> Result<()> {
    let MaintenanceContext { home, store, clock, .. } = *context;
    let now = clock.now();
    let first_schedule = store.schedules()?.iter().map(|row| row.created_at).min();
    let last_copy = store.task_started_at(Task::Copy)?;
    if first_schedule.is_some_and(|created_at| last_copy.is_some_and(|at| at < created_at)) {
        store.make_task_due(Task::Copy)?;
    }
    if !store.begin_task(Task::Copy, DAILY, now)? {
        return Ok(());
    }
    match copy_database(home, store, now) {
        Ok(path) => {
            log::info!("copied the database to {}", path.display());
            report.copied = true;
        }
        Err(error) => {
            log::error!("the database was not copied, which is tried again: {error}");
            store.make_task_due(Task::Copy)?;
            report.copy_failed = true;
        }
    }
    Ok(())
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

/// Returns the archives to verify today, each physical file once, least recently verified first: one day's share of all
/// bytes, and whatever would otherwise be late.
fn due_for_verification(mut archives: Vec<Archive>, days: u32, now: Timestamp) -> Vec<Archive> {
    let mut seen = BTreeSet::new();
    archives.retain(|archive| seen.insert(archive.archive_file));
    // A time in the future was written under a wrong clock and is ignored.
    let verified_at = |archive: &Archive| archive.verified_at.filter(|at| *at <= now);
    archives.sort_by_key(|archive| (verified_at(archive), archive.run));
    let total_bytes: u64 = archives.iter().map(|archive| archive.size).sum();
    let share_bytes = total_bytes.div_ceil(u64::from(days));
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

fn verify_due_archives(
    context: &MaintenanceContext<'_>,
    due: &[Archive],
    report: &mut MaintenanceReport,
) -> Result<()> {
    let MaintenanceContext { home, store, clock, cancel, threads, .. } = *context;
    for archive in due {
        if cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Interrupted, "the service stops"));
        }
        match verify::verify_archive(home, store, archive, threads, cancel, clock.now()) {
            Ok(findings) => {
                report.verified.push(archive.run);
                if !findings.is_good() {
                    report.bad.push(archive.run);
                    log::error!(
                        "{} is {}: see `backup-manager verify @{}`",
                        archive.file_name,
                        findings.health.as_str(),
                        archive.run
                    );
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => log::error!("{} was not verified: {error}", archive.file_name),
        }
    }
    if !report.bad.is_empty() {
        archive_folder::refresh_stable_links(home, store, &store.schedules()?, clock.now())?;
    }
    Ok(())
}

fn drill_due_schedules(context: &MaintenanceContext<'_>, days: u32, report: &mut MaintenanceReport) -> Result<()> {
    let now = context.clock.now();
    let limit = now.minus(DAY * days).plus(DAY - DAILY);
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
            Err(error) => log::error!("{}: no restore drill: {error}", row.schedule.name),
        }
    }
    Ok(())
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
    let name = &row.schedule.name;
    match outcome.differences.first() {
        None => log::info!("{name}: the restore drill of @{} passed, {} files", outcome.run, outcome.files),
        Some(why) => log::error!("{name}: the restore drill of @{} failed: {why}", outcome.run),
    }
    Ok(())
}

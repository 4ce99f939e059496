//! What a service does by itself, a little each day: reading old archives back, restore drills, copies of the database,
//! a shorter history.

mod database_copies;
pub mod drill;
pub mod prune;
pub mod rescan;
pub mod retention;
pub mod verify;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::progress::Observer;
use crate::store::{Archive, ScheduleRow, Store, Task};

pub use database_copies::{RestoredDatabase, copies, copy_database, restore_database_copy};

const DAY: Duration = Duration::from_secs(86_400);
/// How often each task comes, a little less than a day so that its hour does not move.
const DAILY: Duration = Duration::from_secs(23 * 3600);

/// How often the service looks after what. Zero days mean never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// Every archive is read back at least once in so many days.
    pub reverify_days: u32,
    /// The newest good archive of each schedule is restored once in so many days.
    pub drill_days: u32,
    /// Runs without archives stay in the history for so many days.
    pub history_days: u32,
}

impl Default for Intervals {
    fn default() -> Self {
        Intervals { reverify_days: 30, drill_days: 7, history_days: 400 }
    }
}

/// What one report did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaintenanceReport {
    /// Runs of the archives that were read back.
    pub verified: Vec<i64>,
    /// Those of them that were not found good.
    pub bad: Vec<i64>,
    /// The database was copied.
    pub copied: bool,
    /// Runs that left the history.
    pub forgotten: usize,
    /// Names of the schedules whose newest archive was restored for trial.
    pub drilled: Vec<String>,
}

/// What the daily work needs besides the time.
#[derive(Clone, Copy)]
pub struct MaintenanceContext<'a> {
    /// Where everything lies.
    pub home: &'a Home,
    /// The database.
    pub store: &'a Store,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Who is told.
    pub observer: &'a dyn Observer,
    /// Threads that decode.
    pub threads: usize,
    /// Where drills restore; without it, below the archive folder.
    pub scratch: Option<&'a Path>,
    /// Ends the work when it becomes true.
    pub cancel: &'a CancelToken,
}

/// Does what is due of the daily work. Trouble with an archive, a drill or the copy is logged and keeps none of the
/// others.
///
/// Errors: `Interrupted` after `cancel`; where the archive folder is not ours or the database cannot be written.
pub fn run_maintenance(context: &MaintenanceContext<'_>, intervals: Intervals) -> Result<MaintenanceReport> {
    let MaintenanceContext { home, store, clock, cancel, .. } = *context;
    let mut report = MaintenanceReport::default();
    let now = clock.now();
    // Without our folder there is nothing to look after, and nothing to write a copy to.
    archive_folder::ensure_ours(home, store)?;
    if store.begin_task(Task::Copy, DAILY, now)? {
        match copy_database(home, store, now) {
            Ok(path) => {
                log::info!("copied the database to {}", path.display());
                report.copied = true;
            }
            Err(error) => log::error!("the database was not copied: {error}"),
        }
    }
    if intervals.history_days > 0 && store.begin_task(Task::History, DAILY, now)? {
        let limit = now.minus(DAY * intervals.history_days);
        report.forgotten = forget_history(store, limit, cancel)?;
    }
    if intervals.reverify_days > 0 && store.begin_task(Task::Reverify, DAILY, now)? {
        let due = due_for_reading(store.archives(None)?, intervals.reverify_days, now);
        reverify(context, &due, &mut report)?;
    }
    if intervals.drill_days > 0 && store.begin_task(Task::Drill, DAILY, now)? {
        drill_those_due(context, intervals.drill_days, &mut report)?;
    }
    Ok(report)
}

fn forget_history(store: &Store, limit: Timestamp, cancel: &CancelToken) -> Result<usize> {
    let mut forgotten = 0;
    while !cancel.is_cancelled() {
        match store.prune_history(limit)? {
            0 => break,
            count => forgotten += count,
        }
    }
    Ok(forgotten)
}

/// Returns the archives to be read back today, each physical file once, those read longest ago first: one day's share
/// of all bytes, and whatever would else be late.
fn due_for_reading(mut archives: Vec<Archive>, days: u32, now: Timestamp) -> Vec<Archive> {
    let mut seen = BTreeSet::new();
    archives.retain(|archive| seen.insert(archive.archive_file));
    // A time that has not come yet was written under a wrong clock and says nothing.
    let read_at = |archive: &Archive| archive.verified_at.filter(|at| *at <= now);
    archives.sort_by_key(|archive| (read_at(archive), archive.run));
    let total: u64 = archives.iter().map(|archive| archive.size).sum();
    let share = total.div_ceil(u64::from(days));
    // A report a day: what is not read today is read tomorrow at the latest.
    let late = now.minus(DAY * days.saturating_sub(2));
    let fresh = now.minus(DAY);
    let mut taken = 0_u64;
    archives.retain(|archive| {
        let at = read_at(archive);
        let take = at.is_none_or(|at| at <= late) || taken < share && at.is_none_or(|at| at <= fresh);
        taken += if take { archive.size } else { 0 };
        take
    });
    archives
}

fn reverify(context: &MaintenanceContext<'_>, due: &[Archive], report: &mut MaintenanceReport) -> Result<()> {
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
            Err(error) => log::error!("{} was not read back: {error}", archive.file_name),
        }
    }
    if !report.bad.is_empty() {
        archive_folder::refresh_stable_links(home, store, &store.schedules()?, clock.now())?;
    }
    Ok(())
}

fn drill_those_due(context: &MaintenanceContext<'_>, days: u32, report: &mut MaintenanceReport) -> Result<()> {
    let now = context.clock.now();
    let limit = now.minus(DAY * days).plus(DAY - DAILY);
    for row in context.store.schedules()? {
        let last = context.store.last_drill(row.id)?.map(|drill| drill.started_at);
        let is_due = last.is_none_or(|at| at <= limit || at > now);
        if !is_due || context.store.newest_good(row.id)?.is_none() {
            continue;
        }
        match drill_one(context, &row) {
            Ok(()) => report.drilled.push(row.schedule.name.to_string()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => log::error!("{}: no restore drill: {error}", row.schedule.name),
        }
    }
    Ok(())
}

fn drill_one(context: &MaintenanceContext<'_>, row: &ScheduleRow) -> Result<()> {
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

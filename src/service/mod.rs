//! The service: enqueues due runs, executes them, runs maintenance tasks, and drains when it is asked to stop (I10).
//!
//! [`Service::tick`] is one scheduler tick. It takes the time from the clock, so that tests and the simulation drive
//! it step by step. [`Service::serve`] only repeats it and waits in between.

mod duties;
mod event_loop;
mod maintenance;
mod run_log;
mod runs;
pub mod systemd;
mod tick;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono_tz::Tz;
use crossbeam_channel::Sender;

use crate::archive_folder;
use crate::backup::Runner;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::health::live_services;
use crate::import_export::{FollowedFile, FollowedKind};
use crate::liveness::{Heartbeat, Registration};
use crate::maintenance::Intervals;
use crate::store::{Role, ScheduleRow, StopRequest, Watch, Watermark};
use duties::SettlingThreads;
use maintenance::{BackgroundThread, MaintenancePace};
use runs::ActiveRuns;
pub use tick::Tick;

/// Longest wait between two ticks: by then a clock that was set, or a machine that was suspended, is noticed.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// How often the service checks for commits of other processes.
const COMMIT_POLL_INTERVAL: Duration = Duration::from_millis(400);

/// What interrupts the wait between two ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A signal that asks the service to stop: the first one drains, the second one cancels.
    Stop,
    /// A run of this service ended.
    RunEnded(i64),
}

/// Settings of a service.
#[derive(Clone, Debug)]
pub struct Options {
    /// Maximum number of runs at once.
    pub workers: usize,
    /// How long running work may go on after a request to stop.
    pub grace: Duration,
    /// Zone of schedules without one.
    pub zone: Tz,
    /// A text file of schedules that is read at start and whenever it changes.
    pub import: Option<PathBuf>,
    /// A settings file that is read at start and whenever it changes.
    pub config: Option<PathBuf>,
    /// How often each maintenance task runs.
    pub maintenance: Intervals,
    /// Folder that restore drills write to; `None` for one below the archive folder.
    pub scratch: Option<PathBuf>,
}

/// A process that serves a database.
pub struct Service {
    runner: Runner,
    options: Options,
    active: ActiveRuns,
    /// Runs whose recovery failed, and when by the monotonic clock: they are not tried again at once.
    failed_recoveries: Arc<Mutex<HashMap<i64, Duration>>>,
    /// Where threads report that they ended; `None` unless [`Service::serve`] runs.
    background: Option<Sender<Event>>,
    watch: Watch,
    last_tick: Option<Timestamp>,
    followed_files: Vec<FollowedFile>,
    /// Whether a followed file was not read yet since the start, so that it is unknown which schedules it still has:
    /// none is run until then.
    awaits_files: bool,
    /// When the first tick was, by the monotonic clock.
    first_tick_at: Option<Duration>,
    stop: Option<StopRequest>,
    maintenance: Option<BackgroundThread>,
    maintenance_pace: MaintenancePace,
    /// Undoes what runs have begun.
    settling: SettlingThreads,
    /// Why the last tick could not undo what runs have begun.
    duties_trouble: Option<String>,
}

impl Service {
    /// Registers this process as a service of the database.
    ///
    /// Errors: `Busy`, with the process number of the other service, unless `join`.
    pub fn register(runner: Runner, options: Options, join: bool) -> Result<Service> {
        let home = Arc::clone(&runner.home);
        let _registration = Registration::lock(&home.workers(), home.folder_mode())?;
        if let (Some(other), false) = (live_services(&home, &runner.store)?.first(), join) {
            return Err(Error::busy(format!("the service already runs as process {}", other.pid))
                .hint("stop it with `backup-manager stop`, or add workers to it with `serve --join`"));
        }
        let row = &runner.row;
        runner.store.add_worker(row.uuid, Role::Service, row.pid, &row.host, runner.clock.now())?;
        let watch = runner.store.watch()?;
        let followed_files = followed_files(&options);
        let mut service = Service {
            awaits_files: !followed_files.is_empty(),
            followed_files,
            first_tick_at: None,
            runner,
            options,
            active: ActiveRuns::default(),
            failed_recoveries: Arc::default(),
            background: None,
            watch,
            last_tick: None,
            stop: None,
            maintenance: None,
            maintenance_pace: MaintenancePace::default(),
            settling: SettlingThreads::default(),
            duties_trouble: None,
        };
        let grace_ms = u64::try_from(service.options.grace.as_millis()).ok();
        let follows_text_file = service.options.import.is_some();
        service.update_heartbeat(|heartbeat| {
            heartbeat.grace_ms = grace_ms;
            heartbeat.follows_text_file = follows_text_file;
        });
        service.recompute_for_zone()?;
        service.forget_errors_of_other_files()?;
        match archive_folder::reserve_run_numbers(&service.runner.home, &service.runner.store) {
            Ok(unknown) => unknown.error(&service.runner.home).iter().for_each(|error| log::error!("{error}")),
            Err(error) => log::warn!("the archive folder was not compared with the database: {error}"),
        }
        Ok(service)
    }

    /// Removes the recorded errors of files that are followed no more.
    fn forget_errors_of_other_files(&self) -> Result<()> {
        let (store, options) = (&self.runner.store, &self.options);
        if options.import.is_none() {
            store.set_import_error(None)?;
        }
        if options.config.is_none() { store.set_config_error(None) } else { Ok(()) }
    }

    /// Recomputes the next occurrences of schedules without a zone. A command that changed one while no service ran
    /// computed them in its own zone, so they may be wrong although the service's zone is the last one's.
    fn recompute_for_zone(&mut self) -> Result<()> {
        let store = &self.runner.store;
        let name = self.options.zone.name();
        for row in store.schedules()?.iter().filter(|row| row.schedule.zone.is_none()) {
            let next_due = row.schedule.next_after(self.options.zone, row.watermark.handled_until);
            if next_due != row.watermark.next_due {
                store.move_watermark(row.id, row.watermark, Watermark { next_due, ..row.watermark })?;
            }
        }
        if store.service_zone()?.as_deref() != Some(name) {
            store.set_service_zone(name)?;
        }
        Ok(())
    }

    /// Removes the registration; the database holds nothing of this service afterwards.
    pub fn unregister(&mut self) -> Result<()> {
        self.runner.store.remove_worker(self.runner.row.uuid)
    }

    /// Writes a change of the heartbeat. A heartbeat only serves `status`, so a failure is logged and work goes on.
    fn update_heartbeat(&self, change: impl FnOnce(&mut Heartbeat)) {
        if let Err(error) = self.runner.worker.update(change) {
            log::warn!("{error}");
        }
    }

    fn zone(&self, row: &ScheduleRow) -> Tz {
        row.schedule.zone.unwrap_or(self.options.zone)
    }
}

fn followed_files(options: &Options) -> Vec<FollowedFile> {
    let beside_text_file = options.import.is_some();
    let text = options.import.clone().map(|path| FollowedFile::new(path, FollowedKind::Text));
    let settings =
        options.config.clone().map(|path| FollowedFile::new(path, FollowedKind::Settings { beside_text_file }));
    text.into_iter().chain(settings).collect()
}

/// Locks a mutex. What these mutexes protect is valid after each statement, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

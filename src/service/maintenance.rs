//! Maintenance tasks of a service, on one thread beside the runs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::run_log::MaintenanceLog;
use super::{Options, Service, lock};
use crate::backup::Runner;
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::maintenance::{self, MaintenanceContext, MaintenanceReport};

/// How often the service checks whether a maintenance task is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// After how long it checks again when maintenance failed for the first time in a row.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// A thread that works beside the runs, and the token that stops it.
pub(super) struct BackgroundThread {
    pub(super) cancel: Arc<CancelToken>,
    pub(super) thread: std::thread::JoinHandle<()>,
}

/// When maintenance was last started and how often in a row it failed since. Clones share everything.
#[derive(Clone, Default)]
pub(super) struct MaintenancePace(Arc<Mutex<Pace>>);

#[derive(Clone, Copy, Default)]
struct Pace {
    /// By the monotonic clock.
    started_at: Option<Duration>,
    failures: u32,
}

impl MaintenancePace {
    /// Returns whether the next check is due: an hour after the last one, a minute after the first failure in a row.
    fn is_due(&self, now: Duration) -> bool {
        let Pace { started_at, failures } = *lock(&self.0);
        let interval = if failures == 1 { FIRST_RETRY_INTERVAL } else { CHECK_INTERVAL };
        started_at.is_none_or(|at| now.saturating_sub(at) >= interval)
    }

    fn has_failed(&self) -> bool {
        lock(&self.0).failures > 0
    }

    fn record_start(&self, now: Duration) {
        lock(&self.0).started_at = Some(now);
    }

    fn record_result(&self, result: &Result<MaintenanceReport>) {
        let is_done = result.as_ref().is_ok_and(|report| report.failed.is_empty());
        let mut pace = lock(&self.0);
        pace.failures = if is_done { 0 } else { pace.failures.saturating_add(1) };
    }
}

impl Service {
    /// Runs the maintenance tasks that are due on this thread: see [`maintenance::run_maintenance`].
    pub fn run_maintenance(&self, cancel: &CancelToken) -> Result<MaintenanceReport> {
        self.maintenance_pace.record_start(self.runner.clock.monotonic());
        let result = run_maintenance(&self.runner, &self.options, cancel);
        self.maintenance_pace.record_result(&result);
        result
    }

    /// Returns whether maintenance is to be started: each hour, a minute after it failed for the first time in a row,
    /// and at once when the database has its first schedule and no copy since.
    pub fn is_maintenance_due(&self) -> bool {
        let Runner { store, clock, .. } = &self.runner;
        // A database that cannot be read is reported by the tick.
        let is_first = || store.lacks_copy_of_first_schedule(clock.now()).unwrap_or(false);
        self.maintenance_pace.is_due(clock.monotonic()) || !self.maintenance_pace.has_failed() && is_first()
    }

    /// Starts the maintenance thread if it is due and none runs. It works beside the runs, one task at a time.
    pub(super) fn start_maintenance(&mut self) {
        let is_busy = self.maintenance.as_ref().is_some_and(|maintenance| !maintenance.thread.is_finished());
        if self.stop.is_some() || is_busy || !self.is_maintenance_due() {
            return;
        }
        self.maintenance_pace.record_start(self.runner.clock.monotonic());
        let (runner, options, cancel) = (self.runner.clone(), self.options.clone(), Arc::new(CancelToken::new()));
        let (thread_cancel, pace) = (Arc::clone(&cancel), self.maintenance_pace.clone());
        let thread = std::thread::Builder::new().name("maintenance".to_owned()).spawn(move || {
            let result = run_maintenance(&runner, &options, &thread_cancel);
            pace.record_result(&result);
            if let Err(error) = result {
                log::warn!("maintenance failed: {error}");
            }
        });
        match thread {
            Ok(thread) => self.maintenance = Some(BackgroundThread { cancel, thread }),
            Err(error) => log::error!("the maintenance thread could not be started: {error}"),
        }
    }
}

/// Uses one encoder thread only: runs come first.
fn run_maintenance(runner: &Runner, options: &Options, cancel: &CancelToken) -> Result<MaintenanceReport> {
    let context = MaintenanceContext {
        home: &runner.home,
        store: &runner.store,
        clock: &*runner.clock,
        observer: &MaintenanceLog,
        threads: 1,
        scratch: options.scratch.as_deref(),
        cancel,
    };
    maintenance::run_maintenance(&context, options.maintenance)
}

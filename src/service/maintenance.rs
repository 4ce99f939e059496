//! Maintenance tasks of a service, on one thread beside the runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::runs::LogObserver;
use super::{Options, Service};
use crate::backup::Runner;
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::maintenance::{self, MaintenanceContext, MaintenanceReport};

/// How often the service checks whether a maintenance task is due.
const MAINTENANCE_CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// After how long it checks again when maintenance failed for the first time in a row.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The thread that runs maintenance tasks, and the token that stops it.
pub(super) struct MaintenanceThread {
    pub(super) cancel: Arc<CancelToken>,
    pub(super) thread: std::thread::JoinHandle<()>,
}

impl Service {
    /// Runs the maintenance tasks that are due on this thread: see [`maintenance::run_maintenance`].
    pub fn run_maintenance(&self, cancel: &CancelToken) -> Result<MaintenanceReport> {
        run_maintenance(&self.runner, &self.options, cancel)
    }

    /// Starts the maintenance thread once per [`MAINTENANCE_CHECK_INTERVAL`] unless one runs. It works beside the
    /// runs, one task at a time.
    pub(super) fn start_maintenance(&mut self) {
        let now = self.runner.clock.monotonic();
        let interval = match self.maintenance_failures.load(Ordering::SeqCst) {
            1 => FIRST_RETRY_INTERVAL,
            _ => MAINTENANCE_CHECK_INTERVAL,
        };
        let is_time = self.maintenance_started_at.is_none_or(|at| now.saturating_sub(at) >= interval);
        let is_busy = self.maintenance.as_ref().is_some_and(|maintenance| !maintenance.thread.is_finished());
        if self.stop.is_some() || !is_time || is_busy {
            return;
        }
        self.maintenance_started_at = Some(now);
        let (runner, options, cancel) = (self.runner.clone(), self.options.clone(), Arc::new(CancelToken::new()));
        let (thread_cancel, failures) = (Arc::clone(&cancel), Arc::clone(&self.maintenance_failures));
        let thread = std::thread::Builder::new().name("maintenance".to_owned()).spawn(move || {
            let result = run_maintenance(&runner, &options, &thread_cancel);
            if result.as_ref().is_ok_and(|report| !report.copy_failed) {
                failures.store(0, Ordering::SeqCst);
            } else {
                failures.fetch_add(1, Ordering::SeqCst);
            }
            if let Err(error) = result {
                log::warn!("maintenance failed: {error}");
            }
        });
        match thread {
            Ok(thread) => self.maintenance = Some(MaintenanceThread { cancel, thread }),
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
        observer: &LogObserver,
        threads: 1,
        scratch: options.scratch.as_deref(),
        cancel,
    };
    maintenance::run_maintenance(&context, options.maintenance)
}

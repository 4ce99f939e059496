//! What the service does beside its loop: each run, each take-over and the work of a day on a thread of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::Sender;

use super::{Event, Options};
use crate::backup::{self, Ended, OrphanedRun, RunContext, Runner};
use crate::cancel::CancelToken;
use crate::error::{ErrorKind, Result};
use crate::maintenance;
use crate::progress::{Observer, Problem, Progress};
use crate::store::{Claim, Intent, RunState};

/// The work of a day takes one thread: runs come first.
pub(super) fn run_maintenance(
    runner: &Runner,
    options: &Options,
    cancel: &CancelToken,
) -> Result<maintenance::MaintenanceReport> {
    let context = maintenance::MaintenanceContext {
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

pub(super) fn carry_out(
    runner: &Runner,
    active: &Mutex<HashMap<i64, Arc<CancelToken>>>,
    claim: Claim,
    intent: &Intent,
    cancel: &CancelToken,
) -> Result<Ended> {
    let run = claim.run();
    log::info!("run @{run}: started, attempt {}", claim.attempt());
    let context = RunContext { cancel, observer: &LogObserver, foreground: false };
    let ended = runner.execute(claim, intent, &context);
    match &ended {
        Ok(Ended { state: RunState::Succeeded, .. }) => log::info!("run @{run}: succeeded"),
        Ok(Ended { state: RunState::Incomplete, .. }) => log::warn!("run @{run}: done, but incomplete"),
        Ok(Ended { state, error, .. }) => {
            let reason = error.as_ref().map(ToString::to_string).unwrap_or_default();
            log::error!("run @{run}: {}: {reason}", state.as_str());
        }
        Err(error) if error.kind() == ErrorKind::Fenced => log::warn!("run @{run}: {error}"),
        Err(error) => log::error!("run @{run}: its end was not written: {error}"),
    }
    lock(active).remove(&run);
    ended
}

pub(super) fn recover_run(runner: &Runner, taken: OrphanedRun, stuck: &Mutex<HashMap<i64, Duration>>) {
    let run = taken.run();
    let cancel = CancelToken::default();
    let context = RunContext { cancel: &cancel, observer: &LogObserver, foreground: false };
    match backup::recover_run(runner, taken, &context) {
        Ok(state) => log::info!("run @{run}: put right, now {}", state.as_str()),
        Err(error) => {
            log::error!("run @{run}: cannot be put right yet: {error}");
            lock(stuck).insert(run, runner.clock.monotonic());
        }
    }
}

/// Starts a thread for a run. Without one the work is dropped, and with it the run is no longer active: the next round
/// takes it over.
pub(super) fn spawn(run: i64, work: impl FnOnce() + Send + 'static) -> bool {
    let spawned = std::thread::Builder::new().name(format!("run {run}")).spawn(work);
    if let Err(error) = &spawned {
        log::error!("run @{run}: no thread could be started: {error}");
    }
    spawned.is_ok()
}

/// Tells that a run's thread is over, however it ended.
pub(super) struct EndsRun {
    pub(super) run: i64,
    pub(super) active: Arc<Mutex<HashMap<i64, Arc<CancelToken>>>>,
    pub(super) sender: Option<Sender<Event>>,
}

impl Drop for EndsRun {
    fn drop(&mut self) {
        lock(&self.active).remove(&self.run);
        if let Some(sender) = &self.sender {
            let _ = sender.send(Event::RunEnded(self.run));
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Writes what runs tell into the log.
pub(super) struct LogObserver;

impl Observer for LogObserver {
    fn progress(&self, _: &Progress) {}

    fn problem(&self, problem: &Problem) {
        log::warn!("{}: {} ({})", String::from_utf8_lossy(&problem.path), problem.reason, problem.kind.as_str());
    }

    fn note(&self, text: &str) {
        log::info!("{text}");
    }
}

//! Runs of a service: claimed by the loop, each executed or recovered on a thread of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam_channel::Sender;

use super::run_log::RunLog;
use super::{Event, Service, lock};
use crate::backup::{self, OrphanedRun, RunContext, RunOutcome, Runner};
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::store::{Claim, DutyKind, Intent, Store};

/// The runs that this process executes or recovers, each with the token that cancels it.
#[derive(Clone, Default)]
pub(super) struct ActiveRuns(Arc<Mutex<HashMap<i64, Arc<CancelToken>>>>);

impl ActiveRuns {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<i64, Arc<CancelToken>>> {
        lock(&self.0)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn insert(&self, run: i64) {
        self.lock().insert(run, Arc::default());
    }

    fn remove(&self, run: i64) {
        self.lock().remove(&run);
    }

    pub(super) fn cancel_token(&self, run: i64) -> Arc<CancelToken> {
        self.lock().get(&run).cloned().unwrap_or_default()
    }

    /// Asks a run to stop and to return to the queue.
    fn cancel_and_requeue_one(&self, run: i64) {
        if let Some(cancel) = self.lock().get(&run) {
            cancel.cancel_and_requeue();
        }
    }

    /// Asks all runs to stop and to return to the queue (I10).
    pub(super) fn cancel_and_requeue(&self) {
        self.lock().values().for_each(|cancel| cancel.cancel_and_requeue());
    }
}

impl Service {
    /// Claims the run that has waited longest; `None` if there is none, the service stops or has not read its text file
    /// yet, or all its workers are busy.
    pub fn claim(&self) -> Result<Option<(Claim, Intent)>> {
        if self.stop.is_some() || self.awaits_files || self.active.len() >= self.options.workers {
            return Ok(None);
        }
        let claimed = self.runner.store.claim_next(&self.runner.row, self.runner.clock.now())?;
        if let Some((claim, _)) = &claimed {
            self.active.insert(claim.run());
        }
        Ok(claimed)
    }

    /// Executes a claimed run on this thread.
    pub fn execute(&self, claim: Claim, intent: &Intent) -> Result<RunOutcome> {
        let cancel = self.active.cancel_token(claim.run());
        execute_run(&self.runner, &self.active, claim, intent, &cancel)
    }

    /// Asks the runs to stop that keep containers stopped, so that these are started within the grace period.
    pub(super) fn cancel_runs_with_stopped_containers(&self) {
        let open = self.runner.store.open_duties().unwrap_or_default();
        let own = Some(self.runner.row.uuid);
        let starts = open.iter().filter(|duty| duty.kind == DutyKind::Start && duty.worker == own);
        starts.for_each(|duty| self.active.cancel_and_requeue_one(duty.run));
    }

    /// Claims runs and starts a thread for each, until no run waits or all workers are busy.
    pub(super) fn start_runs(&self, events: &Sender<Event>) {
        loop {
            let (claim, intent) = match self.claim() {
                Ok(Some(claimed)) => claimed,
                Ok(None) => return,
                Err(error) => {
                    log::error!("no run could be claimed: {error}");
                    return;
                }
            };
            let run = claim.run();
            let (runner, active) = (self.runner.clone(), self.active.clone());
            let cancel = self.active.cancel_token(run);
            let guard = RunEndGuard { run, active: active.clone(), events: Some(events.clone()) };
            let is_started = spawn_for_run(&self.runner.store, run, move || {
                // A panic ends the thread, not the run: the guard makes it inactive, and the next tick recovers it
                // (I6).
                let _guard = guard;
                let _ = execute_run(&runner, &active, claim, &intent, &cancel);
            });
            if !is_started {
                return;
            }
        }
    }
}

fn execute_run(
    runner: &Runner,
    active: &ActiveRuns,
    claim: Claim,
    intent: &Intent,
    cancel: &CancelToken,
) -> Result<RunOutcome> {
    let run = claim.run();
    let log = RunLog::new(&runner.store, run);
    log.started(claim.attempt());
    let context = RunContext { cancel, observer: &log, is_foreground: false };
    let ended = runner.execute(claim, intent, &context);
    log.ended(&ended);
    active.remove(run);
    ended
}

/// Recovers an orphaned run. A failure is recorded in `failed_recoveries`, so that the next ticks leave the run alone.
pub(super) fn recover_run(
    runner: &Runner,
    orphan: OrphanedRun,
    cancel: &CancelToken,
    failed_recoveries: &Mutex<HashMap<i64, Duration>>,
) {
    let run = orphan.run();
    let log = RunLog::new(&runner.store, run);
    let context = RunContext { cancel, observer: &log, is_foreground: false };
    let recovered = backup::recover_run(runner, orphan, &context);
    log.recovered(&recovered);
    if recovered.is_err() {
        lock(failed_recoveries).insert(run, runner.clock.monotonic());
    }
}

/// Starts a thread for a run; returns whether it started. If not, `work` and its [`RunEndGuard`] are dropped, so the
/// run is no longer active and the next tick recovers it.
pub(super) fn spawn_for_run(store: &Store, run: i64, work: impl FnOnce() + Send + 'static) -> bool {
    let spawned = std::thread::Builder::new().name(format!("run {run}")).spawn(work);
    if let Err(error) = &spawned {
        RunLog::new(store, run).no_thread(error);
    }
    spawned.is_ok()
}

/// Makes a run inactive and reports [`Event::RunEnded`] when its thread ends, by a panic too.
pub(super) struct RunEndGuard {
    pub(super) run: i64,
    pub(super) active: ActiveRuns,
    pub(super) events: Option<Sender<Event>>,
}

impl Drop for RunEndGuard {
    fn drop(&mut self) {
        self.active.remove(self.run);
        if let Some(events) = &self.events {
            let _ = events.send(Event::RunEnded(self.run));
        }
    }
}

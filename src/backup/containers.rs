//! Containers around the reading of a run: commands in them, stopping them, and the duties by which they are started
//! again, whatever happens (I16).

mod exec;
mod settle;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::duties::HeldDuty;
use super::monitor::RunContext;
use super::{Failure, Runner};
use crate::cancel::CancelToken;
use crate::containers::{
    self, Change, Choice, ChosenContainer, DEFAULT_STOP_LABEL, Endpoint, Engine, Own, Purpose, StoppedContainer,
    Stopping, TimeLimits,
};
use crate::error::{Error, Result};
use crate::liveness::ContainerLock;
use crate::progress::Observer;
use crate::schedule::Hooks;
use crate::store::{Claim, DutyKind, NewDuty, ScheduleRow};
use crate::words::shell_word;

/// How often it is checked whether containers were down for too long.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The containers of a run, chosen and not touched yet.
pub(super) struct RunContainers {
    engine: Engine,
    choice: Choice,
    stop_label: String,
    time_limit: Duration,
    max_downtime: Option<Duration>,
    /// When the first container was stopped, by the monotonic clock in milliseconds; negative before.
    first_stop_ms: AtomicI64,
    /// What is to be undone and was not yet, in the order in which it was planned.
    duties: Mutex<Vec<HeldDuty>>,
}

/// Connects to the engine that the environment names.
pub(super) fn connect(runner: &Runner) -> Result<Engine> {
    Engine::connect(Endpoint::from_environment()?, TimeLimits::default(), runner.clock.clone())
}

impl Runner {
    /// Chooses the containers of a run; `None` if its schedule leaves containers alone.
    ///
    /// Errors: the engine does not answer, or a container must not be stopped. Nothing was touched then.
    pub(super) fn choose_containers(
        &self,
        row: &ScheduleRow,
        hooks: &Hooks,
        observer: &dyn Observer,
    ) -> std::result::Result<Option<RunContainers>, Failure> {
        let options = &hooks.options;
        if !options.containers {
            return Ok(None);
        }
        let engine = connect(self).map_err(Failure::retryable)?;
        let own = Own::find(&engine).map_err(Failure::retryable)?;
        let stop_label = options.stop_label.clone().unwrap_or_else(|| DEFAULT_STOP_LABEL.to_owned());
        let source = self.home.source_path(&row.schedule.source);
        let name = row.schedule.name.as_str();
        let purpose = Purpose { schedule: name, source: &source, stop_label: &stop_label };
        let open = self.store.open_duties().map_err(Failure::retryable)?;
        let starts = open.into_iter().filter(|duty| duty.kind == DutyKind::Start);
        let held: BTreeSet<String> = starts.filter_map(|duty| duty.shared_key).collect();
        // A label that is refused now is refused the next time, too.
        let choice = containers::choose(&engine, &own, &purpose, &held).map_err(Failure::permanent)?;
        choice.notes.iter().for_each(|note| observer.note(note));
        let (time_limit, max_downtime) = (options.time_limit, options.max_downtime);
        let (first_stop_ms, duties) = (AtomicI64::new(-1), Mutex::default());
        Ok(Some(RunContainers { engine, choice, stop_label, time_limit, max_downtime, first_stop_ms, duties }))
    }
}

impl RunContainers {
    /// Stops the containers, those that depend on others first. Each stop has a duty that is committed before it.
    ///
    /// Errors: a container could not be stopped, or the run was asked to end. What was stopped has its duty.
    pub(super) fn stop(
        &self,
        runner: &Runner,
        claim: &Claim,
        context: &RunContext<'_>,
    ) -> std::result::Result<(), Failure> {
        let mut stopped = Vec::new();
        let chosen = self.choice.containers.iter().filter(|chosen| chosen.stopping != Stopping::No);
        let result = chosen.clone().try_for_each(|chosen| {
            context.cancel.check("the backup was cancelled before its containers were stopped")?;
            if self.stop_one(runner, claim, chosen)? {
                stopped.push((chosen.container.name(), chosen.stopping));
            }
            Ok(())
        });
        self.report(claim, &stopped);
        result.map_err(Failure::retryable)
    }

    /// Logs what was stopped, and what a user does if this program does not come back.
    fn report(&self, claim: &Claim, stopped: &[(&str, Stopping)]) {
        let for_good = |wanted: bool| {
            let names = stopped.iter().filter(move |(_, stopping)| (*stopping == Stopping::ForGood) == wanted);
            names.map(|(name, _)| shell_word(name)).collect::<Vec<_>>()
        };
        let (kept, mut restarted) = (for_good(true), for_good(false));
        if !kept.is_empty() {
            log::warn!(
                "run @{}: stopped {} and does not start it again, as its label says",
                claim.run(),
                kept.join(", ")
            );
        }
        if !restarted.is_empty() {
            let names = restarted.join(", ");
            // What others depend on is started first.
            restarted.reverse();
            let words = restarted.join(" ");
            log::warn!(
                "run @{}: stopped {names}; if this program does not come back: docker start {words}",
                claim.run()
            );
        }
    }

    /// Stops a container; returns whether this run did it, and not somebody else.
    fn stop_one(&self, runner: &Runner, claim: &Claim, chosen: &ChosenContainer) -> Result<bool> {
        let _lock = ContainerLock::wait(&runner.home)?;
        // A worker that slept until its run was taken over stops nothing (I4).
        runner.store.check_claim(claim)?;
        // It may have changed since it was chosen.
        let Some(container) = self.engine.inspect(&chosen.container.id)? else { return Ok(false) };
        let other = other_duty(runner, &container.id)?;
        let is_active = container.state.running || container.state.restarting;
        if container.state.paused || !is_active && other.is_none() {
            return Ok(false);
        }
        let now = runner.clock.now();
        let before = match other {
            // Stopped by another run: what is known of that holds for this run.
            Some(other) if !is_active => other,
            _ => StoppedContainer::before_stop(&container, now),
        };
        let first = i64::try_from(runner.clock.monotonic().as_millis()).unwrap_or(i64::MAX);
        if chosen.stopping == Stopping::ForGood {
            return self.engine.stop(&container).map(|change| change == Change::Made).map_err(|failed| failed.error);
        }
        let mut duty = plan(runner, claim, &before)?;
        let _ = self.first_stop_ms.compare_exchange(-1, first, Ordering::SeqCst, Ordering::SeqCst);
        let known = match self.engine.stop(&container) {
            Ok(Change::Made) => Ok((Some(before.after_stop(&self.engine)), true)),
            Ok(Change::WasSo) if !is_active => Ok((Some(before), false)),
            // Somebody else stopped or removed it just now: it is theirs.
            Ok(Change::WasSo | Change::NotFound) => return runner.store.settle_duty(&duty).map(|()| false),
            Err(failed) if failed.is_answered => Err((Some(before.after_stop(&self.engine)), failed.error)),
            Err(failed) => Err((None, failed.error)),
        };
        let (Ok((subject, _)) | Err((subject, _))) = &known;
        let recorded = subject.as_ref().map_or(Ok(()), |subject| duty.mark_done(runner, &to_json(subject)?));
        self.keep(duty);
        let is_ours = known.map(|(_, is_ours)| is_ours).map_err(|(_, error)| error)?;
        recorded.map(|()| is_ours)
    }

    fn duties(&self) -> MutexGuard<'_, Vec<HeldDuty>> {
        self.duties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, duty: HeldDuty) {
        self.duties().push(duty);
    }

    /// Takes the duties of a kind that are not settled yet.
    fn take(&self, kind: DutyKind) -> Vec<HeldDuty> {
        self.duties().extract_if(.., |duty| duty.kind == kind).collect()
    }

    /// Starts the containers again, those on which others depend first. What fails is tried again by others.
    pub(super) fn start_again(&self, runner: &Runner) {
        for duty in self.take(DutyKind::Start).iter().rev() {
            if let Err(error) = runner.settle_container_duty(duty, &CancelToken::new()) {
                log::error!("{}: run @{}: a container is started later: {error}", duty.schedule_name, duty.run);
            }
        }
    }

    /// Executes the commands after reading; returns why one of them did not succeed.
    pub(super) fn exec_after(&self, runner: &Runner, context: &RunContext<'_>) -> Option<String> {
        let mut problems = Vec::new();
        for duty in self.take(DutyKind::ExecAfter) {
            let settled = runner.settle_container_duty(&duty, context.cancel);
            problems.extend(settled.unwrap_or_else(|error| Some(error.to_string())));
        }
        problems.iter().for_each(|problem| context.observer.note(problem));
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    /// Does `work`, and meanwhile starts the containers if they are down for longer than the schedule allows. Returns
    /// the reason for which the archive is incomplete then.
    pub(super) fn watch_downtime<T>(
        &self,
        runner: &Runner,
        observer: &dyn Observer,
        work: impl FnOnce() -> T,
    ) -> (T, Option<String>) {
        let Some(limit) = self.max_downtime else { return (work(), None) };
        let done = CancelToken::new();
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| self.start_when_over(runner, limit, &done));
            let guard = CancelOnDrop(&done);
            let result = work();
            drop(guard);
            // A watcher that panicked has started nothing; what follows reading does.
            let was_over = watching.join().unwrap_or(false);
            let reason = was_over.then(|| {
                let seconds = limit.as_secs();
                format!("the containers were started after {seconds} s (--max-downtime), before everything was read")
            });
            reason.iter().for_each(|reason| observer.note(reason));
            (result, reason)
        })
    }

    /// Waits for the end of reading, or for the end of the time for which containers may be down: starts them then, and
    /// returns true.
    fn start_when_over(&self, runner: &Runner, limit: Duration, done: &CancelToken) -> bool {
        loop {
            // Nothing is stopped before the first stop.
            let first_ms = u64::try_from(self.first_stop_ms.load(Ordering::SeqCst)).ok();
            let over_at = first_ms.map(|first_ms| Duration::from_millis(first_ms).saturating_add(limit));
            if over_at.is_some_and(|over_at| runner.clock.monotonic() >= over_at) {
                break;
            }
            if done.is_cancelled() {
                return false;
            }
            done.wait(POLL_INTERVAL);
        }
        self.start_again(runner);
        true
    }
}

/// Ends a wait also if the work panics.
struct CancelOnDrop<'a>(&'a CancelToken);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Returns what another run knows of a container that it has stopped and will start.
fn other_duty(runner: &Runner, id: &str) -> Result<Option<StoppedContainer>> {
    let open = runner.store.open_duties()?;
    let mut others = open.iter().filter(|duty| duty.kind == DutyKind::Start && duty.shared_key.as_deref() == Some(id));
    Ok(others.next().and_then(|duty| serde_json::from_str(&duty.subject).ok()))
}

fn plan(runner: &Runner, claim: &Claim, stopped: &StoppedContainer) -> Result<HeldDuty> {
    let subject = to_json(stopped)?;
    let new = NewDuty { kind: DutyKind::Start, subject: &subject, shared_key: Some(&stopped.identity.id) };
    runner.plan_duty(claim, &new)
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::failed("cannot describe a container").because(e))
}

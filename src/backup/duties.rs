//! Settling what runs have begun: `--after` is executed whenever `--before` was to be, whatever happened since (I16).
//!
//! The duty is committed before `--before` starts. It is settled by the run itself, by recovery of the run, at the
//! start of a service and of each `run`, and in the ticks of a service; each time by the commands that the schedule has
//! then, so that one that fails can be corrected. A successful `--after` settles all earlier ones of its schedule.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::commands::facts_of;
use super::{RunContext, Runner};
use crate::approval;
use crate::clock::Timestamp;
use crate::error::{ErrorKind, Result};
use crate::hooks::{self, HookState, RunFacts, Sink};
use crate::liveness;
use crate::owner;
use crate::schedule::{CommandKind, Hooks};
use crate::store::{Claim, Duty, DutyKind, NewDuty, Run, RunState, ScheduleRow};

/// What starts containers again. It never waits for commands.
pub const START_DUTIES: &[DutyKind] = &[DutyKind::Start];
/// What executes commands.
pub const COMMAND_DUTIES: &[DutyKind] = &[DutyKind::After, DutyKind::ExecAfter];

/// Pauses after a try that failed, in minutes; the last one repeats.
const RETRY_MINUTES: [u64; 6] = [1, 2, 5, 10, 30, 60];
/// How long `--after` may still run once its process is asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// The duties on which threads of this process work, by worker.
static HELD: Mutex<BTreeSet<(Uuid, i64)>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<(Uuid, i64)>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A duty on which this thread works, until it is dropped.
pub(super) struct HeldDuty {
    duty: Duty,
    worker: Uuid,
}

impl HeldDuty {
    /// Records that its act was done, with what is known of it since.
    pub(super) fn mark_done(&mut self, runner: &Runner, subject: &str) -> Result<()> {
        self.duty = runner.store.mark_duty_done(&self.duty, subject)?;
        Ok(())
    }
}

impl Deref for HeldDuty {
    type Target = Duty;

    fn deref(&self) -> &Duty {
        &self.duty
    }
}

impl Drop for HeldDuty {
    fn drop(&mut self) {
        held().remove(&(self.worker, self.duty.id));
    }
}

/// What the duty `after` records in its row.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct AfterSubject {
    /// `--after` was started.
    is_started: bool,
}

impl Runner {
    /// Plans a duty of a claimed run.
    pub(super) fn plan_duty(&self, claim: &Claim, new: &NewDuty<'_>) -> Result<HeldDuty> {
        let mut held = held();
        let duty = self.store.plan_duty(claim, new, self.clock.now())?;
        held.insert((self.row.uuid, duty.id));
        Ok(HeldDuty { duty, worker: self.row.uuid })
    }

    /// Takes over an open duty; `None` if a live process works on it, or it changed.
    pub(super) fn take_duty(&self, seen: &Duty) -> Result<Option<HeldDuty>> {
        let own = self.row.uuid;
        let mut held = held();
        let is_worked_on = match seen.worker {
            Some(worker) if worker == own => held.contains(&(own, seen.id)),
            Some(worker) => liveness::is_alive(&self.home.workers(), &worker),
            None => false,
        };
        if is_worked_on {
            return Ok(None);
        }
        let taken = self.store.take_duty(seen, own)?;
        Ok(taken.map(|duty| {
            held.insert((own, duty.id));
            HeldDuty { duty, worker: own }
        }))
    }

    /// Plans `--after`, before anything that it undoes; `None` if the schedule has none.
    pub(super) fn plan_after(&self, claim: &Claim, hooks: &Hooks) -> Result<Option<HeldDuty>> {
        if !hooks.commands.contains_key(&CommandKind::After) {
            return Ok(None);
        }
        let new = NewDuty { kind: DutyKind::After, subject: "{}", shared_key: None };
        self.plan_duty(claim, &new).map(Some)
    }

    /// Executes `--after` and settles its duty, with all earlier ones of its schedule. Returns why it did not succeed;
    /// then it is tried again later.
    ///
    /// Errors: of the database, and `Fenced` if another worker has the duty; it is still open then.
    pub(super) fn settle_after(
        &self,
        duty: &HeldDuty,
        hooks: &Hooks,
        facts: &RunFacts<'_>,
        context: &RunContext<'_>,
    ) -> Result<Option<String>> {
        let subject: AfterSubject = serde_json::from_str(&duty.subject).unwrap_or_default();
        let started = serde_json::json!(AfterSubject { is_started: true }).to_string();
        // Also the fence: whoever lost the duty starts nothing.
        match self.store.mark_duty_done(duty, &started) {
            // It undoes what fills the disk, perhaps.
            Err(error) if error.kind() == ErrorKind::DiskFull => log::warn!("run @{}: {error}", duty.run),
            marked => drop(marked?),
        }
        let facts = RunFacts { is_again: subject.is_started, attempt: duty.attempt, ..facts.clone() };
        let is_cancelled = self.stop_after_grace(context);
        let outcome = self.run_command(CommandKind::After, hooks, &facts, Sink::Keep, &is_cancelled);
        let problem = match outcome {
            Ok(None) => None,
            Ok(Some(outcome)) => outcome.problem(CommandKind::After.option()),
            Err(error) => Some(error.to_string()),
        };
        match &problem {
            Some(problem) => self.postpone(duty, problem)?,
            None => {
                self.store.settle_duty(duty)?;
                self.settle_earlier_ones(duty)?;
            }
        }
        Ok(problem)
    }

    fn postpone(&self, duty: &HeldDuty, problem: &str) -> Result<()> {
        let tries = usize::try_from(duty.tries).unwrap_or(usize::MAX).min(RETRY_MINUTES.len() - 1);
        let pause = Duration::from_secs(60 * RETRY_MINUTES[tries]);
        log::warn!("{}: run @{}: {problem}; it is tried again", duty.schedule_name, duty.run);
        self.store.postpone_duty(duty, problem, self.clock.now().plus(pause))
    }

    /// Settles the duties of earlier runs of a schedule, whose `--after` has now been executed.
    fn settle_earlier_ones(&self, done: &HeldDuty) -> Result<()> {
        for duty in self.open_duties_of(&done.schedule_name)? {
            if duty.kind == DutyKind::After
                && duty.id < done.id
                && let Some(taken) = self.take_duty(&duty)?
            {
                self.store.settle_duty(&taken)?;
            }
        }
        Ok(())
    }

    /// Returns the open duties of a schedule, in the order in which they are settled.
    fn open_duties_of(&self, schedule: &str) -> Result<Vec<Duty>> {
        let mut open = self.store.open_duties()?;
        open.retain(|duty| duty.schedule_name == schedule);
        Ok(in_settling_order(open))
    }

    /// Returns whether `--after` is to be ended: some time after its process was asked to stop. What cancels the run
    /// itself does not end it, since it undoes what the run began.
    fn stop_after_grace(&self, context: &RunContext<'_>) -> impl Fn() -> bool {
        let since = Cell::new(None);
        move || {
            let now = self.clock.monotonic();
            let is_stopping = context.cancel.should_requeue();
            is_stopping
                && now.saturating_sub(since.get().unwrap_or_else(|| {
                    since.set(Some(now));
                    now
                })) >= STOP_GRACE
        }
    }

    /// Settles a duty that an earlier attempt, run or process left.
    fn settle_left(&self, duty: &HeldDuty, context: &RunContext<'_>) -> Result<Option<String>> {
        match duty.kind {
            DutyKind::After => self.settle_left_after(duty, context),
            DutyKind::Start | DutyKind::ExecAfter => self.settle_container_duty(duty, context.cancel),
        }
    }

    /// Settles a duty `after` that an earlier attempt, run or process left.
    fn settle_left_after(&self, duty: &HeldDuty, context: &RunContext<'_>) -> Result<Option<String>> {
        if let Err(error) = hooks::end_orphans(&self.home, duty.run, &*self.clock) {
            return self.postpone(duty, &error.to_string()).map(|()| Some(error.to_string()));
        }
        let run = match self.store.run(duty.run) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                log::error!("{}: run @{} is not in the history, and its --after unknown", duty.schedule_name, duty.run);
                return self.store.settle_duty(duty).map(|()| None);
            }
            run => run?,
        };
        let row = self.store.schedule(run.schedule_id)?;
        let hooks = match approval::hooks_to_execute(&self.home, &self.store, &row) {
            Ok(hooks) => hooks,
            Err(error) => return self.postpone(duty, &error.to_string()).map(|()| Some(error.to_string())),
        };
        if !hooks.commands.contains_key(&CommandKind::After) {
            log::warn!("{}: run @{}: --after was removed, and is not executed", run.schedule_name, run.id);
        }
        let source = self.home.source_path(&row.schedule.source);
        self.settle_after(duty, &hooks, &self.facts_of_left(&run, &source), context)
    }

    fn facts_of_left<'a>(&self, run: &'a Run, source: &'a Path) -> RunFacts<'a> {
        let state = match run.state {
            RunState::Succeeded => HookState::Succeeded,
            RunState::Incomplete => HookState::Incomplete,
            RunState::Skipped => HookState::Skipped,
            _ => HookState::Failed,
        };
        facts_of(run, source, state)
    }

    /// Settles the duties of a run that this worker has taken over. Returns why one could not be: it stays open.
    pub(super) fn settle_run(&self, run: &Run, context: &RunContext<'_>) -> Result<Option<String>> {
        hooks::end_orphans(&self.home, run.id, &*self.clock)?;
        let mut problem = None;
        if is_owner() {
            for duty in self.open_duties_of(&run.schedule_name)?.iter().filter(|duty| duty.run == run.id) {
                if let Some(taken) = self.take_duty(duty)? {
                    problem = self.settle_left(&taken, context)?.or(problem);
                }
            }
        }
        Ok(problem)
    }

    /// Ends the commands of earlier runs of a schedule that killed programs have left.
    ///
    /// Errors: `Busy` if one is being executed, or does not end: nothing of the schedule is executed beside it.
    fn end_orphans_of(&self, row: &ScheduleRow) -> Result<()> {
        for run in hooks::runs_with_commands(&self.home)? {
            let Ok(run) = self.store.run(run) else { continue };
            if run.schedule_id == row.id {
                hooks::end_orphans(&self.home, run.id, &*self.clock)?;
            }
        }
        Ok(())
    }

    /// Settles what earlier attempts and runs of a schedule left, before a claimed run of it executes anything; waits
    /// for another thread or process that does so just now. What fails is reported, and no reason not to begin.
    pub(super) fn settle_before_run(&self, row: &ScheduleRow, context: &RunContext<'_>) -> Result<()> {
        self.end_orphans_of(row)?;
        let (schedule, mut tried) = (row.schedule.name.as_str(), BTreeSet::new());
        loop {
            let mut is_worked_on = false;
            let open = self.open_duties_of(schedule).unwrap_or_else(|error| {
                context.observer.note(&format!("what earlier runs began cannot be undone now: {error}"));
                Vec::new()
            });
            for duty in open {
                if tried.contains(&duty.id) {
                    continue;
                }
                match self.take_duty(&duty)? {
                    None => is_worked_on = true,
                    Some(taken) => {
                        tried.insert(duty.id);
                        if let Some(problem) = self.settle_left(&taken, context)? {
                            context.observer.note(&format!("of run @{}: {problem}", duty.run));
                        }
                    }
                }
            }
            if !is_worked_on {
                return Ok(());
            }
            context.cancel.check("the run was cancelled while --after of an earlier one was executed")?;
            context.cancel.wait(Duration::from_millis(200));
        }
    }
}

/// Settles the duties of these kinds that ended or dead runs have left, whose next try is due. Commands of a schedule
/// that has a running run are left to that run, or to its recovery. What fails stays open and is tried again.
pub fn settle_duties(runner: &Runner, kinds: &[DutyKind], context: &RunContext<'_>) -> Result<()> {
    if !is_owner() {
        return Ok(());
    }
    for duty in due_duties(runner, kinds)? {
        let settled = match runner.take_duty(&duty) {
            Ok(Some(taken)) => runner.settle_left(&taken, context),
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        if let Err(error) = settled {
            log::warn!("{}: run @{}: what it began is not undone yet: {error}", duty.schedule_name, duty.run);
        }
    }
    Ok(())
}

/// Returns whether there is something of these kinds to settle now.
pub fn has_due_duties(runner: &Runner, kinds: &[DutyKind]) -> Result<bool> {
    Ok(is_owner() && !due_duties(runner, kinds)?.is_empty())
}

/// Returns when the next try of an open duty is due that nobody works on.
pub fn next_duty(runner: &Runner) -> Result<Option<Timestamp>> {
    let now = runner.clock.now();
    let open = runner.store.open_duties()?;
    Ok(open.iter().filter(|duty| duty.worker.is_none()).map(|duty| duty.not_before).filter(|at| *at > now).min())
}

fn due_duties(runner: &Runner, kinds: &[DutyKind]) -> Result<Vec<Duty>> {
    let mut open = runner.store.open_duties()?;
    if open.is_empty() {
        return Ok(open);
    }
    let (now, running) = (runner.clock.now(), runner.store.running()?);
    open.retain(|duty| {
        let is_running = running.iter().any(|run| run.schedule_name == duty.schedule_name);
        kinds.contains(&duty.kind) && duty.is_due(now) && (duty.kind == DutyKind::Start || !is_running)
    });
    Ok(in_settling_order(open))
}

/// Orders duties as they are settled: containers are started, the one that was stopped last first; then `--after`, then
/// the commands in containers.
fn in_settling_order(mut duties: Vec<Duty>) -> Vec<Duty> {
    duties.sort_by_key(|duty| match duty.kind {
        DutyKind::Start => (0, Reverse(duty.id), 0),
        DutyKind::After => (1, Reverse(0), duty.id),
        DutyKind::ExecAfter => (2, Reverse(0), duty.id),
    });
    duties
}

/// Returns whether the database belongs to the user of this process. Another one leaves what is to be undone to a
/// process of that user.
fn is_owner() -> bool {
    owner::database_uid().is_none_or(|uid| uid == rustix::process::geteuid().as_raw())
}

//! The order of a run: what happens before and after its source is read.
//!
//! Commands in containers, `--before`, stop containers, read, start them, `--after`, commands in containers; then the
//! archive is sealed and verified, and at the end of the run there is `--on-success` or `--on-failure`. What is undone
//! afterwards is a duty, planned before the act that it undoes.

use super::containers::RunContainers;
use super::duties::HeldDuty;
use super::prepare::PreparedRun;
use super::surrounded::Surrounded;
use super::write::WrittenRun;
use super::{Failure, Runner};
use crate::approval;
use crate::error::{Error, ErrorKind};
use crate::hooks::{Ended, HookState, RunFacts, Sink};
use crate::schedule::{CommandKind, Hooks};

/// The exit code with which `--before` decides that there is nothing to do (`EX_TEMPFAIL` of sysexits.h).
const SKIP: i32 = 75;

/// What was read, and why the run is incomplete although all was.
pub(super) struct ReadRun {
    pub(super) prepared: PreparedRun,
    pub(super) written: WrittenRun,
    /// Why `--after` did not succeed.
    pub(super) problem: Option<String>,
}

impl Runner {
    /// Executes what comes before the reading, reads, and undoes what was begun, whatever became of it.
    ///
    /// Fails before anything is executed if commands are held.
    pub(super) fn read_surrounded(
        &self,
        surrounded: &Surrounded<'_>,
        read: impl FnOnce(&Hooks) -> Result<(PreparedRun, WrittenRun), Failure>,
    ) -> Result<ReadRun, Failure> {
        let Surrounded { row, context, monitor, .. } = *surrounded;
        let hooks = approval::hooks_to_execute(&self.home, &self.store, row).map_err(|error| match error.kind() {
            ErrorKind::Busy | ErrorKind::DiskFull | ErrorKind::Interrupted => Failure::retryable(error),
            _ => Failure::permanent(error),
        })?;
        self.settle_before_run(row, context).map_err(Failure::retryable)?;
        let containers = self.choose_containers(row, &hooks, context.observer)?;
        let containers = containers.as_ref();
        let (after, begun) = self.begin(surrounded, &hooks, containers);
        let reading = || begun.and_then(|()| read(&hooks));
        let (outcome, late) = match containers {
            Some(containers) => containers.watch_downtime(self, context.observer, reading),
            None => (reading(), None),
        };
        if let Some(containers) = containers {
            monitor.phase("after");
            containers.start_again(self);
        }
        let problem = after.and_then(|after| {
            monitor.phase("after");
            self.run_after(surrounded, &after, &outcome)
        });
        let in_containers = containers.and_then(|containers| containers.exec_after(self, context));
        let (prepared, written) = outcome?;
        let problems: Vec<String> = [late, problem, in_containers].into_iter().flatten().collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        Ok(ReadRun { prepared, written, problem })
    }

    /// Executes the commands before in containers, then `--before`, then stops containers. What was begun has its duty;
    /// that of `--after` is returned.
    fn begin(
        &self,
        surrounded: &Surrounded<'_>,
        hooks: &Hooks,
        containers: Option<&RunContainers>,
    ) -> (Option<HeldDuty>, Result<(), Failure>) {
        let Surrounded { claim, row, context, .. } = *surrounded;
        if let Some(containers) = containers {
            let source = self.home.source_path(&row.schedule.source);
            if let Err(failure) = containers.exec_before(self, claim, &surrounded.starting_facts(&source), context) {
                return (None, Err(failure));
            }
        }
        let after = match self.plan_after(claim, hooks) {
            Ok(after) => after,
            Err(error) => return (None, Err(Failure::retryable(error))),
        };
        let begun = self.run_before(surrounded, hooks);
        (after, begun.and_then(|()| containers.map_or(Ok(()), |containers| containers.stop(self, claim, context))))
    }

    fn run_before(&self, surrounded: &Surrounded<'_>, hooks: &Hooks) -> Result<(), Failure> {
        let Surrounded { claim, row, monitor, .. } = *surrounded;
        let what = CommandKind::Before.option();
        // A worker that slept until its run was taken over starts nothing (I4).
        self.store.check_claim(claim).map_err(Failure::retryable)?;
        monitor.check_not_cancelled().map_err(Failure::retryable)?;
        monitor.phase("before");
        let source = self.home.source_path(&row.schedule.source);
        let facts = surrounded.starting_facts(&source);
        let is_cancelled = || monitor.is_cancelled();
        let outcome = self.run_command(CommandKind::Before, hooks, &facts, Sink::Keep, &is_cancelled);
        let Some(outcome) = outcome.map_err(Failure::permanent)? else { return Ok(()) };
        let Some(problem) = outcome.problem(what) else { return Ok(()) };
        Err(match outcome.ended {
            Ended::Code(SKIP) => Failure::skip(Error::failed(problem)),
            Ended::Cancelled => Failure::retryable(Error::new(ErrorKind::Interrupted, problem)),
            _ => Failure::permanent(Error::failed(problem)),
        })
    }

    /// Executes `--after`; returns why it did not succeed.
    fn run_after(
        &self,
        surrounded: &Surrounded<'_>,
        after: &HeldDuty,
        outcome: &Result<(PreparedRun, WrittenRun), Failure>,
    ) -> Option<String> {
        let Surrounded { row, context, .. } = *surrounded;
        let source = self.home.source_path(&row.schedule.source);
        let error = outcome.as_ref().err().map(|failure| failure.error.to_string()).unwrap_or_default();
        let (state, problems) = match outcome {
            Ok((_, written)) => (HookState::Read, written.written.problems_total),
            Err(failure) if failure.is_skip() => (HookState::Skipped, 0),
            Err(_) => (HookState::Failed, 0),
        };
        let facts = RunFacts { state, problems, error: &error, ..surrounded.starting_facts(&source) };
        // As they are now: they may have been edited during the run.
        let settled = approval::hooks_to_execute(&self.home, &self.store, row)
            .and_then(|hooks| self.settle_after(after, &hooks, &facts, context));
        let problem = settled.unwrap_or_else(|error| Some(error.to_string()));
        problem.iter().for_each(|problem| context.observer.note(problem));
        problem
    }
}

//! The commands of a run: how each is executed and recorded, and those at the end of a run.

use super::{RunContext, Runner};
use crate::approval;
use crate::error::Result;
use crate::hooks::{ChildCommand, Children, Ended, HookState, Outcome, RunFacts, Sink};
use crate::schedule::{CommandKind, Hooks};
use crate::store::{CommandEnding, CommandOutput, Run, RunState};

impl Runner {
    /// Executes a command of a schedule, and records how it ended and the end of its output; `None` if the schedule has
    /// none of this kind.
    ///
    /// Errors: it could not be started, or does not end.
    pub(super) fn run_command(
        &self,
        kind: CommandKind,
        hooks: &Hooks,
        facts: &RunFacts<'_>,
        sink: Sink<'_>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Outcome>> {
        let Some(text) = hooks.commands.get(&kind) else { return Ok(None) };
        let command = ChildCommand {
            what: kind.option(),
            text,
            run: facts.run,
            attempt: facts.attempt,
            variables: facts.variables(&self.home),
            time_limit: hooks.options.time_limit,
            keeps_capabilities: hooks.options.keep_capabilities,
        };
        let started_at = self.clock.now();
        let worker = self.row.uuid;
        let children = Children { home: &self.home, clock: &*self.clock, starter: &self.children, worker };
        let outcome = children.run(&command, sink, is_cancelled);
        let (ending, output) = match &outcome {
            Ok(outcome) => (ending_of(outcome.ended), outcome.output.clone()),
            Err(error) => (CommandEnding::NotStarted, error.to_string().into_bytes()),
        };
        let ended_at = self.clock.now();
        let attempt = facts.attempt;
        let executed = CommandOutput { attempt, kind, container: None, started_at, ended_at, ending, output };
        if let Err(error) = self.store.record_command(facts.run, &executed) {
            log::warn!(
                "{}: run @{}: the output of {} is not recorded: {error}",
                facts.schedule,
                facts.run,
                kind.option()
            );
        }
        outcome.map(Some)
    }

    /// Executes `--on-success` or `--on-failure` of a run that has ended. Its failure is reported and changes nothing:
    /// what became of the run is recorded already.
    pub(super) fn run_end_command(&self, run: i64, context: &RunContext<'_>) {
        if let Err(error) = self.try_end_command(run, context) {
            log::warn!("run @{run}: {error}");
            context.observer.note(&format!("run @{run}: {error}"));
        }
    }

    fn try_end_command(&self, run: i64, context: &RunContext<'_>) -> Result<()> {
        let run = self.store.run(run)?;
        let Some((kind, state)) = end_command(run.state) else { return Ok(()) };
        if !self.store.hooks(run.schedule_id)?.hooks.commands.contains_key(&kind) {
            return Ok(());
        }
        let row = self.store.schedule(run.schedule_id)?;
        let hooks = approval::hooks_to_execute(&self.home, &self.store, &row)?;
        let archive = self.store.archive(run.id)?.map(|archive| self.home.backups().join(archive.file_name));
        let source = self.home.source_path(&row.schedule.source);
        let facts = RunFacts { archive: archive.as_deref(), ..facts_of(&run, &source, state) };
        let is_cancelled = || context.cancel.is_cancelled();
        if let Some(outcome) = self.run_command(kind, &hooks, &facts, Sink::Keep, &is_cancelled)?
            && let Some(problem) = outcome.problem(kind.option())
        {
            context.observer.note(&problem);
            log::warn!("{}: run @{}: {problem}", run.schedule_name, run.id);
        }
        Ok(())
    }
}

/// Returns what a command of a run learns of it, from the record of the run.
pub(super) fn facts_of<'a>(run: &'a Run, source: &'a std::path::Path, state: HookState) -> RunFacts<'a> {
    RunFacts {
        schedule: &run.schedule_name,
        run: run.id,
        attempt: run.attempt,
        is_again: false,
        source,
        archive: None,
        state,
        problems: run.counts.problems,
        error: run.error.as_deref().unwrap_or_default(),
    }
}

/// Returns the command at the end of a run; `None` if the run has not ended, or was not to be done.
fn end_command(state: RunState) -> Option<(CommandKind, HookState)> {
    match state {
        RunState::Succeeded => Some((CommandKind::OnSuccess, HookState::Succeeded)),
        RunState::Incomplete => Some((CommandKind::OnFailure, HookState::Incomplete)),
        RunState::Failed => Some((CommandKind::OnFailure, HookState::Failed)),
        RunState::Queued | RunState::Running | RunState::Cancelled | RunState::Missed | RunState::Skipped => None,
    }
}

fn ending_of(ended: Ended) -> CommandEnding {
    match ended {
        Ended::Code(code) => CommandEnding::Exited(code),
        Ended::Signal(signal) => CommandEnding::Signal(signal),
        Ended::TimeLimit(_) => CommandEnding::TimeLimit,
        // This program ends a command in that way.
        Ended::Cancelled => CommandEnding::Signal(rustix::process::Signal::TERM.as_raw()),
    }
}

//! Commands that labels name, executed in their containers.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{RunContainers, to_json};
use crate::backup::{Failure, RunContext, Runner};
use crate::cancel::CancelToken;
use crate::containers::{Container, ContainerIdentity, Engine, ExecCommand};
use crate::error::{Error, ErrorKind, Result};
use crate::hooks::{HookState, Output, RunFacts, VARIABLES};
use crate::schedule::{CommandKind, Hooks};
use crate::store::{Claim, CommandEnding, CommandOutput, Duty, DutyKind, NewDuty};

/// The exit code by which a command before reading ends the run as skipped.
const SKIP_CODE: i64 = 75;
/// The variable by which docker-volume-backup names the archive.
const THEIR_ARCHIVE: &str = "COMMAND_RUNTIME_ARCHIVE_FILEPATH";

/// What a duty to execute a command after reading is about. The command itself is read from the label of the container:
/// a row may come from somebody else's database.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExecSubject {
    #[serde(flatten)]
    pub(super) identity: ContainerIdentity,
    pub(super) stop_label: String,
    pub(super) time_limit_ms: u64,
}

/// A command in a container, of a run.
pub(super) struct RunCommand<'a> {
    pub(super) kind: CommandKind,
    pub(super) command: ExecCommand,
    pub(super) run: i64,
    pub(super) attempt: i64,
    pub(super) limit: Duration,
    pub(super) cancel: &'a CancelToken,
}

/// Where what a command prints goes, besides the record of the run.
type Print<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

impl Runner {
    /// Executes the command of the source by the shell of a container, and passes on what it prints to its standard
    /// output, which is not kept in the record of the run.
    ///
    /// Errors: `NotFound` if there is no such container; the command could not be executed, or failed.
    pub(in crate::backup) fn print_in_container(
        &self,
        name: &str,
        hooks: &Hooks,
        facts: &RunFacts<'_>,
        cancel: &CancelToken,
        print: Print<'_>,
    ) -> Result<()> {
        let engine = super::connect(self)?;
        let container = engine.inspect(name)?.ok_or_else(|| {
            Error::not_found(format!("there is no container {name}")).hint("start it, or correct --source-container")
        })?;
        let text = hooks.source_command().unwrap_or_default();
        let words = ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
        let command = RunCommand {
            kind: CommandKind::Source,
            command: ExecCommand { words, user: None, env: variables(self, facts) },
            run: facts.run,
            attempt: facts.attempt,
            limit: hooks.options.time_limit,
            cancel,
        };
        match execute(self, &engine, &container, &command, Some(print))? {
            (0, _) => Ok(()),
            (_, reason) => Err(Error::failed(reason)),
        }
    }
}

impl RunContainers {
    /// Executes the commands before reading, each in its container. A command after reading that belongs to the same
    /// container has a duty from before on.
    ///
    /// Errors: a command could not be executed, or failed, or its exit code says that the run is skipped.
    pub(in crate::backup) fn exec_before(
        &self,
        runner: &Runner,
        claim: &Claim,
        facts: &RunFacts<'_>,
        context: &RunContext<'_>,
    ) -> std::result::Result<(), Failure> {
        runner.store.check_claim(claim).map_err(Failure::retryable)?;
        for chosen in &self.choice.containers {
            if chosen.exec_before.is_none() && chosen.exec_after.is_none() {
                continue;
            }
            context.cancel.check("the backup was cancelled before anything was read").map_err(Failure::retryable)?;
            if chosen.exec_after.is_some() {
                self.plan_exec_after(runner, claim, &chosen.container).map_err(Failure::retryable)?;
            }
            let Some(words) = chosen.exec_before.clone() else { continue };
            let command = ExecCommand { words, user: chosen.exec_user.clone(), env: variables(runner, facts) };
            let command = RunCommand {
                kind: CommandKind::Before,
                command,
                run: claim.run(),
                attempt: claim.attempt(),
                limit: self.time_limit,
                cancel: context.cancel,
            };
            let ended = execute(runner, &self.engine, &chosen.container, &command, None).map_err(|error| {
                if error.kind() == ErrorKind::Interrupted {
                    Failure::retryable(error)
                } else {
                    Failure::permanent(error)
                }
            })?;
            match ended {
                (0, _) => {}
                (SKIP_CODE, reason) => return Err(Failure::skip(Error::failed(reason))),
                (_, reason) => return Err(Failure::permanent(Error::failed(reason))),
            }
        }
        Ok(())
    }

    fn plan_exec_after(&self, runner: &Runner, claim: &Claim, container: &Container) -> Result<()> {
        let subject = to_json(&ExecSubject {
            identity: ContainerIdentity::of(container),
            stop_label: self.stop_label.clone(),
            time_limit_ms: u64::try_from(self.time_limit.as_millis()).unwrap_or(u64::MAX),
        })?;
        let new = NewDuty { kind: DutyKind::ExecAfter, subject: &subject, shared_key: None };
        let duty = runner.plan_duty(claim, &new)?;
        self.keep(duty);
        Ok(())
    }
}

/// Executes a command and records it with what it prints, or with its standard error only if `print` gets the rest;
/// returns its exit code, and how it ended in words with its last line.
pub(super) fn execute(
    runner: &Runner,
    engine: &Engine,
    container: &Container,
    command: &RunCommand<'_>,
    mut print: Option<Print<'_>>,
) -> Result<(i64, String)> {
    let mut output = Output::new();
    let started_at = runner.clock.now();
    let mut sink = |is_error: bool, bytes: &[u8]| {
        match &mut print {
            _ if is_error => output.push_error(bytes),
            Some(print) => return print(bytes),
            None => output.push(bytes),
        }
        Ok(())
    };
    // It may have been started again since it was chosen.
    let container = &engine.inspect(&container.id)?.unwrap_or_else(|| container.clone());
    let result = engine.execute(container, &command.command, command.limit, command.cancel, &mut sink);
    let (kept, last_line) = output.finish();
    let ending = match &result {
        Ok(code) => CommandEnding::Exited(i32::try_from(*code).unwrap_or(i32::MAX)),
        Err(error) if error.kind() == ErrorKind::Busy => CommandEnding::NotStarted,
        Err(_) => CommandEnding::Lost,
    };
    let executed = CommandOutput {
        attempt: command.attempt,
        kind: command.kind,
        container: Some(container.name().to_owned()),
        started_at,
        ended_at: runner.clock.now(),
        ending,
        output: kept,
    };
    if let Err(error) = runner.store.record_command(command.run, &executed) {
        log::warn!("run @{}: the output of a command in {} was not recorded: {error}", command.run, container.name());
    }
    let code = result?;
    let words = shell_words::join(&command.command.words);
    let ended = format!("{words} in the container {} ended with exit code {code}", container.name());
    Ok((code, last_line.map_or(ended.clone(), |line| format!("{ended}: {line}"))))
}

/// Returns what a command in a container learns of its run. Its search path and the like are those of the container.
pub(super) fn variables(runner: &Runner, facts: &RunFacts<'_>) -> Vec<String> {
    let all = facts.variables(&runner.home);
    let given = all.iter().filter(|(name, _)| VARIABLES.contains(name));
    let mut given: Vec<String> = given.map(|(name, value)| format!("{name}={}", value.to_string_lossy())).collect();
    given.extend(facts.archive.map(|archive| format!("{THEIR_ARCHIVE}={}", archive.display())));
    given
}

/// Returns what is known of the run of a duty.
pub(super) fn facts_of(duty: &Duty, is_again: bool) -> RunFacts<'_> {
    RunFacts {
        schedule: &duty.schedule_name,
        run: duty.run,
        attempt: duty.attempt,
        is_again,
        source: Path::new(""),
        archive: None,
        state: HookState::Read,
        problems: 0,
        error: "",
    }
}

//! One command, from its start to its end.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use uuid::Uuid;

use super::orphans::{HookFile, end_orphans};
use super::starter::Starter;
use super::supervise::{Ended, Sink, Supervised, Supervisor};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;

/// The program that runs the commands.
const SHELL: &str = "/bin/sh";

/// A command of a run.
#[derive(Clone, Debug)]
pub struct ChildCommand<'a> {
    /// What it is, for messages: `--before`.
    pub what: &'a str,
    /// The command line for the shell.
    pub text: &'a str,
    /// Number of the run.
    pub run: i64,
    /// Number of the attempt, which runs one command at a time.
    pub attempt: i64,
    /// Its whole environment.
    pub variables: Vec<(&'static str, OsString)>,
    /// How long it may run.
    pub time_limit: Duration,
    /// It keeps the ambient capabilities of this process.
    pub keeps_capabilities: bool,
}

/// How a command ended, and the end of what it printed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// The last [`super::OUTPUT_LIMIT`] bytes of its output.
    pub output: Vec<u8>,
    /// The last line of its standard error, else of its output.
    pub last_line: Option<String>,
    /// All writers of its standard output have closed it. Otherwise a process that it left may still write.
    pub is_output_complete: bool,
}

impl Outcome {
    /// Returns why the command, `what`, did not succeed; `None` if its exit code is 0.
    pub fn problem(&self, what: &str) -> Option<String> {
        let how = match self.ended {
            Ended::Code(0) => return None,
            Ended::Code(code) => format!("{what} ended with exit code {code}"),
            Ended::Signal(signal) => {
                let name = signal_hook::low_level::signal_name(signal);
                format!("{what} was ended by {}", name.map_or(format!("signal {signal}"), str::to_owned))
            }
            Ended::TimeLimit(limit) => format!("{what} was ended at its time limit of {} s", limit.as_secs()),
            Ended::Cancelled => format!("{what} was ended because the run was cancelled"),
        };
        Some(self.last_line.as_ref().map_or(how.clone(), |line| format!("{how}: {line}")))
    }
}

/// Runs the commands of one home.
pub struct Children<'a> {
    /// The paths of the home; commands start in its folder.
    pub home: &'a Home,
    /// The source of all times.
    pub clock: &'a dyn Clock,
    /// Starts processes.
    pub starter: &'a Starter,
    /// The worker that executes the commands.
    pub worker: Uuid,
}

impl Children<'_> {
    /// Runs a command to its end, after ending what is left of earlier commands of the run (I16). The caller holds the
    /// claim of the run, or the run has ended.
    ///
    /// `is_cancelled` is asked all the time, and ends the command once it is true.
    ///
    /// Errors: the command could not be started, or could not be ended; `sink` failed.
    pub fn run(&self, command: &ChildCommand<'_>, sink: Sink<'_>, is_cancelled: &dyn Fn() -> bool) -> Result<Outcome> {
        self.run_by(SHELL, command, sink, is_cancelled)
    }

    fn run_by(
        &self,
        shell: &str,
        command: &ChildCommand<'_>,
        sink: Sink<'_>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Outcome> {
        end_orphans(self.home, command.run, self.clock)?;
        let file = HookFile::create(self.home, command.run, command.attempt, self.worker)?;
        let failed = |error| Error::failed(format!("{} cannot be started by {shell}", command.what)).because(error);
        let mut process = Command::new(shell);
        process
            .arg("-c")
            .arg(command.text)
            .env_clear()
            .envs(command.variables.iter().map(|(name, value)| (name, value)));
        process.current_dir(start_folder(self.home)).process_group(0);
        process.stdin(file.input().map_err(failed)?).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = match self.starter.start(process, command.keeps_capabilities) {
            Ok(child) => child,
            Err(error) => {
                file.remove();
                return Err(failed(error));
            }
        };
        if let Err(error) = file.record(i32::try_from(child.id()).unwrap_or(0)) {
            // The lock still shows that the shell is alive.
            log::warn!("run @{}: the process group of {} is not recorded: {error}", command.run, command.what);
        }
        let supervised =
            Supervisor::new(child, command.time_limit, self.clock, is_cancelled, sink).and_then(Supervisor::wait);
        // What still runs must be found by the next command of the run.
        if !supervised.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy) {
            file.remove();
        }
        let Supervised { ended, output, is_output_complete } = supervised.map_err(|e| e.wrap(command.what))?;
        let (output, last_line) = output.finish();
        Ok(Outcome { ended, output, last_line, is_output_complete })
    }
}

/// Returns the folder in which commands start: the home.
fn start_folder(home: &Home) -> &Path {
    if home.root().is_dir() { home.root() } else { Path::new("/") }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

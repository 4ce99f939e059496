//! Options of `create` and `edit` about what surrounds the runs of a schedule.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Args;

use super::Context;
use super::optional_bool::{BOOL, with_optional_bool};
use crate::approval;
use crate::error::{Error, Result};
use crate::schedule::{CommandKind, HookOptions, Hooks, Schedule, parse_duration};
use crate::store::ScheduleHooks;

/// The program that executes commands.
const SHELL: &str = "/bin/sh";

/// Commands and containers around runs. An empty value removes what was set.
#[derive(Args, Debug, Default)]
#[command(mut_args = with_optional_bool)]
pub struct HookArgs {
    /// Execute by /bin/sh before the source is read; exit code 75 skips the run, any other but 0 fails it
    #[arg(long, value_name = "CMD", help_heading = "Around runs")]
    before: Option<String>,
    /// Execute after the source was read, whenever --before was started
    #[arg(long, value_name = "CMD", help_heading = "Around runs")]
    after: Option<String>,
    /// Execute after a run that made an archive of everything
    #[arg(long, value_name = "CMD", help_heading = "Around runs")]
    on_success: Option<String>,
    /// Execute after a run that did not
    #[arg(long, value_name = "CMD", help_heading = "Around runs")]
    on_failure: Option<String>,
    /// How long each of these commands may take: 30s, 90m [default: 1h]
    #[arg(long, value_name = "DURATION", help_heading = "Around runs")]
    hook_time_limit: Option<String>,
    /// Let the commands keep the ambient capabilities of this program
    #[arg(long, value_name = BOOL, help_heading = "Around runs")]
    hook_caps: Option<bool>,
    /// Archive what this command prints, as one file, in place of a path
    #[arg(long, value_name = "CMD", help_heading = "Around runs")]
    pub source_command: Option<String>,
    /// Name of that file in the archive
    #[arg(long, value_name = "FILE", help_heading = "Around runs")]
    source_name: Option<OsString>,
    /// Execute --source-command in this container
    #[arg(long, value_name = "NAME", help_heading = "Around runs")]
    source_container: Option<String>,
    /// Let --source-command print nothing
    #[arg(long, value_name = BOOL, help_heading = "Around runs")]
    allow_empty: Option<bool>,
    /// Stop labelled containers while the source is read, and execute the commands in their labels
    #[arg(long, value_name = BOOL, help_heading = "Around runs")]
    containers: Option<bool>,
    /// Start stopped containers again after this time, even if the source is not read yet
    #[arg(long, value_name = "DURATION", help_heading = "Around runs")]
    max_downtime: Option<String>,
    /// Value of the label by which containers are stopped [default: true]
    #[arg(long, value_name = "VALUE", help_heading = "Around runs")]
    stop_label: Option<String>,
}

impl HookArgs {
    /// Returns the commands that are given, empty ones to be removed.
    fn commands(&self) -> [(CommandKind, Option<&str>); 5] {
        [
            (CommandKind::Before, self.before.as_deref()),
            (CommandKind::After, self.after.as_deref()),
            (CommandKind::OnSuccess, self.on_success.as_deref()),
            (CommandKind::OnFailure, self.on_failure.as_deref()),
            (CommandKind::Source, self.source_command.as_deref()),
        ]
    }

    /// Returns whether a command for the source is given that is not empty.
    pub fn has_source_command(&self) -> bool {
        self.source_command.as_ref().is_some_and(|command| !command.is_empty())
    }

    /// Returns the name of the file that the command for the source prints, as the path of a schedule.
    pub fn source(&self) -> Result<Vec<u8>> {
        match &self.source_name {
            Some(name) => Ok(name.as_bytes().to_owned()),
            None => Err(Error::usage("--source-command needs a name for what it prints")
                .hint("add --source-name FILE, such as app.dump")),
        }
    }

    /// Sets in `hooks` what was given, and in `schedule` the name of the source; the rest is unchanged. `has_path` is
    /// whether the command line gives the schedule a path.
    ///
    /// Errors: `Usage` for values that are not usable, or that do not fit what the schedule has.
    pub fn apply(&self, hooks: &mut Hooks, schedule: &mut Schedule, has_path: bool) -> Result<()> {
        self.apply_source(hooks, schedule, has_path)?;
        for (kind, given) in self.commands() {
            match given {
                Some("") => drop(hooks.commands.remove(&kind)),
                Some(command) => drop(hooks.commands.insert(kind, command.to_owned())),
                None => {}
            }
        }
        let options = &mut hooks.options;
        options.keep_capabilities = self.hook_caps.unwrap_or(options.keep_capabilities);
        options.allow_empty = self.allow_empty.unwrap_or(options.allow_empty);
        options.containers = self.containers.unwrap_or(options.containers);
        match self.hook_time_limit.as_deref() {
            Some("") => options.time_limit = HookOptions::default().time_limit,
            Some(text) => options.time_limit = parse_duration(text)?,
            None => {}
        }
        match self.max_downtime.as_deref() {
            Some("") => options.max_downtime = None,
            Some(text) => options.max_downtime = Some(parse_duration(text)?),
            None => {}
        }
        let texts =
            [(&self.source_container, &mut options.source_container), (&self.stop_label, &mut options.stop_label)];
        for (given, set) in texts {
            if let Some(text) = given {
                *set = Some(text.clone()).filter(|text| !text.is_empty());
            }
        }
        hooks.check(&schedule.source)?;
        self.check_shell(hooks)
    }

    /// Sets the path of a schedule whose source is, or was, what a command prints.
    fn apply_source(&self, hooks: &mut Hooks, schedule: &mut Schedule, has_path: bool) -> Result<()> {
        let had_command = hooks.source_command().is_some();
        let removes = self.source_command.as_deref() == Some("");
        let has_command = !removes && (had_command || self.has_source_command());
        if has_command && has_path {
            return Err(Error::usage("a schedule archives either a path or what --source-command prints")
                .hint("leave out the path, or remove the command: --source-command ''"));
        }
        if had_command && !has_command && !has_path {
            return Err(Error::usage("without --source-command the schedule has no source").hint("add --path PATH"));
        }
        if has_command && (!had_command || self.source_name.is_some()) {
            schedule.source = self.source()?;
        }
        if !has_command && self.source_name.is_some() {
            return Err(Error::usage("--source-name is the name of what --source-command prints, which is not given"));
        }
        if had_command && !has_command {
            hooks.options.source_container = None;
            hooks.options.allow_empty = false;
        }
        Ok(())
    }

    /// Fails if a command is given and there is no shell for it.
    fn check_shell(&self, hooks: &Hooks) -> Result<()> {
        let in_container = hooks.options.source_container.is_some();
        let is_for_shell = |kind: CommandKind| kind != CommandKind::Source || !in_container;
        let needs_shell = self
            .commands()
            .into_iter()
            .any(|(kind, given)| is_for_shell(kind) && given.is_some_and(|command| !command.is_empty()));
        let is_executable =
            Path::new(SHELL).metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        if needs_shell && !is_executable {
            return Err(Error::usage(format!("{SHELL}, which executes commands, does not exist or is not executable"))
                .hint("install a shell, or use an image that has one"));
        }
        Ok(())
    }

    /// Returns the hooks with approvals of the commands that are given here, and of those that were approved before.
    pub fn approve(
        &self,
        context: &Context,
        schedule: &Schedule,
        before: &ScheduleHooks,
        hooks: Hooks,
    ) -> Result<ScheduleHooks> {
        let held = approval::held_commands(&context.home, &schedule.name, before)?;
        let given = self.commands();
        approval::approve(&context.home, &schedule.name, hooks, |kind| {
            let is_given = given.iter().any(|(other, command)| *other == kind && command.is_some());
            is_given || (before.hooks.commands.contains_key(&kind) && !held.contains_key(&kind))
        })
    }
}

//! What `show`, `history @N` and `status` print of commands around runs and of what is to be undone.

use std::collections::BTreeMap;

use chrono_tz::Tz;
use serde::Serialize;

use super::Context;
use super::documents;
use super::render;
use crate::approval;
use crate::error::Result;
use crate::schedule::{CommandKind, HookOptions, Hooks, Schedule, format_age};
use crate::store::{CommandEnding, CommandOutput, Duty, DutyKind, ScheduleRow, Store};
use crate::words::shell_word;

/// What surrounds the runs of a schedule, and which of its commands are held.
pub(super) struct ShownHooks {
    pub(super) hooks: Hooks,
    pub(super) held: BTreeMap<CommandKind, String>,
}

/// What `show --json` prints of it.
#[derive(Serialize)]
pub(super) struct HooksDocument<'a> {
    /// By kind: `before`, `after`, `on-success`, `on-failure`, `source`.
    commands: &'a BTreeMap<CommandKind, String>,
    /// In the form of `export --format json`.
    options: &'a HookOptions,
    /// The kinds of commands that nobody approved beside this database.
    held: Vec<CommandKind>,
}

impl ShownHooks {
    pub(super) fn read(context: &Context, store: &Store, row: &ScheduleRow) -> Result<ShownHooks> {
        let found = store.hooks(row.id)?;
        let held = approval::held_commands(&context.home, &row.schedule.name, &found)?;
        Ok(ShownHooks { hooks: found.hooks, held })
    }

    pub(super) fn document(&self) -> HooksDocument<'_> {
        HooksDocument {
            commands: &self.hooks.commands,
            options: &self.hooks.options,
            held: self.held.keys().copied().collect(),
        }
    }

    /// Returns the lines of `show`, each a key and a value.
    pub(super) fn lines(&self, schedule: &Schedule) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        // The command of the source is in the line about the source.
        for (kind, command) in self.hooks.commands.iter().filter(|(kind, _)| **kind != CommandKind::Source) {
            let held = if self.held.contains_key(kind) { " (held)" } else { "" };
            lines.push((kind.as_str(), format!("{}{held}", one_line(command))));
        }
        let options = &self.hooks.options;
        if !self.hooks.commands.is_empty() {
            lines.push(("command limit", format_age(options.time_limit)));
        }
        if options.keep_capabilities {
            lines.push(("capabilities", "kept by commands".to_owned()));
        }
        if options.containers {
            lines.push(("containers", container_words(options)));
        }
        if !self.held.is_empty() {
            let name = shell_word(schedule.name.as_str());
            lines.push(("held", format!("nothing is run until `backup-manager accept {name} --commands`")));
        }
        lines
    }
}

fn container_words(options: &HookOptions) -> String {
    let label = options.stop_label.as_deref().unwrap_or("true");
    let limit = options.max_downtime.map_or(String::new(), |limit| format!(", for at most {}", format_age(limit)));
    format!("stopped while the source is read, if labelled {}{limit}", one_line(label))
}

/// Returns what a schedule archives: its path, or what a command prints.
pub(super) fn source_words(context: &Context, schedule: &Schedule, hooks: &Hooks) -> String {
    let Some(command) = hooks.source_command() else {
        return context.home.source_path(&schedule.source).display().to_string();
    };
    let container = match &hooks.options.source_container {
        Some(container) => format!(" in container {}", one_line(container)),
        None => String::new(),
    };
    let empty = if hooks.options.allow_empty { ", which may be nothing" } else { "" };
    let name = render::printable(&schedule.source);
    format!("{name}: what `{}` prints{container}{empty}", one_line(command))
}

/// A command that a run executed.
#[derive(Serialize)]
pub(super) struct CommandDocument {
    attempt: i64,
    /// `before`, `after`, `on-success`, `on-failure` or `source`.
    kind: &'static str,
    /// The container in which it was executed; null for this machine.
    container: Option<String>,
    started: String,
    ended: String,
    /// `exited`, `signal`, `time-limit`, `not-started` or `lost` (this program died while it ran).
    ending: &'static str,
    /// Exit code or number of the signal.
    code: Option<i32>,
    /// The end of what it printed; what is not UTF-8 is replaced.
    output: String,
}

impl CommandDocument {
    pub(super) fn new(executed: &CommandOutput, zone: &Tz) -> CommandDocument {
        let (ending, code) = match executed.ending {
            CommandEnding::Exited(code) => ("exited", Some(code)),
            CommandEnding::Signal(number) => ("signal", Some(number)),
            CommandEnding::TimeLimit => ("time-limit", None),
            CommandEnding::NotStarted => ("not-started", None),
            CommandEnding::Lost => ("lost", None),
        };
        CommandDocument {
            attempt: executed.attempt,
            kind: executed.kind.as_str(),
            container: executed.container.clone(),
            started: documents::time(executed.started_at, zone),
            ended: documents::time(executed.ended_at, zone),
            ending,
            code,
            output: String::from_utf8_lossy(&executed.output).into_owned(),
        }
    }
}

/// Returns the lines of `history @N` about a command: how it ended, then what it printed, without control characters.
pub(super) fn command_lines(executed: &CommandOutput) -> String {
    let container = executed.container.as_ref().map(|name| format!(" in {name}")).unwrap_or_default();
    let ending = match executed.ending {
        CommandEnding::Exited(code) => format!("exit code {code}"),
        CommandEnding::Signal(number) => format!("ended by signal {number}"),
        CommandEnding::TimeLimit => "ended at its time limit".to_owned(),
        CommandEnding::NotStarted => "not started".to_owned(),
        CommandEnding::Lost => "end unknown: this program died while it ran".to_owned(),
    };
    let took = render::age(executed.ended_at.since(executed.started_at));
    let kind = executed.kind;
    let mut text = format!("  command    {kind}{}: {ending} after {took}\n", one_line(&container));
    for line in String::from_utf8_lossy(&executed.output).lines() {
        text += &format!("             | {}\n", render::escape_control(line));
    }
    text
}

/// Something that a run began and that is still to be undone.
#[derive(Serialize)]
pub(super) struct DutyDocument {
    run: i64,
    name: String,
    /// `after`, `start` (of a container) or `exec-after`.
    kind: &'static str,
    /// What it is about, such as a container.
    subject: serde_json::Value,
    planned: String,
    tries: u32,
    /// Why the last try failed.
    error: Option<String>,
}

impl DutyDocument {
    pub(super) fn new(duty: &Duty, zone: &Tz) -> DutyDocument {
        DutyDocument {
            run: duty.run,
            name: duty.schedule_name.clone(),
            kind: duty.kind.as_str(),
            // A database that was put back may hold anything.
            subject: serde_json::from_str(&duty.subject).unwrap_or_else(|_| duty.subject.clone().into()),
            planned: documents::time(duty.planned_at, zone),
            tries: duty.tries,
            error: duty.error.clone(),
        }
    }
}

/// Describes what is still to be undone.
pub(super) fn duty_text(duty: &Duty) -> String {
    let what = match duty.kind {
        DutyKind::After => "its command after was not executed".to_owned(),
        DutyKind::Start => format!("the container {} that it stopped was not started", container_of(duty)),
        DutyKind::ExecAfter => format!("the command after of the container {} was not executed", container_of(duty)),
    };
    let why = duty.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let text = format!("run @{} of {}: {what} yet{why}", duty.run, duty.schedule_name);
    one_line(&text)
}

/// Returns text in one line without control characters: a forged row must not look like lines of ours.
fn one_line(text: &str) -> String {
    render::escape_control(text).replace('\n', "\\n")
}

fn container_of(duty: &Duty) -> String {
    let subject: serde_json::Value = serde_json::from_str(&duty.subject).unwrap_or_default();
    let name = subject.get("name").and_then(serde_json::Value::as_str);
    name.or(duty.shared_key.as_deref()).unwrap_or("(unknown)").to_owned()
}

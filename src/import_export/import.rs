//! Imports: the schedules of a file become those of the database, in one transaction.

use std::collections::BTreeMap;

use chrono_tz::Tz;

use super::{DOCUMENT_VERSION, Document};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::schedule::text_file::{self, BadLine, Entry};
use crate::schedule::{Cadence, CommandKind, DailyTimes, Hooks, Schedule, ScheduleName};
use crate::source;
use crate::store::{ScheduleChanges, ScheduleHooks, ScheduleRow, Store, Watermark};
use crate::words;

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Names of created schedules.
    pub created: Vec<String>,
    /// Names of changed schedules.
    pub changed: Vec<String>,
    /// Names of deleted schedules.
    pub deleted: Vec<String>,
    /// Those of `created` that were deleted before: their history and archives belong to them again.
    pub revived: Vec<String>,
    /// Those of `revived` that were paused, and still are.
    pub paused: Vec<String>,
    /// Number of schedules that were already as imported.
    pub unchanged: usize,
    /// Names of schedules that got commands, which are held.
    pub with_commands: Vec<String>,
}

/// Parses a text file. Reports all bad lines in one usage error; `name` is the name of the file in it.
pub fn parse_text(bytes: &[u8], name: &str) -> Result<Vec<Entry>> {
    text_file::read(bytes).map_err(|bad| bad_lines_error(&bad, name))
}

fn bad_lines_error(bad: &[BadLine], name: &str) -> Error {
    let lines: String = bad.iter().map(|line| format!("\n  {line}")).collect();
    let count = words::count(bad.len() as u64, "bad line");
    Error::usage(format!("{name} has {count}, and nothing of it was imported:{lines}"))
        .hint("a line is PATH;HH:MM;NAME; correct these and import again")
}

/// Imports the entries of a text file in one transaction. Options that the file cannot hold are not changed, and a name
/// that was deleted comes back with those that it had. With `replace`, schedules that are not in the file are deleted.
pub fn import_text(store: &Store, entries: &[Entry], replace: bool, zone: Tz, now: Timestamp) -> Result<Imported> {
    let rows = store.schedules()?;
    let wanted = entries.iter().map(|entry| {
        let present = match rows.iter().find(|row| row.schedule.name == entry.name) {
            Some(row) => Some(row.schedule.clone()),
            None => store.deleted_schedule(entry.name.as_str())?,
        };
        Ok(with_line(present, &entry.name, entry.source.clone(), entry.times.clone()))
    });
    let wanted = wanted.collect::<Result<Vec<_>>>()?;
    wanted.iter().try_for_each(|schedule| check_source(store, &rows, schedule))?;
    import(store, &rows, wanted, &[], replace, zone, now)
}

/// Fails if an import that knows no commands gives another path to a schedule whose source is what a command prints.
pub(super) fn check_source(store: &Store, rows: &[ScheduleRow], wanted: &Schedule) -> Result<()> {
    let Some(row) = rows.iter().find(|row| row.schedule.name == wanted.name) else { return Ok(()) };
    if row.schedule.source == wanted.source || store.hooks(row.id)?.hooks.source_command().is_none() {
        return Ok(());
    }
    let name = &wanted.name;
    Err(Error::usage(format!("{name} archives what a command prints, and the import would give it a path"))
        .hint(format!("backup-manager edit {} --source-command '' --path PATH", words::shell_word(name.as_str()))))
}

/// Returns a schedule with the path and times of lines: `present`, if there is one, keeps its other options.
pub(super) fn with_line(
    present: Option<Schedule>,
    name: &ScheduleName,
    source: Vec<u8>,
    times: DailyTimes,
) -> Schedule {
    let cadence = Cadence::Daily(times);
    match present {
        Some(present) => Schedule { source, cadence: Some(cadence), ..present },
        None => Schedule::new(name.clone(), source, cadence),
    }
}

/// Imports a JSON document of [`export_json`] in one transaction. With `replace`, schedules that are not in it are
/// deleted.
///
/// Errors: `Usage` if the document is invalid; then nothing is changed.
pub fn import_json(
    store: &Store,
    bytes: &[u8],
    name: &str,
    replace: bool,
    zone: Tz,
    now: Timestamp,
) -> Result<Imported> {
    let invalid = |e| {
        Error::usage(format!("{name} is not a JSON document of schedules, and nothing of it was imported"))
            .because(e)
            .hint("make one with `backup-manager export --format json`")
    };
    let document: Document = serde_json::from_slice(bytes).map_err(invalid)?;
    if document.version != DOCUMENT_VERSION {
        return Err(Error::usage(format!(
            "{name} has the format version {}, and this program supports {DOCUMENT_VERSION}",
            document.version
        ))
        .hint("import it with the version that wrote it, or a newer one"));
    }
    let names: Vec<&str> = document.schedules.iter().map(|schedule| schedule.name.as_str()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        return Err(Error::usage(format!("{name} has the name \"{}\" twice, and nothing of it was imported", twice.1)));
    }
    // Checked here as on the command line: in the database they would fail every run.
    document.schedules.iter().try_for_each(|schedule| {
        source::check_patterns(&schedule.excludes.globs).map_err(|cause| {
            Error::usage(format!("the excludes of \"{}\" in {name} are invalid", schedule.name)).because(cause)
        })
    })?;
    let rows = store.schedules()?;
    match &document.hooks {
        Some(hooks) => check_hooks(&document.schedules, hooks, name)?,
        None => document.schedules.iter().try_for_each(|schedule| check_source(store, &rows, schedule))?,
    }
    let hooks = changed_hooks(store, &rows, &document.schedules, document.hooks.as_ref())?;
    import(store, &rows, document.schedules, &hooks, replace, zone, now)
}

/// Checks what surrounds the runs of the schedules of a document.
fn check_hooks(schedules: &[Schedule], hooks: &BTreeMap<String, Hooks>, name: &str) -> Result<()> {
    for (of, hooks) in hooks {
        let schedule = schedules.iter().find(|schedule| schedule.name.as_str() == of).ok_or_else(|| {
            Error::usage(format!("{name} has hooks of \"{}\", which is no schedule of it", of.escape_debug()))
        })?;
        hooks
            .check(&schedule.source)
            .map_err(|cause| Error::usage(format!("the hooks of \"{of}\" in {name} are invalid")).because(cause))?;
    }
    Ok(())
}

/// Returns what surrounds the runs of a schedule from an import on; `None` if that is what does now. A command is
/// approved only if it already was, with the same options.
fn new_hooks(store: &Store, present: Option<&ScheduleRow>, wanted: Option<&Hooks>) -> Result<Option<ScheduleHooks>> {
    let before = present.map(|row| store.hooks(row.id)).transpose()?.unwrap_or_default();
    let hooks = wanted.cloned().unwrap_or_default();
    if before.hooks == hooks {
        return Ok(None);
    }
    let has_same_options = before.hooks.options == hooks.options;
    let is_known = |kind: &CommandKind| has_same_options && before.hooks.commands.get(kind) == hooks.commands.get(kind);
    let approvals = before.approvals.into_iter().filter(|(kind, _)| is_known(kind)).collect();
    Ok(Some(ScheduleHooks { hooks, approvals }))
}

/// Returns what surrounds the runs of schedules from an import on, for those where that is another than now.
fn changed_hooks(
    store: &Store,
    rows: &[ScheduleRow],
    wanted: &[Schedule],
    hooks: Option<&BTreeMap<String, Hooks>>,
) -> Result<Vec<(ScheduleName, ScheduleHooks)>> {
    let mut changed = Vec::new();
    let Some(hooks) = hooks else { return Ok(changed) };
    for schedule in wanted {
        let present = rows.iter().find(|row| row.schedule.name == schedule.name);
        let new = new_hooks(store, present, hooks.get(schedule.name.as_str()))?;
        changed.extend(new.map(|new| (schedule.name.clone(), new)));
    }
    Ok(changed)
}

fn names_with_held(hooks: &[(ScheduleName, ScheduleHooks)]) -> Vec<String> {
    let has_held = |new: &ScheduleHooks| new.hooks.commands.keys().any(|kind| !new.approvals.contains_key(kind));
    hooks.iter().filter(|(_, new)| has_held(new)).map(|(name, _)| name.to_string()).collect()
}

/// Creates and changes schedules so that those with the names of `wanted` are equal to them; `hooks` is
/// what surrounds the runs of some from now on.
fn import(
    store: &Store,
    rows: &[ScheduleRow],
    wanted: Vec<Schedule>,
    hooks: &[(ScheduleName, ScheduleHooks)],
    replace: bool,
    zone: Tz,
    now: Timestamp,
) -> Result<Imported> {
    let mut imported = Imported::default();
    let (mut created, mut edited, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    let is_wanted = |row: &ScheduleRow| wanted.iter().any(|schedule| schedule.name == row.schedule.name);
    for row in rows.iter().filter(|row| replace && !is_wanted(row)) {
        row.ensure_changeable()?;
        imported.deleted.push(row.schedule.name.to_string());
        deleted.push(row.id);
    }
    imported.with_commands = names_with_held(hooks);
    for schedule in wanted {
        let watermark = Watermark::starting(&schedule, zone, now);
        let has_same_hooks = hooks.iter().all(|(name, _)| *name != schedule.name);
        match rows.iter().find(|row| row.schedule.name == schedule.name) {
            Some(row) if row.schedule == schedule && has_same_hooks => imported.unchanged += 1,
            Some(row) => {
                row.ensure_changeable()?;
                imported.changed.push(schedule.name.to_string());
                edited.push((row.id, schedule, watermark));
            }
            None => {
                imported.created.push(schedule.name.to_string());
                if store.deleted_schedule(schedule.name.as_str())?.is_some() {
                    imported.revived.push(schedule.name.to_string());
                    imported.paused.extend((!schedule.enabled).then(|| schedule.name.to_string()));
                }
                created.push((schedule, watermark));
            }
        }
    }
    if !(created.is_empty() && edited.is_empty() && deleted.is_empty()) {
        let none = ScheduleChanges::default();
        let all = ScheduleChanges { created: &created, edited: &edited, deleted: &deleted, hooks, ..none };
        store.apply_schedules(&all, now)?;
    }
    Ok(imported)
}

//! `apply`: makes the schedules of a settings file those of the database.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::Context;
use super::documents::PathFields;
use super::render::{self, Format};
use crate::error::{Error, Result};
use crate::health::live_services;
use crate::import_export::{self, Entry, EntryChange, Present, Removed, SettingsPlan};
use crate::liveness;
use crate::schedule::ScheduleName;
use crate::source;
use crate::store::{Access, ScheduleChanges, Store};
use crate::words::shell_word;

#[derive(Args)]
pub struct ApplyArgs {
    /// Settings file
    #[arg(value_name = "FILE", env = "BACKUP_CONFIG")]
    file: PathBuf,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Delete the schedules that the file has no more instead of pausing them; their archives are kept
    #[arg(long)]
    prune: bool,
    /// Delete them also if the file may be cut off: it lacks all, the last one, or many of its schedules
    #[arg(long, requires = "prune")]
    yes: bool,
    /// Let commands manage the schedules of the file again, which may be lost; nothing else changes
    #[arg(long, conflicts_with = "prune")]
    release: bool,
}

/// What `apply --json` prints.
#[derive(Serialize)]
struct ApplyDocument<'a> {
    /// `file`: the absolute path of the settings file.
    #[serde(flatten)]
    file: PathFields,
    /// Whether nothing was changed, and the rest is what would be.
    dry_run: bool,
    /// Names of new schedules.
    created: &'a [String],
    /// Those of `created` that were deleted before: their history and archives belong to them again.
    revived: &'a [String],
    changed: Vec<ChangeDocument<'a>>,
    /// Names of schedules that are paused because the file has them no more.
    paused: &'a [String],
    /// Names of schedules that are deleted because the file has them no more.
    deleted: &'a [String],
    /// Names of schedules that commands manage again.
    released: &'a [String],
    /// How many schedules were already as the file has them.
    unchanged: usize,
}

/// A schedule that changes.
#[derive(Serialize)]
struct ChangeDocument<'a> {
    name: &'a str,
    /// Whether commands or another file managed it before.
    taken_over: bool,
    /// Whether commands that were held may be executed from now on.
    commands_approved: bool,
    differences: Vec<DifferenceDocument<'a>>,
}

/// A key whose value changes.
#[derive(Serialize)]
struct DifferenceDocument<'a> {
    key: &'static str,
    /// The values as the file has them; null if the key has none.
    before: Option<&'a str>,
    after: Option<&'a str>,
}

pub fn cmd_apply(context: &Context, args: &ApplyArgs) -> Result<u8> {
    let file = import_export::settings_path(&args.file)?;
    if args.release {
        return release(context, args, &file);
    }
    // Read first, so that a bad file does not create a database.
    let (bytes, found) = read(&args.file)?;
    let entries = import_export::parse_settings(&bytes, &file)?;
    import_export::check_owner(&context.home, &file, &found, &entries)?;
    let store = match args.dry_run && !context.home.db().exists() {
        true => None,
        false if args.dry_run => Some(context.open()?),
        false => Some(context.open_or_create()?),
    };
    warn_of_patterns(context, &entries);
    let plan = plan(context, store.as_ref(), &file, entries, args.prune)?;
    if let Some(store) = store.as_ref().filter(|_| !args.dry_run) {
        let is_unfinished = bytes.last().is_some_and(|last| *last != b'\n');
        if args.prune {
            check_prune(args, &file, &plan, is_unfinished)?;
        }
        if !plan.is_empty() && is_unfinished {
            context.warn(&format!("{file} may be cut off: its last line has no newline at its end"));
        }
        plan.apply(&context.home, store, context.now())?;
    }
    report(context, args, &file, &plan, &[])?;
    Ok(0)
}

/// Refuses to delete the schedules that a file lacks which may be cut off.
fn check_prune(args: &ApplyArgs, file: &str, plan: &SettingsPlan, is_unfinished: bool) -> Result<()> {
    if is_unfinished && !plan.deleted.is_empty() {
        let message = format!(
            "the settings file {file} may be cut off: its last line has no newline at its end, and schedules that it \
             lacks would be deleted ({}). Nothing of it was applied",
            plan.deleted.join(", ")
        );
        return Err(Error::usage(message).hint("end its last line with a newline"));
    }
    if args.yes { Ok(()) } else { plan.check_removals(file, "delete them, run `backup-manager apply --prune --yes") }
}

/// Reads the file, and what it is.
fn read(file: &Path) -> Result<(Vec<u8>, fs::Metadata)> {
    let read = || -> io::Result<_> {
        let mut opened = fs::File::open(file)?;
        let mut bytes = Vec::new();
        opened.read_to_end(&mut bytes)?;
        Ok((bytes, opened.metadata()?))
    };
    read().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("the settings file {} does not exist", file.display()))
            .hint("write one with `backup-manager export --format toml FILE`, or give the path of yours"),
        io::ErrorKind::IsADirectory => Error::usage(format!("{} is a folder", file.display()))
            .hint("give the path of the settings file: backup-manager apply FILE"),
        _ => Error::io("read", file)(error),
    })
}

/// Warns about exclude patterns that can match nothing.
fn warn_of_patterns(context: &Context, entries: &[Entry]) {
    for Entry { schedule, .. } in entries {
        for problem in schedule.excludes.globs.iter().filter_map(|glob| source::pattern_problem(glob)) {
            context.warn(&format!("{}: {problem}", schedule.name));
        }
    }
}

fn plan(
    context: &Context,
    store: Option<&Store>,
    file: &str,
    entries: Vec<Entry>,
    prune: bool,
) -> Result<SettingsPlan> {
    let (in_text_file, zone) = match store {
        Some(store) => (names_in_followed_text(context, store)?, context.default_zone(store)?),
        None => (BTreeSet::new(), context.own_zone()?),
    };
    let present = Present { home: &context.home, store, in_text_file: &in_text_file, zone, now: context.now() };
    let removed = if prune { Removed::Delete } else { Removed::Pause };
    SettingsPlan::new(file, entries, removed, &present)
}

/// Returns the names in the text file that a live service follows.
fn names_in_followed_text(context: &Context, store: &Store) -> Result<BTreeSet<ScheduleName>> {
    let workers = context.home.workers();
    let services = live_services(&context.home, store)?;
    let mut heartbeats = services.iter().filter_map(|row| liveness::read_heartbeat(&workers, &row.uuid));
    match heartbeats.any(|heartbeat| heartbeat.follows_text_file) {
        true => import_export::names_in_text_file(store),
        false => Ok(BTreeSet::new()),
    }
}

/// Lets commands manage the schedules of `file` again.
fn release(context: &Context, args: &ApplyArgs, file: &str) -> Result<u8> {
    let store = context.open_store(Access::Existing)?;
    let rows = store.schedules()?;
    let own = rows.iter().filter(|row| row.managed_by.as_ref().is_some_and(|managed| managed.file == file));
    let marks: Vec<_> = own.map(|row| (row.schedule.name.clone(), None)).collect();
    let names: Vec<String> = marks.iter().map(|(name, _)| name.to_string()).collect();
    if !args.dry_run {
        let changes = ScheduleChanges { managed: &marks, ..ScheduleChanges::default() };
        store.apply_schedules(&changes, context.now())?;
    }
    report(context, args, file, &SettingsPlan::default(), &names)?;
    Ok(0)
}

fn report(context: &Context, args: &ApplyArgs, file: &str, plan: &SettingsPlan, released: &[String]) -> Result<()> {
    if context.format == Format::Json {
        return render::print_json(&ApplyDocument {
            file: PathFields::new("file", Path::new(file).as_os_str().as_bytes()),
            dry_run: args.dry_run,
            created: &plan.created,
            revived: &plan.revived,
            changed: plan.changed.iter().map(change_document).collect(),
            paused: &plan.paused,
            deleted: &plan.deleted,
            released,
            unchanged: plan.unchanged,
        });
    }
    let mut lines = lines(plan, released);
    lines.push(match plan.is_empty() && released.is_empty() {
        true => format!("{file}: nothing to change"),
        false => summary(file, plan, released),
    });
    if args.dry_run {
        lines.push("nothing was changed (--dry-run)".to_owned());
        return render::print_text(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    }
    plan.notes().iter().for_each(|note| log::info!("{note}"));
    if !context.quiet {
        // Not for the log: they hold commands.
        lines.iter().for_each(|line| render::print_stderr(line));
    }
    Ok(())
}

fn change_document(change: &EntryChange) -> ChangeDocument<'_> {
    let differences = change.differences.iter().map(|difference| DifferenceDocument {
        key: difference.key,
        before: difference.before.as_deref(),
        after: difference.after.as_deref(),
    });
    ChangeDocument {
        name: &change.name,
        taken_over: change.is_taken_over,
        commands_approved: change.is_approved,
        differences: differences.collect(),
    }
}

fn lines(plan: &SettingsPlan, released: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = plan.created.iter().map(|name| format!("new: {name}")).collect();
    for name in &plan.revived {
        lines.push(format!(
            "  {name} was deleted before: its history and archives belong to it, and its first prune waits"
        ));
    }
    for change in &plan.changed {
        lines.push(format!("changed: {}", change.name));
        if change.is_taken_over {
            lines.push("  managed by the file from now on".to_owned());
        }
        if change.is_approved {
            lines.push("  its commands were held, and are approved".to_owned());
        }
        lines.extend(change.differences.iter().map(|difference| format!("  {difference}")));
    }
    for name in &plan.paused {
        let resume = format!("`backup-manager resume {}`", shell_word(name));
        lines.push(format!("paused: {name} is not in the file any more (to run it all the same: {resume})"));
    }
    let kept = "its history and archives are kept";
    lines.extend(plan.deleted.iter().map(|name| format!("deleted: {name} is not in the file any more; {kept}")));
    lines.extend(released.iter().map(|name| format!("released: {name} is managed by commands from now on")));
    lines
}

fn summary(file: &str, plan: &SettingsPlan, released: &[String]) -> String {
    let counts = [
        (plan.created.len(), "new"),
        (plan.changed.len(), "changed"),
        (plan.paused.len(), "paused"),
        (plan.deleted.len(), "deleted"),
        (released.len(), "released"),
        (plan.unchanged, "unchanged"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    format!("{file}: {}", counts.collect::<Vec<_>>().join(", "))
}

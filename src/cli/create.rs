//! `create`: creates schedules, each from a spec or from a path and options.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use chrono_tz::Tz;
use clap::Args;
use serde::Serialize;

use super::documents::ScheduleDocument;
use super::handover::RunOptions;
use super::render::{self, Format};
use super::schedule_options::{ScheduleOptions, source_path};
use super::{Context, hooks, list, run};
use crate::archive_folder;
use crate::backup::{self, Estimate};
use crate::error::{Error, Result};
use crate::schedule::{Cadence, DayRule, Hooks, Layout, Schedule, ScheduleName, Spec};
use crate::store::{Revived, ScheduleChanges, ScheduleHooks, ScheduleRow, Store, Watermark};

/// How long the estimate of the size of a source may take.
const MAX_ESTIMATE_TIME: Duration = Duration::from_secs(3);

#[derive(Args)]
pub struct CreateArgs {
    /// "PATH;HH:MM;NAME" (repeatable), or a path with --name; none with --source-command
    #[arg(required_unless_present = "source_command", value_name = "SPEC|PATH")]
    spec: Vec<std::ffi::OsString>,
    /// Name of the schedule, if a path is given
    #[arg(long)]
    name: Option<String>,
    /// Also back up now
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    options: ScheduleOptions,
}

pub fn cmd_create(context: &Context, args: &CreateArgs) -> Result<u8> {
    // Errors of the command line are reported before anything is created.
    let (schedules, hooks) = parse(args)?;
    args.options.warn_of_patterns(context);
    if args.options.exclude.iter().all(String::is_empty) && !args.options.exclude.is_empty() {
        context.warn("the exclude pattern is empty, and nothing is excluded by it");
    }
    let store = context.open_or_create()?;
    let zone = context.default_zone(&store)?;
    let now = context.now();
    let new: Vec<(Schedule, Watermark)> = schedules
        .into_iter()
        .map(|mut schedule| {
            set_defaults(context, &mut schedule, args, &store)?;
            let watermark = Watermark::starting(&schedule, zone, now);
            Ok((schedule, watermark))
        })
        .collect::<Result<_>>()?;
    let created = create_with_hooks(context, args, &store, &new, &hooks)?;
    let all = store.schedules()?;
    let mut documents = Vec::new();
    let mut rows = Vec::new();
    for (id, revived) in created {
        let Some((index, row)) = all.iter().enumerate().find(|(_, row)| row.id == id) else { continue };
        documents.push(print_created(context, index, row, &hooks, revived, zone)?);
        rows.push(row.clone());
    }
    if context.format == Format::Json && !args.now {
        render::print_json(&documents)?;
    }
    if args.now {
        return run::run_schedules(context, &store, &rows, &RunOptions::default());
    }
    Ok(0)
}

/// Creates schedules with what surrounds their runs, all or none.
fn create_with_hooks(
    context: &Context,
    args: &CreateArgs,
    store: &Store,
    new: &[(Schedule, Watermark)],
    hooks: &Hooks,
) -> Result<Vec<(i64, Revived)>> {
    let hooks = new
        .iter()
        .map(|(schedule, _)| {
            let none = ScheduleHooks::default();
            let approved = args.options.hooks.approve(context, schedule, &none, hooks.clone())?;
            Ok((schedule.name.clone(), approved))
        })
        .collect::<Result<Vec<_>>>()?;
    store.apply_schedules(&ScheduleChanges { created: new, hooks: &hooks, ..ScheduleChanges::default() }, context.now())
}

/// Returns the schedules of the command line, and what surrounds the runs of each.
fn parse(args: &CreateArgs) -> Result<(Vec<Schedule>, Hooks)> {
    let has_command = args.options.hooks.has_source_command();
    let mut schedules = match (&args.name, &args.spec[..]) {
        (Some(name), [] | [_]) if has_command || !args.spec.is_empty() => {
            let cadence = args.options.cadence()?.ok_or_else(|| {
                Error::usage(format!("no time is given for \"{name}\"")).hint("add --at HH:MM or --cron EXPR")
            })?;
            let source = match args.spec.first() {
                Some(path) => source_path(path)?,
                None => args.options.hooks.source()?,
            };
            vec![Schedule::new(ScheduleName::parse(name)?, source, cadence)]
        }
        (None, []) => {
            return Err(Error::usage("no name is given for the schedule").hint("add --name NAME"));
        }
        (Some(_), _) => {
            return Err(Error::usage("--name requires exactly one path").hint("give one path, or specs without --name"));
        }
        (None, _) if args.options.at.is_some() || args.options.cron.is_some() => {
            return Err(Error::usage("--at and --cron require a path and --name; a spec contains its times")
                .hint("write PATH --name NAME --at HH:MM, or only \"PATH;HH:MM;NAME\""));
        }
        (None, specs) => specs
            .iter()
            .map(|spec| {
                let spec = Spec::parse(spec.as_bytes())?;
                Ok(Schedule::new(spec.name, spec.source, Cadence::Daily(spec.times)))
            })
            .collect::<Result<_>>()?,
    };
    let mut hooks = Hooks::default();
    for schedule in &mut schedules {
        args.options.apply(schedule)?;
        hooks = Hooks::default();
        args.options.hooks.apply(&mut hooks, schedule, !args.spec.is_empty())?;
    }
    for (position, schedule) in schedules.iter().enumerate() {
        if schedules[..position].iter().any(|earlier| earlier.name == schedule.name) {
            return Err(Error::usage(format!("the name \"{}\" is given twice", schedule.name)));
        }
    }
    Ok((schedules, hooks))
}

/// Sets the options that the command line does not give: those that a deleted schedule of the name had, else the
/// compression of the environment or the settings.
fn set_defaults(context: &Context, schedule: &mut Schedule, args: &CreateArgs, store: &Store) -> Result<()> {
    if let Some(deleted) = store.schedule_named(schedule.name.as_str())?.filter(|row| row.deleted) {
        let hooks = store.hooks(deleted.id)?.hooks;
        if !hooks.is_default() {
            let name = &schedule.name;
            context
                .warn(&format!("{name}: the commands and container options that it had are removed: give them again"));
        }
        *schedule = Schedule {
            source: schedule.source.clone(),
            cadence: schedule.cadence.clone(),
            enabled: true,
            ..deleted.schedule
        };
        return args.options.apply(schedule);
    }
    if args.options.compress.is_none() {
        schedule.compression = super::config::default_compression(store)?;
    }
    Ok(())
}

/// What `create --json` prints of each schedule.
#[derive(Serialize)]
struct CreatedDocument {
    #[serde(flatten)]
    schedule: ScheduleDocument,
    /// Whether a deleted schedule of that name came back with its history and archives.
    revived: bool,
    /// Bytes of its source; null if it cannot be read.
    source_bytes: Option<u64>,
    /// How many archives its retention keeps at most; null if all.
    kept_copies: Option<u64>,
    /// Free bytes of the file system of the archive folder.
    free_bytes: Option<u64>,
}

/// Prints a new schedule with the estimated size of its copies; returns its document.
fn print_created(
    context: &Context,
    index: usize,
    row: &ScheduleRow,
    hooks: &Hooks,
    revived: Revived,
    zone: Tz,
) -> Result<CreatedDocument> {
    let schedule = &row.schedule;
    let estimate = estimate(context, row, hooks);
    let own_zone = schedule.zone.unwrap_or(zone);
    let period = schedule.cadence.as_ref().map_or(Duration::MAX, |cadence| cadence.period(own_zone, context.now()));
    let document = CreatedDocument {
        schedule: ScheduleDocument::new(context, index, row, zone),
        revived: revived == Revived::FromHistory,
        source_bytes: estimate.as_ref().map(|estimate| estimate.extent.content_bytes),
        kept_copies: schedule.retention.max_copies(period),
        free_bytes: archive_folder::free_bytes(context.home.backups()).ok(),
    };
    let is_exact = estimate.is_some_and(|estimate| estimate.is_complete);
    warn_if_copies_do_not_fit(context, schedule, &document);
    if context.format == Format::Json {
        return Ok(document);
    }
    if !context.quiet {
        render::print_text(&created_text(context, index, row, hooks, own_zone, &document, is_exact))?;
    }
    Ok(document)
}

/// Estimates the size of the source; `None` if it cannot be read, which is reported, or is what a command prints.
fn estimate(context: &Context, row: &ScheduleRow, hooks: &Hooks) -> Option<Estimate> {
    if hooks.source_command().is_some() {
        return None;
    }
    let estimated = backup::estimate(&context.home, row, &*context.clock, MAX_ESTIMATE_TIME);
    estimated.map_err(|error| context.warn(&error.to_string())).ok()
}

/// Warns if the copies that the retention policy keeps need more room than the archive folder has. Of those in segments
/// only the first needs all of its size; how much changes from one to the next is not known.
fn warn_if_copies_do_not_fit(context: &Context, schedule: &Schedule, document: &CreatedDocument) {
    let (Some(size), Some(free)) = (document.source_bytes, document.free_bytes) else { return };
    let kept = match schedule.layout {
        Layout::Whole => document.kept_copies.unwrap_or(1).max(1),
        Layout::Segmented => 1,
    };
    let name = &schedule.name;
    let needed = size.saturating_mul(kept);
    if needed <= free {
        return;
    }
    let copies = if kept == 1 { "a copy".to_owned() } else { format!("the {kept} copies that it keeps") };
    context.warn(&format!(
        "{name}: {copies} may not fit into {}: {} before compression, and {} are free\n  next: keep fewer (--keep-*), \
         exclude some of the source, or use another archive folder",
        context.home.backups().display(),
        render::bytes(needed),
        render::bytes(free)
    ));
}

/// Describes a new schedule for people. The size of its source is a lower bound unless `is_exact`.
fn created_text(
    context: &Context,
    index: usize,
    row: &ScheduleRow,
    hooks: &Hooks,
    zone: Tz,
    document: &CreatedDocument,
    is_exact: bool,
) -> String {
    let mut text = format!("{index}: {}\n", String::from_utf8_lossy(&list::plain_line(row)));
    if document.revived {
        text += "  a schedule of that name was deleted: its history and archives belong to this one\n";
        text += "  it keeps the options that it had, except those given now; its first prune waits\n";
    }
    let source = hooks::source_words(context, &row.schedule, hooks);
    let next = row.watermark.next_due.map_or("never".to_owned(), |at| at.rfc3339(&zone));
    text += &format!("  source: {source}\n  next run: {next} ({})\n", zone.name());
    if let Some(Cadence::Cron(cron)) = &row.schedule.cadence
        && let Some(rule) = cron.day_rule()
    {
        text += match rule {
            DayRule::Either => "  days: each that matches the day of the month, and each that matches the weekday\n",
            DayRule::Both => "  days: only those that match both the day of the month and the weekday\n",
        };
    }
    if let (Some(size), Some(free)) = (document.source_bytes, document.free_bytes) {
        let more = if is_exact { "" } else { "more than " };
        let kept = document.kept_copies.map_or("all copies".to_owned(), |n| format!("up to {n} copies"));
        let copy = match row.schedule.layout {
            Layout::Whole => "a copy",
            Layout::Segmented => "the first copy",
        };
        text += &format!("  size: {more}{} {copy}, {kept} kept, {} free\n", render::bytes(size), render::bytes(free));
    }
    text
}

//! `list` and `show`: all schedules, or one in full.

use chrono_tz::Tz;
use clap::Args;
use serde::Serialize;

use super::archives::space_words;
use super::documents::{ArchiveDocument, DrillDocument, RunDocument, ScheduleDocument};
use super::history::reuse_words;
use super::hooks::{HooksDocument, ShownHooks, source_words};
use super::render::{self, Format};
use super::{Context, select};
use crate::error::Result;
use crate::schedule::{Layout, Reuse, Schedule};
use crate::store::{Archive, Drill, Run, ScheduleRow, Space, Store};
use crate::words::shell_word;

/// How many due times `show` prints.
const DUE_TIMES_SHOWN: usize = 5;

#[derive(Args)]
pub struct ShowArgs {
    /// Name, or index in `list`
    schedule: String,
}

pub fn cmd_list(context: &Context) -> Result<u8> {
    let store = context.open()?;
    let zone = context.shown_zone(&store)?;
    let rows = store.schedules()?;
    match context.format {
        Format::Json => {
            let rows = rows.iter().enumerate();
            let documents = rows.map(|(index, row)| ScheduleDocument::new(context, index, row, zone));
            render::print_json(&documents.collect::<Vec<_>>())?;
        }
        Format::Plain => {
            let mut bytes = Vec::new();
            for (index, row) in rows.iter().enumerate() {
                bytes.extend_from_slice(format!("{index}: ").as_bytes());
                bytes.extend_from_slice(&plain_line(row));
                bytes.push(b'\n');
            }
            render::print_bytes(&bytes)?;
        }
        Format::Table => print_table(context, &store, &rows, zone)?,
    }
    Ok(0)
}

fn print_table(context: &Context, store: &Store, rows: &[ScheduleRow], zone: Tz) -> Result<()> {
    let mut lines = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let own_zone = row.schedule.zone.unwrap_or(zone);
        let last = store.last_ended(row.id)?;
        lines.push(vec![
            index.to_string(),
            row.schedule.name.to_string(),
            render::escape_control(&String::from_utf8_lossy(&row.schedule.source)).into_owned(),
            when(row),
            if row.schedule.enabled {
                render::short_time_or_dash(row.watermark.next_due, &own_zone)
            } else {
                "paused".to_owned()
            },
            last.as_ref().map_or("never ran".to_owned(), |run| run_result(run, &zone)),
        ]);
    }
    let empty = "No schedules yet. Make one: backup-manager create \"PATH;HH:MM;NAME\"";
    render::print_table(&["#", "NAME", "SOURCE", "AT", "NEXT", "LAST"], lines, context.colour, empty)
}

/// Returns `path;hh:mm;name`, as bytes: a path need not be UTF-8.
pub fn plain_line(row: &ScheduleRow) -> Vec<u8> {
    let mut line = row.schedule.source.clone();
    let paused = if row.schedule.enabled { "" } else { " (paused)" };
    line.extend_from_slice(format!(";{};{}{paused}", when(row), row.schedule.name).as_bytes());
    line
}

fn when(row: &ScheduleRow) -> String {
    row.schedule.cadence.as_ref().map_or("no time".to_owned(), ToString::to_string)
}

/// Returns the result and time of a restore test, for people.
pub fn drill_result(drill: &Drill, zone: &Tz) -> String {
    let outcome = if drill.passed { "passed" } else { "failed" };
    format!("{outcome} {}", render::short_time(drill.started_at, zone))
}

/// Returns the state of a run and when it ended, for people.
pub fn run_result(run: &Run, zone: &Tz) -> String {
    let at = run.finished_at.or(run.scheduled_for);
    format!("{} {}", run.state.as_str(), render::short_time_or_dash(at, zone))
}

/// A schedule in full, and what else the database holds of it.
struct ScheduleDetails {
    index: usize,
    row: ScheduleRow,
    /// The next due times, RFC 3339.
    coming: Vec<String>,
    last_run: Option<Run>,
    newest_good: Option<Archive>,
    archives: Vec<Archive>,
    last_drill: Option<Drill>,
    hooks: ShownHooks,
}

/// What `show --json` prints.
#[derive(Serialize)]
struct ShowDocument<'a> {
    #[serde(flatten)]
    schedule: ScheduleDocument,
    /// All options, in the form of `export --format json`.
    options: &'a Schedule,
    /// What surrounds its runs.
    hooks: HooksDocument<'a>,
    /// The next due times.
    coming: &'a [String],
    last_run: Option<RunDocument>,
    newest_good: Option<ArchiveDocument>,
    archives: SpaceDocument,
    last_drill: Option<DrillDocument>,
}

/// The archives of a schedule together.
#[derive(Serialize)]
struct SpaceDocument {
    count: usize,
    /// The sizes of all.
    bytes: u64,
    /// The sizes of their files, each counted once.
    disk_bytes: u64,
}

impl SpaceDocument {
    fn of(archives: &[Archive]) -> SpaceDocument {
        let Space { bytes, disk_bytes } = Space::of(archives);
        SpaceDocument { count: archives.len(), bytes, disk_bytes }
    }
}

pub fn cmd_show(context: &Context, args: &ShowArgs) -> Result<u8> {
    let store = context.open()?;
    let zone = context.shown_zone(&store)?;
    let row = select::schedule(&store, &args.schedule)?;
    let details = ScheduleDetails {
        index: store.schedules()?.iter().position(|other| other.id == row.id).unwrap_or_default(),
        coming: coming(&row, zone, context),
        last_run: store.last_ended(row.id)?,
        newest_good: store.newest_good(row.id)?,
        archives: store.archives(Some(row.id))?,
        last_drill: store.last_drill(row.id)?,
        hooks: ShownHooks::read(context, &store, &row)?,
        row,
    };
    if context.format == Format::Json {
        render::print_json(&ShowDocument {
            schedule: ScheduleDocument::new(context, details.index, &details.row, zone),
            options: &details.row.schedule,
            hooks: details.hooks.document(),
            coming: &details.coming,
            last_run: details.last_run.as_ref().map(|run| RunDocument::new(run, &zone)),
            newest_good: details.newest_good.as_ref().map(|archive| ArchiveDocument::new(context, archive)),
            archives: SpaceDocument::of(&details.archives),
            last_drill: details.last_drill.as_ref().map(|drill| DrillDocument::new(drill, &zone)),
        })?;
    } else {
        render::print_text(&details_text(context, &details, zone))?;
    }
    Ok(0)
}

fn details_text(context: &Context, details: &ScheduleDetails, zone: Tz) -> String {
    let ScheduleDetails { index, row, coming, .. } = details;
    let schedule = &row.schedule;
    let own_zone = schedule.zone.unwrap_or(zone);
    let origin = if schedule.zone.is_some() { "its own" } else { "the service's" };
    let mut lines = vec![
        ("name", format!("{} (index {index})", schedule.name)),
        ("source", source_words(context, schedule, &details.hooks.hooks)),
        ("at", format!("{}{}", when(row), if schedule.enabled { "" } else { " (paused)" })),
        ("time zone", format!("{} ({origin})", own_zone.name())),
        ("next", if coming.is_empty() { "never".to_owned() } else { coming.join("\n              ") }),
        ("missed times", schedule.catch_up.describe().to_owned()),
        ("compression", schedule.compression.to_string()),
        ("layout", layout_words(schedule.layout, details.newest_good.as_ref())),
        ("verification", if schedule.verify { "after each run" } else { "off" }.to_owned()),
        ("kept", schedule.retention.to_string()),
    ];
    lines.extend(row.managed_by.as_ref().map(|managed| ("managed by", managed.to_string())));
    lines.extend(exclude_lines(row));
    lines.extend(reuse_line(row));
    lines.extend(details.hooks.lines(schedule));
    lines.push((
        "last run",
        details
            .last_run
            .as_ref()
            .map_or("never ran".to_owned(), |run| format!("@{} {}", run.id, run_result(run, &zone))),
    ));
    lines.extend(details.last_run.as_ref().and_then(reuse_words).map(|reuse| ("unchanged", reuse)));
    if row.reuse_off {
        let accept = format!("until `backup-manager accept {}`", shell_word(schedule.name.as_str()));
        lines.push(("all is read", format!("because a file changed without its times, {accept}")));
    }
    lines.push((
        "newest good",
        details.newest_good.as_ref().map_or("none".to_owned(), |archive| newest_words(context, archive, zone)),
    ));
    if !details.archives.is_empty() {
        lines.push(("archives", space_words(&details.archives)));
    }
    let last_drill = details.last_drill.as_ref().map_or("none yet".to_owned(), |drill| drill_result(drill, &zone));
    lines.push(("restore test", last_drill));
    lines.iter().map(|(key, value)| format!("{key:<13} {value}\n")).collect()
}

/// Returns where the newest good archive is, its size and when it was verified.
fn newest_words(context: &Context, archive: &Archive, zone: Tz) -> String {
    let path = context.home.backups().join(&archive.file_name);
    let verified = render::short_time_or_dash(archive.verified_at, &zone);
    format!("{} ({}, last verified {verified})", path.display(), render::bytes(archive.size))
}

/// Returns the layout of a schedule, and since when if its newest archive has another one.
fn layout_words(layout: Layout, newest_good: Option<&Archive>) -> String {
    match newest_good {
        Some(newest) if newest.layout != layout => {
            format!("{layout} from the next run on (@{} is {})", newest.run, newest.layout)
        }
        _ => layout.to_string(),
    }
}

fn exclude_lines(row: &ScheduleRow) -> Vec<(&'static str, String)> {
    let excludes = &row.schedule.excludes;
    let mut lines = Vec::new();
    let mut list = |key, words: &[String]| {
        if !words.is_empty() {
            lines.push((key, words.join(" ")));
        }
    };
    list("excluded", &excludes.globs);
    list("exclude file", &excludes.files);
    list("if present", &excludes.if_present);
    if excludes.caches {
        lines.push(("caches", "excluded".to_owned()));
    }
    if excludes.one_file_system {
        lines.push(("file systems", "only that of the source".to_owned()));
    }
    lines
}

/// Returns by which facts unchanged files are recognised, if not by the usual ones.
fn reuse_line(row: &ScheduleRow) -> Option<(&'static str, String)> {
    let Reuse { ignore_inode, ignore_ctime, trust_times } = row.schedule.reuse;
    let options = [
        (ignore_inode, "inode numbers are ignored"),
        (ignore_ctime, "ctime is ignored"),
        (trust_times, "the times of all file systems are trusted"),
    ];
    let set: Vec<_> = options.into_iter().filter_map(|(is_set, words)| is_set.then_some(words)).collect();
    (!set.is_empty()).then(|| ("compared", set.join(", ")))
}

fn coming(row: &ScheduleRow, zone: Tz, context: &Context) -> Vec<String> {
    let own_zone = row.schedule.zone.unwrap_or(zone);
    let first = row.watermark.next_due.filter(|_| row.schedule.enabled);
    let next = |at: &_| row.schedule.next_after(zone, context.now().max(*at));
    std::iter::successors(first, next).take(DUE_TIMES_SHOWN).map(|at| at.rfc3339(&own_zone)).collect()
}

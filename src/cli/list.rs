//! `list` and `show`: the schedules.

use chrono_tz::Tz;
use clap::Args;
use serde_json::{Map, Value, json};

use super::render::{self, Format};
use super::{Context, select};
use crate::error::{Error, Result};
use crate::schedule::Cadence;
use crate::store::{Drill, Run, ScheduleRow, Store};

/// Instants that `show` looks ahead.
const LOOK_AHEAD: usize = 5;

#[derive(Args)]
pub struct ShowArgs {
    /// Name, or index in `list`
    schedule: String,
}

pub fn cmd_list(context: &Context) -> Result<u8> {
    let store = context.open()?;
    let zone = context.default_zone(&store)?;
    let rows = store.schedules()?;
    match context.format {
        Format::Json => {
            let documents: Vec<Value> =
                rows.iter().enumerate().map(|(index, row)| schedule_json(context, index, row, zone)).collect();
            render::print_json(&Value::from(documents))?;
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
            last.as_ref().map_or("never ran".to_owned(), |run| last_result(run, &zone)),
        ]);
    }
    let empty = "No schedules yet. Make one: backup-manager create \"PATH;HH:MM;NAME\"";
    render::print_table(&["#", "NAME", "SOURCE", "AT", "NEXT", "LAST"], lines, context.colour, empty)
}

/// Returns `path;hh:mm;name`, as bytes: a path need not be text.
pub fn plain_line(row: &ScheduleRow) -> Vec<u8> {
    let mut line = row.schedule.source.clone();
    let paused = if row.schedule.enabled { "" } else { " (paused)" };
    line.extend_from_slice(format!(";{};{}{paused}", when(row), row.schedule.name).as_bytes());
    line
}

fn when(row: &ScheduleRow) -> String {
    row.schedule.cadence.as_ref().map_or("no time".to_owned(), ToString::to_string)
}

/// Returns how a restore drill went, for people.
pub fn last_drill(drill: &Drill, zone: &Tz) -> String {
    let outcome = if drill.passed { "passed" } else { "failed" };
    format!("drill {outcome} {}", render::short_time(drill.started_at, zone))
}

/// Returns how a restore drill went, for JSON.
pub fn drill_json(drill: Option<&Drill>, zone: &Tz) -> Value {
    drill.map_or(Value::Null, |drill| {
        json!({
            "run": drill.run,
            "started": render::json_time(Some(drill.started_at), zone),
            "finished": render::json_time(drill.finished_at, zone),
            "passed": drill.passed,
            "files": drill.files,
            "content_bytes": drill.content_bytes,
            "error": drill.error,
        })
    })
}

pub fn last_result(run: &Run, zone: &Tz) -> String {
    let at = run.finished_at.or(run.scheduled_for);
    format!("{} {}", run.state.as_str(), render::short_time_or_dash(at, zone))
}

pub fn cmd_show(context: &Context, args: &ShowArgs) -> Result<u8> {
    let store = context.open()?;
    let zone = context.default_zone(&store)?;
    let row = select::schedule(&store, &args.schedule)?;
    let index = store.schedules()?.iter().position(|other| other.id == row.id).unwrap_or_default();
    let last = store.last_ended(row.id)?;
    let newest = store.newest_good(row.id)?;
    let drill = store.last_drill(row.id)?;
    let coming = coming(&row, zone, context);
    if context.format == Format::Json {
        let mut document = schedule_json(context, index, &row, zone);
        document["options"] = serde_json::to_value(&row.schedule)
            .map_err(|e| Error::failed("cannot describe the schedule").because(e))?;
        document["coming"] = json!(coming);
        document["last_run"] = last.as_ref().map_or(Value::Null, |run| super::history::run_json(run, &zone));
        document["newest_good"] =
            newest.as_ref().map_or(Value::Null, |archive| super::archives::archive_json(context, archive));
        document["last_drill"] = drill_json(drill.as_ref(), &zone);
        render::print_json(&document)?;
        return Ok(0);
    }
    let schedule = &row.schedule;
    let own_zone = schedule.zone.unwrap_or(zone);
    let origin = if schedule.zone.is_some() { "its own" } else { "the service's" };
    let mut lines = vec![
        ("name", format!("{} (index {index})", schedule.name)),
        ("source", context.home.source_path(&schedule.source).display().to_string()),
        ("at", format!("{}{}", when(&row), if schedule.enabled { "" } else { " (paused)" })),
        ("time zone", format!("{} ({origin})", own_zone.name())),
        ("next", if coming.is_empty() { "never".to_owned() } else { coming.join("\n              ") }),
        ("missed times", schedule.catch_up.describe().to_owned()),
        ("compression", schedule.compression.to_string()),
        ("proof", if schedule.verify { "every archive is read back" } else { "archives are not read back" }.to_owned()),
        ("kept", schedule.retention.to_string()),
    ];
    lines.extend(exclude_lines(&row));
    lines.push((
        "last run",
        last.map_or("never ran".to_owned(), |run| format!("@{} {}", run.id, last_result(&run, &zone))),
    ));
    lines.push((
        "newest good",
        newest.map_or("none".to_owned(), |archive| {
            let path = context.home.backups().join(&archive.file_name);
            let verified = render::short_time_or_dash(archive.verified_at, &zone);
            format!("{} ({}, last verified {verified})", path.display(), render::bytes(archive.size))
        }),
    ));
    lines.push(("last drill", drill.map_or("none yet".to_owned(), |drill| last_drill(&drill, &zone))));
    let text: String = lines.iter().map(|(key, value)| format!("{key:<13} {value}\n")).collect();
    render::print(&text)?;
    Ok(0)
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
        lines.push(("caches", "left out".to_owned()));
    }
    if excludes.one_file_system {
        lines.push(("file systems", "only that of the source".to_owned()));
    }
    lines
}

fn coming(row: &ScheduleRow, zone: Tz, context: &Context) -> Vec<String> {
    let own_zone = row.schedule.zone.unwrap_or(zone);
    let first = row.watermark.next_due.filter(|_| row.schedule.enabled);
    let next = |at: &_| row.schedule.next_after(zone, context.now().max(*at));
    std::iter::successors(first, next).take(LOOK_AHEAD).map(|at| at.rfc3339(&own_zone)).collect()
}

/// Returns a schedule for JSON.
pub fn schedule_json(context: &Context, index: usize, row: &ScheduleRow, zone: Tz) -> Value {
    let schedule = &row.schedule;
    let own_zone = schedule.zone.unwrap_or(zone);
    let mut object = Map::new();
    object.insert("index".into(), json!(index));
    object.insert("name".into(), json!(schedule.name.as_str()));
    render::put_path(&mut object, "path", &schedule.source);
    let resolved = context.home.source_path(&schedule.source);
    render::put_path(&mut object, "source", std::os::unix::ffi::OsStrExt::as_bytes(resolved.as_os_str()));
    let (at, cron) = match &schedule.cadence {
        Some(Cadence::Daily(times)) => (times.as_slice().iter().map(ToString::to_string).collect(), None),
        Some(Cadence::Cron(cron)) => (Vec::new(), Some(cron.as_str())),
        None => (Vec::new(), None),
    };
    object.insert("at".into(), json!(at));
    object.insert("cron".into(), json!(cron));
    object.insert("timezone".into(), json!(own_zone.name()));
    object.insert("timezone_is_own".into(), json!(schedule.zone.is_some()));
    object.insert("enabled".into(), json!(schedule.enabled));
    object.insert("compress".into(), json!(schedule.compression.to_string()));
    let next = row.watermark.next_due.filter(|_| schedule.enabled);
    object.insert("next_due".into(), render::json_time(next, &own_zone));
    Value::Object(object)
}

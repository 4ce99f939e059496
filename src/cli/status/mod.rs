//! `status`: the service, running and next runs, and the state of each schedule.
//!
//! What counts as a problem of a schedule or a service is decided by `health`; here it becomes text, JSON and the exit
//! code, together with problems of the whole home.

mod containers;
mod problems;

use std::path::{Path, PathBuf};

use chrono_tz::Tz;
use clap::Args;
use serde::Serialize;

use super::Context;
use super::active_runs::{ActiveRuns, NamedRunDocument, QueuedDocument, RunningDocument, RunningRun};
use super::documents::{self, ArchiveDocument, DrillDocument, RunDocument, ScheduleDocument};
use super::hooks::{DutyDocument, duty_text};
use super::list;
use super::render::{self, Format};
use crate::durable;
use crate::error::{Error, Result};
use crate::health::{self, HomeState, LiveService, ScheduleState};
use crate::store::{Duty, ScheduleRow, Store};
use problems::{home_problem_text, schedule_problem_text};

#[derive(Args)]
pub struct StatusArgs {
    /// Check only that the service is alive, responds, and can write to its database and archives
    #[arg(long)]
    service: bool,
    /// Print metrics in the text format of Prometheus; exits with 0 also if something is wrong
    #[arg(long, conflicts_with_all = ["service", "json", "plain"])]
    prometheus: bool,
    /// Write the metrics into FILE, which is replaced as a whole and readable for everybody
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    out: Option<PathBuf>,
}

/// The live services, and what is wrong with them, the database or the archive folder, in words.
struct ShownHome {
    services: Vec<LiveService>,
    problems: Vec<String>,
    /// What runs began and is still to be undone.
    open_duties: Vec<Duty>,
}

/// Why the files that the service follows are not applied.
struct FileErrors {
    import: Option<String>,
    config: Option<String>,
}

impl FileErrors {
    fn iter(&self) -> impl Iterator<Item = &str> {
        [&self.import, &self.config].into_iter().filter_map(|error| error.as_deref())
    }
}

/// The state of one schedule, with what is wrong with it in words.
struct ShownSchedule<'a> {
    state: ScheduleState,
    running: Option<&'a RunningRun>,
    problems: Vec<String>,
}

pub fn cmd_status(context: &Context, args: &StatusArgs) -> Result<u8> {
    let store = context.open()?;
    let home = HomeState::read(&context.home, &store, context.now())?;
    if args.service {
        return print_service_health(context, &ShownHome::of(home));
    }
    let zone = context.shown_zone(&store)?;
    let rows = store.schedules()?;
    let container_problems = containers::problems(context, &store, &rows)?;
    let runs = ActiveRuns::read(context, &store, &rows)?;
    let schedules = rows
        .into_iter()
        .map(|row| ShownSchedule::read(context, &store, row, &runs, zone))
        .collect::<Result<Vec<_>>>()?;
    let file_errors = FileErrors { import: store.imported()?.error, config: store.config_error()? };
    let healthy = home.problems.is_empty()
        && home.open_duties.is_empty()
        && file_errors.iter().next().is_none()
        && container_problems.is_empty()
        && schedules.iter().all(|shown| shown.problems.is_empty());
    if args.prometheus {
        let states: Vec<_> = schedules.iter().map(|shown| &shown.state).collect();
        let metrics = health::metrics_text(&home, &states, healthy, context.now());
        return write_metrics(&metrics, args.out.as_deref()).map(|()| 0);
    }
    let mut home = ShownHome::of(home);
    home.problems.extend(container_problems);
    if context.format == Format::Json {
        render::print_json(&document(context, &home, &runs, &schedules, &file_errors, healthy, zone))?;
    } else {
        render::print_text(&status_text(context, &home, &runs, &schedules, &file_errors, zone))?;
    }
    Ok(u8::from(!healthy))
}

/// Prints metrics, or writes them into a file that the collector of another user reads.
fn write_metrics(text: &str, out: Option<&Path>) -> Result<()> {
    match out {
        None => render::print_text(text),
        Some(path) if path.is_dir() => {
            Err(Error::usage(format!("--out {} is a folder", path.display())).hint("name a file that ends in .prom"))
        }
        Some(path) => durable::write_file(path, text.as_bytes(), 0o644, true).map(drop),
    }
}

/// What `status --service --json` prints.
#[derive(Serialize)]
struct ServiceHealthDocument<'a> {
    /// Whether the exit code is 0.
    healthy: bool,
    /// The services that are alive.
    pids: Vec<u32>,
    trouble: &'a [String],
}

fn print_service_health(context: &Context, home: &ShownHome) -> Result<u8> {
    let healthy = home.problems.is_empty();
    if context.format == Format::Json {
        let pids: Vec<u32> = home.services.iter().map(|(row, _)| row.pid).collect();
        render::print_json(&ServiceHealthDocument { healthy, pids, trouble: &home.problems })?;
    } else if healthy {
        render::print_line("the service is alive, responds, and can write to its database and its archive folder")?;
    } else {
        render::print_line(&home.problems.join("\n"))?;
    }
    Ok(u8::from(!healthy))
}

impl ShownHome {
    fn of(state: HomeState) -> ShownHome {
        let HomeState { services, problems, open_duties } = state;
        ShownHome { problems: problems.iter().map(home_problem_text).collect(), services, open_duties }
    }
}

impl<'a> ShownSchedule<'a> {
    fn read(context: &Context, store: &Store, row: ScheduleRow, runs: &'a ActiveRuns, zone: Tz) -> Result<Self> {
        let running = runs.of_schedule(row.id);
        let heartbeat = running.and_then(|running| running.heartbeat.as_ref());
        let state = ScheduleState::read(&context.home, store, row, zone, running.is_some(), heartbeat, context.now())?;
        let name = state.row.schedule.name.as_str();
        let problems = state.problems.iter().map(|problem| schedule_problem_text(problem, name)).collect();
        Ok(ShownSchedule { state, running, problems })
    }
}

fn status_text(
    context: &Context,
    home: &ShownHome,
    runs: &ActiveRuns,
    schedules: &[ShownSchedule<'_>],
    file_errors: &FileErrors,
    zone: Tz,
) -> String {
    let mut text = String::new();
    for (row, _) in &home.services {
        let since = render::short_time(row.started_at, &zone);
        text += &format!("service: process {} since {since}, time zone {}\n", row.pid, zone.name());
    }
    for problem in home.problems.iter().map(String::as_str).chain(file_errors.iter()) {
        text += &format!("! {problem}\n");
    }
    for duty in &home.open_duties {
        text += &format!("! {}\n", duty_text(duty));
    }
    text += &runs.text(context, &zone);
    let upcoming = schedules.iter().map(|shown| &shown.state).filter(|state| state.row.schedule.enabled);
    let upcoming = upcoming.filter_map(|state| Some((state.row.watermark.next_due?, state)));
    if let Some((at, state)) = upcoming.min_by_key(|(at, _)| *at) {
        text += &format!("next: {} at {}\n", state.row.schedule.name, at.rfc3339(&state.zone));
    }
    if schedules.is_empty() {
        text += "no schedules: add them with `backup-manager create`\n";
    }
    for shown in schedules {
        text += &schedule_lines(context, shown);
    }
    text
}

fn schedule_lines(context: &Context, shown: &ShownSchedule<'_>) -> String {
    let state = &shown.state;
    let schedule = &state.row.schedule;
    let last = state
        .last
        .as_ref()
        .map_or("no run has ended yet".to_owned(), |run| format!("last run {}", list::run_result(run, &state.zone)));
    let newest = state.newest.as_ref().map_or("no good archive".to_owned(), |archive| {
        let age = render::age(context.now().since(archive.created_at));
        match archive.verified_at {
            Some(at) => format!("newest good archive {age} old, verified {}", render::short_time(at, &state.zone)),
            None => format!("newest good archive {age} old, not verified"),
        }
    });
    let paused = if schedule.enabled { "" } else { " (paused)" };
    let drill = match &state.drill {
        Some(drill) => format!("; restore test {}", list::drill_result(drill, &state.zone)),
        None if state.newest.is_some() => "; no restore test yet".to_owned(),
        None => String::new(),
    };
    let mut text = format!("{}{paused}: {last}; {newest}{drill}\n", schedule.name);
    for problem in &shown.problems {
        text += &format!("  ! {problem}\n");
    }
    text
}

/// What `status --json` prints.
#[derive(Serialize)]
struct StatusDocument<'a> {
    /// Whether the exit code is 0.
    healthy: bool,
    /// The zone of schedules without their own.
    timezone: &'static str,
    /// The services that are alive.
    services: Vec<ServiceDocument<'a>>,
    /// What is wrong with the service, the database or the archive folder.
    trouble: &'a [String],
    /// What runs began and is still to be undone, and nobody works on.
    duties: Vec<DutyDocument>,
    /// Why the text file that the service follows could not be imported.
    import_error: Option<&'a str>,
    /// Why the settings file that the service follows could not be applied.
    config_error: Option<&'a str>,
    /// Every running run, also of a schedule that was deleted meanwhile.
    running: Vec<NamedRunDocument<'a>>,
    /// Runs that wait: for a free worker, or for another try.
    queued: Vec<QueuedDocument<'a>>,
    schedules: Vec<ScheduleStateDocument<'a>>,
}

/// A service that is alive.
#[derive(Serialize)]
struct ServiceDocument<'a> {
    pid: u32,
    host: &'a str,
    started: String,
}

/// The state of one schedule.
#[derive(Serialize)]
struct ScheduleStateDocument<'a> {
    #[serde(flatten)]
    schedule: ScheduleDocument,
    last_run: Option<RunDocument>,
    newest_good: Option<ArchiveDocument>,
    last_drill: Option<DrillDocument>,
    /// Problems of the last run that the run before it did not have; 0 once accepted.
    new_problems: u64,
    /// What is wrong with it.
    trouble: &'a [String],
    running: Option<RunningDocument<'a>>,
}

fn document<'a>(
    context: &Context,
    home: &'a ShownHome,
    runs: &'a ActiveRuns,
    schedules: &'a [ShownSchedule<'a>],
    file_errors: &'a FileErrors,
    healthy: bool,
    zone: Tz,
) -> StatusDocument<'a> {
    let services = home.services.iter().map(|(row, _)| ServiceDocument {
        pid: row.pid,
        host: &row.host,
        started: documents::time(row.started_at, &zone),
    });
    let states = schedules.iter().enumerate().map(|(index, shown)| schedule_document(context, index, shown));
    StatusDocument {
        healthy,
        timezone: zone.name(),
        services: services.collect(),
        trouble: &home.problems,
        duties: home.open_duties.iter().map(|duty| DutyDocument::new(duty, &zone)).collect(),
        import_error: file_errors.import.as_deref(),
        config_error: file_errors.config.as_deref(),
        running: runs.running_documents(),
        queued: runs.queued_documents(&zone),
        schedules: states.collect(),
    }
}

fn schedule_document<'a>(context: &Context, index: usize, shown: &'a ShownSchedule<'a>) -> ScheduleStateDocument<'a> {
    let state = &shown.state;
    ScheduleStateDocument {
        schedule: ScheduleDocument::new(context, index, &state.row, state.zone),
        last_run: state.last.as_ref().map(|run| RunDocument::new(run, &state.zone)),
        newest_good: state.newest.as_ref().map(|archive| ArchiveDocument::new(context, archive)),
        last_drill: state.drill.as_ref().map(|drill| DrillDocument::new(drill, &state.zone)),
        new_problems: state.new_problems,
        trouble: &shown.problems,
        running: shown.running.map(RunningRun::document),
    }
}

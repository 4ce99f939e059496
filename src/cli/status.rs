//! `status`: the service, running and next runs, and the state of each schedule.
//!
//! What counts as a problem of a schedule or a service is decided by `health`; here it becomes text, JSON and the exit
//! code, together with problems of the whole home.

use chrono_tz::Tz;
use clap::Args;
use serde::Serialize;

use super::Context;
use super::active_runs::{ActiveRuns, NamedRunDocument, QueuedDocument, RunningDocument, RunningRun};
use super::documents::{self, ArchiveDocument, DrillDocument, RunDocument, ScheduleDocument};
use super::render::{self, Format};
use crate::archive_folder;
use crate::error::{Error, Result};
use crate::health::{self, LiveService, ScheduleFacts, ScheduleProblem, ServiceProblem};
use crate::liveness;
use crate::service::live_services;
use crate::store::{Archive, Drill, Run, ScheduleRow, Store, Task};
use crate::words::shell_word;

#[derive(Args)]
pub struct StatusArgs {
    /// Check only that the service is alive, responds, and can write to its database and archives
    #[arg(long)]
    service: bool,
}

/// The live services, and what is wrong with them, the database or the archive folder.
struct ServiceState {
    workers: Vec<LiveService>,
    problems: Vec<String>,
}

/// The state of one schedule.
struct ScheduleState<'a> {
    row: ScheduleRow,
    zone: Tz,
    last: Option<Run>,
    newest: Option<Archive>,
    drill: Option<Drill>,
    running: Option<&'a RunningRun>,
    new_problems: u64,
    problems: Vec<String>,
}

pub fn cmd_status(context: &Context, args: &StatusArgs) -> Result<u8> {
    let store = context.open()?;
    let service = service_state(context, &store)?;
    if args.service {
        return print_service_health(context, &service);
    }
    let zone = context.shown_zone(&store)?;
    let rows = store.schedules()?;
    let runs = ActiveRuns::read(context, &store, &rows)?;
    let schedules =
        rows.into_iter().map(|row| schedule_state(context, &store, row, &runs, zone)).collect::<Result<Vec<_>>>()?;
    let import_error = store.imported()?.error;
    let healthy = service.problems.is_empty()
        && import_error.is_none()
        && schedules.iter().all(|state| state.problems.is_empty());
    if context.format == Format::Json {
        render::print_json(&document(context, &service, &runs, &schedules, import_error.as_deref(), healthy, zone))?;
    } else {
        render::print_text(&status_text(context, &service, &runs, &schedules, import_error.as_deref(), zone))?;
    }
    Ok(u8::from(!healthy))
}

fn service_state(context: &Context, store: &Store) -> Result<ServiceState> {
    let folder = context.home.workers();
    let workers: Vec<_> = live_services(&context.home, store)?
        .into_iter()
        .map(|row| {
            let heartbeat = liveness::read_heartbeat(&folder, &row.uuid);
            (row, heartbeat)
        })
        .collect();
    let found = health::service_problems(&workers, context.now());
    let mut problems: Vec<String> = found.iter().map(service_problem_text).collect();
    if let Err(error) = store.check_writable() {
        problems.push(error.to_string());
    }
    if let Err(error) = archive_folder::inspect(&context.home, store) {
        problems.push(with_next_step(&error));
    } else if let Some(error) = archive_folder::find_unknown_archives(&context.home, store)?.error(&context.home) {
        problems.push(with_next_step(&error));
    }
    for index in archive_folder::find_unreadable_indexes(&context.home, store)? {
        problems.push(with_next_step(&index.into_error(&context.home)));
    }
    let copy = store.task_state(Task::Copy)?;
    problems.extend(health::copy_problem(&workers, copy, context.now()).as_ref().map(service_problem_text));
    Ok(ServiceState { workers, problems })
}

fn with_next_step(error: &Error) -> String {
    error.next_step().map_or_else(|| error.to_string(), |next| format!("{error}: {next}"))
}

fn service_problem_text(problem: &ServiceProblem) -> String {
    match problem {
        ServiceProblem::NotRunning => "the service is not running: start it with `backup-manager start`".to_owned(),
        ServiceProblem::NotResponding { pid, silent_for } => {
            format!("the service (process {pid}) has not responded for {}", render::age(*silent_for))
        }
        ServiceProblem::CopyFailed => "the database could not be copied to the archive folder: see \
                                       logs/backup_service.log; the service tries again each hour"
            .to_owned(),
        ServiceProblem::NoRecentCopy { age } => {
            let since = age.map_or_else(|| "yet".to_owned(), |age| format!("for {}", render::age(age)));
            format!(
                "no copy of the database was made {since}, although a service is running: see \
                     logs/backup_service.log"
            )
        }
        ServiceProblem::Reported { pid, reason } => format!("the service (process {pid}): {reason}"),
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

fn print_service_health(context: &Context, service: &ServiceState) -> Result<u8> {
    let healthy = service.problems.is_empty();
    if context.format == Format::Json {
        let pids: Vec<u32> = service.workers.iter().map(|(row, _)| row.pid).collect();
        render::print_json(&ServiceHealthDocument { healthy, pids, trouble: &service.problems })?;
    } else if healthy {
        render::print_line("the service is alive, responds, and can write to its database and its archive folder")?;
    } else {
        render::print_line(&service.problems.join("\n"))?;
    }
    Ok(u8::from(!healthy))
}

fn schedule_state<'a>(
    context: &Context,
    store: &Store,
    row: ScheduleRow,
    runs: &'a ActiveRuns,
    zone: Tz,
) -> Result<ScheduleState<'a>> {
    let zone = row.schedule.zone.unwrap_or(zone);
    let last = store.last_ended(row.id)?;
    let last_archive = last.as_ref().map(|run| store.archive(run.id)).transpose()?.flatten();
    let newest = store.newest_good(row.id)?;
    let running = runs.of_schedule(row.id);
    let new_problems = match last.as_ref().filter(|run| !run.accepted) {
        Some(run) => store.new_problems(run)?,
        None => 0,
    };
    let drill = store.last_drill(row.id)?;
    let facts = ScheduleFacts {
        row: &row,
        zone,
        last_run: last.as_ref(),
        last_archive: last_archive.as_ref(),
        new_problems,
        newest_good: newest.as_ref(),
        unhealthy_archives: store.unhealthy_archives(row.id)?,
        last_drill: drill.as_ref(),
        is_running: running.is_some(),
        run_heartbeat: running.and_then(|running| running.heartbeat.as_ref()),
    };
    let found = health::schedule_problems(&facts, context.now());
    let problems = found.iter().map(|problem| schedule_problem_text(problem, row.schedule.name.as_str())).collect();
    Ok(ScheduleState { row, zone, last, newest, drill, running, new_problems, problems })
}

fn schedule_problem_text(problem: &ScheduleProblem, name: &str) -> String {
    let name = shell_word(name);
    match problem {
        ScheduleProblem::RunFailed { run, error } => {
            format!("run @{run} failed: {}", error.as_deref().unwrap_or("no reason is known"))
        }
        ScheduleProblem::NewUnreadablePaths { run, count } => {
            format!("{} could not be read whole: see `history @{run}`", render::count(*count, "new path"))
        }
        ScheduleProblem::SuspectArchive { run } => format!(
            "@{run} holds less than half of what the archive before it held, and does not count as good: inspect it, \
             then run `backup-manager accept {name}`"
        ),
        ScheduleProblem::UnhealthyArchives { count } => {
            let what = render::count(*count, "archive");
            format!(
                "{what} damaged or missing: see `backups {name} --all`; `repair {name}` uses equal parts of other \
                 archives, `run {name}` makes a new one"
            )
        }
        ScheduleProblem::DrillFailed { error } => format!("the last restore test failed: {error}"),
        ScheduleProblem::Overdue { newest_good_age } => {
            format!("overdue: its newest good archive is {} old", render::age(*newest_good_age))
        }
        ScheduleProblem::OverdueWithoutArchive { waiting_for } => {
            format!("overdue: no good archive since it was created or edited {} ago", render::age(*waiting_for))
        }
        ScheduleProblem::Stalled { run, stalled_for } => {
            format!("run @{run} has made no progress for {}", render::age(*stalled_for))
        }
    }
}

fn status_text(
    context: &Context,
    service: &ServiceState,
    runs: &ActiveRuns,
    schedules: &[ScheduleState<'_>],
    import_error: Option<&str>,
    zone: Tz,
) -> String {
    let mut text = String::new();
    for (row, _) in &service.workers {
        let since = render::short_time(row.started_at, &zone);
        text += &format!("service: process {} since {since}, time zone {}\n", row.pid, zone.name());
    }
    for problem in service.problems.iter().map(String::as_str).chain(import_error) {
        text += &format!("! {problem}\n");
    }
    text += &runs.text(context, &zone);
    let upcoming = schedules.iter().filter(|state| state.row.schedule.enabled);
    let upcoming = upcoming.filter_map(|state| Some((state.row.watermark.next_due?, state)));
    if let Some((at, state)) = upcoming.min_by_key(|(at, _)| *at) {
        text += &format!("next: {} at {}\n", state.row.schedule.name, at.rfc3339(&state.zone));
    }
    if schedules.is_empty() {
        text += "no schedules: add them with `backup-manager create`\n";
    }
    for state in schedules {
        text += &schedule_lines(context, state);
    }
    text
}

fn schedule_lines(context: &Context, state: &ScheduleState<'_>) -> String {
    let schedule = &state.row.schedule;
    let last = state.last.as_ref().map_or("no run has ended yet".to_owned(), |run| {
        format!("last run {}", super::list::run_result(run, &state.zone))
    });
    let newest = state.newest.as_ref().map_or("no good archive".to_owned(), |archive| {
        let age = render::age(context.now().since(archive.created_at));
        match archive.verified_at {
            Some(at) => format!("newest good archive {age} old, verified {}", render::short_time(at, &state.zone)),
            None => format!("newest good archive {age} old, not verified"),
        }
    });
    let paused = if schedule.enabled { "" } else { " (paused)" };
    let drill = match &state.drill {
        Some(drill) => format!("; restore test {}", super::list::drill_result(drill, &state.zone)),
        None if state.newest.is_some() => "; no restore test yet".to_owned(),
        None => String::new(),
    };
    let mut text = format!("{}{paused}: {last}; {newest}{drill}\n", schedule.name);
    for problem in &state.problems {
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
    /// Why the text file that the service follows could not be imported.
    import_error: Option<&'a str>,
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
    service: &'a ServiceState,
    runs: &'a ActiveRuns,
    schedules: &'a [ScheduleState<'a>],
    import_error: Option<&'a str>,
    healthy: bool,
    zone: Tz,
) -> StatusDocument<'a> {
    let services = service.workers.iter().map(|(row, _)| ServiceDocument {
        pid: row.pid,
        host: &row.host,
        started: documents::time(row.started_at, &zone),
    });
    let states = schedules.iter().enumerate().map(|(index, state)| schedule_document(context, index, state));
    StatusDocument {
        healthy,
        timezone: zone.name(),
        services: services.collect(),
        trouble: &service.problems,
        import_error,
        running: runs.running_documents(),
        queued: runs.queued_documents(&zone),
        schedules: states.collect(),
    }
}

fn schedule_document<'a>(context: &Context, index: usize, state: &'a ScheduleState<'a>) -> ScheduleStateDocument<'a> {
    ScheduleStateDocument {
        schedule: ScheduleDocument::new(context, index, &state.row, state.zone),
        last_run: state.last.as_ref().map(|run| RunDocument::new(run, &state.zone)),
        newest_good: state.newest.as_ref().map(|archive| ArchiveDocument::new(context, archive)),
        last_drill: state.drill.as_ref().map(|drill| DrillDocument::new(drill, &state.zone)),
        new_problems: state.new_problems,
        trouble: &state.problems,
        running: state.running.map(RunningRun::document),
    }
}

//! `status`: is it working?

use std::time::Duration;

use chrono_tz::Tz;
use clap::Args;
use serde_json::{Value, json};

use super::output::{self, Format};
use super::{Context, start, terminal};
use crate::archive_folder;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::liveness::{self, Heartbeat, RunHeartbeat};
use crate::maintenance::rescan;
use crate::progress::Progress;
use crate::store::{Access, Archive, Drill, Run, RunState, ScheduleRow, Store, Trigger, WorkerRow};

/// Beyond one period, how old the newest good archive may be.
const OVERDUE_AFTER: Duration = Duration::from_secs(3 * 3600);
/// A run whose numbers have not moved for so long is stalled.
const STALLED_AFTER: Duration = Duration::from_secs(15 * 60);
/// A service whose loop has not come round for so long does not tick: a nap takes 30 s.
const TICK_LIMIT: Duration = Duration::from_secs(120);

#[derive(Args)]
pub struct StatusArgs {
    /// Only whether the service lives, ticks and can write where it must: for health checks
    #[arg(long)]
    service: bool,
}

/// How the service stands.
struct ServiceState {
    workers: Vec<(WorkerRow, Option<Heartbeat>)>,
    trouble: Vec<String>,
}

/// A run that is under way, or seems to be.
struct Underway {
    run: Run,
    /// What its worker, a service or a command, says of it.
    line: Option<RunHeartbeat>,
    is_cut_off: bool,
}

/// How one schedule stands.
struct ScheduleState {
    row: ScheduleRow,
    zone: Tz,
    last: Option<Run>,
    newest: Option<Archive>,
    drill: Option<Drill>,
    running: Option<Underway>,
    new_problems: u64,
    trouble: Vec<String>,
}

pub fn cmd_status(context: &Context, args: &StatusArgs) -> Result<u8> {
    // Health checks ask every few seconds and leave no line in the log.
    let store = if args.service { context.open_store(Access::Existing)? } else { context.open()? };
    let service = service_state(context, &store)?;
    if args.service {
        return tell_service(context, &service);
    }
    let zone = context.default_zone(&store)?;
    let running = store.running()?;
    let schedules = store
        .schedules()?
        .into_iter()
        .map(|row| schedule_state(context, &store, row, &running, zone))
        .collect::<Result<Vec<_>>>()?;
    let import_error = store.imported()?.error;
    let healthy =
        service.trouble.is_empty() && import_error.is_none() && schedules.iter().all(|state| state.trouble.is_empty());
    if context.format == Format::Json {
        output::print_json(&document(context, &service, &schedules, import_error.as_deref(), healthy, zone))?;
    } else {
        output::print(&page(context, &service, &schedules, import_error.as_deref(), zone))?;
    }
    Ok(u8::from(!healthy))
}

fn service_state(context: &Context, store: &Store) -> Result<ServiceState> {
    let folder = context.home.workers();
    let workers: Vec<_> = start::live_services(context, store)?
        .into_iter()
        .map(|row| {
            let heartbeat = liveness::read_heartbeat(&folder, &row.uuid);
            (row, heartbeat)
        })
        .collect();
    let mut trouble = Vec::new();
    if workers.is_empty() {
        trouble.push("the service is not running: start it with `backup-manager start`".to_owned());
    }
    for (row, heartbeat) in &workers {
        let Some(heartbeat) = heartbeat else { continue };
        if context.now().since(Timestamp::from_millis(heartbeat.ticked_at_ms)) > TICK_LIMIT {
            trouble.push(format!("the service (process {}) no longer ticks", row.pid));
        }
        if let Some(why) = &heartbeat.trouble {
            trouble.push(format!("the service (process {}): {why}", row.pid));
        }
    }
    if let Err(error) = store.check_writable() {
        trouble.push(error.to_string());
    }
    if let Err(error) = archive_folder::look(&context.home, store) {
        trouble.push(error.to_string());
    }
    if !store.has_archives()? && rescan::anything_to_find(&context.home, store)? {
        trouble.push(format!(
            "the database {} knows no archives, and {} is not empty: put back the newest copy of the database with \
             `backup-manager rescan --from-copy`, or make the catalog anew with `backup-manager rescan`",
            context.home.db().display(),
            context.home.backups().display()
        ));
    }
    Ok(ServiceState { workers, trouble })
}

fn tell_service(context: &Context, service: &ServiceState) -> Result<u8> {
    let healthy = service.trouble.is_empty();
    if context.format == Format::Json {
        let pids: Vec<u32> = service.workers.iter().map(|(row, _)| row.pid).collect();
        output::print_json(&json!({ "healthy": healthy, "pids": pids, "trouble": service.trouble }))?;
    } else if healthy {
        output::print_line("the service is alive, ticks, and can write its store and its archive folder")?;
    } else {
        output::print_line(&service.trouble.join("\n"))?;
    }
    Ok(u8::from(!healthy))
}

fn schedule_state(
    context: &Context,
    store: &Store,
    row: ScheduleRow,
    running: &[Run],
    zone: Tz,
) -> Result<ScheduleState> {
    let mut trouble = Vec::new();
    let zone = row.schedule.zone.unwrap_or(zone);
    let last = store.last_ended(row.id)?;
    let newest = store.newest_good(row.id)?;
    let running = running.iter().find(|run| run.schedule_id == row.id).map(|run| underway(context, run));
    let mut new_problems = 0;
    if let Some(run) = &last {
        new_problems = if run.acknowledged { 0 } else { store.new_problems(run)? };
        if run.state == RunState::Failed && !run.acknowledged {
            trouble.push(format!("run @{} failed: {}", run.id, run.error.as_deref().unwrap_or("no reason is known")));
        }
        if new_problems > 0 {
            let what = output::count(new_problems, "new path");
            trouble.push(format!("{what} could not be read whole: see `history @{}`", run.id));
        }
    }
    if let Some(archive) = last.as_ref().map(|run| store.archive(run.id)).transpose()?.flatten().filter(|a| a.suspect) {
        trouble.push(format!(
            "@{} holds less than half of what the archive before it held, and does not count as good: look, then \
             `backup-manager accept {}`",
            archive.run, row.schedule.name
        ));
    }
    let unhealthy = store.unhealthy_archives(row.id)?;
    if unhealthy > 0 {
        let what = output::count(unhealthy, "archive");
        trouble.push(format!("{what} damaged or missing: see `backups {} --all`, then `forget`", row.schedule.name));
    }
    let drill = store.last_drill(row.id)?;
    if let Some(error) = drill.as_ref().and_then(|drill| drill.error.as_deref()) {
        trouble.push(format!("the last restore drill failed: {error}"));
    }
    if let Some(why) = overdue(context, &row, newest.as_ref(), running.is_some(), zone) {
        trouble.push(why);
    }
    if let Some(line) = running.as_ref().and_then(|running| running.line.as_ref()) {
        let still = context.now().since(Timestamp::from_millis(line.moved_at_ms));
        if line.phase == "writing" && still > STALLED_AFTER {
            trouble.push(format!("run @{} has not moved for {}", line.run, output::age(still)));
        }
    }
    Ok(ScheduleState { row, zone, last, newest, drill, running, new_problems, trouble })
}

/// No good archive for one period and three hours; a first run in progress is exempt, and so is a schedule too young.
fn overdue(
    context: &Context,
    row: &ScheduleRow,
    newest: Option<&Archive>,
    is_running: bool,
    zone: Tz,
) -> Option<String> {
    let cadence = row.schedule.cadence.as_ref().filter(|_| row.schedule.enabled)?;
    if newest.is_none() && is_running {
        return None;
    }
    let now = context.now();
    // A schedule that was just changed or resumed gets its period first.
    let since = newest.map_or(row.created_at, |archive| archive.created_at).max(row.edited_at);
    let limit = cadence.period(zone, now) + OVERDUE_AFTER;
    let age = now.since(since);
    (age > limit).then(|| match newest {
        Some(archive) => {
            format!("overdue: its newest good archive is {} old", output::age(now.since(archive.created_at)))
        }
        None => format!("overdue: no good archive since it was made {} ago", output::age(age)),
    })
}

fn underway(context: &Context, run: &Run) -> Underway {
    let folder = context.home.workers();
    let is_cut_off = run.worker.is_some_and(|worker| !liveness::is_alive(&folder, &worker));
    let heartbeat = run.worker.and_then(|worker| liveness::read_heartbeat(&folder, &worker));
    let line = heartbeat.and_then(|heartbeat| heartbeat.runs.into_iter().find(|line| line.run == run.id));
    Underway { run: run.clone(), line, is_cut_off }
}

fn progress(context: &Context, line: &RunHeartbeat) -> Progress {
    Progress {
        members: line.members,
        bytes: line.bytes,
        members_total: line.members_total,
        bytes_total: line.bytes_total,
        elapsed: context.now().since(Timestamp::from_millis(line.started_at_ms)),
    }
}

fn page(
    context: &Context,
    service: &ServiceState,
    schedules: &[ScheduleState],
    import_error: Option<&str>,
    zone: Tz,
) -> String {
    let mut text = String::new();
    for (row, _) in &service.workers {
        let since = output::short_time(row.started_at, &zone);
        text += &format!("service: process {} since {since}, time zone {}\n", row.pid, zone.name());
    }
    for line in &service.trouble {
        text += &format!("! {line}\n");
    }
    if let Some(error) = import_error {
        text += &format!("! {error}\n");
    }
    for state in schedules {
        if let Some(Underway { run, line, is_cut_off }) = &state.running {
            let name = &state.row.schedule.name;
            let how = match line {
                _ if *is_cut_off => {
                    "cut off, its process is gone: the service or the next `run` puts it right".to_owned()
                }
                Some(line) => format!("{}, {}", line.phase, terminal::describe(&progress(context, line))),
                None => "under way".to_owned(),
            };
            text += &format!("running: {name} @{}: {how}\n", run.id);
        }
    }
    let upcoming = schedules.iter().filter(|state| state.row.schedule.enabled);
    if let Some((at, state)) =
        upcoming.filter_map(|state| Some((state.row.watermark.next_due?, state))).min_by_key(|n| n.0)
    {
        text += &format!("next: {} at {}\n", state.row.schedule.name, at.rfc3339(&state.zone));
    }
    if schedules.is_empty() {
        text += "nothing is scheduled: add schedules with `backup-manager create`\n";
    }
    for state in schedules {
        text += &schedule_lines(context, state);
    }
    text
}

fn schedule_lines(context: &Context, state: &ScheduleState) -> String {
    let schedule = &state.row.schedule;
    let last = state.last.as_ref().map_or("no run has ended yet".to_owned(), |run| {
        format!("last run {}", super::list::last_result(run, &state.zone))
    });
    let newest = state.newest.as_ref().map_or("no good archive".to_owned(), |archive| {
        let age = output::age(context.now().since(archive.created_at));
        match archive.verified_at {
            Some(at) => format!("newest good archive {age} old, proved {}", output::short_time(at, &state.zone)),
            None => format!("newest good archive {age} old, not proved"),
        }
    });
    let paused = if schedule.enabled { "" } else { " (paused)" };
    let drill =
        state.drill.as_ref().map_or(String::new(), |d| format!("; {}", super::list::last_drill(d, &state.zone)));
    let mut text = format!("{}{paused}: {last}; {newest}{drill}\n", schedule.name);
    for line in &state.trouble {
        text += &format!("  ! {line}\n");
    }
    text
}

fn document(
    context: &Context,
    service: &ServiceState,
    schedules: &[ScheduleState],
    import_error: Option<&str>,
    healthy: bool,
    zone: Tz,
) -> Value {
    let services: Vec<Value> = service
        .workers
        .iter()
        .map(|(row, _)| {
            let started = output::json_time(Some(row.started_at), &zone);
            json!({ "pid": row.pid, "host": row.host, "started": started })
        })
        .collect();
    let states: Vec<Value> =
        schedules.iter().enumerate().map(|(index, state)| schedule_document(context, index, state)).collect();
    json!({
        "healthy": healthy,
        "timezone": zone.name(),
        "services": services,
        "trouble": service.trouble,
        "import_error": import_error,
        "schedules": states,
    })
}

fn schedule_document(context: &Context, index: usize, state: &ScheduleState) -> Value {
    let mut document = super::list::schedule_json(context, index, &state.row, state.zone);
    document["last_run"] = state.last.as_ref().map_or(Value::Null, |run| super::history::run_json(run, &state.zone));
    document["newest_good"] =
        state.newest.as_ref().map_or(Value::Null, |archive| super::archives::archive_json(context, archive));
    document["last_drill"] = super::list::drill_json(state.drill.as_ref(), &state.zone);
    document["new_problems"] = json!(state.new_problems);
    document["trouble"] = json!(state.trouble);
    document["running"] = state.running.as_ref().map_or(Value::Null, |Underway { run, line, is_cut_off }| {
        let line = line.clone().unwrap_or_default();
        json!({
            "run": run.id,
            "by_hand": run.trigger == Trigger::Manual,
            "cut_off": is_cut_off,
            "phase": line.phase,
            "members": line.members,
            "bytes": line.bytes,
            "bytes_total": line.bytes_total,
        })
    });
    document
}

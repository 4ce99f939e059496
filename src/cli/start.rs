//! `start` and `stop`: the service in the background.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::Context;
use super::render::{self, Format};
use super::serve::ServiceOptions;
use crate::error::{Error, Result};
use crate::liveness;
use crate::store::{Access, Role, StopRequest, Store, WorkerRow};

/// How often it is looked whether the service is gone.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What a service needs beyond its grace to put things in order.
const BEYOND_GRACE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct StartArgs {
    #[command(flatten)]
    options: ServiceOptions,
}

#[derive(Args)]
pub struct StopArgs {
    /// Cancel running work instead of letting it finish
    #[arg(long)]
    now: bool,
}

pub fn cmd_start(context: &Context, args: &StartArgs) -> Result<u8> {
    args.options.check(context)?;
    let store = context.open_or_create()?;
    if let Some(row) = live_services(context, &store)?.first() {
        let main = if row.pid == 1 { ", the main process of this container" } else { "" };
        return tell(context, "running", row.pid, &format!("the service already runs as process {}{main}", row.pid));
    }
    if store.schedules()?.is_empty() {
        context.warn("nothing is scheduled yet; add schedules with `backup-manager create`");
    }
    drop(store);
    let pid = spawn(context, args)?;
    tell(context, "started", pid, &format!("the service runs as process {pid}"))
}

fn tell(context: &Context, state: &str, pid: u32, text: &str) -> Result<u8> {
    log::info!("{text}");
    if context.format == Format::Json {
        render::print_json(&json!({ "service": state, "pid": pid }))?;
    } else if !context.quiet {
        render::print_line(text)?;
    }
    Ok(0)
}

/// Starts `serve` in a session of its own and waits until it says that it is ready.
fn spawn(context: &Context, args: &StartArgs) -> Result<u32> {
    let program = std::env::current_exe().map_err(|e| Error::failed("cannot find this program").because(e))?;
    let mut command = Command::new(program);
    command.arg("serve").arg("--detached").args(args.options.to_args());
    let places = &context.places;
    for (flag, place) in [
        ("--home", Some(context.home.root())),
        ("--db", places.db.is_some().then(|| context.home.db())),
        ("--backups", places.backups.is_some().then(|| context.home.backups())),
        ("--logs", places.logs.is_some().then(|| context.home.logs())),
    ] {
        if let Some(place) = place {
            command.arg(flag).arg(place);
        }
    }
    if context.verbose {
        command.arg("--verbose");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| Error::failed("cannot start the service").because(e))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|e| Error::failed("the service did not answer").because(e))?;
    }
    if line.trim_end() == super::serve::READY {
        return Ok(child.id());
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    let _ = child.wait();
    let said = said.trim().trim_start_matches("error: ").to_owned();
    Err(Error::failed(format!("the service did not start: {said}"))
        .hint(format!("see {}", context.home.logs().join("backup_service.log").display())))
}

/// Returns the services of the database whose locks are held, oldest first.
pub fn live_services(context: &Context, store: &Store) -> Result<Vec<WorkerRow>> {
    let workers = context.home.workers();
    let mut rows = store.workers()?;
    rows.retain(|row| row.role == Role::Service && liveness::is_alive(&workers, &row.uuid));
    Ok(rows)
}

pub fn cmd_stop(context: &Context, args: &StopArgs) -> Result<u8> {
    if !context.home.db().exists() {
        // Neither start nor stop is an error where there is nothing to do.
        context.open_store(Access::Existing)?;
    }
    let store = context.open()?;
    let services = live_services(context, &store)?;
    if services.is_empty() {
        return tell_stopped(context, "the service is not running");
    }
    if services.iter().any(|row| row.pid == 1) {
        return Err(Error::failed("the service is the main process of this container, which would start it again")
            .hint("from outside: docker-compose stop; to keep it up and run nothing: backup-manager pause --all"));
    }
    let request = if args.now { StopRequest::Now } else { StopRequest::Drain };
    for row in &services {
        store.request_stop(row.uuid, request)?;
    }
    wait_until_gone(context, &store, &services)?;
    tell_stopped(context, "the service has stopped")
}

fn tell_stopped(context: &Context, text: &str) -> Result<u8> {
    log::info!("{text}");
    if context.format == Format::Json {
        render::print_json(&json!({ "service": "stopped" }))?;
    } else if !context.quiet {
        render::print_line(text)?;
    }
    Ok(0)
}

fn wait_until_gone(context: &Context, store: &Store, services: &[WorkerRow]) -> Result<()> {
    let workers = context.home.workers();
    let limit = super::config::grace(store, None)? + BEYOND_GRACE;
    let started = context.clock.monotonic();
    let mut said = false;
    loop {
        let left: Vec<&WorkerRow> = services.iter().filter(|row| liveness::is_alive(&workers, &row.uuid)).collect();
        let Some(first) = left.first() else { return Ok(()) };
        let waited = context.clock.monotonic().saturating_sub(started);
        if waited > limit {
            return Err(Error::failed(format!("process {} of the service is still there", first.pid))
                .hint("cancel what it does with `backup-manager stop --now`"));
        }
        if !said && waited > Duration::from_secs(2) {
            said = true;
            context.print_info("waiting for running work to finish (`stop --now` cancels it)");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

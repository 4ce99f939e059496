//! `start` and `stop`: the service in the background.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;

use super::Context;
use super::documents::ServiceStateDocument;
use super::render::{self, Format};
use super::serve::ServiceOptions;
use crate::error::{Error, Result};
use crate::health::live_services;
use crate::hooks;
use crate::liveness::{self, Heartbeat};
use crate::store::{Access, StopRequest, WorkerRow};

/// How often `stop` checks whether the service has ended.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The grace period of a service of a version that did not write it to its heartbeat: the default.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// How long a service may take to end after its grace period: it cancels runs and removes their temporary files.
const STOP_ALLOWANCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct StartArgs {
    #[command(flatten)]
    options: ServiceOptions,
}

#[derive(Args)]
pub struct StopArgs {
    /// Cancel running work instead of waiting for it
    #[arg(long)]
    now: bool,
}

pub fn cmd_start(context: &Context, args: &StartArgs) -> Result<u8> {
    args.options.check(context)?;
    let store = context.open_or_create()?;
    if let Some(row) = live_services(&context.home, &store)?.first() {
        let main = if row.pid == 1 { ", the main process of this container" } else { "" };
        return print_state(
            context,
            "running",
            Some(row.pid),
            &format!("the service already runs as process {}{main}", row.pid),
        );
    }
    if store.schedules()?.is_empty() {
        context.warn("nothing is scheduled yet; add schedules with `backup-manager create`");
    }
    for (what, file) in args.options.missing_files() {
        context.warn(&format!("the {what} {} does not exist: the service reads it once it does", file.display()));
    }
    drop(store);
    let pid = spawn(context, args)?;
    print_state(context, "started", Some(pid), &format!("the service runs as process {pid}"))
}

fn print_state(context: &Context, service: &str, pid: Option<u32>, text: &str) -> Result<u8> {
    log::info!("{text}");
    if context.format == Format::Json {
        render::print_json(&ServiceStateDocument { service, pid })?;
    } else if !context.quiet {
        render::print_line(text)?;
    }
    Ok(0)
}

/// Starts `serve` in a session of its own, waits until it reports that it is ready, and returns its process number.
fn spawn(context: &Context, args: &StartArgs) -> Result<u32> {
    let program = std::env::current_exe().map_err(|e| Error::failed("cannot find this program").because(e))?;
    let mut command = Command::new(program);
    command.arg("serve").arg("--detached").args(args.options.to_args());
    command.args(place_args(context));
    if context.verbose {
        command.arg("--verbose");
    }
    hooks::keep_from_children()
        .map_err(|e| Error::failed("cannot list the open files of this process").because(e).hint("mount /proc"))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| Error::failed("cannot start the service").because(e))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|e| Error::failed("cannot read the answer of the service").because(e))?;
    }
    if line.trim_end() == super::serve::READY {
        return Ok(child.id());
    }
    let mut printed = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut printed);
    }
    let _ = child.wait();
    let reason = printed.trim().trim_start_matches("error: ");
    Err(Error::failed(format!("the service did not start: {reason}"))
        .hint(format!("see {}", context.home.logs().join("backup_service.log").display())))
}

/// Returns the options with which another process of this program works on the same home.
fn place_args(context: &Context) -> Vec<OsString> {
    let (home, places) = (&context.home, &context.places);
    let given = [
        ("--home", Some(home.root())),
        ("--db", places.db.is_some().then(|| home.db())),
        ("--backups", places.backups.is_some().then(|| home.backups())),
        ("--logs", places.logs.is_some().then(|| home.logs())),
    ];
    let given = given.into_iter().filter_map(|(flag, place)| Some([flag.into(), place?.as_os_str().to_owned()]));
    given.flatten().collect()
}

pub fn cmd_stop(context: &Context, args: &StopArgs) -> Result<u8> {
    if !context.home.db().exists() {
        // Only a home without a database is an error; a service that does not run is none.
        context.open_store(Access::Existing)?;
    }
    let store = context.open()?;
    let services = live_services(&context.home, &store)?;
    if services.is_empty() {
        return print_state(context, "stopped", None, "the service is not running");
    }
    if services.iter().any(|row| row.pid == 1) {
        return Err(Error::failed("the service is the main process of this container, which would start it again")
            .hint("from outside: docker-compose stop; to keep it up and run nothing: backup-manager pause --all"));
    }
    let request = if args.now { StopRequest::Now } else { StopRequest::Drain };
    for row in &services {
        store.request_stop(row.uuid, request)?;
    }
    wait_until_stopped(context, &services)?;
    print_state(context, "stopped", None, "the service has stopped")
}

fn wait_until_stopped(context: &Context, services: &[WorkerRow]) -> Result<()> {
    let workers = context.home.workers();
    let heartbeats = services.iter().filter_map(|row| liveness::read_heartbeat(&workers, &row.uuid));
    let limit = stop_limit(heartbeats);
    let started = context.clock.monotonic();
    let mut is_reported = false;
    loop {
        let left: Vec<&WorkerRow> = services.iter().filter(|row| liveness::is_alive(&workers, &row.uuid)).collect();
        let Some(first) = left.first() else { return Ok(()) };
        let waited = context.clock.monotonic().saturating_sub(started);
        if waited > limit {
            return Err(Error::failed(format!("process {} of the service still runs", first.pid))
                .hint("cancel its work with `backup-manager stop --now`"));
        }
        if !is_reported && waited > Duration::from_secs(2) {
            is_reported = true;
            context.print_info("waiting for running work to finish (`stop --now` cancels it)");
        }
        std::thread::sleep(STOP_POLL_INTERVAL);
    }
}

/// Returns how long services with these heartbeats may take to end, by the grace period with which each was started.
fn stop_limit(heartbeats: impl Iterator<Item = Heartbeat>) -> Duration {
    let graces = heartbeats.map(|heartbeat| heartbeat.grace_ms.map_or(DEFAULT_GRACE, Duration::from_millis));
    graces.max().unwrap_or_default() + STOP_ALLOWANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_waits_for_the_longest_grace_period_of_the_running_services() {
        let with_grace = |grace_ms| Heartbeat { grace_ms, ..Heartbeat::default() };
        let limit = |graces: &[Option<u64>]| stop_limit(graces.iter().copied().map(with_grace));
        assert_eq!(limit(&[Some(1_000), Some(7_200_000)]), Duration::from_secs(7_200) + STOP_ALLOWANCE);
        assert_eq!(limit(&[None]), DEFAULT_GRACE + STOP_ALLOWANCE);
        assert_eq!(limit(&[Some(0)]), STOP_ALLOWANCE);
    }
}

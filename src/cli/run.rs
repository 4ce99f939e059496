//! `run`: manual runs.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::documents::{ArchiveDocument, PathFields, RunDocument};
use super::render::{self, Format};
use super::results::Results;
use super::signals::Signals;
use super::terminal::TerminalObserver;
use super::{Context, select, worker};
use crate::backup::{self, RunContext, RunOutcome, Runner};
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::liveness;
use crate::progress::{Observer, Progress};
use crate::store::{Archive, Claim, ClaimNow, Intent, Run, RunRequest, RunState, ScheduleRow, Store};

/// How often `run` checks the state of a run of another process.
const JOIN_POLL_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct RunArgs {
    /// Names, or indexes in `list`
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    schedule: Vec<String>,
    /// All schedules that are not paused
    #[arg(long)]
    all: bool,
    /// List what would be archived, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Do not wait for a run that another process executes: exit with code 11
    #[arg(long)]
    no_wait: bool,
    /// Do not verify the archive after writing it
    #[arg(long)]
    no_verify: bool,
    /// Read every file again; reuse nothing
    #[arg(long)]
    reread: bool,
}

/// Options of manual runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Fail with `Busy` if a run of the schedule runs in another process.
    no_wait: bool,
    no_verify: bool,
    reread: bool,
}

/// What `run -n --json` prints of each member.
#[derive(Serialize)]
struct EntryDocument {
    /// `path`: the path that it would have in the archive.
    #[serde(flatten)]
    path: PathFields,
    /// Bytes of its content.
    size: u64,
}

/// What `run --json` prints of each run.
#[derive(Serialize)]
struct RunResultDocument {
    #[serde(flatten)]
    run: RunDocument,
    archive: Option<ArchiveDocument>,
}

pub fn cmd_run(context: &Context, args: &RunArgs) -> Result<u8> {
    let store = context.open()?;
    let rows = if args.all {
        store.schedules()?.into_iter().filter(|row| row.schedule.enabled).collect()
    } else {
        select::schedules(&store, &args.schedule)?
    };
    if rows.is_empty() {
        context.print_info("nothing is scheduled");
    }
    if args.dry_run {
        return dry_run(context, &rows);
    }
    if rows.is_empty() {
        return Results::<RunResultDocument>::new(0).finish(context);
    }
    let options = RunOptions { no_wait: args.no_wait, no_verify: args.no_verify, reread: args.reread };
    run_schedules(context, &store, &rows, &options)
}

fn dry_run(context: &Context, rows: &[ScheduleRow]) -> Result<u8> {
    let mut has_losses = false;
    let mut documents = Vec::new();
    for row in rows {
        let listing = backup::list_source(&context.home, row, &mut |path, size| {
            if context.format == Format::Json {
                documents.push(EntryDocument { path: PathFields::new("path", path), size });
                return Ok(());
            }
            let mut line = path.to_owned();
            line.push(b'\n');
            render::print_bytes(&line)
        })?;
        for problem in &listing.problems {
            has_losses |= problem.kind.is_loss();
            context.warn(&format!("{}: {}", render::printable(&problem.path), problem.reason));
        }
        let what = format!(
            "{}, {}",
            render::count(listing.extent.members, "member"),
            render::bytes(listing.extent.content_bytes)
        );
        context.print_info(&format!("{}: {what} would be archived", row.schedule.name));
    }
    if context.format == Format::Json {
        render::print_json(&documents)?;
    }
    Ok(if has_losses { ErrorKind::Incomplete.exit_code() } else { 0 })
}

/// Runs schedules one after another; returns the most severe exit code.
pub fn run_schedules(context: &Context, store: &Store, rows: &[ScheduleRow], options: &RunOptions) -> Result<u8> {
    let runner = worker::register_command(context, store)?;
    let signals = Signals::cancel_on_first()?;
    let mut results = Results::new(rows.len());
    let worked = run_each(context, &runner, rows, options, &signals, &mut results);
    runner.store.remove_worker(runner.row.uuid)?;
    worked.map_err(|error| signals.classify(error))?;
    let code = results.finish(context)?;
    Ok(signals.interruption().map_or(code, ErrorKind::exit_code))
}

fn run_each(
    context: &Context,
    runner: &Runner,
    rows: &[ScheduleRow],
    options: &RunOptions,
    signals: &Signals,
    results: &mut Results<RunResultDocument>,
) -> Result<()> {
    for row in rows {
        let name = row.schedule.name.as_str();
        if let Some(kind) = signals.interruption() {
            results.skip(name, &Error::new(kind, format!("{name} was not run: interrupted")));
            continue;
        }
        match run_one(context, runner, row, options, &signals.cancel) {
            Ok((run, code)) => results.add(print_result(context, &runner.store, &run)?, code),
            Err(error) => results.fail(name, error)?,
        }
    }
    Ok(())
}

/// Claims and executes a run of a schedule, or waits for the one that another process executes.
fn run_one(
    context: &Context,
    runner: &Runner,
    row: &ScheduleRow,
    options: &RunOptions,
    cancel: &CancelToken,
) -> Result<(Run, u8)> {
    let request = RunRequest { verify: !options.no_verify, reread: options.reread };
    let store = &runner.store;
    match store.claim_now(row.id, request, &runner.row, context.now())? {
        (ClaimNow::Claimed(claim), Some(intent)) => execute_run(context, runner, row, claim, &intent, cancel),
        // Its process died, and this command took it over at its start and could not recover it.
        (ClaimNow::Running(run), _) if store.run(run)?.worker == Some(runner.row.uuid) => {
            recover_own(context, runner, run, cancel)?;
            run_one(context, runner, row, options, cancel)
        }
        (ClaimNow::Running(run), _) if options.no_wait => {
            Err(Error::busy(format!("run @{run} of {} is running", row.schedule.name))
                .hint("run without --no-wait to wait for it"))
        }
        (ClaimNow::Running(run), _) => join(context, runner, row, run, options, cancel),
        (ClaimNow::Claimed(_), None) => Err(Error::failed("the claim has no intent")),
    }
}

/// Recovers a run of a dead process that this command has taken over, or returns why it cannot be recovered.
fn recover_own(context: &Context, runner: &Runner, run: i64, cancel: &CancelToken) -> Result<()> {
    let observer = TerminalObserver::new("recovery", context.quiet);
    let run_context = RunContext { cancel, observer: &observer, is_foreground: true };
    for orphan in backup::take_over_orphaned_runs(runner, &|other| other != run)? {
        let recovered = orphan.run();
        if let Err(error) = backup::recover_run(runner, orphan, &run_context) {
            if recovered != run {
                log::error!("run @{recovered}: cannot be recovered yet: {error}");
                continue;
            }
            let name = runner.store.run(run)?.schedule_name;
            let hint = error.next_step().map(str::to_owned);
            let message = format!("run @{run} of {name} was interrupted and cannot be recovered");
            return Err(hint.into_iter().fold(Error::new(error.kind(), message).because(error), Error::hint));
        }
    }
    Ok(())
}

fn execute_run(
    context: &Context,
    runner: &Runner,
    row: &ScheduleRow,
    claim: Claim,
    intent: &Intent,
    cancel: &CancelToken,
) -> Result<(Run, u8)> {
    log::info!("run @{} of {}: started", claim.run(), row.schedule.name);
    let observer = TerminalObserver::new(row.schedule.name.as_str(), context.quiet);
    let outcome = runner.execute(claim, intent, &RunContext { cancel, observer: &observer, is_foreground: true });
    observer.finish();
    let RunOutcome { run, state, error } = outcome?;
    if let Some(error) = error {
        super::report(&error);
        log::error!("run @{run} of {}: {}", row.schedule.name, state.as_str());
    }
    let run = runner.store.run(run)?;
    let code = exit_code(&run);
    Ok((run, code))
}

/// Waits for a run of another process and returns its result as that of this command.
fn join(
    context: &Context,
    runner: &Runner,
    row: &ScheduleRow,
    run: i64,
    options: &RunOptions,
    cancel: &CancelToken,
) -> Result<(Run, u8)> {
    let store = &runner.store;
    context.print_info(&format!("run @{run} of {} is running in another process; waiting for it", row.schedule.name));
    let observer = TerminalObserver::new(row.schedule.name.as_str(), context.quiet);
    let workers = runner.home.workers();
    let run_context = RunContext { cancel, observer: &observer, is_foreground: true };
    loop {
        let current = store.run(run)?;
        if current.state.is_final() {
            observer.finish();
            let code = exit_code(&current);
            return Ok((current, code));
        }
        if cancel.is_cancelled() {
            observer.finish();
            return Err(Error::new(
                ErrorKind::Interrupted,
                format!("no longer waiting for run @{run}, which continues"),
            ));
        }
        match current.worker {
            Some(uuid) if uuid != runner.row.uuid && liveness::is_alive(&workers, &uuid) => {
                if let Some(progress) = progress_of(context, &workers, &uuid, run) {
                    observer.progress(&progress);
                }
            }
            // Its process died, and there may be no service that recovers it.
            Some(uuid) if uuid != runner.row.uuid => backup::recover(runner, &run_context).map(drop)?,
            Some(_) => recover_own(context, runner, run, cancel)?,
            // It was interrupted and is queued again: this command claims it like any queued run.
            None => {
                observer.finish();
                return run_one(context, runner, row, options, cancel);
            }
        }
        std::thread::sleep(JOIN_POLL_INTERVAL);
    }
}

/// Returns the progress that the heartbeat of a worker reports for a run.
fn progress_of(context: &Context, workers: &Path, uuid: &Uuid, run: i64) -> Option<Progress> {
    let line = liveness::read_heartbeat(workers, uuid)?.runs.into_iter().find(|line| line.run == run)?;
    Some(Progress {
        members: line.members,
        bytes: line.bytes,
        members_total: line.members_total,
        bytes_total: line.bytes_total,
        elapsed: context.now().since(Timestamp::from_millis(line.started_at_ms)),
    })
}

fn exit_code(run: &Run) -> u8 {
    match run.state {
        RunState::Succeeded => 0,
        RunState::Incomplete => ErrorKind::Incomplete.exit_code(),
        RunState::Cancelled => ErrorKind::Interrupted.exit_code(),
        _ => ErrorKind::Failed.exit_code(),
    }
}

/// Logs and prints the result of a run; returns its document.
fn print_result(context: &Context, store: &Store, run: &Run) -> Result<RunResultDocument> {
    let archive = store.archive(run.id)?;
    let lines = summary(context, store, run, archive.as_ref())?;
    log::info!("{}", lines.join(";"));
    if context.format != Format::Json && !context.quiet {
        render::print_line(&lines.join("\n"))?;
    }
    Ok(RunResultDocument {
        run: RunDocument::new(run, &context.zone),
        archive: archive.map(|archive| ArchiveDocument::new(context, &archive)),
    })
}

fn summary(context: &Context, store: &Store, run: &Run, archive: Option<&Archive>) -> Result<Vec<String>> {
    let name = &run.schedule_name;
    let mut lines = vec![format!("{name}: run @{} {}", run.id, run.state.as_str())];
    if let Some(archive) = archive {
        let extent = run.counts.extent;
        lines.push(format!(
            "  {} in {}, {} of content",
            render::count(extent.members, "member"),
            render::count(extent.files, "file"),
            render::bytes(extent.content_bytes)
        ));
        let path = context.home.backups().join(&archive.file_name);
        let verified = if archive.verified_at.is_some() { "verified" } else { "not verified" };
        lines.push(format!("  archive: {} ({}, {verified})", path.display(), render::bytes(archive.size)));
    }
    if run.counts.losses > 0 {
        let paths = render::count(run.counts.losses, "path");
        lines.push(format!("  {paths} could not be read completely: see `history @{}`", run.id));
    }
    if let Some(row) = store.schedule_named(name)?
        && let Some(next) = row.watermark.next_due.filter(|_| row.schedule.enabled)
    {
        let zone = row.schedule.zone.unwrap_or(context.shown_zone(store)?);
        lines.push(format!("  next run: {} ({})", next.rfc3339(&zone), zone.name()));
    }
    Ok(lines)
}

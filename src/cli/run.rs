//! `run`: manual runs.

use clap::Args;
use serde::Serialize;

use super::documents::{ArchiveDocument, PathFields, RunDocument};
use super::handover::{self, Executor, RunOptions, running_error};
use super::render::{self, Format};
use super::results::Results;
use super::signals::Signals;
use super::terminal::TerminalObserver;
use super::wait::{Idle, exit_code, report_end, wait_for_end};
use super::{Context, select, worker};
use crate::backup::{self, RunContext, RunOutcome, Runner};
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Archive, Claim, ClaimNow, Intent, Run, RunState, ScheduleRow, Store};

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
    /// Have the service run it, as it does for a user other than its own
    #[arg(long, conflicts_with = "dry_run")]
    queue: bool,
    /// Do not wait for another process: exit with code 11 if one runs it, or once it is queued for the service
    #[arg(long)]
    no_wait: bool,
    /// Do not verify the archive after writing it
    #[arg(long)]
    no_verify: bool,
    /// Read every file, also those that seem unchanged
    #[arg(long)]
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
        return dry_run(context, &store, &rows);
    }
    if rows.is_empty() {
        return Results::<RunResultDocument>::new(0).finish(context);
    }
    let RunArgs { queue, no_wait, no_verify, reread, .. } = *args;
    let options = RunOptions { queue, no_wait, no_verify, reread };
    run_schedules(context, &store, &rows, &options)
}

fn dry_run(context: &Context, store: &Store, rows: &[ScheduleRow]) -> Result<u8> {
    let mut has_losses = false;
    let mut documents = Vec::new();
    for row in rows {
        if store.hooks(row.id)?.hooks.source_command().is_some() {
            let (name, file) = (&row.schedule.name, render::printable(&row.schedule.source));
            context.print_info(&format!("{name}: what its command prints would be archived as {file}"));
            continue;
        }
        let listing = backup::list_source(&context.home, row, &mut |path, size| {
            if context.format == Format::Json {
                documents.push(EntryDocument { path: PathFields::new("path", path), size });
                return Ok(());
            }
            let mut line = render::printable_bytes(path);
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
    let executor = Executor::choose(context, store, options)?;
    if let Executor::Owner { uid, gid } = executor {
        handover::continue_as_owner(context, uid, gid)?;
    }
    // First of all: commands that undo what earlier runs began may be executed already.
    let signals = Signals::cancel_on_first()?;
    let runner = match executor {
        Executor::Service => None,
        Executor::Command | Executor::Owner { .. } => {
            let registered = worker::register_command(context, store, &signals.cancel);
            Some(registered.map_err(|error| signals.classify(error))?)
        }
    };
    let mut results = Results::new(rows.len());
    let worked = run_each(context, store, runner.as_ref(), rows, options, &signals, &mut results);
    if let Some(runner) = &runner {
        store.remove_worker(runner.row.uuid)?;
    }
    worked.map_err(|error| signals.classify(error))?;
    let code = results.finish(context)?;
    Ok(signals.interruption().map_or(code, ErrorKind::exit_code))
}

/// Runs each schedule in this process, as `runner`, or without one in the service.
fn run_each(
    context: &Context,
    store: &Store,
    runner: Option<&Runner>,
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
        let ended = match runner {
            Some(runner) => run_one(context, runner, row, options, &signals.cancel),
            None => handover::run_one(context, store, row, options, &signals.cancel),
        };
        match ended {
            Ok((run, code)) => results.add(print_result(context, store, &run)?, code),
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
    let store = &runner.store;
    match store.claim_now(row.id, options.request(), &runner.row, context.now())? {
        (ClaimNow::Claimed(claim), Some(intent)) => execute_run(context, runner, row, claim, &intent, cancel),
        // Its process died, and this command took it over at its start and could not recover it.
        (ClaimNow::Running(run), _) if store.run(run)?.worker == Some(runner.row.uuid) => {
            recover_own(context, runner, run, cancel)?;
            run_one(context, runner, row, options, cancel)
        }
        (ClaimNow::Running(run), _) if options.no_wait => Err(running_error(row, run)),
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
            return Err(error.wrap(format!("run @{run} of {name} was interrupted and cannot be recovered")));
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
    log::info!("{}: run @{} started", row.schedule.name, claim.run());
    let observer = TerminalObserver::new(row.schedule.name.as_str(), context.quiet);
    let outcome = runner.execute(claim, intent, &RunContext { cancel, observer: &observer, is_foreground: true });
    observer.finish();
    let RunOutcome { run, state, error } = outcome?;
    if let Some(error) = error.filter(|_| state != RunState::Skipped) {
        super::report(&error);
        log::error!("{}: run @{run} {}", row.schedule.name, state.as_str());
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
    context.print_info(&format!("run @{run} of {} is running in another process; waiting for it", row.schedule.name));
    let observer = TerminalObserver::new(row.schedule.name.as_str(), context.quiet);
    let own = Some(runner.row.uuid);
    let ended =
        wait_for_end(context, &runner.store, run, own, cancel, &observer, &mut |current| match current.worker {
            worker if worker == own => recover_own(context, runner, run, cancel).map(|()| Idle::Wait),
            // Its process died, and there may be no service that recovers it.
            Some(_) => {
                let run_context = RunContext { cancel, observer: &observer, is_foreground: true };
                backup::recover(runner, &run_context).map(|_| Idle::Wait)
            }
            // It was interrupted and is queued again: this command claims it like any queued run.
            None => Ok(Idle::Leave),
        });
    observer.finish();
    match ended? {
        Some(run) => Ok(report_end(run)),
        None => run_one(context, runner, row, options, cancel),
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
    // Why a run failed was reported.
    let why = run.error.as_ref().filter(|_| run.state == RunState::Skipped);
    let why = why.map(|reason| format!(": {reason}")).unwrap_or_default();
    let mut lines = vec![format!("{name}: run @{} {}{why}", run.id, run.state.as_str())];
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

//! `run`, `cancel`, `accept`: runs by hand.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::documents::{ArchiveDocument, PathFields, RunDocument};
use super::render::{self, Format};
use super::signals::Signals;
use super::terminal::TerminalObserver;
use super::{Context, select};
use crate::backup::{self, RunContext, RunOutcome, Runner};
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::liveness::{self, Worker};
use crate::progress::Progress;
use crate::store::{Claim, ClaimNow, Intent, Role, Run, RunRequest, RunState, ScheduleRow, Store, WorkerRow};

/// How often a run of another process is looked at.
const JOIN_EVERY: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct RunArgs {
    /// Names, or indexes in `list`
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    schedule: Vec<String>,
    /// All schedules that are not paused
    #[arg(long)]
    all: bool,
    /// List what would go in, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Do not wait for a run that is under way in another process: exit 11
    #[arg(long)]
    no_wait: bool,
    /// Do not read the archive back
    #[arg(long)]
    no_verify: bool,
    /// Read every file again, reuse nothing
    #[arg(long)]
    reread: bool,
}

#[derive(Args)]
pub struct CancelArgs {
    /// Names, or indexes in `list`
    #[arg(required = true)]
    schedule: Vec<String>,
}

#[derive(Args)]
pub struct AcceptArgs {
    /// Names, or indexes in `list`
    #[arg(required = true)]
    schedule: Vec<String>,
}

/// How runs by hand are to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
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
        return Ok(0);
    }
    if args.dry_run {
        return dry_run(context, &rows);
    }
    let options = RunOptions { no_wait: args.no_wait, no_verify: args.no_verify, reread: args.reread };
    run_schedules(context, &store, &rows, &options)
}

fn dry_run(context: &Context, rows: &[ScheduleRow]) -> Result<u8> {
    let mut losses = false;
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
            losses |= problem.kind.is_loss();
            context.warn(&format!("{}: {}", render::printable(&problem.path), problem.reason));
        }
        let what = format!(
            "{}, {}",
            render::count(listing.extent.members, "member"),
            render::bytes(listing.extent.content_bytes)
        );
        context.print_info(&format!("{}: {what} would go in", row.schedule.name));
    }
    if context.format == Format::Json {
        render::print_json(&documents)?;
    }
    Ok(if losses { ErrorKind::Incomplete.exit_code() } else { 0 })
}

/// Runs schedules one after another; returns the gravest exit code.
pub fn run_schedules(context: &Context, store: &Store, rows: &[ScheduleRow], options: &RunOptions) -> Result<u8> {
    let runner = command_runner(context, store)?;
    let signals = Signals::cancel_on_first()?;
    let mut codes = Vec::new();
    let mut documents = Vec::new();
    for row in rows {
        if signals.cancel.is_cancelled() {
            break;
        }
        match run_one(context, &runner, row, options, &signals.cancel) {
            Ok((run, code)) => {
                documents.push(summary(context, store, &run)?);
                codes.push(code);
            }
            Err(error) => {
                super::report(&error);
                codes.push(error.kind().exit_code());
            }
        }
    }
    runner.store.remove_worker(runner.row.uuid)?;
    if context.format == Format::Json {
        render::print_json(&documents)?;
    }
    Ok(signals.interruption().map_or_else(|| gravest(&codes), ErrorKind::exit_code))
}

/// Failure is graver than damage, damage than incompleteness.
fn gravest(codes: &[u8]) -> u8 {
    let order = [1, 130, 143, 10, 11, 4, 3];
    order.into_iter().find(|code| codes.contains(code)).unwrap_or_else(|| codes.iter().copied().max().unwrap_or(0))
}

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
        (ClaimNow::Claimed(claim), Some(intent)) => carry_out(context, runner, row, claim, &intent, cancel),
        (ClaimNow::Running(run), _) if options.no_wait => {
            Err(Error::busy(format!("run @{run} of {} is under way", row.schedule.name))
                .hint("leave --no-wait out to wait for it"))
        }
        (ClaimNow::Running(run), _) => join(context, runner, row, run, options, cancel),
        (ClaimNow::Claimed(_), None) => Err(Error::failed("a claim came without the names of its archive")),
    }
}

fn carry_out(
    context: &Context,
    runner: &Runner,
    row: &ScheduleRow,
    claim: Claim,
    intent: &Intent,
    cancel: &CancelToken,
) -> Result<(Run, u8)> {
    log::info!("run @{} of {}: started", claim.run(), row.schedule.name);
    let observer = TerminalObserver::new(row.schedule.name.as_str(), context.quiet);
    let ended = runner.execute(claim, intent, &RunContext { cancel, observer: &observer, is_foreground: true });
    observer.finish();
    let RunOutcome { run, state, error } = ended?;
    if let Some(error) = error {
        super::report(&error);
        log::error!("run @{run} of {}: {}", row.schedule.name, state.as_str());
    }
    let run = runner.store.run(run)?;
    let code = exit_code(&run);
    Ok((run, code))
}

/// Waits for a run of another process and takes its result for this command's own.
fn join(
    context: &Context,
    runner: &Runner,
    row: &ScheduleRow,
    run: i64,
    options: &RunOptions,
    cancel: &CancelToken,
) -> Result<(Run, u8)> {
    let store = &runner.store;
    context.print_info(&format!("run @{run} of {} is under way; waiting for it", row.schedule.name));
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
            return Err(Error::new(ErrorKind::Interrupted, format!("no longer waiting for run @{run}, which goes on")));
        }
        match current.worker {
            Some(uuid) if liveness::is_alive(&workers, &uuid) => {
                if let Some(progress) = progress_of(context, &workers, &uuid, run) {
                    crate::progress::Observer::progress(&observer, &progress);
                }
            }
            // Its process died, and there may be no service to put it right.
            Some(_) => backup::recover(runner, &run_context).map(drop)?,
            // It was cut off and waits for another try: that is this command's now, as any run that waits.
            None => {
                observer.finish();
                return run_one(context, runner, row, options, cancel);
            }
        }
        std::thread::sleep(JOIN_EVERY);
    }
}

fn progress_of(context: &Context, workers: &std::path::Path, uuid: &uuid::Uuid, run: i64) -> Option<Progress> {
    let line = liveness::read_heartbeat(workers, uuid)?.runs.into_iter().find(|line| line.run == run)?;
    Some(Progress {
        members: line.members,
        bytes: line.bytes,
        members_total: line.members_total,
        bytes_total: line.bytes_total,
        elapsed: context.now().since(crate::clock::Timestamp::from_millis(line.started_at_ms)),
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

fn summary(context: &Context, store: &Store, run: &Run) -> Result<RunResultDocument> {
    let archive = store.archive(run.id)?;
    let name = &run.schedule_name;
    let mut lines = vec![format!("{name}: run @{} {}", run.id, run.state.as_str())];
    if let Some(archive) = &archive {
        let counts = &run.counts;
        lines.push(format!(
            "  {} in {}, {} of content",
            render::count(counts.extent.members, "member"),
            render::count(counts.extent.files, "file"),
            render::bytes(counts.extent.content_bytes)
        ));
        let path = context.home.backups().join(&archive.file_name);
        let proof = if archive.verified_at.is_some() { ", read back and found right" } else { ", not read back" };
        lines.push(format!("  archive: {} ({}{proof})", path.display(), render::bytes(archive.size)));
    }
    if run.counts.losses > 0 {
        lines.push(format!(
            "  {} could not be read whole: see `history @{}`",
            render::count(run.counts.losses, "path"),
            run.id
        ));
    }
    if let Some(row) = store.schedule_named(name)?
        && let Some(next) = row.watermark.next_due.filter(|_| row.schedule.enabled)
    {
        let zone = row.schedule.zone.unwrap_or(context.default_zone(store)?);
        lines.push(format!("  next run: {} ({})", next.rfc3339(&zone), zone.name()));
    }
    log::info!("{}", lines.join(";"));
    if context.format != Format::Json && !context.quiet {
        render::print_line(&lines.join("\n"))?;
    }
    Ok(RunResultDocument {
        run: RunDocument::new(run, &context.zone),
        archive: archive.map(|archive| ArchiveDocument::new(context, &archive)),
    })
}

/// Puts right what dead workers left, for a command that carries out no run of its own.
pub fn recover_as_command(context: &Context, store: &Store) -> Result<()> {
    let runner = command_runner(context, store)?;
    store.remove_worker(runner.row.uuid)
}

/// Like [`recover_as_command`], where a run is among what dead workers left.
pub fn recover_cut_off(context: &Context, store: &Store) -> Result<()> {
    let workers = context.home.workers();
    let is_dead = |run: &Run| run.worker.is_some_and(|worker| !liveness::is_alive(&workers, &worker));
    if store.running()?.iter().any(is_dead) { recover_as_command(context, store) } else { Ok(()) }
}

/// Registers this command as a worker, and puts right what dead ones left.
fn command_runner(context: &Context, store: &Store) -> Result<Runner> {
    let runner = make_runner(context, store, super::config::threads(store, None)?, Role::Command)?;
    let row = &runner.row;
    store.add_worker(row.uuid, Role::Command, row.pid, &row.host, row.started_at)?;
    let (cancel, observer) = (CancelToken::default(), TerminalObserver::new("recovery", context.quiet));
    let run_context = RunContext { cancel: &cancel, observer: &observer, is_foreground: true };
    backup::recover(&runner, &run_context)?;
    Ok(runner)
}

/// Makes this process a worker of the database.
pub fn make_runner(context: &Context, store: &Store, threads: usize, role: Role) -> Result<Runner> {
    let home = Arc::new(context.home.clone());
    let now = context.now();
    let worker = Worker::register(&home.workers(), home.folder_mode(), now)?;
    let row = WorkerRow {
        uuid: worker.uuid(),
        role,
        pid: std::process::id(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        started_at: now,
        stop_requested: None,
    };
    Ok(Runner {
        home,
        store: store.clone(),
        clock: Arc::clone(&context.clock),
        worker: Arc::new(worker),
        row: Arc::new(row),
        threads,
    })
}

pub fn cmd_cancel(context: &Context, args: &CancelArgs) -> Result<u8> {
    let store = context.open()?;
    recover_cut_off(context, &store)?;
    for row in select::schedules(&store, &args.schedule)? {
        let name = &row.schedule.name;
        match store.cancel(row.id, context.now())? {
            0 => context.print_info(&format!("nothing of {name} runs or waits")),
            count => context.print_info(&format!("cancelling {} of {name}", render::count(count as u64, "run"))),
        }
    }
    Ok(0)
}

pub fn cmd_accept(context: &Context, args: &AcceptArgs) -> Result<u8> {
    let store = context.open()?;
    for row in select::schedules(&store, &args.schedule)? {
        store.accept_source(row.id, context.now())?;
        if let Some(run) = store.last_ended(row.id)? {
            store.acknowledge(run.id, context.now())?;
        }
        // An archive that fell may be the newest good one by now.
        let names = std::slice::from_ref(&row);
        let notes = crate::archive_folder::refresh_stable_links(&context.home, &store, names, context.now())?;
        notes.iter().for_each(|note| context.print_info(note));
        let name = &row.schedule.name;
        context.print_info(&format!(
            "the next run of {name} may find its source emptied, and known problems raise no alarm"
        ));
    }
    Ok(0)
}

//! `delete`: deletes schedules, with or without their archives.

use std::io::{self, IsTerminal};

use clap::Args;
use serde::Serialize;

use super::render::{self, Format};
use super::results::Results;
use super::{Context, select, worker};
use crate::archive_folder;
use crate::error::{Error, Result};
use crate::liveness;
use crate::store::{Run, ScheduleRow, Space, Store};

#[derive(Args)]
pub struct DeleteArgs {
    /// Names, or indexes in `list`
    #[arg(required = true)]
    schedule: Vec<String>,
    /// Also delete its archives; asks first
    #[arg(long)]
    with_archives: bool,
    /// Do not ask; required with --with-archives unless stdin is a terminal
    #[arg(long, requires = "with_archives")]
    yes: bool,
}

/// What `delete --json` prints of each schedule.
#[derive(Serialize)]
struct DeletedDocument {
    /// Name of the schedule.
    name: String,
    /// How many archives were deleted with it, and the bytes of their files.
    archives_deleted: u64,
    bytes_deleted: u64,
    /// How many archives it has that were kept.
    archives_kept: u64,
    /// Its run that still runs; null if none does.
    running: Option<i64>,
}

pub fn cmd_delete(context: &Context, args: &DeleteArgs) -> Result<u8> {
    let store = context.open()?;
    // All are found before any is deleted: each deletion changes the indexes.
    let rows = select::schedules(&store, &args.schedule)?;
    rows.iter().try_for_each(ScheduleRow::ensure_changeable)?;
    if args.with_archives && !args.yes {
        ensure_accepted(context, &store, &rows)?;
    }
    let mut results = Results::new(rows.len());
    for row in rows {
        let deleted = match args.with_archives {
            true => delete_with_archives(context, &store, &row),
            false => delete(context, &store, &row),
        };
        results.add_result(row.schedule.name.as_str(), deleted)?;
    }
    context.warn_of_kept_segments(&store)?;
    results.finish(context)
}

/// Asks on a terminal whether the archives of the schedules are to be deleted.
///
/// Errors: `Usage` if there is no terminal, `Failed` if the answer is no. Neither if there are no archives.
fn ensure_accepted(context: &Context, store: &Store, rows: &[ScheduleRow]) -> Result<()> {
    let mut archives = Vec::new();
    for row in rows {
        archives.extend(store.archives(Some(row.id))?);
    }
    if archives.is_empty() {
        return Ok(());
    }
    let names = rows.iter().map(|row| row.schedule.name.as_str()).collect::<Vec<_>>().join(", ");
    let count = render::count(archives.len() as u64, "archive");
    let what = format!("{count} ({}) of {names}", render::bytes(Space::of(&archives).disk_bytes));
    if context.format == Format::Json || !io::stdin().is_terminal() {
        return Err(Error::usage(format!("--with-archives would delete {what}, and nothing was deleted"))
            .hint("add --yes, or leave out --with-archives to keep them"));
    }
    render::print_stderr(&format!("This deletes {what}. Type \"yes\" to go on:"));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Error::io("read", "the answer"))?;
    match answer.trim().eq_ignore_ascii_case("yes") {
        true => Ok(()),
        false => Err(Error::failed("nothing was deleted: the answer was not \"yes\"")),
    }
}

fn delete_with_archives(context: &Context, store: &Store, row: &ScheduleRow) -> Result<DeletedDocument> {
    let name = &row.schedule.name;
    let archives = store.archives(Some(row.id))?;
    worker::recover_if_needed(context, store)?;
    if !archives.is_empty() {
        archive_folder::ensure_ours(&context.home, store)?;
    }
    let marked = store.delete_schedule_with_archives(row, context.now())?;
    let runs: Vec<i64> = archives.iter().map(|archive| archive.run).collect();
    let deleted = archive_folder::delete_marked(&context.home, store, &runs, marked).map_err(|e| {
        e.hint(format!("{name} is deleted; the next `backup-manager prune` removes the rest of its archives"))
    })?;
    context.print_info(&format!("deleted {name} and {}", render::count(deleted.removed as u64, "archive")));
    if let Some(note) = deleted.waiting_note(name.as_str()) {
        context.warn(&note);
    }
    // All archives of a schedule wait together.
    let gone = if deleted.waiting == 0 { archives.as_slice() } else { &[] };
    Ok(DeletedDocument {
        name: name.to_string(),
        archives_deleted: deleted.removed as u64,
        bytes_deleted: Space::of(gone).disk_bytes,
        archives_kept: 0,
        running: None,
    })
}

fn delete(context: &Context, store: &Store, row: &ScheduleRow) -> Result<DeletedDocument> {
    let name = &row.schedule.name;
    let archives_kept = store.archives(Some(row.id))?.len() as u64;
    store.delete_schedule(row.id, context.now())?;
    let kept = match archives_kept {
        0 => "its history is kept".to_owned(),
        n => {
            let archives = render::count(n, "archive");
            format!("its history and {archives} in {} are kept", context.home.backups().display())
        }
    };
    context.print_info(&format!("deleted {name}; {kept}"));
    let running = live_run(context, store, row.id)?.map(|run| run.id);
    if let Some(run) = running {
        context.print_info(&format!(
            "run @{run} of {name} is still running, and its archive is kept, too; to stop it: `backup-manager cancel \
             @{run}`"
        ));
    }
    Ok(DeletedDocument { name: name.to_string(), archives_deleted: 0, bytes_deleted: 0, archives_kept, running })
}

/// Returns the run of a schedule that a live process executes.
fn live_run(context: &Context, store: &Store, schedule: i64) -> Result<Option<Run>> {
    let workers = context.home.workers();
    let is_alive = |run: &Run| run.worker.is_some_and(|worker| liveness::is_alive(&workers, &worker));
    Ok(store.running()?.into_iter().find(|run| run.schedule_id == schedule && is_alive(run)))
}

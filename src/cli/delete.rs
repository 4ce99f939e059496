//! `delete`: deletes schedules, and their archives on request.

use clap::Args;

use super::{Context, render, select, worker};
use crate::archive_folder;
use crate::error::Result;
use crate::liveness;
use crate::store::{Run, ScheduleRow, Store};

#[derive(Args)]
pub struct DeleteArgs {
    /// Names, or indexes in `list`
    #[arg(required = true)]
    schedule: Vec<String>,
    /// Also delete its archives
    #[arg(long)]
    with_archives: bool,
}

pub fn cmd_delete(context: &Context, args: &DeleteArgs) -> Result<u8> {
    let store = context.open()?;
    // All are found before any is deleted: each deletion changes the indexes.
    for row in select::schedules(&store, &args.schedule)? {
        delete(context, &store, &row, args.with_archives)?;
    }
    Ok(0)
}

fn delete(context: &Context, store: &Store, row: &ScheduleRow, with_archives: bool) -> Result<()> {
    let name = &row.schedule.name;
    let archives = store.archives(Some(row.id))?.len();
    if with_archives {
        worker::recover_if_needed(context, store)?;
        if archives > 0 {
            archive_folder::ensure_ours(&context.home, store)?;
        }
        let count = store.delete_schedule_with_archives(row, context.now())?;
        archive_folder::finish_deletions(&context.home, store).map_err(|e| {
            e.hint(format!("{name} is deleted; the next `backup-manager prune` removes the rest of its archives"))
        })?;
        context.print_info(&format!("deleted {name} and {}", render::count(count as u64, "archive")));
        return Ok(());
    }
    store.delete_schedule(row.id, context.now())?;
    let kept = match archives {
        0 => "its history is kept".to_owned(),
        n => {
            let archives = render::count(n as u64, "archive");
            format!("its history and {archives} in {} are kept", context.home.backups().display())
        }
    };
    context.print_info(&format!("deleted {name}; {kept}"));
    if let Some(run) = live_run(context, store, row.id)? {
        context.print_info(&format!(
            "run @{} of {name} is still running, and its archive is kept, too; to stop it: `backup-manager cancel @{}`",
            run.id, run.id
        ));
    }
    Ok(())
}

/// Returns the run of a schedule that a live process executes.
fn live_run(context: &Context, store: &Store, schedule: i64) -> Result<Option<Run>> {
    let workers = context.home.workers();
    let is_alive = |run: &Run| run.worker.is_some_and(|worker| liveness::is_alive(&workers, &worker));
    Ok(store.running()?.into_iter().find(|run| run.schedule_id == schedule && is_alive(run)))
}

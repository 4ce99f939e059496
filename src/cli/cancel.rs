//! `cancel`: cancels the running and the queued run of a schedule, or one run.

use clap::Args;

use super::{Context, render, select, worker};
use crate::error::Result;
use crate::store::{RunState, Store};

#[derive(Args)]
pub struct CancelArgs {
    /// Names, indexes in `list`, or runs: @17
    #[arg(required = true)]
    schedule: Vec<String>,
}

pub fn cmd_cancel(context: &Context, args: &CancelArgs) -> Result<u8> {
    let store = context.open()?;
    worker::recover_if_needed(context, &store)?;
    for word in &args.schedule {
        match select::run_number(word) {
            Some(run) => cancel_run(context, &store, run)?,
            None => cancel_schedule(context, &store, word)?,
        }
    }
    Ok(0)
}

/// A schedule that was deleted may have a run still.
fn cancel_schedule(context: &Context, store: &Store, word: &str) -> Result<()> {
    let row = select::schedule_or_history(store, word)?;
    let name = &row.schedule.name;
    match store.cancel(row.id, context.now())? {
        0 => context.print_info(&format!("no run of {name} is running or queued")),
        count => context.print_info(&format!("cancelling {} of {name}", render::count(count as u64, "run"))),
    }
    Ok(())
}

fn cancel_run(context: &Context, store: &Store, number: i64) -> Result<()> {
    let name = store.run(number)?.schedule_name;
    context.print_info(&match store.cancel_run(number, context.now())? {
        RunState::Running => format!("cancelling run @{number} of {name}"),
        RunState::Queued => format!("cancelled run @{number} of {name}, which was queued"),
        ended => format!("run @{number} of {name} has ended already: {}", ended.as_str()),
    });
    Ok(())
}

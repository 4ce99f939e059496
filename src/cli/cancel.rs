//! `cancel`: cancels the running and the queued run of a schedule, or one run.

use clap::Args;
use serde::Serialize;

use super::render;
use super::results::Results;
use super::{Context, select, worker};
use crate::error::Result;
use crate::store::{RunState, Store};

#[derive(Args)]
pub struct CancelArgs {
    /// Names, indexes in `list`, or runs: @17
    #[arg(required = true)]
    schedule: Vec<String>,
}

/// What `cancel --json` prints of each schedule or run.
#[derive(Serialize)]
struct CancelledDocument {
    /// Name of the schedule.
    name: String,
    /// The run, if one was named.
    run: Option<i64>,
    /// How many runs, running and queued, it cancels.
    runs: usize,
}

pub fn cmd_cancel(context: &Context, args: &CancelArgs) -> Result<u8> {
    let store = context.open()?;
    worker::recover_if_needed(context, &store)?;
    let mut results = Results::new(args.schedule.len());
    for word in &args.schedule {
        let cancelled = match select::run_number(word) {
            Some(run) => cancel_run(context, &store, run),
            None => cancel_schedule(context, &store, word),
        };
        results.add_result(word, cancelled)?;
    }
    results.finish(context)
}

/// A schedule that was deleted may have a run still.
fn cancel_schedule(context: &Context, store: &Store, word: &str) -> Result<CancelledDocument> {
    let row = select::schedule_or_history(store, word)?;
    let name = row.schedule.name.to_string();
    let runs = store.cancel(row.id, context.now())?;
    match runs {
        0 => context.print_info(&format!("no run of {name} is running or queued")),
        count => context.print_info(&format!("cancelling {} of {name}", render::count(count as u64, "run"))),
    }
    Ok(CancelledDocument { name, run: None, runs })
}

fn cancel_run(context: &Context, store: &Store, number: i64) -> Result<CancelledDocument> {
    let name = store.run(number)?.schedule_name;
    let state = store.cancel_run(number, context.now())?;
    context.print_info(&match state {
        RunState::Running => format!("cancelling run @{number} of {name}"),
        RunState::Queued => format!("cancelled run @{number} of {name}, which was queued"),
        ended => format!("run @{number} of {name} has ended already: {}", ended.as_str()),
    });
    let runs = usize::from(matches!(state, RunState::Running | RunState::Queued));
    Ok(CancelledDocument { name, run: Some(number), runs })
}

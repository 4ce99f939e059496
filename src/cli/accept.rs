//! `accept`: accepts an emptied or shrunken source, and known problem paths.

use clap::Args;

use super::{Context, select};
use crate::archive_folder;
use crate::error::Result;

#[derive(Args)]
pub struct AcceptArgs {
    /// Names, or indexes in `list`
    #[arg(required = true)]
    schedule: Vec<String>,
}

pub fn cmd_accept(context: &Context, args: &AcceptArgs) -> Result<u8> {
    let store = context.open()?;
    for row in select::schedules(&store, &args.schedule)? {
        store.accept_source(row.id, context.now())?;
        if let Some(run) = store.last_ended(row.id)? {
            store.acknowledge(run.id, context.now())?;
        }
        // A suspect archive may be the newest good one now.
        let rows = std::slice::from_ref(&row);
        let notes = archive_folder::refresh_stable_links(&context.home, &store, rows, context.now())?;
        notes.iter().for_each(|note| context.print_info(note));
        let name = &row.schedule.name;
        context.print_info(&format!(
            "accepted: the next run of {name} may find its source empty, and known problems are not reported as new"
        ));
    }
    Ok(0)
}

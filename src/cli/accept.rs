//! `accept`: accepts an emptied or shrunken source, and known problem paths.

use clap::Args;
use serde::Serialize;

use super::render::{self, Format};
use super::{Context, select};
use crate::error::Result;

#[derive(Args)]
pub struct AcceptArgs {
    /// Names, or indexes in `list`
    #[arg(required = true)]
    schedule: Vec<String>,
}

/// What `accept --json` prints of each schedule.
#[derive(Serialize)]
struct AcceptedDocument {
    /// Name of the schedule, whose next run may find its source empty.
    name: String,
    /// The last run, whose problems are accepted; null if none has ended yet.
    run: Option<i64>,
}

pub fn cmd_accept(context: &Context, args: &AcceptArgs) -> Result<u8> {
    let store = context.open()?;
    let mut documents = Vec::new();
    for row in select::schedules(&store, &args.schedule)? {
        let run = store.accept(row.id, context.now())?;
        // A suspect archive may be the newest good one now.
        context.refresh_stable_links(&store, std::slice::from_ref(&row))?;
        let name = row.schedule.name.to_string();
        context.print_info(&format!(
            "accepted: the next run of {name} may find its source empty, and known problems are not reported as new"
        ));
        documents.push(AcceptedDocument { name, run });
    }
    if context.format == Format::Json {
        render::print_json(&documents)?;
    }
    Ok(0)
}

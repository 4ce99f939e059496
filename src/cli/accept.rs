//! `accept`: accepts an emptied or shrunken source, and known problem paths; or held commands.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::render::{self, Format};
use super::{Context, select};
use crate::approval;
use crate::error::Result;
use crate::schedule::CommandKind;
use crate::store::{ScheduleRow, Store};

#[derive(Args)]
pub struct AcceptArgs {
    /// Names, or indexes in `list`
    #[arg(required = true)]
    schedule: Vec<String>,
    /// Approve the commands instead: those of a database that was put back or imported are held until then
    #[arg(long)]
    commands: bool,
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
    if args.commands {
        return approve_commands(context, &store, &rows_with_commands(&store, &args.schedule)?);
    }
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

/// Returns the schedules that `words` name: also deleted ones of which something is to be undone by their commands.
fn rows_with_commands(store: &Store, words: &[String]) -> Result<Vec<ScheduleRow>> {
    let open = store.open_duties()?;
    let mut found: Vec<ScheduleRow> = Vec::new();
    for word in words {
        let has_duty = |row: &ScheduleRow| open.iter().any(|duty| duty.schedule_name == row.schedule.name.as_str());
        let deleted = store.schedule_named(word)?.filter(|row| row.deleted && has_duty(row));
        let row = deleted.map_or_else(|| select::schedule(store, word), Ok)?;
        if found.iter().all(|other| other.id != row.id) {
            found.push(row);
        }
    }
    Ok(found)
}

/// What `accept --commands --json` prints of each schedule.
#[derive(Serialize)]
struct ApprovedDocument {
    name: String,
    /// The commands that were held, by kind.
    commands: BTreeMap<CommandKind, String>,
}

fn approve_commands(context: &Context, store: &Store, rows: &[ScheduleRow]) -> Result<u8> {
    let mut documents = Vec::new();
    for row in rows {
        let name = &row.schedule.name;
        let found = store.hooks(row.id)?;
        let held = approval::held_commands(&context.home, name, &found)?;
        if held.is_empty() {
            context.print_info(&format!("no command of {name} is held"));
        } else {
            store.approve_commands(row.id, &approval::approve(&context.home, name, found.hooks, |_| true)?)?;
            context.print_info(&format!("accepted: runs of {name} execute {}", approval::describe(&held)));
        }
        documents.push(ApprovedDocument { name: name.to_string(), commands: held });
    }
    if context.format == Format::Json {
        render::print_json(&documents)?;
    }
    Ok(0)
}

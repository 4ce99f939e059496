//! `backups`: lists archives.

use std::collections::HashMap;

use clap::Args;

use super::documents::ArchiveDocument;
use super::render::{self, Format};
use super::{Context, select};
use crate::error::Result;
use crate::store::{Archive, ScheduleRow, Space, Store};

/// What is printed instead of a table without archives.
const EMPTY: &str = "No archives yet. Make one: backup-manager run NAME";

#[derive(Args)]
pub struct BackupsArgs {
    /// Only of this schedule (name, or index in `list`)
    schedule: Option<String>,
    /// Every archive, with real and logical size
    #[arg(short, long)]
    all: bool,
}

pub fn cmd_backups(context: &Context, args: &BackupsArgs) -> Result<u8> {
    let store = context.open()?;
    let only = args.schedule.as_deref().map(|word| select::schedule_or_history(&store, word)).transpose()?;
    let rows = match &only {
        Some(row) => vec![row.clone()],
        None => store.schedules()?,
    };
    let archives = store.archives(only.as_ref().map(|row| row.id))?;
    if context.format == Format::Json {
        let documents = archives.iter().rev().map(|archive| ArchiveDocument::new(context, archive));
        render::print_json(&documents.collect::<Vec<_>>())?;
    } else if args.all || (only.is_some() && context.format == Format::Table) {
        print_all(context, &archives)?;
    } else {
        print_newest(context, &store, &rows, &archives)?;
    }
    Ok(0)
}

/// Prints a line for each schedule that has a good archive: its stable link and the archive that this points to.
fn print_newest(context: &Context, store: &Store, rows: &[ScheduleRow], archives: &[Archive]) -> Result<()> {
    let mut counts: HashMap<i64, u64> = HashMap::new();
    for archive in archives {
        *counts.entry(archive.schedule_id).or_default() += 1;
    }
    let mut lines = Vec::new();
    for row in rows {
        let Some(newest) = store.newest_good(row.id)? else { continue };
        // The name of the schedule may hold points, too.
        let extension = newest.file_name.rfind(".tar").map_or(".tar", |at| &newest.file_name[at..]);
        lines.push(vec![
            format!("{}{extension}", row.schedule.name),
            format!("@{}", newest.run),
            render::age(context.now().since(newest.created_at)),
            render::bytes(newest.size),
            newest.extent.members.to_string(),
            render::short_time_or_dash(newest.verified_at, &context.zone),
            counts.get(&row.id).copied().unwrap_or_default().to_string(),
        ]);
    }
    if context.format == Format::Plain {
        let names: String = lines.iter().map(|line| format!("{}\n", line[0])).collect();
        return render::print(&names);
    }
    let headings = ["NEWEST", "RUN", "AGE", "SIZE", "MEMBERS", "VERIFIED", "ARCHIVES"];
    render::print_table(&headings, lines, context.colour, EMPTY)?;
    print_space(archives)
}

fn print_all(context: &Context, archives: &[Archive]) -> Result<()> {
    if context.format == Format::Plain {
        let names: String = archives.iter().rev().map(|archive| format!("{}\n", archive.file_name)).collect();
        return render::print(&names);
    }
    // Where nothing is shared, deleting an archive frees its size. One more column would not fit into 80 characters.
    let is_any_shared = archives.iter().any(|archive| archive.shared_bytes() > 0);
    let line = |archive: &Archive| {
        vec![
            format!("@{}", archive.run),
            archive.schedule_name.clone(),
            render::short_time(archive.created_at, &context.zone),
            state(archive),
            render::bytes(archive.size),
            render::bytes(archive.extent.content_bytes),
            match is_any_shared {
                true => render::bytes(archive.freed_bytes()),
                false => archive.extent.members.to_string(),
            },
            archive.file_name.clone(),
        ]
    };
    let seventh = if is_any_shared { "FREES" } else { "MEMBERS" };
    let headings = ["RUN", "NAME", "MADE", "STATE", "SIZE", "CONTENT", seventh, "FILE"];
    render::print_table(&headings, archives.iter().rev().map(line).collect(), context.colour, EMPTY)?;
    print_space(archives)
}

/// Prints the totals below a table, if there are archives.
fn print_space(archives: &[Archive]) -> Result<()> {
    if archives.is_empty() {
        return Ok(());
    }
    render::print_line(&space_words(archives))
}

/// Returns how many archives these are, and their space.
pub fn space_words(archives: &[Archive]) -> String {
    let Space { bytes, disk_bytes } = Space::of(archives);
    let all = format!("{} of {}", render::count(archives.len() as u64, "archive"), render::bytes(bytes));
    match bytes == disk_bytes {
        true => all,
        false => format!("{all}, {} on disk", render::bytes(disk_bytes)),
    }
}

fn state(archive: &Archive) -> String {
    let mut words = vec![archive.health.as_str()];
    if archive.incomplete {
        words.push("incomplete");
    }
    if archive.suspect {
        words.push("suspect");
    }
    if archive.pinned {
        words.push("pinned");
    }
    words.join(", ")
}

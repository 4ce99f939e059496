//! `edit`, `pause`, `resume`: changes to schedules.

use clap::Args;
use serde::Serialize;

use super::documents::ScheduleDocument;
use super::render::{self, Format};
use super::schedule_options::{ScheduleOptions, source_path};
use super::{Context, select};
use crate::error::{Error, Result};
use crate::schedule::Schedule;
use crate::store::{ScheduleChanges, ScheduleRow, Store, Watermark};
use crate::words::shell_word;

#[derive(Args)]
pub struct EditArgs {
    /// Name, or index in `list`
    schedule: String,
    /// New source
    #[arg(long, value_name = "PATH")]
    path: Option<std::ffi::OsString>,
    #[command(flatten)]
    options: ScheduleOptions,
}

#[derive(Args)]
pub struct PauseArgs {
    /// Names, or indexes in `list`
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    schedule: Vec<String>,
    /// All schedules
    #[arg(long)]
    all: bool,
}

/// What `edit --json` prints, and `pause` and `resume` of each schedule.
#[derive(Serialize)]
struct EditedDocument {
    /// The schedule as it is now.
    #[serde(flatten)]
    schedule: ScheduleDocument,
    /// Whether it was different before.
    changed: bool,
}

/// Returns the documents of the schedules `ids` as they are now, in that order.
fn edited_documents(
    context: &Context,
    store: &Store,
    ids: impl Iterator<Item = i64>,
    is_changed: impl Fn(i64) -> bool,
) -> Result<Vec<EditedDocument>> {
    let (rows, zone) = (store.schedules()?, context.shown_zone(store)?);
    let found = ids.filter_map(|id| rows.iter().enumerate().find(|(_, row)| row.id == id));
    let document = |(index, row): (usize, &ScheduleRow)| EditedDocument {
        schedule: ScheduleDocument::new(context, index, row, zone),
        changed: is_changed(row.id),
    };
    Ok(found.map(document).collect())
}

pub fn cmd_edit(context: &Context, args: &EditArgs) -> Result<u8> {
    let store = context.open()?;
    let row = select::schedule(&store, &args.schedule)?;
    row.ensure_changeable()?;
    let mut schedule = row.schedule.clone();
    args.options.apply(&mut schedule)?;
    args.options.warn_of_patterns(context);
    if let Some(path) = &args.path {
        schedule.source = source_path(path)?;
    }
    let before = store.hooks(row.id)?;
    let mut hooks = before.hooks.clone();
    args.options.hooks.apply(&mut hooks, &mut schedule, args.path.is_some())?;
    let hooks = args.options.hooks.approve(context, &schedule, &before, hooks)?;
    let is_changed = schedule != row.schedule || hooks != before;
    if is_changed {
        let watermark = watermark_from_now(context, &store, &schedule)?;
        let (edited, hooks) = ([(row.id, schedule.clone(), watermark)], [(schedule.name.clone(), hooks)]);
        let changes = ScheduleChanges { edited: &edited, hooks: &hooks, ..ScheduleChanges::default() };
        store.apply_schedules(&changes, context.now())?;
        let zone = schedule.zone.unwrap_or(context.default_zone(&store)?);
        let next = match watermark.next_due {
            Some(at) if schedule.enabled => format!("next run {}", at.rfc3339(&zone)),
            _ => "no next run".to_owned(),
        };
        context.print_info(&format!("changed {}; {next} ({})", schedule.name, zone.name()));
    } else {
        context.print_info(&format!("nothing to change in {}", schedule.name));
    }
    if context.format == Format::Json {
        render::print_json(&edited_documents(context, &store, [row.id].into_iter(), |_| is_changed)?.pop())?;
    }
    Ok(0)
}

pub fn cmd_pause(context: &Context, args: &PauseArgs, enabled: bool) -> Result<u8> {
    let store = context.open()?;
    let rows = if args.all { store.schedules()? } else { select::schedules(&store, &args.schedule)? };
    let mut edited = Vec::new();
    for row in rows.iter().filter(|row| row.schedule.enabled != enabled) {
        if let Some(managed) = row.managed_by.as_ref().filter(|managed| managed.is_paused) {
            // A pause by command can be taken back by command; that of the file only by the file.
            let name = &row.schedule.name;
            let message = format!("{name} is paused by {managed}");
            match args.all {
                true => context.warn(&format!("{message}, and stays so")),
                false => {
                    let apply = format!("`backup-manager apply {}`", shell_word(&managed.file));
                    return Err(Error::usage(message).hint(format!("take out `enabled = false` there, then {apply}")));
                }
            }
            continue;
        }
        if enabled && row.schedule.cadence.is_none() {
            return Err(Error::usage(format!("{} has no times", row.schedule.name)).hint(format!(
                "set them first: backup-manager edit {} --at HH:MM",
                shell_word(row.schedule.name.as_str())
            )));
        }
        let schedule = Schedule { enabled, ..row.schedule.clone() };
        let watermark = watermark_from_now(context, &store, &schedule)?;
        edited.push((row.id, schedule, watermark));
    }
    store.edit_schedules(&edited, context.now())?;
    let word = if enabled { "resumed" } else { "paused" };
    for (_, schedule, _) in &edited {
        context.print_info(&format!("{word} {}", schedule.name));
    }
    if edited.is_empty() {
        context.print_info(&format!("nothing to do: already {word}"));
    }
    if context.format == Format::Json {
        let is_edited = |row: i64| edited.iter().any(|(id, ..)| *id == row);
        render::print_json(&edited_documents(context, &store, rows.iter().map(|row| row.id), is_edited)?)?;
    }
    Ok(0)
}

/// Returns a watermark that starts now: what was due before a change is not run after it.
fn watermark_from_now(context: &Context, store: &Store, schedule: &Schedule) -> Result<Watermark> {
    let now = context.now();
    Ok(Watermark::starting(schedule, context.default_zone(store)?, now))
}

//! `prune`, `pin`, `forget`: which archives stay.

use clap::Args;
use serde::Serialize;

use super::documents::ArchiveDocument;
use super::render::{self, Format};
use super::{Context, select};
use crate::archive_folder;
use crate::error::{Error, Result};
use crate::maintenance::prune::{self, PrunePlan};
use crate::maintenance::retention::Decision;
use crate::store::{Archive, ScheduleRow, Store};

#[derive(Args)]
pub struct PruneArgs {
    /// Schedules (name, or index in `list`) [default: all]
    schedule: Vec<String>,
    /// Print each archive, kept or going, and which rule says so; remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Remove even over half of the good archives at once
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub struct PinArgs {
    /// Archives: @17
    #[arg(required = true, value_name = "@RUN")]
    archive: Vec<String>,
    /// Let go of them again
    #[arg(long)]
    off: bool,
}

#[derive(Args)]
pub struct ForgetArgs {
    /// Archives: @17
    #[arg(required = true, value_name = "@RUN")]
    archive: Vec<String>,
    /// Even the newest good archive of a schedule
    #[arg(long)]
    force: bool,
}

pub fn cmd_prune(context: &Context, args: &PruneArgs) -> Result<u8> {
    let store = context.open()?;
    let rows = match args.schedule.is_empty() {
        true => store.schedules()?,
        false => {
            args.schedule.iter().map(|word| select::schedule_or_history(&store, word)).collect::<Result<Vec<_>>>()?
        }
    };
    let mut plans = Vec::new();
    for row in rows {
        let plan = PrunePlan::compute(&store, &row)?;
        plans.push((row, plan));
    }
    if context.format == Format::Json {
        let documents = plans.iter().map(|(row, plan)| PlanDocument::new(context, row, plan));
        render::print_json(&documents.collect::<Vec<_>>())?;
    } else if args.dry_run {
        print_plans(context, &plans)?;
    }
    if args.dry_run {
        return Ok(0);
    }
    carry_out(context, &store, &plans, args.yes)
}

/// Removes what earlier prunes began to, and what the plans let go; those of over half only with `yes`. What cannot be
/// removed keeps nothing else from going.
fn carry_out(context: &Context, store: &Store, plans: &[(ScheduleRow, PrunePlan)], yes: bool) -> Result<u8> {
    let (mut gone, mut stuck) = (0, None);
    match archive_folder::finish_deletions(&context.home, store) {
        Ok(0) => (),
        Ok(count) => {
            context.print_info(&format!("removed {} that was on its way out", render::count(count as u64, "archive")));
            gone += count;
        }
        Err(error) => stuck = Some(error),
    }
    let (held, free): (Vec<_>, Vec<_>) = plans.iter().partition(|(_, plan)| plan.is_large() && !yes);
    for (row, plan) in free {
        match plan.apply(&context.home, store) {
            Ok(0) => (),
            Ok(count) => {
                context.print_info(&format!(
                    "{}: removed {}",
                    row.schedule.name,
                    render::count(count as u64, "archive")
                ));
                gone += count;
            }
            Err(error) => drop(stuck.get_or_insert(error)),
        }
    }
    let touched: Vec<ScheduleRow> = plans.iter().map(|(row, _)| row.clone()).collect();
    refresh(context, store, &touched)?;
    if let Some(error) = stuck {
        return Err(error);
    }
    if let Some((row, _)) = held.first() {
        let name = &row.schedule.name;
        return Err(Error::failed(format!("pruning {name} would remove over half of its good archives"))
            .hint(format!("look at `backup-manager prune {name} --dry-run`, then add --yes")));
    }
    if gone == 0 {
        context.print_info("nothing goes: every archive is kept by a rule");
    }
    Ok(0)
}

fn refresh(context: &Context, store: &Store, rows: &[ScheduleRow]) -> Result<()> {
    let notes = archive_folder::refresh_stable_links(&context.home, store, rows, context.now())?;
    notes.iter().for_each(|note| context.print_info(note));
    Ok(())
}

fn print_plans(context: &Context, plans: &[(ScheduleRow, PrunePlan)]) -> Result<()> {
    let lines: Vec<Vec<String>> =
        plans.iter().flat_map(|(_, plan)| plan.archives.iter().zip(&plan.decisions)).map(plan_line(context)).collect();
    if context.format == Format::Plain {
        return render::print(&lines.iter().map(|line| line.join("\t") + "\n").collect::<String>());
    }
    let headings = ["RUN", "NAME", "MADE", "", "BECAUSE", "FILE"];
    render::print_table(&headings, lines, context.colour, "No archives yet. Make one: backup-manager run NAME")
}

fn plan_line(context: &Context) -> impl Fn((&Archive, &Decision)) -> Vec<String> {
    |(archive, decision)| {
        let rules = rule_words(decision);
        let (fate, because) =
            if rules.is_empty() { ("goes", "no rule keeps it".to_owned()) } else { ("stays", rules.join(", ")) };
        vec![
            format!("@{}", archive.run),
            archive.schedule_name.clone(),
            render::short_time(archive.created_at, &context.zone),
            fate.to_owned(),
            because,
            archive.file_name.clone(),
        ]
    }
}

fn rule_words(decision: &Decision) -> Vec<&'static str> {
    decision.kept_by.iter().map(|rule| rule.as_str()).collect()
}

/// What `prune --json` prints of each schedule.
#[derive(Serialize)]
struct PlanDocument {
    /// Name of the schedule.
    name: String,
    /// Its retention policy.
    policy: String,
    /// Whether it would remove over half of the good archives, which needs `--yes`.
    over_half: bool,
    archives: Vec<DecisionDocument>,
}

/// An archive, and whether a rule keeps it.
#[derive(Serialize)]
struct DecisionDocument {
    #[serde(flatten)]
    archive: ArchiveDocument,
    /// The rules that keep it.
    kept_by: Vec<&'static str>,
    /// Whether it is to be removed.
    goes: bool,
}

impl PlanDocument {
    fn new(context: &Context, row: &ScheduleRow, plan: &PrunePlan) -> PlanDocument {
        let archives = plan.archives.iter().zip(&plan.decisions).map(|(archive, decision)| DecisionDocument {
            archive: ArchiveDocument::new(context, archive),
            kept_by: rule_words(decision),
            goes: decision.kept_by.is_empty(),
        });
        PlanDocument {
            name: row.schedule.name.to_string(),
            policy: row.schedule.retention.to_string(),
            over_half: plan.is_large(),
            archives: archives.collect(),
        }
    }
}

pub fn cmd_pin(context: &Context, args: &PinArgs) -> Result<u8> {
    let store = context.open()?;
    for word in &args.archive {
        let run = run_of(word)?;
        if !store.set_pinned(run, !args.off)? {
            return Err(prune::no_archive(run));
        }
        context.print_info(&format!(
            "@{run} is {}",
            if args.off { "no longer pinned" } else { "pinned: retention keeps it" }
        ));
    }
    Ok(0)
}

pub fn cmd_forget(context: &Context, args: &ForgetArgs) -> Result<u8> {
    let store = context.open()?;
    for word in &args.archive {
        let archive = prune::forget(&context.home, &store, run_of(word)?, args.force)?;
        context.print_info(&format!("removed {}", context.home.backups().join(&archive.file_name).display()));
        refresh(context, &store, &[store.schedule(archive.schedule_id)?])?;
    }
    Ok(0)
}

fn run_of(word: &str) -> Result<i64> {
    select::run_number(word).ok_or_else(|| {
        Error::usage(format!("\"{word}\" is not the number of an archive"))
            .hint("write it like @17, as in its file name")
    })
}

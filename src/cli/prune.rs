//! `prune`, `pin`, `forget`: which archives are kept.

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
    /// Print for each archive whether it is kept, and by which rules; remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Remove archives even if they are over half of the good ones
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub struct PinArgs {
    /// Archives: @17
    #[arg(required = true, value_name = "@RUN")]
    archive: Vec<String>,
    /// Unpin them
    #[arg(long)]
    off: bool,
}

#[derive(Args)]
pub struct ForgetArgs {
    /// Archives: @17
    #[arg(required = true, value_name = "@RUN")]
    archive: Vec<String>,
    /// Remove even the newest good archive of a schedule
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
    prune_archives(context, &store, &plans, args.yes)
}

/// Finishes interrupted deletions and removes the archives that the plans remove; a plan that removes over half of the
/// good archives only with `yes`. An archive that cannot be removed does not stop the removal of others.
fn prune_archives(context: &Context, store: &Store, plans: &[(ScheduleRow, PrunePlan)], yes: bool) -> Result<u8> {
    let (mut removed, mut first_error) = (0, None);
    match archive_folder::finish_deletions(&context.home, store) {
        Ok(0) => (),
        Ok(count) => {
            context.print_info(&format!(
                "removed {} whose removal was interrupted",
                render::count(count as u64, "archive")
            ));
            removed += count;
        }
        Err(error) => first_error = Some(error),
    }
    let (refused, allowed): (Vec<_>, Vec<_>) = plans.iter().partition(|(_, plan)| plan.is_large() && !yes);
    for (row, plan) in allowed {
        match plan.apply(&context.home, store) {
            Ok(0) => (),
            Ok(count) => {
                context.print_info(&format!(
                    "{}: removed {}",
                    row.schedule.name,
                    render::count(count as u64, "archive")
                ));
                removed += count;
            }
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    let rows: Vec<ScheduleRow> = plans.iter().map(|(row, _)| row.clone()).collect();
    refresh_links(context, store, &rows)?;
    if let Some(error) = first_error {
        return Err(error);
    }
    if let Some((row, _)) = refused.first() {
        let name = &row.schedule.name;
        return Err(Error::failed(format!("pruning {name} would remove over half of its good archives"))
            .hint(format!("check `backup-manager prune {name} --dry-run`, then add --yes")));
    }
    if removed == 0 {
        context.print_info("nothing to remove: a rule keeps each archive");
    }
    Ok(0)
}

fn refresh_links(context: &Context, store: &Store, rows: &[ScheduleRow]) -> Result<()> {
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
        let rules = rule_names(decision);
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

fn rule_names(decision: &Decision) -> Vec<&'static str> {
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
            kept_by: rule_names(decision),
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
        let run = parse_run_number(word)?;
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
        let archive = prune::forget(&context.home, &store, parse_run_number(word)?, args.force)?;
        context.print_info(&format!("removed {}", context.home.backups().join(&archive.file_name).display()));
        refresh_links(context, &store, &[store.schedule(archive.schedule_id)?])?;
    }
    Ok(0)
}

fn parse_run_number(word: &str) -> Result<i64> {
    select::run_number(word).ok_or_else(|| {
        Error::usage(format!("\"{word}\" is not the number of an archive"))
            .hint("write @ and the number in its file name: @17")
    })
}

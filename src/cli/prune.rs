//! `prune`, `pin`, `forget`: which archives are kept.

use clap::Args;
use serde::Serialize;

use super::documents::ArchiveDocument;
use super::render::{self, Format};
use super::results::Results;
use super::signals::Signals;
use super::{Context, config, select};
use crate::archive_folder;
use crate::error::{Error, Result};
use crate::maintenance::compaction::{self, Compacted, CompactionContext};
use crate::maintenance::prune::{self, PruneContext, PrunePlan};
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
    if !args.dry_run {
        return prune_archives(context, &store, &plans, args.yes);
    }
    let mut documents = Vec::new();
    for (row, plan) in &plans {
        let removed: Vec<&Archive> = plan.removals().collect();
        let compacted = compaction::preview(&store, row.id, &removed)?;
        if compacted.segments > 0 {
            context.print_info(&format!("{}: compaction would free {}", row.schedule.name, compacted.describe()));
        }
        documents.push(PlanDocument::new(context, row, plan, &Pruned { archives: 0, waiting: 0, compacted }));
    }
    if context.format == Format::Json {
        render::print_json(&documents)?;
    } else {
        print_plans(context, &plans)?;
    }
    Ok(0)
}

/// What pruning removed of a schedule, and what compaction freed after that.
struct Pruned {
    archives: u64,
    /// Archives that are removed later.
    waiting: u64,
    compacted: Compacted,
}

/// Applies a plan and compacts what it leaves.
fn prune_schedule(
    context: &Context,
    pruning: &PruneContext<'_>,
    row: &ScheduleRow,
    plan: &PrunePlan,
    yes: bool,
) -> Result<Pruned> {
    let PruneContext { home, store, now, cancel, .. } = *pruning;
    let name = row.schedule.name.as_str();
    let deleted = prune::prune_on_request(pruning, row, plan, yes)?;
    let archives = deleted.removed as u64;
    if let Some(note) = deleted.waiting_note(name) {
        context.warn(&note);
    }
    if archives > 0 {
        context.print_info(&format!("{name}: removed {}", render::count(archives, "archive")));
    }
    let compacting = CompactionContext { home, store, now, cancel, warn: &|what| context.warn(what) };
    let compacted = compaction::compact_segments(&compacting, row)?;
    if compacted.segments > 0 {
        context.print_info(&format!("{name}: compaction freed {}", compacted.describe()));
    }
    Ok(Pruned { archives, waiting: deleted.waiting as u64, compacted })
}

/// Finishes interrupted deletions and removes the archives that the plans remove; a plan that is held only with `yes`.
/// An archive that cannot be removed does not stop the removal of others.
fn prune_archives(context: &Context, store: &Store, plans: &[(ScheduleRow, PrunePlan)], yes: bool) -> Result<u8> {
    let interrupted = archive_folder::finish_deletions(&context.home, store);
    let mut total = *interrupted.as_ref().unwrap_or(&0);
    if total > 0 {
        let archives = render::count(total as u64, "archive");
        context.print_info(&format!("removed {archives} whose removal was interrupted"));
    }
    let signals = Signals::cancel_on_first()?;
    let pruning = PruneContext {
        home: &context.home,
        store,
        now: context.now(),
        threads: config::threads(store, None)?,
        cancel: &signals.cancel,
    };
    let mut results = Results::new(plans.len());
    let pruned = plans.iter().try_for_each(|(row, plan)| {
        let name = row.schedule.name.as_str();
        let pruned = prune_schedule(context, &pruning, row, plan, yes).map_err(|error| signals.classify(error));
        if let Ok(pruned) = &pruned {
            total += (pruned.archives + pruned.waiting + pruned.compacted.segments) as usize;
        }
        let document = pruned.map(|pruned| PlanDocument::new(context, row, plan, &pruned));
        results.add_result(name, document)
    });
    let rows: Vec<ScheduleRow> = plans.iter().map(|(row, _)| row.clone()).collect();
    context.refresh_stable_links(store, &rows)?;
    pruned?;
    // The schedules to which its archives belong may be others.
    let _ = interrupted?;
    context.warn_of_kept_segments(store)?;
    let code = results.finish(context)?;
    if total == 0 && code == 0 {
        context.print_info("nothing to remove: a rule keeps each archive");
    }
    Ok(code)
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
    /// Whether it would remove over half of the good archives.
    over_half: bool,
    /// Whether it is removed only with `--yes`.
    needs_yes: bool,
    /// How many archives were removed; 0 of a dry run.
    removed: u64,
    /// What compaction freed, or of a dry run would free.
    compaction: CompactionDocument,
    archives: Vec<DecisionDocument>,
}

/// What compaction freed.
#[derive(Serialize)]
struct CompactionDocument {
    /// Segments whose bytes lie in others now.
    segments: u64,
    /// Bytes of disk space.
    freed_bytes: u64,
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
    /// Describes a plan and what was done by it.
    fn new(context: &Context, row: &ScheduleRow, plan: &PrunePlan, pruned: &Pruned) -> PlanDocument {
        let archives = plan.archives.iter().zip(&plan.decisions).map(|(archive, decision)| DecisionDocument {
            archive: ArchiveDocument::new(context, archive),
            kept_by: rule_names(decision),
            goes: decision.kept_by.is_empty(),
        });
        PlanDocument {
            name: row.schedule.name.to_string(),
            policy: row.schedule.retention.to_string(),
            over_half: plan.is_large(),
            needs_yes: plan.held_by().is_some(),
            removed: pruned.archives,
            compaction: CompactionDocument {
                segments: pruned.compacted.segments,
                freed_bytes: pruned.compacted.freed_bytes,
            },
            archives: archives.collect(),
        }
    }
}

pub fn cmd_pin(context: &Context, args: &PinArgs) -> Result<u8> {
    let store = context.open()?;
    let runs = run_numbers(&args.archive)?;
    // All are found before any is pinned.
    for run in &runs {
        let _ = store.archive(*run)?.ok_or_else(|| prune::no_archive(*run))?;
    }
    let mut documents = Vec::new();
    for run in runs {
        if !store.set_pinned(run, !args.off)? {
            return Err(prune::no_archive(run));
        }
        let state = if args.off { "no longer pinned" } else { "pinned: retention keeps it" };
        context.print_info(&format!("@{run} is {state}"));
        documents.extend(store.archive(run)?.map(|archive| ArchiveDocument::new(context, &archive)));
    }
    if context.format == Format::Json {
        render::print_json(&documents)?;
    }
    Ok(0)
}

/// What `forget --json` prints of each archive.
#[derive(Serialize)]
struct ForgottenDocument {
    /// The archive as it was.
    #[serde(flatten)]
    archive: ArchiveDocument,
    /// False if it is removed later, because another process is changing files of its schedule.
    removed: bool,
}

pub fn cmd_forget(context: &Context, args: &ForgetArgs) -> Result<u8> {
    let store = context.open()?;
    let runs = run_numbers(&args.archive)?;
    let mut results = Results::new(runs.len());
    for run in runs {
        let forgotten = forget(context, &store, run, args.force);
        results.add_result(format!("@{run}"), forgotten)?;
    }
    context.warn_of_kept_segments(&store)?;
    results.finish(context)
}

fn forget(context: &Context, store: &Store, run: i64, force: bool) -> Result<ForgottenDocument> {
    let (archive, deleted) = prune::forget(&context.home, store, run, force)?;
    match deleted.waiting_note(&archive.schedule_name) {
        Some(note) => context.warn(&note),
        None => context.print_info(&format!("removed {}", context.home.backups().join(&archive.file_name).display())),
    }
    context.refresh_stable_links(store, &[store.schedule(archive.schedule_id)?])?;
    Ok(ForgottenDocument { archive: ArchiveDocument::new(context, &archive), removed: deleted.waiting == 0 })
}

/// Returns the numbers in words like `@17`, each once.
fn run_numbers(words: &[String]) -> Result<Vec<i64>> {
    let mut runs = Vec::new();
    for word in words {
        let run = parse_run_number(word)?;
        if !runs.contains(&run) {
            runs.push(run);
        }
    }
    Ok(runs)
}

fn parse_run_number(word: &str) -> Result<i64> {
    select::run_number(word).ok_or_else(|| {
        Error::usage(format!("\"{word}\" is not the number of an archive"))
            .hint("write @ and the number in its file name: @17")
    })
}

//! `history`: lists runs, or shows one in full.

use std::collections::BTreeMap;

use chrono_tz::Tz;
use clap::Args;
use serde::Serialize;

use super::documents::{self, ArchiveDocument, PathFields, RunDocument};
use super::hooks::{CommandDocument, DutyDocument, command_lines, duty_text};
use super::render::{self, Format};
use super::{Context, select};
use crate::error::{Error, Result};
use crate::progress::Problem;
use crate::schedule::parse_since;
use crate::store::{Archive, Attempt, DutyState, HistoryFilter, Run, RunState, Store};

/// How many problems of a run are shown; the printed total counts all.
const MAX_PROBLEMS_SHOWN: u32 = 10_000;

#[derive(Args)]
pub struct HistoryArgs {
    /// A schedule (name, or index in `list`), or one run: @17
    what: Option<String>,
    /// Only runs since then: 2026-11-20, "2026-11-20 14:00", yesterday, 3d
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only runs in these states (comma between)
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    status: Vec<String>,
    /// At most so many, the newest; 0 means all
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
}

pub fn cmd_history(context: &Context, args: &HistoryArgs) -> Result<u8> {
    let states = args.status.iter().map(|word| parse_state(word)).collect::<Result<Vec<_>>>()?;
    let since = args.since.as_deref().map(|text| parse_since(text, context.zone, context.now())).transpose()?;
    let store = context.open()?;
    if let Some(number) = args.what.as_deref().and_then(select::run_number) {
        return show_run(context, &store, number);
    }
    let schedule = args.what.as_deref().map(|word| select::schedule_or_history(&store, word)).transpose()?;
    let limit = (args.limit > 0).then_some(args.limit);
    let runs = store.history(&HistoryFilter { schedule: schedule.map(|row| row.id), since, states, limit })?;
    match context.format {
        Format::Json => {
            let documents = runs.iter().map(|run| RunDocument::new(run, &context.zone));
            render::print_json(&documents.collect::<Vec<_>>())?;
        }
        Format::Plain => {
            let lines: String = runs.iter().map(|run| plain_line(run, &context.zone)).collect();
            render::print(&lines)?;
        }
        Format::Table => {
            let rows = runs.iter().map(|run| table_row(run, &context.zone)).collect();
            let headings = ["RUN", "NAME", "STATE", "STARTED", "TOOK", "MEMBERS", "SIZE", "PROBLEMS", "WHY"];
            render::print_table(&headings, rows, context.colour, "No runs yet. Start one: backup-manager run NAME")?;
        }
    }
    Ok(0)
}

fn parse_state(word: &str) -> Result<RunState> {
    RunState::ALL.into_iter().find(|state| state.as_str() == word).ok_or_else(|| {
        let words: Vec<&str> = RunState::ALL.iter().map(|state| state.as_str()).collect();
        Error::usage(format!("\"{word}\" is not a state of a run")).hint(format!("choose from {}", words.join(", ")))
    })
}

/// Tab-separated: number, name, state, start, finish, members, bytes of the archive, problems.
fn plain_line(run: &Run, zone: &Tz) -> String {
    let time = |at: Option<crate::clock::Timestamp>| at.map_or("-".to_owned(), |at| at.rfc3339(zone));
    format!(
        "@{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\n",
        run.id,
        run.schedule_name,
        run.state.as_str(),
        time(run.started_at.or(run.scheduled_for)),
        time(run.finished_at),
        run.counts.extent.members,
        run.counts.archive_bytes,
        run.counts.problems
    )
}

fn table_row(run: &Run, zone: &Tz) -> Vec<String> {
    let took = match (run.started_at, run.finished_at) {
        (Some(started), Some(finished)) => render::age(finished.since(started)),
        _ => "-".to_owned(),
    };
    let state = match run.coalesced {
        0 => run.state.as_str().to_owned(),
        more => format!("{} (+{more})", run.state.as_str()),
    };
    let dash_if_zero = |number: u64| if number == 0 { "-".to_owned() } else { number.to_string() };
    vec![
        format!("@{}", run.id),
        run.schedule_name.clone(),
        state,
        render::short_time_or_dash(run.started_at.or(run.scheduled_for), zone),
        took,
        dash_if_zero(run.counts.extent.members),
        if run.counts.archive_bytes == 0 { "-".to_owned() } else { render::bytes(run.counts.archive_bytes) },
        dash_if_zero(run.counts.problems),
        run.error.clone().unwrap_or_default(),
    ]
}

/// What `history @N --json` prints.
#[derive(Serialize)]
struct RunInFullDocument {
    #[serde(flatten)]
    run: RunDocument,
    attempts: Vec<AttemptDocument>,
    /// The commands that it executed, in that order.
    commands: Vec<CommandDocument>,
    /// What it began and is still to be undone.
    duties: Vec<DutyDocument>,
    /// At most [`MAX_PROBLEMS_SHOWN`]; `problems` is the whole number.
    problem_list: Vec<ProblemDocument>,
    archive: Option<ArchiveDocument>,
    /// The run whose archive the members that did not change were taken from.
    base: Option<i64>,
    /// How many members were read although there was a base, by reason.
    read_reasons: BTreeMap<String, u64>,
}

/// One attempt of a run.
#[derive(Serialize)]
struct AttemptDocument {
    /// Its number, counted from 1.
    attempt: i64,
    /// The process that made it.
    pid: u32,
    started: String,
    /// Null while it is running.
    ended: Option<String>,
    outcome: String,
    error: Option<String>,
}

/// A path that a run could not archive as it is.
#[derive(Serialize)]
struct ProblemDocument {
    /// `path`: the path in the file system.
    #[serde(flatten)]
    path: PathFields,
    kind: &'static str,
    reason: String,
}

fn show_run(context: &Context, store: &Store, number: i64) -> Result<u8> {
    let run = store.run(number)?;
    let attempts = store.attempts(number)?;
    let problems = store.problems(number, MAX_PROBLEMS_SHOWN)?;
    let archive = store.archive(number)?;
    let commands = store.command_outputs(number)?;
    let mut duties = store.duties_of_run(number)?;
    duties.retain(|duty| duty.state != DutyState::Settled);
    if context.format == Format::Json {
        render::print_json(&RunInFullDocument {
            run: RunDocument::new(&run, &context.zone),
            attempts: attempts.iter().map(|attempt| attempt_document(attempt, &context.zone)).collect(),
            commands: commands.iter().map(|executed| CommandDocument::new(executed, &context.zone)).collect(),
            duties: duties.iter().map(|duty| DutyDocument::new(duty, &context.zone)).collect(),
            problem_list: problems.iter().map(problem_document).collect(),
            archive: archive.map(|archive| ArchiveDocument::new(context, &archive)),
            base: run.base_run,
            read_reasons: run.counts.read_reasons.clone(),
        })?;
    } else {
        let mut text = run_lines(context, &run, archive.as_ref());
        attempts.iter().for_each(|attempt| text += &attempt_line(attempt, &context.zone));
        commands.iter().for_each(|executed| text += &command_lines(executed));
        duties.iter().for_each(|duty| text += &format!("  to undo    {}\n", duty_text(duty)));
        text += &problem_lines(&problems, run.counts.problems);
        render::print_text(&text)?;
    }
    Ok(0)
}

fn attempt_document(attempt: &Attempt, zone: &Tz) -> AttemptDocument {
    AttemptDocument {
        attempt: attempt.attempt,
        pid: attempt.pid,
        started: documents::time(attempt.started_at, zone),
        ended: documents::time_or_null(attempt.ended_at, zone),
        outcome: attempt.outcome.clone(),
        error: attempt.error.clone(),
    }
}

fn problem_document(problem: &Problem) -> ProblemDocument {
    ProblemDocument {
        path: PathFields::new("path", &problem.path),
        kind: problem.kind.as_str(),
        reason: problem.reason.clone(),
    }
}

fn run_lines(context: &Context, run: &Run, archive: Option<&Archive>) -> String {
    let zone = &context.zone;
    let time = |at| render::short_time_or_dash(at, zone);
    let mut text = format!("run @{} of {}: {}\n", run.id, run.schedule_name, run.state.as_str());
    text += &format!("  trigger    {}\n", run.trigger.as_str());
    if let Some(at) = run.scheduled_for {
        let more = if run.coalesced > 0 { format!(" and {} before it", run.coalesced) } else { String::new() };
        text += &format!("  due        {}{more}\n", at.rfc3339(zone));
    }
    text += &format!("  started    {}\n  finished   {}\n", time(run.started_at), time(run.finished_at));
    let files = render::count(run.counts.extent.files, "file");
    text += &format!("  members    {} ({files})\n", run.counts.extent.members);
    text += &format!("  content    {}\n", render::bytes(run.counts.extent.content_bytes));
    if let Some(reuse) = reuse_words(run) {
        text += &format!("  unchanged  {reuse}\n");
    }
    if let Some(archive) = archive {
        let path = context.home.backups().join(&archive.file_name);
        let size = match archive.names {
            0 | 1 => render::bytes(archive.size),
            names => {
                format!("{}, one file with {}", render::bytes(archive.size), render::count(names - 1, "other archive"))
            }
        };
        text += &format!("  archive    {} ({size})\n", path.display());
        text += &format!("  verified   {}\n", time(archive.verified_at));
    }
    if let Some(other) = run.superseded_by {
        text += &format!("  superseded by @{other}\n");
    }
    if let Some(error) = &run.error {
        text += &format!("  error      {error}\n");
    }
    for note in &run.counts.notes {
        text += &format!("  note       {note}\n");
    }
    text
}

/// Returns how much a run took from its base, and why it read the rest; `None` for a run without a base.
pub fn reuse_words(run: &Run) -> Option<String> {
    let base = run.base_run?;
    let read: u64 = run.counts.read_reasons.values().sum();
    let members = run.counts.extent.members;
    let mut text = format!("{} of {members} members, taken from @{base}", members.saturating_sub(read));
    let mut reasons: Vec<_> = run.counts.read_reasons.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let reasons: Vec<_> = reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if !reasons.is_empty() {
        text += &format!("; read: {}", reasons.join(", "));
    }
    Some(text)
}

fn attempt_line(attempt: &Attempt, zone: &Tz) -> String {
    let time = |at| render::short_time_or_dash(at, zone);
    let why = attempt.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    format!(
        "  attempt {}  {} (process {}, {} to {}){why}\n",
        attempt.attempt,
        attempt.outcome,
        attempt.pid,
        time(Some(attempt.started_at)),
        time(attempt.ended_at)
    )
}

fn problem_lines(problems: &[Problem], total: u64) -> String {
    let mut text = String::new();
    for problem in problems {
        let path = render::printable(&problem.path);
        text += &format!("  problem    {path}: {} ({})\n", problem.reason, problem.kind.as_str());
    }
    let left = total.saturating_sub(problems.len() as u64);
    if left > 0 {
        text += &format!("  and {} more\n", render::count(left, "problem"));
    }
    text
}

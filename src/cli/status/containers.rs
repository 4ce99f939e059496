//! What is wrong with the containers that runs stop: labelled ones that no schedule is for, or no engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::Context;
use crate::containers::{self, DEFAULT_STOP_LABEL, Endpoint, Engine, Own, Purpose, TimeLimits};
use crate::error::Result;
use crate::store::{ScheduleRow, Store};

/// How long the container engine may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Returns what is wrong, in words. Asks the container engine if a schedule that is not paused stops containers.
pub(super) fn problems(context: &Context, store: &Store, rows: &[ScheduleRow]) -> Result<Vec<String>> {
    let mut wanted: Vec<(&str, PathBuf, String)> = Vec::new();
    for row in rows.iter().filter(|row| row.schedule.enabled) {
        let options = store.hooks(row.id)?.hooks.options;
        if options.containers {
            let label = options.stop_label.unwrap_or_else(|| DEFAULT_STOP_LABEL.to_owned());
            wanted.push((row.schedule.name.as_str(), context.home.source_path(&row.schedule.source), label));
        }
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    Ok(unmatched(context, &wanted).unwrap_or_else(|error| {
        let next = error.next_step().map_or(String::new(), |next| format!(": {next}"));
        vec![format!("runs that stop containers will fail: {error}{next}")]
    }))
}

fn unmatched(context: &Context, wanted: &[(&str, PathBuf, String)]) -> Result<Vec<String>> {
    let limits = TimeLimits { answer: ANSWER_LIMIT, ..TimeLimits::default() };
    let engine = Engine::connect(Endpoint::from_environment()?, limits, Arc::clone(&context.clock))?;
    let own = Own::find(&engine)?;
    let purposes: Vec<Purpose<'_>> =
        wanted.iter().map(|(schedule, source, stop_label)| Purpose { schedule, source, stop_label }).collect();
    let names = containers::unmatched(&engine, &own, &purposes)?;
    let problem = |name: String| {
        format!(
            "the container {name} has labels for backups, but it mounts no part of the source of a schedule with \
             --containers: name the schedule in its label backup-manager.schedule"
        )
    };
    Ok(names.into_iter().map(problem).collect())
}

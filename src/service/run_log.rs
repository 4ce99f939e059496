//! The lines of the service log about runs. Each begins with the schedule and the number of the run; the line about its
//! end names the outcome, the archive file and its size.

use chrono_tz::Tz;

use crate::backup::RunOutcome;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Observer, Problem, Progress};
use crate::schedule::DueOccurrences;
use crate::store::{EnqueueOutcome, Run, RunState, Store};
use crate::words::count;

/// Logs what happens to one run, and what it reports.
pub(super) struct RunLog<'a> {
    store: &'a Store,
    run: i64,
    /// Name of its schedule.
    schedule: String,
}

impl<'a> RunLog<'a> {
    pub(super) fn new(store: &'a Store, run: i64) -> RunLog<'a> {
        // A line without the name is better than none.
        let schedule = store.run(run).map_or_else(|_| "a schedule".to_owned(), |run| run.schedule_name);
        RunLog { store, run, schedule }
    }

    pub(super) fn started(&self, attempt: i64) {
        log::info!("{}: run @{} started, attempt {attempt}", self.schedule, self.run);
    }

    pub(super) fn no_thread(&self, error: &std::io::Error) {
        log::error!("{}: run @{}: no thread could be started: {error}", self.schedule, self.run);
    }

    pub(super) fn ended(&self, ended: &Result<RunOutcome>) {
        let (schedule, run) = (&self.schedule, self.run);
        match ended {
            Ok(outcome) => self.outcome(outcome.state, outcome.error.as_ref()),
            Err(error) if error.kind() == ErrorKind::Fenced => log::warn!("{schedule}: run @{run} left: {error}"),
            Err(error) => log::error!("{schedule}: run @{run} has ended, and its result was not recorded: {error}"),
        }
    }

    pub(super) fn recovered(&self, recovered: &Result<RunState>) {
        let (schedule, run) = (&self.schedule, self.run);
        match recovered {
            Ok(state) => {
                log::info!("{schedule}: run @{run} was recovered");
                self.outcome(*state, None);
            }
            Err(error) => log::error!("{schedule}: run @{run} not recovered, will be tried again: {error}"),
        }
    }

    /// Logs the state of the run after an attempt, and what it made.
    fn outcome(&self, state: RunState, error: Option<&Error>) {
        let run = self.store.run(self.run).ok();
        let archive = self.store.archive(self.run).ok().flatten();
        let file = archive.map(|archive| archive.file_and_size());
        let line = outcome_line(&self.schedule, self.run, state, run.as_ref(), file.as_deref(), error);
        match state {
            RunState::Succeeded | RunState::Skipped => log::info!("{line}"),
            // A run that is tried again has not failed yet.
            RunState::Incomplete | RunState::Queued => log::warn!("{line}"),
            _ => log::error!("{line}"),
        }
    }
}

/// Returns the line about a run that ended or waits for another try:
/// `docs: run @16 incomplete: 1 path, docs-….tar 6.00 KiB`.
fn outcome_line(
    schedule: &str,
    number: i64,
    state: RunState,
    run: Option<&Run>,
    file: Option<&str>,
    error: Option<&Error>,
) -> String {
    let losses = run.map_or(0, |run| run.counts.losses);
    let reason = error.map(ToString::to_string).or_else(|| run.and_then(|run| run.error.clone()));
    let paths = (state == RunState::Incomplete).then(|| count(losses, "path"));
    let details: Vec<String> = [reason, paths, file.map(str::to_owned)].into_iter().flatten().collect();
    let waits = run.filter(|_| state == RunState::Queued).map(|run| run.not_before);
    let state = waits.map_or_else(
        || state.as_str().to_owned(),
        |at| format!("failed and is tried again from {}", at.rfc3339(&chrono::Utc)),
    );
    match details.is_empty() {
        true => format!("{schedule}: run @{number} {state}"),
        false => format!("{schedule}: run @{number} {state}: {}", details.join(", ")),
    }
}

impl Observer for RunLog<'_> {
    fn progress(&self, _: &Progress) {}

    fn problem(&self, problem: &Problem) {
        let path = String::from_utf8_lossy(&problem.path);
        let (schedule, run) = (&self.schedule, self.run);
        log::warn!("{schedule}: run @{run}: {path}: {} ({})", problem.reason, problem.kind.as_str());
    }

    fn note(&self, text: &str) {
        // Some notes name the schedule themselves.
        let text = text.strip_prefix(&format!("{}: ", self.schedule)).unwrap_or(text);
        log::info!("{}: run @{}: {text}", self.schedule, self.run);
    }
}

/// Logs what maintenance tasks report.
pub(super) struct MaintenanceLog;

impl Observer for MaintenanceLog {
    fn progress(&self, _: &Progress) {}

    fn problem(&self, problem: &Problem) {
        log::warn!("{}: {} ({})", String::from_utf8_lossy(&problem.path), problem.reason, problem.kind.as_str());
    }

    fn note(&self, text: &str) {
        log::info!("{text}");
    }
}

/// Logs what became of the due occurrences of a schedule.
pub(super) fn log_due(schedule: &str, due: &DueOccurrences, outcome: EnqueueOutcome, zone: Tz) {
    log::info!("{}", due_line(schedule, due, outcome, zone));
}

fn due_line(schedule: &str, due: &DueOccurrences, outcome: EnqueueOutcome, zone: Tz) -> String {
    let at = due.newest.rfc3339(&zone);
    let occurrences = count(due.count, "occurrence");
    match outcome {
        EnqueueOutcome::Queued(run) => format!("{schedule}: run @{run} queued: due at {at}, {occurrences}"),
        EnqueueOutcome::Coalesced(run) => {
            format!("{schedule}: run @{run}, queued before, now counts {occurrences} more: due at {at}")
        }
        EnqueueOutcome::Missed(run) => format!("{schedule}: run @{run} missed: due at {at}, {occurrences}"),
        EnqueueOutcome::AlreadyRun => format!("{schedule}: due at {at}, but that occurrence has a run already"),
        EnqueueOutcome::Overtaken => format!("{schedule}: due at {at}, but another process handled it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn a_line_names_schedule_run_outcome_file_and_size() {
        let line = |state, file, error: Option<&Error>| outcome_line("docs", 16, state, None, file, error);
        let file = Some("docs-20261127T020000Z-16.tar 6.00 KiB");
        let succeeded = "docs: run @16 succeeded: docs-20261127T020000Z-16.tar 6.00 KiB";
        assert_eq!(line(RunState::Succeeded, file, None), succeeded);
        let incomplete = "docs: run @16 incomplete: 0 paths, docs-20261127T020000Z-16.tar 6.00 KiB";
        assert_eq!(line(RunState::Incomplete, file, None), incomplete);
        let error = Error::failed("no space");
        assert_eq!(line(RunState::Failed, None, Some(&error)), "docs: run @16 failed: no space");
        assert_eq!(line(RunState::Cancelled, None, None), "docs: run @16 cancelled");
    }

    #[test]
    fn what_became_of_due_occurrences_is_in_words() {
        let due = DueOccurrences { newest: Timestamp::from_millis(0), count: 1 };
        let lines = [
            (EnqueueOutcome::Queued(3), "docs: run @3 queued: due at 1970-01-01T00:00:00+00:00, 1 occurrence"),
            (
                EnqueueOutcome::Coalesced(3),
                "docs: run @3, queued before, now counts 1 occurrence more: due at 1970-01-01T00:00:00+00:00",
            ),
            (EnqueueOutcome::Missed(3), "docs: run @3 missed: due at 1970-01-01T00:00:00+00:00, 1 occurrence"),
        ];
        for (outcome, line) in lines {
            assert_eq!(due_line("docs", &due, outcome, Tz::UTC), line);
        }
    }
}

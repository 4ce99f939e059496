//! The outside of a run: who asks it to stop, who is told how it goes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Runner;
use crate::cancel::CancelToken;
use crate::member::Extent;
use crate::progress::{Observer, Problem, Progress};

/// Least time between two looks at a request to cancel, and between two writes of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// How one run is carried out.
pub struct RunContext<'a> {
    /// Where a stop is asked for.
    pub cancel: &'a CancelToken,
    /// Who is told.
    pub observer: &'a dyn Observer,
    /// Somebody waits for it at a terminal: no retries.
    pub is_foreground: bool,
}

/// Passes progress on to the worker file and the observer, and looks for requests to cancel, both now and then.
pub(super) struct Monitor<'a> {
    runner: &'a Runner,
    run: i64,
    context: &'a RunContext<'a>,
    last: Mutex<Option<Duration>>,
    expected: Mutex<Option<Extent>>,
}

impl<'a> Monitor<'a> {
    pub(super) fn new(runner: &'a Runner, run: i64, context: &'a RunContext<'a>) -> Self {
        let now = runner.clock.now().millis();
        let _ = runner.worker.update_run(run, |line| {
            line.started_at_ms = now;
            line.moved_at_ms = now;
        });
        let monitor = Monitor { runner, run, context, last: Mutex::new(None), expected: Mutex::new(None) };
        monitor.phase("starting");
        monitor
    }

    pub(super) fn phase(&self, phase: &str) {
        let _ = self.runner.worker.update_run(self.run, |line| line.phase = phase.to_owned());
    }

    /// Takes in how much the run is expected to read, for the share done and the time left.
    pub(super) fn expect(&self, expected: Extent) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(expected);
    }

    fn with_totals(&self, progress: &Progress) -> Progress {
        let expected = *self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        Progress {
            members_total: progress.members_total.or(expected.map(|e| e.members)),
            bytes_total: progress.bytes_total.or(expected.map(|e| e.content_bytes)),
            ..*progress
        }
    }

    fn is_time(&self) -> bool {
        let now = self.runner.clock.monotonic();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|at| now.saturating_sub(at) >= PROGRESS_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

impl Observer for Monitor<'_> {
    fn progress(&self, progress: &Progress) {
        let progress = &self.with_totals(progress);
        self.context.observer.progress(progress);
        if !self.is_time() {
            return;
        }
        let now = self.runner.clock.now().millis();
        let _ = self.runner.worker.update_run(self.run, |line| {
            if (line.members, line.bytes) != (progress.members, progress.bytes) {
                line.moved_at_ms = now;
            }
            (line.members, line.bytes) = (progress.members, progress.bytes);
            (line.members_total, line.bytes_total) = (progress.members_total, progress.bytes_total);
        });
        if self.runner.store.cancel_requested(self.run).unwrap_or(false) {
            self.context.cancel.cancel();
        }
    }

    fn problem(&self, problem: &Problem) {
        self.context.observer.problem(problem);
    }

    fn note(&self, text: &str) {
        self.context.observer.note(text);
    }
}

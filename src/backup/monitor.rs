//! Progress of a run: heartbeat, observer, and requests to cancel it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Runner;
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::member::Extent;
use crate::progress::{Observer, Problem, Progress};

/// Minimum time between two writes of the heartbeat, and between two reads of a request to cancel.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// How one run is executed.
pub struct RunContext<'a> {
    /// Stops the run.
    pub cancel: &'a CancelToken,
    /// Receives progress, problems and notes.
    pub observer: &'a dyn Observer,
    /// A user waits for it at a terminal: it is not retried.
    pub is_foreground: bool,
}

/// Forwards progress to the heartbeat file and to the observer, and polls the database for a request to cancel.
pub(super) struct Monitor<'a> {
    runner: &'a Runner,
    run: i64,
    context: &'a RunContext<'a>,
    updated_at: Mutex<Option<Duration>>,
    expected: Mutex<Option<Extent>>,
}

impl<'a> Monitor<'a> {
    pub(super) fn new(runner: &'a Runner, run: i64, context: &'a RunContext<'a>) -> Self {
        let now = runner.clock.now().millis();
        let _ = runner.worker.update_run(run, |heartbeat| {
            heartbeat.started_at_ms = now;
            heartbeat.moved_at_ms = now;
        });
        let monitor = Monitor { runner, run, context, updated_at: Mutex::new(None), expected: Mutex::new(None) };
        monitor.phase("starting");
        monitor
    }

    pub(super) fn phase(&self, phase: &str) {
        let _ = self.runner.worker.update_run(self.run, |heartbeat| heartbeat.phase = phase.to_owned());
    }

    /// Sets how much the run is expected to read, from which the share done and the time left are computed.
    pub(super) fn expect(&self, expected: Extent) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(expected);
    }

    /// Returns whether the run was asked to stop, by its token or in the database, which is asked now and then.
    pub(super) fn is_cancelled(&self) -> bool {
        if self.begin_update() {
            self.poll_cancel_request();
        }
        self.context.cancel.is_cancelled()
    }

    /// Fails with `Interrupted` if the run was asked to stop before it wrote.
    pub(super) fn check_not_cancelled(&self) -> Result<()> {
        self.context.cancel.check("the backup was cancelled before anything was written")
    }

    fn poll_cancel_request(&self) {
        if self.runner.store.cancel_requested(self.run).unwrap_or(false) {
            self.context.cancel.cancel();
        }
    }

    fn with_totals(&self, progress: &Progress) -> Progress {
        let expected = *self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        Progress {
            members_total: progress.members_total.or(expected.map(|e| e.members)),
            bytes_total: progress.bytes_total.or(expected.map(|e| e.content_bytes)),
            ..*progress
        }
    }

    /// Returns whether an update is due, and counts it as done.
    fn begin_update(&self) -> bool {
        let now = self.runner.clock.monotonic();
        let mut updated_at = self.updated_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = updated_at.is_none_or(|at| now.saturating_sub(at) >= MIN_INTERVAL);
        if is_due {
            *updated_at = Some(now);
        }
        is_due
    }
}

impl Observer for Monitor<'_> {
    fn progress(&self, progress: &Progress) {
        let progress = &self.with_totals(progress);
        self.context.observer.progress(progress);
        if !self.begin_update() {
            return;
        }
        let now = self.runner.clock.now().millis();
        let _ = self.runner.worker.update_run(self.run, |heartbeat| {
            if (heartbeat.members, heartbeat.bytes) != (progress.members, progress.bytes) {
                heartbeat.moved_at_ms = now;
            }
            (heartbeat.members, heartbeat.bytes) = (progress.members, progress.bytes);
            (heartbeat.members_total, heartbeat.bytes_total) = (progress.members_total, progress.bytes_total);
        });
        self.poll_cancel_request();
    }

    fn problem(&self, problem: &Problem) {
        self.context.observer.problem(problem);
    }

    fn note(&self, text: &str) {
        self.context.observer.note(text);
    }
}

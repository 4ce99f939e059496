//! The end of a run: without an archive, and recording an end that the database does not accept at once.

use std::time::Duration;

use super::monitor::RunContext;
use super::{AfterFailure, Failure, RunOutcome, Runner};
use crate::archive_folder;
use crate::durable;
use crate::error::{ErrorKind, Result};
use crate::store::{Claim, EndError, EndResult, Intent, Requeue, RunState};

/// Pause before the end of a run is recorded again after the database failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

impl Runner {
    /// Ends a run that made no archive: removes its temporary file, then its catalog rows, then ends the row.
    pub(super) fn end_without_archive(
        &self,
        claim: Claim,
        intent: &Intent,
        failure: Failure,
        context: &RunContext<'_>,
    ) -> Result<RunOutcome> {
        let run = claim.run();
        // If the claim is lost, the worker that took the run over may be using the file of that name.
        match self.store.check_claim(&claim) {
            Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
            _ => {}
        }
        // The file is normally removed already, unless removing it failed.
        if let Err(error) = durable::remove(&self.home.backups().join(&intent.temporary_name)) {
            let name = intent.schedule_name();
            log::warn!("{name}: run @{run}: its temporary file was not removed: {error}");
        }
        let was_interrupted = failure.error.kind() == ErrorKind::Interrupted;
        let was_drained = was_interrupted && context.cancel.should_requeue();
        let reason = failure.error.to_string();
        self.record_end(claim, context, |claim| {
            if let Err(error) = self.store.discard_chunks(&claim) {
                return Err(Box::new(EndError { claim, error }));
            }
            let now = self.clock.now();
            if failure.is_skip() {
                self.store.end_without_archive(claim, RunState::Skipped, &reason, now)
            } else if was_drained && !context.is_foreground {
                self.store.requeue(claim, Requeue::Refund, "the service was stopped", now).map(drop)
            } else if was_interrupted {
                self.store.end_without_archive(claim, RunState::Cancelled, "cancelled on request", now)
            } else if failure.next == AfterFailure::Retry && !context.is_foreground {
                self.store.requeue(claim, Requeue::Retry, &reason, now).map(drop)
            } else {
                self.store.end_without_archive(claim, RunState::Failed, &reason, now)
            }
        })?;
        self.remove_discarded_segments(run, intent.schedule_name());
        let state = self.store.run(run)?.state;
        Ok(RunOutcome { run, state, error: Some(failure.error) })
    }

    /// Removes the segments that a run has written and discarded. What cannot be removed is tried again later.
    pub(super) fn remove_discarded_segments(&self, run: i64, name: &str) {
        let kept = match archive_folder::remove_unused_segments(&self.home, &self.store) {
            Ok(unreadable) => unreadable.into_iter().map(|index| index.into_error(&self.home)).collect(),
            Err(error) => vec![error],
        };
        for error in kept {
            log::warn!("{name}: run @{run}: its segments were not removed: {error}");
        }
    }

    /// Records the end of a run, again every 30 s until the database accepts it or a stop is requested; in that case
    /// recovery ends the run later.
    pub(super) fn record_end<T>(
        &self,
        mut claim: Claim,
        context: &RunContext<'_>,
        record: impl Fn(Claim) -> EndResult<T>,
    ) -> Result<T> {
        let mut has_waited = false;
        loop {
            let EndError { claim: returned, error } = match record(claim) {
                Ok(done) => {
                    if has_waited {
                        let _ = self.worker.update(|heartbeat| heartbeat.trouble = None);
                    }
                    return Ok(done);
                }
                Err(failed) => *failed,
            };
            let is_lost = error.kind() == ErrorKind::Fenced || !self.store.is_in_place();
            if is_lost || (has_waited && context.cancel.is_cancelled()) {
                return Err(error);
            }
            let run = returned.run();
            log::error!("run @{run}: its end cannot be written, trying again every 30 s: {error}");
            context.observer.note(&format!("the end of run @{run} cannot be written: {error}"));
            let _ = self.worker.update(|heartbeat| heartbeat.trouble = Some(error.to_string()));
            context.cancel.wait(RETRY_INTERVAL);
            has_waited = true;
            claim = returned;
        }
    }
}

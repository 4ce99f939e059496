//! Post-backup steps: detection of a sudden change, retention, stable links.

use super::{RunContext, Runner};
use crate::archive_folder;
use crate::error::Result;
use crate::maintenance::prune;
use crate::member::Extent;
use crate::store::ScheduleRow;
use crate::words::shell_word;

/// How much less than the archive before it an archive holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// At least half, or less and that was accepted.
    Usual,
    /// Less than half.
    Sudden,
    /// At least half of the suspect archive of this run, which is thereby accepted.
    Again(i64),
}

impl Runner {
    /// Compares the sealed archive of a run with the one before it.
    pub(super) fn change_since_last(&self, run: i64, row: &ScheduleRow, context: &RunContext<'_>) -> Result<Change> {
        let (Some(new), Some(before)) = (self.store.pending_archive(run)?, self.store.archive_before(row.id, run)?)
        else {
            return Ok(Change::Usual);
        };
        let (then, now) = (before.extent, new.extent);
        // Read again, because `accept` may have been called during the run.
        let is_accepted = self.store.schedule(row.id)?.accepted;
        if is_less_than_half(now, then) && !is_accepted {
            context.observer.note(&format!(
                "{}: less than half of what @{} held ({} of {} members, {} of {} bytes): kept, but it does not count \
                 as good until a later archive is like it, or `backup-manager accept {}`",
                row.schedule.name,
                before.run,
                now.members,
                then.members,
                now.content_bytes,
                then.content_bytes,
                shell_word(row.schedule.name.as_str())
            ));
            return Ok(Change::Sudden);
        }
        let is_like_suspect = before.suspect && !is_less_than_half(then, now);
        Ok(if is_like_suspect { Change::Again(before.run) } else { Change::Usual })
    }

    /// Applies retention and refreshes the stable link once an archive is complete. An error here is reported and does
    /// not change how the run ended.
    pub(super) fn run_post_backup_steps(&self, run: i64, row: &ScheduleRow, context: &RunContext<'_>) {
        match self.apply_retention(run, row, context) {
            Ok(note) => note.iter().for_each(|note| context.observer.note(note)),
            Err(error) => {
                log::warn!("{}: run @{run}: retention was not applied: {error}", row.schedule.name);
                context.observer.note(&format!("retention was not applied: {error}"));
            }
        }
        let rows = std::slice::from_ref(row);
        match archive_folder::refresh_stable_links(&self.home, &self.store, rows, self.clock.now()) {
            Ok(notes) => notes.iter().for_each(|note| context.observer.note(note)),
            Err(error) => {
                log::warn!("{}: run @{run}: the stable link was not refreshed: {error}", row.schedule.name);
            }
        }
    }

    fn apply_retention(&self, run: i64, row: &ScheduleRow, context: &RunContext<'_>) -> Result<Option<String>> {
        if !self.store.archive(run)?.is_some_and(|archive| archive.good) {
            return Ok(None);
        }
        // The schedule may have been edited during the run.
        let row = self.store.schedule(row.id)?;
        let context = prune::PruneContext {
            home: &self.home,
            store: &self.store,
            now: self.clock.now(),
            threads: self.threads,
            cancel: context.cancel,
        };
        prune::apply_retention(&context, &row, run)
    }
}

/// Returns whether `now` holds less than half of what `then` held, in members or in bytes.
fn is_less_than_half(now: Extent, then: Extent) -> bool {
    now.members < then.members.div_ceil(2) || now.content_bytes < then.content_bytes.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_half_is_not_less_than_half() {
        let extent = |members, content_bytes| Extent { members, files: 0, content_bytes };
        let before = extent(5, 100);
        assert!(!is_less_than_half(extent(3, 50), before));
        assert!(is_less_than_half(extent(2, 100), before));
        assert!(is_less_than_half(extent(5, 49), before));
        assert!(!is_less_than_half(extent(0, 0), extent(0, 0)));
    }
}

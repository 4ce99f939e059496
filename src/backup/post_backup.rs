//! Post-backup steps: detection of a sudden change, retention, stable links.

use super::{RunContext, Runner};
use crate::archive_folder;
use crate::error::Result;
use crate::maintenance::prune;
use crate::member::Extent;
use crate::store::ScheduleRow;

impl Runner {
    /// Returns whether the sealed archive of a run holds less than half of what the one before it held, unless that
    /// was accepted. An archive that is like a suspect one before it confirms that one.
    pub(super) fn is_sudden_change(&self, run: i64, row: &ScheduleRow, context: &RunContext<'_>) -> Result<bool> {
        let (Some(new), Some(before)) = (self.store.pending_archive(run)?, self.store.archive_before(row.id, run)?)
        else {
            return Ok(false);
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
                row.schedule.name
            ));
            return Ok(true);
        }
        if before.suspect && !is_less_than_half(then, now) {
            self.store.confirm_archive(before.run)?;
        }
        Ok(false)
    }

    /// Applies retention and refreshes the stable link once an archive is complete. An error here is reported and does
    /// not change how the run ended.
    pub(super) fn run_post_backup_steps(&self, run: i64, row: &ScheduleRow, context: &RunContext<'_>) {
        match self.apply_retention(run, row) {
            Ok(note) => note.iter().for_each(|note| context.observer.note(note)),
            Err(error) => {
                log::warn!("run @{run}: retention was not applied: {error}");
                context.observer.note(&format!("retention was not applied: {error}"));
            }
        }
        let rows = std::slice::from_ref(row);
        match archive_folder::refresh_stable_links(&self.home, &self.store, rows, self.clock.now()) {
            Ok(notes) => notes.iter().for_each(|note| context.observer.note(note)),
            Err(error) => log::warn!("run @{run}: the stable link was not refreshed: {error}"),
        }
    }

    fn apply_retention(&self, run: i64, row: &ScheduleRow) -> Result<Option<String>> {
        if !self.store.archive(run)?.is_some_and(|archive| archive.good) {
            return Ok(None);
        }
        // The schedule may have been edited during the run.
        let row = self.store.schedule(row.id)?;
        prune::apply_retention(&self.home, &self.store, &row, run)
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

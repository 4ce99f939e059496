//! What follows from a new archive: whether it fell suspiciously against the one before, the stable name, retention.

use super::{RunContext, Runner};
use crate::archive_folder;
use crate::error::Result;
use crate::maintenance::prune;
use crate::member::Extent;
use crate::store::ScheduleRow;

impl Runner {
    /// Says whether the sealed archive of a run fell by more than half against the one before it, unless that was
    /// accepted. One that is like a suspicious one before it confirms that one.
    pub(super) fn is_sudden_change(&self, run: i64, row: &ScheduleRow, context: &RunContext<'_>) -> Result<bool> {
        let (Some(new), Some(before)) = (self.store.pending_archive(run)?, self.store.archive_before(row.id, run)?)
        else {
            return Ok(false);
        };
        let (then, now) = (before.extent, new.extent);
        // As it was when the run ended its reading: `accept` may have come while it ran.
        let accepted = self.store.schedule(row.id)?.accepted;
        if fell_by_half(now, then) && !accepted {
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
        if before.suspect && !fell_by_half(then, now) {
            self.store.confirm_archive(before.run)?;
        }
        Ok(false)
    }

    /// Renews the stable name and applies retention once an archive is complete. Trouble here is told and does not
    /// change how the run ended.
    pub(super) fn run_post_backup_steps(&self, run: i64, row: &ScheduleRow, context: &RunContext<'_>) {
        match self.apply_retention(run, row) {
            Ok(note) => note.iter().for_each(|note| context.observer.note(note)),
            Err(error) => {
                log::warn!("run @{run}: retention was not applied: {error}");
                context.observer.note(&format!("retention was not applied: {error}"));
            }
        }
        let names = std::slice::from_ref(row);
        match archive_folder::refresh_stable_links(&self.home, &self.store, names, self.clock.now()) {
            Ok(notes) => notes.iter().for_each(|note| context.observer.note(note)),
            Err(error) => log::warn!("run @{run}: the stable name was not renewed: {error}"),
        }
    }

    fn apply_retention(&self, run: i64, row: &ScheduleRow) -> Result<Option<String>> {
        if !self.store.archive(run)?.is_some_and(|archive| archive.good) {
            return Ok(None);
        }
        // The schedule may have been edited while the run went on.
        let row = self.store.schedule(row.id)?;
        prune::after_good_run(&self.home, &self.store, &row, run)
    }
}

/// Returns whether `now` holds less than half of what `then` held, in members or in bytes.
fn fell_by_half(now: Extent, then: Extent) -> bool {
    now.members < then.members.div_ceil(2) || now.content_bytes < then.content_bytes.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_half_is_no_fall() {
        let extent = |members, content_bytes| Extent { members, files: 0, content_bytes };
        let before = extent(5, 100);
        assert!(!fell_by_half(extent(3, 50), before));
        assert!(fell_by_half(extent(2, 100), before));
        assert!(fell_by_half(extent(5, 49), before));
        assert!(!fell_by_half(extent(0, 0), extent(0, 0)));
    }
}

//! What follows from a new archive: whether it fell suspiciously against the one before, the stable name, retention.

use super::{RunContext, Runner};
use crate::archive_folder;
use crate::error::Result;
use crate::maintenance::prune;
use crate::store::ScheduleRow;

/// What an archive holds, as far as a sudden change would show.
#[derive(Clone, Copy, Debug)]
struct Extent {
    members: u64,
    content_bytes: u64,
}

impl Extent {
    /// Says whether `self` holds less than half of what `before` held, in members or in bytes.
    fn fell_from(self, before: Extent) -> bool {
        self.members < before.members.div_ceil(2) || self.content_bytes < before.content_bytes.div_ceil(2)
    }
}

impl Runner {
    /// Says whether the sealed archive of a run fell by more than half against the one before it, unless that was
    /// accepted. One that is like a suspicious one before it confirms that one.
    pub(super) fn is_sudden_change(&self, run: i64, row: &ScheduleRow, context: &RunContext<'_>) -> Result<bool> {
        let (Some(new), Some(before)) = (self.store.unfinished(run)?, self.store.archive_before(row.id, run)?) else {
            return Ok(false);
        };
        let then = Extent { members: before.members, content_bytes: before.content_bytes };
        let now = Extent { members: new.members, content_bytes: new.content_bytes };
        // As it was when the run ended its reading: `accept` may have come while it ran.
        let accepted = self.store.schedule(row.id)?.accepted;
        if now.fell_from(then) && !accepted {
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
        if before.suspect && !then.fell_from(now) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_half_is_no_fall() {
        let before = Extent { members: 5, content_bytes: 100 };
        assert!(!Extent { members: 3, content_bytes: 50 }.fell_from(before));
        assert!(Extent { members: 2, content_bytes: 100 }.fell_from(before));
        assert!(Extent { members: 5, content_bytes: 49 }.fell_from(before));
        assert!(!Extent { members: 0, content_bytes: 0 }.fell_from(Extent { members: 0, content_bytes: 0 }));
    }
}

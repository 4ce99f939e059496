//! From a sealed archive to the end of its run: rename, verify, complete (I1). Recovery renames by itself
//! (`recover.rs`) and then uses [`Runner::finish_sealed`], too.

use std::os::unix::fs::MetadataExt;

use super::monitor::RunContext;
use super::post_backup::Change;
use super::{Inherited, RunOutcome, Runner, SealedArchive};
use crate::archive::check;
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::durable::SealedFile;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::Layout;
use crate::store::{Claim, Completed, Intent, RunState, ScheduleRow};

impl Runner {
    /// Renames the sealed file to its final name and syncs the folder; before an index, its segments.
    pub(super) fn rename_into_place(&self, claim: &Claim, file: SealedFile, archive: &SealedArchive<'_>) -> Result<()> {
        // If the claim is lost, `file` is dropped, which removes the temporary file. The final name is not touched
        // without the claim (I4). An existing file of that name is not replaced.
        self.store.check_claim(claim)?;
        if archive.layout == Layout::Segmented {
            self.rename_segments(claim.run())?;
        }
        file.persist(&self.home.backups().join(archive.file_name), false).map(drop)
    }

    /// Returns whether the final name is that of the very file that was sealed.
    pub(super) fn is_in_place(&self, intent: &Intent, (device, inode): (u64, u64)) -> bool {
        let found = self.home.backups().join(&intent.file_name).symlink_metadata();
        found.is_ok_and(|found| (found.dev(), found.ino()) == (device, inode))
    }

    /// Verifies a sealed archive under its final name, makes it visible and ends the run. A stop does not interrupt
    /// this: what is sealed is finished, here or by recovery. An archive that does not read back as written becomes
    /// visible as damaged, and its run fails. May accept the archive before it as no sudden change.
    pub(super) fn finish_sealed(
        &self,
        claim: Claim,
        archive: &SealedArchive<'_>,
        row: &ScheduleRow,
        context: &RunContext<'_>,
    ) -> Result<RunOutcome> {
        let run = claim.run();
        let (verified_at, damage) = match self.verify(&claim, archive) {
            Ok(at) => (at, None),
            Err(error) if error.kind() == ErrorKind::Damage => (None, Some(error)),
            // The archive is sealed and under its final name, and nothing works on it any more: recovery verifies it
            // again.
            Err(error) => return Err(error),
        };
        let change = match damage {
            None => self.change_since_last(run, row, context)?,
            Some(_) => Change::Usual,
        };
        let completed = Completed {
            incomplete: archive.is_incomplete || archive.problem.is_some(),
            reason: archive.problem.clone(),
            notes: Vec::new(),
            verified_at,
            suspect: change == Change::Sudden,
            accepts: match change {
                Change::Again(before) => Some(before),
                _ => None,
            },
            shares_blocks_of: archive.inherited.base_file(),
            damaged: damage.as_ref().map(|error| format!("the archive did not read back as written: {error}")),
        };
        let state =
            self.record_end(claim, context, |claim| self.store.complete(claim, &completed, self.clock.now()))?;
        self.run_post_backup_steps(run, row, context);
        let error = match damage {
            // The file that it shares, or shares blocks of, with another archive was found damaged meanwhile.
            None if state == RunState::Failed => {
                self.store.run(run)?.error.map(|reason| Error::new(ErrorKind::Damage, reason))
            }
            damage => damage,
        };
        Ok(RunOutcome { run, state, error })
    }

    /// Reads back what the archive does not share with a base that was verified a short time ago, and compares it with
    /// the catalog and its digest. Without post-write verification, only an archive that shares something. Returns when
    /// its oldest part was verified (I20); `None` if nothing is to be recorded.
    fn verify(&self, claim: &Claim, archive: &SealedArchive<'_>) -> Result<Option<Timestamp>> {
        let (unread, oldest) = match (archive.layout, &archive.inherited) {
            // What lies in segments of other runs was verified a short time ago; their rows have the times.
            (Layout::Segmented, _) => (self.store.inherited_ranges(claim.run())?, None),
            // The file keeps the time of that.
            (Layout::Whole, Inherited::File) => return Ok(None),
            (Layout::Whole, Inherited::Ranges { ranges, verified_at, .. }) => (ranges.clone(), Some(*verified_at)),
            (Layout::Whole, Inherited::Nothing) => (Vec::new(), None),
        };
        // What was taken unread makes this little; otherwise the next run would verify all before it takes from it.
        if !claim.verify() && unread.is_empty() {
            return Ok(None);
        }
        let path = self.home.backups().join(archive.file_name);
        let mut chunks = self.store.archive_chunks(claim.run());
        // A stop does not interrupt what is sealed, so nothing cancels this token.
        let cancel = CancelToken::new();
        let now = self.clock.now();
        check::check_except(&path, &mut chunks, &unread, &archive.digest, archive.size, self.threads, &cancel)?;
        Ok(Some(oldest.map_or(now, |oldest| oldest.min(now))))
    }
}

//! Finds the members that a cancelled restore leaves out.

use super::interruption::StoppedAt;
use super::restorer::Restorer;
use crate::browse::Selection;
use crate::error::Result;
use crate::member::MemberPath;

impl Restorer<'_, '_> {
    /// Records a member that a cancelled restore leaves out.
    pub(super) fn leave_out(&self, path: &MemberPath) {
        self.state.with_interruption(|interruption| interruption.left_out.add(path.as_bytes(), String::new()));
    }

    /// Records the selected members from the one at which the restore was cancelled to the end of the archive.
    pub(super) fn leave_out_rest(&mut self, selection: &Selection) -> Result<()> {
        let Some(StoppedAt { position, path }) = self.stopped_at.take() else { return Ok(()) };
        let mut next_page = Some(position.0);
        let mut is_in_catalog = false;
        while let Some(sequence) = next_page {
            let Some((members, next)) = self.archive.catalog_page(sequence)? else { break };
            is_in_catalog = true;
            for listed in members {
                let member_path = &listed.entry.member.path;
                if (listed.sequence, listed.offset) >= position && selection.selects(member_path) {
                    self.leave_out(member_path);
                }
            }
            next_page = next;
        }
        if !is_in_catalog {
            self.leave_out(&path);
            self.state.with_interruption(|interruption| interruption.may_be_more = true);
        }
        Ok(())
    }
}

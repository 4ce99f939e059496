//! Restores hard links.

use std::collections::HashMap;

use rustix::fs::Stat;

use super::existing::kind_words;
use super::options::{Action, Overwrite};
use super::restorer::Restorer;
use crate::archive::members::Entry;
use crate::browse::{HardLinks, Selection};
use crate::confined::{self, CreateError, NewEntry, OpenFolder};
use crate::error::{Error, ErrorKind, Result};
use crate::member::{Member, MemberKind, MemberPath};

/// Hard links that wait for the content of their first name; a hostile archive could fill the memory with more.
const MAX_DEFERRED_LINKS: usize = 1 << 20;
/// Bytes of the names of these links and of their first names.
const MAX_DEFERRED_LINK_BYTES: usize = 256 << 20;

/// Deferred links by their first name.
#[allow(clippy::vec_box, reason = "the reader makes the boxes and the restore takes them")]
type LinksByFirst = HashMap<MemberPath, Vec<Box<Entry>>>;

impl Restorer<'_, '_> {
    /// Creates a hard link to the file at `carrier`. If the restore did not complete that file, the link is deferred
    /// until the content of `first`, its name in the archive, is read again; without `first` it is refused.
    pub(super) fn restore_link(
        &mut self,
        carrier: &MemberPath,
        entry: Box<Entry>,
        first: Option<MemberPath>,
    ) -> Result<()> {
        self.batches.prepare_for(&entry.member)?;
        let path = entry.member.path.clone();
        if *carrier == path {
            self.refuse(path.as_bytes(), "it is a hard link to itself");
            return Ok(());
        }
        if !self.state.completed.contains(carrier) {
            match first {
                Some(first) => return self.defer_link(first, entry),
                None => self.refuse(path.as_bytes(), "the file that it is a further name of was not restored"),
            }
            return Ok(());
        }
        if let Err(error) = self.create_link(carrier, &entry.member) {
            self.record_create_error(&path, error);
        }
        Ok(())
    }

    fn create_link(&mut self, carrier: &MemberPath, member: &Member) -> std::result::Result<(), CreateError> {
        let (path, is_dry_run) = (&member.path, self.options.dry_run);
        let folder = self.tree.parent_of(path)?;
        let carrier_folder = match self.tree.existing_parent_of(carrier) {
            Err(_) if is_dry_run => None,
            found => Some(found?),
        };
        let carrier_stat = match &carrier_folder {
            Some(carrier_folder) => confined::stat_entry(&**carrier_folder, carrier.file_name())?,
            None => None,
        };
        let (Some(folder), Some(carrier_folder), true) =
            (folder, carrier_folder, carrier_stat.is_some() || !is_dry_run)
        else {
            // A dry run has not created the folder of the link, or the carrier.
            self.report_action(Action::Create, path);
            self.state.complete(path, |report| report.add_file(0));
            return Ok(());
        };
        let carrier_stat = carrier_stat.filter(|stat| confined::kind_of(stat) != Some(MemberKind::Folder));
        let Some(carrier_stat) = carrier_stat else {
            self.refuse(path.as_bytes(), &format!("it is a hard link to {carrier}, which is not a file"));
            return Ok(());
        };
        let action = self.decide_link(&folder, (carrier, &carrier_stat), path)?;
        match action {
            Action::Conflict => {}
            Action::Keep | Action::Correct => self.state.complete(path, |report| report.unchanged += 1),
            Action::Create | Action::Replace => {
                if !is_dry_run {
                    let link = NewEntry::hard_link(&folder.handle, &*carrier_folder, carrier.file_name())?;
                    link.rename_into_place(path.file_name(), action == Action::Replace)?;
                }
                self.state.complete(path, |report| report.add_file(0));
            }
        }
        Ok(())
    }

    /// Decides what happens at the path of a hard link, and reports it.
    fn decide_link(
        &mut self,
        folder: &OpenFolder,
        (carrier, stat_of_carrier): (&MemberPath, &Stat),
        path: &MemberPath,
    ) -> std::io::Result<Action> {
        // Asked first: this waits for an earlier member of this path that is still being written.
        let is_ours = self.state.completed.contains(path);
        let existing = confined::stat_entry(&*folder.handle, path.file_name())?;
        let action = match existing {
            None => Action::Create,
            Some(stat) if (stat.st_dev, stat.st_ino) == (stat_of_carrier.st_dev, stat_of_carrier.st_ino) => {
                Action::Keep
            }
            Some(stat) if confined::kind_of(&stat) == Some(MemberKind::Folder) => {
                return self.decide_over_folder(folder, path, MemberKind::HardLink, is_ours);
            }
            Some(stat) if !is_ours && self.options.overwrite == Overwrite::Never => {
                let what = confined::kind_of(&stat).map_or("a socket", kind_words);
                return Ok(
                    self.conflict(path, &format!("{what} exists there, and the archive has a hard link to {carrier}"))
                );
            }
            Some(_) => Action::Replace,
        };
        Ok(self.report_action(action, path))
    }

    /// Keeps a link until the archive was read to its end.
    pub(super) fn defer_link(&mut self, first: MemberPath, mut entry: Box<Entry>) -> Result<()> {
        // All but the path comes from the first name.
        entry.member.xattrs.clear();
        entry.member.link_target = None;
        self.deferred_link_bytes += first.as_bytes().len() + entry.member.path.as_bytes().len();
        if self.deferred_links.len() >= MAX_DEFERRED_LINKS || self.deferred_link_bytes > MAX_DEFERRED_LINK_BYTES {
            return Err(Error::failed(format!(
                "more than {MAX_DEFERRED_LINKS} hard links refer to members that are not restored"
            ))
            .hint("restore without PATH, --include and --exclude"));
        }
        self.deferred_links.push((first, entry));
        Ok(())
    }

    /// Restores the links whose first name was not selected or could not be restored at its path. Reads the archive
    /// again: the first link to each file gets its content, the others become links to that.
    pub(super) fn restore_deferred_links(&mut self) -> Result<()> {
        let mut links_by_first = LinksByFirst::new();
        for (first, link) in std::mem::take(&mut self.deferred_links) {
            links_by_first.entry(first).or_default().push(link);
        }
        if links_by_first.is_empty() {
            return Ok(());
        }
        let mut chained = self.restore_links_to(&mut links_by_first)?;
        chained.retain(|first| links_by_first.contains_key(first));
        if !chained.is_empty() && self.skip_to_ends_of_chains(&chained, &mut links_by_first)? {
            self.restore_links_to(&mut links_by_first)?;
        }
        for (first, links) in links_by_first {
            for link in links {
                let reason = format!("it is a hard link to {first}, of which the archive has no content");
                self.refuse(link.member.path.as_bytes(), &reason);
            }
        }
        Ok(())
    }

    /// Replaces first names that are hard links themselves, as another program may write them, by those of the files
    /// to which they lead. Links that lead to no file keep theirs. Returns whether any name was replaced.
    fn skip_to_ends_of_chains(&mut self, chained: &[MemberPath], links_by_first: &mut LinksByFirst) -> Result<bool> {
        let read = HardLinks::read(self.archive, self.context.cancel);
        if read.is_err() && self.context.cancel.is_cancelled() {
            links_by_first.values().flatten().for_each(|link| self.leave_out(&link.member.path));
        }
        let hard_links = read?;
        let mut is_replaced = false;
        for first in chained {
            if let Some(end) = hard_links.end_of_chain(first)
                && let Some(links) = links_by_first.remove(first)
            {
                links_by_first.entry(end).or_default().extend(links);
                is_replaced = true;
            }
        }
        Ok(is_replaced)
    }

    /// Reads the archive once for the first names of these links, and restores those that are found. Returns the first
    /// names that are hard links themselves.
    fn restore_links_to(&mut self, links_by_first: &mut LinksByFirst) -> Result<Vec<MemberPath>> {
        let mut chained = Vec::new();
        let selection = Selection::exactly(links_by_first.keys().cloned().collect())?;
        self.is_reading_again = true;
        let read = self.read_members(&selection, |restorer, members, mut entry| {
            if entry.member.kind == MemberKind::HardLink {
                chained.push(entry.member.path);
                return Ok(());
            }
            let Some(links) = links_by_first.remove(&entry.member.path) else { return Ok(()) };
            let mut links = links.into_iter();
            let Some(carrier) = links.next() else { return Ok(()) };
            entry.member.path = carrier.member.path;
            let carrier = entry.member.path.clone();
            restorer.restore_at_path(members, entry)?;
            if restorer.stopped_at.is_some() {
                restorer.leave_out(&carrier);
                links.for_each(|link| restorer.leave_out(&link.member.path));
                return Ok(());
            }
            links.try_for_each(|link| restorer.restore_link(&carrier, link, None))
        });
        if read.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
            links_by_first.values().flatten().for_each(|link| self.leave_out(&link.member.path));
        }
        read?;
        Ok(chained)
    }
}

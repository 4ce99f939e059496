//! Decides what happens to each member where something exists at its path.

use std::io::{self, Read};
use std::sync::Arc;

use rustix::fs::Stat;

use super::options::{Action, Overwrite};
use super::restorer::Restorer;
use crate::confined::{self, CreateError, MetadataLoss, OpenFolder};
use crate::member::{Member, MemberKind, MemberPath};

impl Restorer<'_, '_> {
    /// Decides what happens at the path of a member in its parent folder, and reports it.
    /// `content` is the digest to compare with; `None` if the content is not compared.
    fn decide(
        &mut self,
        parent: Option<&OpenFolder>,
        member: &Member,
        content: Option<[u8; 32]>,
    ) -> io::Result<Action> {
        let path = &member.path;
        let Some(parent) = parent else { return Ok(self.report_action(Action::Create, path)) };
        // Asked first: this waits for an earlier member of this path that is still being written.
        let is_ours = self.state.completed.contains(path);
        let Some(stat) = confined::stat_entry(&*parent.handle, path.file_name())? else {
            return Ok(self.report_action(Action::Create, path));
        };
        // Of a path that the archive has several times, the last member counts.
        let overwrite = if is_ours { Overwrite::Always } else { self.options.overwrite };
        let is_folder = member.kind == MemberKind::Folder;
        // What an interrupted restore left is finished, whatever is requested.
        let is_unfinished = is_folder && confined::is_unfinished(&stat, member.mode);
        let is_equal = is_as_archived(parent, &stat, member)? && has_content(parent, member, content)?;
        let differences = if is_equal && !is_ours && !is_unfinished {
            confined::metadata_differences(&*parent.handle, path.file_name(), &stat, member, self.privileges)?
        } else {
            Vec::new()
        };
        let action = match (is_equal, overwrite) {
            (true, Overwrite::Never) if !differences.is_empty() => {
                return Ok(self.conflict(path, &format!("it differs in {}", differences.join(", "))));
            }
            (true, Overwrite::Always) if !is_folder => Action::Replace,
            (true, _) if !differences.is_empty() && !is_safe_to_correct(&stat, member, content.is_some()) => {
                Action::Replace
            }
            (true, _) if !differences.is_empty() => Action::Correct,
            (true, _) => Action::Keep,
            _ if confined::kind_of(&stat) == Some(MemberKind::Folder) => {
                return self.decide_over_folder(parent, path, is_ours);
            }
            (false, Overwrite::Never) => return Ok(self.conflict(path, "something else stands there")),
            _ => Action::Replace,
        };
        Ok(self.report_action(action, path))
    }

    /// Decides what happens at the path of a member where a folder exists: an empty one may be replaced.
    pub(super) fn decide_over_folder(
        &mut self,
        parent: &OpenFolder,
        path: &MemberPath,
        is_ours: bool,
    ) -> io::Result<Action> {
        if is_ours {
            return Ok(self.conflict(path, "it is a folder in the archive, too"));
        }
        if !confined::is_empty_folder(&*parent.handle, path.file_name())? {
            return Ok(self.conflict(path, "a folder that is not empty exists there"));
        }
        if self.options.overwrite == Overwrite::Never {
            return Ok(self.conflict(path, "an empty folder exists there"));
        }
        Ok(self.report_action(Action::Replace, path))
    }

    /// Opens the parent folder of a member, and decides what happens to the member.
    pub(super) fn decide_in_parent(
        &mut self,
        member: &Member,
        content: Option<[u8; 32]>,
    ) -> std::result::Result<(Option<Arc<OpenFolder>>, Action), CreateError> {
        let parent = self.tree.parent_of(&member.path)?;
        let action = self.decide(parent.as_deref(), member, content)?;
        Ok((parent, action))
    }

    /// Keeps the existing entry of a member, and corrects its metadata if that was decided.
    pub(super) fn keep(&mut self, parent: Option<&OpenFolder>, action: Action, member: &Member) -> io::Result<()> {
        let (path, name) = (&member.path, member.path.file_name());
        if action == Action::Keep {
            self.state.complete(path, |report| report.unchanged += 1);
            return Ok(());
        }
        let mut loss = MetadataLoss::default();
        if let Some(parent) = parent.filter(|_| !self.options.dry_run) {
            let gone = || io::Error::from(io::ErrorKind::NotFound);
            let stat = confined::stat_entry(&*parent.handle, name)?.ok_or_else(gone)?;
            loss = confined::correct_metadata(&*parent.handle, name, &stat, member, self.privileges)?;
        }
        self.state.complete(path, |report| {
            report.corrected += 1;
            report.record_loss(path, loss);
        });
        Ok(())
    }
}

/// Returns whether the metadata of an existing entry may be changed in place. A file with a further name, perhaps
/// outside the target, is replaced instead (I11); so is one that would get rights to run as its owner although its
/// content was not compared.
fn is_safe_to_correct(stat: &Stat, member: &Member, is_content_compared: bool) -> bool {
    let grants_rights = member.mode & 0o6000 != 0 || member.xattrs.get(b"security.capability").is_some();
    member.kind != MemberKind::File || stat.st_nlink == 1 && (is_content_compared || !grants_rights)
}

/// Returns whether the existing file has this content; true if `content` is `None`.
fn has_content(parent: &OpenFolder, member: &Member, content: Option<[u8; 32]>) -> io::Result<bool> {
    let Some(content) = content else { return Ok(true) };
    let file = confined::open_file(&*parent.handle, member.path.file_name())?;
    let mut hasher = blake3::Hasher::new();
    // A file that grows has no end.
    hasher.update_reader(file.take(member.size.saturating_add(1)))?;
    Ok(*hasher.finalize().as_bytes() == content)
}

/// Returns whether the existing entry is what the archive has: for a file by size and time, for a link by its target,
/// for a device by its number.
fn is_as_archived(parent: &OpenFolder, stat: &Stat, member: &Member) -> io::Result<bool> {
    if confined::kind_of(stat) != Some(member.kind) {
        return Ok(false);
    }
    Ok(match member.kind {
        MemberKind::File => {
            stat.st_size.cast_unsigned() == member.size && confined::modified_of(stat) == member.modified
        }
        MemberKind::Symlink => {
            confined::link_target(&*parent.handle, member.path.file_name())?[..]
                == *member.link_target.as_deref().unwrap_or_default()
        }
        MemberKind::Folder => true,
        _ => confined::device_of(stat) == member.device_number.unwrap_or((0, 0)),
    })
}

//! Decides what happens to each member where something exists at its path.

use std::io::{self, Read};
use std::sync::Arc;

use rustix::fs::Stat;

use super::options::{Action, Overwrite};
use super::restorer::Restorer;
use super::write_file::READ_BYTES;
use crate::confined::{self, CreateError, MetadataDifferences, MetadataLoss, OpenFolder};
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
        if is_as_archived(parent, &stat, member)? && self.has_content(parent, member, content)? {
            // What an interrupted restore left is finished, whatever is requested.
            let is_unfinished = member.kind == MemberKind::Folder && confined::is_unfinished(&stat, member.mode);
            let differences = if is_ours || is_unfinished {
                MetadataDifferences::default()
            } else {
                confined::metadata_differences(&*parent.handle, path.file_name(), &stat, member, self.privileges)?
            };
            let may_correct = self.is_safe_to_correct(&stat, member, content.is_some());
            return Ok(self.decide_over_equal(member, overwrite, &differences, may_correct));
        }
        if confined::kind_of(&stat) == Some(MemberKind::Folder) {
            return self.decide_over_folder(parent, path, member.kind, is_ours);
        }
        if overwrite == Overwrite::Never {
            let reason = describe_difference(parent, &stat, member)?;
            return Ok(self.conflict(path, &reason));
        }
        Ok(self.report_action(Action::Replace, path))
    }

    /// Decides what happens to an existing entry that is as the archive has it, apart from these differences.
    fn decide_over_equal(
        &mut self,
        member: &Member,
        overwrite: Overwrite,
        differences: &MetadataDifferences,
        may_correct: bool,
    ) -> Action {
        let path = &member.path;
        let action = match (overwrite, differences.correctable.is_empty()) {
            (Overwrite::Never, false) => {
                return self.conflict(path, &format!("it has {}", differences.correctable.join(", ")));
            }
            (Overwrite::Always, _) if member.kind != MemberKind::Folder => Action::Replace,
            (_, false) if may_correct => Action::Correct,
            (_, false) => Action::Replace,
            (_, true) => {
                self.state.with_report(|report| report.record_kept_loss(path, differences.loss));
                Action::Keep
            }
        };
        self.report_action(action, path)
    }

    /// Decides what happens at the path of a member where a folder exists: an empty one may be replaced.
    pub(super) fn decide_over_folder(
        &mut self,
        parent: &OpenFolder,
        path: &MemberPath,
        kind: MemberKind,
        is_ours: bool,
    ) -> io::Result<Action> {
        if is_ours {
            return Ok(self.conflict(path, "the archive has a folder of this name, too, and that was restored"));
        }
        if !confined::is_empty_folder(&*parent.handle, path.file_name())? {
            let reason = format!("a folder that is not empty exists there, and the archive has {}", kind_words(kind));
            return Ok(self.conflict(path, &reason));
        }
        if self.options.overwrite == Overwrite::Never {
            let reason = format!("an empty folder exists there, and the archive has {}", kind_words(kind));
            return Ok(self.conflict(path, &reason));
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
            self.kept_bytes += member.size;
            self.state.complete(path, |report| report.unchanged += 1);
            return Ok(());
        }
        let mut loss = MetadataLoss::default();
        if let Some(parent) = parent.filter(|_| !self.options.dry_run) {
            let gone = || io::Error::from(io::ErrorKind::NotFound);
            let stat = confined::stat_entry(&*parent.handle, name)?.ok_or_else(gone)?;
            loss = confined::correct_metadata(&*parent.handle, name, &stat, member, self.privileges)?;
        }
        self.kept_bytes += member.size;
        self.state.complete(path, |report| {
            report.corrected += 1;
            report.record_loss(path, loss);
        });
        Ok(())
    }

    /// Returns whether the metadata of an existing entry may be changed in place. A file with a further name, perhaps
    /// outside the target, is replaced instead (I11); so is one of another user, and one that would get rights to run
    /// as its owner although its content was not compared.
    fn is_safe_to_correct(&self, stat: &Stat, member: &Member, is_content_compared: bool) -> bool {
        let grants_rights = member.mode & 0o6000 != 0 || member.xattrs.get(b"security.capability").is_some();
        let is_own = self.privileges.is_root || stat.st_uid == self.privileges.uid;
        let is_single = stat.st_nlink == 1 && (is_content_compared || !grants_rights);
        member.kind == MemberKind::Folder || is_own && (member.kind != MemberKind::File || is_single)
    }

    /// Returns whether the existing file has this content; true if `content` is `None`.
    ///
    /// Errors: those of the system, and one if the restore is cancelled meanwhile.
    fn has_content(&mut self, parent: &OpenFolder, member: &Member, content: Option<[u8; 32]>) -> io::Result<bool> {
        let Some(content) = content else { return Ok(true) };
        let file = confined::open_file(&*parent.handle, member.path.file_name())?;
        // A file that grows has no end.
        let size = member.size.saturating_add(1);
        let mut file = file.take(size);
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; size.min(READ_BYTES as u64) as usize];
        loop {
            if self.context.cancel.is_cancelled() {
                return Err(io::Error::other("the restore was cancelled"));
            }
            let count = match file.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
            hasher.update(&buffer[..count]);
            self.current_bytes += count as u64;
            self.report_progress();
        }
        self.current_bytes = 0;
        Ok(*hasher.finalize().as_bytes() == content)
    }
}

/// Returns how an existing entry, which is not a folder, differs from what the archive has at its path.
fn describe_difference(parent: &OpenFolder, stat: &Stat, member: &Member) -> io::Result<String> {
    let existing = confined::kind_of(stat);
    if existing != Some(member.kind) {
        let (is, archived) = (existing.map_or("a socket", kind_words), kind_words(member.kind));
        return Ok(format!("{is} exists there, and the archive has {archived}"));
    }
    Ok(match member.kind {
        MemberKind::File if stat.st_size.cast_unsigned() != member.size => {
            format!("a file of {} bytes exists there, and the archive has one of {}", stat.st_size, member.size)
        }
        MemberKind::File if confined::modified_of(stat) != member.modified => {
            "a file of the same size exists there, with another modification time".to_owned()
        }
        MemberKind::File => "a file of the same size and time exists there, with other content".to_owned(),
        MemberKind::Symlink => {
            let target = confined::link_target(&*parent.handle, member.path.file_name())?;
            let archived = member.link_target.as_deref().unwrap_or_default();
            let (is, archived) = (target.escape_ascii(), archived.escape_ascii());
            format!("a symbolic link to {is} exists there, and the archive has one to {archived}")
        }
        kind => format!("{} exists there, with another number", kind_words(kind)),
    })
}

/// Returns the kind of a file in words, with an article.
pub(super) fn kind_words(kind: MemberKind) -> &'static str {
    match kind {
        MemberKind::File | MemberKind::HardLink => "a file",
        MemberKind::Folder => "a folder",
        MemberKind::Symlink => "a symbolic link",
        MemberKind::Fifo => "a named pipe",
        MemberKind::CharDevice => "a character device",
        MemberKind::BlockDevice => "a block device",
    }
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

//! Decides what happens to each member and creates it.

use std::io;
use std::sync::Arc;

use rustix::fs::Stat;

use super::interruption::StoppedAt;
use super::options::{Action, Overwrite};
use super::restorer::Restorer;
use super::target_paths::target_path;
use super::write_file::{FileJob, WriteError};
use crate::archive::members::{Entry, Members};
use crate::confined::{self, CreateError, NewEntry, OpenFolder};
use crate::error::{Error, Result};
use crate::member::{Member, MemberKind, MemberPath};

/// Files up to this many stored bytes are read into memory and written by other threads.
const MAX_SMALL_FILE_BYTES: u64 = 1 << 20;
/// Bytes of a larger file that are read at a time.
const READ_BYTES: usize = 1 << 18;

impl Restorer<'_, '_> {
    /// Restores a selected member.
    pub(super) fn restore_member(&mut self, members: &mut Members, mut entry: Box<Entry>) -> Result<()> {
        let Some(path) = target_path(self.options, &entry.member.path)? else {
            let counted = u64::from(entry.member.kind != MemberKind::Folder);
            self.state.with_report(|report| report.stripped += counted);
            return Ok(());
        };
        if entry.was_absolute {
            self.state.with_report(|report| report.absolute += 1);
        }
        let member = std::mem::replace(&mut entry.member.path, path);
        if !self.target_paths.claim(self.options, &entry.member.path, &member, entry.member.kind) {
            self.conflict(&entry.member.path, &format!("it would be {member}, and another member has this path"));
            return Ok(());
        }
        self.state.with_report(|report| report.bad_times += u64::from(entry.has_bad_time));
        if entry.member.kind != MemberKind::HardLink {
            return self.restore_at_path(members, entry);
        }
        let first = MemberPath::parse(entry.member.link_target.as_deref().unwrap_or_default())?;
        match target_path(self.options, &first)? {
            Some(carrier) => self.restore_link(&carrier, entry, Some(first)),
            None => self.defer_link(first, entry),
        }
    }

    /// Restores a member that is not a hard link. Its path is relative to the target.
    pub(super) fn restore_at_path(&mut self, members: &mut Members, entry: Box<Entry>) -> Result<()> {
        let path = entry.member.path.clone();
        let result = match entry.member.kind {
            MemberKind::Folder => self.restore_folder(&entry.member).inspect_err(|error| {
                if matches!(error, CreateError::Io(_)) {
                    self.state.completed.add_failed_folder(&path);
                }
            }),
            MemberKind::File => return self.restore_file(members, entry),
            MemberKind::CharDevice | MemberKind::BlockDevice if !(self.options.devices && self.privileges.is_root) => {
                let reason = "a device: made only by root with --devices";
                self.report_problem(path.as_bytes(), reason);
                self.state.with_report(|report| report.devices.add(path.as_bytes(), reason.to_owned()));
                Ok(())
            }
            _ => self.restore_special(&entry.member),
        };
        if let Err(error) = result {
            self.record_create_error(&path, error);
        }
        Ok(())
    }

    pub(super) fn record_create_error(&mut self, path: &MemberPath, error: CreateError) {
        match error {
            CreateError::Io(error) => {
                self.report_problem(path.as_bytes(), &error.to_string());
                self.state.record_failure(path, &error);
            }
            CreateError::NotAFolder(parent) if self.state.completed.contains(&parent) => {
                self.refuse(path.as_bytes(), &format!("it lies beneath {parent}, which the archive made no folder"));
            }
            CreateError::NotAFolder(parent) => {
                self.conflict(path, &format!("{parent} is no folder, and links are not followed"));
            }
        }
    }

    pub(super) fn conflict(&mut self, path: &MemberPath, reason: &str) -> Action {
        let action = self.report_action(Action::Conflict, path);
        self.state.with_report(|report| report.conflicts.add(path.as_bytes(), reason.to_owned()));
        action
    }

    /// Decides what happens at the path of a member in its parent folder, and reports it.
    fn decide(&mut self, parent: Option<&OpenFolder>, member: &Member) -> io::Result<Action> {
        let path = &member.path;
        let Some(parent) = parent else { return Ok(self.report_action(Action::Create, path)) };
        // Asked first: this waits for an earlier member of this path that is still being written.
        let is_ours = self.state.completed.contains(path);
        let Some(stat) = confined::stat_entry(&*parent.handle, path.file_name())? else {
            return Ok(self.report_action(Action::Create, path));
        };
        // Of a path that the archive has several times, the last member counts.
        let overwrite = if is_ours { Overwrite::Always } else { self.options.overwrite };
        let action = match (is_as_archived(parent, &stat, member)?, overwrite) {
            (true, Overwrite::Never | Overwrite::IfChanged) => Action::Keep,
            (true, Overwrite::Always) if member.kind == MemberKind::Folder => Action::Keep,
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
    fn decide_in_parent(
        &mut self,
        member: &Member,
    ) -> std::result::Result<(Option<Arc<OpenFolder>>, Action), CreateError> {
        let parent = self.tree.parent_of(&member.path)?;
        let action = self.decide(parent.as_deref(), member)?;
        Ok((parent, action))
    }

    fn restore_folder(&mut self, member: &Member) -> std::result::Result<(), CreateError> {
        let path = &member.path;
        let (parent, action) = self.decide_in_parent(member)?;
        let (exists, applies_metadata, is_ours) = match (action, &parent) {
            (Action::Conflict, _) => return Ok(()),
            (Action::Create, _) | (_, None) => (false, true, true),
            (Action::Replace, Some(parent)) => {
                if !self.options.dry_run {
                    confined::remove(&*parent.handle, path.file_name(), false)?;
                }
                (false, true, true)
            }
            (Action::Keep, Some(parent)) => {
                let is_unfinished = confined::stat_entry(&*parent.handle, path.file_name())?
                    .is_some_and(|stat| confined::is_unfinished(&stat, member.mode));
                let is_ours = is_unfinished || self.state.completed.contains(path);
                (true, is_ours || self.options.overwrite != Overwrite::Never, is_ours)
            }
        };
        drop(parent);
        self.tree.create_folder(member, exists, applies_metadata)?;
        self.state.complete(path, |report| {
            let count = if is_ours { &mut report.extent.members } else { &mut report.unchanged };
            *count += 1;
        });
        Ok(())
    }

    fn restore_special(&mut self, member: &Member) -> std::result::Result<(), CreateError> {
        let path = &member.path;
        let (parent, action) = self.decide_in_parent(member)?;
        match action {
            Action::Conflict => return Ok(()),
            Action::Keep => {
                self.state.complete(path, |report| report.unchanged += 1);
                return Ok(());
            }
            Action::Create | Action::Replace => {}
        }
        let Some(parent) = parent.filter(|_| !self.options.dry_run) else {
            self.state.complete(path, |report| report.extent.members += 1);
            return Ok(());
        };
        let (entry, loss) = NewEntry::special(&parent.handle, member, self.privileges)?;
        entry.rename_into_place(path.file_name(), action == Action::Replace)?;
        self.state.complete(path, |report| {
            report.extent.members += 1;
            report.record_loss(path, loss);
        });
        Ok(())
    }

    fn restore_file(&mut self, members: &mut Members, entry: Box<Entry>) -> Result<()> {
        let path = entry.member.path.clone();
        let (parent, action) = match self.decide_in_parent(&entry.member) {
            Ok(decided) => decided,
            Err(error) => {
                self.record_create_error(&path, error);
                return Ok(());
            }
        };
        match action {
            Action::Conflict => return Ok(()),
            Action::Keep => {
                self.state.complete(&path, |report| report.unchanged += 1);
                return Ok(());
            }
            Action::Create | Action::Replace => {}
        }
        let Some(folder) = parent.filter(|_| !self.options.dry_run) else {
            self.state.complete(&path, |report| report.add_file(entry.member.size));
            return Ok(());
        };
        let digest = self.digests.find(self.archive, entry.sequence, entry.offset)?;
        let job = FileJob { folder, entry, digest, replace: action == Action::Replace };
        self.state.completed.begin(&path);
        if job.entry.stored <= MAX_SMALL_FILE_BYTES {
            self.send_small_file(members, job)
        } else {
            self.write_large_file(members, &job);
            Ok(())
        }
    }

    /// Reads a small file and sends it to the threads that write.
    fn send_small_file(&mut self, members: &mut Members, job: FileJob) -> Result<()> {
        let mut data = vec![0; job.entry.stored as usize];
        let mut filled = 0;
        while filled < data.len() {
            match members.read(&mut data[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(reason) => {
                    self.report_damage(&job, &reason);
                    job.record(self.state, Err(WriteError::Damaged(reason)));
                    return Ok(());
                }
            }
        }
        data.truncate(filled);
        self.small_files.send((job, data)).map_err(|_| Error::failed("the threads that write files have ended"))
    }

    /// Writes a large file while it is read.
    fn write_large_file(&mut self, members: &mut Members, job: &FileJob) {
        let cancel = self.context.cancel;
        let mut is_cancelled = false;
        let result = job.write(self.privileges, &mut |buffer| {
            if cancel.is_cancelled() {
                is_cancelled = true;
                return Err("the restore was cancelled".to_owned());
            }
            buffer.resize(READ_BYTES, 0);
            let count = members.read(buffer)?;
            buffer.truncate(count);
            Ok(count > 0)
        });
        if is_cancelled {
            let entry = &job.entry;
            let position = (entry.sequence, entry.offset);
            self.stopped_at = Some(StoppedAt { position, path: entry.member.path.clone() });
            self.state.abort(&entry.member.path, |_| {});
            return;
        }
        if let Err(WriteError::Damaged(reason)) = &result {
            self.report_damage(job, reason);
        }
        job.record(self.state, result);
    }

    fn report_damage(&self, job: &FileJob, reason: &str) {
        self.report_problem(job.entry.member.path.as_bytes(), &format!("damaged: {reason}"));
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

//! Decides what happens to each member and creates it.

use super::batches::BatchQueue;
use super::create_target;
use super::interruption::StoppedAt;
use super::options::{Action, Overwrite};
use super::restorer::Restorer;
use super::target_paths::target_path;
use super::write_file::{FileJob, READ_BYTES, WriteError};
use crate::archive::members::{Entry, Members};
use crate::confined::{self, CreateError, FolderMetadata, NewEntry};
use crate::error::Result;
use crate::member::{Member, MemberKind, MemberPath};

impl Restorer<'_, '_> {
    /// Restores a selected member.
    pub(super) fn restore_member(&mut self, members: &mut Members, mut entry: Box<Entry>) -> Result<()> {
        let Some(path) = target_path(self.options, &entry.member.path)? else {
            let counted = u64::from(entry.member.kind != MemberKind::Folder);
            self.state.with_report(|report| report.stripped += counted);
            return Ok(());
        };
        self.ensure_target()?;
        if entry.was_absolute {
            self.state.with_report(|report| report.absolute += 1);
        }
        let member = std::mem::replace(&mut entry.member.path, path);
        if let Err(reason) = self.target_paths.claim(&entry.member.path, &member, entry.member.kind) {
            self.conflict(&entry.member.path, &reason);
            return Ok(());
        }
        if entry.has_bad_time {
            self.state.with_report(|report| report.bad_times += 1);
        }
        if entry.member.kind != MemberKind::HardLink {
            return self.restore_at_path(members, entry);
        }
        let first = MemberPath::parse(entry.member.link_target.as_deref().unwrap_or_default())?;
        // A first name that another member has under the target leads to other content.
        let carrier = target_path(self.options, &first)?.filter(|path| self.target_paths.is_of(path, &first));
        match carrier {
            Some(carrier) => self.restore_link(&carrier, entry, Some(first)),
            None => self.defer_link(first, entry),
        }
    }

    /// Creates the target if it does not exist: with the first member, so that nothing is created if nothing matches.
    fn ensure_target(&mut self) -> Result<()> {
        if !self.options.dry_run && !self.tree.has_confined() {
            self.tree.set_confined(create_target(self.options)?);
        }
        Ok(())
    }

    /// Restores a member that is not a hard link. Its path is relative to the target.
    pub(super) fn restore_at_path(&mut self, members: &mut Members, entry: Box<Entry>) -> Result<()> {
        self.batches.prepare_for(&entry.member)?;
        let path = entry.member.path.clone();
        let result = match entry.member.kind {
            MemberKind::Folder => self.restore_folder(&entry.member).inspect_err(|error| {
                if matches!(error, CreateError::Io(_)) {
                    self.state.completed.add_failed_folder(&path);
                }
            }),
            MemberKind::File => return self.restore_file(members, entry),
            MemberKind::CharDevice | MemberKind::BlockDevice if !(self.options.devices && self.privileges.is_root) => {
                let reason = "it is a device, which only root creates, with --devices";
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
                self.refuse(path.as_bytes(), &format!("it lies below {parent}, which is not a folder in this archive"));
            }
            CreateError::NotAFolder(parent) => {
                self.conflict(path, &format!("{parent} is a file or a link there, and links are not followed"));
            }
        }
    }

    pub(super) fn conflict(&mut self, path: &MemberPath, reason: &str) -> Action {
        let action = self.report_action(Action::Conflict, path);
        self.state.with_report(|report| report.conflicts.add(path.as_bytes(), reason.to_owned()));
        action
    }

    fn restore_folder(&mut self, member: &Member) -> std::result::Result<(), CreateError> {
        let path = &member.path;
        let (parent, action) = self.decide_in_parent(member, None)?;
        let (exists, metadata, is_ours) = match (action, &parent) {
            (Action::Conflict, None) => return Ok(()),
            (Action::Conflict, Some(parent)) => {
                // A folder that differs in its metadata only is still the place of what lies below it.
                let existing = confined::stat_entry(&*parent.handle, path.file_name())?;
                return match existing.and_then(|stat| confined::kind_of(&stat)) {
                    Some(MemberKind::Folder) => self.tree.create_folder(member, true, FolderMetadata::Unchanged),
                    _ => Ok(()),
                };
            }
            (Action::Correct, Some(_)) => (true, FolderMetadata::All, false),
            (Action::Create, _) | (_, None) => (false, FolderMetadata::All, true),
            (Action::Replace, Some(parent)) => {
                if !self.options.dry_run {
                    confined::remove(&*parent.handle, path.file_name(), false)?;
                }
                (false, FolderMetadata::All, true)
            }
            (Action::Keep, Some(parent)) => {
                let is_unfinished = confined::stat_entry(&*parent.handle, path.file_name())?
                    .is_some_and(|stat| confined::is_unfinished(&stat, member.mode));
                let is_ours = is_unfinished || self.state.completed.contains(path);
                let metadata = match self.options.overwrite {
                    _ if is_ours => FolderMetadata::All,
                    Overwrite::Never => FolderMetadata::Unchanged,
                    Overwrite::IfChanged | Overwrite::Always => FolderMetadata::Time,
                };
                (true, metadata, is_ours)
            }
        };
        drop(parent);
        self.tree.create_folder(member, exists, metadata)?;
        self.state.complete(path, |report| {
            let count = match action {
                Action::Correct => &mut report.corrected,
                _ if is_ours => &mut report.extent.members,
                _ => &mut report.unchanged,
            };
            *count += 1;
        });
        Ok(())
    }

    fn restore_special(&mut self, member: &Member) -> std::result::Result<(), CreateError> {
        let path = &member.path;
        let (parent, action) = self.decide_in_parent(member, None)?;
        match action {
            Action::Conflict => return Ok(()),
            Action::Keep | Action::Correct => return Ok(self.keep(parent.as_deref(), action, member)?),
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
        let mut content = None;
        if self.options.compare_content {
            // A file without a digest counts as different, unless it is empty.
            content = Some(self.digests.find(self.archive, entry.sequence, entry.offset)?.unwrap_or_default());
        }
        let content = content.filter(|_| entry.member.size > 0);
        let (parent, action) = match self.decide_in_parent(&entry.member, content) {
            Ok(decided) => decided,
            Err(_) if self.context.cancel.is_cancelled() => {
                self.stop_at(&entry);
                return Ok(());
            }
            Err(error) => {
                self.record_create_error(&path, error);
                return Ok(());
            }
        };
        match action {
            Action::Conflict => return Ok(()),
            Action::Keep | Action::Correct => {
                if let Err(error) = self.keep(parent.as_deref(), action, &entry.member) {
                    self.record_create_error(&path, error.into());
                }
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
        if BatchQueue::is_small(job.entry.stored) {
            return self.read_small_file(members, job);
        }
        self.batches.hand_over()?;
        self.write_large_file(members, &job);
        Ok(())
    }

    /// Reads a small file and adds it to the batch for the threads that write.
    fn read_small_file(&mut self, members: &mut Members, job: FileJob) -> Result<()> {
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
        self.batches.push(job, data)
    }

    /// Writes a large file while it is read.
    fn write_large_file(&mut self, members: &mut Members, job: &FileJob) {
        let mut is_cancelled = false;
        let result = job.write(self.privileges, &mut |buffer| {
            if self.context.cancel.is_cancelled() {
                is_cancelled = true;
                return Err("the restore was cancelled".to_owned());
            }
            buffer.resize(READ_BYTES, 0);
            let count = members.read(buffer)?;
            buffer.truncate(count);
            self.current_bytes += count as u64;
            self.report_progress();
            Ok(count > 0)
        });
        self.current_bytes = 0;
        if is_cancelled {
            self.stop_at(&job.entry);
            self.state.abort(&job.entry.member.path, |_| {});
            return;
        }
        if let Err(WriteError::Damaged(reason)) = &result {
            self.report_damage(job, reason);
        }
        job.record(self.state, result);
    }

    /// Records that the restore was cancelled at this member, which is not restored.
    fn stop_at(&mut self, entry: &Entry) {
        let position = (entry.sequence, entry.offset);
        self.stopped_at = Some(StoppedAt { position, path: entry.member.path.clone() });
    }

    fn report_damage(&self, job: &FileJob, reason: &str) {
        self.report_problem(job.entry.member.path.as_bytes(), &format!("damaged: {reason}"));
    }
}

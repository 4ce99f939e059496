//! What happens to each member: where it goes, what stands there, and how it is made.

use std::io;
use std::sync::Arc;

use super::{
    Action, Entry, FileJob, Folder, MOST_HANDED_OVER, MOST_LINKS_BYTES, MOST_LINKS_WAITING, Member, MemberKind,
    MemberPath, Members, NewEntry, Obstacle, Overwrite, PIECE_BYTES, Restorer, Unwritten, confined, tell,
};
use crate::error::{Error, Result};

/// What stands at a member's place and what becomes of it.
enum Place {
    Free,
    /// It makes way.
    Taken,
    /// It is what the archive has.
    Same,
    /// It stays, for this reason.
    Other(&'static str),
}

impl Restorer<'_, '_> {
    /// Restores one member that is meant.
    pub(super) fn member(&mut self, members: &mut Members, mut entry: Box<Entry>) -> Result<()> {
        let Some(out) = self.out_path(&entry.member.path)? else {
            let counts = u64::from(entry.member.kind != MemberKind::Folder);
            self.shared.report(|report| report.stripped += counts);
            return Ok(());
        };
        if entry.was_absolute {
            self.shared.report(|report| report.absolute += 1);
        }
        if entry.member.kind == MemberKind::HardLink {
            let target = entry.member.link_target.as_deref().unwrap_or_default();
            let first = MemberPath::parse(target)?;
            let first_out = self.out_path(&first)?;
            entry.member.path = out;
            return match first_out {
                Some(carrier) => self.link(&carrier, entry, Some(first)),
                None => self.wait_for(first, entry),
            };
        }
        entry.member.path = out;
        self.put(members, entry)
    }

    /// Returns where a member goes beneath the target; nothing for one that is stripped away.
    fn out_path(&self, path: &MemberPath) -> Result<Option<MemberPath>> {
        let options = self.options;
        if options.strip == 0 && options.rename_root.is_none() {
            return Ok(Some(path.clone()));
        }
        let mut parts: Vec<&[u8]> = path.as_bytes().split(|&b| b == b'/').collect();
        if let Some(root) = &options.rename_root {
            parts[0] = root;
        }
        match parts.get(options.strip..) {
            None | Some([]) => Ok(None),
            Some(rest) => MemberPath::parse(&rest.join(&b'/')).map(Some),
        }
    }

    /// Restores a member that is no hard link at the path it has by now.
    pub(super) fn put(&mut self, members: &mut Members, entry: Box<Entry>) -> Result<()> {
        let path = entry.member.path.clone();
        let result = match entry.member.kind {
            MemberKind::Folder => self.put_folder(&entry.member).inspect_err(|obstacle| {
                if matches!(obstacle, Obstacle::Io(_)) {
                    self.shared.owe(&path);
                }
            }),
            MemberKind::File => return self.put_file(members, entry),
            MemberKind::CharDevice | MemberKind::BlockDevice if !(self.options.devices && self.privileges.is_root) => {
                let reason = "a device: made only by root with --devices";
                tell(self.context.observer, path.as_bytes(), reason);
                self.shared.report(|report| report.devices.add(path.as_bytes(), reason.to_owned()));
                Ok(())
            }
            _ => self.put_special(&entry.member),
        };
        self.settle(&path, result);
        Ok(())
    }

    fn settle(&mut self, path: &MemberPath, result: std::result::Result<(), Obstacle>) {
        match result {
            Ok(()) => {}
            Err(Obstacle::Io(error)) => {
                tell(self.context.observer, path.as_bytes(), &error.to_string());
                self.shared.failed(path, &error);
            }
            Err(Obstacle::InTheWay(way)) if self.shared.is_placed(&way) => {
                self.refuse(path.as_bytes(), &format!("it lies beneath {way}, which the archive made no folder"));
            }
            Err(Obstacle::InTheWay(way)) => {
                self.conflict(path, &format!("{way} is no folder, and links are not followed"));
            }
        }
    }

    fn conflict(&mut self, path: &MemberPath, reason: &str) {
        (self.context.on_action)(Action::Conflict, path);
        self.shared.report(|report| report.conflicts.add(path.as_bytes(), reason.to_owned()));
    }

    /// Looks at a member's place and tells what will happen there.
    fn look(&mut self, folder: Option<&Folder>, member: &Member) -> io::Result<Place> {
        let path = &member.path;
        let Some(folder) = folder else {
            (self.context.on_action)(Action::Create, path);
            return Ok(Place::Free);
        };
        let ours = self.shared.is_placed(path);
        let Some(stat) = confined::stat_entry(&*folder.handle, path.file_name())? else {
            (self.context.on_action)(Action::Create, path);
            return Ok(Place::Free);
        };
        let kind = confined::kind_of(&stat);
        let same = kind == Some(member.kind)
            && match member.kind {
                MemberKind::File => {
                    stat.st_size.cast_unsigned() == member.size && confined::modified_of(&stat) == member.modified
                }
                MemberKind::Symlink => {
                    confined::link_target(&*folder.handle, path.file_name())?[..]
                        == *member.link_target.as_deref().unwrap_or_default()
                }
                MemberKind::Folder => true,
                _ => confined::device_of(&stat) == member.device_number.unwrap_or((0, 0)),
            };
        // What the archive has twice is there as it has it last.
        let overwrite = if ours { Overwrite::Always } else { self.options.overwrite };
        let place = match (same, overwrite) {
            (true, Overwrite::Never | Overwrite::IfChanged) => Place::Same,
            (true, Overwrite::Always) if member.kind == MemberKind::Folder => Place::Same,
            _ if kind == Some(MemberKind::Folder) => Place::Other("a folder stands there"),
            (false, Overwrite::Never) => Place::Other("something else stands there"),
            _ => Place::Taken,
        };
        let action = match place {
            Place::Free => Action::Create,
            Place::Taken => Action::Replace,
            Place::Same => Action::Keep,
            Place::Other(_) => Action::Conflict,
        };
        if action != Action::Conflict {
            (self.context.on_action)(action, path);
        }
        Ok(place)
    }

    fn put_folder(&mut self, member: &Member) -> std::result::Result<(), Obstacle> {
        let path = &member.path;
        let parent = self.tree.folder_of(path)?;
        let place = self.look(parent.as_deref(), member)?;
        let dry = self.options.dry_run;
        let (exists, metadata, ours) = match (place, &parent) {
            (Place::Other(reason), _) => {
                self.conflict(path, reason);
                return Ok(());
            }
            (Place::Free, _) | (_, None) => (false, true, true),
            (Place::Taken, Some(parent)) => {
                if !dry {
                    confined::remove(&*parent.handle, path.file_name(), false)?;
                }
                (false, true, true)
            }
            (Place::Same, Some(parent)) => {
                let unfinished = confined::stat_entry(&*parent.handle, path.file_name())?
                    .is_some_and(|stat| confined::is_unfinished(&stat, member.mode));
                let ours = unfinished || self.shared.is_placed(path);
                (true, ours || self.options.overwrite != Overwrite::Never, ours)
            }
        };
        drop(parent);
        self.tree.make(member, exists, metadata)?;
        self.shared.placed(path, |report| if ours { report.extent.members += 1 } else { report.unchanged += 1 });
        Ok(())
    }

    fn put_special(&mut self, member: &Member) -> std::result::Result<(), Obstacle> {
        let path = &member.path;
        let folder = self.tree.folder_of(path)?;
        let replace = match self.look(folder.as_deref(), member)? {
            Place::Same => {
                self.shared.placed(path, |report| report.unchanged += 1);
                return Ok(());
            }
            Place::Other(reason) => {
                self.conflict(path, reason);
                return Ok(());
            }
            Place::Free => false,
            Place::Taken => true,
        };
        let Some(folder) = folder.filter(|_| !self.options.dry_run) else {
            self.shared.placed(path, |report| report.extent.members += 1);
            return Ok(());
        };
        let (made, loss) = NewEntry::special(&folder.handle, member, self.privileges)?;
        made.rename_into_place(path.file_name(), replace)?;
        self.shared.placed(path, |report| {
            report.extent.members += 1;
            report.fell_short(path, loss);
        });
        Ok(())
    }

    fn put_file(&mut self, members: &mut Members, entry: Box<Entry>) -> Result<()> {
        let path = entry.member.path.clone();
        let found = match self.tree.folder_of(&path) {
            Ok(folder) => {
                self.look(folder.as_deref(), &entry.member).map(|place| (folder, place)).map_err(Obstacle::Io)
            }
            Err(obstacle) => Err(obstacle),
        };
        let (folder, replace) = match found {
            Ok((_, Place::Same)) => {
                self.shared.placed(&path, |report| report.unchanged += 1);
                return Ok(());
            }
            Ok((_, Place::Other(reason))) => {
                self.conflict(&path, reason);
                return Ok(());
            }
            Ok((folder, place)) => (folder, matches!(place, Place::Taken)),
            Err(obstacle) => {
                self.settle(&path, Err(obstacle));
                return Ok(());
            }
        };
        let Some(folder) = folder.filter(|_| !self.options.dry_run) else {
            self.shared.placed(&path, |report| {
                report.extent.members += 1;
                report.extent.files += 1;
                report.extent.content_bytes += entry.member.size;
            });
            return Ok(());
        };
        let digest = self.digests.find(self.archive, entry.sequence, entry.offset)?;
        let job = FileJob { folder, entry, digest, replace };
        self.shared.begin(&path);
        if job.entry.stored <= MOST_HANDED_OVER { self.hand_over(members, job) } else { self.write_here(members, &job) }
    }

    /// Reads a small file whole and lets another thread write it.
    fn hand_over(&mut self, members: &mut Members, job: FileJob) -> Result<()> {
        let mut data = vec![0; job.entry.stored as usize];
        let mut filled = 0;
        while filled < data.len() {
            match members.read(&mut data[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(reason) => {
                    self.tell_damage(&job, &reason);
                    job.record(self.shared, Err(Unwritten::Damaged(reason)));
                    return Ok(());
                }
            }
        }
        data.truncate(filled);
        self.jobs.send((job, data)).map_err(|_| Error::failed("the threads that write have ended"))
    }

    /// Writes a large file as its data comes.
    fn write_here(&mut self, members: &mut Members, job: &FileJob) -> Result<()> {
        let cancel = self.context.cancel;
        let mut cancelled = false;
        let mut done = 0;
        let result = job.write(self.privileges, &mut |buffer| {
            if cancel.is_cancelled() {
                cancelled = true;
                return Err("the restore was cancelled".to_owned());
            }
            buffer.resize(PIECE_BYTES, 0);
            let count = members.read(buffer)?;
            buffer.truncate(count);
            done += count as u64;
            Ok(count > 0)
        });
        if cancelled {
            // The next look at the archive ends it.
            self.shared.given_up(&job.entry.member.path, |_| {});
            return Ok(());
        }
        if let Err(Unwritten::Damaged(reason)) = &result {
            self.tell_damage(job, reason);
        }
        job.record(self.shared, result);
        Ok(())
    }

    fn tell_damage(&self, job: &FileJob, reason: &str) {
        tell(self.context.observer, job.entry.member.path.as_bytes(), &format!("damaged: {reason}"));
    }

    /// Makes a hard link to what stands at `carrier`. Where that is not what the archive has, the link waits for its
    /// content under the name `first`; without one it fails.
    pub(super) fn link(&mut self, carrier: &MemberPath, entry: Box<Entry>, first: Option<MemberPath>) -> Result<()> {
        let path = entry.member.path.clone();
        if *carrier == path {
            self.refuse(path.as_bytes(), "it is a hard link to itself");
            return Ok(());
        }
        if !self.shared.is_placed(carrier) {
            match first {
                Some(first) => return self.wait_for(first, entry),
                None => self.refuse(path.as_bytes(), "the file that it is a further name of was not restored"),
            }
            return Ok(());
        }
        let result = self.try_link(carrier, &entry.member);
        self.settle(&path, result);
        Ok(())
    }

    fn try_link(&mut self, carrier: &MemberPath, member: &Member) -> std::result::Result<(), Obstacle> {
        let path = &member.path;
        let count = |report: &mut super::Report| {
            report.extent.members += 1;
            report.extent.files += 1;
        };
        let folder = self.tree.folder_of(path)?;
        let carrier_folder: Option<Arc<_>> = match self.tree.look_up_folder_of(carrier) {
            Err(_) if self.options.dry_run => None,
            found => Some(found?),
        };
        let there = match &carrier_folder {
            Some(carrier_folder) => confined::stat_entry(&**carrier_folder, carrier.file_name())?,
            None => None,
        };
        let (Some(folder), Some(carrier_folder), true) =
            (folder, carrier_folder, there.is_some() || !self.options.dry_run)
        else {
            (self.context.on_action)(Action::Create, path);
            self.shared.placed(path, count);
            return Ok(());
        };
        let there = there.filter(|stat| confined::kind_of(stat) != Some(MemberKind::Folder));
        let Some(there) = there else {
            self.refuse(path.as_bytes(), &format!("it is a hard link to {carrier}, which is no file"));
            return Ok(());
        };
        let here = confined::stat_entry(&*folder.handle, path.file_name())?;
        let ours = self.shared.is_placed(path);
        let (action, replace) = match here {
            None => (Action::Create, false),
            Some(here) if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) => (Action::Keep, false),
            Some(here) if confined::kind_of(&here) == Some(MemberKind::Folder) => (Action::Conflict, false),
            Some(_) if !ours && self.options.overwrite == Overwrite::Never => (Action::Conflict, false),
            Some(_) => (Action::Replace, true),
        };
        match action {
            Action::Conflict => self.conflict(path, "something else stands there"),
            Action::Keep => {
                (self.context.on_action)(action, path);
                self.shared.placed(path, |report| report.unchanged += 1);
            }
            Action::Create | Action::Replace => {
                (self.context.on_action)(action, path);
                if self.options.dry_run {
                    self.shared.placed(path, count);
                    return Ok(());
                }
                let made = NewEntry::hard_link(&folder.handle, &*carrier_folder, carrier.file_name())?;
                made.rename_into_place(path.file_name(), replace)?;
                self.shared.placed(path, count);
            }
        }
        Ok(())
    }

    fn wait_for(&mut self, first: MemberPath, mut entry: Box<Entry>) -> Result<()> {
        // All but the name comes from the first name.
        entry.member.xattrs.clear();
        entry.member.link_target = None;
        self.links_bytes += first.as_bytes().len() + entry.member.path.as_bytes().len();
        if self.links.len() >= MOST_LINKS_WAITING || self.links_bytes > MOST_LINKS_BYTES {
            return Err(Error::failed(format!(
                "more than {MOST_LINKS_WAITING} hard links lead to members not restored"
            ))
            .hint("restore without PATH, --include and --exclude"));
        }
        self.links.push((first, entry));
        Ok(())
    }
}

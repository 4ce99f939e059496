//! Creates entries under temporary names and renames them into place, or under their final names with a mark in folders
//! that this program created; creates and removes the rest.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock};
use rustix::io::Errno;

use super::inspect::stat_entry;
use super::metadata::{MetadataLoss, Privileges, UNFINISHED_MARK, UNFINISHED_MODE, apply_special_metadata, has_mark};
use crate::durable::{is_temporary_name, temporary_name};
use crate::member::{Member, MemberKind};

/// A new entry; removed when dropped unless it was put into place.
#[derive(Debug)]
#[must_use = "an entry that is not put into place is removed when dropped"]
pub struct NewEntry {
    folder: Arc<OwnedFd>,
    name: Option<OsString>,
    /// It has its final name already.
    is_in_place: bool,
}

impl NewEntry {
    fn under_free_name(
        folder: &Arc<OwnedFd>,
        mut create: impl FnMut(&str) -> rustix::io::Result<()>,
    ) -> io::Result<NewEntry> {
        loop {
            let name = unused_name()?;
            match create(&name) {
                Ok(()) => {
                    return Ok(NewEntry { folder: folder.clone(), name: Some(name.into()), is_in_place: false });
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Creates an empty file with this mode, less the umask, and opens it for writing.
    pub fn file(folder: &Arc<OwnedFd>, mode: u32) -> io::Result<(NewEntry, File)> {
        let mut opened = None;
        let entry = NewEntry::under_free_name(folder, |name| {
            opened = Some(create_file(folder, OsStr::new(name), mode)?);
            Ok(())
        })?;
        match opened {
            Some(file) => Ok((entry, File::from(file))),
            None => Err(io::Error::other("a file was created but not opened")),
        }
    }

    /// Creates an empty file under its final name, in a folder that this program created, with the mark of a file that
    /// is being written, and opens it. `None` if the file system does not accept that. [`super::apply_metadata`] ends
    /// with removing the mark; a later restore removes a file that still has it, see [`lock_folder`].
    ///
    /// Errors: `AlreadyExists`.
    pub fn marked_file(folder: &Arc<OwnedFd>, name: &[u8], mode: u32) -> io::Result<Option<(NewEntry, File)>> {
        let name = OsStr::from_bytes(name);
        match create_file(folder, name, mode | UNFINISHED_MARK) {
            Ok(file) => {
                let entry = NewEntry { folder: folder.clone(), name: Some(name.to_owned()), is_in_place: true };
                Ok(Some((entry, File::from(file))))
            }
            Err(Errno::EXIST) => Err(Errno::EXIST.into()),
            Err(_) => Ok(None),
        }
    }

    /// Creates a symbolic link, a fifo or a device, with its owner, mode, attributes and time.
    pub fn special(
        folder: &Arc<OwnedFd>,
        member: &Member,
        privileges: Privileges,
    ) -> io::Result<(NewEntry, MetadataLoss)> {
        let kind = match member.kind {
            MemberKind::Fifo => FileType::Fifo,
            MemberKind::CharDevice => FileType::CharacterDevice,
            MemberKind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Symlink,
        };
        let link_target = OsStr::from_bytes(member.link_target.as_deref().unwrap_or_default());
        let (major, minor) = member.device_number.unwrap_or((0, 0));
        let entry = NewEntry::under_free_name(folder, |name| match kind {
            FileType::Symlink => rustix::fs::symlinkat(link_target, folder, name),
            _ => {
                let mode = Mode::from_raw_mode(member.mode & 0o777);
                rustix::fs::mknodat(folder, name, kind, mode, rustix::fs::makedev(major, minor))
            }
        })?;
        let name = entry.name.as_deref().unwrap_or_default();
        let loss = apply_special_metadata(folder, name, kind, member, privileges)?;
        Ok((entry, loss))
    }

    /// Creates a hard link to the entry `name` of the folder `of`, to a symbolic link itself and not to its target.
    pub fn hard_link(folder: &Arc<OwnedFd>, of: impl AsFd, name: &[u8]) -> io::Result<NewEntry> {
        let name = OsStr::from_bytes(name);
        NewEntry::under_free_name(folder, |temporary| {
            rustix::fs::linkat(of.as_fd(), name, folder, temporary, AtFlags::empty())
        })
    }

    /// Renames the entry to `name` in the same folder, unless it has its final name already. With `replace` an existing
    /// entry is replaced, of folders only an empty one.
    ///
    /// Errors: `AlreadyExists` if the name is taken and `replace` is false.
    pub fn put_into_place(mut self, name: &[u8], replace: bool) -> io::Result<()> {
        let Some(temporary) = self.name.take().filter(|_| !self.is_in_place) else { return Ok(()) };
        let result = rename(&self.folder, &temporary, OsStr::from_bytes(name), replace);
        // A rename between two names of one file does nothing and keeps both.
        let remains =
            result.is_err() || replace && matches!(stat_entry(&self.folder, temporary.as_bytes()), Ok(Some(_)));
        if remains {
            self.name = Some(temporary);
        }
        Ok(result?)
    }
}

impl Drop for NewEntry {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // A failure cannot be handled here; the next restore into this folder removes the file.
            let _ = rustix::fs::unlinkat(&*self.folder, name, AtFlags::empty());
        }
    }
}

fn create_file(folder: &OwnedFd, name: &OsStr, mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(mode))
}

/// Returns a temporary name that this process did not use before: random numbers are drawn once, not for each file.
fn unused_name() -> io::Result<String> {
    static FIRST: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let first = match FIRST.get() {
        Some(first) => *first,
        None => {
            let random = getrandom::u64().map_err(|e| io::Error::other(e.to_string()))?;
            *FIRST.get_or_init(|| random)
        }
    };
    Ok(temporary_name(first.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed))))
}

fn rename(folder: &OwnedFd, from: &OsStr, to: &OsStr, replace: bool) -> rustix::io::Result<()> {
    if replace {
        return match rustix::fs::renameat(folder, from, folder, to) {
            Err(Errno::ISDIR) => {
                // Removes an empty folder only.
                rustix::fs::unlinkat(folder, to, AtFlags::REMOVEDIR)?;
                rustix::fs::renameat(folder, from, folder, to)
            }
            result => result,
        };
    }
    match rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
        // The file system does not know the flag; creating a link never replaces a file.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(folder, from, folder, to, AtFlags::empty())?;
            rustix::fs::unlinkat(folder, from, AtFlags::empty())
        }
        result => result,
    }
}

/// Creates a folder that no other user can enter until it gets its final metadata.
///
/// Errors: `AlreadyExists`.
pub(super) fn create_folder(folder: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(folder, OsStr::from_bytes(name), Mode::from_raw_mode(UNFINISHED_MODE))?)
}

/// Creates a folder that no member describes, with the mode that the umask leaves.
pub(super) fn create_plain_folder(folder: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(folder, OsStr::from_bytes(name), Mode::from_raw_mode(0o777))?)
}

/// Removes the entry `name`; of folders only empty ones.
pub fn remove(folder: impl AsFd, name: &[u8], is_folder: bool) -> io::Result<()> {
    let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    Ok(rustix::fs::unlinkat(folder, OsStr::from_bytes(name), flags)?)
}

/// Locks an open folder, shared, for creating entries in it. If no other process has it locked, first removes what a
/// restore that was interrupted there left: its temporary files and, in a folder that it did not finish
/// (`is_unfinished`), the files that have the mark of [`NewEntry::marked_file`].
pub fn lock_folder(folder: &OwnedFd, is_unfinished: bool) -> io::Result<()> {
    if flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
        remove_orphaned_files(folder, is_unfinished)?;
    }
    // On a file system without locks the restore continues unlocked.
    let _ = flock(folder, FlockOperation::NonBlockingLockShared);
    Ok(())
}

fn remove_orphaned_files(folder: &OwnedFd, is_unfinished: bool) -> io::Result<()> {
    let mut orphans = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let is_marked =
            is_unfinished && stat_entry(folder, entry.file_name().to_bytes())?.as_ref().is_some_and(has_mark);
        if is_marked || is_temporary_name(&entry.file_name().to_string_lossy()) {
            orphans.push(entry.file_name().to_owned());
        }
    }
    for name in &orphans {
        match rustix::fs::unlinkat(folder, name.as_c_str(), AtFlags::empty()) {
            // A folder with such a name is not ours: only files, links and devices get temporary names.
            Ok(()) | Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

//! Creates entries under temporary names and renames them into place; creates and removes the rest.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock};
use rustix::io::Errno;

use super::inspect::stat_entry;
use super::metadata::{MetadataLoss, Privileges, UNFINISHED_MODE, apply_special_metadata};
use crate::durable::{is_temporary_name, temporary_name};
use crate::member::{Member, MemberKind};

/// An entry created under a temporary name; removed when dropped unless it was renamed into place.
#[derive(Debug)]
#[must_use = "an entry that is not renamed into place is removed when dropped"]
pub struct NewEntry {
    folder: Arc<OwnedFd>,
    temporary: Option<String>,
}

impl NewEntry {
    fn under_free_name(
        folder: &Arc<OwnedFd>,
        mut create: impl FnMut(&str) -> rustix::io::Result<()>,
    ) -> io::Result<NewEntry> {
        loop {
            let name = unused_name()?;
            match create(&name) {
                Ok(()) => return Ok(NewEntry { folder: folder.clone(), temporary: Some(name) }),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Creates an empty file with this mode, less the umask, and opens it for writing.
    pub fn file(folder: &Arc<OwnedFd>, mode: u32) -> io::Result<(NewEntry, File)> {
        let mut opened = None;
        let entry = NewEntry::under_free_name(folder, |name| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            opened = Some(rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(mode))?);
            Ok(())
        })?;
        match opened {
            Some(file) => Ok((entry, File::from(file))),
            None => Err(io::Error::other("a file was created but not opened")),
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
        let name = entry.temporary.as_deref().unwrap_or_default();
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

    /// Renames the entry to `name` in the same folder. With `replace` an existing entry is replaced, of folders only an
    /// empty one.
    ///
    /// Errors: `AlreadyExists` if the name is taken and `replace` is false.
    pub fn rename_into_place(mut self, name: &[u8], replace: bool) -> io::Result<()> {
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        let result = rename(&self.folder, &temporary, OsStr::from_bytes(name), replace);
        // A rename between two names of one file does nothing and keeps both.
        let remains =
            result.is_err() || replace && matches!(stat_entry(&self.folder, temporary.as_bytes()), Ok(Some(_)));
        if remains {
            self.temporary = Some(temporary);
        }
        Ok(result?)
    }
}

impl Drop for NewEntry {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            // A failure cannot be handled here; the next restore into this folder removes the file.
            let _ = rustix::fs::unlinkat(&*self.folder, name.as_str(), AtFlags::empty());
        }
    }
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

fn rename(folder: &OwnedFd, from: &str, to: &OsStr, replace: bool) -> rustix::io::Result<()> {
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

/// Locks an open folder, shared, for creating entries in it. If no other process has it locked, first removes the
/// temporary files of a restore that was interrupted there.
pub fn lock_folder(folder: &OwnedFd) -> io::Result<()> {
    if flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
        remove_orphaned_files(folder)?;
    }
    // On a file system without locks the restore continues unlocked.
    let _ = flock(folder, FlockOperation::NonBlockingLockShared);
    Ok(())
}

fn remove_orphaned_files(folder: &OwnedFd) -> io::Result<()> {
    let mut orphans = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        if is_temporary_name(&entry.file_name().to_string_lossy()) {
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

//! Inspects the entries of an open folder.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::member::{FileTime, MemberKind};

/// Returns the state of the entry `name`, of a symbolic link itself and not of its target; `None` if there is no such
/// entry.
pub fn stat_entry(folder: impl AsFd, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Returns the kind of member that such a file would be; `None` for a socket.
pub fn kind_of(stat: &Stat) -> Option<MemberKind> {
    MemberKind::of_file_type(FileType::from_raw_mode(stat.st_mode))
}

/// Returns the modification time of a file.
pub fn modified_of(stat: &Stat) -> FileTime {
    FileTime { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// Changes the modification time in the state of a file, not the file itself.
pub(super) fn set_modified(stat: &mut Stat, modified: FileTime) {
    (stat.st_mtime, stat.st_mtime_nsec) = (modified.seconds, modified.nanoseconds.into());
}

/// Returns the target of a symbolic link, unresolved.
pub fn link_target(folder: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(folder, OsStr::from_bytes(name), Vec::new())?.into_bytes())
}

/// Opens an existing regular file for reading; never a link, and never waits for a fifo.
pub fn open_file(folder: impl AsFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())?;
    if kind_of(&rustix::fs::fstat(&file)?) != Some(MemberKind::File) {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(File::from(file))
}

/// Returns whether the folder `name` has no entries. Temporary files of an interrupted restore count as entries.
pub fn is_empty_folder(folder: impl AsFd, name: &[u8]) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())?;
    for entry in Dir::new(opened)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the major and minor number of a device; zeros for any other file.
pub fn device_of(stat: &Stat) -> (u32, u32) {
    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
}

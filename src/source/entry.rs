//! The entries of a source: what a walk finds, to be opened and read later from any thread.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FileType, OFlags, fstat, readlinkat};
use rustix::io::Errno;

use super::attributes;
use super::file_system::FileSystem;
use super::location::{Location, fs_path};
use super::open_file::OpenFile;
use super::path_error::PathError;
use super::stat::Stat;
use crate::member::{MemberKind, MemberPath, Xattrs};
use crate::progress::Problem;

/// One entry of the source. It holds no descriptor and can be opened from any thread, also long after the walk has
/// moved on.
#[derive(Clone, Debug)]
pub struct SourceEntry {
    /// Its name in the archive.
    pub path: MemberPath,
    /// Its kind. Never a hard link: which name carries the data is not decided here.
    pub kind: MemberKind,
    /// Its facts at the time of the listing.
    pub stat: Stat,
    /// The file system that it lies on, as known from the folder that lists it.
    pub file_system: FileSystem,
    pub(super) location: Location,
}

impl SourceEntry {
    /// Returns its path in the file system: below the root as that was given.
    pub fn fs_path(&self) -> PathBuf {
        fs_path(self.location.tree(), &self.path)
    }

    /// Opens a regular file for reading; no other kind is ever opened.
    ///
    /// Errors: `Vanished`; `Replaced` if the name is now a link, another file or another kind (see
    /// [`SourceEntry::stat_again`]); `Unreadable`.
    pub fn open(&self) -> Result<OpenFile, Problem> {
        self.try_open().map_err(|error| error.at(&self.fs_path()))
    }

    fn try_open(&self) -> Result<OpenFile, PathError> {
        if self.kind != MemberKind::File {
            return Err(PathError::skipped("only regular files are opened"));
        }
        let file = self.location.open(&self.path, OFlags::empty())?;
        let (kind, stat) = Stat::from_system(&fstat(&file)?);
        if kind != FileType::RegularFile {
            return Err(PathError::replaced("it is no longer a regular file"));
        }
        if !stat.is_same_file(&self.stat) {
            return Err(PathError::replaced("another file has taken its place"));
        }
        Ok(OpenFile::new(file, stat, self.location.clone(), self.path.clone()))
    }

    /// Looks up the name again, after the file was replaced: programs save a file by renaming a new one over it.
    ///
    /// Errors: `Replaced` if the name is now of a kind that archives do not hold; `Vanished`; `Unreadable`.
    pub fn stat_again(&self) -> Result<SourceEntry, Problem> {
        let stat = || {
            let (kind, stat) = self.location.stat(&self.path)?;
            let kind = MemberKind::of_file_type(kind).ok_or_else(|| PathError::replaced("it has become a socket"))?;
            Ok(SourceEntry { kind, stat, ..self.clone() })
        };
        stat().map_err(|error: PathError| error.at(&self.fs_path()))
    }

    /// Returns the target of a symbolic link, unresolved.
    pub fn read_link(&self) -> Result<Vec<u8>, Problem> {
        let read = || match &self.location {
            Location::Root(_) => Err(PathError::skipped("the root of a source is never a link")),
            Location::In(folder) => match readlinkat(&*folder.handle()?, self.path.file_name(), Vec::new()) {
                Ok(target) => Ok(target.into_bytes()),
                Err(Errno::INVAL) => Err(PathError::replaced("it is no longer a symbolic link")),
                Err(errno) => Err(errno.into()),
            },
        };
        read().map_err(|error| error.at(&self.fs_path()))
    }

    /// Reads its extended attributes without opening it; for a link those of the link itself.
    pub fn xattrs(&self) -> Result<Xattrs, Problem> {
        self.try_xattrs().map_err(|error| error.at(&self.fs_path()))
    }

    fn try_xattrs(&self) -> Result<Xattrs, PathError> {
        let xattrs = match &self.location {
            Location::Root(tree) => attributes::of_path_followed(tree.path())?,
            Location::In(folder) => {
                let handle = folder.handle()?;
                attributes::of_path(&path_in(&handle, self))?
            }
        };
        if !xattrs.is_empty() {
            // The inode number of a removed file may be reused for the new one, so the kind is compared too.
            let (kind, stat) = self.location.stat(&self.path)?;
            if !stat.is_same_file(&self.stat) || MemberKind::of_file_type(kind) != Some(self.kind) {
                return Err(PathError::replaced("something else has taken its place"));
            }
        }
        Ok(xattrs)
    }
}

/// Returns a path of `entry` that begins at its open folder and has no link in it.
///
/// There is no system call for attributes relative to a folder, and a fifo must not be opened for them; but
/// `/proc/self/fd` leads to the descriptor of the folder. Without `/proc` the whole path is used.
fn path_in(folder: &OwnedFd, entry: &SourceEntry) -> PathBuf {
    static HAS_PROC: OnceLock<bool> = OnceLock::new();
    if *HAS_PROC.get_or_init(|| fs::exists("/proc/self/fd").unwrap_or(false)) {
        let name = OsStr::from_bytes(entry.path.file_name());
        Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
    } else {
        entry.fs_path()
    }
}

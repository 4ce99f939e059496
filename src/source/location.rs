//! Where the name of an entry is looked up: in the file system for the root, in an open folder for the rest.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, OFlags, statat};

use super::folder::{Folder, Tree};
use super::path_error::PathError;
use super::stat::Stat;
use crate::member::MemberPath;

/// Where a name is looked up.
#[derive(Clone, Debug)]
pub(super) enum Location {
    /// The root of the source: by its path, following links.
    Root(Arc<Tree>),
    /// In this folder: by the last component of the member's path.
    In(Arc<Folder>),
}

impl Location {
    pub(super) fn tree(&self) -> &Arc<Tree> {
        match self {
            Location::Root(tree) => tree,
            Location::In(folder) => folder.tree(),
        }
    }

    /// Calls `stat` on the last component of `path`, without following it.
    pub(super) fn stat(&self, path: &MemberPath) -> Result<(FileType, Stat), PathError> {
        let stat = match self {
            Location::Root(tree) => statat(CWD, tree.path(), AtFlags::empty())?,
            Location::In(folder) => statat(&*folder.handle()?, path.file_name(), AtFlags::SYMLINK_NOFOLLOW)?,
        };
        Ok(Stat::from_system(&stat))
    }

    /// Opens the last component of `path` without following it, blocking on it or changing its access time.
    pub(super) fn open(&self, path: &MemberPath, flags: OFlags) -> Result<OwnedFd, PathError> {
        let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| -> Result<OwnedFd, PathError> {
            match self {
                Location::Root(tree) => Ok(tree.open_root(flags)?),
                Location::In(folder) => {
                    let flags = flags | OFlags::NOFOLLOW;
                    Ok(folder.tree().open_at(&*folder.handle()?, path.file_name(), flags)?)
                }
            }
        };
        match open(flags) {
            Err(error) if error.is_refused_lease() && self.stat(path)?.0 == FileType::RegularFile => {
                // Another program holds a lease (a file server does), and this open made the kernel ask for it back.
                // Only a blocking open succeeds; the kernel ends the wait after 45 seconds at most.
                open(flags.difference(OFlags::NONBLOCK))
            }
            result => result,
        }
    }
}

/// Returns the path of a member in the file system.
pub(super) fn fs_path(tree: &Tree, path: &MemberPath) -> PathBuf {
    match tree.relative(path) {
        b"" => tree.path().to_owned(),
        relative => tree.path().join(OsStr::from_bytes(relative)),
    }
}

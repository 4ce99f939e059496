//! Opens folders beneath a confined folder without following a symbolic link.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::member::MemberPath;

/// Longest path in bytes that is passed to the kernel in one call; the kernel's own limit is 4096.
const MAX_OPENAT2_PATH_BYTES: usize = 3000;

/// An open folder beneath which entries are created, and never outside it.
#[derive(Debug)]
pub struct ConfinedFolder {
    root: Arc<OwnedFd>,
    path: PathBuf,
    without_openat2: AtomicBool,
}

impl ConfinedFolder {
    /// Opens the existing folder at `path`.
    pub fn open(path: &Path) -> Result<ConfinedFolder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|e| Error::io("open the target", path)(e.into()))?;
        Ok(ConfinedFolder { root: Arc::new(root), path: path.to_owned(), without_openat2: AtomicBool::new(false) })
    }

    /// Opens folders component by component, as on kernels that do not have `openat2`.
    #[must_use]
    pub fn without_openat2(self) -> ConfinedFolder {
        self.without_openat2.store(true, Ordering::Relaxed);
        self
    }

    /// Returns the confined folder itself.
    pub fn root(&self) -> Arc<OwnedFd> {
        self.root.clone()
    }

    /// Opens a folder beneath the confined folder.
    ///
    /// Errors: `ELOOP` or `ENOTDIR` if a component of the path is a symbolic link or a file.
    pub fn open_folder(&self, path: &MemberPath) -> io::Result<OwnedFd> {
        Ok(self.open_folder_in(self.root.as_fd(), path.as_bytes())?)
    }

    /// Opens the folder at `path`, relative and without `..`, in an open folder beneath the confined folder.
    pub fn open_folder_in(&self, folder: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !self.without_openat2.load(Ordering::Relaxed) && path.len() <= MAX_OPENAT2_PATH_BYTES {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(folder, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
                // Old kernels and strict sandboxes do not have it. `EAGAIN`: something was renamed during the call.
                Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => self.without_openat2.store(true, Ordering::Relaxed),
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        let mut components = path.split(|&b| b == b'/');
        let open = |folder: BorrowedFd<'_>, name: &[u8]| {
            rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())
        };
        let mut current = open(folder, components.next().unwrap_or_default())?;
        for name in components {
            current = open(current.as_fd(), name)?;
        }
        Ok(current)
    }

    /// Waits until everything written to the folder's file system is on disk.
    pub fn sync(&self) -> Result<()> {
        match rustix::fs::syncfs(&*self.root) {
            Err(Errno::NOSYS) => Ok(()),
            result => result.map_err(|e| Error::io("sync", &self.path)(e.into())),
        }
    }
}

//! Handles of the folders of a source, in a pool of limited size.
//!
//! An entry must be openable long after the walk has moved on, and a tree may be deeper than a process may have
//! descriptors or a path may have bytes. So a [`Folder`] knows its parent, its name and its identity, and its
//! descriptor is kept in a small pool. A folder that was closed meanwhile is opened again from the nearest ancestor
//! that is still open, one component at a time, without following links, and each identity is checked.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use super::path_error::PathError;
use crate::member::MemberPath;

/// An open folder. It stays open as long as a handle exists, whatever the pool does.
pub(super) type Handle = Arc<OwnedFd>;

/// Maximum number of folders that the pool keeps open, in addition to those in use.
const MAX_POOLED: usize = 128;

/// One source: the path of its root, and the pool of open folders.
#[derive(Debug)]
pub(super) struct Tree {
    path: PathBuf,
    /// Bytes of the root's name in the archive.
    name_length: usize,
    pool: Mutex<Pool>,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct Pool {
    open: HashMap<u64, (Handle, u64)>,
    uses: u64,
}

impl Tree {
    /// Creates the tree whose root lies at `path` and is called `name` in the archive.
    pub(super) fn new(path: &Path, name: &MemberPath) -> Self {
        Tree {
            path: path.to_owned(),
            name_length: name.as_bytes().len(),
            pool: Mutex::default(),
            next_id: AtomicU64::new(0),
        }
    }

    /// Returns the path of the root, as given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the part of a member's path that lies below the root; empty for the root.
    pub(super) fn relative<'p>(&self, member: &'p MemberPath) -> &'p [u8] {
        member.as_bytes().get(self.name_length + 1..).unwrap_or_default()
    }

    /// Opens `name` in `folder`, without changing its access time if that is permitted. If the process has no
    /// descriptor left, closes the folders of the pool and tries again.
    pub(super) fn open_at(&self, folder: impl AsFd, name: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd, Errno> {
        let folder = folder.as_fd();
        match open_noatime(folder, name, flags) {
            Err(Errno::MFILE | Errno::NFILE) => {
                drop(std::mem::take(&mut self.pool().open));
                open_noatime(folder, name, flags)
            }
            result => result,
        }
    }

    /// Opens the root, following links.
    pub(super) fn open_root(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_at(CWD, self.path.as_path(), flags)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // The map is consistent between any two calls, so a panic elsewhere does not corrupt it.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pooled(&self, id: u64) -> Option<Handle> {
        let mut pool = self.pool();
        pool.uses += 1;
        let now = pool.uses;
        let (handle, used) = pool.open.get_mut(&id)?;
        *used = now;
        Some(handle.clone())
    }

    fn add_to_pool(&self, id: u64, handle: &Handle) {
        let mut pool = self.pool();
        pool.uses += 1;
        let now = pool.uses;
        let mut evicted = None;
        if pool.open.len() >= MAX_POOLED {
            let oldest = pool.open.iter().min_by_key(|(_, (_, used))| *used).map(|(&id, _)| id);
            evicted = oldest.and_then(|id| pool.open.remove(&id));
        }
        pool.open.insert(id, (handle.clone(), now));
        drop(pool);
        // Closing may be slow on a network file system: not under the lock.
        drop(evicted);
    }
}

/// Opens with O_NOATIME, or without it if the kernel refuses that with EPERM: it is allowed to owners and root only.
fn open_noatime(folder: BorrowedFd, name: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd, Errno> {
    match retry_on_intr(|| openat(folder, name, flags | OFlags::NOATIME, Mode::empty())) {
        Err(Errno::PERM) => retry_on_intr(|| openat(folder, name, flags, Mode::empty())),
        result => result,
    }
}

/// A listed folder of the source.
#[derive(Debug)]
pub(super) struct Folder {
    tree: Arc<Tree>,
    id: u64,
    position: Position,
}

#[derive(Debug)]
enum Position {
    /// The root: its handle stays open, so that every folder can be opened again from there.
    Root(Handle),
    Child {
        parent: Option<Arc<Folder>>,
        name: CString,
        device: u64,
        inode: u64,
    },
}

impl Folder {
    /// Creates the root of `tree`.
    pub(super) fn root(tree: &Arc<Tree>, handle: OwnedFd) -> Arc<Self> {
        Self::new(tree, Position::Root(Arc::new(handle)))
    }

    /// Creates the folder `name` in `parent`, which was opened as `handle` and has this identity.
    pub(super) fn child(parent: &Arc<Self>, name: CString, handle: &Handle, device: u64, inode: u64) -> Arc<Self> {
        let position = Position::Child { parent: Some(parent.clone()), name, device, inode };
        let folder = Self::new(&parent.tree, position);
        folder.tree.add_to_pool(folder.id, handle);
        folder
    }

    fn new(tree: &Arc<Tree>, position: Position) -> Arc<Self> {
        let id = tree.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Folder { tree: tree.clone(), id, position })
    }

    /// Returns its tree.
    pub(super) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Returns a handle for looking up names in it. Opens it again if it was closed.
    pub(super) fn handle(&self) -> Result<Handle, PathError> {
        let mut closed: Vec<&Folder> = Vec::new();
        let mut folder = self;
        let mut handle = loop {
            match &folder.position {
                Position::Root(handle) => break handle.clone(),
                Position::Child { parent, .. } => {
                    if let Some(handle) = folder.tree.pooled(folder.id) {
                        break handle;
                    }
                    closed.push(folder);
                    folder = parent.as_deref().ok_or_else(|| PathError::from(Errno::NOENT))?;
                }
            }
        };
        while let Some(folder) = closed.pop() {
            handle = folder.reopen(&handle)?;
        }
        Ok(handle)
    }

    fn reopen(&self, parent: &OwnedFd) -> Result<Handle, PathError> {
        let Position::Child { name, device, inode, .. } = &self.position else {
            return self.handle();
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = Arc::new(self.tree.open_at(parent, name.as_c_str(), flags)?);
        let stat = fstat(&handle)?;
        if (stat.st_dev, stat.st_ino) != (*device, *inode) {
            return Err(PathError::replaced("a folder above it was replaced by another"));
        }
        self.tree.add_to_pool(self.id, &handle);
        Ok(handle)
    }

    fn take_parent(&mut self) -> Option<Arc<Folder>> {
        match &mut self.position {
            Position::Root(_) => None,
            Position::Child { parent, .. } => parent.take(),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let closed = self.tree.pool().open.remove(&self.id);
        drop(closed);
        // The default drop of a chain of a million folders would recurse a million calls deep.
        let mut parent = self.take_parent();
        while let Some(mut folder) = parent.and_then(Arc::into_inner) {
            parent = folder.take_parent();
        }
    }
}

//! Handles on the folders of a source, few at a time.
//!
//! A found file must be openable long after the walk has moved on, and a tree may be deeper than a process may have
//! descriptors or a path may have bytes. So a [`Folder`] knows its parent, its name and its identity, and its
//! descriptor lies in a small pool; one that has been closed meanwhile is found again from the nearest ancestor that
//! is still open, one component at a time, no link followed, each identity checked.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use super::trouble::Trouble;
use crate::member::MemberPath;

/// An open folder. Those who hold one keep it open, whatever the pool does.
pub(super) type Handle = Arc<OwnedFd>;

/// How many folders stay open beside those in use.
const KEPT_OPEN: usize = 128;

/// One source: where its root lies, and the pool of open folders.
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
    /// Makes the tree whose root lies at `path` and is called `name` in the archive.
    pub(super) fn new(path: &Path, name: &MemberPath) -> Self {
        Tree {
            path: path.to_owned(),
            name_length: name.as_bytes().len(),
            pool: Mutex::default(),
            next_id: AtomicU64::new(0),
        }
    }

    /// Returns where the root lies, as it was given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the part of a member's path that lies below the root; empty for the root.
    pub(super) fn relative<'p>(&self, member: &'p MemberPath) -> &'p [u8] {
        member.as_bytes().get(self.name_length + 1..).unwrap_or_default()
    }

    /// Opens `name` in `folder`, without a trace in its access time where that is permitted. Short of descriptors, it
    /// closes the folders of the pool and tries again.
    pub(super) fn open_at(&self, folder: impl AsFd, name: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd, Errno> {
        let folder = folder.as_fd();
        match open_quietly(folder, name, flags) {
            Err(Errno::MFILE | Errno::NFILE) => {
                drop(std::mem::take(&mut self.pool().open));
                open_quietly(folder, name, flags)
            }
            result => result,
        }
    }

    /// Opens the root, through links.
    pub(super) fn open_root(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_at(CWD, self.path.as_path(), flags)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // The map is whole between any two of its calls, so a panic elsewhere does not spoil it.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self, id: u64) -> Option<Handle> {
        let mut pool = self.pool();
        pool.uses += 1;
        let now = pool.uses;
        let (handle, used) = pool.open.get_mut(&id)?;
        *used = now;
        Some(handle.clone())
    }

    fn keep(&self, id: u64, handle: &Handle) {
        let mut pool = self.pool();
        pool.uses += 1;
        let now = pool.uses;
        let mut closed = None;
        if pool.open.len() >= KEPT_OPEN {
            let oldest = pool.open.iter().min_by_key(|(_, (_, used))| *used).map(|(&id, _)| id);
            closed = oldest.and_then(|id| pool.open.remove(&id));
        }
        pool.open.insert(id, (handle.clone(), now));
        drop(pool);
        // Closing may take its time on a network file system: not under the lock.
        drop(closed);
    }
}

/// O_NOATIME is for owners and root only, and the kernel says so with EPERM.
fn open_quietly(folder: BorrowedFd, name: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd, Errno> {
    match retry_on_intr(|| openat(folder, name, flags | OFlags::NOATIME, Mode::empty())) {
        Err(Errno::PERM) => retry_on_intr(|| openat(folder, name, flags, Mode::empty())),
        result => result,
    }
}

/// A folder of the source that was listed.
#[derive(Debug)]
pub(super) struct Folder {
    tree: Arc<Tree>,
    id: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The root: its handle stays open, so the way down always has a beginning.
    Root(Handle),
    Beneath {
        parent: Option<Arc<Folder>>,
        name: CString,
        device: u64,
        inode: u64,
    },
}

impl Folder {
    /// Makes the root of `tree`.
    pub(super) fn root(tree: &Arc<Tree>, handle: OwnedFd) -> Arc<Self> {
        Self::new(tree, Place::Root(Arc::new(handle)))
    }

    /// Makes the folder `name` in `parent`, which has been opened and has this identity.
    pub(super) fn beneath(parent: &Arc<Self>, name: CString, handle: &Handle, device: u64, inode: u64) -> Arc<Self> {
        let place = Place::Beneath { parent: Some(parent.clone()), name, device, inode };
        let folder = Self::new(&parent.tree, place);
        folder.tree.keep(folder.id, handle);
        folder
    }

    fn new(tree: &Arc<Tree>, place: Place) -> Arc<Self> {
        let id = tree.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Folder { tree: tree.clone(), id, place })
    }

    /// Returns the tree it belongs to.
    pub(super) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Returns a handle that serves to look names up in it, opening it again where it has been closed.
    pub(super) fn handle(&self) -> Result<Handle, Trouble> {
        let mut closed: Vec<&Folder> = Vec::new();
        let mut folder = self;
        let mut handle = loop {
            match &folder.place {
                Place::Root(handle) => break handle.clone(),
                Place::Beneath { parent, .. } => {
                    if let Some(handle) = folder.tree.kept(folder.id) {
                        break handle;
                    }
                    closed.push(folder);
                    folder = parent.as_deref().ok_or_else(|| Trouble::from(Errno::NOENT))?;
                }
            }
        };
        while let Some(folder) = closed.pop() {
            handle = folder.open_again(&handle)?;
        }
        Ok(handle)
    }

    fn open_again(&self, parent: &OwnedFd) -> Result<Handle, Trouble> {
        let Place::Beneath { name, device, inode, .. } = &self.place else {
            return self.handle();
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = Arc::new(self.tree.open_at(parent, name.as_c_str(), flags)?);
        let stat = fstat(&handle)?;
        if (stat.st_dev, stat.st_ino) != (*device, *inode) {
            return Err(Trouble::replaced("a folder above it was replaced by another"));
        }
        self.tree.keep(self.id, &handle);
        Ok(handle)
    }

    fn take_parent(&mut self) -> Option<Arc<Folder>> {
        match &mut self.place {
            Place::Root(_) => None,
            Place::Beneath { parent, .. } => parent.take(),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let closed = self.tree.pool().open.remove(&self.id);
        drop(closed);
        // Left to itself, a chain of a million folders would drop a million calls deep.
        let mut parent = self.take_parent();
        while let Some(mut folder) = parent.and_then(Arc::into_inner) {
            parent = folder.take_parent();
        }
    }
}

//! The walk through a source: depth first, names in byte order, which is the order of members in an archive.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags, fstat, statat};
use rustix::io::{Errno, pread};

use super::filter::Filter;
use super::folder::{Folder, Handle, Tree};
use super::found::{Place, SourceEntry, Stat, fs_path, member_kind};
use super::listing::{Lister, Listing};
use super::own::Own;
use super::trouble::Trouble;
use crate::error::{Error, Result};
use crate::member::{Extent, MemberKind, MemberPath};
use crate::progress::Problem;
use crate::schedule::Excludes;

/// What makes a `CACHEDIR.TAG` one.
const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// What to walk and what to leave out.
#[derive(Clone, Copy, Debug)]
pub struct WalkOptions<'a> {
    /// The source: a folder or a file, or a symbolic link to one.
    pub root: &'a Path,
    /// What the root is called in the archive.
    pub root_name: &'a MemberPath,
    /// The schedule's exclusions.
    pub excludes: &'a Excludes,
    /// The lines of the exclude files it names, already read.
    pub patterns: &'a [String],
    /// The program's own files and folders, left out and told whatever the way to them.
    pub own_paths: &'a [PathBuf],
}

/// What a walk left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalkSummary {
    /// Sockets, which archives do not hold.
    pub sockets: u64,
    /// The program's own files and folders.
    pub own_paths_skipped: Vec<PathBuf>,
    /// What the exclusions left out, a folder with all that is in it counting once.
    pub excluded: u64,
}

/// Visits everything in the source in the order of members: byte order of path components, a folder before what it
/// holds. Trouble with single paths goes to `trouble` and the walk goes on; a `Break` from `visit` ends it early.
///
/// Errors: `NotFound` if the root is missing; `Failed` if it cannot be read, is a socket, or lies in a folder of the
/// program's own; `Usage` for an invalid glob.
pub fn walk(
    options: &WalkOptions,
    visit: &mut dyn FnMut(SourceEntry) -> ControlFlow<()>,
    trouble: &mut dyn FnMut(Problem),
) -> Result<WalkSummary> {
    let filter = Filter::new(options.root, options.excludes, options.patterns)?;
    let own = Own::new(options.root, options.own_paths);
    if let Some(around) = own.around(options.root) {
        let (root, around) = (options.root.display(), around.display());
        return Err(Error::failed(format!("the source {root} belongs to the program's own {around}"))
            .hint("archives cannot hold themselves, the database or the logs: name another source"));
    }
    let tree = Arc::new(Tree::new(options.root, options.root_name));
    let root = find_root(&tree, options.root_name)?;
    let mut walker = Walker {
        one_device: options.excludes.one_file_system.then_some(root.stat.device),
        tree,
        filter,
        own,
        lister: Lister::new(),
        levels: Vec::new(),
        path: options.root_name.clone(),
        depth: 0,
        summary: WalkSummary::default(),
        visit,
        trouble,
    };
    // A walk ended by its visitor is no failure.
    let _ended_early = walker.start(root)?;
    Ok(walker.summary)
}

/// Counts what an archive of the source would hold, without reading any content: the content of a file once, however
/// many names it has. Trouble with single paths is passed
/// over here; the run tells it. Errors: as [`walk`].
pub fn scan(options: &WalkOptions) -> Result<Extent> {
    let mut totals = Extent::default();
    let mut seen = HashSet::new();
    let mut count = |found: SourceEntry| {
        totals.members += 1;
        let is_first = found.stat.links < 2 || seen.insert((found.stat.device, found.stat.inode));
        if found.kind == MemberKind::File {
            totals.files += 1;
            totals.content_bytes += if is_first { found.stat.size } else { 0 };
        }
        ControlFlow::Continue(())
    };
    walk(options, &mut count, &mut |_| {})?;
    Ok(totals)
}

fn find_root(tree: &Arc<Tree>, name: &MemberPath) -> Result<SourceEntry> {
    let place = Place::Root(tree.clone());
    let (kind, stat) = place.stat(name).map_err(|trouble| {
        let reason = trouble.reason();
        let path = tree.path().display();
        if trouble.is_absence() {
            Error::not_found(format!("the source {path} does not exist: {reason}"))
                .hint("check the path, and whether the disk it lies on is mounted")
        } else {
            unreadable(tree, reason)
        }
    })?;
    let kind = member_kind(kind).ok_or_else(|| {
        Error::failed(format!("the source {} is a socket", tree.path().display())).hint("archives do not hold sockets")
    })?;
    Ok(SourceEntry { path: name.clone(), kind, stat, place })
}

fn unreadable(tree: &Tree, reason: &str) -> Error {
    Error::failed(format!("cannot read the source {}: {reason}", tree.path().display()))
        .hint("the service needs the right to read it")
}

struct Walker<'w> {
    tree: Arc<Tree>,
    filter: Filter,
    own: Own,
    /// The device to stay on, if the walk is to stay on one.
    one_device: Option<u64>,
    lister: Lister,
    levels: Vec<Level>,
    /// The folder whose names are being visited, and how many folders it lies below the root.
    path: MemberPath,
    depth: usize,
    summary: WalkSummary,
    visit: &'w mut dyn FnMut(SourceEntry) -> ControlFlow<()>,
    trouble: &'w mut dyn FnMut(Problem),
}

/// A folder whose names have not all been visited.
struct Level {
    folder: Arc<Folder>,
    listing: Listing,
    depth: usize,
}

impl Walker<'_> {
    fn start(&mut self, root: SourceEntry) -> Result<ControlFlow<()>> {
        let fail = |problem: &Problem| unreadable(&self.tree, &problem.reason);
        match root.kind {
            MemberKind::Folder => {
                let opened = self.open_folder(&root).map_err(|trouble| unreadable(&self.tree, trouble.reason()))?;
                let (listing, failure) = self.lister.list(&opened.handle);
                if let Some(errno) = failure {
                    return Err(unreadable(&self.tree, &io::Error::from(errno).to_string()));
                }
                if (self.visit)(root).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                let listing = self.thin_out(&opened.handle, listing);
                let folder = Folder::root(&self.tree, opened.handle);
                self.levels.push(Level { folder, listing, depth: 0 });
                Ok(self.visit_all())
            }
            MemberKind::File => {
                root.open().map_err(|problem| fail(&problem))?;
                Ok((self.visit)(root))
            }
            _ => Ok((self.visit)(root)),
        }
    }

    fn visit_all(&mut self) -> ControlFlow<()> {
        while let Some(level) = self.levels.last_mut() {
            while self.depth > level.depth {
                // The depth says there is a parent.
                let Some(parent) = self.path.parent() else { break };
                self.path = parent;
                self.depth -= 1;
            }
            let Some((name, kind)) = level.listing.next() else {
                self.levels.pop();
                continue;
            };
            let Ok(path) = self.path.child(OsStr::from_bytes(name)) else { continue };
            let folder = level.folder.clone();
            let Some(found) = self.look_at(path, kind, folder) else { continue };
            let is_folder = found.kind == MemberKind::Folder;
            let inside = is_folder.then(|| found.clone());
            (self.visit)(found)?;
            if let Some(folder) = inside {
                self.descend(&folder);
            }
        }
        ControlFlow::Continue(())
    }

    /// Decides whether one name is to be visited.
    fn look_at(&mut self, path: MemberPath, listed: FileType, folder: Arc<Folder>) -> Option<SourceEntry> {
        let relative = self.tree.relative(&path);
        if self.own.is_at(relative) {
            self.summary.own_paths_skipped.push(fs_path(&self.tree, &path));
            return None;
        }
        // Most file systems say in the listing what a name is; what they say is left out costs no further call.
        if listed != FileType::Unknown && self.is_left_out(relative, listed) {
            return None;
        }
        let place = Place::In(folder);
        let (kind, stat) = match place.stat(&path) {
            Ok(answer) => answer,
            Err(trouble) => {
                (self.trouble)(trouble.at(&fs_path(&self.tree, &path)));
                return None;
            }
        };
        if listed != kind && self.is_left_out(relative, kind) {
            return None;
        }
        if self.own.is(&stat) {
            self.summary.own_paths_skipped.push(fs_path(&self.tree, &path));
            return None;
        }
        match member_kind(kind) {
            Some(kind) => Some(SourceEntry { path, kind, stat, place }),
            None => {
                (self.trouble)(Trouble::skipped("its kind is unknown").at(&fs_path(&self.tree, &path)));
                None
            }
        }
    }

    fn is_left_out(&mut self, relative: &[u8], kind: FileType) -> bool {
        if self.filter.excludes(relative, kind == FileType::Directory) {
            self.summary.excluded += 1;
            return true;
        }
        if kind == FileType::Socket {
            self.summary.sockets += 1;
            return true;
        }
        false
    }

    fn descend(&mut self, found: &SourceEntry) {
        if self.one_device.is_some_and(|device| device != found.stat.device) {
            return;
        }
        if let Err(trouble) = self.try_descend(found) {
            (self.trouble)(trouble.at(&found.fs_path()));
        }
    }

    fn try_descend(&mut self, found: &SourceEntry) -> std::result::Result<(), Trouble> {
        let opened = self.open_folder(found)?;
        if self.one_device.is_some_and(|device| device != opened.stat.device) {
            return Ok(());
        }
        let Place::In(parent) = &found.place else { return Ok(()) };
        let (listing, failure) = self.lister.list(&opened.handle);
        let listing = self.thin_out(&opened.handle, listing);
        if !listing.is_done() {
            let name = CString::new(found.path.file_name()).map_err(|_| Errno::INVAL)?;
            let handle: Handle = Arc::new(opened.handle);
            let folder = Folder::beneath(parent, name, &handle, opened.stat.device, opened.stat.inode);
            // A folder whose last name this was needs no way back: a chain of single folders takes up one level.
            self.levels.pop_if(|level| level.listing.is_done());
            self.path = found.path.clone();
            self.depth += 1;
            self.levels.push(Level { folder, listing, depth: self.depth });
        }
        failure.map_or(Ok(()), |errno| Err(errno.into()))
    }

    /// Opens a folder that was found, and makes sure it is that folder.
    fn open_folder(&self, found: &SourceEntry) -> std::result::Result<OpenedFolder, Trouble> {
        let handle = found.place.open(&found.path, OFlags::DIRECTORY)?;
        let (_, stat) = Stat::from_system(&fstat(&handle)?);
        // Opening may mount what belongs there (automounter, nested network exports): asked again, the name then is
        // what was opened, on another device.
        if !stat.is_same_file(&found.stat) {
            let was_mounted = stat.device != found.stat.device && found.place.stat(&found.path)?.1.is_same_file(&stat);
            if !was_mounted {
                return Err(Trouble::replaced("another folder has taken its place"));
            }
        }
        Ok(OpenedFolder { handle, stat })
    }

    /// Leaves out the content of a folder that says so itself.
    fn thin_out(&mut self, folder: &OwnedFd, mut listing: Listing) -> Listing {
        if self.filter.is_marked(|name| listing.contains(name)) {
            self.summary.excluded += listing.keep_only(None);
        } else if self.filter.caches && listing.contains(CACHE_TAG) && has_cache_signature(folder) {
            self.summary.excluded += listing.keep_only(Some(CACHE_TAG));
        }
        listing
    }
}

struct OpenedFolder {
    handle: OwnedFd,
    stat: Stat,
}

fn has_cache_signature(folder: &OwnedFd) -> bool {
    // Only a regular file counts, and nothing else may be opened.
    let is_file = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !statat(folder, CACHE_TAG, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_file) {
        return false;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut start = [0; CACHE_SIGNATURE.len()];
    let read = rustix::fs::openat(folder, CACHE_TAG, flags, rustix::fs::Mode::empty())
        .and_then(|tag| pread(&tag, &mut start, 0));
    read == Ok(start.len()) && start == *CACHE_SIGNATURE
}

//! The walk through a source: depth first, names in byte order, which is the order of members in an archive.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags, fstat, statat};
use rustix::io::{Errno, pread};

use super::entry::SourceEntry;
use super::file_system::{FileSystem, Times};
use super::filter::Filter;
use super::folder::{Folder, Handle, Tree};
use super::listing::{Lister, Listing};
use super::location::{Location, fs_path};
use super::own_files::OwnFiles;
use super::path_error::PathError;
use super::stat::Stat;
use crate::error::{Error, Result};
use crate::member::{Extent, MemberKind, MemberPath};
use crate::progress::Problem;
use crate::schedule::Excludes;

/// Name and signature of the tag of a cache folder, by the Cache Directory Tagging Specification.
const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// What to walk and what to exclude.
#[derive(Clone, Copy, Debug)]
pub struct WalkOptions<'a> {
    /// The source: a folder or a file, or a symbolic link to one.
    pub root: &'a Path,
    /// Name of the root in the archive.
    pub root_name: &'a MemberPath,
    /// The schedule's exclusions.
    pub excludes: &'a Excludes,
    /// The lines of the exclude files it names, already read.
    pub patterns: &'a [String],
    /// The program's own files and folders, skipped and reported by whatever path they are reached.
    pub own_paths: &'a [PathBuf],
    /// Each file system is synced before the walk lists a folder of it, see [`FileSystem`].
    pub syncs: bool,
}

/// What a walk skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalkSummary {
    /// Kinds of file systems among those entered whose times may not show changes.
    pub untrusted: BTreeSet<&'static str>,
    /// Sockets, which archives do not hold.
    pub sockets: u64,
    /// The program's own files and folders.
    pub own_paths_skipped: Vec<PathBuf>,
    /// Entries that were excluded; a folder with everything in it counts once.
    pub excluded: u64,
    /// Exclude patterns that matched nothing, as they were written.
    pub unmatched_patterns: Vec<String>,
}

/// Calls `visit` with every entry of the source in the order of members: byte order of path components, a folder before
/// its content. Errors of single paths are passed to `report` and do not stop the walk; a `Break` from `visit` does.
///
/// Errors: `NotFound` if the root does not exist; `Failed` if it cannot be read, is a socket, or lies in a folder of
/// the program's own; `Usage` for an invalid glob.
pub fn walk(
    options: &WalkOptions,
    visit: &mut dyn FnMut(SourceEntry) -> ControlFlow<()>,
    report: &mut dyn FnMut(Problem),
) -> Result<WalkSummary> {
    let filter = Filter::new(options.root, options.root_name, options.excludes, options.patterns)?;
    let own_files = OwnFiles::new(options.root, options.own_paths);
    if let Some(own) = own_files.ancestor_of(options.root) {
        let (root, own) = (options.root.display(), own.display());
        return Err(Error::failed(format!("the source {root} belongs to the program's own {own}"))
            .hint("archives cannot hold themselves, the database or the logs: name another source"));
    }
    let tree = Arc::new(Tree::new(options.root, options.root_name));
    let root = find_root(&tree, options.root_name)?;
    let mut walker = Walker {
        one_device: options.excludes.one_file_system.then_some(root.stat.device),
        tree,
        filter,
        own_files,
        syncs: options.syncs,
        file_systems: HashMap::new(),
        lister: Lister::new(),
        levels: Vec::new(),
        path: options.root_name.clone(),
        depth: 0,
        summary: WalkSummary::default(),
        visit,
        report,
    };
    // A walk that its visitor ended early is not an error.
    let _ended_early = walker.start(root)?;
    Ok(WalkSummary { unmatched_patterns: walker.filter.into_unmatched(), ..walker.summary })
}

/// Sums up how much an archive of the entries of a walk would hold.
#[derive(Debug, Default)]
pub struct ExtentCounter {
    /// The sum so far.
    pub extent: Extent,
    /// Files with several names of which one was counted.
    linked: HashSet<(u64, u64)>,
}

impl ExtentCounter {
    /// Adds the next entry. Returns the bytes of content that it adds: the content of a file counts once, however many
    /// names it has.
    pub fn add(&mut self, entry: &SourceEntry) -> u64 {
        let stat = &entry.stat;
        let is_first_name = stat.links < 2 || self.linked.insert((stat.device, stat.inode));
        let is_file = entry.kind == MemberKind::File;
        let size = if is_file && is_first_name { stat.size } else { 0 };
        self.extent.members += 1;
        self.extent.files += u64::from(is_file);
        self.extent.content_bytes += size;
        size
    }
}

/// Returns how much an archive of the source would hold, without reading any content. `go_on` is asked after each
/// entry; the scan ends early if it returns false. Errors of single paths are ignored here; the run reports them.
/// Errors: as [`walk`].
pub fn scan(options: &WalkOptions, go_on: &mut dyn FnMut() -> bool) -> Result<Extent> {
    let mut counter = ExtentCounter::default();
    let mut count = |entry: SourceEntry| {
        counter.add(&entry);
        if go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    walk(options, &mut count, &mut |_| {})?;
    Ok(counter.extent)
}

fn find_root(tree: &Arc<Tree>, name: &MemberPath) -> Result<SourceEntry> {
    let location = Location::Root(tree.clone());
    let (kind, stat) = location.stat(name).map_err(|error| {
        let reason = error.reason();
        let path = tree.path().display();
        if error.is_not_found() {
            Error::not_found(format!("the source {path} does not exist: {reason}"))
                .hint("check the path, and whether the disk it lies on is mounted")
        } else {
            unreadable(tree, reason)
        }
    })?;
    let kind = MemberKind::of_file_type(kind).ok_or_else(|| {
        Error::failed(format!("the source {} is a socket", tree.path().display())).hint("archives do not hold sockets")
    })?;
    Ok(SourceEntry { path: name.clone(), kind, stat, file_system: FileSystem::unknown(), location })
}

fn unreadable(tree: &Tree, reason: &str) -> Error {
    Error::failed(format!("cannot read the source {}: {reason}", tree.path().display()))
        .hint("the service needs the right to read it")
}

struct Walker<'w> {
    tree: Arc<Tree>,
    filter: Filter,
    own_files: OwnFiles,
    /// The device to stay on, if the walk is limited to one file system.
    one_device: Option<u64>,
    syncs: bool,
    /// The file systems that were entered, by device.
    file_systems: HashMap<u64, FileSystem>,
    lister: Lister,
    levels: Vec<Level>,
    /// The folder whose names are being visited, and its depth below the root.
    path: MemberPath,
    depth: usize,
    summary: WalkSummary,
    visit: &'w mut dyn FnMut(SourceEntry) -> ControlFlow<()>,
    report: &'w mut dyn FnMut(Problem),
}

/// A folder of which not all names have been visited.
struct Level {
    folder: Arc<Folder>,
    listing: Listing,
    depth: usize,
    device: u64,
}

impl Walker<'_> {
    fn start(&mut self, root: SourceEntry) -> Result<ControlFlow<()>> {
        let fail = |problem: &Problem| unreadable(&self.tree, &problem.reason);
        match root.kind {
            MemberKind::Folder => {
                let opened = self.open_folder(&root).map_err(|error| unreadable(&self.tree, error.reason()))?;
                self.enter(opened.stat.device, &opened.handle);
                let (listing, failure) = self.lister.list(&opened.handle);
                if let Some(errno) = failure {
                    return Err(unreadable(&self.tree, &io::Error::from(errno).to_string()));
                }
                if (self.visit)(root).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                let listing = self.apply_markers(&opened.handle, listing);
                let folder = Folder::root(&self.tree, opened.handle);
                self.levels.push(Level { folder, listing, depth: 0, device: opened.stat.device });
                Ok(self.visit_all())
            }
            MemberKind::File => {
                let file = root.open().map_err(|problem| fail(&problem))?;
                let file_system = self.enter(root.stat.device, file.handle());
                Ok((self.visit)(SourceEntry { file_system, ..root }))
            }
            _ => Ok((self.visit)(root)),
        }
    }

    fn visit_all(&mut self) -> ControlFlow<()> {
        while let Some(level) = self.levels.last_mut() {
            while self.depth > level.depth {
                // A depth above zero means that there is a parent.
                let Some(parent) = self.path.parent() else { break };
                self.path = parent;
                self.depth -= 1;
            }
            let Some((name, kind)) = level.listing.next() else {
                self.levels.pop();
                continue;
            };
            let Ok(path) = self.path.child(OsStr::from_bytes(name)) else { continue };
            let (folder, device) = (level.folder.clone(), level.device);
            let Some(entry) = self.examine(path, kind, folder, device) else { continue };
            let is_folder = entry.kind == MemberKind::Folder;
            let to_enter = is_folder.then(|| entry.clone());
            (self.visit)(entry)?;
            if let Some(folder) = to_enter {
                self.descend(&folder);
            }
        }
        ControlFlow::Continue(())
    }

    /// Returns the entry of one name, or `None` if it is not to be visited.
    fn examine(&mut self, path: MemberPath, listed: FileType, folder: Arc<Folder>, device: u64) -> Option<SourceEntry> {
        let relative = self.tree.relative(&path);
        if self.own_files.contains_path(relative) {
            self.summary.own_paths_skipped.push(fs_path(&self.tree, &path));
            return None;
        }
        // Most file systems report the type of a name in the listing; a name excluded by that costs no further call.
        if listed != FileType::Unknown && self.skips(relative, listed) {
            return None;
        }
        let location = Location::In(folder);
        let (kind, stat) = match location.stat(&path) {
            Ok(answer) => answer,
            Err(error) => {
                (self.report)(error.at(&fs_path(&self.tree, &path)));
                return None;
            }
        };
        if listed != kind && self.skips(relative, kind) {
            return None;
        }
        if self.own_files.contains(&stat) {
            self.summary.own_paths_skipped.push(fs_path(&self.tree, &path));
            return None;
        }
        match MemberKind::of_file_type(kind) {
            Some(kind) => {
                // A file may be a mount point, too.
                let file_system = self.file_systems.get(&stat.device).filter(|_| stat.device == device);
                let file_system = file_system.copied().unwrap_or(FileSystem::unknown());
                Some(SourceEntry { path, kind, stat, file_system, location })
            }
            None => {
                (self.report)(PathError::skipped("its kind is unknown").at(&fs_path(&self.tree, &path)));
                None
            }
        }
    }

    /// Returns whether a name is excluded or a socket, and counts it then.
    fn skips(&mut self, relative: &[u8], kind: FileType) -> bool {
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

    /// Returns the facts of the file system of an open file or folder. Syncs it when it is entered for the first time.
    fn enter(&mut self, device: u64, handle: &OwnedFd) -> FileSystem {
        let syncs = self.syncs;
        let enter = || if syncs { FileSystem::sync(handle) } else { FileSystem::unknown() };
        let file_system = *self.file_systems.entry(device).or_insert_with(enter);
        if let Times::Unknown(kind) = file_system.times
            && syncs
        {
            self.summary.untrusted.insert(kind);
        }
        file_system
    }

    fn descend(&mut self, entry: &SourceEntry) {
        if self.one_device.is_some_and(|device| device != entry.stat.device) {
            return;
        }
        if let Err(error) = self.try_descend(entry) {
            (self.report)(error.at(&entry.fs_path()));
        }
    }

    fn try_descend(&mut self, entry: &SourceEntry) -> std::result::Result<(), PathError> {
        let opened = self.open_folder(entry)?;
        if self.one_device.is_some_and(|device| device != opened.stat.device) {
            return Ok(());
        }
        let Location::In(parent) = &entry.location else { return Ok(()) };
        self.enter(opened.stat.device, &opened.handle);
        let (listing, failure) = self.lister.list(&opened.handle);
        let listing = self.apply_markers(&opened.handle, listing);
        if !listing.is_done() {
            let name = CString::new(entry.path.file_name()).map_err(|_| Errno::INVAL)?;
            let handle: Handle = Arc::new(opened.handle);
            let folder = Folder::child(parent, name, &handle, opened.stat.device, opened.stat.inode);
            // If this was the last name of its folder, the walk does not return there: a chain of single folders takes
            // one level.
            self.levels.pop_if(|level| level.listing.is_done());
            self.path = entry.path.clone();
            self.depth += 1;
            self.levels.push(Level { folder, listing, depth: self.depth, device: opened.stat.device });
        }
        failure.map_or(Ok(()), |errno| Err(errno.into()))
    }

    /// Opens a folder that was listed, and checks that it is the same folder.
    fn open_folder(&self, entry: &SourceEntry) -> std::result::Result<OpenedFolder, PathError> {
        let handle = entry.location.open(&entry.path, OFlags::DIRECTORY)?;
        let (_, stat) = Stat::from_system(&fstat(&handle)?);
        // Opening may mount a file system (automounter, nested network exports): then a second `stat` of the name
        // returns the folder that was opened, on another device.
        if !stat.is_same_file(&entry.stat) {
            let was_mounted =
                stat.device != entry.stat.device && entry.location.stat(&entry.path)?.1.is_same_file(&stat);
            if !was_mounted {
                return Err(PathError::replaced("another folder has taken its place"));
            }
        }
        Ok(OpenedFolder { handle, stat })
    }

    /// Excludes the content of a folder that holds a marker: a name of `--exclude-if-present`, or a cache tag.
    fn apply_markers(&mut self, folder: &OwnedFd, mut listing: Listing) -> Listing {
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
    // Only a regular file counts, and no other kind may be opened.
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

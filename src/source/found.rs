//! What a walk finds, to be opened and read later, from any thread.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, CWD, FileType, OFlags, fstat, major, minor, readlinkat, statat};
use rustix::io::Errno;

use super::attributes;
use super::folder::{Folder, Tree};
use super::open_file::OpenFile;
use super::trouble::Trouble;
use crate::member::{FileTime, MemberKind, MemberPath, Xattrs};
use crate::progress::Problem;

/// What the system says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Bytes, as the system counts them: of a file its content, of a link its target, of a folder nothing of use.
    pub size: u64,
    /// Bytes that take up room on the disk: less than `size` where a file has holes or its file system compresses.
    pub allocated: u64,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// When the content changed last.
    pub modified: FileTime,
    /// When content or attributes changed last; nobody but the system sets it.
    pub changed: FileTime,
    /// Number of the file system it lies on.
    pub device: u64,
    /// Number of the file there.
    pub inode: u64,
    /// How many names it has.
    pub links: u64,
    /// Major and minor number of a device.
    pub device_number: Option<(u32, u32)>,
}

impl Stat {
    /// Translates the system's answer; the kind is missing for a socket and for what no archive knows.
    pub(super) fn from_system(stat: &rustix::fs::Stat) -> (FileType, Self) {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let time = |seconds, nanoseconds| FileTime { seconds, nanoseconds };
        let stat = Stat {
            size: stat.st_size as u64,
            allocated: stat.st_blocks as u64 * 512,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: time(stat.st_mtime, stat.st_mtime_nsec as u32),
            changed: time(stat.st_ctime, stat.st_ctime_nsec as u32),
            device: stat.st_dev,
            inode: stat.st_ino,
            links: stat.st_nlink,
            device_number: is_device.then(|| (major(stat.st_rdev), minor(stat.st_rdev))),
        };
        (kind, stat)
    }

    /// Says whether both are the same file.
    pub(super) fn is_same_file(&self, other: &Stat) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Returns the kind of member that archives hold a file of this type as; none for sockets and the unknown.
pub(super) fn member_kind(kind: FileType) -> Option<MemberKind> {
    match kind {
        FileType::RegularFile => Some(MemberKind::File),
        FileType::Directory => Some(MemberKind::Folder),
        FileType::Symlink => Some(MemberKind::Symlink),
        FileType::Fifo => Some(MemberKind::Fifo),
        FileType::CharacterDevice => Some(MemberKind::CharDevice),
        FileType::BlockDevice => Some(MemberKind::BlockDevice),
        FileType::Socket | FileType::Unknown => None,
    }
}

/// One thing found in the source. It holds no descriptor; it can be opened from any thread, also when the walk has long
/// moved on.
#[derive(Clone, Debug)]
pub struct SourceEntry {
    /// Its name in the archive.
    pub path: MemberPath,
    /// What it is. Never a hard link: which name carries the data is not decided here.
    pub kind: MemberKind,
    /// What the system said of it when it was listed.
    pub stat: Stat,
    pub(super) place: Place,
}

/// Where a name is looked up.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The root of the source, by its path and through links.
    Root(Arc<Tree>),
    /// In this folder, by the last component of the member's path.
    In(Arc<Folder>),
}

impl Place {
    pub(super) fn tree(&self) -> &Arc<Tree> {
        match self {
            Place::Root(tree) => tree,
            Place::In(folder) => folder.tree(),
        }
    }

    /// Asks the system about the last component of `path`, without following it.
    pub(super) fn stat(&self, path: &MemberPath) -> Result<(FileType, Stat), Trouble> {
        let stat = match self {
            Place::Root(tree) => statat(CWD, tree.path(), AtFlags::empty())?,
            Place::In(folder) => statat(&*folder.handle()?, path.file_name(), AtFlags::SYMLINK_NOFOLLOW)?,
        };
        Ok(Stat::from_system(&stat))
    }

    /// Opens the last component of `path` without following it, hanging on it or leaving a trace in its access time.
    pub(super) fn open(&self, path: &MemberPath, flags: OFlags) -> Result<OwnedFd, Trouble> {
        let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| -> Result<OwnedFd, Trouble> {
            match self {
                Place::Root(tree) => Ok(tree.open_root(flags)?),
                Place::In(folder) => {
                    let flags = flags | OFlags::NOFOLLOW;
                    Ok(folder.tree().open_at(&*folder.handle()?, path.file_name(), flags)?)
                }
            }
        };
        match open(flags) {
            Err(trouble) if trouble.is_refused_lease() && self.stat(path)?.0 == FileType::RegularFile => {
                // Another program holds a lease (a file server does) and has just been told to give it up. Only an
                // open that waits gets through; the kernel ends the wait after 45 seconds at most.
                open(flags.difference(OFlags::NONBLOCK))
            }
            result => result,
        }
    }
}

impl SourceEntry {
    /// Returns where it lies in the file system: below the root as it was given.
    pub fn fs_path(&self) -> PathBuf {
        fs_path(self.place.tree(), &self.path)
    }

    /// Opens a regular file for reading; no other kind is ever opened.
    ///
    /// Errors: `Vanished`; `Replaced` if the name is now a link, another file or another kind (see
    /// [`SourceEntry::stat_again`]); `Unreadable`.
    pub fn open(&self) -> Result<OpenFile, Problem> {
        self.try_open().map_err(|trouble| trouble.at(&self.fs_path()))
    }

    fn try_open(&self) -> Result<OpenFile, Trouble> {
        if self.kind != MemberKind::File {
            return Err(Trouble::skipped("only regular files are opened"));
        }
        let file = self.place.open(&self.path, OFlags::empty())?;
        let (kind, stat) = Stat::from_system(&fstat(&file)?);
        if kind != FileType::RegularFile {
            return Err(Trouble::replaced("it is no longer a regular file"));
        }
        if !stat.is_same_file(&self.stat) {
            return Err(Trouble::replaced("another file has taken its place"));
        }
        Ok(OpenFile::new(file, stat, self.clone()))
    }

    /// Looks its name up once more, for one that was replaced: programs save a file by renaming a new one over it.
    /// The problem is `Replaced` if archives do not hold what stands there now.
    pub fn stat_again(&self) -> Result<SourceEntry, Problem> {
        let look = || {
            let (kind, stat) = self.place.stat(&self.path)?;
            let kind = member_kind(kind).ok_or_else(|| Trouble::replaced("it has become a socket"))?;
            Ok(SourceEntry { path: self.path.clone(), kind, stat, place: self.place.clone() })
        };
        look().map_err(|trouble: Trouble| trouble.at(&self.fs_path()))
    }

    /// Returns the target of a symbolic link, as it stands.
    pub fn read_link(&self) -> Result<Vec<u8>, Problem> {
        let read = || match &self.place {
            Place::Root(_) => Err(Trouble::skipped("the root of a source is never a link")),
            Place::In(folder) => match readlinkat(&*folder.handle()?, self.path.file_name(), Vec::new()) {
                Ok(target) => Ok(target.into_bytes()),
                Err(Errno::INVAL) => Err(Trouble::replaced("it is no longer a symbolic link")),
                Err(errno) => Err(errno.into()),
            },
        };
        read().map_err(|trouble| trouble.at(&self.fs_path()))
    }

    /// Reads its extended attributes without opening it; of a link those of the link itself.
    pub fn xattrs(&self) -> Result<Xattrs, Problem> {
        self.try_xattrs().map_err(|trouble| trouble.at(&self.fs_path()))
    }

    fn try_xattrs(&self) -> Result<Xattrs, Trouble> {
        let xattrs = match &self.place {
            Place::Root(tree) => attributes::of_path_followed(tree.path())?,
            Place::In(folder) => {
                let handle = folder.handle()?;
                attributes::of_path(&path_in(&handle, self))?
            }
        };
        if !xattrs.is_empty() {
            // The number of a file that has gone may be the new one's, so the kind is compared too.
            let (kind, stat) = self.place.stat(&self.path)?;
            if !stat.is_same_file(&self.stat) || member_kind(kind) != Some(self.kind) {
                return Err(Trouble::replaced("something else has taken its place"));
            }
        }
        Ok(xattrs)
    }
}

/// Returns where a member lies in the file system.
pub(super) fn fs_path(tree: &Tree, path: &MemberPath) -> PathBuf {
    match tree.relative(path) {
        b"" => tree.path().to_owned(),
        relative => tree.path().join(OsStr::from_bytes(relative)),
    }
}

/// There is no call for attributes relative to a folder, and a fifo must not be opened for them; but a path through the
/// process's own descriptors begins at the folder and has no link in it. Without `/proc` the whole path has to do.
fn path_in(folder: &OwnedFd, found: &SourceEntry) -> PathBuf {
    static HAS_PROC: OnceLock<bool> = OnceLock::new();
    if *HAS_PROC.get_or_init(|| fs::exists("/proc/self/fd").unwrap_or(false)) {
        let name = OsStr::from_bytes(found.path.file_name());
        Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
    } else {
        found.fs_path()
    }
}

//! Making files beneath a target folder, and never outside it, whatever an archive or another process does (I11).
//!
//! Folders are only ever opened relative to an open folder and never through a symbolic link: by `openat2` where the
//! kernel has it, else component by component. Everything is made under a random name in its own folder and renamed,
//! so that nothing that stands there is ever written into.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps,
    XattrFlags, flock,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::durable::{is_temporary_name, random_name};
use crate::error::{Error, Result};
use crate::member::{FileTime, Member, MemberKind, MemberPath};

/// Mode of a folder that is being filled. Nobody else gets in, and a restore that is run again knows it by this.
const UNFINISHED: u32 = 0o1700;

/// What a new file or folder inherits from a folder's default ACL.
const INHERITED_ACCESS: &str = "system.posix_acl_access";

/// The longest path that is given to the kernel in one piece.
const LONGEST_AT_ONCE: usize = 3000;

/// The folder that everything is restored into.
#[derive(Debug)]
pub struct ConfinedFolder {
    root: Arc<OwnedFd>,
    path: PathBuf,
    without_openat2: AtomicBool,
}

impl ConfinedFolder {
    /// Opens the folder at `path`, which must be there.
    pub fn open(path: &Path) -> Result<ConfinedFolder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|e| Error::io("open the target", path)(e.into()))?;
        Ok(ConfinedFolder { root: Arc::new(root), path: path.to_owned(), without_openat2: AtomicBool::new(false) })
    }

    /// Opens folders component by component, as on kernels without `openat2`.
    #[must_use]
    pub fn without_openat2(self) -> ConfinedFolder {
        self.without_openat2.store(true, Ordering::Relaxed);
        self
    }

    /// Returns the target folder itself.
    pub fn root(&self) -> Arc<OwnedFd> {
        self.root.clone()
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a folder beneath the target. Errors: `ELOOP` or `ENOTDIR` where something else stands in the way.
    pub fn folder(&self, path: &MemberPath) -> io::Result<OwnedFd> {
        Ok(self.folder_in(self.root.as_fd(), path.as_bytes())?)
    }

    /// Opens the folder at `path`, relative and without `..`, in an open folder beneath the target.
    pub fn folder_in(&self, folder: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !self.without_openat2.load(Ordering::Relaxed) && path.len() <= LONGEST_AT_ONCE {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(folder, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
                // Old kernels and strict sandboxes do not have it; `EAGAIN` is a rename somewhere at this moment.
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

    /// Waits until everything written to the target's file system is on disk.
    pub fn sync(&self) -> Result<()> {
        match rustix::fs::syncfs(&*self.root) {
            Err(Errno::NOSYS) => Ok(()),
            result => result.map_err(|e| Error::io("sync", &self.path)(e.into())),
        }
    }
}

/// Returns what stands under a name, a link itself and not what it leads to; nothing if the name is free.
pub fn stat_entry(folder: impl AsFd, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Returns the kind of member that such a file would be; none for a socket.
pub fn kind_of(stat: &Stat) -> Option<MemberKind> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(MemberKind::File),
        FileType::Directory => Some(MemberKind::Folder),
        FileType::Symlink => Some(MemberKind::Symlink),
        FileType::Fifo => Some(MemberKind::Fifo),
        FileType::CharacterDevice => Some(MemberKind::CharDevice),
        FileType::BlockDevice => Some(MemberKind::BlockDevice),
        _ => None,
    }
}

/// Returns when a file changed last.
pub fn modified_of(stat: &Stat) -> FileTime {
    FileTime { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// Makes a folder that nobody else gets into until it is finished. Errors: `AlreadyExists`.
pub fn make_folder(folder: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(folder, OsStr::from_bytes(name), Mode::from_raw_mode(UNFINISHED))?)
}

/// Says whether a folder was left by a restore that was cut off before it had the mode `last`.
pub fn is_unfinished(stat: &Stat, last: u32) -> bool {
    let (mode, user) = (stat.st_mode & 0o7777, rustix::process::geteuid());
    // It gets its other bits before the mark goes: in the middle they are those of an ACL, in front they may be ours.
    let is_marked = mode & !last & 0o1000 != 0 && (mode ^ last) & 0o007 == 0;
    (mode == UNFINISHED || is_marked) && (user.is_root() || stat.st_uid == user.as_raw())
}

/// Holds an open folder for making something in it, and removes what a restore that was cut off left there under
/// temporary names, unless somebody else holds it.
pub fn lock_folder(folder: &OwnedFd) -> io::Result<()> {
    if flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
        remove_orphaned_files(folder)?;
    }
    // A file system without locks is used without.
    let _ = flock(folder, FlockOperation::NonBlockingLockShared);
    Ok(())
}

fn remove_orphaned_files(folder: &OwnedFd) -> io::Result<()> {
    let mut left = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        if is_temporary_name(&entry.file_name().to_string_lossy()) {
            left.push(entry.file_name().to_owned());
        }
    }
    for name in &left {
        match rustix::fs::unlinkat(folder, name.as_c_str(), AtFlags::empty()) {
            // We make none that are folders.
            Ok(()) | Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes what stands under a name; of folders only empty ones.
pub fn remove(folder: impl AsFd, name: &[u8], is_folder: bool) -> io::Result<()> {
    let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    Ok(rustix::fs::unlinkat(folder, OsStr::from_bytes(name), flags)?)
}

/// Something made under a temporary name; removed when dropped unless placed.
#[derive(Debug)]
#[must_use = "what is not placed is removed when dropped"]
pub struct NewEntry {
    folder: Arc<OwnedFd>,
    temporary: Option<String>,
}

impl NewEntry {
    fn under_free_name(
        folder: &Arc<OwnedFd>,
        mut make: impl FnMut(&str) -> rustix::io::Result<()>,
    ) -> io::Result<NewEntry> {
        loop {
            let name = random_name().map_err(|e| io::Error::other(e.to_string()))?;
            match make(&name) {
                Ok(()) => return Ok(NewEntry { folder: folder.clone(), temporary: Some(name) }),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Makes an empty file and opens it for writing.
    pub fn file(folder: &Arc<OwnedFd>) -> io::Result<(NewEntry, File)> {
        let mut opened = None;
        let made = NewEntry::under_free_name(folder, |name| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            opened = Some(rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600))?);
            Ok(())
        })?;
        match opened {
            Some(file) => Ok((made, File::from(file))),
            None => Err(io::Error::other("a file was made and not opened")),
        }
    }

    /// Makes a symbolic link, a fifo or a device, with its owner, mode and time.
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
        let target = OsStr::from_bytes(member.link_target.as_deref().unwrap_or_default());
        let (major, minor) = member.device_number.unwrap_or((0, 0));
        let made = NewEntry::under_free_name(folder, |name| match kind {
            FileType::Symlink => rustix::fs::symlinkat(target, folder, name),
            _ => {
                let mode = Mode::from_raw_mode(member.mode & 0o777);
                rustix::fs::mknodat(folder, name, kind, mode, rustix::fs::makedev(major, minor))
            }
        })?;
        let name = made.temporary.as_deref().unwrap_or_default();
        let mut loss = MetadataLoss::default();
        if privileges.is_root || member.gid != rustix::process::getegid().as_raw() || member.uid != privileges.uid {
            let owner = if privileges.is_root { valid_uid(member.uid) } else { None };
            let chown = rustix::fs::chownat(folder, name, owner, valid_gid(member.gid), AtFlags::SYMLINK_NOFOLLOW);
            loss.owner =
                is_refused(chown)? || member.uid == u32::MAX || (!privileges.is_root && member.uid != privileges.uid);
        }
        if kind != FileType::Symlink || !member.xattrs.is_empty() {
            apply_special_metadata(folder, name, kind, member, privileges, &mut loss)?;
        }
        rustix::fs::utimensat(folder, name, &times(member.modified), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((made, loss))
    }

    /// Makes a further name of what stands at `name` in the folder `of`, a link itself and not what it leads to.
    pub fn hard_link(folder: &Arc<OwnedFd>, of: impl AsFd, name: &[u8]) -> io::Result<NewEntry> {
        let name = OsStr::from_bytes(name);
        NewEntry::under_free_name(folder, |temporary| {
            rustix::fs::linkat(of.as_fd(), name, folder, temporary, AtFlags::empty())
        })
    }

    /// Gives it its name. Without `replace` the name must be free, else the error is `AlreadyExists`.
    pub fn rename_into_place(mut self, name: &[u8], replace: bool) -> io::Result<()> {
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        let result = rename(&self.folder, &temporary, OsStr::from_bytes(name), replace);
        // A rename between two names of one file does nothing and leaves both.
        let left = result.is_err() || replace && matches!(stat_entry(&self.folder, temporary.as_bytes()), Ok(Some(_)));
        if left {
            self.temporary = Some(temporary);
        }
        Ok(result?)
    }
}

impl Drop for NewEntry {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            // Nothing can be done about a failure here; a restore that is run again removes it.
            let _ = rustix::fs::unlinkat(&*self.folder, name.as_str(), AtFlags::empty());
        }
    }
}

fn rename(folder: &OwnedFd, from: &str, to: &OsStr, replace: bool) -> rustix::io::Result<()> {
    if replace {
        return rustix::fs::renameat(folder, from, folder, to);
    }
    match rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
        // The file system does not know the flag; a link never replaces.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(folder, from, folder, to, AtFlags::empty())?;
            rustix::fs::unlinkat(folder, from, AtFlags::empty())
        }
        result => result,
    }
}

/// What this process may do.
#[derive(Clone, Copy, Debug)]
pub struct Privileges {
    /// It may give files to others.
    pub is_root: bool,
    /// Its user.
    pub uid: u32,
    /// Files get their setuid and setgid bits and their capabilities back.
    pub setuid: bool,
}

impl Privileges {
    /// Asks the system.
    pub fn of_process(setuid: bool) -> Privileges {
        let user = rustix::process::geteuid();
        Privileges { is_root: user.is_root(), uid: user.as_raw(), setuid }
    }
}

/// What of a member could not be given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetadataLoss {
    /// Owner or group.
    pub owner: bool,
    /// An extended attribute or an ACL.
    pub attributes: bool,
    /// Setuid and setgid bits or capabilities, which were not asked for.
    pub setuid: bool,
}

/// Says whether the system refuses something for good: for want of rights, or since the file system does not keep it.
/// Other errors are trouble that passes.
fn is_refused(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(false),
        Err(Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Gives an open file or folder its owner, attributes, times and mode. Owner first, since a change of owner takes bits
/// and capabilities away; mode last, since by it a folder is finished.
pub fn apply_metadata(file: impl AsFd, member: &Member, privileges: Privileges) -> io::Result<MetadataLoss> {
    let file = file.as_fd();
    let mut loss = MetadataLoss::default();
    if privileges.is_root {
        let chown = rustix::fs::fchown(file, valid_uid(member.uid), valid_gid(member.gid));
        loss.owner = is_refused(chown)? || member.uid == u32::MAX || member.gid == u32::MAX;
    } else {
        let stat = rustix::fs::fstat(file)?;
        loss.owner = stat.st_uid != member.uid;
        if stat.st_gid != member.gid {
            let chown = rustix::fs::fchown(file, None, valid_gid(member.gid));
            loss.owner |= is_refused(chown)? || member.gid == u32::MAX;
        }
    }
    set_xattrs(member, privileges, &mut loss, |name, value| {
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
    })?;
    rustix::fs::futimens(file, &times(member.modified))?;
    rustix::fs::fchmod(file, granted_mode(member, privileges, &mut loss))?;
    Ok(loss)
}

/// Gives what stands under a temporary name, and cannot be opened, its mode and attributes.
fn apply_special_metadata(
    folder: &OwnedFd,
    name: &str,
    kind: FileType,
    member: &Member,
    privileges: Privileges,
    loss: &mut MetadataLoss,
) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) != kind {
        return Err(io::Error::other("something else was put in its place while it was being made"));
    }
    // Not by its name, which may become a link meanwhile; this path leads to what is held, even if that is a link.
    let held = format!("/proc/self/fd/{}", handle.as_raw_fd());
    if kind != FileType::Symlink {
        // Most have none.
        let _ = rustix::fs::removexattr(&*held, INHERITED_ACCESS);
    }
    set_xattrs(member, privileges, loss, |name, value| rustix::fs::setxattr(&*held, name, value, XattrFlags::empty()))?;
    if kind != FileType::Symlink {
        rustix::fs::chmod(&*held, granted_mode(member, privileges, loss))?;
    }
    Ok(())
}

/// Returns the mode that a member gets, the umask notwithstanding.
fn granted_mode(member: &Member, privileges: Privileges, loss: &mut MetadataLoss) -> Mode {
    let mut mode = member.mode & 0o7777;
    if member.kind == MemberKind::Folder {
        if loss.owner {
            mode &= !0o6000;
        }
    } else if mode & 0o6000 != 0 && (!privileges.setuid || loss.owner) {
        mode &= !0o6000;
        loss.setuid = true;
    }
    Mode::from_raw_mode(mode)
}

fn set_xattrs(
    member: &Member,
    privileges: Privileges,
    loss: &mut MetadataLoss,
    set: impl Fn(&OsStr, &[u8]) -> rustix::io::Result<()>,
) -> io::Result<()> {
    // An ACL may take from the owner the right to set the others.
    let (acls, others): (Vec<_>, Vec<_>) =
        member.xattrs.iter().partition(|(name, _)| name.starts_with(b"system.posix_acl_"));
    for (name, value) in others.into_iter().chain(acls) {
        if name == b"security.capability" && !privileges.setuid {
            loss.setuid = true;
            continue;
        }
        let set = set(OsStr::from_bytes(name), value);
        // No space says nothing of the disk here: an attribute may be too long for the file's own record.
        let is_too_long = matches!(set, Err(Errno::RANGE | Errno::TOOBIG | Errno::NOSPC));
        loss.attributes |= is_too_long || is_refused(set)?;
    }
    Ok(())
}

/// Takes off the rights that a new file or folder got from a folder's default ACL.
pub fn clear_inherited_acl(file: impl AsFd) {
    // Most have none; file systems without ACLs say so.
    for name in [INHERITED_ACCESS, "system.posix_acl_default"] {
        let _ = rustix::fs::fremovexattr(file.as_fd(), name);
    }
}

fn times(modified: FileTime) -> Timestamps {
    let last_modification = Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanoseconds.into() };
    Timestamps { last_access: last_modification, last_modification }
}

fn valid_uid(uid: u32) -> Option<Uid> {
    (uid != u32::MAX).then(|| Uid::from_raw(uid))
}

fn valid_gid(gid: u32) -> Option<Gid> {
    (gid != u32::MAX).then(|| Gid::from_raw(gid))
}

/// Makes a folder that no member describes, with the mode that the umask leaves.
pub fn make_plain_folder(folder: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(folder, OsStr::from_bytes(name), Mode::from_raw_mode(0o777))?)
}

/// Lets this process into a folder that it owns, until the folder is finished.
pub fn make_passable(folder: impl AsFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(folder.as_fd())?;
    if stat.st_mode & 0o700 != 0o700 && stat.st_uid == rustix::process::geteuid().as_raw() {
        rustix::fs::fchmod(folder, Mode::from_raw_mode(stat.st_mode & 0o7777 | UNFINISHED))?;
    }
    Ok(())
}

/// Gives an open folder the mode and times it had.
pub fn restore_metadata(folder: impl AsFd, stat: &Stat) -> io::Result<()> {
    let folder = folder.as_fd();
    rustix::fs::futimens(folder, &times(modified_of(stat)))?;
    if rustix::fs::fstat(folder)?.st_mode != stat.st_mode {
        rustix::fs::fchmod(folder, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    }
    Ok(())
}

/// Returns what a symbolic link leads to, as it stands.
pub fn link_target(folder: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(folder, OsStr::from_bytes(name), Vec::new())?.into_bytes())
}

/// Returns major and minor number of a device; zeros for anything else.
pub fn device_of(stat: &Stat) -> (u32, u32) {
    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
}

//! Applies owner, extended attributes, times and mode to entries.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::inspect::modified_of;
use crate::member::{FileTime, Member, MemberKind};

/// Mode of a folder that is being filled. No other user can enter it, and a repeated restore recognises it by this.
pub(super) const UNFINISHED_MODE: u32 = 0o1700;

/// Mode of a file that others could reach before it has its final metadata.
pub const PRIVATE_MODE: u32 = 0o600;

/// The ACL that a new file or folder inherits from the default ACL of its folder.
const INHERITED_ACCESS: &str = "system.posix_acl_access";

/// What this process may do.
#[derive(Clone, Copy, Debug)]
pub struct Privileges {
    /// It may change the owner of files.
    pub is_root: bool,
    /// Its user.
    pub uid: u32,
    /// Setuid and setgid bits and capabilities are restored.
    pub setuid: bool,
}

impl Privileges {
    /// Returns the privileges of this process.
    pub fn of_process(setuid: bool) -> Privileges {
        let user = rustix::process::geteuid();
        Privileges { is_root: user.is_root(), uid: user.as_raw(), setuid }
    }
}

/// Metadata of a member that could not be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetadataLoss {
    /// Owner or group.
    pub owner: bool,
    /// The mode of an existing folder that belongs to another user.
    pub mode: bool,
    /// An extended attribute or an ACL.
    pub attributes: bool,
    /// Setuid and setgid bits or capabilities, which were not requested.
    pub setuid: bool,
}

/// Returns whether the system refuses an operation permanently: for lack of privileges, or because the file system does
/// not support it. Other errors are returned as such.
pub(super) fn is_refused(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(false),
        Err(Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Applies owner, attributes, times and mode to an open file or folder. Owner first, because a change of owner clears
/// mode bits and capabilities; mode last, because it marks a folder as finished. What it has already is not set again.
pub fn apply_metadata(file: impl AsFd, member: &Member, privileges: Privileges) -> io::Result<MetadataLoss> {
    let file = file.as_fd();
    let mut loss = MetadataLoss::default();
    let stat = rustix::fs::fstat(file)?;
    let has_owner = (stat.st_uid, stat.st_gid) == (member.uid, member.gid);
    if !has_owner && privileges.is_root {
        let chown = rustix::fs::fchown(file, valid_uid(member.uid), valid_gid(member.gid));
        loss.owner = is_refused(chown)? || member.uid == u32::MAX || member.gid == u32::MAX;
    } else if !has_owner {
        loss.owner = stat.st_uid != member.uid;
        if stat.st_gid != member.gid {
            let chown = rustix::fs::fchown(file, None, valid_gid(member.gid));
            loss.owner |= is_refused(chown)? || member.gid == u32::MAX;
        }
    }
    set_xattrs(file, member, privileges, &mut loss, |name, value| {
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
    })?;
    rustix::fs::futimens(file, &times(member.modified))?;
    let mode = granted_mode(member, privileges, &mut loss);
    // A change of owner and an ACL change the mode.
    let has_mode = has_owner && member.xattrs.is_empty() && stat.st_mode & 0o7777 == mode.as_raw_mode();
    if !has_mode {
        rustix::fs::fchmod(file, mode)?;
    }
    Ok(loss)
}

/// Returns the mode with which a file is created where nobody else can reach it: its final one, unless an ACL will
/// decide that, and writable, because some file systems ask for that later.
pub fn mode_at_creation(member: &Member) -> u32 {
    if member.xattrs.is_empty() { member.mode & 0o777 | PRIVATE_MODE } else { PRIVATE_MODE }
}

/// Applies owner, attributes, mode and time to a symbolic link, fifo or device that still has its temporary name.
pub(super) fn apply_special_metadata(
    folder: &OwnedFd,
    name: &str,
    kind: FileType,
    member: &Member,
    privileges: Privileges,
) -> io::Result<MetadataLoss> {
    let mut loss = MetadataLoss::default();
    if privileges.is_root || member.gid != rustix::process::getegid().as_raw() || member.uid != privileges.uid {
        let owner = if privileges.is_root { valid_uid(member.uid) } else { None };
        let chown = rustix::fs::chownat(folder, name, owner, valid_gid(member.gid), AtFlags::SYMLINK_NOFOLLOW);
        loss.owner =
            is_refused(chown)? || member.uid == u32::MAX || (!privileges.is_root && member.uid != privileges.uid);
    }
    if kind != FileType::Symlink || !member.xattrs.is_empty() {
        apply_mode_and_xattrs(folder, name, kind, member, privileges, &mut loss)?;
    }
    rustix::fs::utimensat(folder, name, &times(member.modified), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(loss)
}

/// Applies mode and attributes to an entry that cannot be opened for reading.
fn apply_mode_and_xattrs(
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
        return Err(io::Error::other("another process replaced it during the restore"));
    }
    // Not by its name, which may become a link meanwhile; this path leads to the open handle, even if that is a link.
    let handle_path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    if kind != FileType::Symlink {
        // Fails for most, which have no ACL.
        let _ = rustix::fs::removexattr(&*handle_path, INHERITED_ACCESS);
    }
    set_xattrs(&handle, member, privileges, loss, |name, value| {
        rustix::fs::setxattr(&*handle_path, name, value, XattrFlags::empty())
    })?;
    if kind != FileType::Symlink {
        rustix::fs::chmod(&*handle_path, granted_mode(member, privileges, loss))?;
    }
    Ok(())
}

/// Returns the mode that a member gets, regardless of the umask.
pub(super) fn granted_mode(member: &Member, privileges: Privileges, loss: &mut MetadataLoss) -> Mode {
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

/// Sets the attributes of a member on the entry `handle`.
pub(super) fn set_xattrs(
    handle: impl AsFd,
    member: &Member,
    privileges: Privileges,
    loss: &mut MetadataLoss,
    set: impl Fn(&OsStr, &[u8]) -> rustix::io::Result<()>,
) -> io::Result<()> {
    // ACLs last: an ACL may revoke the owner's right to set the other attributes.
    let (acls, others): (Vec<_>, Vec<_>) =
        member.xattrs.iter().partition(|(name, _)| name.starts_with(b"system.posix_acl_"));
    for (name, value) in others.into_iter().chain(acls) {
        if name == b"security.capability" && !privileges.setuid {
            loss.setuid = true;
            continue;
        }
        let set = set(OsStr::from_bytes(name), value);
        // `ENOSPC` need not mean a full disk: the attribute may be too long for the record of the file.
        let is_too_long = matches!(set, Err(Errno::RANGE | Errno::TOOBIG))
            || set == Err(Errno::NOSPC) && rustix::fs::fstatvfs(&handle).is_ok_and(|disk| disk.f_bavail > 0);
        loss.attributes |= is_too_long || is_refused(set)?;
    }
    Ok(())
}

/// Removes the ACLs that a new file or folder inherited from the default ACL of its folder.
pub fn clear_inherited_acl(file: impl AsFd) {
    // Fails for most, which have no ACL, and on file systems without ACLs.
    for name in [INHERITED_ACCESS, "system.posix_acl_default"] {
        let _ = rustix::fs::fremovexattr(file.as_fd(), name);
    }
}

/// Returns whether an interrupted restore created this folder and did not apply its final mode, `final_mode`.
pub fn is_unfinished(stat: &Stat, final_mode: u32) -> bool {
    let (mode, user) = (stat.st_mode & 0o7777, rustix::process::geteuid());
    // The other bits are applied before the mark is removed. Of those, the group bits may be the mask of an ACL and the
    // owner bits may be ours, so only the bits for others are compared.
    let is_marked = mode & !final_mode & 0o1000 != 0 && (mode ^ final_mode) & 0o007 == 0;
    (mode == UNFINISHED_MODE || is_marked) && (user.is_root() || stat.st_uid == user.as_raw())
}

/// Makes a folder that this user owns accessible to this process until its final metadata is applied.
pub(super) fn make_passable(folder: impl AsFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(folder.as_fd())?;
    if stat.st_mode & 0o700 != 0o700 && stat.st_uid == rustix::process::geteuid().as_raw() {
        rustix::fs::fchmod(folder, Mode::from_raw_mode(stat.st_mode & 0o7777 | UNFINISHED_MODE))?;
    }
    Ok(())
}

/// Restores the mode and times that an open folder had before entries were created in it.
pub(super) fn restore_metadata(folder: impl AsFd, stat: &Stat) -> io::Result<()> {
    let folder = folder.as_fd();
    rustix::fs::futimens(folder, &times(modified_of(stat)))?;
    if rustix::fs::fstat(folder)?.st_mode != stat.st_mode {
        rustix::fs::fchmod(folder, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    }
    Ok(())
}

fn times(modified: FileTime) -> Timestamps {
    let last_modification = Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanoseconds.into() };
    Timestamps { last_access: last_modification, last_modification }
}

/// Returns the user, or `None` for the number that means "leave it as it is" to the kernel.
pub(super) fn valid_uid(uid: u32) -> Option<Uid> {
    (uid != u32::MAX).then(|| Uid::from_raw(uid))
}

/// Returns the group, or `None` for the number that means "leave it as it is" to the kernel.
pub(super) fn valid_gid(gid: u32) -> Option<Gid> {
    (gid != u32::MAX).then(|| Gid::from_raw(gid))
}

//! Compares the metadata of an existing entry with that of a member, and corrects it without touching the content.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::metadata::{MetadataLoss, Privileges, granted_mode, is_refused, set_xattrs, valid_gid, valid_uid};
use crate::member::{Member, MemberKind};

/// Longest ACL that says no more than the mode: a version and three entries. The system does not store it.
const MAX_MINIMAL_ACL_BYTES: usize = 4 + 3 * 8;

/// Returns what differs between the entry `name` and a member of its kind: owner, mode, attributes. What this
/// process would not restore otherwise counts as equal (setuid bits, the owner if it is not root), and so do attributes
/// that the member does not have.
pub fn metadata_differences(
    folder: impl AsFd,
    name: &[u8],
    stat: &Stat,
    member: &Member,
    privileges: Privileges,
) -> io::Result<Vec<&'static str>> {
    let mut differences = Vec::new();
    let is_group_different = member.gid != u32::MAX && stat.st_gid != member.gid;
    let is_owner_different = is_group_different || member.uid != u32::MAX && stat.st_uid != member.uid;
    // The files of others come back as the user's own.
    let is_best_possible =
        !privileges.is_root && stat.st_uid == privileges.uid && !(is_group_different && is_in_group(member.gid));
    if is_owner_different && !is_best_possible {
        differences.push("owner");
    }
    if member.kind != MemberKind::Symlink {
        let mut loss = MetadataLoss { owner: is_owner_different && !privileges.is_root, ..MetadataLoss::default() };
        let granted = granted_mode(member, privileges, &mut loss).as_raw_mode();
        if ![granted, member.mode & 0o7777].contains(&(stat.st_mode & 0o7777)) {
            differences.push("mode");
        }
    }
    if !member.xattrs.is_empty() && !has_xattrs(&open_existing(folder, name, stat)?, member, privileges) {
        differences.push("attributes");
    }
    Ok(differences)
}

/// Applies owner, attributes and mode of a member to the existing entry `name`, which has the state `stat`.
pub fn correct_metadata(
    folder: impl AsFd,
    name: &[u8],
    stat: &Stat,
    member: &Member,
    privileges: Privileges,
) -> io::Result<MetadataLoss> {
    let handle = open_existing(folder, name, stat)?;
    let mut loss = MetadataLoss::default();
    let chown = |uid| rustix::fs::chownat(&handle, "", uid, valid_gid(member.gid), AtFlags::EMPTY_PATH);
    if privileges.is_root {
        loss.owner = is_refused(chown(valid_uid(member.uid)))?;
    } else {
        loss.owner = stat.st_uid != member.uid;
        if stat.st_gid != member.gid {
            loss.owner |= is_refused(chown(None))?;
        }
    }
    loss.owner |= member.uid == u32::MAX || member.gid == u32::MAX;
    let path = handle_path(&handle);
    set_xattrs(member, privileges, &mut loss, |name, value| {
        rustix::fs::setxattr(&*path, name, value, XattrFlags::empty())
    })?;
    if member.kind != MemberKind::Symlink {
        rustix::fs::chmod(&*path, granted_mode(member, privileges, &mut loss))?;
    }
    Ok(loss)
}

/// Returns whether this process may give its files to a group.
fn is_in_group(gid: u32) -> bool {
    let groups = rustix::process::getgroups().unwrap_or_default();
    groups.iter().chain([&rustix::process::getegid()]).any(|group| group.as_raw() == gid)
}

/// Opens an entry, of any kind, for its metadata only.
fn open_existing(folder: impl AsFd, name: &[u8], stat: &Stat) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())?;
    let opened = rustix::fs::fstat(&handle)?;
    if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(io::Error::other("another file has taken its place"));
    }
    Ok(handle)
}

/// Returns a path that leads to the open handle itself, even if that is a link.
fn handle_path(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

fn has_xattrs(handle: &OwnedFd, member: &Member, privileges: Privileges) -> bool {
    let path = handle_path(handle);
    member.xattrs.iter().all(|(name, value)| {
        if name == b"security.capability" && !privileges.setuid {
            return true;
        }
        // One byte more shows that the existing value is longer.
        let mut buffer = vec![0; value.len() + 1];
        match rustix::fs::getxattr(&*path, OsStr::from_bytes(name), &mut buffer[..]) {
            Ok(length) => buffer[..length] == value[..],
            Err(Errno::NODATA) => name.starts_with(b"system.posix_acl_") && value.len() <= MAX_MINIMAL_ACL_BYTES,
            // It may not be read; a restore could not have set it otherwise than it is.
            Err(Errno::ACCESS | Errno::PERM) => true,
            Err(_) => false,
        }
    })
}

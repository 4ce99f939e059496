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

/// How owner, mode and attributes of an existing entry differ from those of a member.
#[derive(Debug, Default)]
pub struct MetadataDifferences {
    /// What a restore by this process makes equal, in place or by replacing a file: `mode 0600 instead of 0644`.
    pub correctable: Vec<String>,
    /// What differs and this process cannot set.
    pub loss: MetadataLoss,
}

/// Compares owner, mode and attributes of the entry `name`, which has the state `stat`, with those of a member of its
/// kind. Attributes that the member does not have are not compared.
pub fn metadata_differences(
    folder: impl AsFd,
    name: &[u8],
    stat: &Stat,
    member: &Member,
    privileges: Privileges,
) -> io::Result<MetadataDifferences> {
    let mut found = MetadataDifferences::default();
    let (is_owner_correctable, is_owner_lost) = compare_owner(stat, member, privileges);
    if is_owner_correctable {
        let (is, was) = (format!("{}:{}", stat.st_uid, stat.st_gid), format!("{}:{}", member.uid, member.gid));
        found.correctable.push(format!("owner {is} instead of {was}"));
    }
    found.loss.owner = is_owner_lost;
    if member.kind != MemberKind::Symlink {
        compare_mode(stat, member, privileges, &mut found);
    }
    if !member.xattrs.is_empty() {
        compare_xattrs(&open_existing(folder, name, stat)?, stat, member, privileges, &mut found);
    }
    Ok(found)
}

/// Returns whether owner and group differ and can be set, and whether a part of them differs and cannot.
fn compare_owner(stat: &Stat, member: &Member, privileges: Privileges) -> (bool, bool) {
    let is_unknown = member.uid == u32::MAX || member.gid == u32::MAX;
    let user_differs = member.uid != u32::MAX && stat.st_uid != member.uid;
    let group_differs = member.gid != u32::MAX && stat.st_gid != member.gid;
    if privileges.is_root {
        return (user_differs || group_differs, is_unknown);
    }
    // A file of another user can be replaced, and is the user's own then.
    let user_is_correctable = user_differs && member.uid == privileges.uid && member.kind != MemberKind::Folder;
    let becomes_own = stat.st_uid == privileges.uid || user_is_correctable;
    let group_is_correctable = group_differs && becomes_own && is_in_group(member.gid);
    let is_lost = is_unknown || user_differs && !user_is_correctable || group_differs && !group_is_correctable;
    (user_is_correctable || group_is_correctable, is_lost)
}

fn compare_mode(stat: &Stat, member: &Member, privileges: Privileges, found: &mut MetadataDifferences) {
    let (is, archived) = (stat.st_mode & 0o7777, member.mode & 0o7777);
    if is == archived {
        return;
    }
    let mut loss = MetadataLoss { owner: found.loss.owner, ..MetadataLoss::default() };
    let mut granted = granted_mode(member, privileges, &mut loss).as_raw_mode();
    if !privileges.is_root && !is_in_group(stat.st_gid) {
        // The system clears the bit without an error.
        granted &= !0o2000;
    }
    if is == granted {
        found.loss.setuid |= loss.setuid;
    } else if privileges.is_root || stat.st_uid == privileges.uid || member.kind != MemberKind::Folder {
        found.correctable.push(format!("mode {is:04o} instead of {granted:04o}"));
    } else {
        found.loss.mode = true;
    }
}

fn compare_xattrs(
    handle: &OwnedFd,
    stat: &Stat,
    member: &Member,
    privileges: Privileges,
    found: &mut MetadataDifferences,
) {
    let path = handle_path(handle);
    let is_own = privileges.is_root || stat.st_uid == privileges.uid;
    for (name, value) in member.xattrs.iter() {
        let existing = existing_xattr(&path, name, value);
        if existing == Existing::Equal {
            continue;
        }
        if name == b"security.capability" && !privileges.setuid {
            found.loss.setuid = true;
            continue;
        }
        // A file of another user can be replaced by one of the user's own, a folder cannot.
        let is_settable = (is_own || member.kind != MemberKind::Folder)
            && existing != Existing::Unsupported
            && match name {
                _ if name.starts_with(b"user.") => matches!(member.kind, MemberKind::File | MemberKind::Folder),
                _ if name.starts_with(b"trusted.") || name.starts_with(b"security.") => {
                    privileges.is_root && is_permitted(&path, name, value, existing)
                }
                _ => true,
            };
        if is_settable {
            let what = if existing == Existing::Absent { "no" } else { "another" };
            found.correctable.push(format!("{what} attribute {}", name.escape_ascii()));
        } else {
            found.loss.attributes = true;
        }
    }
}

/// What exists where a member has an attribute.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// The same value, or one that this process may not read.
    Equal,
    /// Another value.
    Other,
    /// No value.
    Absent,
    /// The file system stores no such attributes.
    Unsupported,
}

fn existing_xattr(path: &str, name: &[u8], value: &[u8]) -> Existing {
    // One byte more shows that the existing value is longer.
    let mut buffer = vec![0; value.len() + 1];
    match rustix::fs::getxattr(path, OsStr::from_bytes(name), &mut buffer[..]) {
        Ok(length) if buffer[..length] == value[..] => Existing::Equal,
        Ok(_) | Err(Errno::RANGE) => Existing::Other,
        Err(Errno::NODATA) if name.starts_with(b"system.posix_acl_") && value.len() <= MAX_MINIMAL_ACL_BYTES => {
            Existing::Equal
        }
        // It may not be read; a restore could not have set it otherwise than it is.
        Err(Errno::ACCESS | Errno::PERM) => Existing::Equal,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Existing::Unsupported,
        Err(_) => Existing::Absent,
    }
}

/// Returns whether this process has the rights to set an attribute, which root in a container may lack. Asks the system
/// by a call that changes nothing: it requests a new attribute where one exists, or the other way round.
fn is_permitted(path: &str, name: &[u8], value: &[u8], existing: Existing) -> bool {
    let flag = if existing == Existing::Other { XattrFlags::CREATE } else { XattrFlags::REPLACE };
    !is_refused(rustix::fs::setxattr(path, OsStr::from_bytes(name), value, flag)).unwrap_or(false)
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
    set_xattrs(&handle, member, privileges, &mut loss, |name, value| {
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
        return Err(io::Error::other("another process replaced it during the restore"));
    }
    Ok(handle)
}

/// Returns a path that leads to the open handle itself, even if that is a link.
fn handle_path(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

//! What the kind of a file system says about the times of its files, and writing its modified pages to disk before it
//! is read.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{fstatfs, syncfs};

/// What a walk found out about the file system of a folder, when it entered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// What its ctime is worth.
    pub times: Times,
    /// Its modified pages were written to disk before it was listed: from then on the first store to a page that a
    /// process has mapped moves ctime again. Without that, a store after the file was read is never noticed.
    pub is_synced: bool,
}

/// Who sets the ctime of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// The kernel of this machine, at each change.
    Local,
    /// An NFS server, by its own clock; and the attributes may be a minute old.
    Server,
    /// Not known to be a kernel: a change may keep all times. The word is the kind of file system.
    Unknown(&'static str),
}

/// File systems on which the kernel sets ctime at each change (`statfs` magic numbers).
const LOCAL: [i64; 6] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // btrfs
    0x2FC1_2FC1, // ZFS
    0xF2F5_2010, // f2fs
    0xCA45_1A4E, // bcachefs
];
const NFS: i64 = 0x6969;

/// Names of other file systems, for messages.
const OTHER: [(i64, &str); 14] = [
    (0x0102_1994, "tmpfs"),
    (0x7371_7368, "squashfs"),
    (0x9660, "iso9660"),
    (0xE0F5_E1E2, "erofs"),
    (0x4D44, "vfat"),
    (0x2011_BAB0, "exfat"),
    (0x6573_5546, "FUSE"),
    (0x517B, "SMB"),
    (0xFE53_4D42, "SMB"),
    (0xFF53_4D42, "SMB"),
    (0x0102_1997, "9p"),
    (0x794C_7630, "overlay"),
    (0x7366_746E, "NTFS"),
    (0x9FA0, "proc"),
];

impl FileSystem {
    /// Writes the modified pages of the file system of an open file or folder to disk, and finds out what it is.
    pub(super) fn sync(handle: impl AsFd) -> FileSystem {
        // A file system that cannot be synced is read all the same; nothing of it is reused later.
        let is_synced = syncfs(&handle).is_ok();
        let times = fstatfs(&handle).map(|stat| Times::of_magic(stat.f_type));
        FileSystem { times: times.unwrap_or(Times::Unknown("unknown")), is_synced }
    }

    /// Returns the facts of a file system that the walk did not enter through a folder.
    pub(super) const fn unknown() -> FileSystem {
        FileSystem { times: Times::Unknown("unknown"), is_synced: false }
    }
}

impl Times {
    /// The type of the number depends on the architecture; some report it as signed, 32 bits wide.
    fn of_magic(magic: impl Into<i64>) -> Times {
        let magic = magic.into() & 0xFFFF_FFFF;
        if LOCAL.contains(&magic) {
            return Times::Local;
        }
        if magic == NFS {
            return Times::Server;
        }
        Times::Unknown(OTHER.iter().find(|(known, _)| *known == magic).map_or("unknown", |(_, name)| name))
    }
}

/// Returns the id that the kernel drew when the machine started; `None` where it does not report one.
pub fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Returns the effective user of this process and its effective capabilities as a hexadecimal number; they decide which
/// attributes can be read.
pub fn reader_rights() -> io::Result<(u32, String)> {
    let capabilities = rustix::thread::capabilities(None)?;
    Ok((rustix::process::geteuid().as_raw(), format!("{:x}", capabilities.effective.bits())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_whose_ctime_a_kernel_sets_are_listed() {
        assert_eq!(Times::of_magic(0xEF53), Times::Local);
        assert_eq!(Times::of_magic(0x9123_683E_u32.cast_signed()), Times::Local, "a signed number");
        assert_eq!(Times::of_magic(0x6969), Times::Server);
        assert_eq!(Times::of_magic(0x0102_1994), Times::Unknown("tmpfs"));
        assert_eq!(Times::of_magic(0x794C_7630), Times::Unknown("overlay"));
        assert_eq!(Times::of_magic(12), Times::Unknown("unknown"));
    }
}

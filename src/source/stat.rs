//! The facts that the system reports of a file.

use rustix::fs::{FileType, major, minor};

use crate::member::FileTime;

/// What `stat` reports of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Size in bytes: the content of a file, the target of a link; of a folder nothing of use.
    pub size: u64,
    /// Bytes allocated on the disk: fewer than `size` if the file has holes or its file system compresses.
    pub allocated: u64,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Time of the last change of the content (mtime).
    pub modified: FileTime,
    /// Time of the last change of content or attributes (ctime); only the system sets it.
    pub changed: FileTime,
    /// Device number of its file system.
    pub device: u64,
    /// Inode number in its file system.
    pub inode: u64,
    /// Number of hard links.
    pub links: u64,
    /// Major and minor number, for a device.
    pub device_number: Option<(u32, u32)>,
}

impl Stat {
    /// Converts the answer of the system.
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

    /// Returns whether both have the same device and inode.
    pub(super) fn is_same_file(&self, other: &Stat) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

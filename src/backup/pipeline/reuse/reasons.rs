//! Why members were read although there is a base, and how often.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a member was read from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReadReason {
    /// The base does not hold its path, or as another kind.
    New,
    /// Its size or mtime differs.
    SizeOrTime,
    /// Of all that is compared only its ctime differs, or its ctime and inode.
    CtimeOnly,
    /// Only its inode number differs.
    InodeOnly,
    /// Its mode or owner differs, or the name of its owner.
    Owner,
    /// The target of the link differs, or the name that carries the data of the hard link.
    Link,
    /// Its extended attributes differ or cannot be read.
    Attributes,
    /// It changed so shortly before it was read that a later change may have the same times.
    Recent,
    /// A problem was recorded for it when it was read.
    Doubtful,
    /// It lies on a file system whose times are not trusted.
    FileSystem,
    /// It changed shortly before the machine was restarted.
    Restart,
    /// It is unchanged and was due to be read again.
    Reread,
    /// It is unchanged, and its chunk begins or ends at another member.
    Boundaries,
    /// It is unchanged, and another member of its chunk is not.
    Neighbour,
}

const COUNT: usize = ReadReason::Neighbour as usize + 1;

const ALL: [ReadReason; COUNT] = [
    ReadReason::New,
    ReadReason::SizeOrTime,
    ReadReason::CtimeOnly,
    ReadReason::InodeOnly,
    ReadReason::Owner,
    ReadReason::Link,
    ReadReason::Attributes,
    ReadReason::Recent,
    ReadReason::Doubtful,
    ReadReason::FileSystem,
    ReadReason::Restart,
    ReadReason::Reread,
    ReadReason::Boundaries,
    ReadReason::Neighbour,
];

impl ReadReason {
    /// Returns the words used in the database and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            ReadReason::New => "new",
            ReadReason::SizeOrTime => "size or mtime",
            ReadReason::CtimeOnly => "ctime only",
            ReadReason::InodeOnly => "inode only",
            ReadReason::Owner => "owner",
            ReadReason::Link => "link",
            ReadReason::Attributes => "attributes",
            ReadReason::Recent => "recent",
            ReadReason::Doubtful => "doubtful",
            ReadReason::FileSystem => "file system",
            ReadReason::Restart => "restart",
            ReadReason::Reread => "reread",
            ReadReason::Boundaries => "boundaries",
            ReadReason::Neighbour => "same chunk",
        }
    }
}

/// Counts during a run, by any thread.
#[derive(Default)]
pub struct ReadReasons {
    reused: AtomicU64,
    read: [AtomicU64; COUNT],
}

impl ReadReasons {
    pub fn add_reused(&self, members: u64) {
        self.reused.fetch_add(members, Ordering::Relaxed);
    }

    pub fn add(&self, reason: ReadReason) {
        self.read[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> ReuseCounts {
        let counted = ALL.iter().map(|&reason| (reason, self.read[reason as usize].load(Ordering::Relaxed)));
        ReuseCounts {
            reused: self.reused.load(Ordering::Relaxed),
            read: counted.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// How many members a run took from its base without reading them, and how many it read, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReuseCounts {
    /// Members taken from the base.
    pub reused: u64,
    /// Members read, by reason; only reasons that occurred.
    pub read: BTreeMap<ReadReason, u64>,
}

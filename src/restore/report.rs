//! What a restore tells when it is done.

use crate::confined::MetadataLoss;
use crate::error::ErrorKind;
use crate::member::Extent;
use crate::member::MemberPath;

/// Paths that are kept of each kind of trouble; all are counted.
const MOST_LISTED: usize = 10_000;

/// Bytes of a path or a reason that are kept; a hostile archive may have names of megabytes.
const MOST_TOLD: usize = 8192;

/// Paths with what is to be said of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// How many there are.
    pub count: u64,
    /// The first 10,000, as the archive names them, with the reason; of either the first 8 KiB.
    pub list: Vec<(Box<[u8]>, String)>,
}

impl Paths {
    /// Adds one.
    pub fn add(&mut self, path: &[u8], mut reason: String) {
        self.count += 1;
        if self.list.len() < MOST_LISTED {
            reason.truncate(reason.floor_char_boundary(MOST_TOLD));
            reason.shrink_to_fit();
            self.list.push((path[..path.len().min(MOST_TOLD)].into(), reason));
        }
    }
}

/// What became of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How much was restored.
    pub extent: Extent,
    /// Members that stood there already as the archive has them.
    pub unchanged: u64,
    /// Paths where something else stands, which was left alone.
    pub conflicts: Paths,
    /// Members that are hostile or cannot be trusted.
    pub refused: Paths,
    /// Members that are damaged in the archive, and places where members may be lost.
    pub damaged: Paths,
    /// Paths that the system would not let be made.
    pub failed: Paths,
    /// Devices, which were not asked for.
    pub devices: Paths,
    /// Members whose owner could not be set.
    pub owners: u64,
    /// Members of which an extended attribute or an ACL could not be set.
    pub attributes: Paths,
    /// Members whose setuid and setgid bits or capabilities were not asked for.
    pub setuid: Paths,
    /// Members that were named from the root of the file system and put beneath the target.
    pub absolute: u64,
    /// Members, folders aside, of whose names nothing was left after stripping.
    pub stripped: u64,
    /// Paths that were asked for and that the archive, which is whole, does not have.
    pub missing: Vec<MemberPath>,
}

impl Report {
    /// Returns the class that decides the exit code; nothing if all went well.
    pub fn outcome(&self) -> Option<ErrorKind> {
        let left_out = [&self.conflicts, &self.failed, &self.devices, &self.attributes];
        if self.refused.count + self.damaged.count > 0 {
            Some(ErrorKind::Damage)
        } else if !self.missing.is_empty() {
            Some(ErrorKind::NotFound)
        } else if self.owners > 0 || left_out.iter().any(|paths| paths.count > 0) {
            Some(ErrorKind::Incomplete)
        } else {
            None
        }
    }

    /// Says whether not a single member was meant.
    pub fn is_empty(&self) -> bool {
        let trouble = [&self.conflicts, &self.refused, &self.damaged, &self.failed, &self.devices];
        self.extent.members + self.unchanged + self.stripped == 0 && trouble.iter().all(|paths| paths.count == 0)
    }

    pub(super) fn fell_short(&mut self, path: &MemberPath, loss: MetadataLoss) {
        self.owners += u64::from(loss.owner);
        if loss.attributes {
            self.attributes.add(path.as_bytes(), "an extended attribute or ACL could not be set".to_owned());
        }
        if loss.setuid {
            self.setuid.add(path.as_bytes(), "setuid bits or capabilities were left out".to_owned());
        }
    }
}

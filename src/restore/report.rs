//! The result of a restore.

use crate::confined::MetadataLoss;
use crate::error::ErrorKind;
use crate::member::{Extent, MemberPath};

/// Paths that are listed of each kind of problem; all are counted.
const MAX_LISTED_PATHS: usize = 10_000;

/// Bytes of a path or a reason that are kept; a hostile archive may have names of megabytes.
const MAX_LISTED_BYTES: usize = 8192;

/// Paths with one kind of problem, and the reason for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Number of paths.
    pub count: u64,
    /// The first 10,000, as the archive names them, with the reason; of either the first 8 KiB.
    pub list: Vec<(Box<[u8]>, String)>,
}

impl Paths {
    /// Adds a path.
    pub fn add(&mut self, path: &[u8], mut reason: String) {
        self.count += 1;
        if self.list.len() < MAX_LISTED_PATHS {
            reason.truncate(reason.floor_char_boundary(MAX_LISTED_BYTES));
            reason.shrink_to_fit();
            self.list.push((path[..path.len().min(MAX_LISTED_BYTES)].into(), reason));
        }
    }
}

/// The result of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Members, files and bytes of content that were restored.
    pub extent: Extent,
    /// Members that existed already as the archive has them.
    pub unchanged: u64,
    /// Members that existed, and of which owner, mode or attributes were corrected.
    pub corrected: u64,
    /// Paths where something else exists, which was kept.
    pub conflicts: Paths,
    /// Members that are hostile or cannot be trusted.
    pub refused: Paths,
    /// Members that are damaged in the archive, and places where members may be lost.
    pub damaged: Paths,
    /// Why the compressed file does not decode to its end. Then any member that was restored may be wrong.
    pub undecodable: Option<String>,
    /// Paths at which the system reported an error.
    pub failed: Paths,
    /// Devices, which were not requested.
    pub devices: Paths,
    /// Members whose owner could not be set.
    pub owners: u64,
    /// Members of which an extended attribute or an ACL could not be set.
    pub attributes: Paths,
    /// Members that existed and whose owner is another one, which this process cannot change. No problem of this
    /// restore: the one that created them reported it.
    pub kept_owners: u64,
    /// The same for members whose attributes, ACLs or mode differ.
    pub kept_attributes: Paths,
    /// Members whose setuid and setgid bits or capabilities were not requested.
    pub setuid: Paths,
    /// Members with an absolute name, restored beneath the target all the same.
    pub absolute: u64,
    /// Members whose time in a pax header is none: they got that of the header block.
    pub bad_times: u64,
    /// Members, folders aside, whose name has no component left after stripping.
    pub stripped: u64,
    /// Paths that were requested and that the archive, which is whole, does not contain.
    pub missing: Vec<MemberPath>,
}

impl Report {
    /// Returns the error class that decides the exit code; `None` if everything was restored.
    pub fn outcome(&self) -> Option<ErrorKind> {
        let left_out = [&self.conflicts, &self.failed, &self.devices, &self.attributes];
        if self.refused.count + self.damaged.count > 0 || self.undecodable.is_some() {
            Some(ErrorKind::Damage)
        } else if !self.missing.is_empty() {
            Some(ErrorKind::NotFound)
        } else if self.owners > 0 || left_out.iter().any(|paths| paths.count > 0) {
            Some(ErrorKind::Incomplete)
        } else {
            None
        }
    }

    /// Returns whether no member was selected.
    pub fn is_empty(&self) -> bool {
        let problems = [&self.conflicts, &self.refused, &self.damaged, &self.failed, &self.devices];
        self.extent.members + self.unchanged + self.corrected + self.stripped == 0
            && self.undecodable.is_none()
            && problems.iter().all(|paths| paths.count == 0)
    }

    /// Counts a file or a hard link that was restored.
    pub(super) fn add_file(&mut self, content_bytes: u64) {
        self.extent.members += 1;
        self.extent.files += 1;
        self.extent.content_bytes += content_bytes;
    }

    /// Records how a member that was kept differs from the archive in what this process cannot set.
    pub(super) fn record_kept_loss(&mut self, path: &MemberPath, loss: MetadataLoss) {
        self.kept_owners += u64::from(loss.owner);
        if loss.attributes || loss.mode {
            let what = match (loss.attributes, loss.mode) {
                (true, true) => "its mode and an extended attribute or ACL differ",
                (true, false) => "an extended attribute or ACL differs",
                _ => "its mode differs",
            };
            self.kept_attributes.add(path.as_bytes(), format!("{what} from the archive and cannot be set"));
        }
        self.record_setuid(path, loss);
    }

    pub(super) fn record_loss(&mut self, path: &MemberPath, loss: MetadataLoss) {
        self.owners += u64::from(loss.owner);
        if loss.attributes {
            self.attributes.add(path.as_bytes(), "an extended attribute or ACL could not be set".to_owned());
        }
        self.record_setuid(path, loss);
    }

    fn record_setuid(&mut self, path: &MemberPath, loss: MetadataLoss) {
        if loss.setuid {
            self.setuid.add(path.as_bytes(), "setuid bits or capabilities were left out".to_owned());
        }
    }
}

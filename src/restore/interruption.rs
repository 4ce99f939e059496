//! What a cancelled restore leaves out, and the error that names it.

use super::report::{Paths, Report};
use crate::error::{Error, ErrorKind};
use crate::member::MemberPath;
use crate::words::count;

/// Paths of each list that the error names; all are counted.
const MAX_NAMED_PATHS: usize = 10;

/// The member at which a restore was cancelled.
pub(super) struct StoppedAt {
    /// The chunk in which the member begins, and the offset of its header there.
    pub position: (u64, u64),
    pub path: MemberPath,
}

/// What a cancelled restore leaves out.
#[derive(Default)]
pub(super) struct Interruption {
    /// Members that are not restored.
    pub left_out: Paths,
    /// The archive is not in the catalog, and was not read to its end: more members may be left out.
    pub may_be_more: bool,
    /// Folders that did not get their metadata.
    pub unfinished: Paths,
}

impl Interruption {
    /// Returns the error that ends the restore.
    pub fn error(&self, report: &Report) -> Error {
        let mut message = format!("the restore was cancelled: {} restored", members(report.extent.members));
        if self.left_out.count > 0 {
            message += &format!(", {} not restored: {}", members(self.left_out.count), names(&self.left_out));
        }
        if self.may_be_more {
            let is_any_named = self.left_out.count > 0;
            message +=
                if is_any_named { ", and the members behind it" } else { ", and the archive was not read to its end" };
        }
        if self.unfinished.count > 0 {
            message += &format!("; folders without their mode and time: {}", names(&self.unfinished));
        }
        if self.left_out.count + self.unfinished.count == 0 && !self.may_be_more {
            message += ", none is left, but they may not be on disk yet";
        }
        Error::new(ErrorKind::Interrupted, message)
            .hint("run the same command again: it restores the rest; with -n it lists it")
    }
}

fn members(number: u64) -> String {
    count(number, "member")
}

fn names(paths: &Paths) -> String {
    let named = paths.list.iter().take(MAX_NAMED_PATHS).map(|(path, _)| path.escape_ascii().to_string());
    let mut text = named.collect::<Vec<_>>().join(", ");
    if paths.count > MAX_NAMED_PATHS as u64 {
        text += &format!(" and {} more", paths.count - MAX_NAMED_PATHS as u64);
    }
    text
}

//! By which facts a run decides that a file did not change, as values; `backup` applies them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a schedule weakens or widens the comparison of files with those in the last archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reuse {
    /// Inode numbers are not compared: for file systems that assign new ones each time they are mounted.
    pub ignore_inode: bool,
    /// Changes of ctime alone are ignored: for sources whose files get new hard links or owners all the time.
    pub ignore_ctime: bool,
    /// The times of file systems are trusted that are not known to show every change.
    pub trust_times: bool,
}

impl Reuse {
    /// Returns whether nothing is weakened or widened.
    pub fn is_default(&self) -> bool {
        *self == Reuse::default()
    }

    /// Fails if nothing but size and mtime would be compared: then a file that another one of the same size and time
    /// replaced would not be archived, as in releases built with fixed times.
    pub fn check(self) -> Result<Self> {
        if self.ignore_inode && self.ignore_ctime {
            return Err(Error::usage("inode and ctime cannot both be ignored: changed files would be missed")
                .hint("set one of --ignore-inode and --ignore-ctime, and the other to false"));
        }
        Ok(self)
    }
}

//! What a schedule leaves out of its archives, as values; `source` applies them.

use serde::{Deserialize, Serialize};

/// The exclusions of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Excludes {
    /// Globs in the form of `.gitignore` lines: without `/` they match names anywhere, with it paths below the source.
    /// A glob that begins with the source's absolute path counts from there.
    pub globs: Vec<String>,
    /// Files with one such glob a line, read anew at each run.
    pub files: Vec<String>,
    /// Leaves out what lies in folders with a valid `CACHEDIR.TAG`; the folder and the tag stay.
    pub caches: bool,
    /// Leaves out what lies in folders that hold a file of such a name.
    pub if_present: Vec<String>,
    /// Does not descend into other file systems.
    pub one_file_system: bool,
}

impl Excludes {
    /// Says whether nothing at all is excluded.
    pub fn is_empty(&self) -> bool {
        *self == Excludes::default()
    }
}

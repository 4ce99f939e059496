//! What a schedule excludes from its archives, as values; `source` applies them.

use serde::{Deserialize, Serialize};

/// The exclusions of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Excludes {
    /// Globs in the form of `.gitignore` lines. Without `/` they match names anywhere, with it paths below the source.
    /// A glob that begins with the absolute path of the source, or with its name in archives as `ls` shows it, is
    /// relative to the source.
    pub globs: Vec<String>,
    /// Files with one such glob a line, read again by each run.
    pub files: Vec<String>,
    /// Excludes the content of folders with a valid `CACHEDIR.TAG`, but not the folder itself and the tag.
    pub caches: bool,
    /// Excludes the content of folders that contain a file with one of these names.
    pub if_present: Vec<String>,
    /// Does not descend into other file systems.
    pub one_file_system: bool,
}

impl Excludes {
    /// Returns whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        *self == Excludes::default()
    }
}

//! Indexes in the archive folder that the database does not know: an older copy of it may have been put back, or a
//! second one may have the same identity. What they refer to is never removed (I14).

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::unknown::{entries_of, schedule_folders};
use crate::archive::index::Index;
use crate::archive_name::{INDEX_SUFFIX, SEGMENT_SUFFIX};
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::Store;

/// A file that is named as an index, is not one of the database, and cannot be read as an index. It may refer to any
/// segment in its folder, so that none of these is removed.
#[derive(Debug)]
pub struct UnreadableIndex {
    /// Its path below the archive folder.
    pub name: String,
    /// Why it cannot be read.
    pub reason: Error,
}

impl UnreadableIndex {
    /// Returns what is wrong, as an error with the next step.
    pub fn into_error(self, home: &Home) -> Error {
        let path = home.backups().join(&self.name);
        let folder = path.parent().unwrap_or(&path).display();
        Error::failed(format!("unused segments in {folder} are kept: {} cannot be read as an index", path.display()))
            .because(self.reason)
            .hint("move it out of that folder if it is not needed")
    }
}

/// What the indexes in a folder that the database does not know refer to.
#[derive(Debug, Default)]
pub(super) struct UnknownIndexes {
    /// File names of segments.
    pub(super) segments: HashSet<String>,
    pub(super) unreadable: Vec<UnreadableIndex>,
}

/// Reads the indexes in the folder of a schedule that the database does not know.
pub(super) fn read_unknown_indexes(home: &Home, store: &Store, folder: &str) -> Result<UnknownIndexes> {
    let mut found = UnknownIndexes::default();
    for (path, name) in entries_of(&home.backups().join(folder))? {
        let name = format!("{folder}/{name}");
        if !name.ends_with(INDEX_SUFFIX) || store.has_archive_file(&name)? {
            continue;
        }
        match Index::open(&path) {
            Ok(index) => found.segments.extend(index.segments().iter().cloned()),
            // It was removed since the folder was listed, and its row with it.
            Err(_) if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) => {}
            Err(reason) => found.unreadable.push(UnreadableIndex { name, reason }),
        }
    }
    Ok(found)
}

/// Finds the files in folders with segments that are named as indexes, are none of the database, and cannot be read.
pub fn find_unreadable_indexes(home: &Home, store: &Store) -> Result<Vec<UnreadableIndex>> {
    let mut found = Vec::new();
    for (folder, name) in schedule_folders(home, store)? {
        if has_segments(&folder)? {
            found.extend(read_unknown_indexes(home, store, &name)?.unreadable);
        }
    }
    Ok(found)
}

fn has_segments(folder: &Path) -> Result<bool> {
    Ok(entries_of(folder)?.iter().any(|(_, name)| name.ends_with(SEGMENT_SUFFIX)))
}

//! The indexes in the archive folder. What they refer to is never removed, whatever the database says (I14): an older
//! copy of it may have been put back, or a second one may have the same identity.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::unknown::{entries_of, schedule_folders};
use crate::archive::index::Index;
use crate::archive_name::{INDEX_SUFFIX, SEGMENT_SUFFIX};
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::{Store, StoredFile};

/// A file that is named as an index and cannot be read as one. It may refer to any segment in its folder, so that none
/// of these is removed.
#[derive(Debug)]
pub struct UnreadableIndex {
    /// Its path below the archive folder.
    pub name: String,
    /// Why it cannot be read, with its path.
    pub reason: Error,
}

impl UnreadableIndex {
    /// Returns what is wrong, as an error with the next step.
    pub fn into_error(self, home: &Home) -> Error {
        let path = home.backups().join(&self.name);
        let folder = path.parent().unwrap_or(&path).display();
        Error::failed(format!("unused segments in {folder} are kept, because an index there cannot be read"))
            .because(self.reason)
            .hint("if it is that of an archive, put it back or forget the archive; else move it out of that folder")
    }
}

/// What the indexes in a folder refer to.
#[derive(Debug, Default)]
pub(super) struct FoundIndexes {
    /// File names of segments.
    pub(super) segments: HashSet<String>,
    pub(super) unreadable: Vec<UnreadableIndex>,
    /// One that the database does not know, below the archive folder.
    pub(super) unknown: Option<String>,
}

/// Reads all indexes in the folder of a schedule. An older database that was put back knows some of them with other
/// ranges.
pub(super) fn read_indexes(home: &Home, store: &Store, folder: &str) -> Result<FoundIndexes> {
    let mut found = FoundIndexes::default();
    for (path, name) in index_files(home, folder)? {
        if let Some(index) = open_index(&path, &name, &mut found.unreadable) {
            found.segments.extend(index.segments().iter().cloned());
            if !store.has_archive_file(&name)? {
                found.unknown = Some(name);
            }
        }
    }
    Ok(found)
}

/// Returns the path, and that below the archive folder, of what is named as an index.
fn index_files(home: &Home, folder: &str) -> Result<Vec<(PathBuf, String)>> {
    let entries = entries_of(&home.backups().join(folder))?.into_iter();
    let indexes = entries.filter(|(_, name)| name.ends_with(INDEX_SUFFIX));
    Ok(indexes.map(|(path, name)| (path, format!("{folder}/{name}"))).collect())
}

/// Opens an index, unless it was removed since the folder was listed.
fn open_index(path: &Path, name: &str, unreadable: &mut Vec<UnreadableIndex>) -> Option<Index> {
    match Index::open(path) {
        Ok(index) => Some(index),
        Err(_) if fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound) => None,
        Err(reason) => {
            unreadable.push(UnreadableIndex { name: name.to_owned(), reason });
            None
        }
    }
}

/// Finds the files that are named as indexes and cannot be read, in folders with segments. Those of archives of the
/// database are read only where segments are to be removed: elsewhere their verification finds them.
pub fn find_unreadable_indexes(home: &Home, store: &Store) -> Result<Vec<UnreadableIndex>> {
    let waiting = store.segments_being_deleted()?;
    let waiting: HashSet<&str> = waiting.iter().filter_map(StoredFile::folder).collect();
    let mut found = Vec::new();
    for (folder, name) in schedule_folders(home, store)? {
        if !has_segments(&folder)? {
            continue;
        }
        for (path, index) in index_files(home, &name)? {
            if waiting.contains(name.as_str()) || !store.has_archive_file(&index)? {
                open_index(&path, &index, &mut found);
            }
        }
    }
    Ok(found)
}

fn has_segments(folder: &Path) -> Result<bool> {
    Ok(entries_of(folder)?.iter().any(|(_, name)| name.ends_with(SEGMENT_SUFFIX)))
}

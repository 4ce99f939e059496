//! Removal of segments to which nothing refers any more (I14): the row is `deleting`, the file unlinked, its folder
//! synced, the row deleted.
//!
//! The database may not know all indexes: an older copy of it may have been put back, or a second one may have the same
//! identity. So every index in the folder that it does not know counts, too.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

use crate::archive::index::Index;
use crate::archive_name::INDEX_SUFFIX;
use crate::durable;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::{Store, StoredFile};

/// Removes the segments that are marked `deleting`, by this process or by one that died.
///
/// Errors: the first one; what can be removed is removed all the same. In a folder with an index that cannot be read
/// nothing is removed.
pub fn remove_unused_segments(home: &Home, store: &Store) -> Result<()> {
    let mut by_folder: BTreeMap<String, Vec<StoredFile>> = BTreeMap::new();
    for segment in store.segments_being_deleted()? {
        let folder = segment.segment_name.as_deref().and_then(|name| name.split_once('/'));
        if let Some((folder, _)) = folder {
            by_folder.entry(folder.to_owned()).or_default().push(segment);
        }
    }
    if by_folder.is_empty() {
        return Ok(());
    }
    super::ensure_ours(home, store)?;
    let mut first_error = None;
    for (folder, segments) in &by_folder {
        if let Err(error) = remove_in_folder(home, store, folder, segments) {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn remove_in_folder(home: &Home, store: &Store, folder: &str, segments: &[StoredFile]) -> Result<()> {
    let used = segments_of_unknown_indexes(home, store, folder)?;
    for segment in segments {
        let Some(name) = &segment.segment_name else { continue };
        if used.contains(name.rsplit('/').next().unwrap_or(name)) {
            log::warn!("{name} is kept: an index that the database does not know refers to it; run a rescan");
            continue;
        }
        let path = home.backups().join(name);
        match &segment.temporary_name {
            // Its run was not completed. Another file may have the name that it was to get.
            Some(temporary) => {
                durable::remove(&home.backups().join(temporary))?;
                if segment.identity.is_some() && durable::identity(&path)? == segment.identity {
                    durable::remove(&path)?;
                }
            }
            None => durable::remove(&path)?,
        }
        store.remove_segment(segment.id)?;
    }
    Ok(())
}

/// Returns the file names of the segments to which indexes in a folder refer that the database does not know.
///
/// Errors: an index that cannot be read: it may refer to any segment.
fn segments_of_unknown_indexes(home: &Home, store: &Store, folder: &str) -> Result<HashSet<String>> {
    let path = home.backups().join(folder);
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(Error::io("list", &path)(error)),
    };
    let mut used = HashSet::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", &path))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(INDEX_SUFFIX) && !store.has_archive_file(&format!("{folder}/{name}"))? {
            used.extend(segments_of(&path.join(name))?);
        }
    }
    Ok(used)
}

fn segments_of(path: &Path) -> Result<Vec<String>> {
    let index = Index::open(path).map_err(|error| {
        Error::failed(format!("no segment in {} is removed: an index there cannot be read", folder_of(path)))
            .because(error)
            .hint("move it away if it is not needed")
    })?;
    Ok(index.segments().to_vec())
}

fn folder_of(path: &Path) -> String {
    path.parent().unwrap_or(path).display().to_string()
}

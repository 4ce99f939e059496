//! Removal of segments to which nothing refers any more (I14): the row is `deleting`, the file unlinked, its folder
//! synced, the row deleted.
//!
//! While the folder holds an index that the database does not know, it may be an older copy that was put back, and
//! nothing in that folder is removed before a rescan has added it.

use std::collections::BTreeMap;

use super::indexes::{UnreadableIndex, read_indexes};
use crate::durable;
use crate::error::Result;
use crate::home::Home;
use crate::store::{Store, StoredFile};

/// Removes the segments that are marked `deleting`, by this process or by one that died. Returns the indexes that
/// cannot be read because of which segments stay until the next time: in their folders nothing is removed.
///
/// Errors: the first one; what can be removed is removed all the same.
pub fn remove_unused_segments(home: &Home, store: &Store) -> Result<Vec<UnreadableIndex>> {
    let mut by_folder: BTreeMap<String, Vec<StoredFile>> = BTreeMap::new();
    for segment in store.segments_being_deleted()? {
        let folder = segment.segment_name.as_deref().and_then(|name| name.split_once('/'));
        if let Some((folder, _)) = folder {
            by_folder.entry(folder.to_owned()).or_default().push(segment);
        }
    }
    if by_folder.is_empty() {
        return Ok(Vec::new());
    }
    super::ensure_ours(home, store)?;
    let mut first_error = None;
    let mut unreadable = Vec::new();
    for (folder, segments) in &by_folder {
        match remove_in_folder(home, store, folder, segments) {
            Ok(found) => unreadable.extend(found),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    first_error.map_or(Ok(unreadable), Err)
}

fn remove_in_folder(home: &Home, store: &Store, folder: &str, segments: &[StoredFile]) -> Result<Vec<UnreadableIndex>> {
    let indexes = read_indexes(home, store, folder)?;
    if !indexes.unreadable.is_empty() {
        return Ok(indexes.unreadable);
    }
    // What a run did not complete is in no archive.
    let may_be_removed = |segment: &&StoredFile| indexes.unknown.is_none() || segment.temporary_name.is_some();
    for segment in segments.iter().filter(may_be_removed) {
        let Some(name) = &segment.segment_name else { continue };
        if indexes.segments.contains(name.rsplit('/').next().unwrap_or(name)) {
            // Each tick of the service comes here; `status` names an index that the database does not know.
            log::debug!("{name} is kept: an index refers to it");
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
    Ok(Vec::new())
}

//! Removal of segments to which nothing refers any more (I14): the row is `deleting`, the file unlinked, its folder
//! synced, the row deleted. Before that the indexes are replaced that still list them (see
//! [`super::replace_moved_indexes`]).
//!
//! While the folder holds an index that the database does not know, it may be an older copy that was put back, and
//! nothing in that folder is removed before a rescan has added it.
//!
//! While a process reads archives of a schedule, and while another one changes its segments, they stay until the next
//! time.

use std::collections::BTreeSet;

use super::indexes::{UnreadableIndex, read_indexes};
use super::replace_moved_indexes;
use crate::durable;
use crate::error::Result;
use crate::home::Home;
use crate::liveness::SegmentLock;
use crate::store::{Store, StoredFile};

/// Removes the segments that are marked `deleting`, by this process or by one that died, and those that a process that
/// died was copying bytes to. Returns the indexes that cannot be read because of which segments stay until the next
/// time: in their folders nothing is removed.
///
/// Errors: the first one; what can be removed is removed all the same.
pub fn remove_unused_segments(home: &Home, store: &Store) -> Result<Vec<UnreadableIndex>> {
    let unused = store.segments_being_deleted()?.into_iter().chain(store.copying_segments()?);
    let folders: BTreeSet<String> = unused.filter_map(|segment| segment.folder().map(str::to_owned)).collect();
    if folders.is_empty() {
        return Ok(Vec::new());
    }
    super::ensure_ours(home, store)?;
    let mut first_error = None;
    let mut unreadable = Vec::new();
    for folder in &folders {
        match remove_in_folder(home, store, folder) {
            Ok(found) => unreadable.extend(found),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    first_error.map_or(Ok(unreadable), Err)
}

fn remove_in_folder(home: &Home, store: &Store, folder: &str) -> Result<Vec<UnreadableIndex>> {
    let Some(_changing) = SegmentLock::try_to_change(home, folder)? else {
        log::debug!("{folder}: unused segments stay for now: another process changes the segments");
        return Ok(Vec::new());
    };
    // Whoever was copying to these held the lock.
    for segment in store.copying_segments()?.iter().filter(|segment| segment.folder() == Some(folder)) {
        store.abandon_segment(segment)?;
    }
    let path = home.backups().join(folder);
    if path.is_dir() {
        durable::remove_abandoned(&path)?;
    }
    let mut segments = store.segments_being_deleted()?;
    segments.retain(|segment| segment.folder() == Some(folder));
    for segment in segments.iter().filter(|segment| segment.temporary_name.is_none()) {
        replace_moved_indexes(home, store, segment.id)?;
    }
    let indexes = read_indexes(home, store, folder)?;
    if !indexes.unreadable.is_empty() {
        return Ok(indexes.unreadable);
    }
    let removing = SegmentLock::try_to_remove(home, folder)?;
    // What a run did not complete is in no archive.
    let may_be_removed = |segment: &&StoredFile| indexes.unknown.is_none() || segment.temporary_name.is_some();
    for segment in segments.iter().filter(may_be_removed) {
        let Some(name) = &segment.segment_name else { continue };
        if indexes.segments.contains(name.rsplit('/').next().unwrap_or(name)) {
            // Each tick of the service comes here; `status` names an index that the database does not know.
            log::debug!("{name} is kept: an index refers to it");
        } else if removing.is_none() && segment.temporary_name.is_none() {
            log::debug!("{name} stays for now: a process reads archives of {folder}");
        } else if !store.is_part(segment.id)? {
            remove_segment(home, store, segment, name)?;
        }
    }
    Ok(Vec::new())
}

fn remove_segment(home: &Home, store: &Store, segment: &StoredFile, name: &str) -> Result<()> {
    let path = home.backups().join(name);
    match &segment.temporary_name {
        // Its run was not completed, or nothing referred to it yet. Another file may have the name that it was to get.
        Some(temporary) => {
            durable::remove(&home.backups().join(temporary))?;
            if segment.identity.is_some() && durable::identity(&path)? == segment.identity {
                durable::remove(&path)?;
            }
        }
        None => durable::remove(&path)?,
    }
    store.remove_segment(segment.id)
}

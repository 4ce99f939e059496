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
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::index_replacement::{file_name, replace_moved_indexes};
use super::indexes::{UnreadableIndex, read_indexes};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
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
        match remove_unused_segments_in(home, store, folder) {
            Ok(found) => unreadable.extend(found),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    first_error.map_or(Ok(unreadable), Err)
}

/// Same as [`remove_unused_segments`] for one folder, which the caller has found to be ours.
pub fn remove_unused_segments_in(home: &Home, store: &Store, folder: &str) -> Result<Vec<UnreadableIndex>> {
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
    let mut first_error = None;
    for segment in segments.iter().filter(|segment| segment.temporary_name.is_none()) {
        match replace_moved_indexes(home, store, segment.id) {
            Ok(()) => {}
            // An index is lost, or not as the database knows it. What it may list stays; other segments do not.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damage) => log::warn!("{error}"),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    let removed = remove_unlisted(home, store, folder, &segments);
    first_error.map_or(removed, Err)
}

/// Removes the segments that no index in the folder lists and that no process may be reading.
fn remove_unlisted(home: &Home, store: &Store, folder: &str, segments: &[StoredFile]) -> Result<Vec<UnreadableIndex>> {
    let is_read = SegmentLock::try_to_remove(home, folder)?.is_none();
    let mut unused = Vec::new();
    for segment in segments {
        // What a run did not complete is in no archive.
        if segment.temporary_name.is_some() || !is_read && !store.is_part(segment.id)? {
            unused.push(segment);
        }
    }
    // Each tick of the service comes here, and the indexes may be many and large.
    if unused.is_empty() {
        log::debug!("{folder}: unused segments stay for now: a process reads archives, or indexes still list them");
        return Ok(Vec::new());
    }
    let indexes = read_indexes(home, store, folder)?;
    if !indexes.unreadable.is_empty() {
        return Ok(indexes.unreadable);
    }
    let removing = SegmentLock::try_to_remove(home, folder)?;
    let may_be_removed =
        |segment: &&&StoredFile| segment.temporary_name.is_some() || removing.is_some() && indexes.unknown.is_none();
    for segment in unused.iter().filter(may_be_removed) {
        let Some(name) = &segment.segment_name else { continue };
        if indexes.segments.contains(file_name(name)) {
            // `status` names an index that the database does not know.
            log::debug!("{name} is kept: an index refers to it");
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
            if is_file_of(segment, &path)? {
                durable::remove(&path)?;
            }
        }
        None => durable::remove(&path)?,
    }
    store.remove_segment(segment.id)
}

/// Returns whether the file at a path is that of the row, by its inode, size and time of change: the number of a device
/// may be another one after a restart.
fn is_file_of(segment: &StoredFile, path: &Path) -> Result<bool> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("inspect", path)(error)),
    };
    let modified_ns = found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec());
    let inode = segment.identity.map(|(_, inode)| inode);
    Ok((inode, segment.size, segment.modified_ns) == (Some(found.ino()), Some(found.len()), Some(modified_ns)))
}

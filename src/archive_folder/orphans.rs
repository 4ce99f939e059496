//! Orphaned segments: those that no index in their folder and no row of the database names. A lost or older database
//! leaves them behind.

use std::fs;
use std::path::PathBuf;

use super::indexes::read_indexes;
use super::unknown::{entries_of, schedule_folders};
use crate::archive_name::SegmentName;
use crate::durable;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::Store;

/// A segment to which nothing refers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanedSegment {
    /// Its path.
    pub path: PathBuf,
    /// Its name below the archive folder.
    pub file_name: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The orphaned segments in the folders of schedules.
#[derive(Clone, Debug, Default)]
pub struct Orphans {
    /// Those to which nothing refers, in order.
    pub segments: Vec<OrphanedSegment>,
    /// The indexes that cannot be read in folders with segments that have no row, any of which they may name, and why.
    pub undecided: Vec<String>,
}

/// Finds the orphaned segments in the folders of schedules.
pub fn find_orphans(home: &Home, store: &Store) -> Result<Orphans> {
    super::ensure_ours(home, store)?;
    let mut orphans = Orphans::default();
    for (_, folder) in schedule_folders(home, store)? {
        add_orphans_in(home, store, &folder, &mut orphans)?;
    }
    orphans.segments.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    Ok(orphans)
}

fn add_orphans_in(home: &Home, store: &Store, folder: &str, found: &mut Orphans) -> Result<()> {
    let mut orphans = Vec::new();
    // The rows are read after the folder was listed: a run writes the row of a segment before its file.
    for (path, name) in entries_of(&home.backups().join(folder))? {
        if SegmentName::parse(&name, folder).is_some() && !store.has_segment(&format!("{folder}/{name}"))? {
            orphans.push((path, name));
        }
    }
    if orphans.is_empty() {
        return Ok(());
    }
    let indexes = read_indexes(home, store, folder)?;
    if !indexes.unreadable.is_empty() {
        let reasons = indexes.unreadable.into_iter().map(|index| index.into_error(home).to_string());
        found.undecided.extend(reasons);
        return Ok(());
    }
    let unnamed = orphans.into_iter().filter(|(_, name)| !indexes.segments.contains(name));
    let with_size = unnamed.filter_map(|(path, name)| {
        // Removed since the folder was listed, or not a file of this program.
        let metadata = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        Some(OrphanedSegment { path, file_name: format!("{folder}/{name}"), bytes: metadata.len() })
    });
    found.segments.extend(with_size);
    Ok(())
}

/// Removes orphaned segments, unless something refers to them by now.
///
/// Errors: the first one that could not be removed.
pub fn remove_orphans(home: &Home, store: &Store, orphans: &[OrphanedSegment]) -> Result<()> {
    let current = find_orphans(home, store)?.segments;
    for orphan in orphans {
        if !current.contains(orphan) {
            return Err(Error::busy(format!("{} is in use by now", orphan.path.display())).hint("run the rescan again"));
        }
        durable::remove(&orphan.path)?;
        log::info!("{}: removed, an orphaned segment", orphan.file_name);
    }
    Ok(())
}

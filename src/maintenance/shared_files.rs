//! Names that share the row of a physical file, and what they are names of now: hard links that were copied as files,
//! or of which one was removed, are different files, each to be verified.

use std::collections::BTreeMap;

use crate::archive_folder;
use crate::durable;
use crate::error::Result;
use crate::home::Home;
use crate::schedule::Layout;
use crate::store::{Archive, Store};

/// Gives each physical file a row of its own, for the archives of one schedule or of all. The row stays with the file
/// that was verified, by its inode number. If that is gone, it stays with the file of the newest archive that has one;
/// none of them counts as verified then.
///
/// Nothing is concluded from files that are all missing, nor if the archive folder is not ours.
pub fn separate_files(home: &Home, store: &Store, schedule: Option<i64>) -> Result<()> {
    let mut by_row: BTreeMap<i64, Vec<Archive>> = BTreeMap::new();
    // Indexes are files of their own, whatever they share.
    for archive in store.archives(schedule)?.into_iter().filter(|archive| archive.layout == Layout::Whole) {
        by_row.entry(archive.archive_file).or_default().push(archive);
    }
    by_row.retain(|_, archives| archives.len() > 1);
    if by_row.is_empty() || archive_folder::ensure_ours(home, store).is_err() {
        return Ok(());
    }
    by_row.into_iter().try_for_each(|(row, archives)| separate(home, store, row, &archives))
}

/// Separates the files of archives that share a row, oldest first.
fn separate(home: &Home, store: &Store, row: i64, archives: &[Archive]) -> Result<()> {
    let mut files: BTreeMap<Option<(u64, u64)>, Vec<i64>> = BTreeMap::new();
    let mut newest = None;
    for archive in archives {
        let identity = durable::identity(&home.backups().join(&archive.file_name))?;
        newest = identity.or(newest);
        files.entry(identity).or_default().push(archive.run);
    }
    let Some(newest) = newest.filter(|_| files.len() > 1) else { return Ok(()) };
    let known = store.known_inode(row)?;
    let verified = files.keys().flatten().find(|(_, inode)| Some(*inode) == known);
    if verified.is_none() {
        store.record_other_file(row, newest)?;
    }
    let keeper = *verified.unwrap_or(&newest);
    for (identity, runs) in files.iter().filter(|(identity, _)| **identity != Some(keeper)) {
        log::info!("@{}: its file is not the one that it shared with other archives", runs[0]);
        store.split_file(row, runs, *identity)?;
    }
    Ok(())
}

//! Deleting archives (I8): row `deleting`, unlink, fsync the folder, then the row goes. Finishing it twice changes
//! nothing.

use crate::archive::place;
use crate::error::Result;
use crate::home::Home;
use crate::store::Store;

/// Deletes complete archives by the numbers of their runs. Unknown files are never touched.
pub fn delete_archives(home: &Home, store: &Store, runs: &[i64]) -> Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    super::check(home, store)?;
    store.mark_deleting(runs)?;
    finish_deletions(home, store).map(drop)
}

/// Finishes what was marked `deleting`, by this process or one that died, and returns how many archives that were.
pub fn finish_deletions(home: &Home, store: &Store) -> Result<usize> {
    let deleting = store.deleting()?;
    if deleting.is_empty() {
        return Ok(0);
    }
    super::check(home, store)?;
    for archive in &deleting {
        place::remove(&home.backups().join(&archive.file_name))?;
        store.remove_deleted(archive.run)?;
    }
    Ok(deleting.len())
}

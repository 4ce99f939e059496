//! Deleting archives (I8): row `deleting`, unlink, fsync the folder, then the row goes. Finishing it twice changes
//! nothing. Unknown files stay; attempts that no row tells of any more are ours, and go.

use std::collections::{BTreeSet, HashSet};
use std::io;

use crate::archive_name::is_temporary_name;
use crate::durable;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::Store;

/// Finishes what was marked `deleting`, by this process or one that died, and returns how many archives that were.
///
/// Errors: that of the first file that could not be removed. The others go all the same.
pub fn finish_deletions(home: &Home, store: &Store) -> Result<usize> {
    let deleting = store.archives_being_deleted()?;
    if deleting.is_empty() {
        return Ok(0);
    }
    super::ensure_ours(home, store)?;
    // No stable name may lead to what goes, not even for those who come after a kill.
    let schedules: BTreeSet<i64> = deleting.iter().map(|archive| archive.schedule).collect();
    let rows = schedules.into_iter().map(|id| store.schedule(id)).collect::<Result<Vec<_>>>()?;
    let unmade = super::refresh_links_only(home, store, &rows)?;
    let mut stuck = None;
    for archive in &deleting {
        match durable::remove(&home.backups().join(&archive.file_name)) {
            Ok(()) => store.remove_deleted(archive.run)?,
            Err(error) => drop(stuck.get_or_insert(error)),
        }
    }
    if !unmade.is_empty() {
        super::refresh_links_only(home, store, &rows)?;
        unmade.iter().for_each(|note| log::warn!("{note}"));
    }
    stuck.map_or(Ok(deleting.len()), Err)
}

/// Removes unfinished files in the folder `schedule` that belong to no attempt: the disk failed before they could be
/// removed, or the power before that was synced. The folder must be known to be this database's.
pub fn remove_orphaned_files(home: &Home, store: &Store, schedule: &str) -> Result<()> {
    let folder = home.backups().join(schedule);
    // Listed before asked: who makes such a file has written its row before.
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", &folder)(error)),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let found: Vec<String> = names.filter(|name| is_temporary_name(name, schedule)).collect();
    if found.is_empty() {
        return Ok(());
    }
    let under_way: HashSet<String> = store.temporary_names()?.into_iter().collect();
    for name in found.iter().filter(|name| !under_way.contains(&format!("{schedule}/{name}"))) {
        durable::remove(&folder.join(name))?;
        log::info!("{schedule}: removed {name}, which an attempt left behind");
    }
    Ok(())
}

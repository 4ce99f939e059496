//! Deletion of archives (I8): the row is marked `deleting`, the file unlinked, its folder synced, the row deleted. Each
//! step can be repeated. Unknown files are left alone; temporary files of attempts that have no row are ours, and are
//! removed.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::thread;
use std::time::Duration;

use crate::archive_name::is_temporary_name;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::liveness::SegmentLock;
use crate::store::{PendingArchive, Store};
use crate::words;

/// How long a removal waits for another process that changes files of the schedule.
const MAX_WAIT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What became of archives that were marked for deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// How many are removed.
    pub removed: usize,
    /// How many are removed later, because another process is changing files of their schedule.
    pub waiting: usize,
}

impl Deleted {
    /// Returns what is said about the archives of the schedule `name` that are removed later; `None` if there are none.
    pub fn waiting_note(&self, name: &str) -> Option<String> {
        (self.waiting > 0).then(|| {
            format!(
                "{name}: {} will be removed by the service or the next `backup-manager prune`: another process is \
                 changing its files",
                words::count(self.waiting as u64, "archive")
            )
        })
    }
}

/// Removes `marked` archives, among those of `runs`, that the caller has marked `deleting`. Waits a few seconds while
/// another process changes files of their schedule.
///
/// Errors: those of [`finish_deletions`].
pub fn delete_marked(home: &Home, store: &Store, runs: &[i64], marked: usize) -> Result<Deleted> {
    let mut waited = Duration::ZERO;
    loop {
        finish_deletions(home, store)?;
        let left = store.archives_being_deleted()?;
        let waiting = left.iter().filter(|archive| runs.contains(&archive.run)).count();
        if waiting == 0 || waited >= MAX_WAIT {
            return Ok(Deleted { removed: marked.saturating_sub(waiting), waiting });
        }
        thread::sleep(POLL_INTERVAL);
        waited += POLL_INTERVAL;
    }
}

/// Finishes the deletions that are marked `deleting`, by this process or by one that died, and returns the number of
/// archives. Segments in a folder with an index that cannot be read stay until the next time.
///
/// Errors: that of the first file that could not be removed; the others are removed all the same.
pub fn finish_deletions(home: &Home, store: &Store) -> Result<usize> {
    let deleting = store.archives_being_deleted()?;
    if deleting.is_empty() {
        return super::remove_unused_segments(home, store).map(|_| 0);
    }
    super::ensure_ours(home, store)?;
    // No stable link may point to a file that is removed, even if this process is killed in between.
    let schedules: BTreeSet<i64> = deleting.iter().map(|archive| archive.schedule).collect();
    let rows = schedules.into_iter().map(|id| store.schedule(id)).collect::<Result<Vec<_>>>()?;
    let warnings = super::refresh_links_only(home, store, &rows)?;
    let (mut first_error, mut removed) = (None, 0);
    for archive in &deleting {
        match delete_archive(home, store, archive) {
            Ok(is_removed) => removed += usize::from(is_removed),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    if !warnings.is_empty() {
        // The removal has made room, which a link may need.
        super::refresh_links_only(home, store, &rows)?;
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
    }
    match super::remove_unused_segments(home, store) {
        Ok(unreadable) => unreadable.into_iter().for_each(|index| log::warn!("{}", index.into_error(home))),
        Err(error) => drop(first_error.get_or_insert(error)),
    }
    first_error.map_or(Ok(removed), Err)
}

/// Removes the file of an archive that is marked `deleting`, then its rows. Returns false, and does nothing, while
/// another process replaces indexes or archive files in the folder: it might bring the file back.
fn delete_archive(home: &Home, store: &Store, archive: &PendingArchive) -> Result<bool> {
    let folder = archive.file_name.split_once('/').map_or("", |(folder, _)| folder);
    let _changing = match SegmentLock::try_to_change(home, folder) {
        Ok(None) => {
            log::debug!("{} is removed later: another process changes files of {folder}", archive.file_name);
            return Ok(false);
        }
        // There is no room for the file of the lock, so that nobody has it. The removal makes room.
        Err(error) if error.kind() == ErrorKind::DiskFull => None,
        locked => locked?,
    };
    durable::remove(&home.backups().join(&archive.file_name))?;
    store.remove_deleted(archive.run).map(|()| true)
}

/// Removes temporary files in the folder of `schedule` that belong to no attempt. They remain when the disk failed
/// before they could be removed, or the power before their removal was synced. The caller has checked that the archive
/// folder belongs to this database.
pub fn remove_orphaned_files(home: &Home, store: &Store, schedule: &str) -> Result<()> {
    let folder = home.backups().join(schedule);
    // Who replaces indexes or archive files holds this lock while it writes them under random names.
    if folder.is_dir()
        && let Some(_lock) = SegmentLock::try_to_change(home, schedule)?
    {
        durable::remove_abandoned(&folder)?;
    }
    // The folder is listed before the rows are read: an attempt writes its row before it creates its file.
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
    let in_use: HashSet<String> = store.temporary_names()?.into_iter().collect();
    for name in found.iter().filter(|name| !in_use.contains(&format!("{schedule}/{name}"))) {
        durable::remove(&folder.join(name))?;
        log::info!("{schedule}: removed {name}, an orphaned temporary file");
    }
    Ok(())
}

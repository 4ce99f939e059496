//! Locks on the segments of a schedule, on files beside the database: as long as a process reads archives, none of
//! their segments is removed, and one process at a time replaces indexes and removes files.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::{Errno, retry_on_intr};

use crate::error::{Error, Result};
use crate::home::Home;
use crate::owner;
use crate::schedule::Layout;

/// A lock on the segments of a schedule, until it is dropped.
#[derive(Debug)]
pub struct SegmentLock {
    locked: File,
}

impl Drop for SegmentLock {
    fn drop(&mut self) {
        // A child process that is just being started may hold the file until it executes another program.
        let _ = flock(&self.locked, FlockOperation::Unlock);
    }
}

impl SegmentLock {
    /// Waits for the lock that readers of the archives in a folder share. It must be taken before the index of the
    /// archive, `file_name` below the archive folder, is opened.
    ///
    /// Returns `None` for an archive that is not in segments, and if the file of the lock cannot be opened, as for a
    /// user who may only read: such a reader fails by the name of a segment that was removed meanwhile.
    pub fn to_read(home: &Home, layout: Layout, file_name: &str) -> Option<SegmentLock> {
        let (schedule, _) = file_name.split_once('/').filter(|_| layout == Layout::Segmented)?;
        let locked = open(home, schedule, "readers").and_then(|file| {
            retry_on_intr(|| flock(&file, FlockOperation::LockShared))?;
            Ok(file)
        });
        match locked {
            Ok(file) => Some(SegmentLock { locked: file }),
            Err(error) => {
                log::debug!("{schedule}: archives are read without a lock: {error}");
                None
            }
        }
    }

    /// Takes the lock under which segments are removed; `None` while a process reads archives of the schedule.
    pub fn try_to_remove(home: &Home, schedule: &str) -> Result<Option<SegmentLock>> {
        try_exclusive(home, schedule, "readers")
    }

    /// Takes the lock under which archive files and indexes are replaced and removed, and bytes move from one segment
    /// to another; `None` while another process does that in the folder of the schedule.
    pub fn try_to_change(home: &Home, schedule: &str) -> Result<Option<SegmentLock>> {
        try_exclusive(home, schedule, "changes")
    }
}

fn try_exclusive(home: &Home, schedule: &str, kind: &str) -> Result<Option<SegmentLock>> {
    let failed = |error| Error::io("lock the segments in", &home.backups().join(schedule))(error);
    let file = open(home, schedule, kind).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(SegmentLock { locked: file })),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

/// Opens the file of a lock, and creates it if it does not exist. A user who may only read it can lock it, too.
/// Opens the file of a lock, `SCHEDULE.KIND`.
pub(super) fn open(home: &Home, schedule: &str, kind: &str) -> io::Result<File> {
    let folder = home.segment_locks();
    let path = folder.join(format!("{schedule}.{kind}"));
    match open_or_create(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            owner::create_folder(&folder, home.folder_mode())?;
            open_or_create(&path)
        }
        opened => opened,
    }
}

fn open_or_create(path: &Path) -> io::Result<File> {
    owner::open_or_create(path, OFlags::RDONLY, 0o644).or_else(|error| File::open(path).map_err(|_| error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::HomeOptions;

    #[test]
    fn readers_share_the_lock_and_keep_segments_from_being_removed() {
        let dir = tempfile::tempdir().unwrap();
        let places = HomeOptions { home: Some(dir.path().to_owned()), ..HomeOptions::default() };
        let home = Home::locate(&places, dir.path()).unwrap();
        let readers = [(); 2].map(|()| SegmentLock::to_read(&home, Layout::Segmented, "a b/file").expect("a lock"));
        assert!(SegmentLock::to_read(&home, Layout::Whole, "a b/file").is_none());
        assert!(SegmentLock::try_to_remove(&home, "a b").unwrap().is_none());
        let other = SegmentLock::try_to_remove(&home, "other").unwrap();
        assert!(other.is_some() && SegmentLock::try_to_change(&home, "a b").unwrap().is_some());
        drop(readers);
        let removing = SegmentLock::try_to_remove(&home, "a b").unwrap();
        assert!(removing.is_some() && SegmentLock::try_to_remove(&home, "a b").unwrap().is_none());
    }
}

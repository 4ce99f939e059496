//! Random temporary names, and what killed processes leave under them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::remove;
use crate::error::{Error, Result};

/// The beginning and the end of random temporary names.
const TEMP_PREFIX: &str = ".backup-manager-";
const TEMP_SUFFIX: &str = ".part";

/// Returns a random temporary name.
pub fn random_name() -> Result<String> {
    let random = getrandom::u64()
        .map_err(|e| Error::failed("the system gives no random numbers").because(io::Error::other(e.to_string())))?;
    Ok(temporary_name(random))
}

/// Returns the temporary name with this number, which the caller drew at random or counts from one that was.
pub fn temporary_name(number: u64) -> String {
    format!("{TEMP_PREFIX}{number:016x}{TEMP_SUFFIX}")
}

/// Returns whether a name is a random temporary name, as only this module creates them.
pub fn is_temporary_name(name: &str) -> bool {
    let random = name.strip_prefix(TEMP_PREFIX).and_then(|rest| rest.strip_suffix(TEMP_SUFFIX));
    random.is_some_and(|random| random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A temporary name that is unlinked when dropped while armed.
#[derive(Debug)]
pub(super) struct TempName {
    pub path: PathBuf,
    pub armed: bool,
}

impl Drop for TempName {
    fn drop(&mut self) {
        if self.armed {
            // A failure cannot be handled here; recovery removes temporary files of dead workers.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the temporary files with random names that killed processes left in a folder. The caller holds the lock
/// under which all processes write in this folder, so that none of the files is in use.
pub fn remove_abandoned(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // SQLite keeps a journal beside a copy that it writes.
        if is_temporary_name(name.strip_suffix("-journal").unwrap_or(&name)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// A lock on a folder that several processes write in: the archive folder itself, or a folder that belongs to the user.
/// Archives lie in folders below the archive folder and need no lock.
pub struct FolderLock {
    _locked: File,
}

impl FolderLock {
    /// Waits for the lock, then removes temporary files that killed processes left. On a file system without locks
    /// there is no lock, and nothing is removed.
    pub fn acquire(folder: &Path) -> Result<FolderLock> {
        let handle = File::open(folder).map_err(Error::io("open", folder))?;
        match flock(&handle, FlockOperation::LockExclusive) {
            Ok(()) => remove_abandoned(folder)?,
            Err(error) => log::debug!("{} cannot be locked: {error}", folder.display()),
        }
        Ok(FolderLock { _locked: handle })
    }

    /// Takes the lock if it is free, then removes temporary files that killed processes left. Returns `None` if another
    /// process has the lock or any of this fails.
    pub fn try_acquire(folder: &Path) -> Option<FolderLock> {
        let handle = File::open(folder).ok()?;
        flock(&handle, FlockOperation::NonBlockingLockExclusive).ok()?;
        remove_abandoned(folder).ok()?;
        Some(FolderLock { _locked: handle })
    }
}

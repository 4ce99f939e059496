//! Copies of the database beside the archives, one a day, and putting one back.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::archive_folder;
use crate::clock::Timestamp;
use crate::durable::{self, PendingFile};
use crate::error::{Error, Result};
use crate::home::{Home, with_suffix};
use crate::store::{self, Store};

/// Folder of the copies, in the archive folder.
const FOLDER: &str = ".database";
/// Copies that stay.
const KEPT: usize = 7;

/// A copy that was put back.
#[derive(Clone, Debug)]
pub struct RestoredDatabase {
    /// The copy, which stays.
    pub copy: PathBuf,
    /// The database that was there, under its new name.
    pub aside: Option<PathBuf>,
}

/// Copies the database beside the archives, checks the copy from end to end before it gets its name, and lets the
/// oldest copies go. Returns its path.
pub fn copy_database(home: &Home, store: &Store, now: Timestamp) -> Result<PathBuf> {
    archive_folder::ensure_ours(home, store)?;
    let folder = home.backups().join(FOLDER);
    durable::make_folder(&folder, home.folder_mode())?;
    // What a killed process left half written: of several services one makes the copy, so nobody is using it.
    durable::remove_abandoned(&folder)?;
    let path = copy_of(home, now);
    let pending = PendingFile::create(&path, home.file_mode())?;
    store.copy_into(pending.temp_path())?;
    store::check_copy(pending.temp_path())?;
    let placed = pending.seal()?.persist(&path, false);
    match placed {
        Err(error) if path.exists() => log::debug!("a copy of this second exists: {error}"),
        other => drop(other?),
    }
    // Those made under a clock that was ahead must not keep the true ones from staying; which of the two clocks is
    // wrong, nobody knows.
    for group in ahead_and_old(home, &path)? {
        for path in group.iter().rev().skip(KEPT) {
            durable::remove(path)?;
        }
    }
    Ok(path)
}

/// Returns what a copy made now is called.
fn copy_of(home: &Home, now: Timestamp) -> PathBuf {
    home.backups().join(FOLDER).join(format!("backup-{}.db", now.compact_utc()))
}

/// Returns the copies that are called as later than `path`, and the others, oldest first.
fn ahead_and_old(home: &Home, path: &Path) -> Result<[Vec<PathBuf>; 2]> {
    let (ahead, old) = copies(home)?.into_iter().partition(|other| other.as_path() > path);
    Ok([ahead, old])
}

/// Returns the copies beside the archives, oldest first.
pub fn copies(home: &Home) -> Result<Vec<PathBuf>> {
    let folder = home.backups().join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", &folder)(error)),
    };
    let is_copy = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("backup-").and_then(|rest| rest.strip_suffix("Z.db")).is_some_and(|stamp| stamp.len() == 15)
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_copy).collect();
    paths.sort();
    Ok(paths)
}

/// Puts a copy of the database in its place: `copy`, or the newest that is whole. What was there is moved aside.
///
/// Errors: `NotFound` where there is no copy; `Busy` while anybody has the database open; `Damage` for a copy that is
/// not whole, and then nothing is changed.
pub fn restore_database_copy(home: &Home, copy: Option<&Path>, now: Timestamp) -> Result<RestoredDatabase> {
    let copy = match copy {
        Some(path) => {
            fs::metadata(path)
                .map_err(|e| Error::not_found(format!("there is no copy {}", path.display())).because(e))?;
            store::check_copy(path)?;
            path.to_owned()
        }
        None => newest_whole(home, now)?,
    };
    let lock_path = with_suffix(home.db(), ".lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(Error::io("open", &lock_path))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::busy(format!("others have the database {} open", home.db().display()))
            .hint("stop the service first: `backup-manager stop`"));
    }
    // With the lock, nobody is using what a killed process left of this name.
    let temporary = with_suffix(home.db(), ".put-back");
    durable::remove(&temporary)?;
    let mut pending = PendingFile::create_named(&temporary, home.file_mode())?;
    let mut from = File::open(&copy).map_err(Error::io("open", &copy))?;
    io::copy(&mut from, pending.file()).map_err(Error::io("copy", &copy))?;
    let sealed = pending.seal()?;
    let aside = move_aside(home, now)?;
    sealed.persist(home.db(), false)?;
    Ok(RestoredDatabase { copy, aside })
}

/// Those that a clock made that was ahead come last.
fn newest_whole(home: &Home, now: Timestamp) -> Result<PathBuf> {
    let mut why = None;
    for path in ahead_and_old(home, &copy_of(home, now))?.concat().into_iter().rev() {
        match store::check_copy(&path) {
            Ok(()) => return Ok(path),
            Err(error) => why = why.or(Some(error)),
        }
    }
    Err(why.unwrap_or_else(|| {
        Error::not_found(format!("there is no copy of the database in {}", home.backups().join(FOLDER).display()))
            .hint("make the catalog anew from the archives: `backup-manager rescan`")
    }))
}

/// Moves the database with what stands beside it: a journal must never meet another database.
fn move_aside(home: &Home, now: Timestamp) -> Result<Option<PathBuf>> {
    let there = fs::symlink_metadata(home.db()).is_ok_and(|found| found.size() > 0);
    const PARTS: [&str; 4] = ["-wal", "-shm", "-journal", ""];
    let mut aside = with_suffix(home.db(), &format!(".aside-{}", now.compact_utc()));
    // One that was put back and cut off in this very second has taken the name.
    while PARTS.iter().any(|suffix| fs::symlink_metadata(with_suffix(&aside, suffix)).is_ok()) {
        aside = with_suffix(&aside, "-again");
    }
    for suffix in PARTS {
        let from = with_suffix(home.db(), suffix);
        match fs::symlink_metadata(&from) {
            Ok(_) => durable::rename_no_replace(&from, &with_suffix(&aside, suffix))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("inspect", &from)(error)),
        }
    }
    Ok(there.then_some(aside))
}

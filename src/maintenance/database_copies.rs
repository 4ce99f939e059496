//! Copies of the database in the archive folder, one a day, and restoring the database from one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::archive_folder::{self, COPIES_FOLDER};
use crate::clock::Timestamp;
use crate::durable::{self, PendingFile};
use crate::error::{Error, Result};
use crate::home::{Home, with_suffix};
use crate::owner;
use crate::store::{self, Store};

/// Number of copies that are kept.
const KEPT_COPIES: usize = 7;

/// A database that was restored from a copy.
#[derive(Clone, Debug)]
pub struct RestoredDatabase {
    /// The copy, which is kept.
    pub copy: PathBuf,
    /// The new name of the previous database, if there was one.
    pub previous: Option<PathBuf>,
}

/// Copies the database into the archive folder, checks the whole copy before it gets its name, and removes the oldest
/// copies. Returns the path of the copy.
pub fn copy_database(home: &Home, store: &Store, now: Timestamp) -> Result<PathBuf> {
    archive_folder::ensure_ours(home, store)?;
    let folder = home.backups().join(COPIES_FOLDER);
    durable::make_folder(&folder, home.folder_mode())?;
    // Temporary files of killed processes: only one of several services makes the copy, so no process uses them.
    durable::remove_abandoned(&folder)?;
    let path = copy_path(home, now);
    let pending = PendingFile::create(&path, home.file_mode())?;
    store.copy_into(pending.temp_path())?;
    store::check_copy(pending.temp_path())?;
    match pending.seal()?.persist(&path, false) {
        Err(error) if path.exists() => log::debug!("a copy with this time exists: {error}"),
        other => drop(other?),
    }
    // Copies made under a clock that was ahead must not displace those with the right time. Which of the two clocks is
    // wrong is unknown, so both groups are kept.
    for group in later_and_earlier(home, &path)? {
        for path in group.iter().rev().skip(KEPT_COPIES) {
            durable::remove(path)?;
        }
    }
    Ok(path)
}

/// Returns the path of a copy made at `now`.
fn copy_path(home: &Home, now: Timestamp) -> PathBuf {
    home.backups().join(COPIES_FOLDER).join(format!("backup-{}.db", now.compact_utc()))
}

/// Returns the copies whose names have a later time than `path`, and the others, each oldest first.
fn later_and_earlier(home: &Home, path: &Path) -> Result<[Vec<PathBuf>; 2]> {
    let (later, earlier) = copies(home)?.into_iter().partition(|other| other.as_path() > path);
    Ok([later, earlier])
}

/// Returns the copies in the archive folder, oldest first.
fn copies(home: &Home) -> Result<Vec<PathBuf>> {
    let folder = home.backups().join(COPIES_FOLDER);
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

/// Restores the database from `copy`, or from the newest copy that is intact. The previous database is renamed.
///
/// Errors: `NotFound` if there is no copy; `Busy` while another process has the database open; `DatabaseDamage` if the
/// copy is damaged. In these cases nothing is changed.
pub fn restore_database_copy(home: &Home, copy: Option<&Path>, now: Timestamp) -> Result<RestoredDatabase> {
    let copy = match copy {
        Some(path) => {
            fs::metadata(path)
                .map_err(|e| Error::not_found(format!("there is no copy {}", path.display())).because(e))?;
            store::check_copy(path).map_err(|error| {
                let is_beside = path.parent().is_some_and(|folder| folder.ends_with(COPIES_FOLDER));
                error.hint(match archive_folder::has_database_copy(home) && !is_beside {
                    true => recovery_step(home),
                    false => rebuild_step(home),
                })
            })?;
            path.to_owned()
        }
        None => newest_intact_copy(home, now)?,
    };
    if let Some(folder) = home.db().parent() {
        durable::make_folder(folder, home.folder_mode())?;
    }
    let _lock = lock_database(home)?;
    // With the lock no process uses a file of this name; one may remain of a killed process.
    let temporary = with_suffix(home.db(), ".put-back");
    durable::remove(&temporary)?;
    let mut pending = PendingFile::create_named(&temporary, home.file_mode())?;
    if with_suffix(&copy, "-wal").exists() {
        // Part of its content lies in the journal beside it.
        store::copy_with_journal(&copy, &temporary)?;
    } else {
        let mut from = File::open(&copy).map_err(Error::io("open", &copy))?;
        io::copy(&mut from, pending.file()).map_err(Error::io("copy", &copy))?;
    }
    let sealed = pending.seal()?;
    let previous = rename_previous(home, now)?;
    sealed.persist(home.db(), false)?;
    Ok(RestoredDatabase { copy, previous })
}

/// Locks the database against every other process. The lock lasts until the result is dropped.
fn lock_database(home: &Home) -> Result<File> {
    let path = with_suffix(home.db(), ".lock");
    let lock = owner::open_or_create(&path, OFlags::WRONLY, 0o644).map_err(Error::io("open", &path))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::busy(format!("other processes have the database {} open", home.db().display()))
            .hint("stop the service first: `backup-manager stop`"));
    }
    Ok(lock)
}

/// Returns the newest copy that is intact. Copies with a time in the future, made under a clock that was ahead, are
/// tried last.
fn newest_intact_copy(home: &Home, now: Timestamp) -> Result<PathBuf> {
    let mut newest_error = None;
    for path in later_and_earlier(home, &copy_path(home, now))?.concat().into_iter().rev() {
        match store::check_copy(&path) {
            Ok(()) => return Ok(path),
            Err(error) => newest_error = newest_error.or(Some(error)),
        }
    }
    let error = newest_error.unwrap_or_else(|| {
        let folder = home.backups().join(COPIES_FOLDER);
        Error::not_found(format!("there is no copy of the database in {}", folder.display()))
    });
    Err(error.hint(rebuild_step(home)))
}

/// Returns the command that brings back a database that is damaged or lost.
pub fn recovery_step(home: &Home) -> String {
    match archive_folder::has_database_copy(home) {
        true => "restore its newest copy with `backup-manager rescan --from-copy`".to_owned(),
        false => rebuild_step(home),
    }
}

/// Returns the commands that bring back a database of which there is no intact copy.
fn rebuild_step(home: &Home) -> String {
    let rescan = "rebuild it from the archives with `backup-manager rescan`";
    let db = home.db().display();
    match fs::symlink_metadata(home.db()) {
        Ok(_) => format!("move {db}, {db}-wal and {db}-shm to another folder, then {rescan}"),
        Err(_) => rescan.to_owned(),
    }
}

/// Renames the database together with its journals, since a journal must never be applied to another database. Returns
/// the new name; `None` if there was no database.
fn rename_previous(home: &Home, now: Timestamp) -> Result<Option<PathBuf>> {
    const PARTS: [&str; 4] = ["-wal", "-shm", "-journal", ""];
    let exists = fs::symlink_metadata(home.db()).is_ok_and(|found| found.size() > 0);
    let mut previous = with_suffix(home.db(), &format!(".aside-{}", now.compact_utc()));
    // A restore that was interrupted in this same second may have taken the name.
    while PARTS.iter().any(|suffix| fs::symlink_metadata(with_suffix(&previous, suffix)).is_ok()) {
        previous = with_suffix(&previous, "-again");
    }
    for suffix in PARTS {
        let from = with_suffix(home.db(), suffix);
        match fs::symlink_metadata(&from) {
            Ok(_) => durable::rename_no_replace(&from, &with_suffix(&previous, suffix))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("inspect", &from)(error)),
        }
    }
    Ok(exists.then_some(previous))
}

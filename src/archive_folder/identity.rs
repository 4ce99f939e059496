//! The identity of the archive folder: which database its archives belong to (I9).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::durable::{self, FolderLock};
use crate::error::{Error, Result};
use crate::home::{self, Home};
use crate::store::Store;

/// Name of the file in the archive folder that holds its identity.
const IDENTITY: &str = ".backup-manager";

/// Name of the folder of the database copies, in the archive folder.
pub const COPIES_FOLDER: &str = ".database";
/// How old the recorded time of the last use may become.
const USE_RECORDED_EVERY: Duration = Duration::from_secs(86_400);

#[derive(Serialize, Deserialize)]
struct Identity {
    /// The database whose archives are stored in the folder.
    database: uuid::Uuid,
    /// The path of that database.
    #[serde(default)]
    path: Option<PathBuf>,
    /// When it last used the folder, to the day.
    #[serde(default)]
    last_used_at_ms: Option<i64>,
    /// The inode of the folder: a copy of the folder has another one, and does not belong to that database any more.
    #[serde(default)]
    folder_inode: Option<u64>,
}

impl Identity {
    /// Describes the database to the user.
    fn describe(&self) -> String {
        let path = self.path.as_ref().map_or_else(|| self.database.to_string(), |path| path.display().to_string());
        match self.last_used_at_ms {
            Some(at) => format!("{path}, which last used it at {}", Timestamp::from_millis(at).rfc3339(&chrono::Utc)),
            None => path,
        }
    }

    /// Returns whether the folder is used by another database, which still exists on this machine.
    fn is_in_use(&self, home: &Home) -> bool {
        let is_copied = self.folder_inode != inode_of(home.backups());
        !is_copied && self.path.as_ref().is_some_and(|path| path != home.db() && path.try_exists().unwrap_or(true))
    }
}

/// Ensures that the archive folder belongs to this database, before anything in it is written, pruned or marked (I9).
///
/// The folder is created and its identity written while the catalog holds no archives. Once it holds some, a folder
/// without an identity is one whose disk is not mounted.
///
/// Errors: `Failed` if the folder belongs to another database, has no identity although the catalog holds archives, or
/// cannot be written.
pub fn ensure_ours(home: &Home, store: &Store) -> Result<()> {
    match owner(home, store)? {
        Owner::ThisDatabase => check_writable(home.backups()),
        Owner::Nobody => {
            durable::make_folder(home.backups(), home.folder_mode()).map_err(|e| unwritable(home.backups(), e))?;
            let _lock = FolderLock::acquire(home.backups())?;
            write_first_identity(home, store)
        }
    }
}

/// Checks the archive folder as [`ensure_ours`] does, but changes nothing. After an error here no run could succeed.
pub fn inspect(home: &Home, store: &Store) -> Result<()> {
    match owner(home, store)? {
        Owner::Nobody if !home.backups().exists() => Ok(()),
        _ => check_writable(home.backups()),
    }
}

/// Makes the folder and the database belong to each other, for a rescan. Returns whether the database took over the
/// identity of the folder; it must then be opened again.
///
/// A database without schedules, runs and archives takes over the identity of the folder, unless the database that the
/// folder belongs to still exists. In any other case the folder gets the identity of this database, if `force`.
///
/// Errors: those of [`ensure_ours`], if neither is allowed.
pub fn adopt(home: &Home, store: &Store, force: bool, now: Timestamp) -> Result<bool> {
    durable::make_folder(home.backups(), home.folder_mode()).map_err(|e| unwritable(home.backups(), e))?;
    let _lock = FolderLock::acquire(home.backups())?;
    match found_identity(home) {
        Some(found) if found.database == store.identity() => Ok(false),
        Some(found) if !store.is_used()? && !found.is_in_use(home) => {
            store.adopt_identity(found.database)?;
            Ok(true)
        }
        _ if force => write_identity(home, store, Some(now), true).map(|()| false),
        _ => write_first_identity(home, store).map(|()| false),
    }
}

/// Records in the identity which database uses the folder and when, once a day. A failure is logged: the record only
/// serves messages.
pub fn record_use(home: &Home, store: &Store, now: Timestamp) {
    let is_recent = |identity: &Identity| {
        let used_at = identity.last_used_at_ms.map(Timestamp::from_millis);
        let is_path = identity.path.as_deref() == Some(home.db()) && identity.folder_inode == inode_of(home.backups());
        is_path && used_at.is_some_and(|at| at <= now && now.since(at) < USE_RECORDED_EVERY)
    };
    if found_identity(home).is_some_and(|identity| identity.database == store.identity() && !is_recent(&identity))
        && let Err(error) = write_identity(home, store, Some(now), true)
    {
        log::warn!("the use of the archive folder was not recorded: {error}");
    }
}

/// Returns whether the archive folder belongs to a database that is lost, if that of this home does not exist: to none
/// that exists elsewhere.
pub fn belongs_to_lost_database(home: &Home) -> bool {
    !home.db().exists() && found_identity(home).is_some_and(|identity| !identity.is_in_use(home))
}

/// Returns whether the archive folder holds a copy of the database.
pub fn has_database_copy(home: &Home) -> bool {
    let entries = fs::read_dir(home.backups().join(COPIES_FOLDER)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| is_database_copy(&name.to_string_lossy()))
}

/// Returns whether a file of this name is a copy of the database: `backup-UTC.db.zst`, or `backup-UTC.db` as versions
/// before wrote them.
pub fn is_database_copy(name: &str) -> bool {
    let plain = name.strip_suffix(".zst").unwrap_or(name);
    plain.strip_prefix("backup-").and_then(|rest| rest.strip_suffix("Z.db")).is_some_and(|time| time.len() == 15)
}

/// Returns whether the archive folder has the identity of another database.
pub(super) fn belongs_to_other_database(home: &Home, store: &Store) -> bool {
    found_identity(home).is_some_and(|identity| identity.database != store.identity())
}

/// To whom an archive folder belongs that this database may use.
enum Owner {
    ThisDatabase,
    /// It has no identity yet and may get one.
    Nobody,
}

/// Returns the owner of the folder.
///
/// Errors: `Failed` if this database may not use the folder.
fn owner(home: &Home, store: &Store) -> Result<Owner> {
    let folder = home.backups();
    let identity = folder.join(IDENTITY);
    match fs::read(&identity) {
        Ok(text) => match serde_json::from_slice::<Identity>(&text) {
            Ok(found) if found.database == store.identity() => Ok(Owner::ThisDatabase),
            Ok(found) => Err(foreign_folder(home, store, &found)?),
            Err(error) => Err(Error::failed(format!("the identity {} cannot be read", identity.display()))
                .because(error)
                .hint("if this is the right archive folder, adopt it with `backup-manager rescan --adopt`")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && store.has_archives()? => {
            Err(missing_identity(home, store)?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Owner::Nobody),
        Err(error) => Err(Error::io("read", &identity)(error)),
    }
}

/// Returns the error for a folder that belongs to another database, with the way out that fits: that database may be in
/// use elsewhere, or it was the one of this home and is lost.
fn foreign_folder(home: &Home, store: &Store, found: &Identity) -> Result<Error> {
    let hint = if found.is_in_use(home) {
        "use another folder: name it with --backups or BACKUP_DIR"
    } else if holds_archive_of(home, store)? {
        "it holds archives of this database: adopt it with `backup-manager rescan --adopt`"
    } else if store.has_archives()? {
        "name the folder that holds the archives of this database with --backups or BACKUP_DIR"
    } else if has_database_copy(home) {
        "if that database is lost, restore its newest copy with `backup-manager rescan --from-copy`"
    } else if store.is_used()? {
        "if that database is lost, adopt the folder and add its archives with `backup-manager rescan --adopt`"
    } else {
        "if that database is lost, add its archives with `backup-manager rescan`"
    };
    let folder = home.backups().display();
    Ok(Error::failed(format!("the archive folder {folder} belongs to another database: {}", found.describe()))
        .hint(hint))
}

/// Returns the error for a folder without an identity although the catalog holds archives: it is the right one if it
/// holds one of them.
fn missing_identity(home: &Home, store: &Store) -> Result<Error> {
    let folder = home.backups();
    let (what, hint) = if holds_archive_of(home, store)? {
        ("has lost its identity", "it holds archives of this database: adopt it with `backup-manager rescan --adopt`")
    } else {
        (
            "is not the one that holds the archives",
            "mount its disk, or name the right folder with --backups or BACKUP_DIR",
        )
    };
    Ok(Error::failed(format!("the archive folder {} {what}: {IDENTITY} is missing in it", folder.display())).hint(hint))
}

/// Returns whether the folder holds the file of an archive of this database.
fn holds_archive_of(home: &Home, store: &Store) -> Result<bool> {
    Ok(store.archives(None)?.iter().any(|archive| home.backups().join(&archive.file_name).exists()))
}

/// Returns whether a path is the archive folder or lies in it, even if it does not exist yet.
pub fn contains(home: &Home, path: &Path) -> bool {
    let existing = path.ancestors().find_map(|path| match path.as_os_str().is_empty() {
        true => Path::new(".").canonicalize().ok(),
        false => path.canonicalize().ok(),
    });
    match (existing, home.backups().canonicalize()) {
        (Some(existing), Ok(backups)) => existing.starts_with(backups),
        _ => false,
    }
}

/// Returns the identity in the folder; `None` if it has none or an unreadable one.
fn found_identity(home: &Home) -> Option<Identity> {
    let text = fs::read(home.backups().join(IDENTITY)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Writes the identity of this database into a folder that has none. The caller has the folder lock.
fn write_first_identity(home: &Home, store: &Store) -> Result<()> {
    match owner(home, store)? {
        // Another process was first.
        Owner::ThisDatabase => Ok(()),
        Owner::Nobody => write_identity(home, store, None, false),
    }
}

fn write_identity(home: &Home, store: &Store, now: Option<Timestamp>, replace: bool) -> Result<()> {
    let folder = home.backups();
    let identity = Identity {
        database: store.identity(),
        path: Some(home.db().to_owned()),
        last_used_at_ms: now.map(Timestamp::millis),
        folder_inode: inode_of(folder),
    };
    let text = serde_json::to_vec(&identity).map_err(|e| Error::failed("cannot write the identity").because(e))?;
    durable::write_file(&folder.join(IDENTITY), &text, 0o644, replace).map(drop).map_err(|e| unwritable(folder, e))
}

fn inode_of(folder: &Path) -> Option<u64> {
    fs::metadata(folder).ok().map(|metadata| metadata.ino())
}

fn check_writable(folder: &Path) -> Result<()> {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|e| unwritable(folder, Error::failed("no permission").because(io::Error::from(e))))
}

fn unwritable(folder: &Path, cause: Error) -> Error {
    home::unwritable("the archive folder", folder, "--backups or BACKUP_DIR", cause)
}

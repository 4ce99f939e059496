//! The archive folder as a whole: whose it is (I9), the stable names in it, and how archives leave it (I8).

mod deletion;
mod stable_links;

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::durable::{self, FolderLock};
use crate::error::{Error, Result};
use crate::home::{self, Home};
use crate::store::Store;

pub use deletion::{finish_deletions, remove_orphaned_files};
pub use stable_links::{refresh_links_only, refresh_stable_links};

/// Name of the file that says whose the folder is.
const IDENTITY: &str = ".backup-manager";

#[derive(Serialize, Deserialize)]
struct Identity {
    /// The database whose archives lie here.
    database: uuid::Uuid,
}

/// Makes sure that the archive folder is this database's, before anything in it is written, pruned or marked (I9).
///
/// The identity is written while the catalog holds no archives. Once it does, a folder without it is one whose disk
/// is not mounted.
pub fn ensure_ours(home: &Home, store: &Store) -> Result<()> {
    match read_identity(home, store)? {
        Some(()) => writable(home.backups()),
        None => {
            durable::make_folder(home.backups(), home.folder_mode()).map_err(|e| unwritable(home.backups(), e))?;
            let _lock = FolderLock::acquire(home.backups())?;
            write_identity(home, store)
        }
    }
}

/// Says what is wrong with the archive folder, and changes nothing: with it, no run could succeed.
pub fn inspect(home: &Home, store: &Store) -> Result<()> {
    match read_identity(home, store)? {
        None if !home.backups().exists() => Ok(()),
        _ => writable(home.backups()),
    }
}

/// Reads whose the folder is; `None` where it is nobody's yet, and may be.
fn read_identity(home: &Home, store: &Store) -> Result<Option<()>> {
    let folder = home.backups();
    let identity = folder.join(IDENTITY);
    match fs::read(&identity) {
        Ok(text) => match serde_json::from_slice::<Identity>(&text) {
            Ok(found) if found.database == store.identity() => Ok(Some(())),
            _ => Err(Error::failed(format!("the archive folder {} belongs to another database", folder.display()))
                .hint(format!(
                    "name another folder with --backups or BACKUP_DIR, or its database with --db; if that database \
                     is gone for good, take the folder on with `backup-manager rescan{}`",
                    if store.has_archives()? { " --adopt" } else { "" }
                ))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && store.has_archives()? => Err(Error::failed(format!(
            "the archive folder {} is not the one that holds the archives: {IDENTITY} is missing in it",
            folder.display()
        ))
        .hint(
            "mount its disk, or name the right folder with --backups or BACKUP_DIR; if this is the right one, take it \
             on with `backup-manager rescan --adopt`",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &identity)(error)),
    }
}

/// Makes the folder and the database belong to each other, for a rescan: a database that holds no archives takes over
/// whatever identity the folder carries, and then has to be opened anew; one that holds some makes the folder its own,
/// if `adopt`. Returns whether the database took over an identity.
///
/// Errors: what [`ensure_ours`] says, where neither may be done.
pub fn adopt(home: &Home, store: &Store, adopt: bool) -> Result<bool> {
    durable::make_folder(home.backups(), home.folder_mode()).map_err(|e| unwritable(home.backups(), e))?;
    let _lock = FolderLock::acquire(home.backups())?;
    let path = home.backups().join(IDENTITY);
    let found = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Identity>(&text).ok());
    match found {
        Some(found) if found.database != store.identity() && !store.has_archives()? => {
            store.adopt_identity(found.database)?;
            Ok(true)
        }
        Some(found) if found.database == store.identity() => Ok(false),
        _ if adopt => {
            put_identity(home, store, true)?;
            Ok(false)
        }
        _ => write_identity(home, store).map(|()| false),
    }
}

/// Says whether the archive folder carries the identity of another database.
pub fn belongs_to_other_database(home: &Home, store: &Store) -> bool {
    let found = fs::read(home.backups().join(IDENTITY)).ok();
    let identity = found.and_then(|text| serde_json::from_slice::<Identity>(&text).ok());
    identity.is_some_and(|identity| identity.database != store.identity())
}

fn write_identity(home: &Home, store: &Store) -> Result<()> {
    // Another process may have been first.
    if read_identity(home, store)?.is_some() {
        return Ok(());
    }
    put_identity(home, store, false)
}

fn put_identity(home: &Home, store: &Store, replace: bool) -> Result<()> {
    let folder = home.backups();
    let text = serde_json::to_vec(&Identity { database: store.identity() })
        .map_err(|e| Error::failed("cannot write the identity").because(e))?;
    durable::write_file(&folder.join(IDENTITY), &text, 0o644, replace).map(drop).map_err(|e| unwritable(folder, e))
}

fn writable(folder: &Path) -> Result<()> {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|e| unwritable(folder, Error::failed("no permission").because(io::Error::from(e))))
}

fn unwritable(folder: &Path, cause: Error) -> Error {
    home::unwritable("the archive folder", folder, "--backups or BACKUP_DIR", cause)
}

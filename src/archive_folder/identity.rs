//! The identity of the archive folder: which database its archives belong to (I9).

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::durable::{self, FolderLock};
use crate::error::{Error, Result};
use crate::home::{self, Home};
use crate::store::Store;

/// Name of the file in the archive folder that holds its identity.
const IDENTITY: &str = ".backup-manager";

#[derive(Serialize, Deserialize)]
struct Identity {
    /// The database whose archives are stored in the folder.
    database: uuid::Uuid,
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
/// A database without archives takes over whatever identity the folder has. One with archives gives the folder its own
/// identity, if `force`.
///
/// Errors: those of [`ensure_ours`], if neither is allowed.
pub fn adopt(home: &Home, store: &Store, force: bool) -> Result<bool> {
    durable::make_folder(home.backups(), home.folder_mode()).map_err(|e| unwritable(home.backups(), e))?;
    let _lock = FolderLock::acquire(home.backups())?;
    match found_identity(home) {
        Some(found) if found.database != store.identity() && !store.has_archives()? => {
            store.adopt_identity(found.database)?;
            Ok(true)
        }
        Some(found) if found.database == store.identity() => Ok(false),
        _ if force => {
            write_identity(home, store, true)?;
            Ok(false)
        }
        _ => write_first_identity(home, store).map(|()| false),
    }
}

/// Returns whether the archive folder has the identity of another database.
pub fn belongs_to_other_database(home: &Home, store: &Store) -> bool {
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
            _ => Err(Error::failed(format!("the archive folder {} belongs to another database", folder.display()))
                .hint(format!(
                    "name another folder with --backups or BACKUP_DIR, or its database with --db; if that database \
                     is lost for good, adopt the folder with `backup-manager rescan{}`",
                    if store.has_archives()? { " --adopt" } else { "" }
                ))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && store.has_archives()? => Err(Error::failed(format!(
            "the archive folder {} is not the one that holds the archives: {IDENTITY} is missing in it",
            folder.display()
        ))
        .hint(
            "mount its disk, or name the right folder with --backups or BACKUP_DIR; if this is the right one, adopt it \
             with `backup-manager rescan --adopt`",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Owner::Nobody),
        Err(error) => Err(Error::io("read", &identity)(error)),
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
        Owner::Nobody => write_identity(home, store, false),
    }
}

fn write_identity(home: &Home, store: &Store, replace: bool) -> Result<()> {
    let folder = home.backups();
    let text = serde_json::to_vec(&Identity { database: store.identity() })
        .map_err(|e| Error::failed("cannot write the identity").because(e))?;
    durable::write_file(&folder.join(IDENTITY), &text, 0o644, replace).map(drop).map_err(|e| unwritable(folder, e))
}

fn check_writable(folder: &Path) -> Result<()> {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|e| unwritable(folder, Error::failed("no permission").because(io::Error::from(e))))
}

fn unwritable(folder: &Path, cause: Error) -> Error {
    home::unwritable("the archive folder", folder, "--backups or BACKUP_DIR", cause)
}

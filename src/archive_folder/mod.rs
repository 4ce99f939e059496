//! The archive folder as a whole: whose it is (I9), the stable names in it, and how archives leave it (I8).

mod deletion;
mod stable_names;

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::archive::place;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::Store;

pub use deletion::{delete_archives, finish_deletions};
pub use stable_names::refresh_stable_names;

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
pub fn check(home: &Home, store: &Store) -> Result<()> {
    let folder = home.backups();
    let identity = folder.join(IDENTITY);
    match fs::read(&identity) {
        Ok(text) => match serde_json::from_slice::<Identity>(&text) {
            Ok(found) if found.database == store.identity() => writable(folder),
            _ => Err(Error::failed(format!("the archive folder {} belongs to another database", folder.display()))
                .hint(format!(
                    "name another folder with --backups or BACKUP_DIR, or name its database with --db; if that database \
                     is gone for good, remove {} and keep the archives",
                    identity.display()
                ))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && store.has_archives()? => {
            Err(Error::failed(format!(
                "the archive folder {} is not the one that holds the archives: {IDENTITY} is missing in it",
                folder.display()
            ))
            .hint("mount its disk, or name the right folder with --backups or BACKUP_DIR"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            place::make_folder(folder, home.folder_mode()).map_err(|e| unwritable(folder, e))?;
            let text = serde_json::to_vec(&Identity { database: store.identity() })
                .map_err(|e| Error::failed("cannot write the identity").because(e))?;
            place::put(&identity, &text, 0o644, false).map(drop).map_err(|e| unwritable(folder, e))
        }
        Err(error) => Err(Error::io("read", &identity)(error)),
    }
}

fn writable(folder: &Path) -> Result<()> {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|e| unwritable(folder, Error::failed("no permission").because(io::Error::from(e))))
}

fn unwritable(folder: &Path, cause: Error) -> Error {
    let uid = rustix::process::geteuid().as_raw();
    Error::new(cause.kind(), format!("the archive folder {} is not writable for uid {uid}", folder.display()))
        .because(cause)
        .hint(format!("run `chown -R {uid} {}`, or name another folder with --backups or BACKUP_DIR", folder.display()))
}

//! The SQLite database. Only this module contains SQL.
//!
//! Write transactions are IMMEDIATE and short and never span file I/O (I5). What belongs to a claim is written
//! only under its fence: the run is `running` with this worker and this attempt, exactly one row (I4). Time is a
//! parameter (I7).

/// Implements the text of an enum, in the database and in output.
macro_rules! text_enum {
    ($type:ident, $($variant:ident = $text:literal),+) => {
        impl $type {
            /// Returns the text used in the database and in output.
            pub fn as_str(self) -> &'static str {
                match self { $($type::$variant => $text),+ }
            }
        }

        impl rusqlite::types::FromSql for $type {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                match value.as_str()? {
                    $($text => Ok($type::$variant),)+
                    _ => Err(rusqlite::types::FromSqlError::InvalidType),
                }
            }
        }
    };
}

mod archives;
mod base;
mod bootstrap;
mod catalog;
mod claims;
mod connection;
mod damage;
mod duties;
mod enqueue;
mod file_system;
mod hooks;
mod insert_chunks;
mod insert_rows;
mod maintenance;
mod members;
mod migration;
mod moves;
mod pending_archives;
mod pool;
mod remove_chunks;
mod repair;
mod rescan;
mod retention;
mod rows;
mod run_end;
mod runs;
mod schedules;
mod segments;
mod settings;
mod shared_files;
mod stored_files;
mod types;
mod usage;
mod workers;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use uuid::Uuid;

use crate::error::{Error, Result};
use connection::database_error;
use pool::{Pool, PooledConnection, new_pool};

pub use bootstrap::{Access, Bootstrap};
pub use catalog::ArchiveChunks;
pub use hooks::MAX_OUTPUT_BYTES;
pub use maintenance::{Drill, Task, TaskState, check_copy, copy_with_journal};
pub use settings::Imported;
pub use types::*;
pub use workers::{Role, StopRequest, WorkerRow};

/// An open database. Clones are cheap and use the same pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
    path: PathBuf,
    /// Device and inode of the file.
    file_id: (u64, u64),
    identity: Uuid,
    // Shared for every process that has the database open, exclusive for the one that migrates it.
    _lock: Arc<std::fs::File>,
}

impl Store {
    /// Opens the database, creates it first if `access` allows that, and migrates it to this program's schema.
    ///
    /// Errors: `NotFound` if it does not exist; `Busy` if it needs a migration and other processes have it open;
    /// `Failed` for a newer or foreign database and for one on a network or FUSE file system; `DatabaseDamage` for a
    /// damaged one.
    pub fn open(path: &Path, bootstrap: &Bootstrap) -> Result<Store> {
        let (lock, identity) = bootstrap.run(path)?;
        let file_id = file_id_of(path).map_err(Error::io("find the database", path))?;
        Ok(Store { pool: new_pool(path)?, path: path.to_owned(), file_id, identity, _lock: Arc::new(lock) })
    }

    /// Returns the identity of this database, which the archive folder states too (I9).
    pub fn identity(&self) -> Uuid {
        self.identity
    }

    /// Returns the path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the path still refers to the database that was opened. SQLite continues with a file that was
    /// removed, and what it writes there is lost.
    pub fn is_in_place(&self) -> bool {
        file_id_of(&self.path).is_ok_and(|file_id| file_id == self.file_id)
    }

    fn connection(&self) -> Result<PooledConnection> {
        if !self.is_in_place() {
            let name = self.path.display();
            return Err(match self.path.exists() {
                true => Error::failed(format!("the database {name} was replaced by another one"))
                    .hint("run the command again: it uses that one"),
                false => Error::not_found(format!("the database {name} was removed")),
            });
        }
        self.pool
            .get()
            .map_err(|e| Error::failed(format!("cannot open the database {}", self.path.display())).because(e))
    }

    /// Runs `work` on a connection without a transaction around its statements.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&*self.connection()?).map_err(|e| self.database_error(e))
    }

    /// Runs `work` in one IMMEDIATE transaction and commits it if it succeeds.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        self.write_or(|transaction| work(transaction).map_err(|e| self.database_error(e)))
    }

    /// Like [`Store::write`], for work that also returns errors of its own; these roll back too.
    fn write_or<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.connection()?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| self.database_error(e))?;
        let result = work(&transaction)?;
        transaction.commit().map_err(|e| self.database_error(e))?;
        Ok(result)
    }

    /// Checks that the database can be written, by a transaction that is rolled back.
    pub fn check_writable(&self) -> Result<()> {
        let mut connection = self.connection()?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| self.database_error(e))?;
        transaction.execute("UPDATE instance SET id = id", []).map_err(|e| self.database_error(e))?;
        transaction.rollback().map_err(|e| self.database_error(e))
    }

    /// Returns a watch that detects commits of other connections and processes.
    pub fn watch(&self) -> Result<Watch> {
        let connection = Connection::open(&self.path).map_err(|e| self.database_error(e))?;
        let mut watch = Watch { connection, store: self.clone(), seen: 0 };
        watch.changed()?;
        Ok(watch)
    }

    fn database_error(&self, error: rusqlite::Error) -> Error {
        database_error(&self.path, error)
    }
}

fn file_id_of(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Detects commits by `PRAGMA data_version`, on a connection that is used for nothing else.
#[derive(Debug)]
pub struct Watch {
    connection: Connection,
    store: Store,
    seen: i64,
}

impl Watch {
    /// Returns whether anything was committed since the last call.
    pub fn changed(&mut self) -> Result<bool> {
        let version = self
            .connection
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(|e| self.store.database_error(e))?;
        Ok(std::mem::replace(&mut self.seen, version) != version)
    }
}

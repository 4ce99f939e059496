//! The database: everything that speaks SQL, and nothing else does.
//!
//! Write transactions are IMMEDIATE and short and never span file I/O (I5). What a claim owns is only ever written
//! under its fence: run, `running`, worker and attempt, exactly one row (I4). Time comes in as a parameter (I7).

/// The words of an enum in the store and in output.
macro_rules! words {
    ($type:ident, $($variant:ident = $word:literal),+) => {
        impl $type {
            /// Returns the word used in the store and in output.
            pub fn as_str(self) -> &'static str {
                match self { $($type::$variant => $word),+ }
            }
        }

        impl rusqlite::types::FromSql for $type {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                match value.as_str()? {
                    $($word => Ok($type::$variant),)+
                    _ => Err(rusqlite::types::FromSqlError::InvalidType),
                }
            }
        }
    };
}

mod archives;
mod bootstrap;
mod catalog;
mod chunk_members;
mod claims;
mod enqueue;
mod maintenance;
mod members;
mod rescan;
mod retention;
mod runs;
mod schedules;
mod settings;
mod workers;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};

pub use archives::{Archive, ArchiveState, Health, Intent, LegacyArchive, PendingArchive, Sealed};
pub use bootstrap::{Access, Bootstrap};
pub use catalog::ArchiveChunks;
pub use claims::{Claim, ClaimNow, Completed, EndError, EndResult, Requeue, Requeued, RunRequest};
pub use enqueue::{Due, EnqueueOutcome};
pub use maintenance::{Drill, Task, check_copy};
pub use members::{CatalogEntry, PathOccurrence};
pub use rescan::FoundArchive;
pub use runs::{Attempt, HistoryFilter, Run, RunCounts, RunState, Trigger};
pub use schedules::{Revived, ScheduleRow, Watermark};
pub use settings::Imported;
pub use workers::{Role, StopRequest, WorkerRow};

/// How long a connection waits for another's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// What to do about a database that is damaged or gone.
pub const RECOVERY_OPTIONS: &str = "archives are plain tar files and stay whole; put back the newest copy of \
     the database with `backup-manager rescan --from-copy`, or move it aside (with -wal and -shm) and make it \
     anew from the archives with `backup-manager rescan`";
/// Connections at once: one a run, one for the loop, one for what watches.
const POOL_SIZE: u32 = 8;

/// An open database. Cheap to share: clones use the same pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: r2d2::Pool<SqliteConnectionManager>,
    path: PathBuf,
    /// Device and inode of the file.
    place: (u64, u64),
    identity: Uuid,
    // Shared by everyone who has the database open, exclusive for who migrates it.
    _lock: std::sync::Arc<std::fs::File>,
}

type PooledConnection = r2d2::PooledConnection<SqliteConnectionManager>;

impl Store {
    /// Opens the database, makes it first where `access` says so, and brings it to this program's schema.
    ///
    /// Errors: `NotFound` where there is none, `Busy` where a migration finds others at work, `Failed` with the way
    /// out for a newer, foreign or damaged one and for one on a network or FUSE file system.
    pub fn open(path: &Path, bootstrap: &Bootstrap) -> Result<Store> {
        let (lock, identity) = bootstrap.run(path)?;
        let place = place_of(path).map_err(Error::io("find the database", path))?;
        // Never made here: one that was removed must not come back empty.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let manager = SqliteConnectionManager::file(path).with_flags(flags).with_init(configure);
        let pool = r2d2::Pool::builder()
            .max_size(POOL_SIZE)
            .min_idle(Some(0))
            .test_on_check_out(false)
            .connection_timeout(BUSY_TIMEOUT * 2)
            .thread_pool(std::sync::Arc::new(scheduled_thread_pool::ScheduledThreadPool::new(1)))
            .build(manager)
            .map_err(|e| Error::failed(format!("cannot open the database {}", path.display())).because(e))?;
        Ok(Store { pool, path: path.to_owned(), place, identity, _lock: std::sync::Arc::new(lock) })
    }

    /// Returns the identity of this database, which the archive folder carries too (I9).
    pub fn identity(&self) -> Uuid {
        self.identity
    }

    /// Returns the path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says whether the path still leads to the database that was opened. SQLite goes on with a file that was removed,
    /// and what is written there is lost.
    pub fn is_in_place(&self) -> bool {
        place_of(&self.path).is_ok_and(|place| place == self.place)
    }

    fn connection(&self) -> Result<PooledConnection> {
        if !self.is_in_place() {
            return Err(Error::failed(format!("the database {} was removed or replaced", self.path.display()))
                .hint(RECOVERY_OPTIONS));
        }
        self.pool
            .get()
            .map_err(|e| Error::failed(format!("cannot open the database {}", self.path.display())).because(e))
    }

    /// Runs `work` on a connection, each statement by itself.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&*self.connection()?).map_err(|e| self.fault(e))
    }

    /// Runs `work` in one IMMEDIATE transaction and commits it if it succeeds.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        self.write_or(|transaction| work(transaction).map_err(|e| self.fault(e)))
    }

    /// Like [`Store::write`], for work that also fails for reasons of its own; these roll back too.
    fn write_or<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.connection()?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| self.fault(e))?;
        let result = work(&transaction)?;
        transaction.commit().map_err(|e| self.fault(e))?;
        Ok(result)
    }

    /// Says whether the store can be written: a transaction that changes nothing lasting, rolled back.
    pub fn check_writable(&self) -> Result<()> {
        let mut connection = self.connection()?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| self.fault(e))?;
        transaction.execute("UPDATE instance SET id = id", []).map_err(|e| self.fault(e))?;
        transaction.rollback().map_err(|e| self.fault(e))
    }

    /// Returns a watch that notices what other connections and processes commit.
    pub fn watch(&self) -> Result<Watch> {
        let connection = Connection::open(&self.path).map_err(|e| self.fault(e))?;
        let mut watch = Watch { connection, store: self.clone(), seen: 0 };
        watch.changed()?;
        Ok(watch)
    }

    fn fault(&self, error: rusqlite::Error) -> Error {
        fault(&self.path, error)
    }
}

fn place_of(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Notices commits (`PRAGMA data_version`), on a connection that is used for nothing else.
#[derive(Debug)]
pub struct Watch {
    connection: Connection,
    store: Store,
    seen: i64,
}

impl Watch {
    /// Says whether anything was committed since the last call.
    pub fn changed(&mut self) -> Result<bool> {
        let version =
            self.connection.query_row("PRAGMA data_version", [], |row| row.get(0)).map_err(|e| self.store.fault(e))?;
        Ok(std::mem::replace(&mut self.seen, version) != version)
    }
}

/// Sets what is per connection, and reads each back: SQLite ignores a misspelt or refused PRAGMA without a word.
fn configure(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let settings: [(&str, &str, i64); 4] = [
        ("busy_timeout", "10000", BUSY_TIMEOUT.as_millis() as i64),
        ("foreign_keys", "ON", 1),
        ("synchronous", "FULL", 2),
        ("trusted_schema", "OFF", 0),
    ];
    for (name, value, expected) in settings {
        connection.execute_batch(&format!("PRAGMA {name} = {value}"))?;
        let actual: i64 = connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))?;
        if actual != expected {
            return Err(rusqlite::Error::InvalidParameterName(format!("PRAGMA {name} is {actual}, not {expected}")));
        }
    }
    connection.execute_batch("PRAGMA journal_size_limit = 67108864")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Turns what SQLite says into an error that names the database and the way out.
fn fault(path: &Path, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode;
    let name = path.display();
    let (kind, message, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            (ErrorKind::DiskFull, format!("no space left for the database {name}"), "free space on its file system")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            ErrorKind::Busy,
            format!("the database {name} stayed locked for {} s", BUSY_TIMEOUT.as_secs()),
            "try again; if it stays so, look for a process that hangs",
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => (
            ErrorKind::Failed,
            format!("the database {name} cannot be written"),
            "run as the user that owns it, or make its folder writable",
        ),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            (ErrorKind::Damage, format!("the database {name} is damaged"), RECOVERY_OPTIONS)
        }
        _ => return Error::failed(format!("the database {name}")).because(error),
    };
    Error::new(kind, message).because(error).hint(hint)
}

/// Fails unless exactly one row was changed.
fn exactly_one(changed: usize) -> rusqlite::Result<()> {
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

fn parse_uuid(text: &str) -> rusqlite::Result<Uuid> {
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

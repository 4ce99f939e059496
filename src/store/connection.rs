//! Settings of a connection, and SQLite's errors with the database's name and a way out.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use crate::error::{Error, ErrorKind};

/// How long a connection waits for the write lock of another.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Applies the settings of a connection and reads each back: SQLite ignores a misspelt or refused PRAGMA silently.
pub(super) fn configure(connection: &mut Connection) -> rusqlite::Result<()> {
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

/// Converts an error of SQLite into one that names the database and a way out, which for a damaged one depends on what
/// lies beside the archives and is added by the command.
pub(super) fn database_error(path: &Path, error: rusqlite::Error) -> Error {
    database_error_of(path, error.sqlite_error_code(), error)
}

/// The same for an error that an error of SQLite with this code caused.
pub(super) fn database_error_of(
    path: &Path,
    code: Option<ErrorCode>,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    let name = path.display();
    let (kind, message, hint) = match code {
        Some(ErrorCode::DiskFull) => {
            (ErrorKind::DiskFull, format!("no space left for the database {name}"), "free space on its file system")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            ErrorKind::Busy,
            format!("the database {name} stayed locked for {} s", BUSY_TIMEOUT.as_secs()),
            "try again; if it happens again, search for a process that hangs",
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => (
            ErrorKind::Failed,
            format!("the database {name} cannot be written"),
            "run as the user that owns it, or make its folder writable",
        ),
        // A full disk on which its `-shm` file cannot grow is such an error, too.
        Some(ErrorCode::SystemIoFailure) => (
            ErrorKind::Failed,
            format!("the database {name} cannot be read or written"),
            "free space on its file system, or search the kernel's log for errors of the disk",
        ),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            return Error::new(ErrorKind::DatabaseDamage, format!("the database {name} is damaged")).because(error);
        }
        _ => return Error::failed(format!("the database {name}")).because(error),
    };
    Error::new(kind, message).because(error).hint(hint)
}

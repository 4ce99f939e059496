//! The schema of a database: creating its file, and migrating it to the newest schema after copying it.

use std::error::Error as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;
use rustix::fs::OFlags;

use super::connection::{database_error, database_error_of};
use crate::error::{Error, ErrorKind, Result};
use crate::home::with_suffix;
use crate::owner::{self, Owner};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Size from which on the migration of a database takes so long that it is announced.
const LARGE_BYTES: u64 = 64 << 20;

/// Migrates the database to the newest schema. The caller has it exclusively. The copy gets the mode `file_mode`;
/// `notice` reports why it takes long.
pub(super) fn migrate(path: &Path, connection: &mut Connection, file_mode: u32, notice: fn(&str)) -> Result<()> {
    copy_before_migration(path, connection, file_mode, notice)?;
    // Grouped: all migrations and their history rows in one transaction, so that a kill leaves none partly applied.
    embedded::migrations::runner().set_grouped(true).run(connection).map(drop).map_err(|e| {
        let code = e.source().and_then(|cause| cause.downcast_ref::<rusqlite::Error>()?.sqlite_error_code());
        unchanged(database_error_of(path, code, e).wrap(format!("cannot migrate the database {}", path.display())))
    })
}

/// Copies a database that is not empty before its migration; the copy is named after the new schema.
fn copy_before_migration(path: &Path, connection: &Connection, file_mode: u32, notice: fn(&str)) -> Result<()> {
    let version: i32 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|e| database_error(path, e))?;
    if version == 0 || version == newest_schema() {
        return Ok(());
    }
    let copy = with_suffix(path, &format!(".before-schema-{}", newest_schema()));
    if fs::metadata(path).is_ok_and(|found| found.len() > LARGE_BYTES) {
        notice(&format!(
            "the database {} is converted for this version, which may take minutes; an interrupted conversion \
             changes nothing and is repeated",
            path.display()
        ));
    }
    // The copy of an interrupted migration may be partly written.
    match fs::remove_file(&copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("replace the old copy", &copy)(error));
        }
        _ => {}
    }
    // SQLite fills an empty file.
    create_database_file(&copy, file_mode)?;
    connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()]).map_err(|e| {
        // It is not whole, and the space may be the last.
        let _ = fs::remove_file(&copy);
        unchanged(database_error(path, e).wrap(format!("cannot copy the database to {}", copy.display())))
    })?;
    let file = File::open(&copy).map_err(Error::io("open", &copy))?;
    file.set_permissions(fs::Permissions::from_mode(file_mode))
        .and_then(|()| file.sync_all())
        .map_err(Error::io("sync", &copy))
}

/// Creates the file of a database with `mode`; one that exists stays as it is.
pub(super) fn create_database_file(path: &Path, mode: u32) -> Result<()> {
    match owner::create_new(path, OFlags::WRONLY, mode, Owner::OfDatabase) {
        // The umask may have cleared bits.
        Ok(file) => file.set_permissions(fs::Permissions::from_mode(mode)).map_err(Error::io("set the mode of", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("create the database", path)(error)),
    }
}

/// Returns the newest schema version of the embedded migrations.
pub(super) fn newest_schema() -> i32 {
    let versions = embedded::migrations::runner().get_migrations().iter().map(|m| m.version()).max();
    versions.unwrap_or(0)
}

/// Adds to the error of a migration that it changed nothing. What to do about a damaged database is added by the
/// command.
fn unchanged(error: Error) -> Error {
    if error.kind() == ErrorKind::DatabaseDamage {
        return error;
    }
    let remedy = error.next_step().unwrap_or("correct the cause").to_owned();
    error.hint(format!("{remedy}, then run the same command again: the database is unchanged"))
}

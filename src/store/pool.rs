//! The open connections of a store. A thread takes an idle one or opens another, and gives it back after each
//! transaction.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};

use super::connection::configure;

/// Maximum number of idle connections that stay open: one a run, one for the service loop, one for monitoring.
const MAX_IDLE: usize = 8;

#[derive(Debug)]
pub(super) struct Pool {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    /// Makes a pool for the database at `path`. Nothing is opened yet.
    pub(super) fn new(path: PathBuf) -> Pool {
        Pool { path, idle: Mutex::default() }
    }

    pub(super) fn take(&self) -> rusqlite::Result<PooledConnection<'_>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open()?,
        };
        Ok(PooledConnection { pool: self, connection: Some(connection) })
    }

    /// Does not create the database: one that was removed must not be replaced by an empty one.
    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        configure(&mut connection)?;
        Ok(connection)
    }
}

/// A connection that returns to its pool when dropped.
pub(super) struct PooledConnection<'a> {
    pool: &'a Pool,
    /// `None` only during the drop.
    connection: Option<Connection>,
}

impl Drop for PooledConnection<'_> {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.extend(self.connection.take());
        }
    }
}

impl Deref for PooledConnection<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("taken only by drop")
    }
}

impl DerefMut for PooledConnection<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("taken only by drop")
    }
}

//! The open connections of a store.

use std::path::Path;
use std::sync::Arc;
use std::{panic, thread};

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::OpenFlags;
use scheduled_thread_pool::ScheduledThreadPool;

use super::connection::{BUSY_TIMEOUT, configure};
use crate::error::{Error, Result};

pub(super) type Pool = r2d2::Pool<SqliteConnectionManager>;
pub(super) type PooledConnection = r2d2::PooledConnection<SqliteConnectionManager>;

/// Maximum number of open connections. What finds none free waits: a run uses several, each for one statement or page.
const MAX_CONNECTIONS: u32 = 8;

/// Makes a pool for the database at `path`. Nothing is opened yet.
///
/// Errors: if no thread can be started, of which the pool needs one.
pub(super) fn new_pool(path: &Path) -> Result<Pool> {
    // Without SQLITE_OPEN_CREATE: a database that was removed must not be replaced by an empty one.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let manager = SqliteConnectionManager::file(path).with_flags(flags).with_init(configure);
    r2d2::Pool::builder()
        .max_size(MAX_CONNECTIONS)
        .min_idle(Some(0))
        .test_on_check_out(false)
        .connection_timeout(BUSY_TIMEOUT * 2)
        .thread_pool(Arc::new(thread_pool()?))
        .build(manager)
        .map_err(|e| Error::failed(format!("cannot open the database {}", path.display())).because(e))
}

/// How often it is looked whether a thread that has ended still counts.
const LOOKS: usize = 1_000;

/// Returns one thread. The library panics if it cannot start it, so that is tried before; between the two another
/// process of the user may start its last one.
fn thread_pool() -> Result<ScheduledThreadPool> {
    let tried = thread::Builder::new().spawn(rustix::thread::gettid).map_err(Error::no_thread)?.join();
    if let Ok(number) = tried {
        // It can be joined before the system takes it off the number of processes of the user.
        let entry = format!("/proc/self/task/{}", number.as_raw_nonzero());
        (0..LOOKS).take_while(|_| Path::new(&entry).exists()).for_each(|_| thread::yield_now());
    }
    panic::catch_unwind(|| ScheduledThreadPool::new(1))
        .map_err(|_| Error::no_thread(std::io::ErrorKind::WouldBlock.into()))
}

//! Counts the rows that transactions of this thread write.

#![allow(unsafe_code, reason = "sqlite3_auto_extension alone reaches the connections that a store opens")]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use rusqlite::ffi;

thread_local! {
    static BEGUN_AT: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

/// Returns the number of rows that the largest transaction wrote which `work` committed, on connections that it opened.
pub fn rows_of_largest(work: impl FnOnce()) -> i64 {
    // SAFETY: `trace` has the signature that SQLite documents for this.
    unsafe {
        ffi::sqlite3_auto_extension(Some(trace));
    }
    MOST.set(0);
    work();
    MOST.get()
}

/// Sets up the counting of a new connection.
unsafe extern "C" fn trace(
    database: *mut ffi::sqlite3,
    _message: *mut *mut c_char,
    _api: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite passes a connection that it has just opened.
    unsafe { ffi::sqlite3_trace_v2(database, ffi::SQLITE_TRACE_STMT as c_uint, Some(count), std::ptr::null_mut()) }
}

/// Notes how many rows were written before the first and after the last statement of a transaction.
unsafe extern "C" fn count(_: c_uint, _: *mut c_void, statement: *mut c_void, _: *mut c_void) -> c_int {
    // SAFETY: for this event SQLite passes the prepared statement, whose text and connection live as long as it.
    let (text, written) = unsafe {
        let text = CStr::from_ptr(ffi::sqlite3_sql(statement.cast())).to_string_lossy();
        (text, ffi::sqlite3_total_changes64(ffi::sqlite3_db_handle(statement.cast())))
    };
    if text.starts_with("BEGIN") {
        BEGUN_AT.set(written);
    } else if text.starts_with("COMMIT") {
        MOST.set(MOST.get().max(written - BEGUN_AT.get()));
    }
    0
}

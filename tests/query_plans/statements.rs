//! The statements that SQLite runs, and those that the sources of the store hold.

#![allow(unsafe_code, reason = "sqlite3_auto_extension alone reaches the connections that a store opens")]

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs;
use std::sync::Mutex;

use rusqlite::ffi;

#[path = "../tidy/lexer.rs"]
mod lexer;

static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Returns the statements that SQLite starts on connections that `work` opens, each once.
pub fn recorded(work: impl FnOnce()) -> BTreeSet<String> {
    // SAFETY: `trace` has the signature that SQLite documents for this.
    unsafe {
        ffi::sqlite3_auto_extension(Some(trace));
    }
    work();
    // SAFETY: as above.
    unsafe {
        ffi::sqlite3_cancel_auto_extension(Some(trace));
    }
    SEEN.lock().unwrap().clone()
}

/// Sets up the recording of a new connection.
unsafe extern "C" fn trace(
    database: *mut ffi::sqlite3,
    _message: *mut *mut c_char,
    _api: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite passes a connection that it has just opened.
    unsafe { ffi::sqlite3_trace_v2(database, ffi::SQLITE_TRACE_STMT as c_uint, Some(record), std::ptr::null_mut()) }
}

/// Records the text of a statement that starts, with its parameters as they are written.
unsafe extern "C" fn record(_: c_uint, _: *mut c_void, statement: *mut c_void, _: *mut c_void) -> c_int {
    // SAFETY: for this event SQLite passes the prepared statement, whose text lives as long as it.
    let text = unsafe { CStr::from_ptr(ffi::sqlite3_sql(statement.cast())) };
    SEEN.lock().unwrap().insert(words_of(&text.to_string_lossy()));
    0
}

/// Returns `text` with single spaces.
fn words_of(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the SQL in the sources of the store that is part of none of the statements in `seen`.
pub fn not_among(seen: &BTreeSet<String>) -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store");
    let mut missing = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // What these three run comes before the first connection of the pool.
        let is_setup = ["bootstrap.rs", "connection.rs", "migration.rs"].iter().any(|name| path.ends_with(name));
        if is_setup || path.is_dir() {
            continue;
        }
        for (line, literal) in lexer::lex(&fs::read_to_string(&path).unwrap()).strings {
            let sql = words_of(&literal.trim_matches('"').replace("\\\n", " "));
            if is_sql(&sql) && !seen.iter().any(|statement| holds(statement, &sql)) {
                missing.push(format!("{}:{line}: {sql}", path.display()));
            }
        }
    }
    missing
}

/// Returns whether a string holds a statement, or a condition with a parameter.
fn is_sql(text: &str) -> bool {
    let verbs = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "VACUUM ", "PRAGMA ", "{SELECT}"];
    verbs.iter().any(|verb| text.starts_with(verb)) || text.contains("?1")
}

/// Returns whether the fixed parts of a format string come in this order in a statement.
fn holds(statement: &str, format: &str) -> bool {
    let mut rest = statement;
    format.split('{').enumerate().all(|(at, part)| {
        let fixed = if at == 0 { part } else { part.split_once('}').map_or(part, |(_, fixed)| fixed) };
        match rest.find(fixed.trim()) {
            Some(found) => {
                rest = &rest[found + fixed.trim().len()..];
                true
            }
            None => false,
        }
    })
}

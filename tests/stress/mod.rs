//! What the stress tests share: random numbers that can be replayed, and the promises as checks.

#![allow(dead_code, reason = "each test uses a part")]

#[path = "../support/catalog.rs"]
pub mod catalog;
pub mod promises;
pub mod random;
#[path = "../support/stored_files.rs"]
pub mod stored_files;

/// Returns whether the long forms are wanted: `BACKUP_STRESS=full`, as `tests/prove.sh` sets it.
pub fn full() -> bool {
    std::env::var("BACKUP_STRESS").is_ok_and(|wanted| wanted == "full")
}

/// Returns a number from the environment, to replay a case or to choose the size.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Prints a line even where the output of tests is captured.
pub fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Returns a new folder, in memory if possible: these tests do not depend on the disk, and many syncs are faster there.
pub fn fast_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

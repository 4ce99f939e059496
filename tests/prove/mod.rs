//! What the programmes that try to break the engine share: chance that can be replayed, and the promises as checks.

#![allow(dead_code, reason = "each programme uses its part")]

pub mod promises;
pub mod random;

/// Says whether the long forms were asked for: `BACKUP_PROVE=full`, as `tests/prove.sh` sets it.
pub fn full() -> bool {
    std::env::var("BACKUP_PROVE").is_ok_and(|wanted| wanted == "full")
}

/// Returns a number from the environment, to replay a case or to choose the size.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Says something that is seen even where the output of tests is captured.
pub fn say(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Returns a new folder in memory where there is one: what is proven there does not depend on the disk.
pub fn fast_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

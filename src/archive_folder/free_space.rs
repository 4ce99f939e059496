//! The free space of the file system that holds the archive folder, or another one.

use std::io;
use std::path::Path;

use crate::error::{Error, Result};

/// Returns the bytes that may still be written below `path`, or below its nearest ancestor that exists.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let stats = rustix::fs::statvfs(existing)
        .map_err(io::Error::from)
        .map_err(Error::io("inspect the file system of", existing))?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

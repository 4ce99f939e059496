//! The program's own files, which no archive may hold: its live database, its archives, its logs.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::stat::Stat;

/// Recognises the program's own files by path and by device and inode, so that they are also excluded by another path
/// (a bind mount, a link to the home).
#[derive(Debug)]
pub(super) struct OwnFiles {
    /// Paths below the root, as member paths are.
    relative: Vec<Box<[u8]>>,
    existing: Vec<Existing>,
}

#[derive(Debug)]
struct Existing {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl OwnFiles {
    /// Resolves `paths`, for a source whose root lies at `root`.
    pub(super) fn new(root: &Path, paths: &[PathBuf]) -> Self {
        let roots = [Some(root.to_owned()), fs::canonicalize(root).ok()];
        let mut relative: Vec<Box<[u8]>> = Vec::new();
        for path in paths {
            // The last component is not resolved; the path to it is.
            let resolved = path.parent().and_then(|p| fs::canonicalize(p).ok()).zip(path.file_name());
            let spellings = [Some(path.clone()), resolved.map(|(p, n)| p.join(n)), fs::canonicalize(path).ok()];
            for spelling in spellings.iter().flatten() {
                let below = roots.iter().flatten().filter_map(|root| spelling.strip_prefix(root).ok());
                relative.extend(below.map(|below| below.as_os_str().as_bytes().into()));
            }
        }
        relative.sort_unstable();
        relative.dedup();
        OwnFiles { relative, existing: paths.iter().filter_map(|path| Existing::find(path)).collect() }
    }

    /// Returns whether one of them lies at this path below the root.
    pub(super) fn contains_path(&self, relative: &[u8]) -> bool {
        self.relative.iter().any(|own| **own == *relative)
    }

    /// Returns whether this is one of them, whatever its name.
    pub(super) fn contains(&self, stat: &Stat) -> bool {
        self.existing.iter().any(|own| {
            // The inode number of a file that was removed meanwhile (as a write-ahead log is) may be reused by another.
            (own.device, own.inode) == (stat.device, stat.inode) && own.still_exists()
        })
    }

    /// Returns the one that is the root of the source or contains it.
    pub(super) fn ancestor_of(&self, root: &Path) -> Option<&Path> {
        let root = fs::canonicalize(root).ok()?;
        root.ancestors().find_map(|above| {
            let above = fs::metadata(above).ok()?;
            let own = self.existing.iter().find(|own| (own.device, own.inode) == (above.dev(), above.ino()))?;
            Some(own.path.as_path())
        })
    }
}

impl Existing {
    fn find(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Existing { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    fn still_exists(&self) -> bool {
        Self::find(&self.path).is_some_and(|now| (now.device, now.inode) == (self.device, self.inode))
    }
}

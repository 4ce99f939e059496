//! The entries of an archive's chunks while it is written: a few megabytes in memory, the others in a file without a
//! name, so that the number of chunks costs no memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::trailer::{ENTRY_BYTES, SEGMENT_BYTES};
use crate::durable::PendingFile;
use crate::error::{Error, Result};

/// Entries in memory go to the file when they are so many bytes.
const MOST_MEMORY: usize = 64 * SEGMENT_BYTES;

/// Entries in the order of chunks.
pub(super) struct EntryTable {
    /// The archive file, beside which the file without a name is made.
    path: PathBuf,
    /// The last ones.
    recent: Vec<u8>,
    /// Those before, and how many bytes they are.
    older: Option<(File, u64)>,
}

impl EntryTable {
    /// Starts with no entry.
    pub(super) fn new(path: &Path) -> Self {
        EntryTable { path: path.to_owned(), recent: Vec::new(), older: None }
    }

    /// Returns the bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.older.as_ref().map_or(0, |(_, bytes)| *bytes) + self.recent.len() as u64
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> u64 {
        self.bytes() / ENTRY_BYTES as u64
    }

    /// Adds the entry of the next chunk.
    pub(super) fn push(&mut self, entry: &[u8; ENTRY_BYTES]) -> Result<()> {
        self.recent.extend_from_slice(entry);
        if self.recent.len() < MOST_MEMORY {
            return Ok(());
        }
        let (file, bytes) = match &mut self.older {
            Some(older) => older,
            None => self.older.insert((nameless_file(&self.path)?, 0)),
        };
        file.write_all_at(&self.recent, *bytes).map_err(Error::io("write beside", &self.path))?;
        *bytes += self.recent.len() as u64;
        self.recent.clear();
        Ok(())
    }

    /// Gives all entries in order, in pieces of [`SEGMENT_BYTES`], of which only the last may be shorter.
    pub(super) fn for_each_segment(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if let Some((file, bytes)) = &self.older {
            let mut segment = vec![0; SEGMENT_BYTES];
            for offset in (0..*bytes).step_by(SEGMENT_BYTES) {
                file.read_exact_at(&mut segment, offset).map_err(Error::io("read beside", &self.path))?;
                take(&segment)?;
            }
        }
        self.recent.chunks(SEGMENT_BYTES).try_for_each(take)
    }
}

/// Makes a file that is gone when it is closed, however the process ends, but for an instant at the beginning.
fn nameless_file(path: &Path) -> Result<File> {
    let mut pending = PendingFile::create(path, 0o600)?;
    let cloned: io::Result<File> = pending.file().try_clone();
    cloned.map_err(Error::io("open a file beside", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_order_from_memory_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let per_spill = (MOST_MEMORY / ENTRY_BYTES) as u64;
        for count in [0, 1, 1600, 1601, per_spill - 1, per_spill, per_spill + 1, 2 * per_spill + 1601] {
            let mut table = EntryTable::new(&folder.path().join("archive"));
            let entry = |number: u64| {
                let mut entry = [0; ENTRY_BYTES];
                entry[..8].copy_from_slice(&number.to_le_bytes());
                entry
            };
            (0..count).for_each(|number| table.push(&entry(number)).unwrap());
            assert_eq!(table.count(), count);
            assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "the file has no name");
            let mut seen = Vec::new();
            table
                .for_each_segment(&mut |segment| {
                    assert!(seen.len() % SEGMENT_BYTES == 0, "only the last one is shorter");
                    seen.extend_from_slice(segment);
                    Ok(())
                })
                .unwrap();
            assert_eq!(seen.len() as u64, count * ENTRY_BYTES as u64);
            assert!(seen.chunks(ENTRY_BYTES).zip(0..).all(|(bytes, number)| bytes == entry(number)), "{count}");
        }
    }
}

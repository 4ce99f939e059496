//! The table of chunks of an archive that is being written, as its trailer will store it. The last few megabytes are in
//! memory, the rest in an unnamed file, so that memory is bounded for any number of chunks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::chunk::Chunk;
use crate::durable::create_unnamed_file;
use crate::error::{Error, Result};

/// The size of one chunk's entry in bytes: stored length and content length as `u32`, little-endian, and the BLAKE3
/// digest of the stored bytes.
pub(super) const ENTRY_BYTES: usize = 40;
/// The size of a part of the table in bytes. A part consists of whole entries and fits in the extra field of a gzip
/// member.
pub(super) const PART_BYTES: usize = 1600 * ENTRY_BYTES;
/// The largest number of bytes of entries in memory; they are then moved to the file.
const MAX_MEMORY_BYTES: usize = 64 * PART_BYTES;

/// Encoded entries in the order of chunks.
pub(super) struct ChunkTable {
    /// The archive file. The unnamed file is created in its folder.
    path: PathBuf,
    /// The newest entries.
    recent: Vec<u8>,
    /// The entries before them, and their size in bytes.
    older: Option<(File, u64)>,
}

/// Returns the entry of a chunk. Errors: a length that does not fit, which no chunk has: content is bounded by the
/// largest piece of a file and its headers.
pub(super) fn encode_entry(chunk: &Chunk) -> Result<[u8; ENTRY_BYTES]> {
    let narrow = |length: u64| {
        u32::try_from(length)
            .map_err(|_| Error::failed(format!("a chunk of {length} bytes is too long for an archive")))
    };
    let mut entry = [0; ENTRY_BYTES];
    entry[..4].copy_from_slice(&narrow(chunk.stored_length)?.to_le_bytes());
    entry[4..8].copy_from_slice(&narrow(chunk.content_length)?.to_le_bytes());
    entry[8..].copy_from_slice(&chunk.stored_digest);
    Ok(entry)
}

impl ChunkTable {
    /// Returns an empty table for the archive file at `path`.
    pub(super) fn new(path: &Path) -> Self {
        ChunkTable { path: path.to_owned(), recent: Vec::new(), older: None }
    }

    /// Returns the size of all entries in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.older.as_ref().map_or(0, |(_, bytes)| *bytes) + self.recent.len() as u64
    }

    /// Returns the number of entries.
    pub(super) fn count(&self) -> u64 {
        self.size_bytes() / ENTRY_BYTES as u64
    }

    /// Appends the entry of the next chunk.
    pub(super) fn push(&mut self, entry: &[u8; ENTRY_BYTES]) -> Result<()> {
        self.recent.extend_from_slice(entry);
        if self.recent.len() < MAX_MEMORY_BYTES {
            return Ok(());
        }
        let (file, bytes) = match &mut self.older {
            Some(older) => older,
            None => self.older.insert((create_unnamed_file(&self.path)?, 0)),
        };
        file.write_all_at(&self.recent, *bytes).map_err(Error::io("write beside", &self.path))?;
        *bytes += self.recent.len() as u64;
        self.recent.clear();
        Ok(())
    }

    /// Calls `take` with all entries in order, in parts of [`PART_BYTES`], of which only the last may be shorter.
    pub(super) fn for_each_part(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if let Some((file, bytes)) = &self.older {
            let mut part = vec![0; PART_BYTES];
            for offset in (0..*bytes).step_by(PART_BYTES) {
                file.read_exact_at(&mut part, offset).map_err(Error::io("read beside", &self.path))?;
                take(&part)?;
            }
        }
        self.recent.chunks(PART_BYTES).try_for_each(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_in_order_from_memory_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let per_spill = (MAX_MEMORY_BYTES / ENTRY_BYTES) as u64;
        for count in [0, 1, 1600, 1601, per_spill - 1, per_spill, per_spill + 1, 2 * per_spill + 1601] {
            let mut table = ChunkTable::new(&folder.path().join("archive"));
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
                .for_each_part(&mut |part| {
                    assert!(seen.len() % PART_BYTES == 0, "only the last one is shorter");
                    seen.extend_from_slice(part);
                    Ok(())
                })
                .unwrap();
            assert_eq!(seen.len() as u64, count * ENTRY_BYTES as u64);
            assert!(seen.chunks(ENTRY_BYTES).zip(0..).all(|(bytes, number)| bytes == entry(number)), "{count}");
        }
    }
}

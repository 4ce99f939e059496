//! The names in one folder, sorted, in little memory: a folder may hold millions.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;

/// Bytes that one system call fills.
const BUFFER_BYTES: usize = 64 * 1024;

/// The names in a folder in byte order, each once; an iterator over them.
#[derive(Debug, Default)]
pub(super) struct Listing {
    names: Vec<u8>,
    entries: Vec<Entry>,
    next: usize,
}

/// 16 bytes per name, plus the name.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    length: u16,
    kind: FileType,
}

/// Reads listings; reuses the buffer that the kernel writes to.
#[derive(Debug)]
pub(super) struct Lister {
    buffer: Vec<u8>,
}

impl Lister {
    pub(super) fn new() -> Self {
        Lister { buffer: Vec::with_capacity(BUFFER_BYTES) }
    }

    /// Lists `folder` from the current position of its handle. An error is returned with the names read before it.
    pub(super) fn list(&mut self, folder: &OwnedFd) -> (Listing, Option<Errno>) {
        let mut listing = Listing::default();
        let failure = listing.fill(folder, self.buffer.spare_capacity_mut()).err();
        listing.sort();
        (listing, failure)
    }
}

impl Listing {
    fn fill(&mut self, folder: &OwnedFd, buffer: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
        let mut entries = RawDir::new(folder, buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let length = u16::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
            self.entries.push(Entry { start: self.names.len(), length, kind: entry.file_type() });
            self.names.extend_from_slice(name);
        }
        Ok(())
    }

    fn sort(&mut self) {
        let names = &self.names;
        self.entries.sort_unstable_by(|a, b| a.name(names).cmp(b.name(names)));
        // A folder that changes while it is listed may return a name twice.
        self.entries.dedup_by(|a, b| a.name(names) == b.name(names));
        self.entries.shrink_to_fit();
        self.names.shrink_to_fit();
    }

    /// Returns the next name and its type, `Unknown` if the file system does not report that in a listing.
    pub(super) fn next(&mut self) -> Option<(&[u8], FileType)> {
        let entry = self.entries.get(self.next)?;
        self.next += 1;
        Some((entry.name(&self.names), entry.kind))
    }

    /// Returns whether all names have been returned.
    pub(super) fn is_done(&self) -> bool {
        self.next >= self.entries.len()
    }

    /// Returns whether it contains `name`.
    pub(super) fn contains(&self, name: &[u8]) -> bool {
        self.entries.binary_search_by(|entry| entry.name(&self.names).cmp(name)).is_ok()
    }

    /// Removes all names but `kept`, and returns how many were removed.
    pub(super) fn keep_only(&mut self, kept: Option<&[u8]>) -> u64 {
        let before = self.entries.len();
        let names = &self.names;
        self.entries.retain(|entry| Some(entry.name(names)) == kept);
        (before - self.entries.len()) as u64
    }
}

impl Entry {
    fn name(self, names: &[u8]) -> &[u8] {
        &names[self.start..self.start + usize::from(self.length)]
    }
}

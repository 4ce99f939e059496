//! The beginning of an archive that is the same as that of the base, and therefore not written yet.

use super::reuse::{Base, BaseRef};
use crate::error::Result;

/// Chunks that are read at once.
const MAX_PAGE_CHUNKS: u32 = 64;

/// Rows that are marked as read again at once.
const BATCH: usize = 1_000;

/// Chunks of the base from the first one with members on, without a gap: only how many, so that it takes no memory.
pub(super) struct Unwritten<'a> {
    base: &'a Base<'a>,
    /// The first chunk of the base that is not among them.
    next: u64,
    /// Rows of chunks among them that were read again and are equal.
    reread: Vec<i64>,
}

impl<'a> Unwritten<'a> {
    /// Starts with none. The first chunk of an archive holds its global header, which differs from run to run.
    pub(super) fn new(base: &'a Base<'a>) -> Self {
        Unwritten { base, next: 1, reread: Vec::new() }
    }

    /// Adds the next chunk of the archive if it is the next one of the base; returns whether it is.
    pub(super) fn add(&mut self, chunk: &BaseRef) -> bool {
        let is_next = chunk.chunk.sequence == self.next;
        self.next += u64::from(is_next);
        is_next
    }

    /// Records that a chunk was read again.
    pub(super) fn add_reread(&mut self, id: i64) -> Result<()> {
        self.reread.push(id);
        if self.reread.len() < BATCH { Ok(()) } else { self.flush() }
    }

    /// Returns whether these are all chunks of the base but its global header and end marks.
    pub(super) fn is_whole(&self) -> bool {
        self.next + 1 == self.base.chunks
    }

    /// Passes on what was recorded.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.reread.is_empty() { Ok(()) } else { (self.base.mark_reread)(&std::mem::take(&mut self.reread)) }
    }

    /// Returns the first chunk of the base that is not among them.
    pub(super) fn end(&self) -> u64 {
        self.next
    }

    /// Returns how many of them to read at once from `sequence` on, when they are written after all.
    pub(super) fn page_chunks(&self, sequence: u64) -> u32 {
        u32::try_from(self.next - sequence).unwrap_or(u32::MAX).min(MAX_PAGE_CHUNKS)
    }
}

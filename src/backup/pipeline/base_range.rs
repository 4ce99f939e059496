//! Limits the ranges of an archive in segments. Its index would grow with every change, until each member is a range
//! of its own: instead short ranges of the base are copied, so that they and what is written beside them are one.

use super::reuse::{Base, BaseRef};
use crate::archive::index::Index;
use crate::archive::writer::ArchiveWriter;
use crate::chunk::{ChunkRecord, Place};
use crate::clock::Timestamp;

/// Ranges of at least this many bytes are never copied. Between two of them what is written is one range: the limit of
/// the index allows these two for so many bytes.
const MAX_COPIED_BYTES: u64 = 64 << 10;
/// Ranges that one chunk and the end of the archive may add after the limit was compared.
const SPARE_RANGES: u64 = 4;
/// From nine tenths of the limit on, short ranges are copied that lie beside what is written anyway. This is cheaper
/// than to wait for the limit, where all must be copied.
const TENTHS: u64 = 9;

/// A chunk of the base that is not part of the archive yet.
pub(super) struct PendingChunk {
    pub(super) base: BaseRef,
    pub(super) place: Place,
    pub(super) read_started: Timestamp,
    pub(super) record: ChunkRecord,
}

/// The last chunks of the archive, if they are chunks of the base that lie side by side in a segment.
pub(super) struct BaseRange {
    /// Those of which is not decided yet whether they are copied.
    pending: Vec<PendingChunk>,
    bytes: u64,
    /// The segment with the range, and its end there.
    end: Option<(i64, u64)>,
    /// Ranges of fewer bytes are copied if they lie beside what is written.
    copied_beside: u64,
}

impl BaseRange {
    /// Starts without a range, in an archive with this base.
    pub(super) fn new(base: Option<&Base<'_>>) -> Self {
        let copied_beside = base.map_or(0, |base| copied_beside(base.reader.ranges(), Index::max_ranges(base.size)));
        BaseRange { pending: Vec::new(), bytes: 0, end: None, copied_beside }
    }

    /// Returns whether a chunk at this place continues the range.
    pub(super) fn is_continued_by(&self, place: &Place) -> bool {
        self.end == Some((place.segment, place.offset))
    }

    /// Adds a chunk to the range. Returns the chunks of which is known now that they are not copied.
    pub(super) fn add(&mut self, chunk: PendingChunk) -> Vec<PendingChunk> {
        let length = chunk.base.chunk.stored_length;
        self.bytes += length;
        self.end = Some((chunk.place.segment, chunk.place.offset + length));
        self.pending.push(chunk);
        if self.bytes < MAX_COPIED_BYTES { Vec::new() } else { std::mem::take(&mut self.pending) }
    }

    /// Ends the range. Returns the chunks that were not decided on, and whether they are to be copied;
    /// `is_beside_new`: what follows is written.
    pub(super) fn end(&mut self, writer: &ArchiveWriter<'_>, is_beside_new: bool) -> (Vec<PendingChunk>, bool) {
        let bytes = std::mem::take(&mut self.bytes);
        self.end = None;
        let pending = std::mem::take(&mut self.pending);
        let is_limit_reached = writer.ranges() + SPARE_RANGES > Index::max_ranges(writer.size());
        let is_copied =
            is_limit_reached || bytes < self.copied_beside && (is_beside_new || writer.ends_in_new_segment());
        (pending, is_copied)
    }
}

/// Returns the length from which on ranges are not copied beside what is written, if the base has so many ranges.
fn copied_beside(ranges: u64, limit: u64) -> u64 {
    let from = limit / 10 * TENTHS;
    let share = ranges.saturating_sub(from).min(limit - from);
    MAX_COPIED_BYTES * share / (limit - from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_the_limit_the_longer_ranges_are_copied() {
        let lengths = [0, 9_000, 9_500, 10_000, 90_000].map(|ranges| copied_beside(ranges, 10_000));
        assert_eq!(lengths, [0, 0, 32 << 10, 64 << 10, 64 << 10]);
    }
}

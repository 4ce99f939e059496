//! Bytes of stored files that are copied to a new segment.

use super::stored_file::StoredRange;

/// Bytes of a stored file of which a segment holds a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedRange {
    /// Where they are.
    pub from: StoredRange,
    /// Offset of the copy in the segment.
    pub offset: u64,
}

impl CopiedRange {
    /// Returns the offset in the segment of `bytes` bytes at `offset` of the stored file; `None` unless all are copied.
    pub(in crate::store) fn new_offset(&self, offset: u64, bytes: u64) -> Option<u64> {
        let within = offset.checked_sub(self.from.offset)?;
        (within + bytes <= self.from.bytes).then_some(self.offset + within)
    }
}

/// The trailer of an archive, in a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTrailer {
    /// Run of an archive that has it.
    pub run: i64,
    /// Offset in the stored file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// How far moving spans has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// All spans that can follow the copies do.
    All,
    /// A run of the schedule began, and may refer to what was not moved yet.
    RunBegan,
}

/// A segment in which archives have parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSegment {
    /// Its row.
    pub id: i64,
    /// Its name below the archive folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

//! Physical files: whole archive files and segments.

use crate::clock::Timestamp;

/// A physical file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its row.
    pub id: i64,
    /// Name of a segment below the archive folder; `None` for a whole archive file, which has the names of its
    /// archives.
    pub segment_name: Option<String>,
    /// Temporary name of a segment, below the archive folder, until its run is complete.
    pub temporary_name: Option<String>,
    /// Device and inode number, once it is synced.
    pub identity: Option<(u64, u64)>,
    /// Size in bytes, once it is synced.
    pub size: Option<u64>,
    /// When its bytes changed last, in nanoseconds since 1970, as synced.
    pub modified_ns: Option<i64>,
    /// When it was last read back.
    pub verified_at: Option<Timestamp>,
}

impl StoredFile {
    /// Returns the folder of a segment, below the archive folder.
    pub fn folder(&self) -> Option<&str> {
        self.segment_name.as_deref()?.split_once('/').map(|(folder, _)| folder)
    }
}

/// Bytes of an archive file that lie side by side in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRange {
    /// Offset in the archive file.
    pub archive_offset: u64,
    /// Name of the segment, below the archive folder.
    pub segment_name: String,
    /// Offset in the segment.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// Bytes of an archive in segments that a rescan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundRange {
    /// Offset in the archive.
    pub archive_offset: u64,
    /// Row of the segment.
    pub segment: i64,
    /// Offset in the segment.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// Bytes of a physical file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRange {
    /// Row of the file.
    pub stored_file: i64,
    /// Offset in it.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// A chunk in a physical file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredChunk {
    /// Offset of its stored bytes in the file.
    pub offset: u64,
    /// Number of stored bytes.
    pub length: u64,
    /// BLAKE3 of the stored bytes.
    pub digest: [u8; 32],
}

/// A chunk of the catalog, and what its stored bytes must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkDigest {
    /// Its row.
    pub id: i64,
    /// Number of stored bytes.
    pub stored_length: u64,
    /// BLAKE3 of the stored bytes.
    pub stored_digest: [u8; 32],
}

/// Where a file of archives holds bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPlace {
    /// The file, below the archive folder.
    pub file_name: String,
    /// Offset of the first byte in it.
    pub offset: u64,
}

/// The names of a segment that a run is to write, both below the archive folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIntent {
    /// Final name.
    pub segment_name: String,
    /// Temporary name in the same folder.
    pub temporary_name: String,
}

/// What is recorded of a physical file once its bytes are synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBytes {
    /// Size in bytes.
    pub size: u64,
    /// Device of the file.
    pub device: u64,
    /// Inode of the file on that device.
    pub inode: u64,
    /// When the bytes changed last, in nanoseconds since 1970.
    pub modified_ns: Option<i64>,
}

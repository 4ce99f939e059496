//! The base of a run: the archive whose chunks and members it may refer to.

use super::stored_file::StoredFile;
use crate::clock::Timestamp;
use crate::member::{Extent, MemberPath};
use crate::schedule::{Compression, Layout};

/// How an archive was made. Archives whose values differ do not share chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The first component of its members' names.
    pub root_name: MemberPath,
    /// Version of the code that lays out headers and cuts chunks.
    pub writer_version: u32,
    /// Mode of the archive file.
    pub archive_mode: u32,
    /// User that read the source.
    pub effective_uid: u32,
    /// Effective capabilities of that process, as hexadecimal number.
    pub capabilities: String,
}

/// What the base of a run must be.
#[derive(Clone, Debug)]
pub struct BaseQuery {
    /// Row of the schedule.
    pub schedule: i64,
    /// Codec and level.
    pub compression: Compression,
    /// How it is stored. Archives of different layouts do not share bytes.
    pub layout: Layout,
    /// The source, resolved.
    pub source_root: Vec<u8>,
    /// How it was made.
    pub origin: Origin,
}

/// The archive whose chunks and members a run may refer to.
#[derive(Clone, Debug)]
pub struct Base {
    /// Number of the run that made it.
    pub run: i64,
    /// Row of its archive file.
    pub archive_file: i64,
    /// The physical files that it holds ranges of.
    pub parts: Vec<StoredFile>,
    /// Its file, below the archive folder.
    pub file_name: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// BLAKE3 over the digests of its chunks.
    pub digest: [u8; 32],
    /// When the oldest of its parts was last read back.
    pub verified_at: Option<Timestamp>,
    /// Boot of the machine during which it was made.
    pub boot_id: Option<String>,
    /// When reading the source began.
    pub started_at: Timestamp,
    /// How much it holds.
    pub extent: Extent,
    /// Number of its chunks.
    pub chunks: u64,
    /// Some source data is missing in it.
    pub incomplete: bool,
    /// Problems of its run that mean missing data.
    pub losses: u64,
}

impl Base {
    /// Returns whether it is an archive in segments.
    pub fn is_segmented(&self) -> bool {
        self.parts.iter().any(|part| part.segment_name.is_some())
    }
}

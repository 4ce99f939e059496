//! Chunks: the parts of an archive file that can be decoded independently of each other.

use crate::clock::Timestamp;
use crate::member::CatalogMember;

/// One chunk of an archive file: where its bytes are stored and what they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Position among the chunks of the archive file, from 0.
    pub sequence: u64,
    /// Offset of the stored bytes in the archive file.
    pub offset: u64,
    /// Number of stored (encoded) bytes.
    pub stored_length: u64,
    /// BLAKE3 of the stored bytes.
    pub stored_digest: [u8; 32],
    /// Number of bytes of tar in it.
    pub content_length: u64,
    /// BLAKE3 of the bytes of tar in it. `None` if read from a trailer, which does not store it.
    pub content_digest: Option<[u8; 32]>,
}

impl Chunk {
    /// Returns the offset of the first byte after it in the archive file.
    pub fn end(&self) -> u64 {
        self.offset + self.stored_length
    }
}

/// A chunk and the members whose headers start in it, as recorded in the catalog. A file that spans several chunks is a
/// member of the first; the others hold only its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogChunk {
    /// Where it is stored and what it must be.
    pub chunk: Chunk,
    /// Wall-clock time before the first of its members was read.
    pub read_started: Timestamp,
    /// The members, in order.
    pub members: Vec<CatalogMember>,
}

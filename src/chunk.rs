//! Chunks: the parts of an archive file that can be decoded independently of each other.

use crate::clock::Timestamp;
use crate::member::CatalogMember;

/// Maximum number of chunks or members with consecutive ids that one row of the catalog refers to. What refers to an id
/// is found among the rows that begin at most this far before it.
pub const MAX_RUN: i64 = 256;

/// What is added to the version of the writer of archives whose chunks are whole blocks of the file system: their files
/// share blocks.
pub const PADDED_VERSION: u32 = 1 << 16;

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

/// Where a chunk of an archive in the segmented layout is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Row of the segment.
    pub segment: i64,
    /// Offset of the stored bytes in the segment.
    pub offset: u64,
    /// Value of the POSIX CRC of the stored bytes, see [`crate::archive::cksum`].
    pub crc: u32,
}

/// A chunk of a new archive, to be recorded in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogChunk {
    /// Where it is stored and what it must be.
    pub chunk: Chunk,
    /// Its place in a segment; `None` in the whole layout, where it lies at its offset in the one file.
    pub place: Option<Place>,
    /// Wall-clock time before the first of its members was read.
    pub read_started: Timestamp,
    /// The row that it gets.
    pub record: ChunkRecord,
}

impl CatalogChunk {
    /// Returns the number of rows that recording it writes at most: its own, those of its span and its part, those of
    /// new members and of runs of members with consecutive ids.
    pub fn rows(&self) -> usize {
        let ChunkRecord::New { members } = &self.record else { return 3 };
        let breaks = members.windows(2).filter(|pair| !pair[1].may_follow(&pair[0])).count();
        4 + self.new_members().count() + breaks + members.len() / MAX_RUN as usize
    }

    /// Returns the members that it adds to the catalog, in order.
    pub fn new_members(&self) -> impl Iterator<Item = &CatalogMember> + Clone {
        let members = match &self.record {
            ChunkRecord::New { members } => members.as_slice(),
            ChunkRecord::Reused { .. } => &[],
        };
        members.iter().filter_map(|member| match member {
            MemberRecord::New(member) => Some(member),
            MemberRecord::Known(_) => None,
        })
    }
}

/// The row of a chunk of a new archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkRecord {
    /// That of a chunk of the base with the same bytes and members.
    Reused {
        /// The row.
        id: i64,
        /// It was read again and was equal, so that the row gets the new time of reading.
        reread: bool,
    },
    /// A new one.
    New {
        /// The members whose headers start in it, in order. A file that spans several chunks is a member of the first;
        /// the others hold only its content.
        members: Vec<MemberRecord>,
    },
}

/// The row of a member in a new chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a first run records new members only, and boxes cost it time")]
pub enum MemberRecord {
    /// That of an equal member of the base.
    Known(i64),
    /// A new one.
    New(CatalogMember),
}

impl MemberRecord {
    /// Returns whether its id may be the one after that of `other`.
    fn may_follow(&self, other: &MemberRecord) -> bool {
        match (other, self) {
            (MemberRecord::Known(before), MemberRecord::Known(id)) => before + 1 == *id,
            (MemberRecord::New(_), MemberRecord::New(_)) => true,
            _ => false,
        }
    }
}

/// A chunk in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChunk {
    /// Its row.
    pub id: i64,
    /// Where the base stores it and what it must be.
    pub chunk: Chunk,
    /// Its place in a segment; `None` in the whole layout.
    pub place: Option<Place>,
    /// Wall-clock time before the first of its members was read.
    pub read_started: Timestamp,
    /// The members whose headers start in it, in order.
    pub members: Vec<BaseMember>,
}

/// A member in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseMember {
    /// Its row.
    pub id: i64,
    /// What the catalog stores of it; of extended attributes only the digest.
    pub entry: CatalogMember,
}

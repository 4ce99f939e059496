//! The trailer that an archive file must have, by its chunks in the catalog and its digest: whether it has it, and what
//! it is if it has another.

use std::path::Path;

use super::buffer::Buffer;
use super::chunk_table::{ChunkTable, encode_entry};
use super::codec::Codec;
use super::reader::ArchiveReader;
use super::trailer::{self, Facts, Trailer};
use super::writer::ArchiveDigest;
use crate::chunk::Chunk;
use crate::error::Result;

/// Bytes of a trailer that are read at once.
const PART_BYTES: u64 = 1 << 20;

/// What is known of the trailer of an archive file whose chunks are known.
pub struct ExpectedTrailer {
    table: ChunkTable,
    chunks: ArchiveDigest,
    /// Offset in the archive at which it begins.
    start: u64,
    digest: [u8; 32],
}

impl ExpectedTrailer {
    /// Returns it for an archive file of all these chunks, with the archive digest `digest`. The chunks that do not fit
    /// into memory are written to an unnamed file beside `path`.
    pub fn new(path: &Path, chunks: impl Iterator<Item = Result<Chunk>>, digest: [u8; 32]) -> Result<Self> {
        let mut expected =
            ExpectedTrailer { table: ChunkTable::new(path), chunks: ArchiveDigest::new(), start: 0, digest };
        for chunk in chunks {
            let chunk = chunk?;
            expected.table.push(&encode_entry(&chunk)?)?;
            expected.chunks.add(&chunk.stored_digest);
            expected.start = chunk.end();
        }
        Ok(expected)
    }

    /// Returns the offset in the archive at which it begins.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Returns whether an archive of `size` bytes ends with it.
    pub fn is_in(&self, archive: &ArchiveReader, size: u64) -> bool {
        archive.size() == size && hash_from(archive, self.start).is_ok_and(|trailer| self.has_digest(&trailer))
    }

    /// Returns whether it consists of these bytes.
    pub fn is(&self, bytes: &[u8]) -> bool {
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytes);
        self.has_digest(&hasher)
    }

    /// Returns its bytes, if `facts` are those that it was written with.
    pub fn with_facts(&self, codec: Codec, facts: &Facts) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        trailer::write(codec, self.start, &self.table, facts, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(self.is(&bytes).then_some(bytes))
    }

    fn has_digest(&self, trailer: &blake3::Hasher) -> bool {
        self.chunks.clone().finish(trailer.finalize().as_bytes()) == self.digest
    }
}

/// Returns the digest of an archive as its own trailer says, without reading its chunks.
pub fn digest_by_trailer(archive: &ArchiveReader, trailer: &Trailer) -> Result<[u8; 32]> {
    let mut digest = ArchiveDigest::new();
    for chunk in trailer.entries() {
        digest.add(&chunk?.stored_digest);
    }
    Ok(digest.finish(hash_from(archive, trailer.content_end())?.finalize().as_bytes()))
}

/// Hashes the stored bytes of an archive from `offset` on.
fn hash_from(archive: &ArchiveReader, mut offset: u64) -> Result<blake3::Hasher> {
    let (mut hasher, mut part) = (blake3::Hasher::new(), Buffer::new());
    while offset < archive.size() {
        let length = PART_BYTES.min(archive.size() - offset);
        part.clear();
        archive.read_stored(offset, length, &mut part)?;
        hasher.update(&part);
        offset += length;
    }
    Ok(hasher)
}

//! Writes an archive file: its chunks in order, then the trailer.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::block::END_MARKS;
use super::buffer::Buffer;
use super::chunk_table::{ChunkTable, encode_entry};
use super::codec::{Codec, EncodedChunk, Encoder};
use super::header;
use super::trailer::{self, Facts};
use crate::chunk::Chunk;
use crate::error::{Error, Result};
use crate::schedule::Compression;

/// Version of what decides the bytes of an archive besides its source: headers, cuts and codecs. To be raised by every
/// change that makes another archive of the same files, because archives of different versions share no chunks.
pub const WRITER_VERSION: u32 = 1;

/// Number of bytes after which write-back is started.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// Writes chunks in order and records them for the trailer.
pub struct ArchiveWriter<'f> {
    file: &'f mut File,
    path: PathBuf,
    codec: Codec,
    encoder: Encoder,
    offset: u64,
    /// Offset up to which write-back was started.
    write_back_end: u64,
    table: ChunkTable,
    digest: ArchiveDigest,
}

/// A finished archive file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Size of the file in bytes.
    pub size: u64,
    /// Number of chunks, including those with the global header and the end marks.
    pub chunks: u64,
    /// See [`ArchiveDigest`].
    pub digest: [u8; 32],
}

/// The digest of an archive file: BLAKE3 over the BLAKE3 digests (32 bytes each) of the stored bytes of all chunks in
/// order, followed by that of the trailer. Every byte of the file counts, and the digest can be computed without
/// reading chunks whose digests are known.
#[derive(Clone, Debug, Default)]
pub struct ArchiveDigest(blake3::Hasher);

impl ArchiveDigest {
    /// Returns the digest of no chunks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the digest of the next chunk's stored bytes.
    pub fn add(&mut self, stored_digest: &[u8; 32]) {
        self.0.update(stored_digest);
    }

    /// Adds the digest of the trailer and returns the archive digest.
    pub fn finish(mut self, trailer_digest: &[u8; 32]) -> [u8; 32] {
        self.0.update(trailer_digest);
        *self.0.finalize().as_bytes()
    }
}

impl<'f> ArchiveWriter<'f> {
    /// Starts an archive in an empty `file`; `path` is for messages.
    pub fn new(file: &'f mut File, path: &Path, compression: Compression) -> Result<Self> {
        Ok(ArchiveWriter {
            file,
            path: path.to_owned(),
            codec: compression.into(),
            encoder: Encoder::new(compression)?,
            offset: 0,
            write_back_end: 0,
            table: ChunkTable::new(path),
            digest: ArchiveDigest::new(),
        })
    }

    /// Writes the first chunk: the pax global header with `comment`. It is a chunk of its own because it differs from
    /// run to run.
    pub fn put_global_header(&mut self, comment: &str) -> Result<Chunk> {
        let mut content = Buffer::new();
        header::append_global(&mut content, comment);
        self.put_content(content)
    }

    /// Writes the last chunk: the end marks.
    pub fn put_end_marks(&mut self) -> Result<Chunk> {
        let mut content = Buffer::new();
        content.extend(&END_MARKS);
        self.put_content(content)
    }

    fn put_content(&mut self, content: Buffer) -> Result<Chunk> {
        let (encoded, _) = self.encoder.encode(content, Buffer::new())?;
        self.put(&encoded)
    }

    /// Writes the next chunk; returns it with its position and offset in the file.
    pub fn put(&mut self, encoded: &EncodedChunk) -> Result<Chunk> {
        let chunk = Chunk { sequence: self.table.count(), offset: self.offset, ..encoded.chunk };
        self.table.push(&encode_entry(&chunk)?)?;
        self.digest.add(&chunk.stored_digest);
        self.file.write_all(&encoded.stored).map_err(Error::io("write", &self.path))?;
        self.offset = chunk.end();
        if self.offset - self.write_back_end >= WRITE_BACK_BYTES {
            self.start_write_back();
        }
        Ok(chunk)
    }

    /// Writes the trailer. Does not sync the file.
    pub fn finish(mut self, facts: &Facts) -> Result<Finished> {
        let (content_end, chunks) = (self.offset, self.table.count());
        let mut hasher = blake3::Hasher::new();
        let mut size = content_end;
        trailer::write(self.codec, content_end, &self.table, facts, &mut |bytes| {
            hasher.update(bytes);
            size += bytes.len() as u64;
            self.file.write_all(bytes).map_err(Error::io("write", &self.path))
        })?;
        self.offset = size;
        self.start_write_back();
        Ok(Finished { size, chunks, digest: self.digest.finish(hasher.finalize().as_bytes()) })
    }

    /// Starts write-back of what was written, so that the one fsync at the end has little left to write. The advice
    /// that these pages are not needed starts their write-back and frees those that are on disk already.
    fn start_write_back(&mut self) {
        let start = self.write_back_end.saturating_sub(2 * WRITE_BACK_BYTES);
        if let Some(length) = NonZeroU64::new(self.offset - start) {
            // Only advice: where it is not followed, fsync writes everything.
            let _ = fadvise(&*self.file, start, Some(length), Advice::DontNeed);
        }
        self.write_back_end = self.offset;
    }
}

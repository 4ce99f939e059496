//! Writes an archive file: its chunks in order, then the trailer.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::block::END_MARKS;
use super::buffer::Buffer;
use super::chunk_table::{ChunkTable, encode_entry};
use super::codec::{Codec, EncodedChunk, Encoder};
use super::header;
use super::padding::Padding;
use super::trailer::{self, Facts};
use crate::chunk::Chunk;
use crate::durable::{only_if_full, share_range};
use crate::error::{Error, Result};
use crate::schedule::Compression;

/// Version of what decides the bytes of an archive besides its source: headers, cuts and codecs. To be raised by every
/// change that makes another archive of the same files, because archives of different versions share no chunks.
const WRITER_VERSION: u32 = 1;

/// What is added to the version for archives with padding.
const PADDED_VERSION: u32 = 1 << 16;

/// Returns the version of the writer of archives with this padding.
pub fn writer_version(padding: Padding) -> u32 {
    match padding {
        Padding::None => WRITER_VERSION,
        Padding::Blocks => WRITER_VERSION + PADDED_VERSION,
    }
}

/// Number of bytes after which write-back is started.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// Writes chunks in order and records them for the trailer.
pub struct ArchiveWriter<'f> {
    file: &'f File,
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
    pub fn new(file: &'f File, path: &Path, compression: Compression, padding: Padding) -> Result<Self> {
        Ok(ArchiveWriter {
            file,
            path: path.to_owned(),
            codec: compression.into(),
            encoder: Encoder::new(compression, padding)?,
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
        if let Some(padding) = self.encoder.content_padding(content.len()) {
            let length = content.len() + padding;
            content.clear();
            header::append_global_of(&mut content, comment, length);
        }
        self.put_content(content)
    }

    /// Writes the last chunk: the end marks.
    pub fn put_end_marks(&mut self) -> Result<Chunk> {
        let mut content = Buffer::new();
        content.extend(&END_MARKS);
        self.put_content(content)
    }

    fn put_content(&mut self, content: Buffer) -> Result<Chunk> {
        let encoded = self.encoder.encode(content)?;
        self.put(&encoded)
    }

    /// Writes the next chunk; returns it with its position and offset in the file.
    pub fn put(&mut self, encoded: &EncodedChunk) -> Result<Chunk> {
        let chunk = self.add(&encoded.chunk)?;
        self.file.write_all_at(&encoded.stored, chunk.offset).map_err(Error::io("write", &self.path))?;
        Ok(chunk)
    }

    /// Adds the next chunk without its bytes, which the caller writes into the file, or shares
    /// ([`ArchiveWriter::share`]); returns it with its position and offset in the file.
    pub fn add(&mut self, chunk: &Chunk) -> Result<Chunk> {
        let chunk = Chunk { sequence: self.table.count(), offset: self.offset, ..*chunk };
        self.table.push(&encode_entry(&chunk)?)?;
        self.digest.add(&chunk.stored_digest);
        if self.offset - self.write_back_end >= WRITE_BACK_BYTES {
            self.start_write_back();
        }
        self.offset = chunk.end();
        Ok(chunk)
    }

    /// Makes `length` bytes from `offset` on, of chunks that were added, those of another archive file at
    /// `from_offset`. Returns whether the file system did it; all three are multiples of its blocks.
    ///
    /// Errors: `DiskFull`.
    pub fn share(&self, from: &File, from_offset: u64, offset: u64, length: u64) -> Result<bool> {
        match share_range(from, from_offset, self.file, offset, length) {
            Ok(()) => Ok(true),
            Err(error) => {
                log::debug!("{}: {length} bytes are copied, not shared: {error}", self.path.display());
                only_if_full(error, &self.path).map(|()| false)
            }
        }
    }

    /// Writes the trailer. Does not sync the file.
    pub fn finish(mut self, facts: &Facts) -> Result<Finished> {
        let (content_end, chunks) = (self.offset, self.table.count());
        let mut hasher = blake3::Hasher::new();
        let mut size = content_end;
        trailer::write(self.codec, content_end, &self.table, facts, &mut |bytes| {
            hasher.update(bytes);
            self.file.write_all_at(bytes, size).map_err(Error::io("write", &self.path))?;
            size += bytes.len() as u64;
            Ok(())
        })?;
        self.offset = size;
        self.start_write_back();
        Ok(Finished { size, chunks, digest: self.digest.finish(hasher.finalize().as_bytes()) })
    }

    /// Starts write-back of what was written, so that the one fsync at the end has little left to write. The advice
    /// that these pages are not needed starts their write-back and frees those that are on disk already. It goes back
    /// far enough for bytes that were written late.
    fn start_write_back(&mut self) {
        let start = self.write_back_end.saturating_sub(2 * WRITE_BACK_BYTES);
        if let Some(length) = NonZeroU64::new(self.offset - start) {
            // Only advice: where it is not followed, fsync writes everything.
            let _ = fadvise(self.file, start, Some(length), Advice::DontNeed);
        }
        self.write_back_end = self.offset;
    }
}

//! Writes an archive file, as a whole or in segments: its chunks in order, then the trailer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::block::END_MARKS;
use super::buffer::Buffer;
use super::chunk_table::{ChunkTable, encode_entry};
use super::cksum::Crc;
use super::codec::{Codec, EncodedChunk, Encoder};
use super::header;
use super::padding::Padding;
use super::segment_writer::{SegmentFiles, SegmentWriter, WriteBack};
use super::trailer::{self, Facts};
use crate::chunk::{Chunk, PADDED_VERSION, Place};
use crate::durable::{only_if_full, share_range};
use crate::error::{Error, Result};
use crate::schedule::Compression;

/// Version of what decides the bytes of an archive besides its source: headers, cuts and codecs. To be raised by every
/// change that makes another archive of the same files, because archives of different versions share no chunks.
/// Chunks of segments became smaller without a new version: no released version wrote segments.
const WRITER_VERSION: u32 = 1;

/// Returns the version of the writer of archives with this padding.
pub fn writer_version(padding: Padding) -> u32 {
    match padding {
        Padding::None => WRITER_VERSION,
        Padding::Blocks => WRITER_VERSION + PADDED_VERSION,
    }
}

/// Writes chunks in order and records them for the trailer.
pub struct ArchiveWriter<'f> {
    target: Target<'f>,
    encoder: Encoder,
    codec: Codec,
    offset: u64,
    table: ChunkTable,
    digest: ArchiveDigest,
}

/// Where the bytes are written.
enum Target<'f> {
    Whole { file: &'f File, path: PathBuf, write_back: WriteBack },
    Segments(Box<SegmentWriter<'f>>),
}

/// A chunk of a new archive.
#[derive(Clone, Copy, Debug)]
pub struct WrittenChunk {
    /// With its position and offset in the archive file.
    pub chunk: Chunk,
    /// Where it is stored; `None` in the whole layout.
    pub place: Option<Place>,
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
    /// What else is known of it in the segmented layout.
    pub in_segments: Option<InSegments>,
}

/// An archive file in segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InSegments {
    /// CRC of the whole archive file.
    pub crc: Crc,
    /// Row of the segment with the trailer.
    pub trailer_segment: i64,
    /// Offset of the trailer in that segment.
    pub trailer_offset: u64,
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
        let target = Target::Whole { file, path: path.to_owned(), write_back: WriteBack::default() };
        Self::start(target, path, Encoder::new(compression, padding)?, compression)
    }

    /// Starts an archive in segments; `path` is that of its index, for messages.
    pub fn in_segments(files: SegmentFiles<'f>, path: &Path, compression: Compression) -> Result<Self> {
        let encoder = Encoder::new(compression, Padding::None)?;
        Self::start(Target::Segments(Box::new(SegmentWriter::new(files))), path, encoder, compression)
    }

    fn start(target: Target<'f>, path: &Path, encoder: Encoder, compression: Compression) -> Result<Self> {
        Ok(ArchiveWriter {
            target,
            encoder,
            codec: compression.into(),
            offset: 0,
            table: ChunkTable::new(path),
            digest: ArchiveDigest::new(),
        })
    }

    /// Writes the first chunk: the pax global header with `comment`. It is a chunk of its own because it differs from
    /// run to run.
    pub fn put_global_header(&mut self, comment: &str) -> Result<WrittenChunk> {
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
    pub fn put_end_marks(&mut self) -> Result<WrittenChunk> {
        let mut content = Buffer::new();
        content.extend(&END_MARKS);
        self.put_content(content)
    }

    fn put_content(&mut self, content: Buffer) -> Result<WrittenChunk> {
        let encoded = self.encoder.encode(content)?;
        self.put(&encoded)
    }

    /// Writes the next chunk; returns it with its position and offset in the archive file.
    pub fn put(&mut self, encoded: &EncodedChunk) -> Result<WrittenChunk> {
        let chunk = self.add(&encoded.chunk)?;
        let place = match &mut self.target {
            Target::Segments(segments) => Some(segments.put(&encoded.stored)?),
            Target::Whole { file, path, .. } => {
                file.write_all_at(&encoded.stored, chunk.offset).map_err(Error::io("write", &*path))?;
                None
            }
        };
        Ok(WrittenChunk { chunk, place })
    }

    /// Makes a chunk that is stored in a segment already the next one of an archive in segments.
    pub fn refer(&mut self, chunk: &Chunk, place: Place) -> Result<WrittenChunk> {
        let Target::Segments(segments) = &mut self.target else { return Err(misplaced()) };
        segments.refer(&place, chunk.stored_length);
        Ok(WrittenChunk { chunk: self.add(chunk)?, place: Some(place) })
    }

    /// Returns the size of what was written and referred to, in bytes.
    pub fn size(&self) -> u64 {
        self.offset
    }

    /// Returns how many ranges of segments that is: lines of the index. None in the whole layout.
    pub fn ranges(&self) -> u64 {
        match &self.target {
            Target::Segments(segments) => segments.ranges(),
            Target::Whole { .. } => 0,
        }
    }

    /// Returns whether what is written next continues the last range.
    pub fn ends_in_new_segment(&self) -> bool {
        match &self.target {
            Target::Segments(segments) => segments.ends_in_current(),
            Target::Whole { .. } => false,
        }
    }

    /// Adds the next chunk without its bytes, which the caller writes into the file, or shares
    /// ([`ArchiveWriter::share`]); returns it with its position and offset in the file.
    pub fn add(&mut self, chunk: &Chunk) -> Result<Chunk> {
        let chunk = Chunk { sequence: self.table.count(), offset: self.offset, ..*chunk };
        self.table.push(&encode_entry(&chunk)?)?;
        self.digest.add(&chunk.stored_digest);
        if let Target::Whole { file, write_back, .. } = &mut self.target {
            write_back.advance(file, self.offset);
        }
        self.offset = chunk.end();
        Ok(chunk)
    }

    /// Makes `length` bytes from `offset` on, of chunks that were added, those of another archive file at
    /// `from_offset`. Returns whether the file system did it; all three are multiples of its blocks.
    ///
    /// Errors: `DiskFull`.
    pub fn share(&self, from: &File, from_offset: u64, offset: u64, length: u64) -> Result<bool> {
        let Target::Whole { file, path, .. } = &self.target else { return Err(misplaced()) };
        match share_range(from, from_offset, file, offset, length) {
            Ok(()) => Ok(true),
            Err(error) => {
                log::debug!("{}: {length} bytes are copied, not shared: {error}", path.display());
                only_if_full(error, path).map(|()| false)
            }
        }
    }

    /// Makes the file as long as what was added to it, so that it can be written in any order. Returns whether the file
    /// system does that: FAT through FUSE neither extends a file nor writes behind its end.
    pub fn extend(&self) -> Result<bool> {
        let Target::Whole { file, path, .. } = &self.target else { return Err(misplaced()) };
        if file.metadata().map_err(Error::io("inspect", path))?.len() >= self.offset {
            return Ok(true);
        }
        match file.set_len(self.offset) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            extended => extended.map(|()| true).map_err(Error::io("write", path)),
        }
    }

    /// Writes bytes of a chunk that was added at `offset`.
    pub fn fill(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let Target::Whole { file, path, .. } = &self.target else { return Err(misplaced()) };
        file.write_all_at(bytes, offset).map_err(Error::io("write", path))
    }

    /// Writes the trailer. Does not sync a file; segments are synced.
    pub fn finish(mut self, facts: &Facts) -> Result<Finished> {
        let (content_end, chunks) = (self.offset, self.table.count());
        let trailer_at = match &mut self.target {
            Target::Whole { .. } => None,
            Target::Segments(segments) => {
                segments.make_room(trailer::max_bytes(chunks))?;
                Some(segments.position()?)
            }
        };
        let mut hasher = blake3::Hasher::new();
        let mut size = content_end;
        let target = &mut self.target;
        trailer::write(self.codec, content_end, &self.table, facts, &mut |bytes| {
            hasher.update(bytes);
            match target {
                Target::Whole { file, path, .. } => {
                    file.write_all_at(bytes, size).map_err(Error::io("write", &*path))?;
                }
                Target::Segments(segments) => drop(segments.append(bytes)?),
            }
            size += bytes.len() as u64;
            Ok(())
        })?;
        let digest = self.digest.finish(hasher.finalize().as_bytes());
        let in_segments = match (self.target, trailer_at) {
            (Target::Segments(segments), Some((trailer_segment, trailer_offset))) => {
                Some(InSegments { crc: segments.finish()?, trailer_segment, trailer_offset })
            }
            (Target::Whole { file, mut write_back, .. }, _) => {
                write_back.start(file, size);
                None
            }
            (Target::Segments(_), None) => return Err(misplaced()),
        };
        Ok(Finished { size, chunks, digest, in_segments })
    }
}

/// Returns the error for bytes that do not belong into the layout of an archive.
fn misplaced() -> Error {
    Error::failed("an archive was written in two layouts").hint("this is a bug: please report it")
}

//! Reads the stored bytes of an archive file.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::buffer::Buffer;
use super::cksum::Cksum;
use super::codec::{self, Codec};
use super::index::{self, Index};
use super::segments::{Piece, Segments};
use super::stored::StoredBytes;
use super::trailer::{self, Trailer};
use crate::archive_name::{ArchiveName, INDEX_SUFFIX};
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};
use crate::member::Span;

/// Largest number of skippable zstd frames before the first one with content.
const MAX_SKIPPED_FRAMES: usize = 1000;

/// What every header of tar has at this offset, except those of the oldest programs.
const TAR_MAGIC: &[u8] = b"ustar";
const TAR_MAGIC_OFFSET: u64 = 257;

/// An archive opened for reading: a file, or an index with its segments.
#[derive(Debug)]
pub struct ArchiveReader {
    metadata: Metadata,
    stored: Arc<StoredBytes>,
    codec: Codec,
    cksum: Option<Cksum>,
}

impl ArchiveReader {
    /// Opens an archive file, or the index of an archive in segments. A segment that is missing makes reading its part
    /// fail, so that the rest can be restored.
    ///
    /// How it is stored follows from its trailer, which lies elsewhere in each format, so that damage to its first
    /// bytes costs no more than its first chunk; its name may lie. A file without one is recognised by its first bytes.
    ///
    /// Errors: [`ErrorKind::NotFound`] if the file is missing; [`ErrorKind::Damage`] for an index that is not as it was
    /// written.
    pub fn open(path: &Path) -> Result<Self> {
        // A FIFO without a writer would block the opening; a regular file is read the same way.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = opened.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::not_found(format!("there is no archive file {}", path.display()))
                .hint("check whether its disk is mounted"),
            _ => Error::io("open", path)(e),
        })?;
        let metadata = file.metadata().map_err(Error::io("inspect", path))?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a folder" } else { "a pipe or a device" };
            return Err(Error::failed(format!(
                "cannot read {} as an archive: it is {what}, not a file",
                path.display()
            ))
            .hint("save the archive as a regular file and name that"));
        }
        if is_index(&file, path)? {
            return open_segments(path, metadata, file);
        }
        let detected = detect_codec(&file).map_err(Error::io("read", path))?;
        let stored = Arc::new(StoredBytes::of_file(path, file, metadata.len()));
        let codec = trailer::codec_by_footer(&stored).unwrap_or_else(|| codec_without_footer(detected, path, &stored));
        Ok(ArchiveReader { metadata, stored, codec, cksum: None })
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        self.stored.path()
    }

    /// Returns the metadata of the file at that path, which may be an index, as it was at opening.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns the open file of a whole archive; `None` of one in segments.
    pub fn whole_file(&self) -> Option<&File> {
        self.stored.whole_file()
    }

    /// Returns the number of ranges of segments that it consists of; one if it is a whole file.
    pub fn ranges(&self) -> u64 {
        self.stored.ranges()
    }

    /// Returns its bytes.
    pub(super) fn stored(&self) -> &StoredBytes {
        &self.stored
    }

    /// Returns how its chunks are stored.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns the size of the archive in bytes, as it was at opening.
    pub fn size(&self) -> u64 {
        self.stored.size()
    }

    /// Returns whether an index says what `cksum` prints for the archive.
    pub(super) fn has_cksum(&self) -> bool {
        self.cksum.is_some()
    }

    /// Compares what `cksum` prints for the bytes that were read with what the index says, if there is one.
    pub fn check_cksum(&self, found: Cksum) -> Result<()> {
        match self.cksum.filter(|expected| *expected != found) {
            None => Ok(()),
            Some(expected) => {
                let message =
                    format!("the checksum of {} is {found}, and its index says {expected}", self.path().display());
                Err(Error::new(ErrorKind::Damage, message))
            }
        }
    }

    /// Returns what is wrong with the segments as a whole, in words: those that are missing or too short.
    pub fn segment_problems(&self) -> Vec<String> {
        self.stored.problems()
    }

    /// Returns the ranges of the archive that lie beyond the end of their segments.
    pub fn ranges_beyond_segments(&self) -> Vec<std::ops::Range<u64>> {
        self.stored.ranges_beyond_segments()
    }

    /// Reads the trailer. Returns `None` if the file has no trailer of this program. Errors: a trailer that is damaged;
    /// an archive in segments always has one.
    pub fn trailer(&self) -> Result<Option<Trailer>> {
        match Trailer::read(&self.stored, self.codec)? {
            None if self.whole_file().is_none() => Err(trailer::without_footer(&self.stored, self.codec)),
            found => Ok(found),
        }
    }

    /// Appends `length` stored bytes from `offset` on to `out`.
    ///
    /// Errors: [`ErrorKind::Damage`] if the archive ends earlier, or a segment is missing or ends earlier.
    pub fn read_stored(&self, offset: u64, length: u64, out: &mut Buffer) -> Result<()> {
        let length = self.check_range(offset, length)?;
        self.stored.read_exact_at(out.spare(length), offset)?;
        out.keep(length);
        Ok(())
    }

    /// Returns the parts of the `length` bytes from `offset` on that lie in one file each, as far as the archive goes.
    pub(super) fn spans(&self, offset: u64, length: u64) -> Vec<Span> {
        let pieces = self.stored.pieces(offset, length);
        let mut offset = offset;
        let span = |piece: Piece| {
            let span = Span { offset, length: piece.length };
            offset += piece.length;
            span
        };
        pieces.map(span).collect()
    }

    /// Returns `length`, if the archive has so many bytes from `offset` on and a chunk may have so many.
    pub(super) fn check_range(&self, offset: u64, length: u64) -> Result<usize> {
        if offset.checked_add(length).is_none_or(|end| end > self.size()) {
            return Err(self.stored.ends_early(offset, length));
        }
        codec::check_length(length)?;
        usize::try_from(length).map_err(|_| self.stored.ends_early(offset, length))
    }

    /// Returns the error for a chunk whose stored bytes have another digest.
    pub fn mismatch(&self, chunk: &Chunk) -> Error {
        let place = self.stored.place_of(chunk.offset, chunk.stored_length);
        Error::new(ErrorKind::Damage, format!("its bytes are not those that were written{place}"))
    }

    /// Drops the archive from the page cache, so that the next reads come from the disk.
    pub fn drop_cached(&self) -> Result<()> {
        self.stored.drop_cached()
    }
}

/// Returns whether a file is an index, by its first line, or else by its name: one that lost its first line is damaged.
fn is_index(file: &File, path: &Path) -> Result<bool> {
    let mut first = [0; index::MAGIC.len()];
    file.read_at(&mut first, 0).map_err(Error::io("read", path))?;
    if first == index::MAGIC {
        return Ok(true);
    }
    // A name of this form is that of no other file.
    let name = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(INDEX_SUFFIX));
    Ok(name.is_some_and(|archive| ArchiveName::of_file(archive).is_some()))
}

fn open_segments(path: &Path, metadata: Metadata, file: File) -> Result<ArchiveReader> {
    let index = Index::read(path, BufReader::with_capacity(1 << 17, file))?;
    // The segments lie beside the index itself, not beside a link to it.
    let real = path.canonicalize().map_err(Error::io("resolve", path))?;
    let segments = Segments::open(real.parent().unwrap_or(Path::new("/")), &index)?;
    let codec = Codec::of_extension(index.archive_name().extension);
    let stored = Arc::new(StoredBytes::of_segments(path, segments));
    Ok(ArchiveReader { metadata, stored, codec, cksum: Some(index.cksum()) })
}

/// Returns the codec of a file without the footer of a trailer, of which `detected` is the codec by its beginning. If
/// it begins with no magic number and no header, but has the name of an archive of this program, then its beginning is
/// damaged, and the name decides.
fn codec_without_footer(detected: Codec, path: &Path, stored: &StoredBytes) -> Codec {
    let mut magic = [0; TAR_MAGIC.len()];
    let is_tar = stored.read_exact_at(&mut magic, TAR_MAGIC_OFFSET).is_ok() && magic == TAR_MAGIC;
    if detected != Codec::Plain || is_tar {
        return detected;
    }
    // A stable link has another name than the archive.
    let real = path.canonicalize().ok();
    let name = real.as_deref().and_then(Path::file_name).and_then(OsStr::to_str).and_then(ArchiveName::of_file);
    name.map_or(detected, |name| Codec::of_extension(name.extension))
}

/// Returns the codec by the beginning of a file. A zstd file may begin with skippable frames, as pzstd writes them.
fn detect_codec(file: &File) -> io::Result<Codec> {
    let mut at = 0;
    for _ in 0..MAX_SKIPPED_FRAMES {
        let mut first = [0; 8];
        let length = file.read_at(&mut first, at)?;
        if at > 0 && !Codec::Zstd.begins_frame(&first[..length]) {
            return Ok(Codec::Plain);
        }
        if length < first.len() || !codec::is_skippable(&first) {
            return Ok(Codec::of_first_bytes(&first[..length]));
        }
        let [.., a, b, c, d] = first;
        at += first.len() as u64 + u64::from(u32::from_le_bytes([a, b, c, d]));
    }
    Ok(Codec::Plain)
}

//! The stored bytes of an archive, by their offset in it: those of a file, or of ranges of segments.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

use super::segments::{Piece, Segments};
use crate::error::{Error, ErrorKind, Result};

/// Pieces that one message names.
const MAX_NAMED_PIECES: usize = 10;

/// The bytes of an archive as they are stored.
#[derive(Debug)]
pub struct StoredBytes {
    path: PathBuf,
    size: u64,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Whole(Arc<File>),
    Segments(Segments),
}

impl StoredBytes {
    /// Returns those of a file of `size` bytes.
    pub(super) fn of_file(path: &Path, file: File, size: u64) -> Self {
        StoredBytes { path: path.to_owned(), size, files: Files::Whole(Arc::new(file)) }
    }

    /// Returns those of segments; `path` is that of their index.
    pub(super) fn of_segments(path: &Path, segments: Segments) -> Self {
        StoredBytes { path: path.to_owned(), size: segments.size(), files: Files::Segments(segments) }
    }

    /// Returns the path of the file or index.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size of the archive in bytes, as it was at opening.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the number of ranges of files that these are.
    pub(super) fn ranges(&self) -> u64 {
        match &self.files {
            Files::Whole(_) => 1,
            Files::Segments(segments) => segments.range_count(),
        }
    }

    /// Returns the file of a whole archive; `None` if it is stored in segments.
    pub(super) fn whole_file(&self) -> Option<&File> {
        match &self.files {
            Files::Whole(file) => Some(file),
            Files::Segments(_) => None,
        }
    }

    /// Returns what is wrong with the segments as a whole, in words.
    pub(super) fn problems(&self) -> Vec<String> {
        match &self.files {
            Files::Whole(_) => Vec::new(),
            Files::Segments(segments) => segments.problems(),
        }
    }

    /// Returns the ranges of the archive that lie beyond the end of their segments.
    pub(super) fn ranges_beyond_segments(&self) -> Vec<std::ops::Range<u64>> {
        let Files::Segments(segments) = &self.files else { return Vec::new() };
        let mut at = 0;
        let ends = self.pieces(0, self.size).map(|piece| {
            at += piece.length;
            (piece, at)
        });
        let beyond = |(piece, end): (Piece, u64)| {
            let size = segments.file(piece.file).ok()?.metadata().ok()?.len();
            let missing = (piece.offset + piece.length).saturating_sub(size).min(piece.length);
            (missing > 0).then(|| end - missing..end)
        };
        ends.filter_map(beyond).collect()
    }

    /// Returns words for messages: which segments hold the `length` bytes from `offset` on, and where. Nothing in a
    /// whole archive.
    pub(super) fn place_of(&self, offset: u64, length: u64) -> String {
        let Files::Segments(segments) = &self.files else { return String::new() };
        let words = |piece: Piece| format!("segment {} at byte {}", segments.name(piece.file), piece.offset);
        let pieces = self.pieces(offset, length).take(MAX_NAMED_PIECES);
        format!(" ({})", pieces.map(words).collect::<Vec<_>>().join(", "))
    }

    /// Returns where `length` bytes from `offset` on are stored, piece by piece, as far as the archive goes.
    pub(super) fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> {
        let end = offset.saturating_add(length).min(self.size);
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let piece = match &self.files {
                Files::Whole(_) => Piece { file: 0, offset: at, length: end - at },
                Files::Segments(segments) => segments.piece_at(at)?,
            };
            let length = piece.length.min(end - at);
            at += length;
            Some(Piece { length, ..piece })
        })
    }

    /// Returns a file by its number, open. Errors: name the segment.
    pub(super) fn file(&self, number: u32) -> io::Result<Arc<File>> {
        match &self.files {
            Files::Whole(file) => Ok(file.clone()),
            Files::Segments(segments) => segments.file(number),
        }
    }

    /// Reads up to `out.len()` bytes from `offset` on, at least one unless the archive ends. Errors: name the segment.
    pub(super) fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.files {
            Files::Whole(file) => file.read_at(out, offset),
            Files::Segments(segments) => segments.read_at(out, offset),
        }
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// Errors: [`ErrorKind::Damage`] if the archive or a segment ends earlier, or a segment is missing.
    pub(super) fn read_exact_at(&self, mut out: &mut [u8], mut offset: u64) -> Result<()> {
        let length = out.len();
        while !out.is_empty() {
            match self.read_at(out, offset) {
                Ok(0) => return Err(self.ends_early(offset, length as u64)),
                Ok(count) => {
                    offset += count as u64;
                    out = &mut out[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
        Ok(())
    }

    /// Returns the error for bytes that the archive does not have.
    pub(super) fn ends_early(&self, offset: u64, length: u64) -> Error {
        let message = format!("{} has no {length} bytes at offset {offset}: it was cut off", self.path.display());
        Error::new(ErrorKind::Damage, message).hint("restore from another archive")
    }

    fn read_error(&self, error: io::Error) -> Error {
        match (&self.files, error.kind()) {
            (Files::Segments(_), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                Error::new(ErrorKind::Damage, format!("{}: {error}", self.path.display()))
                    .hint("put the segments into the folder of the index, or restore from another archive")
            }
            _ => Error::io("read", &self.path)(error),
        }
    }

    /// Drops the files from the page cache, so that the next reads come from the disk.
    pub(super) fn drop_cached(&self) -> Result<()> {
        match &self.files {
            Files::Whole(file) => drop_cached(file, &self.path),
            // What cannot be opened cannot be read either, which is found there.
            Files::Segments(segments) => (0..segments.count())
                .filter_map(|number| segments.file(number).ok())
                .try_for_each(|file| drop_cached(&file, &self.path)),
        }
    }
}

fn drop_cached(file: &File, path: &Path) -> Result<()> {
    // Pages that are not on disk yet cannot be dropped. Read-only file systems (ISO 9660, squashfs) have no fsync.
    match file.sync_all() {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::ROFS)) => {}
        synced => synced.map_err(Error::io("sync", path))?,
    }
    // Only advice: a file system without a page cache need not follow it.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
    let _ = fadvise(file, 0, None, Advice::Sequential);
    Ok(())
}

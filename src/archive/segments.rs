//! The segments of an archive in the segmented layout, opened for reading.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::index::Index;
use crate::error::{Error, Result};

/// Segments that are kept open. A process may have few files open, and an archive of 1 TB has thousands of segments.
const MAX_OPEN_FILES: usize = 128;

/// The segments of one archive, and which of their bytes it consists of. Those that fit into the limit of open files
/// are opened once and stay open, so that an archive whose segments are removed meanwhile can be read to its end.
#[derive(Debug)]
pub(super) struct Segments {
    /// The folder of the index: its name may change meanwhile.
    folder: File,
    segments: Vec<Segment>,
    ranges: Vec<Range>,
    /// Size of the archive in bytes.
    size: u64,
    /// The segments that are open, the one used last at the end.
    open: Mutex<Vec<(u32, Arc<File>)>>,
}

#[derive(Debug)]
struct Segment {
    name: String,
    /// The file as it was when the archive was opened; `None` if it could not be opened.
    found: Option<Identity>,
}

/// What distinguishes a file from another of the same name: device, inode, size and mtime.
type Identity = (u64, u64, u64, i64, i64);

#[derive(Clone, Copy, Debug)]
struct Range {
    /// Offset of the first byte in the archive.
    start: u64,
    /// Offset of the first byte in the segment.
    offset: u64,
    segment: u32,
}

/// Bytes of an archive that lie side by side in one of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number of the file.
    pub(super) file: u32,
    /// Offset of the first byte in the file.
    pub(super) offset: u64,
    /// Number of bytes.
    pub(super) length: u64,
}

impl Segments {
    /// Opens the segments of an index in its folder. One that is missing or too short makes reading its ranges fail.
    pub(super) fn open(folder: &Path, index: &Index) -> Result<Segments> {
        let folder_file = File::open(folder).map_err(Error::io("open", folder))?;
        let segments = index.segments().iter().map(|name| Segment { name: name.clone(), found: None }).collect();
        let (mut ranges, mut start) = (Vec::with_capacity(index.ranges().len()), 0);
        for (segment, range) in index.numbered_ranges() {
            ranges.push(Range { start, offset: range.offset, segment });
            start += range.length;
        }
        let open = Mutex::new(Vec::new());
        let mut opened = Segments { folder: folder_file, segments, ranges, size: start, open };
        for number in 0..opened.segments.len() as u32 {
            let Ok((file, identity)) = opened.open_segment(number) else { continue };
            opened.segments[number as usize].found = Some(identity);
            let mut open = opened.lock();
            if open.len() < MAX_OPEN_FILES {
                open.push((number, Arc::new(file)));
            }
        }
        Ok(opened)
    }

    /// Returns the size of the archive in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the file name of a segment.
    pub(super) fn name(&self, file: u32) -> &str {
        &self.segments[file as usize].name
    }

    /// Returns the number of ranges.
    pub(super) fn range_count(&self) -> u64 {
        self.ranges.len() as u64
    }

    /// Returns the number of segments.
    pub(super) fn count(&self) -> u32 {
        self.segments.len() as u32
    }

    /// Returns what is wrong with the segments as a whole, in words: those that are missing or too short.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut needed = vec![0_u64; self.segments.len()];
        for (range, end) in self.ranges.iter().zip(self.range_ends()) {
            let end = range.offset + (end - range.start);
            let needed = &mut needed[range.segment as usize];
            *needed = (*needed).max(end);
        }
        let check = |(number, needed): (u32, u64)| match self.file(number) {
            Err(error) => Some(error.to_string()),
            Ok(file) => {
                let size = file.metadata().ok()?.len();
                let name = self.name(number);
                (size < needed).then(|| {
                    format!("the segment {name} has {size} bytes, and the archive needs {needed}: it was cut off")
                })
            }
        };
        (0..).zip(needed).filter_map(check).collect()
    }

    /// Returns for each range the offset in the archive at which it ends.
    fn range_ends(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().skip(1).map(|range| range.start).chain([self.size])
    }

    /// Returns where the bytes of the archive from `offset` on are stored; `None` at its end.
    pub(super) fn piece_at(&self, offset: u64) -> Option<Piece> {
        if offset >= self.size {
            return None;
        }
        let at = self.ranges.partition_point(|range| range.start <= offset) - 1;
        let range = self.ranges[at];
        let end = self.ranges.get(at + 1).map_or(self.size, |next| next.start);
        let within = offset - range.start;
        Some(Piece { file: range.segment, offset: range.offset + within, length: end - offset })
    }

    /// Reads `out.len()` bytes of the archive, fewer at its end and before bytes that cannot be read, but at least one
    /// unless it ends. Errors: name the segment.
    pub(super) fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            match self.read_piece(&mut out[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                // Reading on reports it.
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Reads at most what lies side by side in one segment.
    fn read_piece(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(piece) = self.piece_at(offset) else { return Ok(0) };
        let length = usize::try_from(piece.length).map_or(out.len(), |length| length.min(out.len()));
        let file = self.file(piece.file)?;
        let name = self.name(piece.file);
        match file.read_at(&mut out[..length], piece.offset) {
            Ok(0) if length > 0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the segment {name} ends before byte {}: it was cut off", piece.offset),
            )),
            Ok(count) => Ok(count),
            Err(error) => Err(io::Error::new(error.kind(), format!("the segment {name}: {error}"))),
        }
    }

    /// Returns a segment, open. Errors: name it; `NotFound` if it is missing or another file has its name.
    pub(super) fn file(&self, number: u32) -> io::Result<Arc<File>> {
        if let Some(file) = self.touch(number) {
            return Ok(file);
        }
        let (file, identity) = self.open_segment(number)?;
        if self.segments[number as usize].found.is_some_and(|found| found != identity) {
            return Err(gone(self.name(number), "was replaced since the archive was opened"));
        }
        let file = Arc::new(file);
        let mut open = self.lock();
        if open.len() >= MAX_OPEN_FILES {
            open.remove(0);
        }
        open.push((number, file.clone()));
        Ok(file)
    }

    /// Returns a segment that is open, and makes it the one used last.
    fn touch(&self, number: u32) -> Option<Arc<File>> {
        let mut open = self.lock();
        let at = open.iter().rposition(|(open, _)| *open == number)?;
        let found = open.remove(at);
        let file = found.1.clone();
        open.push(found);
        Some(file)
    }

    fn open_segment(&self, number: u32) -> io::Result<(File, Identity)> {
        let name = self.name(number);
        // A FIFO would block, and a link could lead out of the folder.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.folder, name, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOENT => gone(name, "is missing"),
            Errno::LOOP => gone(name, "is a symbolic link, which is not followed"),
            _ => {
                let error = io::Error::from(error);
                io::Error::new(error.kind(), format!("the segment {name} cannot be opened: {error}"))
            }
        })?;
        let file = File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(gone(name, "is not a regular file"));
        }
        Ok((file, identity(&metadata)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u32, Arc<File>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

fn gone(name: &str, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the segment {name} {what}"))
}

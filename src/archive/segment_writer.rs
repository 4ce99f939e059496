//! Writes the bytes that an archive adds in the segmented layout: segments of limited size, each ending at a chunk.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroU64;

use rustix::fs::{Advice, fadvise};

use super::cksum::Crc;
use crate::chunk::Place;
use crate::durable::PendingFile;
use crate::error::{Error, Result};

/// Largest segment in bytes, unless a trailer alone is larger. Some programs `tail` read no file of over 4 GiB, or read
/// all that comes before a range; and a segment is removed only as a whole.
const MAX_SEGMENT_BYTES: u64 = 256 << 20;

/// Number of bytes after which write-back is started.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// How the segments of a run get their files. Both are called by the thread that writes.
pub struct SegmentFiles<'f> {
    /// Creates the next segment and returns its row.
    pub create: &'f mut (dyn FnMut() -> Result<(i64, PendingFile)> + Send),
    /// Syncs a segment that is complete, and records that.
    pub seal: &'f mut (dyn FnMut(i64, PendingFile) -> Result<()> + Send),
}

/// Writes segments one after the other.
pub(super) struct SegmentWriter<'f> {
    files: SegmentFiles<'f>,
    current: Option<OpenSegment>,
    /// Of all bytes of the archive, in whatever segment they are.
    crc: Crc,
    /// Ranges of the archive, and the segment and the offset at which the last one ends.
    ranges: u64,
    end: Option<(i64, u64)>,
}

struct OpenSegment {
    row: i64,
    pending: PendingFile,
    size: u64,
    write_back: WriteBack,
}

impl<'f> SegmentWriter<'f> {
    pub(super) fn new(files: SegmentFiles<'f>) -> Self {
        SegmentWriter { files, current: None, crc: Crc::default(), ranges: 0, end: None }
    }

    /// Writes the stored bytes of a chunk; returns where they are.
    pub(super) fn put(&mut self, stored: &[u8]) -> Result<Place> {
        self.make_room(stored.len() as u64)?;
        self.append(stored)
    }

    /// Records that the next bytes of the archive are those at this place.
    pub(super) fn refer(&mut self, place: &Place, bytes: u64) {
        self.crc.append(Crc::from_parts(place.crc, bytes));
        self.count(place, bytes);
    }

    /// Returns the number of ranges so far.
    pub(super) fn ranges(&self) -> u64 {
        self.ranges
    }

    /// Returns whether the last range ends where the next bytes will be written.
    pub(super) fn ends_in_current(&self) -> bool {
        self.current.as_ref().is_some_and(|open| self.end == Some((open.row, open.size)))
    }

    /// Counts the range of the next bytes, unless they continue the last one.
    fn count(&mut self, place: &Place, bytes: u64) {
        self.ranges += u64::from(self.end != Some((place.segment, place.offset)));
        self.end = Some((place.segment, place.offset + bytes));
    }

    /// Begins a new segment if so many bytes do not fit into the current one.
    pub(super) fn make_room(&mut self, bytes: u64) -> Result<()> {
        let is_full = self.current.as_ref().is_some_and(|open| open.size + bytes > MAX_SEGMENT_BYTES && open.size > 0);
        if is_full { self.seal() } else { Ok(()) }
    }

    /// Appends bytes to the current segment, whatever its size; returns where they are.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<Place> {
        let open = match &mut self.current {
            Some(open) => open,
            none => {
                let (row, pending) = (self.files.create)()?;
                none.insert(OpenSegment { row, pending, size: 0, write_back: WriteBack::default() })
            }
        };
        let crc = Crc::of(bytes);
        let place = Place { segment: open.row, offset: open.size, crc: crc.value() };
        let written = open.pending.file().write_all(bytes);
        written.map_err(|e| Error::io("write", open.pending.temp_path())(e))?;
        open.size += bytes.len() as u64;
        open.write_back.advance(open.pending.file(), open.size);
        self.crc.append(crc);
        self.count(&place, bytes.len() as u64);
        Ok(place)
    }

    /// Returns the segment in which the next bytes will be, and their offset; creates it if there is none yet.
    pub(super) fn position(&mut self) -> Result<(i64, u64)> {
        self.append(&[]).map(|place| (place.segment, place.offset))
    }

    /// Syncs the last segment; returns the CRC of the archive.
    pub(super) fn finish(mut self) -> Result<Crc> {
        self.seal()?;
        Ok(self.crc)
    }

    fn seal(&mut self) -> Result<()> {
        match self.current.take() {
            Some(open) => (self.files.seal)(open.row, open.pending),
            None => Ok(()),
        }
    }
}

/// Starts the write-back of a file early, so that the fsync at its end has little left to write.
#[derive(Debug, Default)]
pub(super) struct WriteBack {
    /// Offset up to which it was started.
    end: u64,
}

impl WriteBack {
    /// Starts it for what was written before `offset` if that is enough.
    pub(super) fn advance(&mut self, file: &File, offset: u64) {
        if offset - self.end >= WRITE_BACK_BYTES {
            self.start(file, offset);
        }
    }

    /// Starts it for what was written before `offset`. The advice that these pages are not needed starts their
    /// write-back and frees those that are on disk already. It goes back far enough for bytes that were written late.
    pub(super) fn start(&mut self, file: &File, offset: u64) {
        let start = self.end.saturating_sub(2 * WRITE_BACK_BYTES);
        if let Some(length) = NonZeroU64::new(offset - start) {
            // Only advice: where it is not followed, fsync writes everything.
            let _ = fadvise(file, start, Some(length), Advice::DontNeed);
        }
        self.end = offset;
    }
}

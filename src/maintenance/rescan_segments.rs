//! Adding archives in segments to the catalog: where their chunks lie, by their indexes.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::archive::buffer::Buffer;
use crate::archive::cksum::Crc;
use crate::archive::index::Index;
use crate::archive::reader::ArchiveReader;
use crate::archive_name::SegmentName;
use crate::chunk::{Chunk, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{FoundTrailer, Store, StoredBytes};

/// Bytes of a trailer that are read at once.
const PART_BYTES: u64 = 1 << 20;

/// Where the chunks of an archive in segments lie.
pub(super) struct Places {
    ranges: Vec<Range>,
    /// The first range that does not end before the next chunk.
    next: usize,
    /// Of all bytes so far.
    crc: Crc,
    stored: Buffer,
}

/// A range of an index.
struct Range {
    /// Offset in the archive.
    start: u64,
    length: u64,
    /// Row of the segment.
    segment: i64,
    /// Offset in the segment.
    offset: u64,
}

impl Places {
    /// Reads the index at `path`, in the folder of `schedule`, and adds its segments to the database.
    pub(super) fn of(store: &Store, path: &Path, schedule: &str) -> Result<Places> {
        let index = Index::open(path)?;
        let mut rows = std::collections::BTreeMap::new();
        for name in index.segments() {
            rows.insert(name.as_str(), segment_row(store, path, schedule, name)?);
        }
        let (mut ranges, mut start) = (Vec::new(), 0);
        for range in index.ranges() {
            let segment = rows[range.segment];
            ranges.push(Range { start, length: range.length, segment, offset: range.offset });
            start += range.length;
        }
        Ok(Places { ranges, next: 0, crc: Crc::default(), stored: Buffer::new() })
    }

    /// Returns where the next chunk lies.
    ///
    /// Errors: `Damage` if it lies in several ranges: no run of this program writes that.
    pub(super) fn of_chunk(&mut self, reader: &ArchiveReader, chunk: &Chunk) -> Result<Place> {
        let (segment, offset) = self.at(reader, chunk.offset, chunk.stored_length)?;
        self.stored.clear();
        reader.read_stored(chunk.offset, chunk.stored_length, &mut self.stored)?;
        let crc = Crc::of(&self.stored);
        self.crc.append(crc);
        Ok(Place { segment, offset, crc: crc.value() })
    }

    /// Returns where the trailer lies, which begins at `start`, after the last chunk.
    pub(super) fn of_trailer(&mut self, reader: &ArchiveReader, start: u64) -> Result<FoundTrailer> {
        let (segment, offset) = self.at(reader, start, reader.size() - start)?;
        let mut at = start;
        while at < reader.size() {
            let length = PART_BYTES.min(reader.size() - at);
            self.stored.clear();
            reader.read_stored(at, length, &mut self.stored)?;
            self.crc.append(Crc::of(&self.stored));
            at += length;
        }
        Ok(FoundTrailer { segment, offset, crc: self.crc.value() })
    }

    fn at(&mut self, reader: &ArchiveReader, offset: u64, length: u64) -> Result<(i64, u64)> {
        while self.ranges.get(self.next).is_some_and(|range| range.start + range.length <= offset) {
            self.next += 1;
        }
        let range = self.ranges.get(self.next);
        let range = range.filter(|range| range.start <= offset && offset + length <= range.start + range.length);
        let range = range.ok_or_else(|| {
            let message = format!("{}: the bytes from {offset} on lie in several segments", reader.path().display());
            Error::new(ErrorKind::Damage, message)
        })?;
        Ok((range.segment, range.offset + (offset - range.start)))
    }
}

/// Adds a segment that lies beside an index, or should, if it has no row; returns its row.
pub(super) fn segment_row(store: &Store, index: &Path, schedule: &str, name: &str) -> Result<i64> {
    let path = index.with_file_name(name);
    let found = match path.symlink_metadata() {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("inspect", &path)(error)),
    };
    let parsed = SegmentName::parse(name, schedule);
    let run = parsed.ok_or_else(|| Error::failed(format!("{name} is not the name of a segment")))?.archive.run;
    let stored = found.map(|found| StoredBytes {
        size: found.len(),
        device: found.dev(),
        inode: found.ino(),
        modified_ns: Some(found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec())),
    });
    store.add_found_segment(&format!("{schedule}/{name}"), run, stored.as_ref())
}

//! A segment that gets copies of bytes that other stored files hold: of a segment of which little is used, or of an
//! equal chunk for a damaged one.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::index_replacement::{file_name, stored_bytes};
use crate::archive_name::{ArchiveName, SegmentName};
use crate::clock::Timestamp;
use crate::durable::PendingFile;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::store::{Archive, CopiedRange, SegmentIntent, Store, StoredRange};

/// Bytes that are copied at once.
const PART_BYTES: usize = 1 << 20;

/// A new segment that is being written under its temporary name.
///
/// It is removed when dropped; its row, `writing`, is removed by [`super::remove_unused_segments`].
pub struct CopyingSegment<'a> {
    store: &'a Store,
    row: i64,
    pending: PendingFile,
    path: PathBuf,
    size: u64,
    written: Vec<Written>,
}

/// Bytes of the segment, where they are from, and their BLAKE3.
struct Written {
    range: CopiedRange,
    digest: [u8; 32],
}

/// A segment with copies that is in place, synced and was read back. [`Store::move_spans`] makes it part of archives.
#[derive(Debug)]
pub struct CopiedSegment {
    /// Its row.
    pub row: i64,
    /// Its size in bytes.
    pub size: u64,
    /// What it holds copies of, sorted by where that is; what lies side by side in both files is one.
    pub copied: Vec<CopiedRange>,
}

impl<'a> CopyingSegment<'a> {
    /// Records and creates a segment that is named after `archive`, which is complete, in segments, and will have a
    /// part of it: the number is the time in seconds since 1970, or the next one above those of the archive's other
    /// segments, so that no number is ever used twice. `like` is a file whose owner it gets.
    ///
    /// The caller has the lock under which the segments of the schedule are changed
    /// ([`crate::liveness::SegmentLock::try_to_change`]).
    pub fn create(home: &Home, store: &'a Store, archive: &Archive, like: &Path, now: Timestamp) -> Result<Self> {
        let named = archive.file_name.split_once('/');
        let parsed = named.and_then(|(folder, name)| Some((folder, ArchiveName::parse_index(name, folder)?)));
        let (folder, name) =
            parsed.ok_or_else(|| Error::failed(format!("the archive @{} is not stored in segments", archive.run)))?;
        let number = free_number(home, store, archive.run, folder, &name, now)?;
        let name = SegmentName { archive: name, number };
        let random = uuid::Uuid::new_v4().as_fields().0;
        let names = SegmentIntent {
            segment_name: format!("{folder}/{}", name.file_name()),
            temporary_name: format!("{folder}/{}", name.temporary_name(0, random)),
        };
        let row = store.add_copying_segment(archive.run, &names)?;
        let pending = PendingFile::create_own(&home.backups().join(&names.temporary_name), home.archive_mode())?;
        pending.give_owner_of(like);
        let path = home.backups().join(&names.segment_name);
        Ok(CopyingSegment { store, row, pending, path, size: 0, written: Vec::new() })
    }

    /// Returns how many bytes it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends the bytes `range` of a stored file if `is_right` accepts their BLAKE3; returns whether it did. `source`
    /// is that file, or another one that holds the same bytes from `offset` on.
    ///
    /// Errors: those of writing. Bytes that cannot be read are not right.
    pub fn copy(
        &mut self,
        source: &File,
        offset: u64,
        range: StoredRange,
        is_right: &dyn Fn(&[u8; 32]) -> bool,
    ) -> Result<bool> {
        let mut hasher = blake3::Hasher::new();
        let mut part = vec![0; PART_BYTES.min(usize::try_from(range.bytes).unwrap_or(PART_BYTES))];
        let mut done = 0;
        while done < range.bytes {
            let length = usize::try_from(range.bytes - done).map_or(part.len(), |rest| rest.min(part.len()));
            let part = &mut part[..length];
            if source.read_exact_at(part, offset + done).is_err() {
                return Ok(false);
            }
            hasher.update(part);
            self.write(part, self.size + done)?;
            done += length as u64;
        }
        let digest = *hasher.finalize().as_bytes();
        // What is not right is overwritten by what follows.
        if is_right(&digest) {
            self.record(range, digest);
            return Ok(true);
        }
        Ok(false)
    }

    /// Appends bytes that are right: those that `range` of a stored file should hold.
    pub fn append(&mut self, bytes: &[u8], range: StoredRange) -> Result<()> {
        self.write(bytes, self.size)?;
        self.record(range, *blake3::hash(bytes).as_bytes());
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let written = self.pending.file().write_all_at(bytes, offset);
        written.map_err(|error| Error::io("write", self.pending.temp_path())(error))
    }

    fn record(&mut self, from: StoredRange, digest: [u8; 32]) {
        self.written.push(Written { range: CopiedRange { from, offset: self.size }, digest });
        self.size += from.bytes;
    }

    /// Syncs the segment, gives it its name, and reads it back from the disk.
    ///
    /// Errors: `Damage` if it does not hold what was written; then nothing refers to it.
    pub fn finish(mut self) -> Result<CopiedSegment> {
        let temporary = self.pending.temp_path().to_owned();
        let file = self.pending.file();
        file.set_len(self.size).and_then(|()| file.flush()).map_err(Error::io("write", &temporary))?;
        let sealed = self.pending.seal()?;
        self.store.record_copying_segment(self.row, &stored_bytes(&sealed))?;
        sealed.persist(&self.path, false)?;
        read_back(&self.path, &self.written)?;
        let mut ranges: Vec<CopiedRange> = self.written.into_iter().map(|written| written.range).collect();
        ranges.sort_by_key(|range| (range.from.stored_file, range.from.offset));
        let mut copied: Vec<CopiedRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match copied.last_mut() {
                Some(last)
                    if last.from.stored_file == range.from.stored_file
                        && last.from.offset + last.from.bytes == range.from.offset
                        && last.offset + last.from.bytes == range.offset =>
                {
                    last.from.bytes += range.from.bytes;
                }
                _ => copied.push(range),
            }
        }
        Ok(CopiedSegment { row: self.row, size: self.size, copied })
    }
}

fn read_back(path: &Path, written: &[Written]) -> Result<()> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    // Only advice, so that the bytes come from the disk.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let mut part = vec![0; PART_BYTES];
    for Written { range, digest } in written {
        let mut hasher = blake3::Hasher::new();
        let (mut at, end) = (range.offset, range.offset + range.from.bytes);
        while at < end {
            let length = usize::try_from(end - at).map_or(part.len(), |rest| rest.min(part.len()));
            file.read_exact_at(&mut part[..length], at).map_err(Error::io("read back", path))?;
            hasher.update(&part[..length]);
            at += length as u64;
        }
        if hasher.finalize().as_bytes() != digest {
            let message = format!("{} does not hold what was written to it", path.display());
            return Err(Error::new(ErrorKind::Damage, message).hint("check the disk"));
        }
    }
    Ok(())
}

/// Returns a number that no segment of the archive ever had.
fn free_number(
    home: &Home,
    store: &Store,
    run: i64,
    folder: &str,
    archive: &ArchiveName<'_>,
    now: Timestamp,
) -> Result<u32> {
    let path = home.backups().join(folder);
    let mut names = store.segment_names(run)?;
    for entry in std::fs::read_dir(&path).map_err(Error::io("list", &path))? {
        names.push(entry.map_err(Error::io("list", &path))?.file_name().to_string_lossy().into_owned());
    }
    let number = |name: &String| {
        let name = SegmentName::parse(file_name(name), folder)?;
        (name.archive.file_name() == archive.file_name()).then_some(name.number)
    };
    let highest = names.iter().filter_map(number).max().unwrap_or_default();
    let time = u32::try_from(now.millis() / 1000).unwrap_or_default();
    highest
        .checked_add(1)
        .map(|next| next.max(time))
        .ok_or_else(|| Error::failed(format!("the archive @{run} has no number left for a segment")))
}

//! What a verification of an archive in segments says about each of its physical files. Those are shared: one counts as
//! verified only if all that the catalog knows of it was read, for whatever archive; and what is damaged is a range, so
//! that every archive with bytes in it is damaged, and no other.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use crate::archive::index::Index;
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::store::{Archive, Health, Store, StoredChunk, StoredFile, StoredRange};

/// What a verification of an archive found.
pub(super) struct Compared<'a> {
    /// It could be opened.
    pub(super) exists: bool,
    /// Device and inode number of the index that was read.
    pub(super) identity: Option<(u64, u64)>,
    /// The ranges of the archive file with chunks that differ, in order.
    pub(super) damaged_ranges: &'a [Range<u64>],
    /// Something else differs: the trailer, unless a chunk does.
    pub(super) differs_otherwise: bool,
    /// Nothing differs.
    pub(super) is_good: bool,
}

/// Records the health of the index of an archive that was read, and of each segment that it lists, after what these
/// hold for other archives was read, too. Returns whether the index lists other bytes than the database has: then what
/// was read says nothing about these.
pub(super) fn record(
    home: &Home,
    store: &Store,
    archive: &Archive,
    compared: &Compared<'_>,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<bool> {
    if !compared.exists {
        return store.record_index_health(archive.run, Health::Missing, None).map(|()| false);
    }
    let index = index_that_was_read(&home.backups().join(&archive.file_name), archive.size, compared.identity)?;
    let expected = archive_folder::expected_index(store, archive).ok();
    let is_same = index.as_ref().zip(expected.as_ref()).is_none_or(|(index, expected)| index == expected);
    // Bytes may be about to move: then both copies are valid.
    let differs = !is_same && !archive_folder::is_known_index(home, store, archive)?;
    let health = match (&index, expected) {
        (None, _) => Health::Damaged,
        (Some(_), Some(_)) if is_same || !differs && compared.is_good => Health::Good,
        (Some(_), Some(_)) if !compared.is_good => Health::Damaged,
        (Some(_), None) if compared.is_good => Health::Good,
        // What is known of the segments says nothing about what it lists, or about chunks that the catalog has not.
        _ => Health::Unverified,
    };
    store.record_index_health(archive.run, health, Some(now))?;
    let Some(index) = index else { return Ok(false) };
    let mut parts = store.parts(archive.archive_file)?;
    parts.retain(|part| lists(&index, part));
    let damaged = if compared.damaged_ranges.is_empty() && compared.differs_otherwise {
        let trailer = store.end_of_chunks(archive.archive_file)?..archive.size;
        stored_ranges(&index, &parts, std::slice::from_ref(&trailer))
    } else {
        stored_ranges(&index, &parts, compared.damaged_ranges)
    };
    for segment in parts {
        record_segment(home, store, archive, &segment, &damaged, cancel, now)?;
    }
    Ok(differs)
}

/// Opens the index by which an archive was read; `None` if it is damaged.
///
/// Errors: `Busy` if it was replaced since.
fn index_that_was_read(path: &Path, archive_bytes: u64, identity: Option<(u64, u64)>) -> Result<Option<Index>> {
    let index = Index::open(path);
    if durable::identity(path)? != identity {
        return Err(replaced(path));
    }
    match index {
        Ok(index) => Ok(Some(index).filter(|index| index.bytes() == archive_bytes)),
        Err(error) if error.kind() == ErrorKind::Damage => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the error for a file that was replaced while it was read.
pub(super) fn replaced(path: &Path) -> Error {
    Error::busy(format!("{} was replaced while it was read", path.display())).hint("verify it again")
}

/// Returns whether an index lists bytes of a segment.
pub(super) fn lists(index: &Index, segment: &StoredFile) -> bool {
    let name = segment.segment_name.as_ref().and_then(|name| name.rsplit('/').next());
    name.is_some_and(|name| index.segments().iter().any(|listed| listed == name))
}

/// Returns where ranges of an archive, which are in order, lie by its index, by which they were read. It may list other
/// ranges than the database has: those of a repair that was killed, or of an older database.
fn stored_ranges(index: &Index, parts: &[StoredFile], ranges: &[Range<u64>]) -> Vec<StoredRange> {
    let row = |segment: &str| {
        let is_named = |part: &&StoredFile| {
            part.segment_name.as_ref().is_some_and(|name| name.rsplit('/').next() == Some(segment))
        };
        parts.iter().find(is_named).map(|part| part.id)
    };
    let (mut found, mut start, mut next) = (Vec::new(), 0, 0);
    for listed in index.ranges() {
        let end = start + listed.length;
        next += ranges[next..].iter().take_while(|range| range.end <= start).count();
        for range in ranges[next..].iter().take_while(|range| range.start < end) {
            let (from, to) = (range.start.max(start), range.end.min(end));
            if let Some(stored_file) = row(listed.segment).filter(|_| from < to) {
                found.push(StoredRange { stored_file, offset: listed.offset + (from - start), bytes: to - from });
            }
        }
        start = end;
    }
    found
}

fn record_segment(
    home: &Home,
    store: &Store,
    archive: &Archive,
    segment: &StoredFile,
    damaged: &[StoredRange],
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<()> {
    let Some(name) = &segment.segment_name else { return Ok(()) };
    let path = home.backups().join(name);
    if durable::identity(&path)?.is_none() {
        return store.record_missing(archive, segment.id);
    }
    let mut ranges: Vec<StoredRange> =
        damaged.iter().filter(|range| range.stored_file == segment.id).copied().collect();
    let others = store.chunks_of_other_archives(segment.id, archive.archive_file)?;
    ranges.extend(damaged_chunks(&path, segment.id, &others, cancel)?);
    for other in store.record_verified(archive, segment.id, &ranges, now)?.iter().filter(|run| **run != archive.run) {
        log::error!("archive @{other} is damaged, too: it has a part of {name}");
    }
    Ok(())
}

/// Reads chunks from a segment; returns the ranges of those that are not what was written.
fn damaged_chunks(path: &Path, segment: i64, chunks: &[StoredChunk], cancel: &CancelToken) -> Result<Vec<StoredRange>> {
    let mut damaged = Vec::new();
    if chunks.is_empty() {
        return Ok(damaged);
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    // Only advice, so that the bytes come from the disk.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let mut stored = Vec::new();
    for chunk in chunks {
        cancel.check("the verification was cancelled")?;
        stored.resize(usize::try_from(chunk.length).unwrap_or(usize::MAX), 0);
        let read = file.read_exact_at(&mut stored, chunk.offset);
        if read.is_err() || *blake3::hash(&stored).as_bytes() != chunk.digest {
            damaged.push(StoredRange { stored_file: segment, offset: chunk.offset, bytes: chunk.length });
        }
    }
    Ok(damaged)
}

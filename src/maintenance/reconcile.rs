//! Archives in segments of which the index lists other ranges than the database has: the database or the index is an
//! older copy that was put back, or a process was killed before it had replaced the index. The bytes decide: a range is
//! moved in the database only if it is wrong where the database has it and right where the index lists it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::rescan_segments::segment_row;
use super::verify_segments::lists;
use crate::archive::expected_trailer::ExpectedTrailer;
use crate::archive::index::Index;
use crate::archive_folder;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::{Archive, CopiedRange, Moved, Store, StoredRange};

/// What is done if all bytes are right in both places.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BothRight {
    /// The index is replaced by that of the database.
    ReplaceIndex,
    /// Nothing.
    Leave,
}

/// What makes the database and the index of an archive agree.
pub(super) enum Plan {
    /// Nothing is to be done, or nothing can be compared.
    Same,
    /// These units are moved in the database, and then the index is replaced if it differs still.
    Change(Vec<Move>),
    /// Bytes are right neither where the database has them nor where the index lists them: nothing is changed.
    Neither,
}

/// Returns what makes the database and the index at `path` of an archive agree. The caller has the lock under which the
/// files of the schedule are changed.
pub(super) fn plan(store: &Store, archive: &Archive, path: &Path, both_right: BothRight) -> Result<Plan> {
    // An archive without chunks has nothing to compare with.
    let (Ok(index), Ok(known)) = (Index::open(path), archive_folder::expected_index(store, archive)) else {
        return Ok(Plan::Same);
    };
    let facts = |index: &Index| (index.archive_name().file_name(), index.members(), index.cksum());
    if index == known || facts(&index) != facts(&known) {
        return Ok(Plan::Same);
    }
    Ok(match compare(store, archive, path, (&known, &index))? {
        None => Plan::Neither,
        Some(found) if found.moves.is_empty() && found.is_index_right && both_right == BothRight::Leave => Plan::Same,
        Some(found) => Plan::Change(found.moves),
    })
}

/// Carries out a change, under the same lock.
///
/// Errors: `Busy` while a run of the schedule goes on; `Failed` if the index is not replaced for another reason.
pub(super) fn change(
    home: &Home,
    store: &Store,
    archive: &Archive,
    path: &Path,
    moves: Vec<Move>,
    now: Timestamp,
) -> Result<()> {
    move_spans(store, archive, path, moves, now)?;
    if !archive_folder::expected_index(store, archive).is_ok_and(|known| Index::open(path).is_ok_and(|i| i == known)) {
        archive_folder::replace_index(home, store, archive)?;
    }
    settle(store, archive, path)
}

/// Records that an archive has no parts but those that its index lists, and the file of its index, if both agree.
pub(super) fn settle(store: &Store, archive: &Archive, path: &Path) -> Result<()> {
    let (Ok(index), Ok(known)) = (Index::open(path), archive_folder::expected_index(store, archive)) else {
        return Ok(());
    };
    if index != known {
        return Ok(());
    }
    for part in store.parts(archive.archive_file)? {
        if !lists(&index, &part) {
            store.remove_moved_parts(part.id, &[archive.run])?;
        }
    }
    store.record_replaced_index(archive.run, &archive_folder::stored_bytes_at(path)?)
}

/// A unit of an archive, chunk or trailer, that is wrong where the database has it.
pub(super) struct Move {
    /// File name of the segment by the database, and the offset there.
    from: (String, u64),
    /// The same by the index.
    to: (String, u64),
    bytes: u64,
}

/// What a comparison of the bytes in both places has found.
struct Compared {
    moves: Vec<Move>,
    /// All bytes are right where the index lists them.
    is_index_right: bool,
}

/// Compares the units of an archive that lie elsewhere by the index; returns `None` if one of them is wrong in both
/// places.
fn compare(
    store: &Store,
    archive: &Archive,
    path: &Path,
    (known, index): (&Index, &Index),
) -> Result<Option<Compared>> {
    let Some(digest) = archive.digest.as_deref().and_then(|digest| <[u8; 32]>::try_from(digest).ok()) else {
        return Ok(None);
    };
    let trailer = ExpectedTrailer::new(path, store.archive_chunks(archive.run), digest)?;
    let (mut known, mut listed) = (Places::new(known), Places::new(index));
    let mut compared = Compared { moves: Vec::new(), is_index_right: true };
    let mut add = |offset: u64, bytes: u64, is_right: &dyn Fn(&[u8]) -> bool| {
        let (from, to) = (known.at(offset, bytes), listed.at(offset, bytes));
        if from.is_some() && from == to {
            return true;
        }
        let check = |place: &Option<(String, u64)>| {
            place.as_ref().and_then(|place| read(path, place, bytes)).is_some_and(|bytes| is_right(&bytes))
        };
        let (is_known_right, is_listed_right) = (check(&from), check(&to));
        compared.is_index_right &= is_listed_right;
        if let (false, true, Some(from), Some(to)) = (is_known_right, is_listed_right, from, to) {
            compared.moves.push(Move { from, to, bytes });
        }
        is_known_right || is_listed_right
    };
    for chunk in store.archive_chunks(archive.run) {
        let chunk = chunk?;
        let is_right = |bytes: &[u8]| *blake3::hash(bytes).as_bytes() == chunk.stored_digest;
        if !add(chunk.offset, chunk.stored_length, &is_right) {
            return Ok(None);
        }
    }
    let start = trailer.start();
    let is_found = add(start, archive.size.saturating_sub(start), &|bytes| trailer.is(bytes));
    Ok(is_found.then_some(compared))
}

/// Where the bytes of an archive lie by an index.
struct Places<'i> {
    /// Offset in the archive, segment, offset in the segment, number of bytes.
    ranges: Vec<(u64, &'i str, u64, u64)>,
}

impl<'i> Places<'i> {
    fn new(index: &'i Index) -> Self {
        let mut start = 0;
        let range = |range: crate::archive::index::IndexRange<'i>| {
            let at = start;
            start += range.length;
            (at, range.segment, range.offset, range.length)
        };
        Places { ranges: index.ranges().map(range).collect() }
    }

    /// Returns the segment and the offset there of bytes that lie in one range.
    fn at(&mut self, offset: u64, bytes: u64) -> Option<(String, u64)> {
        let at = self.ranges.partition_point(|range| range.0 <= offset).checked_sub(1)?;
        let (start, segment, within, length) = self.ranges[at];
        (offset + bytes <= start + length).then(|| (segment.to_owned(), within + (offset - start)))
    }
}

/// Reads bytes of a segment beside an index; `None` if it has not as many.
fn read(index: &Path, (segment, offset): &(String, u64), bytes: u64) -> Option<Vec<u8>> {
    let file = File::open(index.with_file_name(segment)).ok()?;
    let end = offset.checked_add(bytes)?;
    if end > file.metadata().ok()?.len() {
        return None;
    }
    let mut content = vec![0; usize::try_from(bytes).ok()?];
    file.read_exact_at(&mut content, *offset).ok()?;
    Some(content)
}

fn move_spans(store: &Store, archive: &Archive, path: &Path, moves: Vec<Move>, now: Timestamp) -> Result<()> {
    let Some((folder, _)) = archive.file_name.split_once('/') else { return Ok(()) };
    let parts = store.parts(archive.archive_file)?;
    let mut by_segment: BTreeMap<String, Vec<CopiedRange>> = BTreeMap::new();
    for Move { from, to, bytes } in moves {
        let name = format!("{folder}/{}", from.0);
        if let Some(part) = parts.iter().find(|part| part.segment_name.as_ref() == Some(&name)) {
            let from = StoredRange { stored_file: part.id, offset: from.1, bytes };
            by_segment.entry(to.0).or_default().push(CopiedRange { from, offset: to.1 });
        }
    }
    for (name, mut copied) in by_segment {
        copied.sort_by_key(|range| (range.from.stored_file, range.from.offset));
        let segment = segment_row(store, path, folder, &name)?;
        if store.move_spans(archive.schedule_id, segment, &copied, now)? == Moved::RunBegan {
            let message = format!("the index and the rows of {} differ still: a run began", archive.file_name);
            return Err(Error::busy(message).hint("try again when it has ended"));
        }
    }
    Ok(())
}

//! Archives in segments whose indexes list other ranges than the database has: it is an older copy that was put back,
//! and bytes have moved to other segments since. The database follows the indexes.

use std::collections::BTreeMap;

use super::rescan_segments::segment_row;
use super::verify::verify_archive;
use super::verify_segments::lists;
use crate::archive::index::Index;
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::liveness::SegmentLock;
use crate::schedule::Layout;
use crate::store::{Archive, CopiedRange, Moved, Store, StoredRange};

/// Bytes of an archive that lie in another segment than the database has them in.
struct Move<'i> {
    /// File name of the segment by the database, and the offset there.
    from: (&'i str, u64),
    /// The same by the index.
    to: (&'i str, u64),
    bytes: u64,
}

/// Makes the spans of archives those that their indexes list, and reads these archives. Returns the names of their
/// files below the archive folder.
///
/// Errors: `Busy` while another process changes files of the schedule.
pub(super) fn follow_indexes(
    home: &Home,
    store: &Store,
    threads: usize,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<Vec<String>> {
    let mut followed = Vec::new();
    for archive in store.archives(None)? {
        if archive.layout == Layout::Whole {
            continue;
        }
        let path = home.backups().join(&archive.file_name);
        // One that cannot be read, and archives without chunks, are not followed.
        let (Ok(index), Ok(known)) = (Index::open(&path), archive_folder::expected_index(store, &archive)) else {
            continue;
        };
        let facts = |index: &Index| (index.archive_name().file_name(), index.members(), index.cksum());
        if facts(&index) != facts(&known) {
            continue;
        }
        if index != known {
            follow(home, store, &archive, (&known, &index), now)?;
            followed.push(archive.clone());
        }
        remove_unlisted_parts(store, &archive, &index)?;
        store.record_replaced_index(archive.run, &archive_folder::stored_bytes_at(&path)?)?;
    }
    for archive in &followed {
        verify_archive(home, store, archive, threads, cancel, now)?;
    }
    Ok(followed.into_iter().map(|archive| archive.file_name).collect())
}

fn follow(
    home: &Home,
    store: &Store,
    archive: &Archive,
    (known, index): (&Index, &Index),
    now: Timestamp,
) -> Result<()> {
    let Some(_lock) = SegmentLock::try_to_change(home, &archive.schedule_name)? else {
        return Err(busy(archive, "another process changes its files"));
    };
    let Some((folder, _)) = archive.file_name.split_once('/') else { return Ok(()) };
    let parts = store.parts(archive.archive_file)?;
    let mut by_segment: BTreeMap<&str, Vec<CopiedRange>> = BTreeMap::new();
    for Move { from, to, bytes } in moves(known, index) {
        let name = format!("{folder}/{}", from.0);
        let part = parts.iter().find(|part| part.segment_name.as_ref() == Some(&name));
        if let Some(part) = part.filter(|_| from != to) {
            let from = StoredRange { stored_file: part.id, offset: from.1, bytes };
            by_segment.entry(to.0).or_default().push(CopiedRange { from, offset: to.1 });
        }
    }
    for (name, mut copied) in by_segment {
        copied.sort_by_key(|range| (range.from.stored_file, range.from.offset));
        let segment = segment_row(store, &home.backups().join(&archive.file_name), folder, name)?;
        if store.move_spans(archive.schedule_id, segment, &copied, now)? == Moved::RunBegan {
            return Err(busy(archive, "a run goes on"));
        }
    }
    log::info!("{}: its index was followed", archive.describe());
    Ok(())
}

fn busy(archive: &Archive, why: &str) -> Error {
    Error::busy(format!("{} is not taken over as its index says: {why}", archive.file_name))
        .hint("run the rescan again")
}

/// Removes the parts of an archive in which it has no spans, as the database has followed this or another index.
fn remove_unlisted_parts(store: &Store, archive: &Archive, index: &Index) -> Result<()> {
    for part in store.parts(archive.archive_file)? {
        if !lists(index, &part) {
            store.remove_moved_parts(part.id, &[archive.run])?;
        }
    }
    Ok(())
}

/// Pairs the ranges of two indexes of one archive.
fn moves<'i>(known: &'i Index, index: &'i Index) -> Vec<Move<'i>> {
    let (mut moves, mut others) = (Vec::new(), index.ranges());
    let mut other = others.next();
    for range in known.ranges() {
        let mut done = 0;
        while done < range.length
            && let Some(current) = &mut other
        {
            let bytes = current.length.min(range.length - done);
            let to = (current.segment, current.offset);
            moves.push(Move { from: (range.segment, range.offset + done), to, bytes });
            done += bytes;
            current.offset += bytes;
            current.length -= bytes;
            if current.length == 0 {
                other = others.next();
            }
        }
    }
    moves
}

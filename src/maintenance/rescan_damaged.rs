//! Archives in segments that a rescan finds and cannot read in full: a segment is missing, too short or damaged. They
//! are added by what their indexes say, without chunks and members, so that all of their segments are kept; once they
//! can be read, a rescan adds the rest.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::rescan_segments::segment_row;
use super::verify::verify_archive;
use crate::archive::expected_trailer::digest_by_trailer;
use crate::archive::index::Index;
use crate::archive::reader::ArchiveReader;
use crate::archive::rebuild;
use crate::archive::trailer::Trailer;
use crate::archive_name::ArchiveName;
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::error::{ErrorKind, Result};
use crate::home::Home;
use crate::member::Extent;
use crate::schedule::Layout;
use crate::store::{FoundArchive, FoundRange, ScheduleRow, Store};

/// Rows that one transaction writes at most.
const BATCH_ROWS: usize = 4_000;

/// Adds the archive of the index at `path`, and records what of it is missing or damaged. Returns false if its index
/// cannot be read, or if its schedule does not exist: then nothing is known of it.
pub(super) fn add_by_index(
    home: &Home,
    store: &Store,
    path: &Path,
    file_name: &str,
    threads: usize,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<bool> {
    let Some((folder, file)) = file_name.split_once('/') else { return Ok(false) };
    let (Some(name), Some(row)) = (ArchiveName::parse_index(file, folder), store.schedule_named(folder)?) else {
        return Ok(false);
    };
    let (index, reader) = match (Index::open(path), ArchiveReader::open(path)) {
        (Ok(index), Ok(reader)) => (index, reader),
        (Err(error), _) | (_, Err(error)) if error.kind() == ErrorKind::Damage => return Ok(false),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let found = found_archive(home, &reader, &index, &name, &row, file_name)?;
    let run = store.begin_adding_archive(&found, now)?;
    add_ranges(store, path, folder, &index, run)?;
    store.finish_adding_ranges(run)?;
    if let Some(archive) = store.archive(run)? {
        let _ = verify_archive(home, store, &archive, threads, cancel, now)?;
    }
    Ok(true)
}

/// Returns the row of an archive of which only the index must be readable.
fn found_archive(
    home: &Home,
    reader: &ArchiveReader,
    index: &Index,
    name: &ArchiveName<'_>,
    row: &ScheduleRow,
    file_name: &str,
) -> Result<FoundArchive> {
    let trailer = reader.trailer().ok().flatten();
    let digest = trailer.as_ref().map(|trailer| digest_by_trailer(reader, trailer)).transpose().ok().flatten();
    let source = trailer.as_ref().and_then(|trailer| source_of(reader, trailer));
    let facts = trailer.as_ref().map(Trailer::facts);
    let whole = home.source_path(&row.schedule.source);
    Ok(FoundArchive {
        schedule: row.id,
        run: name.run,
        file_name: file_name.to_owned(),
        created_at: name.created_at,
        layout: Layout::Segmented,
        size: index.bytes(),
        digest,
        device: reader.metadata().dev(),
        inode: reader.metadata().ino(),
        codec: reader.codec().as_str(),
        source_root: source.unwrap_or_else(|| whole.as_os_str().as_bytes().to_owned()),
        incomplete: facts.is_some_and(|facts| facts.outcome == "incomplete"),
        extent: facts.map_or(Extent { members: index.members(), ..Extent::default() }, |facts| facts.extent()),
        problems: facts.map_or(0, |facts| facts.problems),
        losses: facts.map_or(0, |facts| facts.losses),
    })
}

/// Returns the source that an archive was made of, if its beginning can be read.
fn source_of(reader: &ArchiveReader, trailer: &Trailer) -> Option<Vec<u8>> {
    let comment = rebuild::read_comment(reader, trailer).ok()??;
    let comment: Value = serde_json::from_slice(&comment).ok()?;
    comment["source"].as_str().map(|source| source.as_bytes().to_owned())
}

fn add_ranges(store: &Store, path: &Path, folder: &str, index: &Index, run: i64) -> Result<()> {
    let mut rows = std::collections::BTreeMap::new();
    for name in index.segments() {
        rows.insert(name.as_str(), segment_row(store, path, folder, name)?);
    }
    let mut archive_offset = 0;
    let ranges: Vec<FoundRange> = index
        .ranges()
        .map(|range| {
            let start = archive_offset;
            archive_offset += range.length;
            FoundRange {
                archive_offset: start,
                segment: rows[range.segment],
                offset: range.offset,
                bytes: range.length,
            }
        })
        .collect();
    let mut sequence = 0;
    for batch in ranges.chunks(BATCH_ROWS) {
        store.add_ranges_of_archive(run, sequence, batch)?;
        sequence += batch.len() as u64;
    }
    Ok(())
}

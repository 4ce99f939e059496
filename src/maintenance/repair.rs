//! Repair: what is damaged in an archive is written anew with equal bytes of another archive, if there are any, into
//! new files, which take the place of the old ones as a whole. No byte of a file changes (I19).

use std::collections::HashSet;

use super::equal_chunks::EqualChunks;
use super::prune::no_archive;
pub use super::repair_context::RepairContext;
use super::repair_segments;
use super::repair_whole::{self, Replacement};
use super::shared_files::separate_files;
use super::verify::{Findings, verify_archive};
use crate::archive::buffer::Buffer;
use crate::archive::expected_trailer::ExpectedTrailer;
use crate::archive::reader::ArchiveReader;
use crate::archive::trailer::Facts;
use crate::archive_folder;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};
use crate::liveness::SegmentLock;
use crate::member::MemberKind;
use crate::schedule::Layout;
use crate::store::{Archive, Health, Store};

/// Chunks whose members one query reads.
const PAGE_CHUNKS: u32 = 256;

/// A damaged archive, read from the disk.
struct Damaged {
    archive: Archive,
    /// What a verification found.
    findings: Findings,
    /// The chunks whose stored bytes differ, in order.
    chunks: Vec<Chunk>,
    /// How many chunks have the stored bytes that were written, which decode to other content.
    undecodable: u64,
    /// The trailer as it must be, if the archive has another one.
    trailer: Option<TrailerRepair>,
    /// Its index was damaged, too, and is replaced already.
    index_replaced: bool,
}

/// A damaged trailer.
struct TrailerRepair {
    offset: u64,
    /// `None` if the catalog does not know all that it says.
    bytes: Option<Vec<u8>>,
}

/// What became of an archive that was damaged.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// How many of its parts were damaged: chunks, the trailer, the index.
    pub damaged_parts: u64,
    /// How many of these are chunks with the stored bytes that were written, which decode to other content.
    pub undecodable_parts: u64,
    /// For how many of the damaged parts there are the right bytes: equal ones elsewhere, or what the catalog knows.
    pub repairable_parts: u64,
    /// Its index was replaced or, in a dry run, would be.
    pub index_replaced: bool,
    /// Nothing was replaced.
    pub dry_run: bool,
    /// What is damaged still; of a dry run, what is now.
    pub findings: Findings,
}

impl Repaired {
    /// Returns whether nothing is damaged any more, or, after a dry run, would be.
    pub fn is_whole(&self) -> bool {
        let is_repairable = self.damaged_parts > 0 && self.damaged_parts == self.repairable_parts;
        self.findings.is_good() || self.dry_run && is_repairable
    }
}

/// Repairs the archives among `archives` that are recorded as damaged or missing, each file once. Calls `on_repaired`
/// with the result of each that was.
///
/// Errors: `Interrupted` after `cancel`; `Failed` if the archive folder is not ours, or the database is an older copy.
/// What was repaired before stays so.
pub fn repair(
    context: &RepairContext<'_>,
    archives: &[Archive],
    on_repaired: &mut dyn FnMut(&Archive, Result<Repaired>) -> Result<()>,
) -> Result<()> {
    let RepairContext { home, store, cancel, .. } = *context;
    // What an older database has of an archive may be what was repaired since.
    if let Some(error) = archive_folder::find_unknown_archives(home, store)?.error(home) {
        return Err(error);
    }
    separate_files(home, store, None)?;
    let mut damaged = Vec::new();
    let mut seen = HashSet::new();
    for archive in archives {
        cancel.check("the repair was cancelled")?;
        // Its row may have been separated from others.
        let Some(archive) = store.archive(archive.run)? else { continue };
        if archive.health == Health::Good || !seen.insert(archive.file_key()) {
            continue;
        }
        match examine(context, &archive) {
            Ok(Examined::Good) => {}
            Ok(Examined::Repaired(repaired)) => on_repaired(&archive, Ok(repaired))?,
            Ok(Examined::Damaged(found)) => damaged.push(*found),
            Err(error) => on_repaired(&archive, Err(error))?,
        }
    }
    let wanted = damaged.iter().flat_map(|damaged| &damaged.chunks);
    let equal = EqualChunks::find(home, store, wanted, cancel)?;
    let mut new_segments = HashSet::new();
    for damaged in damaged {
        cancel.check("the repair was cancelled")?;
        on_repaired(&damaged.archive, repair_archive(context, &damaged, &equal, &mut new_segments))?;
    }
    Ok(())
}

/// What was found of an archive that is not known to be good.
enum Examined {
    /// It is good, or nothing is known to be damaged in it.
    Good,
    /// It is good with another index, or may be.
    Repaired(Repaired),
    Damaged(Box<Damaged>),
}

/// Replaces the index of an archive if it is damaged, or if a repair that was killed has not, and reads the archive in
/// full.
fn examine(context: &RepairContext<'_>, archive: &Archive) -> Result<Examined> {
    let RepairContext { store, dry_run, .. } = *context;
    let index_replaced = complete_index(context, archive)?;
    let Some(archive) = &store.archive(archive.run)? else { return Ok(Examined::Good) };
    if !index_replaced && !matches!(archive.health, Health::Damaged | Health::Missing) {
        return Ok(Examined::Good);
    }
    let findings = findings_now(context, archive)?;
    if index_replaced && (findings.is_good() || dry_run) {
        return Ok(Examined::Repaired(Repaired {
            damaged_parts: 1,
            undecodable_parts: 0,
            repairable_parts: 1,
            index_replaced,
            dry_run,
            findings,
        }));
    }
    if findings.is_good() {
        return Ok(Examined::Good);
    }
    let (chunks, undecodable) = damaged_chunks(context, archive, &findings)?;
    let trailer = examine_trailer(context, archive)?;
    let damaged = Damaged { archive: archive.clone(), findings, chunks, undecodable, trailer, index_replaced };
    Ok(Examined::Damaged(Box::new(damaged)))
}

/// Returns whether the index of an archive was replaced or, in a dry run, would be.
fn complete_index(context: &RepairContext<'_>, archive: &Archive) -> Result<bool> {
    if archive.layout == Layout::Whole {
        return Ok(false);
    }
    let _lock = lock(context, archive)?;
    repair_segments::complete_index(context, archive)
}

/// Returns the chunks of an archive whose stored bytes are damaged, and the number of those that are damaged although
/// they have the stored bytes that were written: equal bytes do not repair these.
fn damaged_chunks(context: &RepairContext<'_>, archive: &Archive, findings: &Findings) -> Result<(Vec<Chunk>, u64)> {
    let mut ranges = findings.damaged_ranges.iter().peekable();
    let (mut chunks, mut undecodable) = (Vec::new(), 0);
    if ranges.peek().is_none() {
        return Ok((chunks, undecodable));
    }
    let reader = ArchiveReader::open(&context.home.backups().join(&archive.file_name))?;
    let mut stored = Buffer::new();
    for chunk in context.store.archive_chunks(archive.run) {
        let chunk = chunk?;
        if ranges.next_if(|range| range.start == chunk.offset).is_none() {
            continue;
        }
        stored.clear();
        let read = reader.read_stored(chunk.offset, chunk.stored_length, &mut stored);
        if read.is_ok() && *blake3::hash(&stored).as_bytes() == chunk.stored_digest {
            undecodable += 1;
        } else {
            chunks.push(chunk);
        }
    }
    Ok((chunks, undecodable))
}

/// Compares the trailer of an archive with the catalog, and makes the one that it must have if it has another.
fn examine_trailer(context: &RepairContext<'_>, archive: &Archive) -> Result<Option<TrailerRepair>> {
    let RepairContext { home, store, .. } = *context;
    let path = home.backups().join(&archive.file_name);
    let Some(digest) = archive.digest.as_deref().and_then(|digest| <[u8; 32]>::try_from(digest).ok()) else {
        return Ok(None);
    };
    if !store.has_chunks(archive.run)? {
        return Ok(None);
    }
    let reader = match ArchiveReader::open(&path) {
        Ok(reader) => reader,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damage) => return Ok(None),
        Err(error) => return Err(error),
    };
    let expected = ExpectedTrailer::new(&path, store.archive_chunks(archive.run), digest)?;
    if expected.is_in(&reader, archive.size) {
        return Ok(None);
    }
    let mut repair = TrailerRepair { offset: expected.start(), bytes: None };
    for facts in possible_facts(store, archive)? {
        repair.bytes = expected.with_facts(reader.codec(), &facts)?;
        if repair.bytes.is_some() {
            break;
        }
    }
    Ok(Some(repair))
}

/// Returns what the trailer of an archive may say: an archive that is a name of another one's file has its trailer.
fn possible_facts(store: &Store, archive: &Archive) -> Result<Vec<Facts>> {
    let mut folders = 0;
    let mut next = Some(0);
    while let Some(from) = next {
        let (page, following) = store.members(archive.run, from, PAGE_CHUNKS)?;
        folders += page.iter().filter(|listed| listed.entry.member.kind == MemberKind::Folder).count() as u64;
        next = following;
    }
    let mut runs = Vec::new();
    for name in store.archives(Some(archive.schedule_id))? {
        if name.archive_file == archive.archive_file {
            let run = store.run(name.run)?;
            runs.extend(run.base_run);
            runs.push(run.id);
        }
    }
    let run = store.run(archive.run)?;
    let facts = |number| Facts {
        run: number,
        outcome: if archive.incomplete { "incomplete" } else { "succeeded" }.to_owned(),
        members: archive.extent.members,
        files: archive.extent.files,
        folders,
        content_bytes: archive.extent.content_bytes,
        problems: run.counts.problems,
        losses: run.counts.losses,
    };
    Ok(runs.into_iter().map(facts).collect())
}

/// Repairs an archive as far as there are equal bytes.
fn repair_archive(
    context: &RepairContext<'_>,
    damaged: &Damaged,
    equal: &EqualChunks,
    new_segments: &mut HashSet<i64>,
) -> Result<Repaired> {
    let Damaged { archive, chunks, undecodable, trailer, index_replaced, .. } = damaged;
    let damaged_parts = chunks.len() as u64 + undecodable + u64::from(trailer.is_some());
    let has_trailer = trailer.as_ref().is_some_and(|trailer| trailer.bytes.is_some());
    let repairable_parts = chunks.iter().filter(|chunk| equal.has(chunk)).count() as u64 + u64::from(has_trailer);
    let is_written = match archive.layout {
        Layout::Whole => damaged_parts > 0 && damaged_parts == repairable_parts,
        Layout::Segmented => repairable_parts > 0,
    };
    let findings = match is_written && !context.dry_run {
        true => write_anew(context, damaged, equal, new_segments)?,
        false => damaged.findings.clone(),
    };
    if findings.is_good() {
        log::info!("{}: repaired, {damaged_parts} parts were damaged", archive.describe());
    }
    Ok(Repaired {
        damaged_parts: damaged_parts + u64::from(*index_replaced),
        undecodable_parts: *undecodable,
        repairable_parts: repairable_parts + u64::from(*index_replaced),
        index_replaced: *index_replaced,
        dry_run: context.dry_run,
        findings,
    })
}

/// Writes what there are equal bytes for; returns what is damaged then.
fn write_anew(
    context: &RepairContext<'_>,
    damaged: &Damaged,
    equal: &EqualChunks,
    new_segments: &mut HashSet<i64>,
) -> Result<Findings> {
    let archive = &damaged.archive;
    let parts = &mut replacements(context, damaged, equal);
    let locked = lock(context, archive)?;
    if archive.layout == Layout::Whole {
        repair_whole::replace_file(context, archive, parts)?;
        return Ok(Findings::good(archive.size));
    }
    let is_new = |segment| new_segments.contains(&segment);
    let segment = repair_segments::move_to_new_segment(context, archive, parts, &is_new)?;
    drop(locked);
    new_segments.extend(segment);
    findings_now(context, archive)
}

/// Reads an archive in segments again; returns what is damaged in it. Its row alone vouches for nothing: its bytes may
/// be what they should be and decode to other content.
fn findings_now(context: &RepairContext<'_>, archive: &Archive) -> Result<Findings> {
    let RepairContext { home, store, now, threads, cancel, .. } = *context;
    let archive = store.archive(archive.run)?.ok_or_else(|| no_archive(archive.run))?;
    verify_archive(home, store, &archive, threads, cancel, now)
}

/// Takes the lock under which the files of a schedule are changed.
///
/// Errors: `Busy` while another process has it.
fn lock(context: &RepairContext<'_>, archive: &Archive) -> Result<SegmentLock> {
    let name = &archive.schedule_name;
    SegmentLock::try_to_change(context.home, name)?.ok_or_else(|| {
        Error::busy(format!("another process changes files of archives of {name}"))
            .hint("repair again when it has ended")
    })
}

/// Returns the bytes that are written anew, in order.
fn replacements<'a>(
    context: &'a RepairContext<'_>,
    damaged: &'a Damaged,
    equal: &'a EqualChunks,
) -> impl Iterator<Item = Result<Replacement>> + 'a {
    let chunks = damaged.chunks.iter().filter(|chunk| equal.has(chunk)).map(|chunk| {
        let bytes = equal.read(context.home, chunk)?;
        Ok(Replacement { offset: chunk.offset, bytes })
    });
    let trailer = damaged.trailer.iter().filter_map(|trailer| {
        let bytes = trailer.bytes.clone()?;
        Some(Ok(Replacement { offset: trailer.offset, bytes }))
    });
    chunks.chain(trailer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dry_run_counts_what_could_be_repaired() {
        let damaged = Findings { health: Health::Damaged, ..Findings::good(1) };
        let repaired = |dry_run| Repaired {
            damaged_parts: 1,
            undecodable_parts: 0,
            repairable_parts: 1,
            index_replaced: false,
            dry_run,
            findings: damaged.clone(),
        };
        assert!(repaired(true).is_whole() && !repaired(false).is_whole());
        assert!(Repaired { findings: Findings::good(1), ..repaired(false) }.is_whole());
    }
}

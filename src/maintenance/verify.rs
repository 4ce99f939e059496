//! Verification: reads archive files in full from disk, reports what differs, and marks damaged archives.
//!
//! The catalog only supplies the expected digests; every verification reads the bytes on disk.

use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use super::verify_segments::{self, Compared};
use crate::archive::check::{self, DamagedChunk};
use crate::archive::reader::ArchiveReader;
use crate::archive::trailer::Trailer;
use crate::archive::{damaged_members, foreign};
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::liveness::SegmentLock;
use crate::schedule::Layout;
use crate::store::{Archive, Health, Store};

/// How often a file is read that is replaced while it is read.
const MAX_READS: usize = 3;

/// The result of verifying one archive file.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The health of the file now.
    pub health: Health,
    /// Paths of members that differ from what was written, as bytes, each once.
    pub damaged_members: Vec<Vec<u8>>,
    /// Other damage to the file, in words.
    pub structure: Vec<String>,
    /// Members of an archive of another program that a restore refuses, each with the reason.
    pub refused_members: Vec<(Vec<u8>, String)>,
    /// Bytes read.
    pub bytes: u64,
    /// The ranges of the archive file with chunks that differ.
    pub(super) damaged_ranges: Vec<Range<u64>>,
}

impl Findings {
    fn new() -> Self {
        Findings {
            health: Health::Good,
            damaged_members: Vec::new(),
            structure: Vec::new(),
            refused_members: Vec::new(),
            bytes: 0,
            damaged_ranges: Vec::new(),
        }
    }

    /// Returns that so many bytes are as they were written.
    pub(super) fn good(bytes: u64) -> Self {
        Findings { bytes, ..Findings::new() }
    }

    /// Returns what is known before anything is read: segments that are missing or too short.
    fn of_reader(reader: &ArchiveReader) -> Self {
        Findings { bytes: reader.size(), structure: reader.segment_problems(), ..Findings::new() }
    }

    fn of_damage(error: &Error) -> Self {
        Findings { health: Health::Damaged, structure: vec![error.to_string()], ..Findings::new() }
    }

    fn add_member(&mut self, path: Vec<u8>) {
        self.damaged_members.push(path);
    }

    /// Adds that the index lists other bytes than the database has. What was read may be whole, but the archive does
    /// not count as verified.
    fn add_other_index(&mut self) {
        let text = "its index lists other bytes than the database has, which may be an older copy: run \
                    `backup-manager rescan`";
        self.structure.push(text.to_owned());
        if self.is_good() {
            self.health = Health::Unverified;
        }
    }

    /// Removes repeated paths and sets the health according to the findings.
    fn with_health(mut self) -> Self {
        let mut seen = HashSet::new();
        self.damaged_members.retain(|path| seen.insert(path.clone()));
        let whole = self.damaged_members.is_empty() && self.structure.is_empty();
        self.health = if whole { Health::Good } else { Health::Damaged };
        self
    }

    /// Returns whether every byte is what was written.
    pub fn is_good(&self) -> bool {
        self.health == Health::Good
    }
}

/// Reads the file of a complete archive from disk, compares it with the catalog and its own trailer, and records its
/// health, for this archive and for every other that shares the file.
///
/// Errors: `Interrupted` after `cancel`; `Failed` if the archive folder is not ours or the file cannot be opened;
/// `Busy` if its file is replaced again and again. In these cases nothing is recorded.
pub fn verify_archive(
    home: &Home,
    store: &Store,
    archive: &Archive,
    threads: usize,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<Findings> {
    // If the disk is not mounted, no file is found, which must not mark the archives as missing (I9).
    archive_folder::ensure_ours(home, store)?;
    let _lock = SegmentLock::to_read(home, archive.layout, &archive.file_name);
    let path = home.backups().join(&archive.file_name);
    let (mut findings, identity) =
        read_unless_replaced(&path, &mut || examine(store, archive, &path, threads, cancel))?;
    match archive.layout {
        Layout::Whole => {
            let read_at = (findings.health != Health::Missing).then_some(now);
            store.record_health(archive, findings.health, read_at)?;
        }
        Layout::Segmented => {
            let compared = Compared {
                exists: findings.health != Health::Missing,
                identity,
                damaged_ranges: &findings.damaged_ranges,
                differs_otherwise: !findings.structure.is_empty() && store.has_chunks(archive.run)?,
                is_good: findings.is_good(),
            };
            if verify_segments::record(home, store, archive, &compared, cancel, now)? {
                findings.add_other_index();
            }
        }
    }
    Ok(findings)
}

/// Calls `read` until the file has not been replaced meanwhile, as by a repair: what is found of the old file says
/// nothing about the new one. Returns the device and inode number of the file, too.
fn read_unless_replaced(
    path: &Path,
    read: &mut dyn FnMut() -> Result<Findings>,
) -> Result<(Findings, Option<(u64, u64)>)> {
    for _ in 0..MAX_READS {
        let identity = durable::identity(path)?;
        let findings = read()?;
        if durable::identity(path)? == identity {
            return Ok((findings, identity));
        }
    }
    Err(verify_segments::replaced(path))
}

/// Reads an archive file; returns what is damaged, also if all of it is.
fn examine(store: &Store, archive: &Archive, path: &Path, threads: usize, cancel: &CancelToken) -> Result<Findings> {
    match read_and_compare(store, archive, path, threads, cancel) {
        // Retention may have removed the archive since it was selected.
        Err(error) if error.kind() == ErrorKind::NotFound && store.archive(archive.run)?.is_none() => Err(error),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(Findings { health: Health::Missing, structure: vec!["its file is gone".to_owned()], ..Findings::new() })
        }
        Err(error) if error.kind() == ErrorKind::Damage => Ok(Findings::of_damage(&error)),
        other => other,
    }
}

fn read_and_compare(
    store: &Store,
    archive: &Archive,
    path: &Path,
    threads: usize,
    cancel: &CancelToken,
) -> Result<Findings> {
    let digest = archive.digest.as_deref().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let reader = ArchiveReader::open(path)?;
    if archive.layout == Layout::Segmented && !store.has_chunks(archive.run)? {
        return compare_by_trailer(store, archive, &reader, threads, cancel);
    }
    let Some(digest) = digest else { return examine_foreign(reader, Some(archive.size), cancel) };
    let mut damaged = Vec::new();
    let mut last = 0;
    let mut expected =
        store.archive_chunks(archive.run).inspect(|chunk| last = chunk.as_ref().map_or(last, |chunk| chunk.sequence));
    let found = check::check_chunks(&reader, &mut expected, threads, cancel, &mut |chunk| {
        damaged.push(chunk);
        ControlFlow::Continue(())
    });
    let mut findings = Findings::of_reader(&reader);
    match found {
        Ok(found) if found == digest => {}
        Ok(_) => findings.structure.push("its digest is not the one it was written with".to_owned()),
        Err(error) if error.kind() == ErrorKind::Damage => findings.structure.push(error.to_string()),
        Err(error) => return Err(error),
    }
    if reader.size() != archive.size {
        let (now, then) = (reader.size(), archive.size);
        findings.structure.push(format!("it has {now} bytes and was written with {then}"));
    }
    damaged.sort_by_key(|damaged: &DamagedChunk| damaged.chunk.sequence);
    for damaged in &damaged {
        findings.damaged_ranges.push(damaged.chunk.offset..damaged.chunk.end());
        add_damaged_members(store, archive.run, &reader, damaged, last, &mut findings)?;
    }
    Ok(findings.with_health())
}

/// Adds the members in a damaged chunk to the findings: those whose bytes differ if that can be determined, else all
/// that begin in it. If none begins in it, adds the member whose content passes through it.
fn add_damaged_members(
    store: &Store,
    run: i64,
    reader: &ArchiveReader,
    damaged: &DamagedChunk,
    last: u64,
    findings: &mut Findings,
) -> Result<()> {
    let sequence = damaged.chunk.sequence;
    if sequence == 0 || sequence == last {
        let what = if sequence == 0 { "its global header" } else { "its end marks" };
        findings.structure.push(format!("{what}: {}", damaged.reason));
        return Ok(());
    }
    let members = store.chunk_members(run, sequence)?;
    if members.is_empty() {
        match store.member_before(run, sequence)? {
            Some(path) => findings.add_member(path),
            None => findings.structure.push(format!("chunk {sequence}: {}", damaged.reason)),
        }
        return Ok(());
    }
    for member in damaged_members::differing(reader, &damaged.chunk, &members) {
        findings.add_member(member.path.as_bytes().to_vec());
    }
    Ok(())
}

/// Compares an archive in segments of which the catalog has only the ranges with its own trailer, and records its
/// digest if it is good. Without the trailer, what segments are too short for is damaged, or else the end.
fn compare_by_trailer(
    store: &Store,
    archive: &Archive,
    reader: &ArchiveReader,
    threads: usize,
    cancel: &CancelToken,
) -> Result<Findings> {
    let mut findings = Findings::of_reader(reader);
    let trailer = match reader.trailer() {
        Ok(trailer) => trailer,
        Err(error) if error.kind() == ErrorKind::Damage => {
            findings.structure.push(error.to_string());
            None
        }
        Err(error) => return Err(error),
    };
    let Some(trailer) = trailer else {
        findings.damaged_ranges = reader.ranges_beyond_segments();
        if findings.damaged_ranges.is_empty() && reader.segment_problems().is_empty() {
            findings.damaged_ranges.push(reader.size().saturating_sub(1)..reader.size());
        }
        return Ok(findings.with_health());
    };
    let digest = compare_chunks_by_trailer(reader, &trailer, threads, cancel, &mut findings)?;
    let findings = findings.with_health();
    if let Some(digest) = digest.filter(|_| findings.is_good()) {
        store.record_digest(archive.archive_file, &digest)?;
    }
    Ok(findings)
}

/// Verifies a file without a database: by its own trailer, or, if another program created it, by reading it to its end.
///
/// Errors: `NotFound`; `Interrupted` after `cancel`; the I/O error if the file cannot be read at all.
pub fn verify_file(path: &Path, threads: usize, cancel: &CancelToken) -> Result<Findings> {
    let reader = ArchiveReader::open(path)?;
    let trailer = match reader.trailer() {
        Ok(Some(trailer)) => trailer,
        Ok(None) => return examine_foreign(reader, None, cancel),
        Err(error) if error.kind() == ErrorKind::Damage => {
            let mut findings = examine_foreign(reader, None, cancel)?;
            findings.structure.insert(0, error.to_string());
            return Ok(findings.with_health());
        }
        Err(error) => return Err(error),
    };
    let mut findings = Findings::of_reader(&reader);
    compare_chunks_by_trailer(&reader, &trailer, threads, cancel, &mut findings)?;
    Ok(findings.with_health())
}

/// Adds what differs from the trailer of an archive to the findings; returns the archive digest unless the trailer
/// differs itself.
fn compare_chunks_by_trailer(
    reader: &ArchiveReader,
    trailer: &Trailer,
    threads: usize,
    cancel: &CancelToken,
    findings: &mut Findings,
) -> Result<Option<[u8; 32]>> {
    let mut damaged = Vec::new();
    let found = check::check_chunks(reader, &mut trailer.entries(), threads, cancel, &mut |chunk| {
        damaged.push(chunk);
        ControlFlow::Continue(())
    });
    let digest = match found {
        Ok(digest) => Some(digest),
        Err(error) if error.kind() == ErrorKind::Damage => {
            findings.structure.push(error.to_string());
            None
        }
        Err(error) => return Err(error),
    };
    damaged.sort_by_key(|damaged: &DamagedChunk| damaged.chunk.sequence);
    for DamagedChunk { chunk, reason } in &damaged {
        let (from, to) = (chunk.offset, chunk.end());
        findings.damaged_ranges.push(from..to);
        findings.structure.push(format!("chunk {} (bytes {from} to {to}): {reason}", chunk.sequence));
        damaged_members::names_in(reader, chunk).into_iter().for_each(|path| findings.add_member(path));
    }
    Ok(digest)
}

fn examine_foreign(reader: ArchiveReader, size: Option<u64>, cancel: &CancelToken) -> Result<Findings> {
    let length = reader.size();
    let mut findings = Findings::of_reader(&reader);
    let examined = foreign::examine(reader, cancel);
    match examined {
        Ok(tar) => {
            findings.refused_members = tar.refused;
            findings.damaged_members = tar.damaged_members;
            findings.structure.extend(tar.damage);
        }
        Err(error) if error.kind() == ErrorKind::Damage => findings.structure.push(error.to_string()),
        Err(error) => return Err(error),
    }
    if let Some(size) = size.filter(|size| *size != length) {
        findings.structure.push(format!("it has {length} bytes and had {size}"));
    }
    Ok(findings.with_health())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_found_of_a_file_that_is_replaced_meanwhile_is_not_said_of_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("docs.tar"), dir.path().join("new"));
        let damaged = || Findings { health: Health::Damaged, ..Findings::new() };
        let replace = || {
            fs::write(&new, "new").unwrap();
            fs::rename(&new, &path).unwrap();
        };
        fs::write(&path, "old").unwrap();
        let mut reads = 0;
        let (findings, identity) = read_unless_replaced(&path, &mut || {
            reads += 1;
            if reads > 1 {
                return Ok(Findings::new());
            }
            replace();
            Ok(damaged())
        })
        .unwrap();
        assert!(findings.is_good() && reads == 2 && identity == durable::identity(&path).unwrap());
        let error = read_unless_replaced(&path, &mut || {
            replace();
            Ok(damaged())
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Busy);
    }
}

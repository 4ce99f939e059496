//! Verification: archive files are read back from disk, whole, and what differs is named and marked.
//!
//! Nothing is ever answered from the catalog alone: it says what the bytes have to be, and the disk says what they are.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;

use crate::archive::check::{self, DamagedChunk};
use crate::archive::reader::ArchiveReader;
use crate::archive::{damaged_members, foreign};
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::store::{Archive, Health, Store};

/// What verification found of one archive file.
#[derive(Clone, Debug)]
pub struct Findings {
    /// What is known of its bytes now.
    pub health: Health,
    /// Paths of members that are not what was written, as bytes, each once.
    pub damaged_members: Vec<Vec<u8>>,
    /// What is wrong with the file besides, in words.
    pub structure: Vec<String>,
    /// Bytes read.
    pub bytes: u64,
}

impl Findings {
    fn new() -> Self {
        Findings { health: Health::Good, damaged_members: Vec::new(), structure: Vec::new(), bytes: 0 }
    }

    fn of_damage(error: &Error) -> Self {
        Findings { health: Health::Damaged, structure: vec![error.to_string()], ..Findings::new() }
    }

    fn add_member(&mut self, path: Vec<u8>) {
        self.damaged_members.push(path);
    }

    fn with_health(mut self) -> Self {
        let mut seen = HashSet::new();
        self.damaged_members.retain(|path| seen.insert(path.clone()));
        let whole = self.damaged_members.is_empty() && self.structure.is_empty();
        self.health = if whole { Health::Good } else { Health::Damaged };
        self
    }

    /// Says whether every byte is what was written.
    pub fn is_good(&self) -> bool {
        self.health == Health::Good
    }
}

/// Reads the file of a complete archive back from disk, compares it with the catalog and its own trailer, and records
/// what was found for it and for every archive that shares the file.
///
/// Errors: `Interrupted` after `cancel`; where the archive folder is not ours, or the file cannot be opened, nothing is
/// recorded.
pub fn verify_archive(
    home: &Home,
    store: &Store,
    archive: &Archive,
    threads: usize,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<Findings> {
    // A disk that is not mounted holds no archives, and that says nothing of them (I9).
    archive_folder::ensure_ours(home, store)?;
    let path = home.backups().join(&archive.file_name);
    let findings = match read_and_compare(store, archive, &path, threads, cancel) {
        // Retention may have let it go while it waited for its turn.
        Err(error) if error.kind() == ErrorKind::NotFound && store.archive(archive.run)?.is_none() => {
            return Err(error);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Findings { health: Health::Missing, structure: vec!["its file is gone".to_owned()], ..Findings::new() }
        }
        Err(error) if error.kind() == ErrorKind::Damage => Findings::of_damage(&error),
        other => other?,
    };
    let read_at = (findings.health != Health::Missing).then_some(now);
    store.record_health(archive.archive_file, findings.health, read_at)?;
    Ok(findings)
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
    let Some(digest) = digest else { return examine_foreign(path, Some(archive.size)) };
    let mut damaged = Vec::new();
    let mut last = 0;
    let mut expected =
        store.archive_chunks(archive.run).inspect(|chunk| last = chunk.as_ref().map_or(last, |chunk| chunk.sequence));
    let found = check::check_chunks(&reader, &mut expected, threads, cancel, &mut |chunk| {
        damaged.push(chunk);
        ControlFlow::Continue(())
    });
    let mut findings = Findings { bytes: reader.size(), ..Findings::new() };
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
        name_damage(store, archive.run, &reader, damaged, last, &mut findings)?;
    }
    Ok(findings.with_health())
}

/// Names the members that a damaged chunk holds: those whose bytes differ where that can be told, else all of them,
/// else the one whose content goes through it.
fn name_damage(
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

/// Verifies a file with no database: by its own trailer, or, where another program made it, by reading it to its end.
///
/// Errors: `NotFound`; `Interrupted` after `cancel`; what keeps the file from being read at all.
pub fn verify_file(path: &Path, threads: usize, cancel: &CancelToken) -> Result<Findings> {
    let reader = ArchiveReader::open(path)?;
    let trailer = match reader.trailer() {
        Ok(Some(trailer)) => trailer,
        Ok(None) => return examine_foreign(path, None),
        Err(error) if error.kind() == ErrorKind::Damage => return Ok(Findings::of_damage(&error)),
        Err(error) => return Err(error),
    };
    let reading = |e| Error::io("read the trailer of", path)(e);
    let mut expected = trailer.entries(reader.file()).map(|chunk| chunk.map_err(reading));
    let mut damaged = Vec::new();
    let found = check::check_chunks(&reader, &mut expected, threads, cancel, &mut |chunk| {
        damaged.push(chunk);
        ControlFlow::Continue(())
    });
    let mut findings = Findings { bytes: reader.size(), ..Findings::new() };
    match found {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::Damage => findings.structure.push(error.to_string()),
        Err(error) => return Err(error),
    }
    damaged.sort_by_key(|damaged: &DamagedChunk| damaged.chunk.sequence);
    for DamagedChunk { chunk, reason } in &damaged {
        let (from, to) = (chunk.offset, chunk.end());
        findings.structure.push(format!("chunk {} (bytes {from} to {to}): {reason}", chunk.sequence));
        damaged_members::names_in(&reader, chunk).into_iter().for_each(|path| findings.add_member(path));
    }
    Ok(findings.with_health())
}

fn examine_foreign(path: &Path, size: Option<u64>) -> Result<Findings> {
    let facts = foreign::check_tar(path);
    let length = std::fs::metadata(path).map_err(Error::io("inspect", path))?.len();
    let mut findings = Findings { bytes: length, ..Findings::new() };
    if let Err(error) = facts {
        match error.kind() {
            ErrorKind::Damage => findings.structure.push(error.to_string()),
            _ => return Err(error),
        }
    }
    if let Some(size) = size.filter(|size| *size != length) {
        findings.structure.push(format!("it has {length} bytes and had {size}"));
    }
    Ok(findings.with_health())
}

//! Rebuilds the catalog from the archive files (I12): schedules, runs, archives, chunks and members.
//!
//! A file is ours if its name, its folder and the schedule in its header agree, and its trailer confirms its content.
//! Its time and its run are those of its name: a file under several names is an archive of several runs. Everything
//! else is listed and left alone. Archives that the catalog already has are not changed, so that a second rescan
//! changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::rescan_damaged::add_by_index;
use super::rescan_moves::update_all;
use super::rescan_segments::Places;
use super::shared_files::separate_files;
use super::verify::verify_archive;
use crate::archive::reader::ArchiveReader;
use crate::archive::trailer::Trailer;
use crate::archive::{check, rebuild};
use crate::archive_folder::{self, Orphans};
use crate::archive_name::{ArchiveName, SegmentName};
use crate::cancel::CancelToken;
use crate::chunk::{CatalogChunk, Chunk, Place};
use crate::clock::Timestamp;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::progress::Observer;
use crate::schedule::{Layout, Schedule, ScheduleName};
use crate::store::{Archive, FoundArchive, Health, Store, Watermark};

/// The folder of a file system in which `fsck` puts what it finds. Only root can read it.
const LOST_FOUND: &str = "lost+found";
/// Approximate number of rows written in one transaction.
const BATCH_ROWS: usize = 5_000;

/// What follows the name of an archive in the row of one that is added anew: no file has such a name.
const ADDING_SUFFIX: &str = ".adding";

/// The result of a rescan.
#[derive(Clone, Debug, Default)]
pub struct RescanReport {
    /// Names of schedules that were created again, paused.
    pub schedules: Vec<String>,
    /// Archives added to the catalog: paths relative to the archive folder.
    pub added: Vec<String>,
    /// Archives of which the catalog had other ranges than their indexes list: paths relative to the archive folder.
    pub updated: Vec<String>,
    /// Number of archives that the catalog already had.
    pub known: u64,
    /// Archives of the catalog whose files do not exist, now marked as missing.
    pub missing: Vec<String>,
    /// Files that are not ours, or not in the place of one of ours: left alone.
    pub foreign: Vec<PathBuf>,
    /// Damaged files with names of ours, and the damage: left alone.
    pub damaged: Vec<(PathBuf, String)>,
    /// Files and folders that may hold archives of ours and cannot be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Segments that no index and no row names: left alone.
    pub orphans: Orphans,
}

/// The comment in the pax global header of an archive.
#[derive(Deserialize)]
struct Comment {
    schedule: Schedule,
    #[serde(default)]
    source: String,
}

/// A file that is ours by name, folder and comment. It is not kept open: there may be more archives than a process may
/// have files open.
struct Candidate {
    path: PathBuf,
    file_name: String,
    run: i64,
    created_at: Timestamp,
    schedule: Schedule,
    source: String,
    /// The run that the catalog has of it, without chunks.
    known: Option<i64>,
}

/// Rebuilds the catalog from the archive folder, which must already belong to this database: see
/// [`archive_folder::adopt`].
///
/// Errors: `Interrupted` after `cancel`; `Failed` if the folder is not ours or cannot be read itself, or if the
/// database cannot be written.
pub fn rescan(
    home: &Home,
    store: &Store,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<RescanReport> {
    archive_folder::ensure_ours(home, store)?;
    store.discard_partly_added_archives()?;
    archive_folder::reserve_run_numbers(home, store)?;
    let mut report = RescanReport::default();
    let mut candidates = find_candidates(home, store, &mut report)?;
    candidates.sort_by_key(|candidate| (candidate.created_at, candidate.run));
    create_missing_schedules(store, &candidates, &mut report, now)?;
    for candidate in &candidates {
        if cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Interrupted, "the rescan was interrupted").hint("run it again"));
        }
        observer.note(&format!("reading {}", candidate.file_name));
        match add_to_catalog(store, candidate, threads, cancel, now) {
            Ok(()) => report.added.push(candidate.file_name.clone()),
            Err(error) if error.kind() == ErrorKind::Damage => {
                store.discard_partly_added_archives()?;
                report.damaged.push((candidate.path.clone(), error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        }
        verify_completed(home, store, candidate, threads, cancel, now)?;
    }
    add_damaged(home, store, &mut report, threads, cancel, now)?;
    let updated = update_all(home, store, threads, cancel, now)?;
    report.updated = updated.names;
    report.damaged.extend(updated.damaged);
    report.unreadable.extend(updated.left);
    report.orphans = archive_folder::find_orphans(home, store)?;
    separate_files(home, store, None)?;
    mark_missing(home, store, &mut report)?;
    let notes = archive_folder::refresh_stable_links(home, store, &store.schedules()?, now)?;
    notes.iter().for_each(|note| observer.note(note));
    Ok(report)
}

/// Verifies an archive that has its chunks now, unless it is known to be good: what was missing or damaged before is
/// there again.
fn verify_completed(
    home: &Home,
    store: &Store,
    candidate: &Candidate,
    threads: usize,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<()> {
    let Some(run) = candidate.known else { return Ok(()) };
    match store.archive(run)?.filter(|archive| archive.health != Health::Good) {
        Some(archive) => verify_archive(home, store, &archive, threads, cancel, now).map(drop),
        None => Ok(()),
    }
}

/// Adds what is damaged and has an index, so that its segments are kept.
fn add_damaged(
    home: &Home,
    store: &Store,
    report: &mut RescanReport,
    threads: usize,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<()> {
    for (path, _) in &report.damaged {
        let Some(file_name) = path.strip_prefix(home.backups()).ok().and_then(Path::to_str) else { continue };
        if !store.has_archive_file(file_name)? && add_by_index(home, store, path, file_name, threads, cancel, now)? {
            report.added.push(file_name.to_owned());
        }
    }
    Ok(())
}

/// Inspects every file in the folders of schedules; returns those that are ours.
fn find_candidates(home: &Home, store: &Store, report: &mut RescanReport) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for folder in entries_of(home.backups())? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = fs::symlink_metadata(&folder).map_err(Error::io("inspect", &folder))?.file_type();
        // Our own files: the identity, copies of the database, the scratch folder; and the stable links.
        if name.starts_with('.') || kind.is_symlink() {
            continue;
        }
        if !kind.is_dir() {
            report.foreign.push(folder);
            continue;
        }
        let entries = match entries_of(&folder) {
            Ok(entries) => entries,
            Err(_) if name == LOST_FOUND || ScheduleName::parse(&name).is_err() => {
                report.foreign.push(folder);
                continue;
            }
            Err(error) => {
                report.unreadable.push((folder, error.to_string()));
                continue;
            }
        };
        inspect_entries(store, &name, entries, report, &mut candidates)?;
    }
    Ok(candidates)
}

/// Inspects the files in the folder of a schedule.
fn inspect_entries(
    store: &Store,
    folder: &str,
    entries: Vec<PathBuf>,
    report: &mut RescanReport,
    candidates: &mut Vec<Candidate>,
) -> Result<()> {
    for path in entries {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file_name = format!("{folder}/{file}");
        let known = store.archive_named(&file_name)?;
        let without_chunks = known.filter(|archive| archive.layout == Layout::Segmented).map(|archive| archive.run);
        let without_chunks = match without_chunks {
            Some(run) if !store.has_chunks(run)? => Some(run),
            _ => None,
        };
        if without_chunks.is_none() && store.has_archive_file(&file_name)? {
            report.known += 1;
            continue;
        }
        if SegmentName::parse(&file, folder).is_some() {
            continue;
        }
        match inspect_file(&path, folder, file_name) {
            Ok(Some(candidate)) => candidates.push(Candidate { known: without_chunks, ..candidate }),
            Ok(None) => report.foreign.push(path),
            Err(error) if error.kind() == ErrorKind::Damage => report.damaged.push((path, error.to_string())),
            Err(error) => report.unreadable.push((path, error.to_string())),
        }
    }
    Ok(())
}

fn entries_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let mut paths = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(Error::io("list", folder))?;
    paths.sort();
    Ok(paths)
}

/// Returns the file as a candidate; `None` if it is not ours by its name, its kind or its comment.
///
/// Errors: `Damage` if it is ours by name and damaged; the I/O error if it cannot be read.
fn inspect_file(path: &Path, folder: &str, file_name: String) -> Result<Option<Candidate>> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name = ArchiveName::parse(&file, folder).or_else(|| ArchiveName::parse_index(&file, folder));
    let Some(ArchiveName { created_at, run, .. }) = name else { return Ok(None) };
    if !fs::symlink_metadata(path).map_err(Error::io("inspect", path))?.is_file() {
        return Ok(None);
    }
    let reader = ArchiveReader::open(path)?;
    let Some(trailer) = reader.trailer()? else {
        return Err(Error::new(ErrorKind::Damage, "it does not end as archives of this program do: it was cut off"));
    };
    let Some(comment) = rebuild::read_comment(&reader, &trailer)? else { return Ok(None) };
    let Ok(Comment { schedule, source }) = serde_json::from_slice::<Comment>(&comment) else { return Ok(None) };
    if schedule.name.as_str() != folder {
        return Ok(None);
    }
    let known = None;
    Ok(Some(Candidate { path: path.to_owned(), file_name, run, created_at, schedule, source, known }))
}

/// Creates the missing schedules, each as in its newest archive, and paused: it may have been changed or deleted since.
fn create_missing_schedules(
    store: &Store,
    candidates: &[Candidate],
    report: &mut RescanReport,
    now: Timestamp,
) -> Result<()> {
    let mut newest: BTreeMap<&str, &Schedule> = BTreeMap::new();
    for candidate in candidates {
        newest.insert(candidate.schedule.name.as_str(), &candidate.schedule);
    }
    let mut new = Vec::new();
    for (name, schedule) in newest {
        if store.schedule_named(name)?.is_none() {
            let paused = Schedule { enabled: false, ..schedule.clone() };
            new.push((paused, Watermark { handled_until: now, next_due: None }));
            report.schedules.push(name.to_owned());
        }
    }
    store.create_schedules(&new, now).map(drop)
}

fn add_to_catalog(
    store: &Store,
    candidate: &Candidate,
    threads: usize,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<()> {
    let name = candidate.schedule.name.as_str();
    let row = store
        .schedule_named(name)?
        .ok_or_else(|| Error::failed(format!("the schedule \"{name}\" was removed while its archives were read")))?;
    let (trailer, digest) = check::check_by_trailer(&candidate.path, threads, cancel)?;
    let reader = Arc::new(ArchiveReader::open(&candidate.path)?);
    let found = found_archive(candidate, &reader, &trailer, row.id, digest)?;
    if found.layout == Layout::Segmented {
        return add_segmented(store, candidate, &reader, &found, &trailer, threads, now);
    }
    if let Some(file) = store.shared_file(&found)? {
        return store.add_archive_link(&found, file, now).map(drop);
    }
    let run = store.begin_adding_archive(&found, now)?;
    add_chunks(store, candidate, reader, &trailer, run, threads, &mut |_| Ok(None))?;
    store.finish_adding_archive(run, None, now)
}

fn add_segmented(
    store: &Store,
    candidate: &Candidate,
    reader: &Arc<ArchiveReader>,
    found: &FoundArchive,
    trailer: &Trailer,
    threads: usize,
    now: Timestamp,
) -> Result<()> {
    // What the catalog has stays as it is until all is added.
    let run = match candidate.known {
        Some(_) => {
            let file_name = format!("{}{ADDING_SUFFIX}", found.file_name);
            store.begin_adding_archive(&FoundArchive { file_name, ..found.clone() }, now)?
        }
        None => store.begin_adding_archive(found, now)?,
    };
    let mut places = Places::of(store, &candidate.path, candidate.schedule.name.as_str())?;
    let place = &mut |chunk: &Chunk| places.of_chunk(reader, chunk).map(Some);
    add_chunks(store, candidate, Arc::clone(reader), trailer, run, threads, place)?;
    let trailer = places.of_trailer(reader, trailer.content_end())?;
    let Some(known) = candidate.known else { return store.finish_adding_archive(run, Some(&trailer), now) };
    store.finish_adding_chunks(run, known, &trailer, now)?;
    store.discard_partly_added_archives()
}

/// Returns the row of a candidate whose content has `digest`.
fn found_archive(
    candidate: &Candidate,
    reader: &ArchiveReader,
    trailer: &Trailer,
    schedule: i64,
    digest: [u8; 32],
) -> Result<FoundArchive> {
    let metadata = reader.metadata();
    let facts = trailer.facts();
    Ok(FoundArchive {
        schedule,
        run: candidate.run,
        file_name: candidate.file_name.clone(),
        created_at: candidate.created_at,
        layout: if reader.whole_file().is_some() { Layout::Whole } else { Layout::Segmented },
        size: reader.size(),
        digest: Some(digest),
        device: metadata.dev(),
        inode: metadata.ino(),
        codec: reader.codec().as_str(),
        source_root: candidate.source.clone().into_bytes(),
        incomplete: facts.outcome == "incomplete",
        extent: facts.extent(),
        problems: facts.problems,
        losses: facts.losses,
    })
}

/// Adds the chunks and members of a candidate to the catalog, batch by batch.
fn add_chunks(
    store: &Store,
    candidate: &Candidate,
    reader: Arc<ArchiveReader>,
    trailer: &Trailer,
    run: i64,
    threads: usize,
    place: &mut dyn FnMut(&Chunk) -> Result<Option<Place>>,
) -> Result<()> {
    let (mut batch, mut rows): (Vec<CatalogChunk>, usize) = (Vec::new(), 0);
    rebuild::read_records(reader, trailer, candidate.created_at, threads, &mut |chunk| {
        rows += chunk.rows();
        batch.push(CatalogChunk { place: place(&chunk.chunk)?, ..chunk });
        if rows >= BATCH_ROWS {
            rows = 0;
            store.add_chunks_of_archive(run, &std::mem::take(&mut batch))?;
        }
        Ok(())
    })?;
    store.add_chunks_of_archive(run, &batch)
}

/// Marks archives whose files do not exist: an older database may have archives that retention has removed since.
fn mark_missing(home: &Home, store: &Store, report: &mut RescanReport) -> Result<()> {
    for archive in store.archives(None)? {
        let path = home.backups().join(&archive.file_name);
        let is_gone = fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_gone {
            if archive.health != Health::Missing {
                match archive.layout {
                    Layout::Whole => store.record_health(&archive, Health::Missing, None)?,
                    Layout::Segmented => store.record_index_health(archive.run, Health::Missing, None)?,
                }
            }
            report.missing.push(archive.file_name);
        } else if archive.layout == Layout::Segmented {
            mark_missing_segments(home, store, &archive)?;
        }
    }
    Ok(())
}

fn mark_missing_segments(home: &Home, store: &Store, archive: &Archive) -> Result<()> {
    for part in store.parts(archive.archive_file)? {
        if let Some(name) = &part.segment_name
            && durable::identity(&home.backups().join(name))?.is_none()
        {
            store.record_missing(archive, part.id)?;
        }
    }
    Ok(())
}

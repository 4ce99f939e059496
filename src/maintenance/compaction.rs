//! Compaction: the bytes of segments of which less than half is used are copied to a new segment, so that the others
//! are freed (I14, I19).
//!
//! Bytes are only added, and indexes replaced as a whole: until the old segment is removed both copies are valid, and
//! an interrupted compaction is continued by the next one. The order is: the new segment, in place, synced and read
//! back; the spans in the database; the indexes; the removal. Nothing moves while a run of the schedule goes on, which
//! refers to the spans that its base had when it began, to the end (see `Store::inherited_ranges`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use crate::archive::writer::ArchiveDigest;
use crate::archive_folder::{self, CopiedSegment, CopyingSegment};
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::liveness::SegmentLock;
use crate::store::{Archive, KeptSegment, Moved, ScheduleRow, Store, StoredRange};
use crate::words::{bytes, count};

/// Most bytes that are copied to one segment, as in the segments of a run.
const MAX_COPIED_BYTES: u64 = 256 << 20;

/// Bytes of free space that a copy leaves, for the index and for what runs of other schedules write meanwhile.
const SPARE_BYTES: u64 = 64 << 20;

/// What compaction needs.
#[derive(Clone, Copy)]
pub struct CompactionContext<'a> {
    /// The paths of the installation.
    pub home: &'a Home,
    /// The database.
    pub store: &'a Store,
    /// The time.
    pub now: Timestamp,
    /// Ends it early; what was not finished is continued the next time.
    pub cancel: &'a CancelToken,
    /// Receives what keeps a segment from being compacted until somebody does something about it.
    pub warn: &'a dyn Fn(&str),
}

/// What compaction freed, or would free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments whose bytes lie in others now.
    pub segments: u64,
    /// Bytes of disk space.
    pub freed_bytes: u64,
    /// Something was in use, and is tried again the next time.
    pub is_postponed: bool,
}

impl Compacted {
    const POSTPONED: Compacted = Compacted { segments: 0, freed_bytes: 0, is_postponed: true };

    /// Describes it for the user: `3 segments, 1.5 GB`.
    pub fn describe(&self) -> String {
        format!("{}, {}", count(self.segments, "segment"), bytes(self.freed_bytes))
    }
}

/// A segment of which less than half is used.
struct Candidate {
    segment: KeptSegment,
    used_bytes: u64,
}

/// Returns what compaction would free in the segments of a schedule if some archives were removed before.
pub fn preview(store: &Store, schedule: i64, removed: &[&Archive]) -> Result<Compacted> {
    let mut names: BTreeMap<i64, u64> = BTreeMap::new();
    removed.iter().for_each(|archive| *names.entry(archive.archive_file).or_default() += 1);
    // Archives of a source that did not change share one archive file.
    let is_removed = |archive: &&&Archive| names[&archive.archive_file] >= archive.names;
    let removed: BTreeSet<i64> = removed.iter().filter(is_removed).map(|archive| archive.archive_file).collect();
    let candidates = find_candidates(store, schedule, &removed)?;
    let freed = candidates.iter().map(|candidate| candidate.segment.size - candidate.used_bytes);
    Ok(Compacted { segments: candidates.len() as u64, freed_bytes: freed.sum(), is_postponed: false })
}

/// Compacts the segments of a schedule, those that fit into one segment at a time. What is in use stays for the next
/// time: while a run of the schedule or another compaction goes on, and while archives are in the folder that the
/// database does not know. A segment that cannot be read, or of which an index is not as the database knows it, is left
/// out with a warning.
///
/// Errors: `Interrupted` after `cancel`; `Failed` if the archive folder is not ours; those of writing.
pub fn compact_segments(context: &CompactionContext<'_>, row: &ScheduleRow) -> Result<Compacted> {
    let CompactionContext { home, store, cancel, .. } = *context;
    let name = row.schedule.name.as_str();
    let mut total = Compacted::default();
    if find_candidates(store, row.id, &BTreeSet::new())?.is_empty() {
        return Ok(total);
    }
    archive_folder::ensure_ours(home, store)?;
    if let Some(error) = archive_folder::find_unknown_archives(home, store)?.error(home) {
        warn(context, &format!("segments of {name} are not compacted"), &error);
        return Ok(total);
    }
    let mut pass = Pass { context, row, tried: BTreeSet::new(), checked: BTreeSet::new() };
    loop {
        cancel.check("the compaction was cancelled")?;
        let done = pass.compact_some();
        // Also what an error has left.
        let removed = archive_folder::remove_unused_segments_in(home, store, name);
        let done = done?;
        removed?;
        match done {
            Some(done) => {
                total.segments += done.segments;
                total.freed_bytes += done.freed_bytes;
                total.is_postponed |= done.is_postponed;
                if done.is_postponed {
                    return Ok(total);
                }
            }
            None => return Ok(total),
        }
    }
}

fn warn(context: &CompactionContext<'_>, what: &str, error: &Error) {
    let next = error.next_step().map(|next| format!("; next: {next}")).unwrap_or_default();
    (context.warn)(&format!("{what}: {error}{next}"));
}

/// One pass over the segments of a schedule.
struct Pass<'a> {
    context: &'a CompactionContext<'a>,
    row: &'a ScheduleRow,
    /// Segments that were compacted, or cannot be.
    tried: BTreeSet<i64>,
    /// Runs of archives whose indexes are as the database knows them.
    checked: BTreeSet<i64>,
}

impl Pass<'_> {
    /// Compacts segments that were not tried yet, as many as fit into one; returns `None` if there are none.
    fn compact_some(&mut self) -> Result<Option<Compacted>> {
        let CompactionContext { home, store, .. } = *self.context;
        let name = self.row.schedule.name.as_str();
        let Some(_changing) = SegmentLock::try_to_change(home, name)? else {
            log::debug!("{name}: segments are not compacted now: another process changes them");
            return Ok(Some(Compacted::POSTPONED));
        };
        if store.running()?.iter().any(|run| run.schedule_id == self.row.id) {
            log::debug!("{name}: segments are not compacted now: a run goes on");
            return Ok(Some(Compacted::POSTPONED));
        }
        // Indexes are replaced under this lock only.
        durable::remove_abandoned(&home.backups().join(name))?;
        let segments = self.next_segments()?;
        if segments.is_empty() {
            return Ok(None);
        }
        match compact(self.context, self.row, &segments) {
            // One of the archives was removed meanwhile.
            Err(_) if find_archives(store, &segments)?.is_empty() || !are_complete(store, &self.checked)? => {
                Ok(Some(Compacted::POSTPONED))
            }
            done => done.map(Some),
        }
    }

    /// Returns segments that are copied to one: together not too large, and of one owner and mode, so that nobody may
    /// read there what he could not read before.
    fn next_segments(&mut self) -> Result<Vec<KeptSegment>> {
        let (mut chosen, mut size, mut access) = (Vec::new(), 0, None);
        for Candidate { segment, used_bytes } in find_candidates(self.context.store, self.row.id, &BTreeSet::new())? {
            if self.tried.contains(&segment.id) || size > 0 && size + used_bytes > MAX_COPIED_BYTES {
                continue;
            }
            match self.check(&segment) {
                Ok(found) if access.is_none_or(|access| access == found) => {
                    access = Some(found);
                    size += used_bytes;
                    self.tried.insert(segment.id);
                    chosen.push(segment);
                }
                Ok(_) => {}
                Err(error) => {
                    self.tried.insert(segment.id);
                    warn(self.context, &format!("{} is not compacted", segment.name), &error);
                }
            }
        }
        Ok(chosen)
    }

    /// Returns the owner, the group and the mode of a segment.
    ///
    /// Errors: it cannot be opened, or an index that lists it is not as the database knows it, which may be an older
    /// copy.
    fn check(&mut self, segment: &KeptSegment) -> Result<(u32, u32, u32)> {
        let CompactionContext { home, store, .. } = *self.context;
        let path = home.backups().join(&segment.name);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        for archive in find_archives(store, std::slice::from_ref(segment))? {
            if !self.checked.contains(&archive.run) {
                archive_folder::replace_index(home, store, &archive)?;
                self.checked.insert(archive.run);
            }
        }
        let found = file.metadata().map_err(Error::io("inspect", &path))?;
        Ok((found.uid(), found.gid(), found.mode()))
    }
}

/// Returns the complete archives that have parts of segments, oldest first.
fn find_archives(store: &Store, segments: &[KeptSegment]) -> Result<Vec<Archive>> {
    let mut runs = BTreeSet::new();
    for segment in segments {
        runs.extend(store.archives_with_part(segment.id)?);
    }
    let mut archives = Vec::new();
    for run in runs {
        archives.extend(store.archive(run)?);
    }
    Ok(archives)
}

fn are_complete(store: &Store, runs: &BTreeSet<i64>) -> Result<bool> {
    for run in runs {
        if store.archive(*run)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the segments of which less than half is used, but some, if these archive files were removed. One of which
/// something that is used is damaged is left out: it could not be removed.
fn find_candidates(store: &Store, schedule: i64, removed: &BTreeSet<i64>) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for segment in store.kept_segments(schedule)? {
        let used = used_ranges(store, &segment, removed)?;
        let used_bytes = sum_of(&used);
        if used_bytes > 0
            && used_bytes < segment.size.div_ceil(2)
            && !is_damaged(store, segment.id, &used)?
            && !has_unknown_chunks(store, segment.id)?
        {
            candidates.push(Candidate { segment, used_bytes });
        }
    }
    Ok(candidates)
}

/// Returns whether one of these ranges of a segment is known to be damaged.
fn is_damaged(store: &Store, segment: i64, ranges: &[Range<u64>]) -> Result<bool> {
    let damaged = store.damaged_ranges(segment)?;
    let overlaps = |range: &Range<u64>| damaged.iter().any(|bad| bad.start < range.end && range.start < bad.end);
    Ok(ranges.iter().any(overlaps))
}

/// Returns whether an archive has a part of a segment that a rescan added without its chunks, as something is missing:
/// its bytes cannot be compared.
fn has_unknown_chunks(store: &Store, segment: i64) -> Result<bool> {
    for run in store.archives_with_part(segment)? {
        if store.archive_crc(run)?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns what archive files use of a segment, in order; not all of it if it is at least half.
fn used_ranges(store: &Store, segment: &KeptSegment, removed: &BTreeSet<i64>) -> Result<Vec<Range<u64>>> {
    let mut used: Vec<Range<u64>> = Vec::new();
    for archive_file in store.archive_files_with_part(segment.id)? {
        if removed.contains(&archive_file) {
            continue;
        }
        used.extend(store.ranges_in(segment.id, archive_file)?);
        used = merged(used);
        if sum_of(&used) >= segment.size.div_ceil(2) {
            break;
        }
    }
    Ok(used)
}

fn sum_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Returns the same bytes as ranges that neither overlap nor lie side by side, in order.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Copies what is used of segments to a new one, and makes spans and indexes follow.
fn compact(context: &CompactionContext<'_>, row: &ScheduleRow, segments: &[KeptSegment]) -> Result<Compacted> {
    let CompactionContext { home, store, now, .. } = *context;
    let archives = find_archives(store, segments)?;
    if let Some(error) = check_free_space(home, store, segments)? {
        // Archives are whole without it.
        warn(context, &format!("segments of {} are not compacted now", row.schedule.name), &error);
        return Ok(Compacted::POSTPONED);
    }
    let Some(newest) = archives.last() else { return Ok(Compacted::default()) };
    let Some(copied) = copy_used(context, segments, newest)? else { return Ok(Compacted::default()) };
    let moved = store.move_spans(row.id, copied.row, &copied.copied, now)?;
    log::debug!("{}: bytes of {} were copied: {moved:?}", row.schedule.name, count(segments.len() as u64, "segment"));
    archives.iter().try_for_each(|archive| archive_folder::replace_index(home, store, archive).map(drop))?;
    let runs: Vec<i64> = archives.iter().map(|archive| archive.run).collect();
    segments.iter().try_for_each(|segment| store.remove_moved_parts(segment.id, &runs))?;
    let unused: BTreeSet<i64> = store.segments_being_deleted()?.iter().map(|segment| segment.id).collect();
    let freed: Vec<&KeptSegment> = segments.iter().filter(|segment| unused.contains(&segment.id)).collect();
    let freed_bytes = freed.iter().map(|segment| segment.size).sum::<u64>().saturating_sub(copied.size);
    Ok(Compacted { segments: freed.len() as u64, freed_bytes, is_postponed: moved == Moved::RunBegan })
}

/// Copies what is used of segments, bar those of which a part turns out to be damaged, which cannot be removed; returns
/// `None` if none is left.
fn copy_used(
    context: &CompactionContext<'_>,
    segments: &[KeptSegment],
    newest: &Archive,
) -> Result<Option<CopiedSegment>> {
    let CompactionContext { home, store, now, .. } = *context;
    let mut left: Vec<&KeptSegment> = segments.iter().collect();
    while let Some(first) = left.first() {
        let like = home.backups().join(&first.name);
        let mut copying = CopyingSegment::create(home, store, newest, &like, now)?;
        let mut damaged = Vec::new();
        for segment in &left {
            copy_units(context, segment, &mut copying, &mut damaged)?;
        }
        if damaged.is_empty() {
            return copying.finish().map(Some);
        }
        left.retain(|segment| damaged.iter().all(|range| range.stored_file != segment.id));
        damaged.into_iter().try_for_each(|range| store.record_damage(range, now))?;
    }
    Ok(None)
}

/// Returns an error unless the copies and some space for others fit into the archive folder.
fn check_free_space(home: &Home, store: &Store, segments: &[KeptSegment]) -> Result<Option<Error>> {
    let mut needed = SPARE_BYTES;
    for segment in segments {
        needed += sum_of(&used_ranges(store, segment, &BTreeSet::new())?);
    }
    let free = archive_folder::free_bytes(home.backups())?;
    let what = format!("it needs {} in {}, and {} are free", bytes(needed), home.backups().display(), bytes(free));
    Ok((free < needed).then(|| Error::new(ErrorKind::DiskFull, what).hint("free space there")))
}

/// Bytes of a segment that are copied as a whole.
struct Unit {
    range: StoredRange,
    content: UnitContent,
}

enum UnitContent {
    /// A chunk, and the BLAKE3 of its bytes.
    Chunk([u8; 32]),
    /// The trailer of the archive of a run.
    Trailer(i64),
}

/// Appends the chunks and trailers in a segment; adds those that are not what was written to `damaged`.
fn copy_units(
    context: &CompactionContext<'_>,
    segment: &KeptSegment,
    copying: &mut CopyingSegment<'_>,
    damaged: &mut Vec<StoredRange>,
) -> Result<()> {
    let CompactionContext { home, store, cancel, .. } = *context;
    let path = home.backups().join(&segment.name);
    let source = File::open(&path).map_err(Error::io("open", &path))?;
    for Unit { range, content } in units_of(store, segment.id)? {
        cancel.check("the compaction was cancelled")?;
        let is_right = match content {
            UnitContent::Chunk(digest) => copying.copy(&source, range.offset, range, &|found| *found == digest)?,
            UnitContent::Trailer(run) => {
                let (digest, archive) = digest_of_chunks(store, run)?;
                copying.copy(&source, range.offset, range, &|found| digest.clone().finish(found) == archive)?
            }
        };
        if !is_right {
            log::error!("{} is damaged at byte {}: verify its archives", path.display(), range.offset);
            damaged.push(range);
        }
    }
    Ok(())
}

/// Returns the units in a segment, in order, each once.
fn units_of(store: &Store, segment: i64) -> Result<Vec<Unit>> {
    let range = |offset, bytes| StoredRange { stored_file: segment, offset, bytes };
    let chunks = store
        .chunks_in(segment)?
        .into_iter()
        .map(|chunk| Unit { range: range(chunk.offset, chunk.length), content: UnitContent::Chunk(chunk.digest) });
    let trailers = store.trailers_in(segment)?.into_iter().map(|trailer| Unit {
        range: range(trailer.offset, trailer.bytes),
        content: UnitContent::Trailer(trailer.run),
    });
    let mut units: Vec<Unit> = chunks.chain(trailers).collect();
    units.sort_by_key(|unit| (unit.range.offset, unit.range.bytes));
    units.dedup_by_key(|unit| (unit.range.offset, unit.range.bytes));
    Ok(units)
}

/// Returns the digest of the chunks of an archive, which its trailer completes, and the archive digest.
fn digest_of_chunks(store: &Store, run: i64) -> Result<(ArchiveDigest, [u8; 32])> {
    let mut digest = ArchiveDigest::new();
    for chunk in store.archive_chunks(run) {
        digest.add(&chunk?.stored_digest);
    }
    let archive = store.archive(run)?.and_then(|archive| <[u8; 32]>::try_from(archive.digest?).ok());
    let archive = archive.ok_or_else(|| Error::failed(format!("the archive @{run} has no digest")))?;
    Ok((digest, archive))
}

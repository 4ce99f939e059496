//! The pipeline from a source to the bytes of an archive. One thread walks the source and makes plans, several workers
//! read, check, hash and encode a chunk each, one thread writes the chunks into the file in order, and the calling
//! thread passes their records to the catalog.
//!
//! Memory is limited by a budget of bytes in use, whatever the number or size of files.

mod assembler;
mod base_bytes;
mod base_range;
mod chunk_builder;
mod decide;
mod file_members;
mod hard_links;
mod large_file;
mod plan;
mod planned_member;
mod read;
mod reuse;
mod state;
mod unwritten;
mod worker;

use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use self::assembler::{Assembled, Assembler};
use self::base_bytes::{BaseBytes, copy_chunks};
use self::chunk_builder::{MemberCounts, PlanOutput};
use self::plan::{Plan, Planner};
pub use self::reuse::{Base, ReadReason, ReuseCounts, Rules};
use self::reuse::{BaseCursor, read_pages};
use self::state::PipelineState;
use crate::archive::codec::Encoder;
use crate::archive::padding::Padding;
use crate::archive::segment_writer::SegmentFiles;
use crate::archive::trailer::Facts;
use crate::archive::writer::{ArchiveWriter, Finished, InSegments};
use crate::cancel::CancelToken;
use crate::chunk::CatalogChunk;
use crate::clock::{Clock, Timestamp};
use crate::durable::PendingFile;
use crate::error::{Error, ErrorKind, Result};
use crate::member::{Extent, MemberPath};
use crate::progress::{Observer, Problem, Progress};
use crate::schedule::{Compression, Excludes, Layout};
use crate::source::{OwnerNames, WalkOptions, WalkSummary, walk};

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Chunks of the base that wait to be copied, for each thread.
const COPIES_PER_THREAD: usize = 8;

/// Maximum number of threads that copy from the base. Each keeps the memory of its largest chunk, and a disk is not
/// faster with more.
const MAX_COPYING: usize = 4;
/// Maximum memory of all encoders together. At high levels each takes so much that fewer threads run than requested.
const MAX_ENCODER_BYTES: u64 = 256 << 20;

/// What is archived, and how.
#[derive(Clone, Copy)]
pub struct PipelineOptions<'a> {
    /// The source: absolute and resolved. A root that is a symbolic link is followed.
    pub source: &'a Path,
    /// Name of the root in the archive: the last component of the source.
    pub root_name: &'a MemberPath,
    /// The schedule's exclusions.
    pub excludes: &'a Excludes,
    /// Lines of the exclude files, already read.
    pub patterns: &'a [String],
    /// The live database, the archives and the logs: skipped, and reported in the notes.
    pub own_paths: &'a [PathBuf],
    /// Codec and level.
    pub compression: Compression,
    /// Whether the chunks are padded, as those of the base are.
    pub padding: Padding,
    /// How the archive is stored.
    pub layout: Layout,
    /// Threads that read and encode; at least one is used.
    pub threads: usize,
    /// JSON for the pax global header.
    pub comment: &'a str,
    /// The archive that unchanged chunks are taken from.
    pub base: Option<&'a Base<'a>>,
    /// Number of the run, for the trailer.
    pub run: i64,
    /// The source of all times.
    pub clock: &'a dyn Clock,
    /// Receives progress, problems and notes.
    pub observer: &'a dyn Observer,
    /// Stops the work; checked for every member and every piece of a large file.
    pub cancel: &'a CancelToken,
}

/// An archive that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenArchive {
    /// How much the archive holds.
    pub extent: Extent,
    /// Folders among its members.
    pub folders: u64,
    /// Problems of single paths, sorted by path; at most 10,000.
    pub problems: Vec<Problem>,
    /// How many problems there were.
    pub problems_total: u64,
    /// How many of them mean missing or doubtful data: the archive is incomplete if any does.
    pub losses: u64,
    /// How many files have other content than the base although nothing indicates a change.
    pub silent_changes: u64,
    /// Facts of interest that are not problems.
    pub notes: Vec<String>,
    /// Chunks in the archive file, those of the global header and the end marks counted.
    pub chunks: u64,
    /// Bytes in the archive file.
    pub size: u64,
    /// The archive digest, see [`crate::archive::writer::ArchiveDigest`].
    pub digest: [u8; 32],
    /// What else is known of it in the segmented layout, unless it is that of the base.
    pub in_segments: Option<InSegments>,
    /// It is byte for byte the archive of the base. Its chunks were not passed to the catalog.
    pub is_link: bool,
    /// The ranges of the file that share blocks with that of the base, in order: their bytes were neither read nor
    /// written.
    pub shared: Vec<Range<u64>>,
    /// How many members were taken from the base, and why the others were read; `None` without a base.
    pub reuse: Option<ReuseCounts>,
}

/// Writes an archive of the source into `file`, which must be empty and is not synced here.
///
/// Calls `catalog` on the calling thread with batches of the records of all chunks, in order of sequence; only the
/// chunk with the header of a file of over 4,096 pieces comes after others of that file, when its digest is known.
///
/// Errors: `NotFound` if the source does not exist; `Interrupted` if cancelled; `DiskFull`; the errors of `catalog`.
/// Problems of single paths are not errors (I9).
pub fn write(
    options: &PipelineOptions<'_>,
    file: &mut PendingFile,
    catalog: &mut dyn FnMut(&[CatalogChunk]) -> Result<()>,
) -> Result<WrittenArchive> {
    let (path, archive): (_, &File) = (file.temp_path().to_owned(), file.file());
    let writer = ArchiveWriter::new(archive, &path, options.compression, options.padding)?;
    let link: &Link<'_> = &|base, facts| base.link_to(&path, facts);
    let written = write_with(options, writer, Some((archive, &path)), link, catalog)?;
    if written.is_link {
        file.reopen()?;
    }
    Ok(written)
}

/// Same as [`write`], into segments; `path` is that of the index, for messages. An archive that is that of the base has
/// no segment of its own.
pub fn write_segments(
    options: &PipelineOptions<'_>,
    path: &Path,
    files: SegmentFiles<'_>,
    catalog: &mut dyn FnMut(&[CatalogChunk]) -> Result<()>,
) -> Result<WrittenArchive> {
    let writer = ArchiveWriter::in_segments(files, path, options.compression)?;
    write_with(options, writer, None, &|base, facts| base.is_described_by(facts), catalog)
}

/// Makes the archive of the base that of a run with these facts, if it may be; returns whether it did.
type Link<'a> = dyn Fn(&Base<'_>, &Facts) -> bool + Sync + 'a;

/// Writes an archive, in the whole layout into the file `whole`.
fn write_with(
    options: &PipelineOptions<'_>,
    writer: ArchiveWriter<'_>,
    whole: Option<(&File, &Path)>,
    link: &Link<'_>,
    catalog: &mut dyn FnMut(&[CatalogChunk]) -> Result<()>,
) -> Result<WrittenArchive> {
    let threads = thread_count(options);
    let state = PipelineState::new(threads, options.cancel, options.observer, options.base);
    // Before anything is synced or listed: what changes from now on may be missed, and is read again by the next run.
    let read_started = options.clock.now();
    let names = OwnerNames::new();
    let (copy_sender, copies) = bounded(COPIES_PER_THREAD * threads);
    let base_bytes = BaseBytes::new(options.base, options.padding, copy_sender);
    let (plan_sender, plans) = bounded(2 * threads);
    let (output_sender, outputs) = unbounded();
    let (record_sender, records) = bounded(2);
    let results = thread::scope(|scope| {
        let (state, names) = (&state, &names);
        let walker = spawn(scope, state, "walk", move || walk_source(options, state, names, read_started, plan_sender));
        for thread in 0..threads {
            let (plans, output) = (plans.clone(), output_sender.clone());
            let codec = (options.compression, options.padding);
            spawn(scope, state, "encode", move || worker::run_worker(state, names, codec, &plans, &output));
            if let (0..MAX_COPYING, Some(base), Some((archive, path)), copies) =
                (thread, options.base, whole, copies.clone())
            {
                spawn(scope, state, "copy", move || copy_chunks(state, base, archive, path, &copies));
            }
        }
        // Only the threads hold these ends, so that each side detects when the other one ends.
        drop((plans, output_sender, copies));
        let parts = (writer, base_bytes, record_sender, link);
        let assembler = spawn(scope, state, "write", move || assemble(options, state, read_started, parts, &outputs));
        pass_records(options, state, records, catalog);
        (walker.and_then(join), assembler.and_then(join))
    });
    state.take_failure().map_or(Ok(()), Err)?;
    match results {
        (Some(summary), Some(assembled)) => conclude(options, &state, assembled, &summary),
        _ => Err(Error::failed("the backup ended early for an unknown reason")),
    }
}

fn thread_count(options: &PipelineOptions<'_>) -> usize {
    let affordable = MAX_ENCODER_BYTES.checked_div(Encoder::memory_bytes(options.compression)).unwrap_or(u64::MAX);
    options.threads.min(usize::try_from(affordable).unwrap_or(usize::MAX)).max(1)
}

/// Starts a thread for one part of the work. Its error, or its panic, stops the pipeline.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    state: &'scope PipelineState<'_>,
    name: &str,
    part: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, Option<T>>> {
    let guarded = move || match catch_unwind(AssertUnwindSafe(part)) {
        Ok(Ok(value)) => Some(value),
        Ok(Err(error)) => {
            state.stop(error);
            None
        }
        Err(_) => {
            // The panic hook has reported the panic itself. The data of the thread is not used any more.
            state.stop(Error::failed("a thread of the backup panicked").hint("this is a bug: please report it"));
            None
        }
    };
    match thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, guarded) {
        Ok(handle) => Some(handle),
        Err(e) => {
            state.stop(Error::no_thread(e));
            None
        }
    }
}

fn join<T>(handle: ScopedJoinHandle<'_, Option<T>>) -> Option<T> {
    handle.join().ok().flatten()
}

/// Writes the trailer, unless the file of the base has become the archive.
fn conclude(
    options: &PipelineOptions<'_>,
    state: &PipelineState<'_>,
    assembled: Assembled<'_>,
    summary: &WalkSummary,
) -> Result<WrittenArchive> {
    match assembled {
        Assembled::Written(writer, shared, counts) => {
            let finished = writer.finish(&facts(options, state, &counts))?;
            Ok(WrittenArchive { shared, ..describe(options, state, finished, &counts, summary) })
        }
        Assembled::Unchanged(finished, counts) => {
            Ok(WrittenArchive { is_link: true, ..describe(options, state, finished, &counts, summary) })
        }
    }
}

/// Writes chunks into the file until the workers have ended.
fn assemble<'f>(
    options: &PipelineOptions<'_>,
    state: &PipelineState<'_>,
    read_started: Timestamp,
    (writer, base_bytes, records, link): (ArchiveWriter<'f>, BaseBytes<'_>, Sender<Vec<CatalogChunk>>, &Link<'_>),
    outputs: &Receiver<PlanOutput>,
) -> Result<Assembled<'f>> {
    let mut assembler = Assembler::start(state, writer, records, (options.comment, base_bytes), read_started)?;
    assembler.assemble(outputs)?;
    if state.is_stopped() {
        return Err(Error::new(ErrorKind::Interrupted, "the backup was ended early"));
    }
    assembler.finish(&|base, counts| link(base, &facts(options, state, counts)))
}

fn walk_source(
    options: &PipelineOptions<'_>,
    state: &PipelineState<'_>,
    names: &OwnerNames,
    read_started: Timestamp,
    plans: Sender<Plan>,
) -> Result<WalkSummary> {
    let walk_options = WalkOptions {
        root: options.source,
        root_name: options.root_name,
        excludes: options.excludes,
        patterns: options.patterns,
        own_paths: options.own_paths,
        syncs: true,
    };
    let visit = |base: Option<BaseCursor>| {
        let parts = (plans, base);
        let mut planner = Planner::new(state, options, names, read_started, parts);
        let summary = walk(&walk_options, &mut |entry| planner.visit(entry), &mut |problem| state.problem(problem))?;
        planner.finish();
        Ok(summary)
    };
    let Some(base) = state.base else { return visit(None) };
    thread::scope(|scope| {
        let (pages, received) = bounded(2);
        spawn(scope, state, "base", move || read_pages(base, &pages));
        visit(Some(BaseCursor::new(received)))
    })
}

/// Passes records to the catalog and reports progress, until the writer has ended. Owns the receiving end, so that the
/// writer does not wait for a catalog that failed.
fn pass_records(
    options: &PipelineOptions<'_>,
    state: &PipelineState<'_>,
    records: Receiver<Vec<CatalogChunk>>,
    catalog: &mut dyn FnMut(&[CatalogChunk]) -> Result<()>,
) {
    let started = options.clock.monotonic();
    let mut reported_at = started;
    loop {
        match records.recv_timeout(PROGRESS_INTERVAL) {
            Ok(batch) => {
                if let Err(error) = catalog(&batch) {
                    state.stop(error);
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = options.clock.monotonic();
        if now.saturating_sub(reported_at) >= PROGRESS_INTERVAL {
            reported_at = now;
            options.observer.progress(&progress(state, now.saturating_sub(started)));
        }
    }
}

fn progress(state: &PipelineState<'_>, elapsed: Duration) -> Progress {
    Progress {
        members: state.members.load(Ordering::Relaxed),
        bytes: state.bytes.load(Ordering::Relaxed),
        elapsed,
        ..Progress::default()
    }
}

/// Returns what the trailer says. To be called when all members were read.
fn facts(options: &PipelineOptions<'_>, state: &PipelineState<'_>, counts: &MemberCounts) -> Facts {
    let (problems, losses) = state.problem_counts();
    Facts {
        run: options.run,
        outcome: if losses == 0 { "succeeded" } else { "incomplete" }.to_owned(),
        members: counts.extent.members,
        files: counts.extent.files,
        folders: counts.folders,
        content_bytes: counts.extent.content_bytes,
        problems,
        losses,
    }
}

/// Returns the result for a finished archive.
fn describe(
    options: &PipelineOptions<'_>,
    state: &PipelineState<'_>,
    finished: Finished,
    counts: &MemberCounts,
    summary: &WalkSummary,
) -> WrittenArchive {
    let problems = state.take_problems();
    let mut notes = notes(summary);
    if let Some(base) = state.base {
        notes.extend(base.notes(&state.reads.counts(), summary));
    }
    notes.iter().for_each(|note| options.observer.note(note));
    WrittenArchive {
        extent: counts.extent,
        folders: counts.folders,
        problems: problems.list,
        problems_total: problems.total,
        losses: problems.losses,
        silent_changes: problems.silent_changes,
        notes,
        chunks: finished.chunks,
        size: finished.size,
        digest: finished.digest,
        in_segments: finished.in_segments,
        is_link: false,
        shared: Vec::new(),
        reuse: state.base.map(|_| state.reads.counts()),
    }
}

fn notes(summary: &WalkSummary) -> Vec<String> {
    let mut notes = Vec::new();
    for path in &summary.own_paths_skipped {
        notes.push(format!("left out {}: it belongs to this program", path.display()));
    }
    match summary.sockets {
        0 => {}
        1 => notes.push("left out a socket: archives hold none".to_owned()),
        sockets => notes.push(format!("left out {sockets} sockets: archives hold none")),
    }
    for pattern in &summary.unmatched_patterns {
        notes.push(format!("the exclude pattern {pattern} matched nothing"));
    }
    notes
}

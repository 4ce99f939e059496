//! From a source to the bytes of an archive: one thread walks, several read, check, hash and encode a chunk each, one
//! puts the chunks into the file in order, and the calling thread hands their records to the catalog.
//!
//! Memory is bounded by a budget of bytes under way, whatever the number or size of files.

mod assemble;
mod flow;
mod large;
mod links;
mod plan;
mod read;
mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use self::assemble::{Assembler, Counts};
use self::flow::Flow;
use self::plan::{Plan, Planner};
use self::work::Done;
use crate::archive::codec::Encoder;
use crate::archive::trailer::Facts;
use crate::archive::writer::{ArchiveWriter, Finished};
use crate::cancel::CancelToken;
use crate::chunk::CatalogChunk;
use crate::clock::Clock;
use crate::durable::PendingFile;
use crate::error::{Error, ErrorKind, Result};
use crate::member::{Extent, MemberPath};
use crate::progress::{Observer, Problem, Progress};
use crate::schedule::{Compression, Excludes};
use crate::source::{OwnerNames, WalkOptions, WalkSummary, walk};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Memory of all encoders together. High levels take so much each that fewer threads are used than were asked for.
const ENCODER_BYTES: u64 = 256 << 20;

/// What goes into an archive, and how.
#[derive(Clone, Copy)]
pub struct PipelineOptions<'a> {
    /// The source: absolute and resolved. A root that is a symbolic link is followed.
    pub source: &'a Path,
    /// What the root is called in the archive: the source's last component.
    pub root_name: &'a MemberPath,
    /// The schedule's exclusions.
    pub excludes: &'a Excludes,
    /// Lines of the exclude files, already read.
    pub patterns: &'a [String],
    /// The home's live database, archives and logs: left out, counted, noted.
    pub own_paths: &'a [PathBuf],
    /// Codec and level.
    pub compression: Compression,
    /// Threads that read and encode; at least one is used.
    pub threads: usize,
    /// JSON for the pax global header.
    pub comment: &'a str,
    /// Number of the run, for the trailer.
    pub run: i64,
    /// Where times come from.
    pub clock: &'a dyn Clock,
    /// Who is told of progress, problems and notes.
    pub observer: &'a dyn Observer,
    /// Ends the work when it becomes true; looked at for every member and every piece of a large file.
    pub cancel: &'a CancelToken,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenArchive {
    /// How much the archive holds.
    pub extent: Extent,
    /// Folders among its members.
    pub folders: u64,
    /// Problems with single paths, by path; at most 10,000.
    pub problems: Vec<Problem>,
    /// How many problems there were.
    pub problems_total: u64,
    /// How many of them mean missing or doubtful data: the archive is incomplete if any does.
    pub losses: u64,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// Chunks in the archive file, those of the global header and the end marks counted.
    pub chunks: u64,
    /// Bytes in the archive file.
    pub size: u64,
    /// The archive digest, see [`crate::archive::writer::ArchiveDigest`].
    pub digest: [u8; 32],
}

/// Writes an archive of the source into `file`, which is empty and is not synced here. `catalog` is called on the
/// calling thread with batches of chunk records, all chunks of the file, in order of sequence, but for those with the
/// header of a file over 4 MiB: they come when the file's digest is known, after its other chunks.
///
/// Errors: `NotFound` for a missing source; `Interrupted` when cancelled; `DiskFull`; whatever `catalog` returns.
/// Trouble with single paths is no error (I9).
pub fn write(
    job: &PipelineOptions<'_>,
    file: &mut PendingFile,
    catalog: &mut dyn FnMut(&[CatalogChunk]) -> Result<()>,
) -> Result<WrittenArchive> {
    let threads = thread_count(job);
    let flow = Flow::new(threads, job.cancel, job.observer);
    let names = OwnerNames::new();
    let path = file.temp_path().to_owned();
    let writer = ArchiveWriter::new(file.file(), &path, job.compression)?;
    let (plan_sender, plans) = bounded(2 * threads);
    let (done_sender, done) = unbounded();
    let (record_sender, records) = bounded(2);
    let finished = thread::scope(|scope| {
        let (flow, names) = (&flow, &names);
        let walker = spawn(scope, flow, "walk", move || walk_source(job, flow, names, plan_sender));
        for _ in 0..threads {
            let (plans, done) = (plans.clone(), done_sender.clone());
            spawn(scope, flow, "encode", move || work::work(flow, names, job.compression, &plans, &done));
        }
        // Only the threads hold these ends, so that each side notices when the other is gone.
        drop((plans, done_sender));
        let assembler = spawn(scope, flow, "write", move || assemble(job, flow, writer, &done, record_sender));
        hand_over(job, flow, records, catalog);
        (walker.and_then(join), assembler.and_then(join))
    });
    if let Some(error) = flow.failure() {
        return Err(error);
    }
    match finished {
        (Some(summary), Some((writer, counts))) => seal(job, &flow, writer, counts, &summary),
        _ => Err(Error::failed("the backup ended early for a reason unknown")),
    }
}

fn thread_count(job: &PipelineOptions<'_>) -> usize {
    let affordable = ENCODER_BYTES.checked_div(Encoder::memory(job.compression)).unwrap_or(u64::MAX);
    job.threads.min(usize::try_from(affordable).unwrap_or(usize::MAX)).max(1)
}

/// Starts a thread for one part of the work. Its error, or its panic, ends the pipeline.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    flow: &'scope Flow<'_>,
    name: &str,
    part: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, Option<T>>> {
    let guarded = move || match catch_unwind(AssertUnwindSafe(part)) {
        Ok(Ok(value)) => Some(value),
        Ok(Err(error)) => {
            flow.stop(error);
            None
        }
        Err(_) => {
            // The panic itself has been told by the panic hook. What it left behind is not used any more.
            flow.stop(Error::failed("a thread of the backup panicked").hint("this is a bug: please report it"));
            None
        }
    };
    match thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, guarded) {
        Ok(handle) => Some(handle),
        Err(e) => {
            flow.stop(Error::failed("cannot start a thread").because(e).hint("raise the limit of processes"));
            None
        }
    }
}

fn join<T>(handle: ScopedJoinHandle<'_, Option<T>>) -> Option<T> {
    handle.join().ok().flatten()
}

/// Puts chunks into the file until the workers are done.
fn assemble<'f>(
    job: &PipelineOptions<'_>,
    flow: &Flow<'_>,
    writer: ArchiveWriter<'f>,
    done: &Receiver<Done>,
    records: Sender<Vec<CatalogChunk>>,
) -> Result<(ArchiveWriter<'f>, Counts)> {
    let mut assembler = Assembler::start(flow, writer, records, job.comment, job.clock.now())?;
    assembler.assemble(done)?;
    if flow.is_stopped() {
        return Err(Error::new(ErrorKind::Interrupted, "the backup was ended early"));
    }
    assembler.finish(job.clock.now())
}

fn walk_source(
    job: &PipelineOptions<'_>,
    flow: &Flow<'_>,
    names: &OwnerNames,
    plans: Sender<Plan>,
) -> Result<WalkSummary> {
    let options = WalkOptions {
        root: job.source,
        root_name: job.root_name,
        excludes: job.excludes,
        patterns: job.patterns,
        own_paths: job.own_paths,
    };
    let mut planner = Planner::new(flow, job.clock, names, job.compression, plans);
    let summary = walk(&options, &mut |found| planner.visit(found), &mut |problem| flow.problem(problem))?;
    planner.finish();
    Ok(summary)
}

/// Hands records to the catalog and tells progress, until the writer is done. Takes the receiving end, so that the
/// writer does not wait for a catalog that failed.
fn hand_over(
    job: &PipelineOptions<'_>,
    flow: &Flow<'_>,
    records: Receiver<Vec<CatalogChunk>>,
    catalog: &mut dyn FnMut(&[CatalogChunk]) -> Result<()>,
) {
    let started = job.clock.monotonic();
    let mut told = started;
    loop {
        match records.recv_timeout(PROGRESS_INTERVAL) {
            Ok(batch) => {
                if let Err(error) = catalog(&batch) {
                    flow.stop(error);
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = job.clock.monotonic();
        if now.saturating_sub(told) >= PROGRESS_INTERVAL {
            told = now;
            job.observer.progress(&progress(flow, now.saturating_sub(started)));
        }
    }
}

fn progress(flow: &Flow<'_>, elapsed: Duration) -> Progress {
    Progress {
        members: flow.members.load(Ordering::Relaxed),
        bytes: flow.bytes.load(Ordering::Relaxed),
        elapsed,
        ..Progress::default()
    }
}

/// Writes the trailer and sums up.
fn seal(
    job: &PipelineOptions<'_>,
    flow: &Flow<'_>,
    writer: ArchiveWriter<'_>,
    counts: Counts,
    summary: &WalkSummary,
) -> Result<WrittenArchive> {
    let problems = flow.take_problems();
    let facts = Facts {
        run: job.run,
        outcome: if problems.losses == 0 { "succeeded" } else { "incomplete" }.to_owned(),
        members: counts.extent.members,
        files: counts.extent.files,
        folders: counts.folders,
        content_bytes: counts.extent.content_bytes,
        problems: problems.total,
        losses: problems.losses,
    };
    let Finished { size, chunks, digest } = writer.finish(&facts)?;
    let notes = notes(summary);
    notes.iter().for_each(|note| job.observer.note(note));
    Ok(WrittenArchive {
        extent: counts.extent,
        folders: counts.folders,
        problems: problems.list,
        problems_total: problems.total,
        losses: problems.losses,
        notes,
        chunks,
        size,
        digest,
    })
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
    notes
}

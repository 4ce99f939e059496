//! One claimed run, from the claim to its end: source into archive, archive into place, proof, catalog (§5).
//!
//! The order is the promise (I1): a synced file before `sealed`, `sealed` before the rename, the rename and the
//! folder's sync before the proof, the proof before `complete`. Whatever stops in between, recovery knows from the
//! row what is on disk.

pub mod pipeline;
mod preview;
mod recovery;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::archive::place::{self, PendingFile, SealedFile};
use crate::archive::proof;
use crate::archive_folder;
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::member::MemberPath;
use crate::report::{Observer, Problem, Progress};
use crate::store::{
    Claim, Completed, Ending, Intent, Requeue, RunCounts, RunState, ScheduleRow, Sealed, Store, Unended, WorkerRow,
};
use crate::worker::Worker;
use pipeline::Written;
pub use preview::{Listing, free_bytes, list_source, measure, visit_source};
pub use recovery::{Recovered, recover};

/// Pause before writing a run's end again, where the database could not take it.
const END_RETRY: Duration = Duration::from_secs(30);
/// Least time between two looks at a request to cancel, and between two writes of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Chunks read from the catalog at a time for the proof.
const PAGE: u32 = 1_000;

/// Asks running work to stop. Shared by who asks and who works.
#[derive(Debug, Default)]
pub struct Cancel {
    requested: AtomicBool,
    draining: AtomicBool,
    wake: (Mutex<()>, Condvar),
}

impl Cancel {
    /// Asks for the run to end `cancelled`.
    pub fn cancel(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.wake.1.notify_all();
    }

    /// Asks for the run to go back into the queue, since the process stops (I10).
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.cancel();
    }

    /// Says whether anything was asked.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Waits for `pause` or until something is asked.
    fn wait(&self, pause: Duration) {
        let guard = self.wake.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !self.is_requested() {
            // The guard only serves the condition variable; what it protects is the flag.
            drop(self.wake.1.wait_timeout(guard, pause));
        }
    }
}

/// Who carries runs out: one process, with all it needs. Clones share everything.
#[derive(Clone)]
pub struct Runner {
    /// Where everything lies.
    pub home: Arc<Home>,
    /// The database.
    pub store: Store,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// This process.
    pub worker: Arc<Worker>,
    /// Its row.
    pub row: Arc<WorkerRow>,
    /// Encoders a run.
    pub threads: usize,
}

/// How one run is carried out.
pub struct Conduct<'a> {
    /// Where a stop is asked for.
    pub cancel: &'a Cancel,
    /// Who is told.
    pub observer: &'a dyn Observer,
    /// Somebody waits for it at a terminal: no retries.
    pub foreground: bool,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// Number of the run.
    pub run: i64,
    /// Where it stands now; `Queued` if it will be tried again.
    pub state: RunState,
    /// Why, unless it succeeded.
    pub error: Option<Error>,
}

/// Why a run makes no archive.
struct Failure {
    error: Error,
    /// Another try may succeed: interruptions and our own I/O, not trouble with the source.
    retry: bool,
}

impl Failure {
    fn own(error: Error) -> Self {
        Failure { error, retry: true }
    }

    fn source(error: Error) -> Self {
        Failure { error, retry: false }
    }
}

/// A sealed archive as the last steps need it.
pub(crate) struct Placing<'a> {
    pub file_name: &'a str,
    pub size: u64,
    pub digest: [u8; 32],
    pub incomplete: bool,
}

impl Runner {
    /// Carries a claimed run out to its end, whatever happens on the way.
    ///
    /// Errors: only what keeps the end itself from being written: `Fenced` where another worker took the run over, or
    /// the database's own trouble once a stop was asked for.
    pub fn execute(&self, claim: Claim, intent: &Intent, conduct: &Conduct<'_>) -> Result<Ended> {
        let run = claim.run();
        let monitor = Monitor::new(self, run, conduct);
        let ended = match self.make_archive(&claim, intent, conduct, &monitor) {
            Ok((schedule, made)) => {
                monitor.phase("proving");
                let placing = Placing {
                    file_name: &intent.file_name,
                    size: made.written.size,
                    digest: made.written.digest,
                    incomplete: made.written.losses > 0,
                };
                match self.put_in_place(&claim, made.file, &placing) {
                    Ok(()) => self.finish_sealed(claim, &placing, &schedule, conduct),
                    Err(error) => self.end_without(claim, intent, Failure::own(error), conduct),
                }
            }
            Err(failure) => self.end_without(claim, intent, failure, conduct),
        };
        let _ = self.worker.forget_run(run);
        ended
    }

    fn make_archive(
        &self,
        claim: &Claim,
        intent: &Intent,
        conduct: &Conduct<'_>,
        monitor: &Monitor<'_>,
    ) -> std::result::Result<(ScheduleRow, Made), Failure> {
        let row = self.store.schedule(claim.schedule()).map_err(Failure::source)?;
        archive_folder::check(&self.home, &self.store).map_err(Failure::source)?;
        let source = Source::find(&self.home, &row).map_err(Failure::source)?;
        let scan_started = self.clock.now();
        let comment = self.comment(claim, &row, scan_started).map_err(Failure::source)?;
        let folder = self.home.backups().join(row.schedule.name.as_str());
        place::make_folder(&folder, self.home.folder_mode()).map_err(Failure::own)?;
        let temporary = self.home.backups().join(&intent.temporary_name);
        let mut pending = PendingFile::create_named(&temporary, self.home.archive_mode()).map_err(Failure::own)?;
        let never = self.home.never_archived();
        let job = pipeline::Job {
            source: &source.root,
            root_name: &source.root_name,
            excludes: &row.schedule.excludes,
            patterns: &source.patterns,
            never: &never,
            compression: row.schedule.compression,
            threads: self.threads,
            comment: &comment,
            run: claim.run(),
            clock: &*self.clock,
            observer: monitor,
            cancel: &conduct.cancel.requested,
        };
        let written = pipeline::write(&job, &mut pending, &mut |chunks| self.store.add_chunks(claim, chunks)).map_err(
            |error| match error.kind() {
                ErrorKind::NotFound | ErrorKind::Usage => Failure::source(error),
                _ => Failure::own(error),
            },
        )?;
        self.record(claim, &written).map_err(Failure::own)?;
        self.refuse_emptied(&row, &source.root, &written).map_err(Failure::source)?;
        let file = pending.seal().map_err(Failure::own)?;
        let sealed = Sealed {
            size: written.size,
            digest: written.digest,
            device: file.device(),
            inode: file.inode(),
            source_root: source.root.as_os_str().as_bytes().to_owned(),
            scan_started,
            members: written.members,
            files: written.files,
            content_bytes: written.content_bytes,
            incomplete: written.losses > 0,
        };
        self.store.seal(claim, &sealed).map_err(Failure::own)?;
        Ok((row, Made { file, written }))
    }

    fn record(&self, claim: &Claim, written: &Written) -> Result<()> {
        let counts = RunCounts {
            members: written.members,
            files: written.files,
            content_bytes: written.content_bytes,
            archive_bytes: written.size,
            problems: written.problems_total,
            losses: written.losses,
            notes: written.notes.clone(),
        };
        self.store.record_counts(claim, &counts, &written.problems)
    }

    /// A source that is empty where it was not is a disk that is not mounted, until somebody says otherwise (I9).
    fn refuse_emptied(&self, row: &ScheduleRow, root: &Path, written: &Written) -> Result<()> {
        if written.members > 1 || written.files > 0 || row.accepted {
            return Ok(());
        }
        match self.store.newest_good(row.id)? {
            Some(last) if last.members > 1 => Err(Error::failed(format!(
                "the source {} is empty, and its last archive held {} members",
                root.display(),
                last.members
            ))
            .hint(format!("mount it; if it is meant to be empty, run `backup-manager accept {}`", row.schedule.name))),
            _ => Ok(()),
        }
    }

    fn put_in_place(&self, claim: &Claim, file: SealedFile, placing: &Placing<'_>) -> Result<()> {
        // The temporary goes with `file` if the claim is lost; the final name is never touched without it (I4).
        self.store.check_claim(claim)?;
        file.place(&self.home.backups().join(placing.file_name), false).map(drop)
    }

    /// Proves a sealed archive that is in place, makes it visible and ends the run. What is sealed always finishes
    /// (I10).
    pub(crate) fn finish_sealed(
        &self,
        claim: Claim,
        placing: &Placing<'_>,
        row: &ScheduleRow,
        conduct: &Conduct<'_>,
    ) -> Result<Ended> {
        let run = claim.run();
        let proven = if claim.verify() { self.prove(&claim, placing).map(Some) } else { Ok(None) };
        let (verified_at, damaged) = match proven {
            Ok(at) => (at, None),
            Err(error) if error.kind() == ErrorKind::Damage => (None, Some(error)),
            // Sealed and in place, and nobody works on it any more: recovery proves it again.
            Err(error) => return Err(error),
        };
        let completed = Completed {
            incomplete: placing.incomplete,
            verified_at,
            suspect: false,
            damaged: damaged.as_ref().map(|error| format!("the archive did not read back as written: {error}")),
        };
        let state = self.write_end(claim, conduct, |claim| self.store.complete(claim, &completed, self.clock.now()))?;
        let names = std::slice::from_ref(row);
        match archive_folder::refresh_stable_names(&self.home, &self.store, names, self.clock.now()) {
            Ok(notes) => notes.iter().for_each(|note| conduct.observer.note(note)),
            Err(error) => log::warn!("run @{run}: the stable name was not renewed: {error}"),
        }
        Ok(Ended { run, state, error: damaged })
    }

    fn prove(&self, claim: &Claim, placing: &Placing<'_>) -> Result<Timestamp> {
        let path = self.home.backups().join(placing.file_name);
        let run = claim.run();
        let mut page = Vec::new().into_iter();
        let mut next = 0;
        let mut chunks = std::iter::from_fn(|| {
            if page.len() == 0 {
                match self.store.chunks(run, next, PAGE) {
                    Ok(rows) => page = rows.into_iter(),
                    Err(error) => return Some(Err(error)),
                }
            }
            let chunk = page.next()?;
            next = chunk.sequence + 1;
            Some(Ok(proof::ExpectedChunk {
                sequence: chunk.sequence,
                offset: chunk.offset,
                stored_length: chunk.stored_length,
                stored_digest: chunk.stored_digest,
                content_length: chunk.content_length,
                content_digest: Some(chunk.content_digest),
            }))
        });
        // What is sealed always finishes (I10): nothing cancels the proof.
        let never = AtomicBool::new(false);
        proof::prove(&path, &mut chunks, &placing.digest, placing.size, self.threads, &never)?;
        let now = self.clock.now();
        self.store.mark_proved(claim, now)?;
        Ok(now)
    }

    /// Ends a run that made no archive: its temporary file and catalog rows first, then the row.
    fn end_without(&self, claim: Claim, intent: &Intent, failure: Failure, conduct: &Conduct<'_>) -> Result<Ended> {
        let run = claim.run();
        if failure.error.kind() == ErrorKind::Fenced {
            return Err(failure.error);
        }
        // Gone already unless a step failed after the file was sealed.
        if let Err(error) = place::remove(&self.home.backups().join(&intent.temporary_name)) {
            log::warn!("run @{run}: its temporary file stays behind: {error}");
        }
        let interrupted = failure.error.kind() == ErrorKind::Interrupted;
        let drained = interrupted && conduct.cancel.draining.load(Ordering::SeqCst);
        let reason = failure.error.to_string();
        self.write_end(claim, conduct, |claim| {
            if let Err(error) = self.store.discard_chunks(&claim) {
                return Err(Box::new(Unended { claim, error }));
            }
            let now = self.clock.now();
            if drained && !conduct.foreground {
                self.store.requeue(claim, Requeue::Refund, "the service was stopped", now).map(drop)
            } else if interrupted {
                self.store.end_without_archive(claim, RunState::Cancelled, "cancelled on request", now)
            } else if failure.retry && !conduct.foreground {
                self.store.requeue(claim, Requeue::Retry, &reason, now).map(drop)
            } else {
                self.store.end_without_archive(claim, RunState::Failed, &reason, now)
            }
        })?;
        let state = self.store.run(run)?.state;
        Ok(Ended { run, state, error: Some(failure.error) })
    }

    /// Writes a run's end again and again until the database takes it, or a stop is asked for; recovery ends it then.
    fn write_end<T>(&self, claim: Claim, conduct: &Conduct<'_>, write: impl Fn(Claim) -> Ending<T>) -> Result<T> {
        let mut claim = claim;
        let mut waited = false;
        loop {
            let Unended { claim: back, error } = match write(claim) {
                Ok(done) => {
                    if waited {
                        let _ = self.worker.update(|activity| activity.trouble = None);
                    }
                    return Ok(done);
                }
                Err(unended) => *unended,
            };
            if error.kind() == ErrorKind::Fenced || (waited && conduct.cancel.is_requested()) {
                return Err(error);
            }
            log::error!("run @{}: its end cannot be written, trying again every 30 s: {error}", back.run());
            conduct.observer.note(&format!("the end of run @{} cannot be written: {error}", back.run()));
            let _ = self.worker.update(|activity| activity.trouble = Some(error.to_string()));
            conduct.cancel.wait(END_RETRY);
            waited = true;
            claim = back;
        }
    }

    /// Returns what the pax global header says of the run: all that is needed to make the schedule anew.
    fn comment(&self, claim: &Claim, row: &ScheduleRow, started: Timestamp) -> Result<String> {
        let comment = serde_json::json!({
            "backup_manager": env!("CARGO_PKG_VERSION"),
            "database": self.store.identity(),
            "schedule": row.schedule,
            "run": claim.run(),
            "scheduled_for": claim.scheduled_for().map(|at| at.rfc3339(&chrono::Utc)),
            "started": started.rfc3339(&chrono::Utc),
            "source": self.home.source_path(&row.schedule.source).to_string_lossy(),
        });
        serde_json::to_string(&comment).map_err(|e| Error::failed("cannot describe the schedule").because(e))
    }
}

struct Made {
    file: SealedFile,
    written: Written,
}

/// A schedule's source, resolved.
pub(crate) struct Source {
    pub root: PathBuf,
    pub root_name: MemberPath,
    pub patterns: Vec<String>,
}

impl Source {
    /// Resolves the source of a schedule and reads its exclude files.
    ///
    /// Errors: `Failed` where the source is missing, `Usage` where an exclude file cannot be read.
    pub(crate) fn find(home: &Home, row: &ScheduleRow) -> Result<Source> {
        let path = home.source_path(&row.schedule.source);
        let root = fs::canonicalize(&path).map_err(|e| {
            Error::failed(format!("the source {} cannot be opened", path.display()))
                .because(e)
                .hint(format!("mount it, or name another with `backup-manager edit {} --path PATH`", row.schedule.name))
        })?;
        // The name as it was written, even where that is a link; `/` and `..` have none.
        let name = path.file_name().or(root.file_name()).map_or(&b"root"[..], |name| name.as_bytes());
        let root_name = MemberPath::parse(name)?;
        let mut patterns = Vec::new();
        for file in &row.schedule.excludes.files {
            let path = home.source_path(file.as_bytes());
            let text = fs::read_to_string(&path)
                .map_err(|e| Error::usage(format!("the exclude file {} cannot be read", path.display())).because(e))?;
            patterns.extend(
                text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).map(String::from),
            );
        }
        Ok(Source { root, root_name, patterns })
    }
}

/// Passes progress on to the worker file and the observer, and looks for requests to cancel, both now and then.
struct Monitor<'a> {
    runner: &'a Runner,
    run: i64,
    conduct: &'a Conduct<'a>,
    last: Mutex<Option<Duration>>,
}

impl<'a> Monitor<'a> {
    fn new(runner: &'a Runner, run: i64, conduct: &'a Conduct<'a>) -> Self {
        let now = runner.clock.now().millis();
        let _ = runner.worker.update_run(run, |line| {
            line.started_at_ms = now;
            line.moved_at_ms = now;
        });
        let monitor = Monitor { runner, run, conduct, last: Mutex::new(None) };
        monitor.phase("writing");
        monitor
    }

    fn phase(&self, phase: &str) {
        let _ = self.runner.worker.update_run(self.run, |line| line.phase = phase.to_owned());
    }

    fn is_time(&self) -> bool {
        let now = self.runner.clock.monotonic();
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let due = last.is_none_or(|at| now.saturating_sub(at) >= PROGRESS_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

impl Observer for Monitor<'_> {
    fn progress(&self, progress: &Progress) {
        self.conduct.observer.progress(progress);
        if !self.is_time() {
            return;
        }
        let now = self.runner.clock.now().millis();
        let _ = self.runner.worker.update_run(self.run, |line| {
            if (line.members, line.bytes) != (progress.members, progress.bytes) {
                line.moved_at_ms = now;
            }
            (line.members, line.bytes) = (progress.members, progress.bytes);
            (line.members_total, line.bytes_total) = (progress.members_total, progress.bytes_total);
        });
        if self.runner.store.cancel_requested(self.run).unwrap_or(false) {
            self.conduct.cancel.cancel();
        }
    }

    fn problem(&self, problem: &Problem) {
        self.conduct.observer.problem(problem);
    }

    fn note(&self, text: &str) {
        self.conduct.observer.note(text);
    }
}

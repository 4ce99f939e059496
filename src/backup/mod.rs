//! One claimed run, from the claim to its end: source into archive, archive into place, proof, catalog (§5).
//!
//! The order is the promise (I1): a synced file before `sealed`, `sealed` before the rename, the rename and the
//! folder's sync before the proof, the proof before `complete`. Whatever stops in between, recovery knows from the
//! row what is on disk.

mod estimate;
mod monitor;
pub mod pipeline;
mod post_backup;
mod recover;
mod space;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::archive::check;
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::clock::{Clock, Timestamp};
use crate::durable::{self, PendingFile, SealedFile};
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::liveness::Worker;
use crate::source::SourceRoot;
use crate::store::{
    Claim, Completed, EndError, EndResult, Intent, Requeue, RunCounts, RunState, ScheduleRow, Sealed, Store, WorkerRow,
};
pub use estimate::{Estimate, estimate, free_bytes, list_source, visit_source};
use monitor::Monitor;
pub use monitor::RunContext;
use pipeline::WrittenArchive;
pub use recover::{OrphanedRun, RecoveryReport, recover, recover_run, remove_dead_workers, take_over_orphaned_runs};

/// Pause before writing a run's end again, where the database could not take it.
const END_RETRY: Duration = Duration::from_secs(30);

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

/// How a run ended.
#[derive(Debug)]
pub struct RunOutcome {
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
pub(crate) struct SealedArchive<'a> {
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
    pub fn execute(&self, claim: Claim, intent: &Intent, context: &RunContext<'_>) -> Result<RunOutcome> {
        let run = claim.run();
        let monitor = Monitor::new(self, run, context);
        let ended = match self.make_archive(&claim, intent, context, &monitor) {
            Ok((schedule, made)) => {
                monitor.phase("proving");
                let archive = SealedArchive {
                    file_name: &intent.file_name,
                    size: made.written.size,
                    digest: made.written.digest,
                    incomplete: made.written.losses > 0,
                };
                let sealed = (made.file.device(), made.file.inode());
                match self.put_in_place(&claim, made.file, &archive) {
                    Ok(()) => self.finish_sealed(claim, &archive, &schedule, context),
                    // Renamed, but the folder was not synced: the file is there, and recovery goes on from it.
                    Err(error) if self.is_in_place(intent, sealed) => Err(error),
                    Err(error) => self.end_without(claim, intent, Failure::own(error), context),
                }
            }
            Err(failure) => self.end_without(claim, intent, failure, context),
        };
        let _ = self.worker.forget_run(run);
        ended
    }

    fn make_archive(
        &self,
        claim: &Claim,
        intent: &Intent,
        context: &RunContext<'_>,
        monitor: &Monitor<'_>,
    ) -> std::result::Result<(ScheduleRow, Made), Failure> {
        let mut row = self.store.schedule(claim.schedule()).map_err(Failure::source)?;
        row.schedule.compression = intent.compression;
        archive_folder::check(&self.home, &self.store).map_err(Failure::source)?;
        let source = SourceRoot::find(&self.home, &row.schedule).map_err(Failure::source)?;
        let scan_started = self.clock.now();
        let comment = self.comment(claim, &row, scan_started).map_err(Failure::source)?;
        let folder = self.home.backups().join(row.schedule.name.as_str());
        durable::make_folder(&folder, self.home.folder_mode()).map_err(Failure::own)?;
        if let Err(error) = archive_folder::remove_orphaned_files(&self.home, &self.store, row.schedule.name.as_str()) {
            log::warn!("{}: what earlier attempts left behind stays: {error}", row.schedule.name);
        }
        monitor.phase("scanning");
        monitor.expect(self.expect(&row, &source).map_err(Failure::own)?);
        monitor.phase("writing");
        let temporary = self.home.backups().join(&intent.temporary_name);
        let mut pending = PendingFile::create_named(&temporary, self.home.archive_mode()).map_err(Failure::own)?;
        let own_paths = self.home.own_paths();
        let job = pipeline::PipelineOptions {
            source: &source.path,
            root_name: &source.name,
            excludes: &row.schedule.excludes,
            patterns: &source.patterns,
            own_paths: &own_paths,
            compression: row.schedule.compression,
            threads: self.threads,
            comment: &comment,
            run: claim.run(),
            clock: &*self.clock,
            observer: monitor,
            cancel: context.cancel,
        };
        let written = pipeline::write(&job, &mut pending, &mut |chunks| self.store.add_chunks(claim, chunks)).map_err(
            |error| match error.kind() {
                ErrorKind::NotFound | ErrorKind::Usage => Failure::source(error),
                _ => Failure::own(error),
            },
        )?;
        self.record(claim, &written).map_err(Failure::own)?;
        self.refuse_emptied(&row, &source.path, &written).map_err(Failure::source)?;
        let file = pending.seal().map_err(Failure::own)?;
        let sealed = Sealed {
            size: written.size,
            digest: written.digest,
            device: file.device(),
            inode: file.inode(),
            source_root: source.path.as_os_str().as_bytes().to_owned(),
            scan_started,
            extent: written.extent,
            incomplete: written.losses > 0,
        };
        self.store.seal(claim, &sealed).map_err(Failure::own)?;
        Ok((row, Made { file, written }))
    }

    fn record(&self, claim: &Claim, written: &WrittenArchive) -> Result<()> {
        let counts = RunCounts {
            extent: written.extent,
            archive_bytes: written.size,
            problems: written.problems_total,
            losses: written.losses,
            notes: written.notes.clone(),
        };
        self.store.record_counts(claim, &counts, &written.problems)
    }

    /// A source that is empty where it was not is a disk that is not mounted, until somebody says otherwise (I9).
    fn refuse_emptied(&self, row: &ScheduleRow, root: &Path, written: &WrittenArchive) -> Result<()> {
        if written.extent.members > 1 || written.extent.files > 0 || row.accepted {
            return Ok(());
        }
        match self.store.newest_good(row.id)? {
            Some(last) if last.extent.members > 1 => Err(Error::failed(format!(
                "the source {} is empty, and its last archive held {} members",
                root.display(),
                last.extent.members
            ))
            .hint(format!("mount it; if it is meant to be empty, run `backup-manager accept {}`", row.schedule.name))),
            _ => Ok(()),
        }
    }

    fn put_in_place(&self, claim: &Claim, file: SealedFile, archive: &SealedArchive<'_>) -> Result<()> {
        // The temporary goes with `file` if the claim is lost; the final name is never touched without it (I4).
        self.store.check_claim(claim)?;
        file.place(&self.home.backups().join(archive.file_name), false).map(drop)
    }

    /// Says whether the final name is that of the very file that was sealed.
    fn is_in_place(&self, intent: &Intent, (device, inode): (u64, u64)) -> bool {
        let found = self.home.backups().join(&intent.file_name).symlink_metadata();
        found.is_ok_and(|found| (found.dev(), found.ino()) == (device, inode))
    }

    /// Proves a sealed archive that is in place, makes it visible and ends the run. What is sealed always finishes
    /// (I10).
    pub(crate) fn finish_sealed(
        &self,
        claim: Claim,
        archive: &SealedArchive<'_>,
        row: &ScheduleRow,
        context: &RunContext<'_>,
    ) -> Result<RunOutcome> {
        let run = claim.run();
        let proven = if claim.verify() { self.prove(&claim, archive).map(Some) } else { Ok(None) };
        let (verified_at, damaged) = match proven {
            Ok(at) => (at, None),
            Err(error) if error.kind() == ErrorKind::Damage => (None, Some(error)),
            // Sealed and in place, and nobody works on it any more: recovery proves it again.
            Err(error) => return Err(error),
        };
        let completed = Completed {
            incomplete: archive.incomplete,
            verified_at,
            suspect: damaged.is_none() && self.is_sudden_change(run, row, context)?,
            damaged: damaged.as_ref().map(|error| format!("the archive did not read back as written: {error}")),
        };
        let state = self.write_end(claim, context, |claim| self.store.complete(claim, &completed, self.clock.now()))?;
        self.run_post_backup_steps(run, row, context);
        Ok(RunOutcome { run, state, error: damaged })
    }

    fn prove(&self, claim: &Claim, archive: &SealedArchive<'_>) -> Result<Timestamp> {
        let path = self.home.backups().join(archive.file_name);
        let run = claim.run();
        let mut chunks = self.store.archive_chunks(run);
        // What is sealed always finishes (I10): nothing cancels the proof.
        let never = CancelToken::new();
        check::prove(&path, &mut chunks, &archive.digest, archive.size, self.threads, &never)?;
        let now = self.clock.now();
        self.store.mark_verified(claim, now)?;
        Ok(now)
    }

    /// Ends a run that made no archive: its temporary file and catalog rows first, then the row.
    fn end_without(
        &self,
        claim: Claim,
        intent: &Intent,
        failure: Failure,
        context: &RunContext<'_>,
    ) -> Result<RunOutcome> {
        let run = claim.run();
        // By that name the heir of a lost run may be finishing it.
        match self.store.check_claim(&claim) {
            Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
            _ => {}
        }
        // Gone already unless removing it failed once.
        if let Err(error) = durable::remove(&self.home.backups().join(&intent.temporary_name)) {
            log::warn!("run @{run}: its temporary file stays behind: {error}");
        }
        let interrupted = failure.error.kind() == ErrorKind::Interrupted;
        let drained = interrupted && context.cancel.is_draining();
        let reason = failure.error.to_string();
        self.write_end(claim, context, |claim| {
            if let Err(error) = self.store.discard_chunks(&claim) {
                return Err(Box::new(EndError { claim, error }));
            }
            let now = self.clock.now();
            if drained && !context.is_foreground {
                self.store.requeue(claim, Requeue::Refund, "the service was stopped", now).map(drop)
            } else if interrupted {
                self.store.end_without_archive(claim, RunState::Cancelled, "cancelled on request", now)
            } else if failure.retry && !context.is_foreground {
                self.store.requeue(claim, Requeue::Retry, &reason, now).map(drop)
            } else {
                self.store.end_without_archive(claim, RunState::Failed, &reason, now)
            }
        })?;
        let state = self.store.run(run)?.state;
        Ok(RunOutcome { run, state, error: Some(failure.error) })
    }

    /// Writes a run's end again and again until the database takes it, or a stop is asked for; recovery ends it then.
    fn write_end<T>(&self, claim: Claim, context: &RunContext<'_>, write: impl Fn(Claim) -> EndResult<T>) -> Result<T> {
        let mut claim = claim;
        let mut waited = false;
        loop {
            let EndError { claim: back, error } = match write(claim) {
                Ok(done) => {
                    if waited {
                        let _ = self.worker.update(|heartbeat| heartbeat.trouble = None);
                    }
                    return Ok(done);
                }
                Err(unended) => *unended,
            };
            let is_lost = error.kind() == ErrorKind::Fenced || !self.store.is_in_place();
            if is_lost || (waited && context.cancel.is_cancelled()) {
                return Err(error);
            }
            log::error!("run @{}: its end cannot be written, trying again every 30 s: {error}", back.run());
            context.observer.note(&format!("the end of run @{} cannot be written: {error}", back.run()));
            let _ = self.worker.update(|heartbeat| heartbeat.trouble = Some(error.to_string()));
            context.cancel.wait(END_RETRY);
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
    written: WrittenArchive,
}

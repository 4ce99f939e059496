//! One claimed run, from the claim to its end.
//!
//! The steps lie in one file each: prepare, write and seal, complete (rename, verify, record), post-backup steps; and
//! the end of a run without an archive. Their order is promise I1: the file is synced before the row becomes `sealed`;
//! the row is `sealed` before the rename; the rename and the sync of the folder precede verification; verification
//! precedes `complete`. Wherever a process stops in between, recovery knows from the row what is on disk.

mod around;
mod base;
mod commands;
mod complete;
mod containers;
mod duties;
mod end;
mod estimate;
mod monitor;
pub mod pipeline;
mod post_backup;
mod prepare;
mod recover;
mod segments;
mod spool;
mod surrounded;
mod write;

use std::ops::Range;
use std::sync::Arc;

use crate::clock::{Clock, Timestamp};
use crate::durable::SealedFile;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::hooks::Starter;
use crate::liveness::Worker;
use crate::schedule::Layout;
use crate::store::{Claim, Intent, RunState, ScheduleRow, Store, WorkerRow};
use around::ReadRun;
pub use duties::{COMMAND_DUTIES, START_DUTIES, has_due_duties, next_duty, settle_duties};
pub use estimate::{Estimate, estimate, list_source, visit_source};
use monitor::Monitor;
pub use monitor::RunContext;
use pipeline::WrittenArchive;
pub use recover::{OrphanedRun, RecoveryReport, recover, recover_run, remove_dead_workers, take_over_orphaned_runs};
use surrounded::Surrounded;
use write::WrittenRun;

/// Executes the runs of one process, the worker. Clones share everything.
#[derive(Clone)]
pub struct Runner {
    /// Paths of the database, the archives and the logs.
    pub home: Arc<Home>,
    /// The database.
    pub store: Store,
    /// The source of all times.
    pub clock: Arc<dyn Clock>,
    /// The liveness lock and the heartbeat of this process.
    pub worker: Arc<Worker>,
    /// The row of this worker in the database.
    pub row: Arc<WorkerRow>,
    /// Encoder threads of one run.
    pub threads: usize,
    /// Starts the commands of runs.
    pub children: Starter,
}

/// How a run ended.
#[derive(Debug)]
pub struct RunOutcome {
    /// Number of the run.
    pub run: i64,
    /// The state after this attempt; `Queued` if the run will be tried again.
    pub state: RunState,
    /// The reason why the run failed, was cancelled or is retried.
    pub error: Option<Error>,
}

/// Why a run made no archive.
struct Failure {
    error: Error,
    next: AfterFailure,
}

/// What becomes of a run that made no archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterFailure {
    /// Another attempt may succeed: for interruptions and for I/O errors of this program.
    Retry,
    /// It has failed: for errors of the source and of commands.
    Fail,
    /// Its first command says that there is nothing to do.
    Skip,
}

impl Failure {
    fn retryable(error: Error) -> Self {
        Failure { error, next: AfterFailure::Retry }
    }

    fn permanent(error: Error) -> Self {
        Failure { error, next: AfterFailure::Fail }
    }

    fn skip(error: Error) -> Self {
        Failure { error, next: AfterFailure::Skip }
    }

    fn is_skip(&self) -> bool {
        self.next == AfterFailure::Skip
    }
}

/// An archive that is synced and recorded as `sealed`, still under its temporary name.
struct StagedArchive {
    schedule: ScheduleRow,
    file: SealedFile,
    written: WrittenArchive,
    inherited: Inherited,
    problem: Option<String>,
}

/// What of an archive lies in the file of its base, which was verified a short time ago, and need not be read back.
enum Inherited {
    Nothing,
    /// All of it: the file is that of the base.
    File,
    /// The ranges of the file that share blocks with that of the base, in order.
    Ranges {
        /// Row of the base's file.
        base_file: i64,
        /// When that was verified.
        verified_at: Timestamp,
        ranges: Vec<Range<u64>>,
    },
}

impl Inherited {
    /// Returns the row of the base's file if blocks of that are shared.
    fn base_file(&self) -> Option<i64> {
        match self {
            Inherited::Ranges { base_file, .. } => Some(*base_file),
            Inherited::Nothing | Inherited::File => None,
        }
    }
}

/// What the steps after sealing need to know of an archive.
struct SealedArchive<'a> {
    file_name: &'a str,
    size: u64,
    digest: [u8; 32],
    is_incomplete: bool,
    /// Why the run is incomplete even if nothing is missing from the archive.
    problem: Option<String>,
    layout: Layout,
    inherited: Inherited,
}

impl Runner {
    /// Executes a claimed run to its end, whatever happens on the way.
    ///
    /// Errors: what leaves the run to recovery, because its end was not recorded: `Fenced` if another worker has taken
    /// it over, an error after the rename, the error of the database once a stop was requested.
    pub fn execute(&self, claim: Claim, intent: &Intent, context: &RunContext<'_>) -> Result<RunOutcome> {
        let run = claim.run();
        let monitor = Monitor::new(self, run, context);
        let outcome = match self.make_archive(&claim, intent, context, &monitor) {
            Ok(staged) => self.publish(claim, intent, staged, context, &monitor),
            Err(failure) => self.end_without_archive(claim, intent, failure, context),
        };
        if context.is_foreground {
            self.wait_for_starts(run, context);
        }
        if outcome.is_ok() {
            self.run_end_command(run, context);
        }
        let _ = self.worker.forget_run(run);
        outcome
    }

    /// Prepares, writes and seals.
    fn make_archive(
        &self,
        claim: &Claim,
        intent: &Intent,
        context: &RunContext<'_>,
        monitor: &Monitor<'_>,
    ) -> std::result::Result<StagedArchive, Failure> {
        let row = self.prepare_folder(claim, intent)?;
        let surrounded = Surrounded { claim, row: &row, context, monitor };
        let read = self.read_surrounded(&surrounded, |hooks| {
            let prepared = self.prepare(&surrounded, intent, hooks)?;
            let written = self.write_archive(claim, intent, &prepared, context, monitor)?;
            Ok((prepared, written))
        })?;
        let ReadRun { prepared, written: WrittenRun { pending, written, inherited }, problem } = read;
        self.record_counts(claim, &prepared, &written).map_err(Failure::retryable)?;
        self.check_not_emptied(&prepared, &written).map_err(Failure::permanent)?;
        let file = self.seal(claim, pending, &prepared, &written).map_err(Failure::retryable)?;
        Ok(StagedArchive { schedule: prepared.schedule, file, written, inherited, problem })
    }

    /// Renames, verifies and completes.
    fn publish(
        &self,
        claim: Claim,
        intent: &Intent,
        staged: StagedArchive,
        context: &RunContext<'_>,
        monitor: &Monitor<'_>,
    ) -> Result<RunOutcome> {
        // The phase of renaming and verifying. The word is part of the heartbeat file and of JSON output.
        monitor.phase("proving");
        let archive = SealedArchive {
            file_name: &intent.file_name,
            size: staged.written.size,
            digest: staged.written.digest,
            is_incomplete: staged.written.losses > 0,
            problem: staged.problem,
            layout: intent.layout,
            inherited: staged.inherited,
        };
        let sealed_as = (staged.file.device(), staged.file.inode());
        match self.rename_into_place(&claim, staged.file, &archive) {
            Ok(()) => self.finish_sealed(claim, &archive, &staged.schedule, context),
            // Renamed, but the folder was not synced: the file exists, and recovery continues from it.
            Err(error) if self.is_in_place(intent, sealed_as) => Err(error),
            Err(error) => self.end_without_archive(claim, intent, Failure::retryable(error), context),
        }
    }
}

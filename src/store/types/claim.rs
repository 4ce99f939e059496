//! Claims on runs, and how they end.

use uuid::Uuid;

use super::run::Trigger;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::schedule::{Compression, Layout};

/// The right of this worker to carry out a run. Only the store makes one, and ending the run consumes it (I4).
#[derive(Debug)]
#[must_use = "a claim must end in complete, end_without_archive or requeue"]
pub struct Claim {
    pub(in crate::store) run: i64,
    pub(in crate::store) schedule: i64,
    pub(in crate::store) worker: Uuid,
    pub(in crate::store) attempt: i64,
    pub(in crate::store) tries: i64,
    pub(in crate::store) trigger: Trigger,
    pub(in crate::store) verify: bool,
    pub(in crate::store) reread: bool,
    pub(in crate::store) scheduled_for: Option<Timestamp>,
    /// The run was taken over from a dead worker; this attempt has no row of its own yet.
    pub(in crate::store) recovering: bool,
}

impl Claim {
    /// Returns the number of the run.
    pub fn run(&self) -> i64 {
        self.run
    }

    /// Returns the row of its schedule.
    pub fn schedule(&self) -> i64 {
        self.schedule
    }

    /// Returns the number of this attempt, which only increases.
    pub fn attempt(&self) -> i64 {
        self.attempt
    }

    /// Returns whether the archive is verified before the run ends as successful.
    pub fn verify(&self) -> bool {
        self.verify
    }

    /// Returns whether everything is read again and nothing is reused.
    pub fn reread(&self) -> bool {
        self.reread
    }

    /// Returns the newest occurrence that this run covers; `None` for a run started by hand.
    pub fn scheduled_for(&self) -> Option<Timestamp> {
        self.scheduled_for
    }
}

/// The names that a run writes under, both below the archive folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Final name: `docs/docs-20261123T023000Z-17.tar`.
    pub file_name: String,
    /// Temporary name in the same folder.
    pub temporary_name: String,
    /// The compression that the extension names, even if the schedule is edited during the run.
    pub compression: Compression,
    /// How the archive is stored, even if the schedule is edited during the run: segmented, the names are those of its
    /// index.
    pub layout: Layout,
}

impl Intent {
    /// Returns the name of the schedule, in whose folder the file lies.
    pub fn schedule_name(&self) -> &str {
        self.file_name.split_once('/').map_or(&*self.file_name, |(folder, _)| folder)
    }

    /// Returns another temporary name of the same attempt, by which it is known as one, too, if the process is killed.
    pub fn another_temporary_name(&self) -> String {
        let random = Uuid::new_v4().as_fields().0;
        let attempt = self.temporary_name.rsplit_once('-').map_or(&*self.temporary_name, |(attempt, _)| attempt);
        format!("{attempt}-{random:08x}.part")
    }
}

/// Options of a run started by hand.
#[derive(Clone, Copy, Debug)]
pub struct RunRequest {
    /// Verify the archive.
    pub verify: bool,
    /// Read everything again.
    pub reread: bool,
}

/// Outcome of claiming a run of one schedule at once.
#[derive(Debug)]
pub enum ClaimNow {
    /// This worker carries the run out, whether it was queued before or not.
    Claimed(Claim),
    /// A run of the schedule is running already.
    Running(i64),
}

/// Outcome of queueing a run of one schedule for the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueNow {
    /// The run is queued, whether it was before or not.
    Queued {
        /// Its number.
        run: i64,
        /// How many attempts at it there were before.
        attempt: i64,
    },
    /// A run of the schedule is running already.
    Running(i64),
}

/// Outcome of a run whose archive is sealed.
#[derive(Clone, Debug, Default)]
pub struct Completed {
    /// Some source data is missing or doubtful, or what surrounds the run was not done as it should.
    pub incomplete: bool,
    /// Why it is incomplete although all source data was read.
    pub reason: Option<String>,
    /// Remarks besides those recorded with the counts.
    pub notes: Vec<String>,
    /// When the archive was verified; `None` if it was not to be.
    pub verified_at: Option<Timestamp>,
    /// The source shrank by more than half since the archive before.
    pub suspect: bool,
    /// The run whose suspect archive this one is like, and which is thereby accepted.
    pub accepts: Option<i64>,
    /// Row of the file, of another archive, whose blocks its file shares without having read them.
    pub shares_blocks_of: Option<i64>,
    /// How the archive, read back, differs from what was written.
    pub damaged: Option<String>,
}

/// How a run is returned to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// It failed or was interrupted: after a pause, as long as tries are left.
    Retry,
    /// This process stopped it: at once, and the try does not count.
    Refund,
}

/// What became of a run that was to be returned to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeued {
    /// It waits for its next try.
    Queued {
        /// Earliest time of the next try.
        not_before: Timestamp,
    },
    /// It ended: a newer run was queued already and covers its occurrences.
    SupersededBy(i64),
    /// It ended and is not tried again.
    Ended,
}

/// Why the end of a claim could not be written. The claim is returned: its end is still to be written.
#[derive(Debug)]
pub struct EndError {
    /// The claim.
    pub claim: Claim,
    /// Why its end could not be written.
    pub error: Error,
}

/// The result of ending a claim; returns the claim on failure.
pub type EndResult<T> = std::result::Result<T, Box<EndError>>;

//! Runs as the history shows them.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::member::Extent;

/// What caused a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Its schedule was due.
    Schedule,
    /// A command started it.
    Manual,
    /// A rescan found its archive and added it to the catalog.
    Rescan,
}

/// State of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Waits to be claimed.
    Queued,
    /// Claimed by a worker.
    Running,
    /// Ended with an archive of everything.
    Succeeded,
    /// Ended with an archive, but some source data could not be read completely.
    Incomplete,
    /// Ended without a good archive.
    Failed,
    /// Stopped on request.
    Cancelled,
    /// Never begun: no service ran when it was due, and it was not to be caught up.
    Missed,
    /// Ended before it read anything, as its command before asked for: no failure and no success.
    Skipped,
}

text_enum!(Trigger, Schedule = "schedule", Manual = "manual", Rescan = "rescan");
text_enum!(
    RunState,
    Queued = "queued",
    Running = "running",
    Succeeded = "succeeded",
    Incomplete = "incomplete",
    Failed = "failed",
    Cancelled = "cancelled",
    Missed = "missed",
    Skipped = "skipped"
);

impl RunState {
    /// All states, as `history --status` takes them.
    pub const ALL: [RunState; 8] = [
        RunState::Queued,
        RunState::Running,
        RunState::Succeeded,
        RunState::Incomplete,
        RunState::Failed,
        RunState::Cancelled,
        RunState::Missed,
        RunState::Skipped,
    ];

    /// Returns whether the run has ended.
    pub fn is_final(self) -> bool {
        !matches!(self, RunState::Queued | RunState::Running)
    }
}

/// What a run read and reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunCounts {
    /// How much it read.
    pub extent: Extent,
    /// Size of the archive file in bytes.
    pub archive_bytes: u64,
    /// Paths with problems, notes included.
    pub problems: u64,
    /// Paths whose data is missing or doubtful.
    pub losses: u64,
    /// Remarks that are no problems.
    pub notes: Vec<String>,
    /// How many members were read although there was a base, by reason.
    pub read_reasons: BTreeMap<String, u64>,
}

/// A run in the history.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its number, as in `@17` and in the archive's name.
    pub id: i64,
    /// Row of its schedule.
    pub schedule_id: i64,
    /// Name of its schedule.
    pub schedule_name: String,
    /// What caused it.
    pub trigger: Trigger,
    /// The newest occurrence that it covers.
    pub scheduled_for: Option<Timestamp>,
    /// How many further occurrences it covers.
    pub coalesced: u64,
    /// Its state.
    pub state: RunState,
    /// How often it was claimed or taken over.
    pub attempt: i64,
    /// The worker that has claimed it, or did last.
    pub worker: Option<Uuid>,
    /// Earliest time at which it may be claimed.
    pub not_before: Timestamp,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// When its last attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What it read and reported.
    pub counts: RunCounts,
    /// Its problems were accepted as known.
    pub accepted: bool,
    /// The archive whose chunks its archive shares.
    pub base_run: Option<i64>,
    /// The newer run that covers its occurrences.
    pub superseded_by: Option<i64>,
    /// Why it failed, was cancelled or waits for another try.
    pub error: Option<String>,
}

/// One attempt at a run.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its number.
    pub attempt: i64,
    /// Process that made it.
    pub pid: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: String,
    /// Why it ended so.
    pub error: Option<String>,
}

/// Which runs `history` shows.
#[derive(Clone, Debug, Default)]
pub struct HistoryFilter {
    /// Only runs of this schedule.
    pub schedule: Option<i64>,
    /// Only runs queued at or after this time.
    pub since: Option<Timestamp>,
    /// Only runs in one of these states; empty means all.
    pub states: Vec<RunState>,
    /// Maximum number of runs; the newest are returned.
    pub limit: Option<u32>,
}

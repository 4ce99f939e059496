//! Commands around runs: those of a schedule, what they printed, and what is to be undone.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::schedule::{CommandKind, Hooks};

/// A duty that may be tried again later than this was written under a wrong clock, and is due now.
const MAX_DUTY_DELAY: Duration = Duration::from_secs(3600);

/// What surrounds the runs of a schedule, and what of it was approved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScheduleHooks {
    /// As the user defined it.
    pub hooks: Hooks,
    /// Keyed digests of approved commands. They are valid only with the token beside the database.
    pub approvals: BTreeMap<CommandKind, Vec<u8>>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEnding {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Signal(i32),
    /// At its time limit.
    TimeLimit,
    /// It was not started; its output says why.
    NotStarted,
    /// Unknown: this program died while it ran.
    Lost,
}

/// A command that a run executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutput {
    /// The attempt that executed it.
    pub attempt: i64,
    /// When in the run it was executed.
    pub kind: CommandKind,
    /// The container in which it was executed.
    pub container: Option<String>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// How it ended.
    pub ending: CommandEnding,
    /// The end of what it printed, both streams together.
    pub output: Vec<u8>,
}

/// What is undone after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DutyKind {
    /// The command after is executed, since the command before was started.
    After,
    /// A container is started that the run stopped.
    Start,
    /// The command after of a container is executed.
    ExecAfter,
}

/// How far a duty is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DutyState {
    /// The act that it undoes was to begin: it may have been done or not.
    Planned,
    /// The act was done.
    Done,
    /// It was undone, or nothing was to be undone.
    Settled,
}

text_enum!(DutyKind, After = "after", Start = "start", ExecAfter = "exec-after");
text_enum!(DutyState, Planned = "planned", Done = "done", Settled = "settled");

/// A duty that is to be planned.
#[derive(Clone, Copy, Debug)]
pub struct NewDuty<'a> {
    /// What is undone.
    pub kind: DutyKind,
    /// What it is about, as JSON.
    pub subject: &'a str,
    /// What duties of several runs can be about, such as the id of a container.
    pub shared_key: Option<&'a str>,
}

/// Something that a run began and that is to be undone, whatever happens (I16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty {
    /// Its row.
    pub id: i64,
    /// Number of the run.
    pub run: i64,
    /// The attempt that planned it.
    pub attempt: i64,
    /// Name of the schedule, which may be deleted since.
    pub schedule_name: String,
    /// What is undone.
    pub kind: DutyKind,
    /// What it is about, as JSON. Like every row it may come from somebody else's database: it is input.
    pub subject: String,
    /// What duties of several runs can be about.
    pub shared_key: Option<String>,
    /// How far it is.
    pub state: DutyState,
    /// The worker that works on it, alive or dead; `None` if nobody does.
    pub worker: Option<Uuid>,
    /// When it was planned.
    pub planned_at: Timestamp,
    /// Earliest time of the next try.
    pub not_before: Timestamp,
    /// How often a worker took it over to settle it.
    pub tries: u32,
    /// Why the last try failed.
    pub error: Option<String>,
}

impl Duty {
    /// Returns whether the next try may begin.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.not_before <= now || self.not_before > now.plus(MAX_DUTY_DELAY)
    }
}

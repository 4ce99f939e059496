//! Progress, problems and notes of a run, a restore or a verification, and the observer that receives them.

use std::time::Duration;

/// Why a path of the source is not in the archive as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemKind {
    /// It could not be opened or read.
    Unreadable,
    /// It was listed and did not exist any more when it was read.
    Vanished,
    /// It changed during each attempt to read it; the content in the archive may be a mixture of two states.
    Changed,
    /// It grew while it was read: the archive holds a complete earlier state. A note, not a loss.
    Grew,
    /// It was replaced by something else between listing and opening.
    Replaced,
    /// It is of a kind that archives do not hold (a socket).
    Skipped,
    /// Its content differs from that in an earlier archive although its size and times do not.
    ChangedWithoutTimes,
}

impl ProblemKind {
    /// Returns the word used in the store and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            ProblemKind::Unreadable => "unreadable",
            ProblemKind::Vanished => "vanished",
            ProblemKind::Changed => "changed",
            ProblemKind::Grew => "grew",
            ProblemKind::Replaced => "replaced",
            ProblemKind::Skipped => "skipped",
            ProblemKind::ChangedWithoutTimes => "changed without its times",
        }
    }

    /// Returns whether source data is missing or doubtful because of it, which makes a run `incomplete`.
    pub fn is_loss(self) -> bool {
        !matches!(self, ProblemKind::Grew | ProblemKind::Skipped)
    }
}

/// One path that could not be archived as it was (I9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path in the file system, as bytes.
    pub path: Box<[u8]>,
    /// The kind of problem.
    pub kind: ProblemKind,
    /// The reason, as text; mostly the error of the system.
    pub reason: String,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Members done.
    pub members: u64,
    /// Bytes of content read.
    pub bytes: u64,
    /// Total number of members, once known or estimated.
    pub members_total: Option<u64>,
    /// Total bytes of content, once known or estimated.
    pub bytes_total: Option<u64>,
    /// Time since the work began.
    pub elapsed: Duration,
}

/// Receives progress, problems and notes of running work. Its methods are called from several threads.
pub trait Observer: Send + Sync {
    /// Reports progress; called a few times a second at most.
    fn progress(&self, progress: &Progress);

    /// Reports a problem of one path, when it occurs.
    fn problem(&self, problem: &Problem);

    /// Reports a fact of interest that is not a problem.
    fn note(&self, text: &str);
}

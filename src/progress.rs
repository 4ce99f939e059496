//! What a run, a restore or a verification tells while it works and when it is done.

use std::time::Duration;

/// Why a path of the source is not in the archive as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemKind {
    /// It could not be opened or read.
    Unreadable,
    /// It was listed and then gone.
    Vanished,
    /// It changed while it was read, each time; what stands in the archive may be a mixture.
    Changed,
    /// It grew while it was read: what is in the archive is a whole earlier state. A note, not a loss.
    Grew,
    /// It became something else between listing and opening.
    Replaced,
    /// It is of a kind that archives do not hold (a socket).
    Skipped,
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
        }
    }

    /// Says whether source data is missing or doubtful because of it, which makes a run `incomplete`.
    pub fn is_loss(self) -> bool {
        !matches!(self, ProblemKind::Grew | ProblemKind::Skipped)
    }
}

/// One path that could not be archived as it was (I9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path in the file system, as bytes.
    pub path: Box<[u8]>,
    /// What kind of trouble.
    pub kind: ProblemKind,
    /// The system's reason, in words.
    pub reason: String,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Members done.
    pub members: u64,
    /// Bytes of content read.
    pub bytes: u64,
    /// Members in all, once known or estimated.
    pub members_total: Option<u64>,
    /// Bytes in all, once known or estimated.
    pub bytes_total: Option<u64>,
    /// How long it has been going.
    pub elapsed: Duration,
}

/// Who is told how work goes. Called from several threads.
pub trait Observer: Send + Sync {
    /// Tells how far the work has come; at most a few times a second.
    fn progress(&self, progress: &Progress);

    /// Tells one problem, as it is met.
    fn problem(&self, problem: &Problem);

    /// Tells something worth knowing that is no problem.
    fn note(&self, text: &str);
}

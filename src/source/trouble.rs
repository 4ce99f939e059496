//! Trouble with one path, before the path is known.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use crate::progress::{Problem, ProblemKind};

/// What went wrong with a path; [`Trouble::at`] adds which.
#[derive(Debug)]
pub(super) struct Trouble {
    kind: ProblemKind,
    reason: String,
    errno: Option<Errno>,
}

impl Trouble {
    /// It became something else between listing and opening.
    pub(super) fn replaced(reason: impl Into<String>) -> Self {
        Trouble { kind: ProblemKind::Replaced, reason: reason.into(), errno: None }
    }

    /// It is of a kind that archives do not hold.
    pub(super) fn skipped(reason: impl Into<String>) -> Self {
        Trouble { kind: ProblemKind::Skipped, reason: reason.into(), errno: None }
    }

    /// Makes it a problem of `path`.
    pub(super) fn at(self, path: &Path) -> Problem {
        Problem { path: path.as_os_str().as_bytes().into(), kind: self.kind, reason: self.reason }
    }

    /// Returns the reason in words.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Says whether there is nothing of that name.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self.errno, Some(Errno::NOENT | Errno::NOTDIR))
    }

    /// Says whether somebody else's lease stands in the way.
    pub(super) fn is_refused_lease(&self) -> bool {
        self.errno == Some(Errno::AGAIN)
    }
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOENT | Errno::STALE => ProblemKind::Vanished,
            // Links are never followed and sockets never opened: what stood there when it was listed was neither.
            Errno::LOOP | Errno::NOTDIR | Errno::NXIO => ProblemKind::Replaced,
            _ => ProblemKind::Unreadable,
        };
        Trouble { kind, reason: io::Error::from(errno).to_string(), errno: Some(errno) }
    }
}

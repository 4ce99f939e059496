//! An error of one path, before the path is known.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use crate::progress::{Problem, ProblemKind};

/// An error of a path; [`PathError::at`] adds the path.
#[derive(Debug)]
pub(super) struct PathError {
    kind: ProblemKind,
    reason: String,
    errno: Option<Errno>,
}

impl PathError {
    /// Returns the error of a file that became something else between listing and opening.
    pub(super) fn replaced(reason: impl Into<String>) -> Self {
        PathError { kind: ProblemKind::Replaced, reason: reason.into(), errno: None }
    }

    /// Returns the error of a file of a kind that archives do not hold.
    pub(super) fn skipped(reason: impl Into<String>) -> Self {
        PathError { kind: ProblemKind::Skipped, reason: reason.into(), errno: None }
    }

    /// Converts it into a problem of `path`.
    pub(super) fn at(self, path: &Path) -> Problem {
        Problem { path: path.as_os_str().as_bytes().into(), kind: self.kind, reason: self.reason }
    }

    /// Returns the reason as text.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Returns whether the path does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self.errno, Some(Errno::NOENT | Errno::NOTDIR))
    }

    /// Returns whether the lease of another process prevents the open.
    pub(super) fn is_refused_lease(&self) -> bool {
        self.errno == Some(Errno::AGAIN)
    }
}

impl From<Errno> for PathError {
    fn from(errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOENT | Errno::STALE => ProblemKind::Vanished,
            // Links are never followed and sockets never opened: when it was listed, it was neither.
            Errno::LOOP | Errno::NOTDIR | Errno::NXIO => ProblemKind::Replaced,
            _ => ProblemKind::Unreadable,
        };
        PathError { kind, reason: io::Error::from(errno).to_string(), errno: Some(errno) }
    }
}

//! The error type of the program. The kind of an error alone determines the exit code.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of an error, which alone determines the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The work could not be done.
    Failed,
    /// The command line, a specification or a text file is invalid.
    Usage,
    /// The work was done only in part.
    Incomplete,
    /// Verification found damage or a difference.
    Damage,
    /// The database is damaged or lost. Not [`ErrorKind::Damage`]: the archives may be intact.
    DatabaseDamage,
    /// The database, schedule, run, archive or member does not exist.
    NotFound,
    /// Another process has locked or claimed what is needed.
    Busy,
    /// Cancelled by SIGINT or on request.
    Interrupted,
    /// Cancelled by SIGTERM.
    Terminated,
    /// The claim of this write has passed to another worker (I4).
    Fenced,
    /// The file system or a quota is full.
    DiskFull,
}

impl ErrorKind {
    /// Returns the kind as JSON documents hold it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Failed => "failed",
            ErrorKind::Usage => "usage",
            ErrorKind::Incomplete => "incomplete",
            ErrorKind::Damage => "damage",
            ErrorKind::DatabaseDamage => "database_damage",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Busy => "busy",
            ErrorKind::Interrupted => "interrupted",
            ErrorKind::Terminated => "terminated",
            ErrorKind::Fenced => "fenced",
            ErrorKind::DiskFull => "disk_full",
        }
    }

    /// Returns the exit code of the process that ends with an error of this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed | ErrorKind::Fenced | ErrorKind::DiskFull => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Incomplete => 3,
            ErrorKind::Damage | ErrorKind::DatabaseDamage => 4,
            ErrorKind::NotFound => 10,
            ErrorKind::Busy => 11,
            ErrorKind::Interrupted => 130,
            ErrorKind::Terminated => 143,
        }
    }
}

/// What failed, on what, why (`source`), and what to do next (`hint`).
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Creates an error with a message that names what failed and on what.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None, source: None }
    }

    /// Creates an error of the kind [`ErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// Creates an error of the kind [`ErrorKind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// Creates an error of the kind [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Creates an error of the kind [`ErrorKind::Busy`].
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy, message)
    }

    /// Returns a conversion of I/O errors on `path`, for `map_err`. `action` is what was attempted ("read"). ENOSPC,
    /// EDQUOT and EFBIG become [`ErrorKind::DiskFull`], every other error [`ErrorKind::Failed`].
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path: PathBuf = path.as_ref().to_owned();
        move |source| {
            let kind = match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    ErrorKind::DiskFull
                }
                _ => ErrorKind::Failed,
            };
            Error::new(kind, format!("cannot {action} {}", path.display())).because(source)
        }
    }

    /// Converts the error of starting a thread, which the limits of the system may not allow.
    pub fn no_thread(source: io::Error) -> Self {
        Error::failed("cannot start a thread").because(source).hint("raise the limit of processes (`ulimit -u`)")
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns an error with `message` that this one caused, of the same kind and with the same next step.
    #[must_use]
    pub fn wrap(mut self, message: impl Into<String>) -> Self {
        Error { kind: self.kind, message: message.into(), hint: self.hint.take(), source: Some(Box::new(self)) }
    }

    /// Returns the error with another kind.
    #[must_use]
    pub fn with_kind(self, kind: ErrorKind) -> Self {
        Error { kind, ..self }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns what to do next; `None` if no hint was added.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause: Option<&dyn std::error::Error> = self.source.as_ref().map(|s| s.as_ref() as _);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            // Our own Display already prints the whole chain below it.
            cause = if error.is::<Error>() { None } else { error.source() };
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_a_kind_of_its_own() {
        let error = Error::io("write", "/x")(io::Error::from_raw_os_error(28));
        assert_eq!(error.kind(), ErrorKind::DiskFull);
        assert_eq!(error.kind().exit_code(), 1);
        assert!(error.to_string().starts_with("cannot write /x: No space left"));
    }

    #[test]
    fn the_chain_of_causes_is_printed_once() {
        let inner = Error::failed("inner").because(io::Error::other("root"));
        assert_eq!(Error::failed("outer").because(inner).to_string(), "outer: inner: root");
    }

    #[test]
    fn a_wrapped_error_has_the_kind_and_the_next_step_of_its_cause() {
        let error = Error::busy("inner").hint("wait").wrap("outer");
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Busy, "outer: inner"));
        assert_eq!(error.next_step(), Some("wait"));
    }
}

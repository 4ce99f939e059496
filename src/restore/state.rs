//! What the threads of a restore share: the report, the paths that are complete, and whether the restore ends early.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::interruption::Interruption;
use super::report::Report;
use crate::confined::{CompletedPaths, MetadataLoss};
use crate::error::{Error, ErrorKind};
use crate::member::MemberPath;

#[derive(Default)]
pub(super) struct RestoreState {
    results: Mutex<Results>,
    /// Set with `Results::fatal`: asked for each file, by all threads.
    has_fatal: AtomicBool,
    /// Paths that hold what the archive has.
    pub completed: Arc<CompletedPaths>,
    /// The restore ends early: folders stay unfinished, so that the next restore recognises them.
    pub is_abandoned: Arc<AtomicBool>,
}

#[derive(Default)]
struct Results {
    report: Report,
    interruption: Interruption,
    fatal: Option<Error>,
}

impl RestoreState {
    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads or changes the report.
    pub fn with_report<T>(&self, action: impl FnOnce(&mut Report) -> T) -> T {
        action(&mut self.results().report)
    }

    /// Changes what a cancelled restore leaves out.
    pub fn with_interruption<T>(&self, action: impl FnOnce(&mut Interruption) -> T) -> T {
        action(&mut self.results().interruption)
    }

    /// Returns the error of a cancelled restore, once its threads have ended.
    pub fn interruption_error(&self) -> Error {
        let results = self.results();
        results.interruption.error(&results.report)
    }

    /// Takes the report at the end of the restore.
    pub fn take_report(&self) -> Report {
        std::mem::take(&mut self.results().report)
    }

    /// Records that `path` holds what the archive has, and changes the report.
    pub fn complete(&self, path: &MemberPath, change: impl FnOnce(&mut Report)) {
        self.complete_all(std::iter::once(path), change);
    }

    /// Records that these paths hold what the archive has, and changes the report.
    pub fn complete_all<'p>(&self, paths: impl Iterator<Item = &'p MemberPath>, change: impl FnOnce(&mut Report)) {
        self.with_report(change);
        self.completed.complete_all(paths);
    }

    /// Records that the member at `path` was not restored, and changes the report.
    pub fn abort(&self, path: &MemberPath, change: impl FnOnce(&mut Report)) {
        self.with_report(change);
        self.completed.abort(path);
    }

    /// Records metadata that could not be restored.
    pub fn record_loss(&self, path: &MemberPath, loss: MetadataLoss) {
        if loss != MetadataLoss::default() {
            self.with_report(|report| report.record_loss(path, loss));
        }
    }

    /// Records an error of the system at `path`. A full disk and a read-only file system end the restore.
    pub fn record_failure(&self, path: &MemberPath, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                self.record_fatal(path, error, ErrorKind::DiskFull, "free space");
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                self.record_fatal(
                    path,
                    error,
                    ErrorKind::Failed,
                    "mount the file system writable, or restore to another folder with --to",
                );
            }
            _ => self.with_report(|report| report.failed.add(path.as_bytes(), error.to_string())),
        }
        self.completed.abort(path);
    }

    fn record_fatal(&self, path: &MemberPath, error: &io::Error, kind: ErrorKind, remedy: &str) {
        self.results().fatal.get_or_insert_with(|| {
            Error::new(kind, format!("cannot restore {path}: {error}"))
                .hint(format!("{remedy}, then run the same command again: it finishes the rest"))
        });
        self.has_fatal.store(true, Ordering::SeqCst);
        self.abandon();
    }

    /// Takes the error that ended the restore, with what was restored before.
    pub fn take_fatal(&self) -> Option<Error> {
        let mut results = self.results();
        let error = results.fatal.take()?;
        let done = results.report.extent.members;
        let message = format!("{error}; {done} {} restored", if done == 1 { "member is" } else { "members are" });
        let fatal = Error::new(error.kind(), message);
        Some(match error.next_step() {
            Some(next) => fatal.hint(next),
            None => fatal,
        })
    }

    /// Returns whether an error ended the restore.
    pub fn has_fatal(&self) -> bool {
        self.has_fatal.load(Ordering::SeqCst)
    }

    /// Leaves the folders that are open unfinished.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::SeqCst);
    }
}

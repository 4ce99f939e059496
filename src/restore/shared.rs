//! What the threads of a restore know together: what stands at its place, what is under way, what went wrong.

use std::collections::HashSet;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::report::Report;
use crate::confined::MetadataLoss;
use crate::error::{Error, ErrorKind};
use crate::member::MemberPath;
use crate::progress::{Observer, Problem, ProblemKind};

/// Names a path in little room.
type Key = [u8; 16];

pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    report: Report,
    /// Paths at which stands what the archive has.
    placed: HashSet<Key>,
    under_way: HashSet<Key>,
    /// Folders that could not be made as the archive has them.
    owed: HashSet<Key>,
    fatal: Option<Error>,
    /// The restore ends early: folders stay unfinished, so that the next one knows them.
    abandoned: bool,
}

impl Shared {
    pub fn new() -> Shared {
        Shared { state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the report.
    pub fn report<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut self.state().report)
    }

    pub fn take_report(&self) -> Report {
        std::mem::take(&mut self.state().report)
    }

    /// Waits until nothing is under way at `path`, and says whether what the archive has stands there.
    pub fn is_placed(&self, path: &MemberPath) -> bool {
        let key = key(path);
        let mut state = self.state();
        while state.under_way.contains(&key) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.placed.contains(&key)
    }

    pub fn begin(&self, path: &MemberPath) {
        self.state().under_way.insert(key(path));
    }

    /// Records that something stands at its place.
    pub fn placed(&self, path: &MemberPath, change: impl FnOnce(&mut Report)) {
        let key = key(path);
        let mut state = self.state();
        state.under_way.remove(&key);
        state.placed.insert(key);
        change(&mut state.report);
        self.changed.notify_all();
    }

    /// Records a folder that no member asked for.
    pub fn made_folder(&self, path: &MemberPath) {
        self.state().placed.insert(key(path));
    }

    /// Records a folder that could not be made: what lies beneath may still make it, and leaves it unfinished.
    pub fn owe(&self, path: &MemberPath) {
        self.state().owed.insert(key(path));
    }

    pub fn is_owed(&self, path: &MemberPath) -> bool {
        self.state().owed.contains(&key(path))
    }

    /// Records that nothing came of it.
    pub fn given_up(&self, path: &MemberPath, change: impl FnOnce(&mut Report)) {
        let mut state = self.state();
        state.under_way.remove(&key(path));
        change(&mut state.report);
        self.changed.notify_all();
    }

    pub fn fell_short(&self, path: &MemberPath, loss: MetadataLoss) {
        if loss != MetadataLoss::default() {
            self.report(|report| report.fell_short(path, loss));
        }
    }

    /// Records a path that the system refused. A full disk ends the restore.
    pub fn failed(&self, path: &MemberPath, error: &io::Error) {
        let mut state = self.state();
        state.under_way.remove(&key(path));
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem => {
                let (kind, first) = match error.kind() {
                    io::ErrorKind::ReadOnlyFilesystem => (ErrorKind::Failed, "make the file system writable"),
                    _ => (ErrorKind::DiskFull, "free space"),
                };
                state.fatal.get_or_insert_with(|| {
                    Error::new(kind, format!("cannot restore {path}: {error}"))
                        .hint(format!("{first}, then run the same command again: it finishes the rest"))
                });
            }
            _ => state.report.failed.add(path.as_bytes(), error.to_string()),
        }
        self.changed.notify_all();
    }

    /// Takes what ends the whole restore, which is abandoned by that.
    pub fn take_fatal(&self) -> Option<Error> {
        let mut state = self.state();
        state.abandoned |= state.fatal.is_some();
        state.fatal.take()
    }

    /// Leaves the folders that are being worked in unfinished.
    pub fn abandon(&self) {
        self.state().abandoned = true;
    }

    /// Says whether the restore ends early.
    pub fn is_abandoned(&self) -> bool {
        let state = self.state();
        state.abandoned || state.fatal.is_some()
    }

    pub fn has_fatal(&self) -> bool {
        self.state().fatal.is_some()
    }
}

fn key(path: &MemberPath) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..16]);
    key
}

/// Tells one path and what is wrong with it, as it is met.
pub(super) fn tell(observer: &dyn Observer, path: &[u8], reason: &str) {
    observer.problem(&Problem { path: path.into(), kind: ProblemKind::Unreadable, reason: reason.to_owned() });
}

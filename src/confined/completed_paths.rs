//! Which paths beneath a confined folder hold what they shall hold by now.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::member::{MemberPath, PathKey, path_key};

/// The paths that are complete and those that are being written, shared by the threads that create entries.
#[derive(Debug, Default)]
pub struct CompletedPaths {
    state: Mutex<State>,
    /// Notified only if somebody waits: each notification is a system call.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    complete: KeySet,
    in_progress: HashSet<PathKey>,
    failed_folders: HashSet<PathKey>,
    /// Threads that wait until a path is no longer in progress.
    waiting: usize,
}

/// A set of keys in parts, by their last byte: a single large table would need half as much memory again while it
/// grows.
#[derive(Debug)]
struct KeySet(Vec<HashSet<PathKey>>);

impl Default for KeySet {
    fn default() -> Self {
        KeySet(vec![HashSet::new(); usize::from(u8::MAX) + 1])
    }
}

impl KeySet {
    fn insert(&mut self, key: PathKey) {
        self.0[usize::from(key[15])].insert(key);
    }

    fn contains(&self, key: &PathKey) -> bool {
        self.0[usize::from(key[15])].contains(key)
    }
}

impl CompletedPaths {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the entries at these paths are being created.
    pub fn begin<'p>(&self, paths: impl Iterator<Item = &'p MemberPath>) {
        let keys: Vec<_> = paths.map(|path| path_key(path.as_bytes())).collect();
        self.state().in_progress.extend(keys);
    }

    /// Records that the entry at `path` is complete.
    pub fn complete(&self, path: &MemberPath) {
        self.complete_all(std::iter::once(path));
    }

    /// Records that the entries at these paths are complete.
    pub fn complete_all<'p>(&self, paths: impl Iterator<Item = &'p MemberPath>) {
        let keys: Vec<_> = paths.map(|path| path_key(path.as_bytes())).collect();
        let mut state = self.state();
        for key in keys {
            state.in_progress.remove(&key);
            state.complete.insert(key);
        }
        self.notify(state);
    }

    /// Records that the entry at `path` is no longer being created, and is not complete.
    pub fn abort(&self, path: &MemberPath) {
        let key = path_key(path.as_bytes());
        let mut state = self.state();
        state.in_progress.remove(&key);
        self.notify(state);
    }

    fn notify(&self, state: MutexGuard<'_, State>) {
        let is_any_waiting = state.waiting > 0;
        drop(state);
        if is_any_waiting {
            self.changed.notify_all();
        }
    }

    /// Waits until nothing is in progress at `path`, and returns whether its entry is complete.
    pub fn contains(&self, path: &MemberPath) -> bool {
        let key = path_key(path.as_bytes());
        let mut state = self.state();
        while state.in_progress.contains(&key) {
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state.complete.contains(&key)
    }

    /// Records a folder that could not be created from its member. Members beneath it may still create it, and leave it
    /// unfinished, so that a repeated restore applies its metadata.
    pub fn add_failed_folder(&self, path: &MemberPath) {
        self.state().failed_folders.insert(path_key(path.as_bytes()));
    }

    /// Returns whether the folder at `path` could not be created from its member.
    pub fn is_failed_folder(&self, path: &MemberPath) -> bool {
        self.state().failed_folders.contains(&path_key(path.as_bytes()))
    }
}

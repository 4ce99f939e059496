//! Hard links: which name of a file carries its data. The walk decides the order. A name becomes a link only once an
//! earlier name is known to be in the archive; if that one could not be read, the next one carries the data.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::member::{MemberKind, MemberPath};
use crate::source::SourceEntry;

/// Files with several names of which not all have been visited.
#[derive(Default)]
pub(super) struct HardLinks {
    open: HashMap<(u64, u64), (Arc<LinkGroup>, u64)>,
}

#[derive(Default)]
struct LinkGroup {
    state: Mutex<GroupState>,
    changed: Condvar,
}

#[derive(Default)]
struct GroupState {
    /// The name that carries the data.
    carrier: Option<MemberPath>,
    /// Ordinal of the name that decides next, as long as there is no carrier.
    next: u64,
}

impl LinkGroup {
    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HardLinks {
    /// Returns the turn of a name among those of its file; `None` if the file has only one name.
    pub(super) fn turn(&mut self, entry: &SourceEntry) -> Option<LinkTurn> {
        // Symbolic links are never stored as hard links: some readers take a further name of one as a name of its
        // target, and change the owner and the mode of the target.
        if entry.stat.links < 2 || matches!(entry.kind, MemberKind::Folder | MemberKind::Symlink) {
            return None;
        }
        let key = (entry.stat.device, entry.stat.inode);
        let (group, visited) = self.open.entry(key).or_default();
        let turn = LinkTurn { group: group.clone(), ordinal: *visited };
        *visited += 1;
        // All names were visited: the entry is not needed any more. The entry of a file that also has names outside the
        // source stays until the end.
        if *visited >= entry.stat.links {
            self.open.remove(&key);
        }
        Some(turn)
    }
}

/// The turn of one name among those of its file. If it is dropped without [`LinkTurn::set_carrier`], the next name
/// decides.
pub(super) struct LinkTurn {
    group: Arc<LinkGroup>,
    ordinal: u64,
}

impl LinkTurn {
    /// Returns whether it is the first name, which carries the data unless it cannot be read.
    pub(super) fn is_first(&self) -> bool {
        self.ordinal == 0
    }

    /// Returns whether both are names of one file.
    pub(super) fn is_of_same_file(&self, other: &LinkTurn) -> bool {
        Arc::ptr_eq(&self.group, &other.group)
    }

    /// Waits until the earlier names are decided, and returns the one that carries the data, or `None` if this one has
    /// to. The earlier names are in earlier chunks or earlier in the same chunk, so the wait ends.
    pub(super) fn carrier(&self) -> Option<MemberPath> {
        let mut state = self.group.state();
        while state.carrier.is_none() && state.next < self.ordinal {
            state = self.group.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.carrier.clone()
    }

    /// Records that this name carries the data.
    pub(super) fn set_carrier(self, path: &MemberPath) {
        self.group.state().carrier.get_or_insert_with(|| path.clone());
    }
}

impl Drop for LinkTurn {
    fn drop(&mut self) {
        let mut state = self.group.state();
        state.next = state.next.max(self.ordinal + 1);
        self.group.changed.notify_all();
    }
}

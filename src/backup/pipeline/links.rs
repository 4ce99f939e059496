//! Hard links: which of a file's names carries its data. The walk decides the order, and a name becomes a link only
//! once an earlier one is known to be in the archive; if that one could not be read, the next carries the data.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::member::{MemberKind, MemberPath};
use crate::source::SourceEntry;

/// Files with several names of which not all have been met yet.
#[derive(Default)]
pub(super) struct Links {
    open: HashMap<(u64, u64), (Arc<Group>, u64)>,
}

#[derive(Default)]
struct Group {
    state: Mutex<GroupState>,
    changed: Condvar,
}

#[derive(Default)]
struct GroupState {
    /// The name that carries the data.
    carrier: Option<MemberPath>,
    /// Which name decides next, as long as there is no carrier.
    next: u64,
}

impl Group {
    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links {
    /// Returns the place of a name among those of its file; nothing if it has no others.
    pub(super) fn turn(&mut self, found: &SourceEntry) -> Option<LinkTurn> {
        // Symbolic links stand each for themselves: to some readers a further name of one is a name of what it leads
        // to, whose owner and mode they then change.
        if found.stat.links < 2 || matches!(found.kind, MemberKind::Folder | MemberKind::Symlink) {
            return None;
        }
        let key = (found.stat.device, found.stat.inode);
        let (group, met) = self.open.entry(key).or_default();
        let turn = LinkTurn { group: group.clone(), ordinal: *met };
        *met += 1;
        // All names met: nobody will ask again. OwnerNames outside the source keep their entry until the end.
        if *met >= found.stat.links {
            self.open.remove(&key);
        }
        Some(turn)
    }
}

/// The place of one name among those of its file. Dropped without [`LinkTurn::carried`], it lets the next name decide.
pub(super) struct LinkTurn {
    group: Arc<Group>,
    ordinal: u64,
}

impl LinkTurn {
    /// Says whether it is the first name met, the one to carry the data if all goes well.
    pub(super) fn is_first(&self) -> bool {
        self.ordinal == 0
    }

    /// Waits until it is decided what becomes of the names before, and returns the one that carries the data, or
    /// nothing if this one has to. Those names stand in earlier chunks or before this one in the same, so the wait
    /// ends.
    pub(super) fn carrier(&self) -> Option<MemberPath> {
        let mut state = self.group.state();
        while state.carrier.is_none() && state.next < self.ordinal {
            state = self.group.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.carrier.clone()
    }

    /// Tells that this name carries the data.
    pub(super) fn carried(self, path: &MemberPath) {
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

//! Which path beneath the target a member gets, and which members meet there.

use std::collections::HashMap;

use super::options::Options;
use crate::error::Result;
use crate::member::{MemberKind, MemberPath};

/// A digest of a path, as in [`crate::confined::CompletedPaths`].
type Key = [u8; 32];

/// Maps members to paths beneath the target. By `strip` and `rename_root` several can get the same path.
#[derive(Default)]
pub(super) struct TargetPaths {
    /// By path: the member that got it first, and whether it is a folder. Empty if each path has one member.
    claims: HashMap<Key, (Key, bool)>,
}

impl TargetPaths {
    /// Claims a path for a member. Returns false if another member has it; folders share a path.
    pub fn claim(&mut self, options: &Options, path: &MemberPath, member: &MemberPath, kind: MemberKind) -> bool {
        if options.strip == 0 && options.rename_root.is_none() {
            return true;
        }
        let is_folder = kind == MemberKind::Folder;
        let (owner, is_shared) = *self.claims.entry(key(path)).or_insert_with(|| (key(member), is_folder));
        owner == key(member) || is_shared && is_folder
    }

    /// Returns whether no other member than `member` has claimed `path`.
    pub fn is_of(&self, path: &MemberPath, member: &MemberPath) -> bool {
        self.claims.get(&key(path)).is_none_or(|(owner, _)| *owner == key(member))
    }
}

fn key(path: &MemberPath) -> Key {
    *blake3::hash(path.as_bytes()).as_bytes()
}

/// Returns the path of a member relative to the target; `None` if stripping leaves nothing of it.
pub(super) fn target_path(options: &Options, path: &MemberPath) -> Result<Option<MemberPath>> {
    if options.strip == 0 && options.rename_root.is_none() {
        return Ok(Some(path.clone()));
    }
    let mut components: Vec<&[u8]> = path.as_bytes().split(|&b| b == b'/').collect();
    if let Some(root) = &options.rename_root {
        components[0] = root;
    }
    match components.get(options.strip..) {
        None | Some([]) => Ok(None),
        Some(rest) => MemberPath::parse(&rest.join(&b'/')).map(Some),
    }
}

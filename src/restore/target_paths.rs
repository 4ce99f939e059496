//! Which path beneath the target a member gets, and which members meet there.

use std::collections::HashMap;

use super::options::Options;
use crate::error::Result;
use crate::member::{MemberKind, MemberPath, PathKey, path_key};

/// Keeps apart the members that get the same path beneath the target, which `strip` and `rename_root` can cause.
pub(super) enum TargetPaths {
    /// Each path has one member, because names stay as they are.
    Unchanged,
    /// Each path has one member, because only the root folder is renamed or stripped and the archive has no other.
    /// Nothing is stored of the members but this name, so that memory does not grow with their number.
    OneRoot(Option<Box<[u8]>>),
    /// By path: the member that got it first, and whether it is a folder.
    Claims(HashMap<PathKey, (PathKey, bool)>),
}

impl TargetPaths {
    /// Returns the state at the beginning of a restore. `is_ours`: this program made the archive, so all of its members
    /// lie in one folder.
    pub fn new(options: &Options, is_ours: bool) -> TargetPaths {
        match (options.strip, &options.rename_root) {
            (0, None) => TargetPaths::Unchanged,
            (0 | 1, _) if is_ours => TargetPaths::OneRoot(None),
            _ => TargetPaths::Claims(HashMap::new()),
        }
    }

    /// Claims a path for a member; folders share a path. Errors: why it may belong to another member.
    pub fn claim(
        &mut self,
        path: &MemberPath,
        member: &MemberPath,
        kind: MemberKind,
    ) -> std::result::Result<(), String> {
        match self {
            TargetPaths::Unchanged => Ok(()),
            // A trailer proves nothing: a hostile archive may have several roots.
            TargetPaths::OneRoot(root) => {
                let root = root.get_or_insert_with(|| root_of(member).into());
                if **root == *root_of(member) {
                    return Ok(());
                }
                Err(format!("{member} lies outside {}, the folder of this archive", String::from_utf8_lossy(root)))
            }
            TargetPaths::Claims(claims) => {
                let (claimant, is_folder) = (path_key(member.as_bytes()), kind == MemberKind::Folder);
                let (owner, is_shared) = *claims.entry(path_key(path.as_bytes())).or_insert((claimant, is_folder));
                if owner == claimant || is_shared && is_folder {
                    return Ok(());
                }
                Err(format!("{member} and a member before it both get this path"))
            }
        }
    }

    /// Returns whether `path` is known to belong to no other member than `member`.
    pub fn is_of(&self, path: &MemberPath, member: &MemberPath) -> bool {
        match self {
            TargetPaths::Unchanged => true,
            TargetPaths::OneRoot(root) => root.as_ref().is_none_or(|root| **root == *root_of(member)),
            TargetPaths::Claims(claims) => {
                claims.get(&path_key(path.as_bytes())).is_none_or(|(owner, _)| *owner == path_key(member.as_bytes()))
            }
        }
    }
}

fn root_of(path: &MemberPath) -> &[u8] {
    path.as_bytes().split(|&b| b == b'/').next().unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn path(text: &str) -> MemberPath {
        MemberPath::parse(text.as_bytes()).unwrap()
    }

    /// A restore in place of a large archive stores nothing of each member, and still never mixes up two of them.
    #[test]
    fn members_are_stored_only_if_two_of_them_can_get_the_same_path() {
        let to = |strip, root: Option<&str>| Options {
            strip,
            rename_root: root.map(|root| root.as_bytes().to_vec()),
            ..Options::to(Path::new("to"))
        };
        for (options, is_ours, stores_members) in [
            (to(0, None), false, false),
            (to(0, Some("docs")), true, false),
            (to(1, None), true, false),
            (to(2, None), true, true),
            (to(1, Some("docs")), false, true),
            (to(1, None), false, true),
        ] {
            let mut paths = TargetPaths::new(&options, is_ours);
            assert_eq!(matches!(paths, TargetPaths::Claims(_)), stores_members, "{options:?} {is_ours}");
            let mut claim = |member: &str| {
                let target = target_path(&options, &path(member)).unwrap().unwrap();
                paths.claim(&target, &path(member), MemberKind::File).is_ok()
            };
            assert!(claim("docs/a/x") && claim("docs/a/y"), "{options:?} {is_ours}");
            // Of another root: the same path under the target, unless names stay as they are.
            assert_eq!(
                claim("other/a/x"),
                options.strip == 0 && options.rename_root.is_none(),
                "{options:?} {is_ours}"
            );
        }
    }
}

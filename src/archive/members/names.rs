//! Checks which names of members, and which targets of links, can be trusted.

use crate::member::{MemberKind, MemberPath};

/// Longest name in bytes.
pub(super) const MAX_NAME_BYTES: usize = 1 << 20;
/// Largest number of folders that a member lies in.
const MAX_DEPTH: usize = 8192;

/// Returns the path that a name means, and whether the name was absolute; `None` for the root folder of the archive.
/// Errors: why such a name is refused.
pub(super) fn clean_path(name: &[u8]) -> Result<Option<(MemberPath, bool)>, String> {
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("its name is longer than {MAX_NAME_BYTES} bytes"));
    }
    let mut clean = Vec::with_capacity(name.len());
    let mut depth = 0;
    for component in name.split(|&b| b == b'/').filter(|component| !matches!(*component, b"" | b".")) {
        depth += 1;
        if component == b".." {
            return Err("its name leads out of the target (..)".to_owned());
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    if depth > MAX_DEPTH {
        return Err(format!("it lies more than {MAX_DEPTH} folders deep"));
    }
    if clean.is_empty() {
        return Ok(None);
    }
    let path = MemberPath::parse(&clean).map_err(|e| e.to_string())?;
    Ok(Some((path, name.starts_with(b"/"))))
}

/// Returns the target of a link as a member keeps it; `None` for members that are no links. Errors: why such a link is
/// refused.
pub(super) fn link_target(kind: MemberKind, target: Vec<u8>) -> Result<Option<Box<[u8]>>, String> {
    match kind {
        MemberKind::HardLink => match clean_path(&target) {
            Ok(Some((path, _))) => Ok(Some(path.as_bytes().into())),
            Ok(None) => Err("it is a hard link to nothing".to_owned()),
            Err(_) => Err("it is a hard link to a name that leads out of the target".to_owned()),
        },
        MemberKind::Symlink if target.is_empty() || target.contains(&0) => {
            Err("it is a symbolic link to nothing".to_owned())
        }
        MemberKind::Symlink => Ok(Some(target.into())),
        _ => Ok(None),
    }
}

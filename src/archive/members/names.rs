//! Which names of members, and which targets of links, can be trusted.

use super::{MOST_DEPTH, MOST_NAME_BYTES};
use crate::member::{MemberKind, MemberPath};

/// Makes a path of a name: nothing for the folder that all members lie in. Says whether it began at the root of the
/// file system. Errors: why such a name is refused.
pub(super) fn clean_path(name: &[u8]) -> Result<Option<(MemberPath, bool)>, String> {
    if name.len() > MOST_NAME_BYTES {
        return Err(format!("its name is longer than {MOST_NAME_BYTES} bytes"));
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
    if depth > MOST_DEPTH {
        return Err(format!("it lies more than {MOST_DEPTH} folders deep"));
    }
    if clean.is_empty() {
        return Ok(None);
    }
    let path = MemberPath::parse(&clean).map_err(|e| e.to_string())?;
    Ok(Some((path, name.starts_with(b"/"))))
}

/// Checks what a link leads to. Errors: why such a link is refused.
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

//! Compares two archives, or an archive and its source: by content if both sides have its digest, else by size and
//! modification time.

use std::collections::BTreeMap;

use super::hard_links::HardLinks;
use super::open_archive::OpenArchive;
use super::read_file::read_content;
use super::selection::Selection;
use crate::archive::members::Event;
use crate::error::{Error, ErrorKind, Result};
use crate::member::{FileTime, Member, MemberKind, MemberPath};

/// The parts of a member that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSummary {
    /// Its kind; a hard link counts as a file.
    pub kind: MemberKind,
    /// Bytes of content.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time.
    pub modified: FileTime,
    /// Target of a symbolic link.
    pub link_target: Option<Box<[u8]>>,
    /// Major and minor number of a device.
    pub device_number: Option<(u32, u32)>,
    /// BLAKE3 of the content, if it is known.
    pub digest: Option<[u8; 32]>,
}

/// Members by path.
pub type MembersByPath = BTreeMap<MemberPath, MemberSummary>;

/// One difference between two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Only the newer side has it.
    Added(&'a MemberSummary),
    /// Only the older side has it.
    Removed(&'a MemberSummary),
    /// Both have it, and it differs.
    Changed(&'a MemberSummary, &'a MemberSummary),
}

impl MemberSummary {
    /// Returns the summary of a member whose content has this digest.
    pub fn of(member: &Member, digest: Option<[u8; 32]>) -> MemberSummary {
        MemberSummary {
            kind: member.kind,
            size: member.size,
            mode: member.mode,
            owner: (member.uid, member.gid),
            modified: member.modified,
            link_target: member.link_target.clone(),
            device_number: member.device_number,
            digest,
        }
    }

    /// Returns the names of the parts that differ from an older state. The time of a folder is not compared: it changes
    /// whenever an entry is added or removed, and these are differences of their own.
    pub fn differences(&self, older: &MemberSummary) -> Vec<&'static str> {
        if self.kind != older.kind {
            return vec!["kind"];
        }
        let content = match (self.digest, older.digest) {
            (Some(new), Some(old)) => new != old,
            _ => self.kind == MemberKind::File && (self.size, self.modified) != (older.size, older.modified),
        };
        let time = self.kind != MemberKind::Folder && self.modified != older.modified;
        let all = [
            (content || self.size != older.size, "content"),
            (self.link_target != older.link_target, "target"),
            (self.device_number != older.device_number, "device"),
            (self.mode != older.mode, "mode"),
            (self.owner != older.owner, "owner"),
            (time, "time"),
        ];
        all.into_iter().filter(|(differs, _)| *differs).map(|(_, word)| word).collect()
    }
}

/// Returns the members of an archive. If it is not in the catalog, all of it is read.
///
/// Errors: `Damage` if it cannot be read whole.
pub fn members_by_path(archive: &OpenArchive) -> Result<MembersByPath> {
    let mut all = MembersByPath::new();
    let is_in_catalog = archive.catalog_members(&mut |_, entry| {
        all.insert(entry.member.path.clone(), MemberSummary::of(&entry.member, entry.content_digest));
        Ok(())
    })?;
    if !is_in_catalog {
        read_all(archive, &mut all)?;
    }
    let links = all
        .iter()
        .filter(|(_, summary)| summary.kind == MemberKind::HardLink)
        .filter_map(|(path, summary)| Some((path.clone(), MemberPath::parse(summary.link_target.as_deref()?).ok()?)));
    let links = HardLinks::new(links);
    for link in links.paths() {
        if let Some(summary) = links.end_of_chain(link).and_then(|file| all.get(&file).cloned()) {
            all.insert(link.clone(), summary);
        }
    }
    Ok(all)
}

fn read_all(archive: &OpenArchive, all: &mut MembersByPath) -> Result<()> {
    let mut members = archive.members(&Selection::everything()?, 2)?;
    while let Some(event) = members.next()? {
        let entry = match event {
            Event::Member(entry) => entry,
            Event::Refused { name, reason } => {
                let message = format!("{} cannot be trusted: {reason}", String::from_utf8_lossy(&name));
                return Err(Error::new(ErrorKind::Damage, message));
            }
            Event::Damaged { reason, .. } | Event::Undecodable { reason } => {
                return Err(Error::new(
                    ErrorKind::Damage,
                    format!("{} is damaged: {reason}", archive.path().display()),
                )
                .hint("`restore` gets back what is whole"));
            }
        };
        let mut digest = None;
        if entry.member.kind == MemberKind::File {
            let mut hasher = blake3::Hasher::new();
            read_content(&mut members, &entry, &mut |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
            digest = Some(*hasher.finalize().as_bytes());
        }
        all.insert(entry.member.path.clone(), MemberSummary::of(&entry.member, digest));
    }
    Ok(())
}

/// Passes the differences to `visit`, in the order of paths.
pub fn compare(
    older: &MembersByPath,
    newer: &MembersByPath,
    visit: &mut dyn FnMut(&MemberPath, Change<'_>) -> Result<()>,
) -> Result<()> {
    let (mut old, mut new) = (older.iter().peekable(), newer.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let was = if order.is_le() { old.next() } else { None };
        let is = if order.is_ge() { new.next() } else { None };
        match (was, is) {
            (Some((path, was)), Some((_, is))) if !is.differences(was).is_empty() => {
                visit(path, Change::Changed(was, is))?;
            }
            (Some((path, was)), None) => visit(path, Change::Removed(was))?,
            (None, Some((path, is))) => visit(path, Change::Added(is))?,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(size: u64, seconds: i64, digest: Option<u8>) -> MemberSummary {
        MemberSummary {
            kind: MemberKind::File,
            size,
            mode: 0o644,
            owner: (0, 0),
            modified: FileTime { seconds, nanoseconds: 0 },
            link_target: None,
            device_number: None,
            digest: digest.map(|byte| [byte; 32]),
        }
    }

    #[test]
    fn a_time_is_a_difference_of_content_only_if_a_digest_is_unknown() {
        let differences = |new: MemberSummary, old: MemberSummary| new.differences(&old).join(" ");
        assert_eq!(differences(summary(1, 1, Some(1)), summary(1, 1, Some(1))), "");
        assert_eq!(differences(summary(1, 2, Some(1)), summary(1, 1, Some(1))), "time");
        assert_eq!(differences(summary(1, 1, Some(2)), summary(1, 1, Some(1))), "content");
        assert_eq!(differences(summary(1, 2, None), summary(1, 1, Some(1))), "content time");
        assert_eq!(differences(summary(1, 1, None), summary(1, 1, Some(1))), "");
    }

    #[test]
    fn differences_are_visited_in_the_order_of_paths() {
        let side = |list: &[(&str, u64)]| -> MembersByPath {
            list.iter().map(|(p, size)| (MemberPath::parse(p.as_bytes()).unwrap(), summary(*size, 0, None))).collect()
        };
        let (old, new) = (side(&[("a", 1), ("b", 1), ("c", 1)]), side(&[("a", 1), ("c", 2), ("d", 1)]));
        let mut visited = Vec::new();
        compare(&old, &new, &mut |path, change| {
            let word = match change {
                Change::Added(_) => "+",
                Change::Removed(_) => "-",
                Change::Changed(..) => "~",
            };
            visited.push(format!("{word}{path}"));
            Ok(())
        })
        .unwrap();
        assert_eq!(visited, ["-b", "~c", "+d"]);
    }
}

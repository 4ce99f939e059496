//! Finds the members of an archive of another program that a restore of all of it refuses for what other members are:
//! those beneath a path that the archive made no folder, and hard links to nothing.

use std::collections::{HashMap, HashSet};

use crate::member::{Member, MemberKind, MemberPath, PathKey, path_key};

/// Bytes of the names of hard links whose first name was not read yet, and of these; a hostile archive could fill the
/// memory with more.
const MAX_OPEN_LINK_BYTES: usize = 256 << 20;

/// What the members so far are, by their paths.
#[derive(Default)]
pub(super) struct Refusals {
    /// Paths whose newest member is no folder.
    no_folders: HashSet<PathKey>,
    /// Paths that a hard link can refer to.
    contents: HashSet<PathKey>,
    /// Hard links whose first name was not read yet, by that name.
    open_links: HashMap<MemberPath, Vec<MemberPath>>,
    open_link_bytes: usize,
}

impl Refusals {
    /// Takes the next member. Returns why a restore refuses it, if that is known already.
    pub fn check(&mut self, member: &Member) -> Option<String> {
        let key = path_key(member.path.as_bytes());
        if !matches!(member.kind, MemberKind::Folder | MemberKind::HardLink) {
            self.contents.insert(key);
        }
        if let Some(parent) = self.parent_that_is_no_folder(&member.path) {
            return Some(format!("it lies below {parent}, which is not a folder in this archive"));
        }
        match member.kind {
            MemberKind::Folder => {
                self.no_folders.remove(&key);
            }
            MemberKind::HardLink => return self.check_link(member, key),
            _ => {
                self.no_folders.insert(key);
            }
        }
        None
    }

    fn parent_that_is_no_folder(&self, path: &MemberPath) -> Option<MemberPath> {
        let bytes = path.as_bytes();
        let mut slashes = (0..bytes.len()).filter(|&at| bytes[at] == b'/');
        let end = slashes.find(|&end| self.no_folders.contains(&path_key(&bytes[..end])))?;
        MemberPath::parse(&bytes[..end]).ok()
    }

    fn check_link(&mut self, link: &Member, link_key: PathKey) -> Option<String> {
        let first = MemberPath::parse(link.link_target.as_deref().unwrap_or_default()).ok()?;
        if first == link.path {
            return Some("it is a hard link to itself".to_owned());
        }
        if self.contents.contains(&path_key(first.as_bytes())) {
            self.contents.insert(link_key);
            self.no_folders.insert(link_key);
            return None;
        }
        self.open_link_bytes += link.path.as_bytes().len() + first.as_bytes().len();
        if self.open_link_bytes <= MAX_OPEN_LINK_BYTES {
            self.open_links.entry(first).or_default().push(link.path.clone());
        }
        None
    }

    /// Returns the hard links that lead to nothing, now that all members are known, and why each is refused.
    pub fn finish(mut self) -> impl Iterator<Item = (MemberPath, String)> {
        let is_known = |first: &&MemberPath| self.contents.contains(&path_key(first.as_bytes()));
        let mut known: Vec<MemberPath> = self.open_links.keys().filter(is_known).cloned().collect();
        while let Some(first) = known.pop() {
            known.extend(self.open_links.remove(&first).unwrap_or_default());
        }
        self.open_links.into_iter().flat_map(|(first, links)| {
            let reason = format!("it is a hard link to {first}, of which the archive has no content");
            links.into_iter().map(move |link| (link, reason.clone()))
        })
    }
}

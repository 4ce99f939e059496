//! Hard links that refer to further hard links, as other programs may write them.

use std::collections::{HashMap, HashSet};

use super::open_archive::OpenArchive;
use super::selection::Selection;
use crate::archive::members::Event;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::member::{MemberKind, MemberPath};

/// Bytes of the names of links, and of the names that they refer to; a hostile archive could fill the memory.
const MAX_BYTES: usize = 256 << 20;

/// The hard links of an archive, each with the name that it refers to.
pub struct HardLinks(HashMap<MemberPath, MemberPath>);

impl HardLinks {
    /// Reads the whole archive once. Of a path that it has several times, the last member counts. Damage and members
    /// that are refused are passed over: whoever restores or prints the content meets them, too.
    ///
    /// Errors: `Interrupted` after `cancel`; `Failed` if there are too many links.
    pub fn read(archive: &OpenArchive, cancel: &CancelToken) -> Result<HardLinks> {
        let mut links = HashMap::new();
        let mut bytes = 0;
        let mut members = archive.members(&Selection::everything()?, 2)?.cancelled_by(cancel);
        while let Some(event) = members.next()? {
            cancel.check("the search for hard links was cancelled")?;
            let Event::Member(entry) = event else { continue };
            let member = entry.member;
            if member.kind != MemberKind::HardLink {
                links.remove(&member.path);
                continue;
            }
            let first = MemberPath::parse(member.link_target.as_deref().unwrap_or_default())?;
            bytes += member.path.as_bytes().len() + first.as_bytes().len();
            if bytes > MAX_BYTES {
                let file = archive.path().display();
                return Err(Error::failed(format!("{file} has too many hard links that refer to hard links"))
                    .hint("name other members"));
            }
            links.insert(member.path, first);
        }
        Ok(HardLinks(links))
    }

    /// Takes hard links and the names that they refer to.
    pub(super) fn new(links: impl IntoIterator<Item = (MemberPath, MemberPath)>) -> HardLinks {
        HardLinks(links.into_iter().collect())
    }

    /// Returns the hard links.
    pub(super) fn paths(&self) -> impl Iterator<Item = &MemberPath> {
        self.0.keys()
    }

    /// Returns the member that is no hard link and to which the chain of hard links from `first` leads; `None` if the
    /// links refer to each other. Whether that member exists is not known here.
    pub fn end_of_chain(&self, first: &MemberPath) -> Option<MemberPath> {
        let mut visited = HashSet::new();
        let mut current = first;
        while let Some(next) = self.0.get(current) {
            if !visited.insert(current) {
                return None;
            }
            current = next;
        }
        Some(current.clone())
    }
}

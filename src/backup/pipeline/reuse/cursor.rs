//! The merge join of the walk with the members of the base, which come in the same order.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::iter::Peekable;
use std::vec::IntoIter;

use crossbeam_channel::Receiver;

use super::Page;
use crate::chunk::{BaseChunk, BaseMember, Chunk, Place};
use crate::clock::Timestamp;
use crate::member::{CatalogMember, MemberPath};

/// A chunk of the base, without its members.
#[derive(Clone, Copy, Debug)]
pub struct BaseRef {
    /// Its row.
    pub id: i64,
    /// Where the base stores it.
    pub chunk: Chunk,
    /// Its place in a segment; `None` in the whole layout.
    pub place: Option<Place>,
    /// When the run that read it began.
    pub read_started: Timestamp,
}

/// The member of the base with the path of an entry.
#[derive(Clone, Debug)]
pub struct BaseHint {
    /// Its row.
    pub id: i64,
    /// What the catalog stores of it.
    pub entry: CatalogMember,
    /// When the run that read its chunk began.
    pub read_started: Timestamp,
}

/// What the base holds for the members of a plan.
#[derive(Debug, Default)]
pub struct Match {
    /// For each member of the plan the one of the same path.
    pub hints: Vec<Option<BaseHint>>,
    /// The chunk that holds exactly these members.
    pub exact: Option<BaseRef>,
}

/// Goes through the chunks of the base in order, page by page.
pub struct BaseCursor {
    pages: Receiver<Page>,
    page: VecDeque<BaseChunk>,
    current: Option<Current>,
}

/// The chunk whose members are being passed.
struct Current {
    chunk: BaseRef,
    members: Peekable<IntoIter<BaseMember>>,
    count: usize,
    passed: usize,
}

impl BaseCursor {
    /// Starts before the first member of the first page.
    pub fn new(pages: Receiver<Page>) -> Self {
        BaseCursor { pages, page: VecDeque::new(), current: None }
    }

    /// Returns the members of the base with these paths, which follow each other and all paths before.
    pub fn join<'p>(&mut self, paths: impl Iterator<Item = &'p MemberPath>) -> Match {
        let mut hints = Vec::new();
        let mut exact: Option<u64> = None;
        let mut is_exact = true;
        for (ordinal, path) in paths.enumerate() {
            let found = self.seek(path);
            let place = found.as_ref().map(|(sequence, passed, _)| (*sequence, *passed));
            let sequence = place.filter(|&(_, passed)| passed == ordinal).map(|(sequence, _)| sequence);
            is_exact &= sequence.is_some() && exact.is_none_or(|first| sequence == Some(first));
            exact = exact.or(sequence);
            hints.push(found.map(|(_, _, hint)| hint));
        }
        let is_whole = |current: &&Current| is_exact && Some(current.chunk.chunk.sequence) == exact;
        let current = self.current.as_ref().filter(is_whole).filter(|current| current.count == hints.len());
        Match { exact: current.map(|current| current.chunk), hints }
    }

    /// Returns the next piece of the large file whose header is in the chunk found last, or `None` if it has no more.
    pub fn next_piece(&mut self) -> Option<BaseRef> {
        if !self.load() || self.page.front().is_none_or(|chunk| !chunk.members.is_empty()) {
            return None;
        }
        self.page.pop_front().map(|chunk| BaseRef::of(&chunk))
    }

    /// Passes all members before `path`. Returns the one of this path with the position of its chunk and its own
    /// position in it.
    fn seek(&mut self, path: &MemberPath) -> Option<(u64, usize, BaseHint)> {
        loop {
            let Some(current) = &mut self.current else {
                if !self.next_chunk() {
                    return None;
                }
                continue;
            };
            let order = current.members.peek().map(|member| member.entry.member.path.cmp(path));
            match order {
                None => self.current = None,
                Some(Ordering::Greater) => return None,
                Some(order) => {
                    let passed = current.passed;
                    current.passed += 1;
                    let Some(member) = current.members.next().filter(|_| order == Ordering::Equal) else { continue };
                    let chunk = &current.chunk;
                    let hint = BaseHint { id: member.id, entry: member.entry, read_started: chunk.read_started };
                    return Some((chunk.chunk.sequence, passed, hint));
                }
            }
        }
    }

    /// Goes to the next chunk with members. Returns whether there is one.
    fn next_chunk(&mut self) -> bool {
        while self.load() {
            let Some(chunk) = self.page.pop_front() else { return false };
            if !chunk.members.is_empty() {
                let (reference, count) = (BaseRef::of(&chunk), chunk.members.len());
                let members = chunk.members.into_iter().peekable();
                self.current = Some(Current { chunk: reference, members, count, passed: 0 });
                return true;
            }
        }
        false
    }

    /// Takes the next page if the last one is used up. Returns whether there are chunks left.
    fn load(&mut self) -> bool {
        while self.page.is_empty() {
            match self.pages.recv() {
                Ok(page) => self.page = page.into(),
                Err(_) => return false,
            }
        }
        true
    }
}

impl BaseRef {
    pub fn of(chunk: &BaseChunk) -> Self {
        BaseRef { id: chunk.id, chunk: chunk.chunk, place: chunk.place, read_started: chunk.read_started }
    }
}

impl BaseHint {
    /// Returns the row of this member if the catalog would record exactly `row` for it again.
    pub fn row_of(&self, row: &CatalogMember) -> Option<i64> {
        let base = &self.entry;
        let (a, b) = (&base.member, &row.member);
        // Of extended attributes the catalog has only the digest. The device number changes when the machine restarts,
        // and identifies nothing.
        let has_equal_header = a.path == b.path
            && a.kind == b.kind
            && (a.size, a.mode, a.uid, a.gid, a.modified) == (b.size, b.mode, b.uid, b.gid, b.modified)
            && (&a.user_name, &a.group_name) == (&b.user_name, &b.group_name)
            && (&a.link_target, a.device_number) == (&b.link_target, b.device_number);
        let is_equal = has_equal_header
            && (base.entry_bytes, base.inode, base.changed) == (row.entry_bytes, row.inode, row.changed)
            && (base.content_digest, base.xattr_digest) == (row.content_digest, row.xattr_digest)
            && base.is_reusable == row.is_reusable;
        is_equal.then_some(self.id)
    }
}

//! Files over 4 MiB: cut into pieces that are read, hashed and encoded independently.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::read::{self, OpenedFile, Shortfall};
use super::reuse::BaseHint;
use super::state::PipelineState;
use crate::archive::cutter::MAX_CONTENT_BYTES;
use crate::member::{Member, MemberKind, Span};
use crate::source::{OpenFile, OwnerNames, SourceEntry};

/// Bytes of a file in one piece, holes included. A power of two, so that a piece is a subtree of the file's hash.
pub(super) const PIECE_BYTES: u64 = MAX_CONTENT_BYTES;

/// A file over 4 MiB during its reading.
pub(super) struct LargeFile {
    pub(super) entry: SourceEntry,
    pub(super) file: OpenFile,
    /// The member of the base with its path.
    pub(super) hint: Option<BaseHint>,
    /// The fields of its header.
    pub(super) member: Member,
    /// Its extended attributes could not be read.
    has_lost_attributes: bool,
    /// Its spans of data, if it is sparse.
    pub(super) spans: Option<Vec<Span>>,
    progress: Mutex<PieceProgress>,
    result: OnceLock<FileResult>,
}

struct PieceProgress {
    hash: PieceHash,
    pieces_left: u64,
    shortfall: Option<Shortfall>,
}

/// What is known of a file once all its pieces have been read and the file was checked for changes.
#[derive(Clone, Copy)]
pub(super) struct FileResult {
    /// BLAKE3 of the content in the archive.
    pub(super) digest: [u8; 32],
    /// No problem was recorded for it.
    pub(super) is_reusable: bool,
}

impl LargeFile {
    /// Reads the attributes and the spans of an open file of more than one piece.
    pub(super) fn new(state: &PipelineState<'_>, names: &OwnerNames, opened: OpenedFile) -> Self {
        let OpenedFile { entry, file, hint, .. } = opened;
        let xattrs = read::xattrs(state, &file);
        let has_lost_attributes = xattrs.is_none();
        let member = read::member(names, &entry, file.stat(), MemberKind::File, xattrs.unwrap_or_default());
        let spans = read::spans(&file);
        let pieces_left = member.size.div_ceil(PIECE_BYTES);
        let progress = PieceProgress { hash: PieceHash::default(), pieces_left, shortfall: None };
        LargeFile {
            entry,
            file,
            hint,
            member,
            has_lost_attributes,
            spans,
            progress: Mutex::new(progress),
            result: OnceLock::new(),
        }
    }

    /// Returns the number of pieces.
    pub(super) fn pieces(&self) -> u64 {
        self.member.size.div_ceil(PIECE_BYTES)
    }

    /// Returns the range of the file that a piece covers, in bytes.
    pub(super) fn range(&self, piece: u64) -> Range<u64> {
        piece * PIECE_BYTES..((piece + 1) * PIECE_BYTES).min(self.member.size)
    }

    /// Returns a hasher for the logical content of a piece.
    pub(super) fn hasher(piece: u64) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(piece * PIECE_BYTES);
        hasher
    }

    /// Adds the hash of a piece that was read, and its shortfall if it has one. Pieces may be added in any order. After
    /// the last piece returns the digest of the file and the first shortfall.
    pub(super) fn add_piece_hash(
        &self,
        piece: u64,
        hasher: &blake3::Hasher,
        shortfall: Option<Shortfall>,
    ) -> Option<HashedFile> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.hash.add(piece, hasher.finalize_non_root());
        progress.pieces_left -= 1;
        if progress.shortfall.is_none() {
            progress.shortfall = shortfall;
        }
        (progress.pieces_left == 0)
            .then(|| HashedFile { digest: progress.hash.root(), shortfall: progress.shortfall.take() })
    }

    /// Sets the result: the digest of the content, and whether a problem was recorded. Only the worker that read the
    /// last piece calls this, once.
    pub(super) fn set_result(&self, digest: [u8; 32], has_problem: bool) {
        let is_reusable = !has_problem && !self.has_lost_attributes && self.entry.file_system.is_synced;
        let _ = self.result.set(FileResult { digest, is_reusable });
    }

    /// Returns the result, or `None` before all pieces have been read.
    pub(super) fn result(&self) -> Option<FileResult> {
        self.result.get().copied()
    }
}

/// A file whose pieces have all been read.
pub(super) struct HashedFile {
    /// BLAKE3 of the content in the archive.
    pub(super) digest: [u8; 32],
    /// The first shortfall of a piece.
    pub(super) shortfall: Option<Shortfall>,
}

/// Assembles the standard BLAKE3 hash of a file from the hashes of its pieces, of which there are at least two.
#[derive(Default)]
struct PieceHash {
    /// Hashes of complete subtrees, from the largest to the smallest, of the first `added` pieces.
    stack: Vec<ChainingValue>,
    added: u64,
    /// Pieces that came before one of their predecessors. Few, because only a few pieces are read at once.
    early: Vec<(u64, ChainingValue)>,
}

impl PieceHash {
    fn add(&mut self, piece: u64, value: ChainingValue) {
        self.early.push((piece, value));
        while let Some(at) = self.early.iter().position(|(piece, _)| *piece == self.added) {
            let (_, value) = self.early.swap_remove(at);
            // Subtrees are joined only when another piece follows, because the last join of all is the root and is
            // computed differently.
            while self.stack.len() > self.added.count_ones() as usize {
                self.join();
            }
            self.stack.push(value);
            self.added += 1;
        }
    }

    fn join(&mut self) {
        if let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) {
            self.stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
    }

    fn root(&mut self) -> [u8; 32] {
        while self.stack.len() > 2 {
            self.join();
        }
        match self.stack[..] {
            [left, right] => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
            _ => unreachable!("a large file has at least two pieces"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_make_the_standard_hash() {
        // The same tree with pieces of one BLAKE3 chunk.
        let content: Vec<u8> = (0..70_000u32).map(|i| (i / 3) as u8).collect();
        for length in [1025, 2048, 2049, 4096, 5000, 8191, 8192, 8193, 65_536, 70_000] {
            let mut pieces: Vec<_> = content[..length].chunks(1024).enumerate().collect();
            // Pairs swapped, and the first piece last but one.
            pieces.chunks_mut(2).for_each(<[_]>::reverse);
            let mut hash = PieceHash::default();
            for (piece, bytes) in pieces {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(piece as u64 * 1024);
                hash.add(piece as u64, hasher.update(bytes).finalize_non_root());
            }
            assert_eq!(hash.root(), *blake3::hash(&content[..length]).as_bytes(), "{length}");
        }
    }
}

//! Regular files as members: small ones, files of several pieces, and files whose size is reported wrongly.

use std::sync::Arc;

use super::chunk_builder::{ChunkBuilder, ReadMember, insert_padding};
use super::hard_links::LinkTurn;
use super::large_file::{HashedFile, LargeFile, PIECE_BYTES};
use super::plan::MAX_WHOLE_BYTES;
use super::read::{self, MAX_ATTEMPTS, OpenedFile, ReadOutcome};
use crate::archive::block::BLOCK_BYTES;
use crate::archive::cutter::MAX_CONTENT_BYTES;
use crate::archive::header;
use crate::error::Result;
use crate::member::{Member, MemberKind};
use crate::progress::{Problem, ProblemKind};
use crate::source::Stability;

/// A file of one piece whose header and content were appended to a chunk.
struct SmallFile {
    member: Member,
    outcome: ReadOutcome,
    /// BLAKE3 of its content.
    digest: [u8; 32],
    has_lost_attributes: bool,
}

impl ChunkBuilder<'_, '_> {
    pub(super) fn add_file(&mut self, opened: OpenedFile, turn: Option<LinkTurn>) -> Result<()> {
        let expected_bytes = header::entry_bytes(MemberKind::File, opened.file.stat().size);
        if self.content.len() as u64 + expected_bytes > 2 * MAX_CONTENT_BYTES {
            // Files that grew since they were listed.
            self.end_members()?;
        }
        let (path, is_same) = (opened.entry.path.clone(), opened.is_same);
        let is_added = self.add_small_file(opened)?;
        if let Some(turn) = turn.filter(|_| is_added && is_same) {
            turn.set_carrier(&path);
        }
        Ok(())
    }

    /// Adds a file of one piece, and reads it again if it changed meanwhile. Returns whether it is in the archive.
    fn add_small_file(&mut self, mut opened: OpenedFile) -> Result<bool> {
        let offset = self.content.len();
        for attempt in 1.. {
            if opened.file.stat().size > PIECE_BYTES {
                break;
            }
            let SmallFile { member, outcome, digest, has_lost_attributes } = self.read_small_file(&opened);
            let stability = opened.file.check();
            let is_steady = matches!(stability, Ok(Stability::Unchanged));
            let mut has_problem = has_lost_attributes;
            if !(is_steady && outcome.is_exact()) {
                let may_repeat = attempt < MAX_ATTEMPTS && outcome.error.is_none();
                if may_repeat && opened.file.refresh().is_ok() {
                    self.content.truncate(offset);
                    continue;
                }
                if outcome.error.is_some() && outcome.missing == member.size || is_steady && outcome.error.is_none() {
                    self.content.truncate(offset);
                    return self.add_file_of_unknown_size(&opened, member, &outcome);
                }
                let problem = read::file_problem(&opened.entry, outcome.shortfall(), stability);
                has_problem |= problem.is_some();
                problem.into_iter().for_each(|problem| self.state.problem(problem));
            }
            self.bytes_read += member.size;
            let stat = *opened.file.stat();
            let read = ReadMember { offset, member, stat, content_digest: Some(digest), is_reusable: !has_problem };
            self.push_member(read, &opened.entry, opened.hint.as_ref());
            return Ok(true);
        }
        self.add_large_file(opened)?;
        Ok(true)
    }

    /// Appends the header and the content of a file of one piece to the chunk.
    fn read_small_file(&mut self, opened: &OpenedFile) -> SmallFile {
        let OpenedFile { entry, file, .. } = opened;
        let spans = read::spans(file);
        let xattrs = read::xattrs(self.state, file);
        let has_lost_attributes = xattrs.is_none();
        let member = read::member(self.names, entry, file.stat(), MemberKind::File, xattrs.unwrap_or_default());
        header::append(&mut self.content, &member, spans.as_deref());
        let mut hasher = blake3::Hasher::new();
        let outcome = read::data(file, spans.as_deref(), &(0..member.size), &mut self.content, &mut hasher);
        self.content.pad_block();
        SmallFile { member, outcome, digest: *hasher.finalize().as_bytes(), has_lost_attributes }
    }

    /// Adds a file that cannot be read at all, or whose size is reported wrongly although it does not change, as in
    /// `/proc` and `/sys`. Of the latter it archives what can be read, up to one piece.
    fn add_file_of_unknown_size(
        &mut self,
        opened: &OpenedFile,
        mut member: Member,
        outcome: &ReadOutcome,
    ) -> Result<bool> {
        let problem = |reason: String| read::problem(&opened.entry, ProblemKind::Unreadable, reason);
        if let Some((_, error)) = &outcome.error {
            // Not a byte could be read: a member full of zeros would be misleading.
            self.state.problem(problem(error.to_string()));
            return Ok(false);
        }
        let reported_bytes = member.size;
        let (bytes, is_complete) = match read::read_to_end(&opened.file, PIECE_BYTES as usize) {
            Ok(read) => read,
            Err(error) => {
                self.state.problem(problem(error.to_string()));
                return Ok(false);
            }
        };
        if !is_complete {
            self.state.problem(problem(format!(
                "its size is reported as {reported_bytes}, but it continues beyond {PIECE_BYTES} bytes"
            )));
        }
        member.size = bytes.len() as u64;
        let offset = self.content.len();
        header::append(&mut self.content, &member, None);
        self.content.extend(&bytes);
        self.content.pad_block();
        self.bytes_read += member.size;
        // Its times do not show whether it changed.
        let is_reusable = false;
        let content_digest = Some(*blake3::hash(&bytes).as_bytes());
        let read = ReadMember { offset, member, stat: *opened.file.stat(), content_digest, is_reusable };
        self.push_member(read, &opened.entry, opened.hint.as_ref());
        Ok(true)
    }

    /// Adds a file of several pieces, which this worker reads alone.
    fn add_large_file(&mut self, opened: OpenedFile) -> Result<()> {
        self.end_members()?;
        let OpenedFile { entry, mut file, is_same, hint } = opened;
        if file.stat().size > self.memory_bytes {
            // It grew since it was listed, and the memory budget does not include it. It may exceed the budget while no
            // other plan is written.
            self.state.wait_turn(self.sequence);
        }
        for attempt in 1.. {
            let is_whole = file.stat().size <= MAX_WHOLE_BYTES;
            let (chunks_before, bytes_before) = (self.chunks.len(), self.bytes_read);
            let again = OpenedFile { entry: entry.clone(), file, is_same, hint: hint.clone() };
            let large_file = Arc::new(LargeFile::new(self.state, self.names, again));
            let Some(hashed) = self.add_pieces(&large_file, !is_whole)? else { return Ok(()) };
            let stability = large_file.file.check();
            if matches!(stability, Ok(Stability::Unchanged)) || attempt >= MAX_ATTEMPTS || !is_whole {
                self.finish_large_file(&large_file, hashed, stability);
                return Ok(());
            }
            for built in self.chunks.drain(chunks_before..) {
                built.bytes.give_back(self.state);
            }
            self.bytes_read = bytes_before;
            // The chunks that shared it were just dropped.
            let Some(unshared) = Arc::into_inner(large_file) else { return Ok(()) };
            file = unshared.file;
            if file.refresh().is_err() || file.stat().size <= PIECE_BYTES {
                return self.add_small_file(OpenedFile { entry, file, is_same, hint }).map(|_| ());
            }
        }
        Ok(())
    }

    /// Adds all pieces of a file in order; with `sends_each`, each is written before the next one is read. Returns
    /// `None` if the pipeline was stopped meanwhile.
    fn add_pieces(&mut self, large_file: &Arc<LargeFile>, sends_each: bool) -> Result<Option<HashedFile>> {
        let mut hashed = None;
        for piece in 0..large_file.pieces() {
            if self.state.is_stopped() {
                return Ok(None);
            }
            hashed = self.add_piece(large_file, piece)?;
            if sends_each {
                self.state.wait_turn(self.sequence);
                self.send(None);
            }
        }
        Ok(hashed)
    }

    /// Adds one piece of a file as a chunk of its own, the first one with the header. Returns the digest of the file if
    /// this was the last of its pieces to be read.
    pub(super) fn add_piece(&mut self, large_file: &Arc<LargeFile>, piece: u64) -> Result<Option<HashedFile>> {
        let spans = large_file.spans.as_deref();
        let size = large_file.member.size;
        let data_bytes = spans.map_or(size, |spans| read::data_bytes(spans, &(0..size)));
        let block_bytes = data_bytes.next_multiple_of(BLOCK_BYTES as u64);
        if piece == 0 {
            header::append(&mut self.content, &large_file.member, spans);
            if let Some(length) = self.encoder.content_padding(self.content.len() + block_bytes as usize) {
                insert_padding(&mut self.content, 0, length);
            }
        }
        let range = large_file.range(piece);
        let mut hasher = LargeFile::hasher(piece);
        let outcome = read::data(&large_file.file, spans, &range, &mut self.content, &mut hasher);
        self.bytes_read += range.end - range.start;
        if piece + 1 == large_file.pieces() {
            self.content.extend_zeros((block_bytes - data_bytes) as usize);
        }
        if piece == 0 {
            let (member, stat) = (large_file.member.clone(), *large_file.file.stat());
            let read = ReadMember { offset: 0, member, stat, content_digest: None, is_reusable: true };
            self.push_member(read, &large_file.entry, None);
        }
        self.end_chunk((piece == 0).then(|| large_file.clone()))?;
        Ok(large_file.add_piece_hash(piece, &hasher, outcome.shortfall()))
    }

    /// Records the result of a file whose pieces have all been read, and its problem if it has one.
    pub(super) fn finish_large_file(
        &self,
        large_file: &LargeFile,
        hashed: HashedFile,
        stability: std::result::Result<Stability, Problem>,
    ) {
        let (entry, stat) = (&large_file.entry, large_file.file.stat());
        let problem = read::file_problem(entry, hashed.shortfall, stability)
            .or_else(|| self.silent_change(entry, large_file.hint.as_ref(), stat, hashed.digest));
        let has_problem = problem.is_some();
        problem.into_iter().for_each(|problem| self.state.problem(problem));
        large_file.set_result(hashed.digest, has_problem);
    }
}

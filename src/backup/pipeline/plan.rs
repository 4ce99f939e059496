//! The walking side of the pipeline: turns entries into plans, in order, each of them about one chunk.

use std::ops::ControlFlow;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::hard_links::{HardLinks, LinkTurn};
use super::large_file::{LargeFile, PIECE_BYTES};
use super::read;
use super::state::PipelineState;
use crate::archive::cutter::{Cutter, MAX_CONTENT_BYTES};
use crate::archive::header;
use crate::clock::{Clock, Timestamp};
use crate::member::MemberKind;
use crate::schedule::Compression;
use crate::source::{OwnerNames, SourceEntry};

/// Files up to this size are read by one thread, and again if they change meanwhile, because nothing of them is written
/// before they are complete. Larger ones are read in parallel.
pub(super) const MAX_WHOLE_BYTES: u64 = 4 * PIECE_BYTES;

/// Minimum memory that a piece counts, which limits how many sparse files are open at once.
const MIN_PIECE_MEMORY: u64 = 256 << 10;

/// Work for one worker.
pub(super) struct Plan {
    /// Position among the plans, from 0.
    pub(super) sequence: u64,
    /// Bytes that it counts in the memory budget.
    pub(super) memory_bytes: u64,
    /// Wall-clock time before the `stat` of its first member.
    pub(super) read_started: Timestamp,
    pub(super) work: Work,
}

/// What a plan consists of.
pub(super) enum Work {
    /// The members of one chunk; of several chunks if one of them is a file of several pieces.
    Members(Vec<PlannedMember>),
    /// One piece of a large file that several workers read.
    Piece(Arc<LargeFile>, u64),
}

/// An entry that becomes a member.
pub(super) struct PlannedMember {
    pub(super) entry: SourceEntry,
    /// Its turn among the names of its file, if that has several.
    pub(super) turn: Option<LinkTurn>,
}

/// Turns the entries of a walk into plans.
pub(super) struct Planner<'a> {
    state: &'a PipelineState<'a>,
    clock: &'a dyn Clock,
    names: &'a OwnerNames,
    plans: Sender<Plan>,
    cutter: Cutter,
    links: HardLinks,
    /// Encoded chunks take memory in addition to the raw ones.
    is_encoded: bool,
    sequence: u64,
    members: Vec<PlannedMember>,
    members_bytes: u64,
    /// Time before the `stat` of the first of `members`.
    read_started: Timestamp,
    /// Time before the `stat` of the next entry.
    before_next: Timestamp,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        state: &'a PipelineState<'a>,
        clock: &'a dyn Clock,
        names: &'a OwnerNames,
        compression: Compression,
        plans: Sender<Plan>,
    ) -> Self {
        let now = clock.now();
        Planner {
            state,
            clock,
            names,
            plans,
            cutter: Cutter::new(compression),
            links: HardLinks::default(),
            is_encoded: compression != Compression::None,
            sequence: 0,
            members: Vec::new(),
            members_bytes: 0,
            read_started: now,
            before_next: now,
        }
    }

    /// Adds the next entry of the walk. Breaks if the pipeline was stopped.
    pub(super) fn visit(&mut self, entry: SourceEntry) -> ControlFlow<()> {
        if self.state.is_stopped() {
            return ControlFlow::Break(());
        }
        let turn = self.links.turn(&entry);
        let has_data = entry.kind == MemberKind::File && turn.as_ref().is_none_or(LinkTurn::is_first);
        if has_data && entry.stat.size > MAX_WHOLE_BYTES {
            self.send_large_file(entry, turn)?;
        } else {
            let is_alone = has_data && entry.stat.size > MAX_CONTENT_BYTES;
            let kind = if has_data { MemberKind::File } else { MemberKind::HardLink };
            let entry_bytes = header::entry_bytes(kind, entry.stat.size);
            if is_alone || self.cutter.cuts_before(&entry.path, entry_bytes) {
                self.send_members()?;
            }
            if self.members.is_empty() {
                self.read_started = self.before_next;
            }
            self.members.push(PlannedMember { entry, turn });
            self.members_bytes += entry_bytes;
            if is_alone {
                self.send_members()?;
                self.cutter.cut();
            }
        }
        self.before_next = self.clock.now();
        ControlFlow::Continue(())
    }

    /// Sends the remaining members. To be called after the walk.
    pub(super) fn finish(mut self) {
        let _stopped = self.send_members();
    }

    /// Opens a large file and sends a plan for each piece. It is opened here because the size of the open file
    /// determines the number of pieces.
    fn send_large_file(&mut self, entry: SourceEntry, turn: Option<LinkTurn>) -> ControlFlow<()> {
        self.send_members()?;
        self.cutter.cut();
        self.read_started = self.before_next;
        let opened = match read::open(entry) {
            Ok(opened) => opened,
            Err(problem) => {
                self.state.problem(problem);
                return ControlFlow::Continue(());
            }
        };
        if opened.file.stat().size <= MAX_WHOLE_BYTES {
            // It shrank since it was listed: one worker is enough.
            self.members_bytes = header::entry_bytes(MemberKind::File, opened.file.stat().size);
            self.members.push(PlannedMember { entry: opened.entry, turn });
            return self.send_members();
        }
        if let Some(turn) = turn.filter(|_| opened.is_same) {
            turn.set_carrier(&opened.entry.path);
        }
        let large = Arc::new(LargeFile::new(self.state, self.names, opened.entry, opened.file));
        for piece in 0..large.pieces() {
            let range = large.range(piece);
            let data_bytes =
                large.spans.as_deref().map_or(range.end - range.start, |spans| read::data_bytes(spans, &range));
            self.send(self.memory_for(data_bytes).max(MIN_PIECE_MEMORY), Work::Piece(large.clone(), piece))?;
        }
        ControlFlow::Continue(())
    }

    fn send_members(&mut self) -> ControlFlow<()> {
        if self.members.is_empty() {
            return ControlFlow::Continue(());
        }
        let bytes = std::mem::take(&mut self.members_bytes);
        let memory_bytes = self.memory_for(bytes);
        let members = std::mem::take(&mut self.members);
        self.send(memory_bytes, Work::Members(members))
    }

    /// Returns the memory that `bytes` of raw content need. A file in several pieces is encoded piece by piece, so that
    /// only one piece is in memory raw in addition to the encoded ones.
    fn memory_for(&self, bytes: u64) -> u64 {
        if self.is_encoded { bytes + bytes.min(PIECE_BYTES) } else { bytes }
    }

    fn send(&mut self, memory_bytes: u64, work: Work) -> ControlFlow<()> {
        self.state.acquire(memory_bytes);
        if self.state.is_stopped() {
            return ControlFlow::Break(());
        }
        let plan = Plan { sequence: self.sequence, memory_bytes, read_started: self.read_started, work };
        self.sequence += 1;
        match self.plans.send(plan) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

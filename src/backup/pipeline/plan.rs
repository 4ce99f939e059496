//! The walking side of the pipeline: turns entries into plans, in order, each of them about one chunk.

use std::ops::ControlFlow;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::PipelineOptions;
use super::chunk_builder::MemberCounts;
use super::decide;
use super::hard_links::{HardLinks, LinkTurn};
use super::large_file::{LargeFile, PIECE_BYTES};
use super::planned_member::PlannedMember;
use super::read;
use super::reuse::{BaseCursor, BaseHint, BaseRef, Match};
use super::state::PipelineState;
use crate::archive::buffer::MIN_CAPACITY;
use crate::archive::cutter::{Cutter, MAX_CONTENT_BYTES};
use crate::archive::header;
use crate::clock::{Clock, Timestamp};
use crate::member::MemberKind;
use crate::schedule::Compression;
use crate::source::{OwnerNames, SourceEntry};

/// Files up to this size are read by one thread, and again if they change meanwhile, because nothing of them is written
/// before they are complete. Larger ones are read in parallel.
pub(super) const MAX_WHOLE_BYTES: u64 = 4 * PIECE_BYTES;

/// Chunks of an unchanged large file in one plan.
const MAX_UNCHANGED_CHUNKS: usize = 64;

/// Minimum memory that a piece counts, which limits how many sparse files are open at once.
const MIN_PIECE_MEMORY: u64 = 256 << 10;

/// Memory that a member takes besides its bytes, from its plan to its row in the catalog, about.
const MEMBER_MEMORY: u64 = 1 << 10;

/// Work for one worker.
pub(super) struct Plan {
    /// Position among the plans, from 0.
    pub(super) sequence: u64,
    /// Bytes that it counts in the memory budget.
    pub(super) memory_bytes: u64,
    /// When the run began: before the file systems were synced and anything was listed.
    pub(super) read_started: Timestamp,
    /// The chunks of the base with the same members: one, and for a file of several pieces those that follow it.
    pub(super) base_chunks: Vec<BaseRef>,
    pub(super) work: Work,
}

/// What a plan consists of.
pub(super) enum Work {
    /// The members of one chunk; of several chunks if one of them is a file of several pieces.
    Members(Vec<PlannedMember>),
    /// One piece of a large file that several workers read.
    Piece(Arc<LargeFile>, u64),
    /// None: the chunks of the base are taken as they are. The counts of the members in the first of them.
    Nothing(MemberCounts),
}

/// Turns the entries of a walk into plans.
pub(super) struct Planner<'a> {
    state: &'a PipelineState<'a>,
    clock: &'a dyn Clock,
    names: &'a OwnerNames,
    plans: Sender<Plan>,
    cutter: Cutter,
    links: HardLinks,
    base: Option<BaseCursor>,
    /// When the run began. If the clock was set back since, the earliest time that it showed: what changes now must not
    /// seem to have changed before the run.
    read_started: Timestamp,
    /// Encoded chunks take memory in addition to the raw ones.
    is_encoded: bool,
    sequence: u64,
    members: Vec<PlannedMember>,
    members_bytes: u64,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        state: &'a PipelineState<'a>,
        options: &PipelineOptions<'a>,
        names: &'a OwnerNames,
        read_started: Timestamp,
        (plans, base): (Sender<Plan>, Option<BaseCursor>),
    ) -> Self {
        Planner {
            state,
            clock: options.clock,
            names,
            plans,
            cutter: Cutter::new(options.compression, options.layout),
            links: HardLinks::default(),
            base,
            read_started: read_started.min(options.clock.now()),
            is_encoded: options.compression != Compression::None,
            sequence: 0,
            members: Vec::new(),
            members_bytes: 0,
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
            self.members.push(PlannedMember { entry, turn, hint: None });
            self.members_bytes += entry_bytes;
            if is_alone {
                self.send_members()?;
                self.cutter.cut();
            }
        }
        self.read_started = self.read_started.min(self.clock.now());
        ControlFlow::Continue(())
    }

    /// Sends the remaining members. To be called after the walk.
    pub(super) fn finish(mut self) {
        let _stopped = self.send_members();
    }

    /// Sends plans for a large file: one for each piece if it is read, and one for each page of pieces if it is taken
    /// from the base.
    fn send_large_file(&mut self, entry: SourceEntry, turn: Option<LinkTurn>) -> ControlFlow<()> {
        self.send_members()?;
        self.cutter.cut();
        let planned = [PlannedMember { entry, turn, hint: None }];
        let (planned, first) = self.join(planned.into());
        if decide::are_unchanged(self.state, self.names, &planned, first.as_slice()) {
            return self.send_unchanged(planned, first);
        }
        for PlannedMember { entry, turn, hint } in planned {
            self.open_large_file(entry, turn, hint, first)?;
        }
        ControlFlow::Continue(())
    }

    /// Opens a large file and sends a plan for each piece. It is opened here because the size of the open file
    /// determines the number of pieces.
    fn open_large_file(
        &mut self,
        entry: SourceEntry,
        turn: Option<LinkTurn>,
        hint: Option<BaseHint>,
        first: Option<BaseRef>,
    ) -> ControlFlow<()> {
        let opened = match read::open(entry, hint) {
            Ok(opened) => opened,
            Err(problem) => {
                self.state.problem(problem);
                return ControlFlow::Continue(());
            }
        };
        if opened.file.stat().size <= MAX_WHOLE_BYTES {
            // It shrank since it was listed: one worker is enough.
            let bytes = header::entry_bytes(MemberKind::File, opened.file.stat().size);
            let planned = PlannedMember { entry: opened.entry, turn, hint: opened.hint };
            return self.send(self.memory_for(bytes), Vec::new(), Work::Members(vec![planned]));
        }
        if let Some(turn) = turn.filter(|_| opened.is_same) {
            turn.set_carrier(&opened.entry.path);
        }
        let large = Arc::new(LargeFile::new(self.state, self.names, opened));
        let mut base_chunk = first;
        for piece in 0..large.pieces() {
            let range = large.range(piece);
            let data_bytes =
                large.spans.as_deref().map_or(range.end - range.start, |spans| read::data_bytes(spans, &range));
            if piece > 0 && first.is_some() && data_bytes > 0 {
                base_chunk = self.next_piece();
            }
            let work = Work::Piece(large.clone(), piece);
            self.send(
                self.memory_for(data_bytes).max(MIN_PIECE_MEMORY),
                base_chunk.take().into_iter().collect(),
                work,
            )?;
        }
        ControlFlow::Continue(())
    }

    /// Sends the chunks of an unchanged large file, a page at a time.
    fn send_unchanged(&mut self, planned: Vec<PlannedMember>, first: Option<BaseRef>) -> ControlFlow<()> {
        let mut counts = decide::counts(&planned);
        for PlannedMember { entry, turn, .. } in planned {
            turn.into_iter().for_each(|turn| turn.set_carrier(&entry.path));
        }
        let mut chunks: Vec<BaseRef> = first.into_iter().collect();
        loop {
            let next = self.next_piece();
            chunks.extend(next);
            if chunks.len() >= MAX_UNCHANGED_CHUNKS || next.is_none() && !chunks.is_empty() {
                self.send(0, std::mem::take(&mut chunks), Work::Nothing(std::mem::take(&mut counts)))?;
            }
            if next.is_none() {
                return ControlFlow::Continue(());
            }
        }
    }

    fn send_members(&mut self) -> ControlFlow<()> {
        if self.members.is_empty() {
            return ControlFlow::Continue(());
        }
        let bytes = std::mem::take(&mut self.members_bytes);
        let members = std::mem::take(&mut self.members);
        let memory_bytes = self.memory_for(bytes).max(MIN_CAPACITY as u64) + members.len() as u64 * MEMBER_MEMORY;
        let (members, first) = self.join(members);
        let mut chunks: Vec<BaseRef> = first.into_iter().collect();
        let is_file_of_pieces = |hint: &BaseHint| hint.entry.member.size > PIECE_BYTES;
        if let [PlannedMember { hint: Some(hint), .. }] = &members[..]
            && first.is_some()
            && is_file_of_pieces(hint)
        {
            // A file of more pieces than this was larger, so that not all of them are the same.
            while chunks.len() as u64 <= MAX_WHOLE_BYTES / PIECE_BYTES
                && let Some(piece) = self.next_piece()
            {
                chunks.push(piece);
            }
        }
        self.send(memory_bytes, chunks, Work::Members(members))
    }

    /// Adds to the members of a plan those of the base, and returns the chunk of the base that holds exactly them.
    fn join(&mut self, mut members: Vec<PlannedMember>) -> (Vec<PlannedMember>, Option<BaseRef>) {
        let Some(cursor) = &mut self.base else { return (members, None) };
        let Match { hints, exact } = cursor.join(members.iter().map(|planned| &planned.entry.path));
        members.iter_mut().zip(hints).for_each(|(planned, hint)| planned.hint = hint);
        (members, exact)
    }

    /// Returns the next piece of the large file that the base holds for the plan joined last.
    fn next_piece(&mut self) -> Option<BaseRef> {
        self.base.as_mut().and_then(BaseCursor::next_piece)
    }

    /// Returns the memory that `bytes` of raw content need. A file in several pieces is encoded piece by piece, so that
    /// only one piece is in memory raw in addition to the encoded ones.
    fn memory_for(&self, bytes: u64) -> u64 {
        if self.is_encoded { bytes + bytes.min(PIECE_BYTES) } else { bytes }
    }

    fn send(&mut self, memory_bytes: u64, base_chunks: Vec<BaseRef>, work: Work) -> ControlFlow<()> {
        self.state.acquire(memory_bytes);
        if self.state.is_stopped() {
            return ControlFlow::Break(());
        }
        let (sequence, read_started) = (self.sequence, self.read_started);
        let plan = Plan { sequence, memory_bytes, read_started, base_chunks, work };
        self.sequence += 1;
        match self.plans.send(plan) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

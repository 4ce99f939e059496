//! The walk's side of the pipeline: what is found becomes plans, one chunk each or nearly so, handed out in order.

use std::ops::ControlFlow;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::flow::Flow;
use super::large::{LargeFile, PIECE_BYTES};
use super::links::{LinkTurn, Links};
use super::read;
use crate::archive::cutter::{Cutter, LARGEST_CONTENT};
use crate::archive::header;
use crate::clock::{Clock, Timestamp};
use crate::member::MemberKind;
use crate::schedule::Compression;
use crate::source::{OwnerNames, SourceEntry};

/// Files up to this size are read by one thread and again if they change meanwhile, for none of it is written until
/// they are whole. Larger ones are read in parallel.
pub(super) const LARGEST_WHOLE: u64 = 4 * PIECE_BYTES;

/// A piece counts at least so much, which bounds how many sparse files are open at once.
const SMALLEST_COST: u64 = 256 << 10;

/// Work for one thread.
pub(super) struct Plan {
    /// Position among the plans, from 0.
    pub(super) sequence: u64,
    /// Bytes that it counts in the budget of memory.
    pub(super) cost: u64,
    /// Wall-clock time before the first of its members was looked at.
    pub(super) read_started: Timestamp,
    pub(super) work: Work,
}

pub(super) enum Work {
    /// Members of one chunk; of several, if a file among them is cut into pieces.
    Members(Vec<Planned>),
    /// One piece of a large file that is read by several threads.
    Piece(Arc<LargeFile>, u64),
}

/// Something found, to become a member.
pub(super) struct Planned {
    pub(super) found: SourceEntry,
    /// Its place among the names of its file, if that has several.
    pub(super) turn: Option<LinkTurn>,
}

/// Makes plans of what a walk finds.
pub(super) struct Planner<'a> {
    flow: &'a Flow<'a>,
    clock: &'a dyn Clock,
    names: &'a OwnerNames,
    plans: Sender<Plan>,
    cutter: Cutter,
    links: Links,
    /// Encoded chunks take memory beside the raw ones.
    is_encoded: bool,
    sequence: u64,
    gathered: Vec<Planned>,
    gathered_bytes: u64,
    /// Before the first of those gathered was looked at.
    read_started: Timestamp,
    /// Before what the walk finds next is looked at.
    before_next: Timestamp,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        flow: &'a Flow<'a>,
        clock: &'a dyn Clock,
        names: &'a OwnerNames,
        compression: Compression,
        plans: Sender<Plan>,
    ) -> Self {
        let now = clock.now();
        Planner {
            flow,
            clock,
            names,
            plans,
            cutter: Cutter::new(compression),
            links: Links::default(),
            is_encoded: compression != Compression::None,
            sequence: 0,
            gathered: Vec::new(),
            gathered_bytes: 0,
            read_started: now,
            before_next: now,
        }
    }

    /// Takes what the walk found next. Breaks when the pipeline has stopped.
    pub(super) fn visit(&mut self, found: SourceEntry) -> ControlFlow<()> {
        if self.flow.is_stopped() {
            return ControlFlow::Break(());
        }
        let turn = self.links.turn(&found);
        let has_data = found.kind == MemberKind::File && turn.as_ref().is_none_or(LinkTurn::is_first);
        if has_data && found.stat.size > LARGEST_WHOLE {
            self.large_file(found, turn)?;
        } else {
            let stands_alone = has_data && found.stat.size > LARGEST_CONTENT;
            let kind = if has_data { MemberKind::File } else { MemberKind::HardLink };
            let entry_bytes = header::entry_bytes(kind, found.stat.size);
            if stands_alone || self.cutter.cuts_before(&found.path, entry_bytes) {
                self.send_gathered()?;
            }
            if self.gathered.is_empty() {
                self.read_started = self.before_next;
            }
            self.gathered.push(Planned { found, turn });
            self.gathered_bytes += entry_bytes;
            if stands_alone {
                self.send_gathered()?;
                self.cutter.cut();
            }
        }
        self.before_next = self.clock.now();
        ControlFlow::Continue(())
    }

    /// Hands out what is gathered still. To be called when the walk is over.
    pub(super) fn finish(mut self) {
        let _stopped = self.send_gathered();
    }

    /// Opens a large file and hands out its pieces. Opened here, because the number of pieces is that of the open file.
    fn large_file(&mut self, found: SourceEntry, turn: Option<LinkTurn>) -> ControlFlow<()> {
        self.send_gathered()?;
        self.cutter.cut();
        self.read_started = self.before_next;
        let opened = match read::open(found) {
            Ok(opened) => opened,
            Err(problem) => {
                self.flow.problem(problem);
                return ControlFlow::Continue(());
            }
        };
        if opened.file.stat().size <= LARGEST_WHOLE {
            // It shrank since it was listed: one thread does.
            self.gathered_bytes = header::entry_bytes(MemberKind::File, opened.file.stat().size);
            self.gathered.push(Planned { found: opened.found, turn });
            return self.send_gathered();
        }
        if let Some(turn) = turn.filter(|_| opened.is_same) {
            turn.carried(&opened.found.path);
        }
        let large = Arc::new(read::large_file(self.flow, self.names, opened.found, opened.file));
        for piece in 0..large.pieces() {
            let range = large.range(piece);
            let data_bytes =
                large.spans.as_deref().map_or(range.end - range.start, |spans| read::data_bytes(spans, &range));
            self.send(self.cost(data_bytes).max(SMALLEST_COST), Work::Piece(large.clone(), piece))?;
        }
        ControlFlow::Continue(())
    }

    fn send_gathered(&mut self) -> ControlFlow<()> {
        if self.gathered.is_empty() {
            return ControlFlow::Continue(());
        }
        let bytes = std::mem::take(&mut self.gathered_bytes);
        let cost = self.cost(bytes);
        let members = std::mem::take(&mut self.gathered);
        self.send(cost, Work::Members(members))
    }

    /// A file in several pieces is encoded piece by piece, so only one piece of it is there raw beside the encoded
    /// ones.
    fn cost(&self, bytes: u64) -> u64 {
        if self.is_encoded { bytes + bytes.min(PIECE_BYTES) } else { bytes }
    }

    fn send(&mut self, cost: u64, work: Work) -> ControlFlow<()> {
        self.flow.acquire(cost);
        if self.flow.is_stopped() {
            return ControlFlow::Break(());
        }
        let plan = Plan { sequence: self.sequence, cost, read_started: self.read_started, work };
        self.sequence += 1;
        match self.plans.send(plan) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

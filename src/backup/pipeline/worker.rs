//! The workers of the pipeline: each takes a plan and executes all of it, from opening files to encoded chunks.

use crossbeam_channel::{Receiver, Sender};

use super::chunk_builder::{BuiltChunk, ChunkBuilder, ChunkBytes, ChunkMembers, MemberCounts, PlanOutput, ReadMember};
use super::decide;
use super::plan::{Plan, Work};
use super::planned_member::PlannedMember;
use super::read;
use super::reuse::BaseHint;
use super::state::PipelineState;
use crate::archive::codec::Encoder;
use crate::archive::header;
use crate::archive::padding::Padding;
use crate::error::Result;
use crate::member::{MemberKind, MemberPath, Xattrs};
use crate::progress::{Problem, ProblemKind};
use crate::schedule::Compression;
use crate::source::{OwnerNames, SourceEntry};

/// Executes plans until there are none left.
pub(super) fn run_worker(
    state: &PipelineState<'_>,
    names: &OwnerNames,
    (compression, padding): (Compression, Padding),
    plans: &Receiver<Plan>,
    output: &Sender<PlanOutput>,
) -> Result<()> {
    let mut encoder = Encoder::new(compression, padding)?;
    for plan in plans {
        let builder = ChunkBuilder {
            state,
            names,
            pads_content: compression == Compression::None && padding == Padding::Blocks,
            encoder: &mut encoder,
            output,
            sequence: plan.sequence,
            memory_bytes: plan.memory_bytes,
            read_started: plan.read_started,
            base_chunks: plan.base_chunks.into(),
            content: state.take_buffer(plan.memory_bytes),
            members: Vec::new(),
            last_hint: None,
            chunks: Vec::new(),
            chunk_bytes: 0,
            bytes_read: 0,
        };
        builder.execute(plan.work)?;
        if state.is_stopped() {
            break;
        }
    }
    Ok(())
}

impl ChunkBuilder<'_, '_> {
    fn execute(mut self, work: Work) -> Result<()> {
        match work {
            Work::Nothing(counts) => self.take_base_chunks(counts),
            Work::Members(mut members) => {
                if decide::are_unchanged(self.state, self.names, &members, self.base_chunks.make_contiguous()) {
                    self.take_base_chunks(decide::counts(&members));
                    for PlannedMember { entry, turn, .. } in members.drain(..) {
                        turn.into_iter().for_each(|turn| turn.set_carrier(&entry.path));
                    }
                }
                for member in members {
                    if self.state.is_stopped() {
                        return Ok(());
                    }
                    self.add(member)?;
                    if self.chunk_bytes > self.memory_bytes {
                        // More than the plan counted: it may be written as soon as the plans before it are.
                        self.state.wait_turn(self.sequence);
                        self.send(None);
                    }
                }
                self.end_members()?;
            }
            Work::Piece(large_file, piece) => {
                if let Some(hashed) = self.add_piece(&large_file, piece)? {
                    let stability = large_file.file.check();
                    self.finish_large_file(&large_file, hashed, stability);
                }
            }
        }
        let content = std::mem::take(&mut self.content);
        self.state.give_buffer(content);
        self.send(Some(self.memory_bytes));
        Ok(())
    }

    /// Takes the chunks of the base as they are. `counts` are those of the members in the first one.
    fn take_base_chunks(&mut self, counts: MemberCounts) {
        self.bytes_read += counts.extent.content_bytes;
        let mut counts = Some(counts);
        for base in self.base_chunks.drain(..) {
            self.chunks.push(BuiltChunk {
                bytes: ChunkBytes::Base(base),
                members: ChunkMembers::Unchanged(counts.take().unwrap_or_default()),
                read_started: base.read_started,
                large_file: None,
            });
        }
    }

    fn add(&mut self, planned: PlannedMember) -> Result<()> {
        let PlannedMember { entry, turn, hint } = planned;
        if let Some(turn) = &turn
            && let Some(carrier) = turn.carrier()
        {
            self.add_link(&entry, carrier, hint.as_ref());
            return Ok(());
        }
        if entry.kind == MemberKind::File {
            return match read::open(entry, hint) {
                Ok(opened) => self.add_file(opened, turn),
                Err(problem) => {
                    self.state.problem(problem);
                    Ok(())
                }
            };
        }
        if let Err(problem) = self.add_special(&entry, hint.as_ref()) {
            self.state.problem(problem);
        } else if let Some(turn) = turn {
            turn.set_carrier(&entry.path);
        }
        Ok(())
    }

    fn add_link(&mut self, entry: &SourceEntry, carrier: MemberPath, hint: Option<&BaseHint>) {
        let mut member = read::member(self.names, entry, &entry.stat, MemberKind::HardLink, Xattrs::new());
        // Whatever the file is, the member is a link: the carrier has its kind, device number and attributes.
        member.device_number = None;
        member.link_target = Some(carrier.as_bytes().into());
        let offset = self.content.len();
        header::append(&mut self.content, &member, None);
        let read = ReadMember { offset, member, stat: entry.stat, content_digest: None, is_reusable: true };
        self.push_member(read, entry, hint);
    }

    /// Adds a folder, a symbolic link, a fifo or a device.
    fn add_special(&mut self, entry: &SourceEntry, hint: Option<&BaseHint>) -> std::result::Result<(), Problem> {
        let target = match entry.kind {
            MemberKind::Symlink => Some(entry.read_link()?.into()),
            _ => None,
        };
        let xattrs = match entry.xattrs() {
            Ok(xattrs) => Some(xattrs),
            Err(problem) if problem.kind == ProblemKind::Unreadable => {
                self.state.problem(read::attributes_lost(problem));
                None
            }
            // A folder is archived all the same, because its content follows as it was listed, as far as it can still
            // be read.
            Err(problem) if entry.kind == MemberKind::Folder => {
                self.state.problem(problem);
                None
            }
            Err(problem) => return Err(problem),
        };
        let is_reusable = xattrs.is_some();
        let xattrs = xattrs.unwrap_or_default();
        let mut member = read::member(self.names, entry, &entry.stat, entry.kind, xattrs);
        member.link_target = target;
        let offset = self.content.len();
        header::append(&mut self.content, &member, None);
        let read = ReadMember { offset, member, stat: entry.stat, content_digest: None, is_reusable };
        self.push_member(read, entry, hint);
        Ok(())
    }
}

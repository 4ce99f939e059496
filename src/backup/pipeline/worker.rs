//! The workers of the pipeline: each takes a plan and executes all of it, from opening files to encoded chunks.

use crossbeam_channel::{Receiver, Sender};

use super::chunk_builder::{ChunkBuilder, PlanOutput};
use super::plan::{Plan, PlannedMember, Work};
use super::read;
use super::state::PipelineState;
use crate::archive::codec::Encoder;
use crate::archive::header;
use crate::error::Result;
use crate::member::{MemberKind, MemberPath, Xattrs};
use crate::progress::{Problem, ProblemKind};
use crate::schedule::Compression;
use crate::source::{OwnerNames, SourceEntry};

/// Executes plans until there are none left.
pub(super) fn run_worker(
    state: &PipelineState<'_>,
    names: &OwnerNames,
    compression: Compression,
    plans: &Receiver<Plan>,
    output: &Sender<PlanOutput>,
) -> Result<()> {
    let mut encoder = Encoder::new(compression)?;
    for plan in plans {
        let builder = ChunkBuilder {
            state,
            names,
            is_encoded: compression != Compression::None,
            encoder: &mut encoder,
            output,
            sequence: plan.sequence,
            memory_bytes: plan.memory_bytes,
            read_started: plan.read_started,
            content: state.take_buffer(plan.memory_bytes),
            members: Vec::new(),
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
            Work::Members(members) => {
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
                self.end_chunk(None)?;
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

    fn add(&mut self, planned: PlannedMember) -> Result<()> {
        let PlannedMember { entry, turn } = planned;
        if let Some(turn) = &turn
            && let Some(carrier) = turn.carrier()
        {
            self.add_link(&entry, carrier);
            return Ok(());
        }
        if entry.kind == MemberKind::File {
            return match read::open(entry) {
                Ok(opened) => self.add_file(opened, turn),
                Err(problem) => {
                    self.state.problem(problem);
                    Ok(())
                }
            };
        }
        if let Err(problem) = self.add_special(&entry) {
            self.state.problem(problem);
        } else if let Some(turn) = turn {
            turn.set_carrier(&entry.path);
        }
        Ok(())
    }

    fn add_link(&mut self, entry: &SourceEntry, carrier: MemberPath) {
        let mut member = read::member(self.names, entry, &entry.stat, MemberKind::HardLink, Xattrs::new());
        // Whatever the file is, the member is a link: the carrier has its kind, device number and attributes.
        member.device_number = None;
        member.link_target = Some(carrier.as_bytes().into());
        let offset = self.content.len();
        header::append(&mut self.content, &member, None);
        self.push_member(offset, member, &entry.stat, None, true);
    }

    /// Adds a folder, a symbolic link, a fifo or a device.
    fn add_special(&mut self, entry: &SourceEntry) -> std::result::Result<(), Problem> {
        let target = match entry.kind {
            MemberKind::Symlink => Some(entry.read_link()?.into()),
            _ => None,
        };
        let xattrs = match entry.xattrs() {
            Ok(xattrs) => xattrs,
            Err(problem) if problem.kind == ProblemKind::Unreadable => {
                self.state.problem(read::attributes_lost(problem));
                Xattrs::new()
            }
            // A folder is archived all the same, because its content follows as it was listed, as far as it can still
            // be read.
            Err(problem) if entry.kind == MemberKind::Folder => {
                self.state.problem(problem);
                Xattrs::new()
            }
            Err(problem) => return Err(problem),
        };
        let mut member = read::member(self.names, entry, &entry.stat, entry.kind, xattrs);
        member.link_target = target;
        let offset = self.content.len();
        header::append(&mut self.content, &member, None);
        self.push_member(offset, member, &entry.stat, None, true);
        Ok(())
    }
}

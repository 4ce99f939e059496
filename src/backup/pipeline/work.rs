//! The workers of the pipeline: each takes a plan and does all of it, from opening files to encoded chunks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Sender};

use super::flow::Flow;
use super::large::{Finished, LargeFile, Outcome, PIECE_BYTES};
use super::links::LinkTurn;
use super::plan::{LARGEST_WHOLE, Plan, Planned, Work};
use super::read::{self, ATTEMPTS, Opened, Reading};
use crate::archive::block::BLOCK_BYTES;
use crate::archive::buffer::Buffer;
use crate::archive::codec::{EncodedChunk, Encoder};
use crate::archive::cutter::LARGEST_CONTENT;
use crate::archive::header;
use crate::clock::Timestamp;
use crate::error;
use crate::member::{CatalogMember, Member, MemberKind, MemberPath, Xattrs};
use crate::progress::{Problem, ProblemKind};
use crate::schedule::Compression;
use crate::source::{OwnerNames, SourceEntry, Stability, Stat};

/// An encoded chunk and the members whose headers stand in it.
pub(super) struct Part {
    pub(super) chunk: EncodedChunk,
    pub(super) members: Vec<CatalogMember>,
    pub(super) read_started: Timestamp,
    /// The file whose header ends this chunk and whose digest is known only when all its pieces have been read.
    pub(super) awaits: Option<Arc<LargeFile>>,
}

/// What a worker tells the writer.
pub(super) struct Done {
    /// The plan it belongs to.
    pub(super) sequence: u64,
    pub(super) parts: Vec<Part>,
    /// What the plan counted in the budget, if this is all of it.
    pub(super) ended: Option<u64>,
}

/// Carries out plans until there are none left.
pub(super) fn work(
    flow: &Flow<'_>,
    names: &OwnerNames,
    compression: Compression,
    plans: &Receiver<Plan>,
    done: &Sender<Done>,
) -> error::Result<()> {
    let mut encoder = Encoder::new(compression)?;
    for plan in plans {
        let builder = Builder {
            flow,
            names,
            is_encoded: compression != Compression::None,
            encoder: &mut encoder,
            done,
            sequence: plan.sequence,
            cost: plan.cost,
            read_started: plan.read_started,
            content: flow.take_buffer(plan.cost),
            members: Vec::new(),
            parts: Vec::new(),
            held_bytes: 0,
            bytes_read: 0,
        };
        builder.carry_out(plan.work)?;
        if flow.is_stopped() {
            break;
        }
    }
    Ok(())
}

/// Carries out one plan.
struct Builder<'a, 'f> {
    flow: &'a Flow<'f>,
    names: &'a OwnerNames,
    is_encoded: bool,
    encoder: &'a mut Encoder,
    done: &'a Sender<Done>,
    sequence: u64,
    cost: u64,
    read_started: Timestamp,
    /// The chunk being built, and the members in it.
    content: Buffer,
    members: Vec<CatalogMember>,
    /// Chunks that are ready and not sent yet.
    parts: Vec<Part>,
    held_bytes: u64,
    /// Bytes of content read and not told yet.
    bytes_read: u64,
}

impl Builder<'_, '_> {
    fn carry_out(mut self, work: Work) -> error::Result<()> {
        match work {
            Work::Members(planned) => {
                for planned in planned {
                    if self.flow.is_stopped() {
                        return Ok(());
                    }
                    self.add(planned)?;
                    if self.held_bytes > self.cost {
                        // More than was counted on: it may be written as soon as what comes before it is.
                        self.flow.wait_turn(self.sequence);
                        self.send(None);
                    }
                }
                self.end_chunk(None)?;
            }
            Work::Piece(large, piece) => {
                if let Some(finished) = self.add_piece(&large, piece)? {
                    let stability = large.file.check();
                    self.settle(&large, finished, stability);
                }
            }
        }
        let content = std::mem::take(&mut self.content);
        self.flow.give_buffer(content);
        self.send(Some(self.cost));
        Ok(())
    }

    fn add(&mut self, planned: Planned) -> error::Result<()> {
        let Planned { found, turn } = planned;
        if let Some(turn) = &turn
            && let Some(carrier) = turn.carrier()
        {
            self.add_link(&found, carrier);
            return Ok(());
        }
        if found.kind == MemberKind::File {
            return match read::open(found) {
                Ok(opened) => self.add_file(opened, turn),
                Err(problem) => {
                    self.flow.problem(problem);
                    Ok(())
                }
            };
        }
        if let Err(problem) = self.add_other(&found) {
            self.flow.problem(problem);
        } else if let Some(turn) = turn {
            turn.carried(&found.path);
        }
        Ok(())
    }

    fn add_link(&mut self, found: &SourceEntry, carrier: MemberPath) {
        let mut member = read::member(self.names, found, &found.stat, MemberKind::HardLink, Xattrs::new());
        // Whatever the file is, the member is a link: kind, numbers and attributes stand at the carrier.
        member.device_number = None;
        member.link_target = Some(carrier.as_bytes().into());
        let offset = self.content.len();
        header::append(&mut self.content, &member, None);
        self.push_member(offset, member, &found.stat, None, false);
    }

    /// Adds a folder, a symbolic link, a fifo or a device.
    fn add_other(&mut self, found: &SourceEntry) -> Result<(), Problem> {
        let target = match found.kind {
            MemberKind::Symlink => Some(found.read_link()?.into()),
            _ => None,
        };
        let xattrs = match found.xattrs() {
            Ok(xattrs) => xattrs,
            Err(problem) if problem.kind == ProblemKind::Unreadable => {
                self.flow.problem(read::attributes_lost(problem));
                Xattrs::new()
            }
            // A folder stays, for what it held when it was listed follows, if it can still be read.
            Err(problem) if found.kind == MemberKind::Folder => {
                self.flow.problem(problem);
                Xattrs::new()
            }
            Err(problem) => return Err(problem),
        };
        let mut member = read::member(self.names, found, &found.stat, found.kind, xattrs);
        member.link_target = target;
        let offset = self.content.len();
        header::append(&mut self.content, &member, None);
        self.push_member(offset, member, &found.stat, None, false);
        Ok(())
    }

    fn add_file(&mut self, opened: Opened, turn: Option<LinkTurn>) -> error::Result<()> {
        let expected = header::entry_bytes(MemberKind::File, opened.file.stat().size);
        if self.content.len() as u64 + expected > 2 * LARGEST_CONTENT {
            // Files that grew since they were listed.
            self.end_chunk(None)?;
        }
        let (path, is_same) = (opened.found.path.clone(), opened.is_same);
        let is_added = self.add_small_file(opened)?;
        if let Some(turn) = turn.filter(|_| is_added && is_same) {
            turn.carried(&path);
        }
        Ok(())
    }

    /// Adds a file of one piece, reading it again if it changed meanwhile. Returns whether it is in the archive.
    fn add_small_file(&mut self, mut opened: Opened) -> error::Result<bool> {
        let offset = self.content.len();
        for attempt in 1.. {
            if opened.file.stat().size > PIECE_BYTES {
                break;
            }
            let (member, reading, digest) = self.read_small_file(&opened);
            let stability = opened.file.check();
            let is_steady = matches!(stability, Ok(Stability::Unchanged));
            let mut is_doubtful = false;
            if !(is_steady && reading.is_exact()) {
                let may_repeat = attempt < ATTEMPTS && reading.error.is_none();
                if may_repeat && opened.file.refresh().is_ok() {
                    self.content.truncate(offset);
                    continue;
                }
                if reading.error.is_some() && reading.missing == member.size || is_steady && reading.error.is_none() {
                    self.content.truncate(offset);
                    return self.add_odd_file(&opened, member, &reading);
                }
                let trouble = read::trouble(&opened.found, reading.shortfall(), stability);
                is_doubtful = trouble.as_ref().is_some_and(|problem| problem.kind.is_loss());
                trouble.into_iter().for_each(|problem| self.flow.problem(problem));
            }
            self.bytes_read += member.size;
            self.push_member(offset, member, opened.file.stat(), Some(digest), is_doubtful);
            return Ok(true);
        }
        self.add_large_file(opened)?;
        Ok(true)
    }

    fn read_small_file(&mut self, opened: &Opened) -> (Member, Reading, [u8; 32]) {
        let Opened { found, file, .. } = opened;
        let spans = read::spans(file);
        let xattrs = read::xattrs(self.flow, file);
        let member = read::member(self.names, found, file.stat(), MemberKind::File, xattrs);
        header::append(&mut self.content, &member, spans.as_deref());
        let mut hasher = blake3::Hasher::new();
        let reading = read::data(file, spans.as_deref(), &(0..member.size), &mut self.content, &mut hasher);
        self.content.pad_block();
        (member, reading, *hasher.finalize().as_bytes())
    }

    /// Adds a file that cannot be read at all, or whose size is told wrongly as long as it is looked at, as in
    /// `/proc` and `/sys`: then what can be read of it counts, up to one piece.
    fn add_odd_file(&mut self, opened: &Opened, mut member: Member, reading: &Reading) -> error::Result<bool> {
        let problem = |reason: String| read::problem(&opened.found, ProblemKind::Unreadable, reason);
        if let Some((_, error)) = &reading.error {
            // Not a byte of it: a member full of zeros would only deceive.
            self.flow.problem(problem(error.to_string()));
            return Ok(false);
        }
        let told = member.size;
        let (bytes, ends) = match read::to_its_end(&opened.file, PIECE_BYTES as usize) {
            Ok(read) => read,
            Err(error) => {
                self.flow.problem(problem(error.to_string()));
                return Ok(false);
            }
        };
        if !ends {
            self.flow
                .problem(problem(format!("its size is told as {told}, but it goes on beyond {PIECE_BYTES} bytes")));
        }
        member.size = bytes.len() as u64;
        let offset = self.content.len();
        header::append(&mut self.content, &member, None);
        self.content.extend(&bytes);
        self.content.pad_block();
        self.bytes_read += member.size;
        // Never reused: its times do not tell whether it changed.
        self.push_member(offset, member, opened.file.stat(), Some(*blake3::hash(&bytes).as_bytes()), true);
        Ok(true)
    }

    /// Adds a file of several pieces, which this thread reads alone.
    fn add_large_file(&mut self, opened: Opened) -> error::Result<()> {
        self.end_chunk(None)?;
        let Opened { found, mut file, .. } = opened;
        if file.stat().size > self.cost {
            // It grew since it was listed, and memory was not counted on it: as long as no other thread writes, it may.
            self.flow.wait_turn(self.sequence);
        }
        for attempt in 1.. {
            let is_whole = file.stat().size <= LARGEST_WHOLE;
            let (parts_before, bytes_before) = (self.parts.len(), self.bytes_read);
            let large = Arc::new(read::large_file(self.flow, self.names, found.clone(), file));
            let Some(finished) = self.add_pieces(&large, !is_whole)? else { return Ok(()) };
            let stability = large.file.check();
            if matches!(stability, Ok(Stability::Unchanged)) || attempt >= ATTEMPTS || !is_whole {
                self.settle(&large, finished, stability);
                return Ok(());
            }
            for part in self.parts.drain(parts_before..) {
                self.flow.give_buffer(part.chunk.stored);
            }
            self.bytes_read = bytes_before;
            // The chunks that also held it are gone.
            let Some(unshared) = Arc::into_inner(large) else { return Ok(()) };
            file = unshared.file;
            if file.refresh().is_err() || file.stat().size <= PIECE_BYTES {
                let is_same = true;
                return self.add_small_file(Opened { found, file, is_same }).map(|_| ());
            }
        }
        Ok(())
    }

    /// Adds all pieces of a file in order; with `sends`, each is written before the next one is read. Nothing if the
    /// pipeline was stopped meanwhile.
    fn add_pieces(&mut self, large: &Arc<LargeFile>, sends: bool) -> error::Result<Option<Finished>> {
        let mut finished = None;
        for piece in 0..large.pieces() {
            if self.flow.is_stopped() {
                return Ok(None);
            }
            finished = self.add_piece(large, piece)?;
            if sends {
                self.flow.wait_turn(self.sequence);
                self.send(None);
            }
        }
        Ok(finished)
    }

    /// Adds one piece of a file as a chunk of its own, the first with the header. What the last one leaves is returned.
    fn add_piece(&mut self, large: &Arc<LargeFile>, piece: u64) -> error::Result<Option<Finished>> {
        let spans = large.spans.as_deref();
        if piece == 0 {
            header::append(&mut self.content, &large.member, spans);
            self.push_member(0, large.member.clone(), large.file.stat(), None, false);
        }
        let range = large.range(piece);
        let mut hasher = LargeFile::hasher(piece);
        let reading = read::data(&large.file, spans, &range, &mut self.content, &mut hasher);
        self.bytes_read += range.end - range.start;
        if piece + 1 == large.pieces() {
            let data_bytes = spans.map_or(large.member.size, |spans| read::data_bytes(spans, &(0..large.member.size)));
            self.content.extend_zeros((data_bytes.next_multiple_of(BLOCK_BYTES as u64) - data_bytes) as usize);
        }
        self.end_chunk((piece == 0).then(|| large.clone()))?;
        Ok(large.piece_done(piece, &hasher, reading.shortfall()))
    }

    /// Records what became of a file whose pieces have all been read.
    fn settle(&self, large: &LargeFile, finished: Finished, stability: Result<Stability, Problem>) {
        let problem = read::trouble(&large.found, finished.shortfall, stability);
        let is_doubtful = problem.as_ref().is_some_and(|problem| problem.kind.is_loss());
        problem.into_iter().for_each(|problem| self.flow.problem(problem));
        large.settle(Outcome { digest: finished.digest, is_doubtful });
    }

    fn push_member(
        &mut self,
        offset: usize,
        member: Member,
        stat: &Stat,
        content_digest: Option<[u8; 32]>,
        changed_while_read: bool,
    ) {
        let xattr_digest = member.xattrs.digest();
        self.members.push(CatalogMember {
            member,
            offset: offset as u64,
            device: stat.device,
            inode: stat.inode,
            changed: stat.changed,
            content_digest,
            xattr_digest,
            changed_while_read,
        });
    }

    /// Encodes the chunk being built and starts the next one.
    fn end_chunk(&mut self, awaits: Option<Arc<LargeFile>>) -> error::Result<()> {
        if self.content.is_empty() {
            return Ok(());
        }
        let content = std::mem::take(&mut self.content);
        let room = if self.is_encoded { self.flow.take_buffer(content.len() as u64) } else { Buffer::new() };
        let (chunk, mut spare) = self.encoder.encode(content, room)?;
        spare.clear();
        self.content = spare;
        let members = std::mem::take(&mut self.members);
        self.held_bytes += chunk.stored.len() as u64;
        self.parts.push(Part { chunk, members, read_started: self.read_started, awaits });
        Ok(())
    }

    /// Sends the chunks that are ready to the writer.
    fn send(&mut self, ended: Option<u64>) {
        let parts = std::mem::take(&mut self.parts);
        let members = parts.iter().map(|part| part.members.len() as u64).sum();
        self.flow.members.fetch_add(members, Ordering::Relaxed);
        self.flow.bytes.fetch_add(std::mem::take(&mut self.bytes_read), Ordering::Relaxed);
        self.held_bytes = 0;
        // The writer is gone only when the pipeline has stopped.
        let _ = self.done.send(Done { sequence: self.sequence, parts, ended });
    }
}

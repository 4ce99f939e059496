//! Builds the chunks of one plan, and sends them to the assembler.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;

use super::large_file::LargeFile;
use super::reuse::{BaseHint, BaseRef};
use super::state::PipelineState;
use crate::archive::buffer::Buffer;
use crate::archive::codec::{EncodedChunk, Encoder};
use crate::archive::header;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::member::{CatalogMember, Extent, Member, MemberKind};
use crate::source::{OwnerNames, SourceEntry, Stat};

/// A chunk of the new archive and the members whose headers are in it.
pub(super) struct BuiltChunk {
    pub(super) bytes: ChunkBytes,
    pub(super) members: ChunkMembers,
    /// When the run that read it began.
    pub(super) read_started: Timestamp,
    /// The file whose header ends this chunk. Its digest is known only when all its pieces have been read.
    pub(super) large_file: Option<Arc<LargeFile>>,
}

/// The stored bytes of a chunk.
pub(super) enum ChunkBytes {
    Encoded(EncodedChunk),
    /// Those of this chunk of the base.
    Base(BaseRef),
}

impl ChunkBytes {
    /// Returns the memory to the pool.
    pub(super) fn give_back(self, state: &PipelineState<'_>) {
        if let ChunkBytes::Encoded(chunk) = self {
            state.give_buffer(chunk.stored);
        }
    }
}

/// The members whose headers are in a chunk.
pub(super) enum ChunkMembers {
    /// Those of the base's chunk; nothing was read.
    Unchanged(MemberCounts),
    Read(Vec<CatalogRow>),
}

/// A member as the catalog will record it, and the row of an equal member of the base.
pub(super) struct CatalogRow {
    pub(super) entry: CatalogMember,
    pub(super) known: Option<i64>,
}

/// Counts of members.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MemberCounts {
    pub(super) extent: Extent,
    pub(super) folders: u64,
}

impl MemberCounts {
    pub(super) fn add(&mut self, member: &Member) {
        self.extent.members += 1;
        self.extent.files += u64::from(matches!(member.kind, MemberKind::File | MemberKind::HardLink));
        self.folders += u64::from(member.kind == MemberKind::Folder);
        self.extent.content_bytes += member.size;
    }

    pub(super) fn add_all(&mut self, other: &MemberCounts) {
        self.extent.members += other.extent.members;
        self.extent.files += other.extent.files;
        self.extent.content_bytes += other.extent.content_bytes;
        self.folders += other.folders;
    }
}

/// What a worker sends to the assembler.
pub(super) struct PlanOutput {
    /// The plan that it belongs to.
    pub(super) sequence: u64,
    pub(super) chunks: Vec<BuiltChunk>,
    /// Set in the last output of a plan: the bytes that the plan counted in the memory budget.
    pub(super) ended_plan_bytes: Option<u64>,
}

/// A member that was read and whose entry was appended to a chunk.
pub(super) struct ReadMember {
    /// Where its entry begins in the chunk.
    pub(super) offset: usize,
    pub(super) member: Member,
    /// The facts of the file whose content it is.
    pub(super) stat: Stat,
    pub(super) content_digest: Option<[u8; 32]>,
    /// No problem was recorded for it.
    pub(super) is_reusable: bool,
}

/// Builds the chunks of one plan.
pub(super) struct ChunkBuilder<'a, 'f> {
    pub(super) state: &'a PipelineState<'f>,
    pub(super) names: &'a OwnerNames,
    /// Plain chunks are padded: before their last member, because Python fails on a global header behind it.
    pub(super) pads_content: bool,
    pub(super) encoder: &'a mut Encoder,
    pub(super) output: &'a Sender<PlanOutput>,
    pub(super) sequence: u64,
    /// Bytes that the plan counts in the memory budget.
    pub(super) memory_bytes: u64,
    pub(super) read_started: Timestamp,
    /// The chunks of the base with the members of the plan, one for each chunk to come. If the content is the same,
    /// their bytes are used.
    pub(super) base_chunks: VecDeque<BaseRef>,
    /// The chunk being built, and the members in it.
    pub(super) content: Buffer,
    pub(super) members: Vec<CatalogRow>,
    /// The member of the base with the path of the last one, if that may get padding.
    pub(super) last_hint: Option<BaseHint>,
    /// Chunks that have not been sent, and the bytes of the encoded ones.
    pub(super) chunks: Vec<BuiltChunk>,
    pub(super) chunk_bytes: u64,
    /// Bytes of content read that are not part of the progress yet.
    pub(super) bytes_read: u64,
}

impl ChunkBuilder<'_, '_> {
    /// Adds the catalog record of a member whose entry is at the end of the chunk being built. Compares it with the
    /// member of the base with its path.
    pub(super) fn push_member(&mut self, read: ReadMember, entry: &SourceEntry, hint: Option<&BaseHint>) {
        let ReadMember { offset, member, stat, content_digest, mut is_reusable } = read;
        let silent_change =
            content_digest.filter(|_| is_reusable).and_then(|digest| self.silent_change(entry, hint, &stat, digest));
        is_reusable &= silent_change.is_none() && (member.kind == MemberKind::Folder || entry.file_system.is_synced);
        silent_change.into_iter().for_each(|problem| self.state.problem(problem));
        let xattr_digest = member.xattrs.digest();
        let row = CatalogMember {
            member,
            entry_bytes: (self.content.len() - offset) as u64,
            device: stat.device,
            inode: stat.inode,
            changed: stat.changed,
            content_digest,
            xattr_digest,
            is_reusable,
        };
        let known = hint.and_then(|hint| hint.row_of(&row));
        self.last_hint = hint.filter(|_| self.pads_content).cloned();
        self.members.push(CatalogRow { entry: row, known });
    }

    /// Ends a chunk of whole members.
    pub(super) fn end_members(&mut self) -> Result<()> {
        if let Some(last) = self.members.last_mut()
            && let Some(length) = self.encoder.content_padding(self.content.len())
        {
            let at = self.content.len() - last.entry.entry_bytes as usize;
            insert_padding(&mut self.content, at, length);
            last.entry.entry_bytes += length as u64;
            last.known = self.last_hint.take().and_then(|hint| hint.row_of(&last.entry));
        }
        self.end_chunk(None)
    }

    /// Ends the chunk being built and starts the next one. Encodes it unless the base has the same content.
    pub(super) fn end_chunk(&mut self, large_file: Option<Arc<LargeFile>>) -> Result<()> {
        if self.content.is_empty() {
            return Ok(());
        }
        let content = std::mem::take(&mut self.content);
        let content_digest = *blake3::hash(&content).as_bytes();
        let base = self.base_chunks.pop_front().filter(|base| base.chunk.content_digest == Some(content_digest));
        let (bytes, mut spare) = match base {
            Some(base) => (ChunkBytes::Base(base), content),
            None => {
                let room = |bytes| self.state.take_buffer(bytes as u64);
                let (chunk, spare) = self.encoder.encode_hashed(content, content_digest, room)?;
                self.chunk_bytes += chunk.stored.len() as u64;
                (ChunkBytes::Encoded(chunk), spare)
            }
        };
        spare.clear();
        self.content = spare;
        let members = ChunkMembers::Read(std::mem::take(&mut self.members));
        self.chunks.push(BuiltChunk { bytes, members, read_started: self.read_started, large_file });
        Ok(())
    }

    /// Sends the chunks to the assembler.
    pub(super) fn send(&mut self, ended_plan_bytes: Option<u64>) {
        let chunks = std::mem::take(&mut self.chunks);
        let count = |chunk: &BuiltChunk| match &chunk.members {
            ChunkMembers::Unchanged(counts) => counts.extent.members,
            ChunkMembers::Read(rows) => rows.len() as u64,
        };
        self.state.members.fetch_add(chunks.iter().map(count).sum(), Ordering::Relaxed);
        self.state.bytes.fetch_add(std::mem::take(&mut self.bytes_read), Ordering::Relaxed);
        self.chunk_bytes = 0;
        // The receiver is dropped only when the pipeline has stopped.
        let _ = self.output.send(PlanOutput { sequence: self.sequence, chunks, ended_plan_bytes });
    }
}

/// Inserts a pax global header of `length` bytes into the content of a chunk.
pub(super) fn insert_padding(content: &mut Buffer, at: usize, length: usize) {
    let mut padding = Buffer::new();
    header::append_global_of(&mut padding, "", length);
    content.insert(at, &padding);
}

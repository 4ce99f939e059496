//! Builds the chunks of one plan, and sends them to the assembler.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;

use super::large_file::LargeFile;
use super::state::PipelineState;
use crate::archive::buffer::Buffer;
use crate::archive::codec::{EncodedChunk, Encoder};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::member::{CatalogMember, Member};
use crate::source::{OwnerNames, Stat};

/// An encoded chunk and the members whose headers are in it.
pub(super) struct BuiltChunk {
    pub(super) chunk: EncodedChunk,
    pub(super) members: Vec<CatalogMember>,
    pub(super) read_started: Timestamp,
    /// The file whose header ends this chunk. Its digest is known only when all its pieces have been read.
    pub(super) large_file: Option<Arc<LargeFile>>,
}

/// What a worker sends to the assembler.
pub(super) struct PlanOutput {
    /// The plan that it belongs to.
    pub(super) sequence: u64,
    pub(super) chunks: Vec<BuiltChunk>,
    /// Set in the last output of a plan: the bytes that the plan counted in the memory budget.
    pub(super) ended_plan_bytes: Option<u64>,
}

/// Builds the chunks of one plan.
pub(super) struct ChunkBuilder<'a, 'f> {
    pub(super) state: &'a PipelineState<'f>,
    pub(super) names: &'a OwnerNames,
    pub(super) is_encoded: bool,
    pub(super) encoder: &'a mut Encoder,
    pub(super) output: &'a Sender<PlanOutput>,
    pub(super) sequence: u64,
    /// Bytes that the plan counts in the memory budget.
    pub(super) memory_bytes: u64,
    pub(super) read_started: Timestamp,
    /// The chunk being built, and the members in it.
    pub(super) content: Buffer,
    pub(super) members: Vec<CatalogMember>,
    /// Encoded chunks that have not been sent, and their bytes.
    pub(super) chunks: Vec<BuiltChunk>,
    pub(super) chunk_bytes: u64,
    /// Bytes of content read that are not part of the progress yet.
    pub(super) bytes_read: u64,
}

impl ChunkBuilder<'_, '_> {
    /// Adds the catalog record of a member whose entry begins at `offset` of the chunk being built and is at its end.
    pub(super) fn push_member(
        &mut self,
        offset: usize,
        member: Member,
        stat: &Stat,
        content_digest: Option<[u8; 32]>,
        is_reusable: bool,
    ) {
        let xattr_digest = member.xattrs.digest();
        self.members.push(CatalogMember {
            member,
            entry_bytes: (self.content.len() - offset) as u64,
            device: stat.device,
            inode: stat.inode,
            changed: stat.changed,
            content_digest,
            xattr_digest,
            is_reusable,
        });
    }

    /// Encodes the chunk being built and starts the next one.
    pub(super) fn end_chunk(&mut self, large_file: Option<Arc<LargeFile>>) -> Result<()> {
        if self.content.is_empty() {
            return Ok(());
        }
        let content = std::mem::take(&mut self.content);
        let room = if self.is_encoded { self.state.take_buffer(content.len() as u64) } else { Buffer::new() };
        let (chunk, mut spare) = self.encoder.encode(content, room)?;
        spare.clear();
        self.content = spare;
        let members = std::mem::take(&mut self.members);
        self.chunk_bytes += chunk.stored.len() as u64;
        self.chunks.push(BuiltChunk { chunk, members, read_started: self.read_started, large_file });
        Ok(())
    }

    /// Sends the encoded chunks to the assembler.
    pub(super) fn send(&mut self, ended_plan_bytes: Option<u64>) {
        let chunks = std::mem::take(&mut self.chunks);
        let members = chunks.iter().map(|chunk| chunk.members.len() as u64).sum();
        self.state.members.fetch_add(members, Ordering::Relaxed);
        self.state.bytes.fetch_add(std::mem::take(&mut self.bytes_read), Ordering::Relaxed);
        self.chunk_bytes = 0;
        // The receiver is dropped only when the pipeline has stopped.
        let _ = self.output.send(PlanOutput { sequence: self.sequence, chunks, ended_plan_bytes });
    }
}

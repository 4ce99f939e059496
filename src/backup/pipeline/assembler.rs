//! The writing side of the pipeline: writes chunks into the archive file in order and passes their records on.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::chunk_builder::{BuiltChunk, PlanOutput};
use super::large_file::LargeFile;
use super::state::PipelineState;
use crate::archive::writer::ArchiveWriter;
use crate::chunk::{CatalogChunk, Chunk, ChunkRecord, MemberRecord};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::member::{CatalogMember, Extent, MemberKind};

/// A batch of records is passed to the catalog when it has this many rows.
const BATCH_ROWS: usize = 2_000;
/// Maximum number of records that wait for the one of a chunk before them: rows with consecutive ids take less room.
const MAX_WAITING: usize = 4_096;

/// Counts of the members written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) extent: Extent,
    pub(super) folders: u64,
}

/// Writes chunks into the file in the order of plans.
pub(super) struct Assembler<'a, 'f> {
    state: &'a PipelineState<'a>,
    writer: ArchiveWriter<'f>,
    records: Sender<Vec<CatalogChunk>>,
    batch: Vec<CatalogChunk>,
    batch_rows: usize,
    /// The record of a chunk with the header of a large file of which not all pieces have been read.
    held: Option<(CatalogChunk, Arc<LargeFile>)>,
    /// The records of the chunks after that one.
    waiting: Vec<CatalogChunk>,
    pub(super) counts: Counts,
}

impl<'a, 'f> Assembler<'a, 'f> {
    /// Starts the archive with its global header.
    pub(super) fn start(
        state: &'a PipelineState<'a>,
        mut writer: ArchiveWriter<'f>,
        records: Sender<Vec<CatalogChunk>>,
        comment: &str,
        now: Timestamp,
    ) -> Result<Self> {
        let header = writer.put_global_header(comment)?;
        let mut assembler = Assembler {
            state,
            writer,
            records,
            batch: Vec::new(),
            batch_rows: 0,
            held: None,
            waiting: Vec::new(),
            counts: Counts::default(),
        };
        assembler.keep_record(header, Vec::new(), now, None);
        Ok(assembler)
    }

    /// Writes the output of the workers in the order of plans, until they have ended.
    pub(super) fn assemble(&mut self, outputs: &Receiver<PlanOutput>) -> Result<()> {
        let mut next = 0;
        let mut early: BTreeMap<u64, Vec<PlanOutput>> = BTreeMap::new();
        for message in outputs {
            if message.sequence != next {
                early.entry(message.sequence).or_default().push(message);
                continue;
            }
            let mut messages = vec![message];
            while !messages.is_empty() {
                let mut has_ended = false;
                for message in messages.drain(..) {
                    has_ended = message.ended_plan_bytes.is_some();
                    self.put(message)?;
                }
                next += u64::from(has_ended);
                messages = early.remove(&next).unwrap_or_default();
            }
        }
        Ok(())
    }

    fn put(&mut self, message: PlanOutput) -> Result<()> {
        for BuiltChunk { chunk, members, read_started, large_file } in message.chunks {
            self.release_held();
            let written = self.writer.put(&chunk)?;
            self.keep_record(written, members, read_started, large_file);
            self.state.give_buffer(chunk.stored);
        }
        if let Some(bytes) = message.ended_plan_bytes {
            self.state.next_turn(bytes);
        }
        Ok(())
    }

    /// Counts the members of the chunk written last, and keeps its record for the catalog.
    fn keep_record(
        &mut self,
        chunk: Chunk,
        members: Vec<CatalogMember>,
        read_started: Timestamp,
        large_file: Option<Arc<LargeFile>>,
    ) {
        for CatalogMember { member, .. } in &members {
            self.counts.extent.members += 1;
            self.counts.extent.files += u64::from(matches!(member.kind, MemberKind::File | MemberKind::HardLink));
            self.counts.folders += u64::from(member.kind == MemberKind::Folder);
            self.counts.extent.content_bytes += member.size;
        }
        let members = members.into_iter().map(MemberRecord::New).collect();
        let record = CatalogChunk { chunk, read_started, record: ChunkRecord::New { members } };
        match large_file {
            Some(file) => self.held = Some((record, file)),
            None => self.waiting.push(record),
        }
        if self.held.is_none() || self.waiting.len() >= MAX_WAITING {
            self.release_waiting();
        }
        self.release_held();
    }

    /// Adds the held record to the batch once all pieces of its file have been read; that is the case before any chunk
    /// after its last piece arrives here.
    fn release_held(&mut self) {
        let Some((_, file)) = &self.held else { return };
        let Some(result) = file.result() else { return };
        if let Some((mut record, _)) = self.held.take() {
            if let ChunkRecord::New { members } = &mut record.record
                && let Some(MemberRecord::New(header)) = members.last_mut()
            {
                header.content_digest = Some(result.digest);
                header.is_reusable = !result.is_doubtful;
            }
            self.add_to_batch(record);
            self.release_waiting();
        }
    }

    fn release_waiting(&mut self) {
        std::mem::take(&mut self.waiting).into_iter().for_each(|record| self.add_to_batch(record));
    }

    fn add_to_batch(&mut self, record: CatalogChunk) {
        self.batch_rows += record.rows();
        self.batch.push(record);
        if self.batch_rows >= BATCH_ROWS {
            self.send_batch();
        }
    }

    fn send_batch(&mut self) {
        self.batch_rows = 0;
        // The receiver is dropped only when the pipeline has stopped.
        let _ = self.records.send(std::mem::take(&mut self.batch));
    }

    /// Writes the end marks of the tar and passes the last records on. The trailer is still to be written.
    pub(super) fn finish(mut self, now: Timestamp) -> Result<(ArchiveWriter<'f>, Counts)> {
        self.release_held();
        let end_marks = self.writer.put_end_marks()?;
        self.keep_record(end_marks, Vec::new(), now, None);
        self.send_batch();
        Ok((self.writer, self.counts))
    }
}

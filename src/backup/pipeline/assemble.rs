//! The writer's side of the pipeline: chunks go into the archive file in order, their records to the catalog.

use std::collections::BTreeMap;

use crossbeam_channel::{Receiver, Sender};

use super::flow::Flow;
use super::large::LargeFile;
use super::work::{Done, Part};
use crate::archive::writer::ArchiveWriter;
use crate::chunk::{CatalogChunk, Chunk};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::member::{CatalogMember, Extent, MemberKind};
use std::sync::Arc;

/// A batch of records goes to the catalog when it has so many rows.
const BATCH_ROWS: usize = 2_000;

/// Counts over the members written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) extent: Extent,
    pub(super) folders: u64,
}

/// Puts chunks in order and into the file.
pub(super) struct Assembler<'a, 'f> {
    flow: &'a Flow<'a>,
    writer: ArchiveWriter<'f>,
    records: Sender<Vec<CatalogChunk>>,
    batch: Vec<CatalogChunk>,
    batch_rows: usize,
    /// The record of a chunk with the header of a large file that is not read to its end yet.
    held: Option<(CatalogChunk, Arc<LargeFile>)>,
    pub(super) counts: Counts,
}

impl<'a, 'f> Assembler<'a, 'f> {
    /// Starts the archive with its global header.
    pub(super) fn start(
        flow: &'a Flow<'a>,
        mut writer: ArchiveWriter<'f>,
        records: Sender<Vec<CatalogChunk>>,
        comment: &str,
        now: Timestamp,
    ) -> Result<Self> {
        let header = writer.put_global_header(comment)?;
        let mut assembler = Assembler {
            flow,
            writer,
            records,
            batch: Vec::new(),
            batch_rows: 0,
            held: None,
            counts: Counts::default(),
        };
        assembler.keep_record(header, Vec::new(), now, None);
        Ok(assembler)
    }

    /// Writes what the workers send until they are done, in the order of plans.
    pub(super) fn assemble(&mut self, done: &Receiver<Done>) -> Result<()> {
        let mut next = 0;
        let mut early: BTreeMap<u64, Vec<Done>> = BTreeMap::new();
        for message in done {
            if message.sequence != next {
                early.entry(message.sequence).or_default().push(message);
                continue;
            }
            let mut messages = vec![message];
            while !messages.is_empty() {
                let mut has_ended = false;
                for message in messages.drain(..) {
                    has_ended = message.ended.is_some();
                    self.put(message)?;
                }
                next += u64::from(has_ended);
                messages = early.remove(&next).unwrap_or_default();
            }
        }
        Ok(())
    }

    fn put(&mut self, message: Done) -> Result<()> {
        for Part { chunk, members, read_started, awaits } in message.parts {
            self.release_held();
            let written = self.writer.put(&chunk)?;
            self.keep_record(written, members, read_started, awaits);
            self.flow.give_buffer(chunk.stored);
        }
        if let Some(cost) = message.ended {
            self.flow.next_turn(cost);
        }
        Ok(())
    }

    /// Keeps the record of the chunk written last for the catalog.
    fn keep_record(
        &mut self,
        chunk: Chunk,
        members: Vec<CatalogMember>,
        read_started: Timestamp,
        awaits: Option<Arc<LargeFile>>,
    ) {
        let record = CatalogChunk { chunk, read_started, members };
        for CatalogMember { member, .. } in &record.members {
            self.counts.extent.members += 1;
            self.counts.extent.files += u64::from(matches!(member.kind, MemberKind::File | MemberKind::HardLink));
            self.counts.folders += u64::from(member.kind == MemberKind::Folder);
            self.counts.extent.content_bytes += member.size;
        }
        match awaits {
            Some(large) => self.held = Some((record, large)),
            None => self.add_to_batch(record),
        }
        self.release_held();
    }

    /// Lets the held record go once its file has been read to its end, which it has before anything behind its last
    /// piece comes here.
    fn release_held(&mut self) {
        let Some((_, large)) = &self.held else { return };
        let Some(outcome) = large.outcome() else { return };
        if let Some((mut record, _)) = self.held.take() {
            if let Some(header) = record.members.last_mut() {
                header.content_digest = Some(outcome.digest);
                header.changed_while_read = outcome.is_doubtful;
            }
            self.add_to_batch(record);
        }
    }

    fn add_to_batch(&mut self, record: CatalogChunk) {
        self.batch_rows += 2 + record.members.len();
        self.batch.push(record);
        if self.batch_rows >= BATCH_ROWS {
            self.send_batch();
        }
    }

    fn send_batch(&mut self) {
        self.batch_rows = 0;
        // The catalog's side is gone only when the pipeline has stopped.
        let _ = self.records.send(std::mem::take(&mut self.batch));
    }

    /// Ends the tar and hands over the last records. The trailer is still to be written.
    pub(super) fn finish(mut self, now: Timestamp) -> Result<(ArchiveWriter<'f>, Counts)> {
        self.release_held();
        let end_marks = self.writer.put_end_marks()?;
        self.keep_record(end_marks, Vec::new(), now, None);
        self.send_batch();
        Ok((self.writer, self.counts))
    }
}

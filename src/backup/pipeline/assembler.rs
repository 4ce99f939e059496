//! The writing side of the pipeline: writes chunks into the archive file in order and passes their records on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::base_bytes::BaseBytes;
use super::base_range::{BaseRange, PendingChunk};
use super::chunk_builder::{BuiltChunk, CatalogRow, ChunkBytes, ChunkMembers, MemberCounts, PlanOutput};
use super::large_file::LargeFile;
use super::reuse::{Base, BaseRef};
use super::state::PipelineState;
use super::unwritten::Unwritten;
use crate::archive::buffer::Buffer;
use crate::archive::codec::EncodedChunk;
use crate::archive::writer::{ArchiveWriter, Finished, WrittenChunk};
use crate::chunk::{CatalogChunk, ChunkRecord, MemberRecord};
use crate::clock::Timestamp;
use crate::error::Result;

/// A batch of records is passed to the catalog when it has this many rows.
const BATCH_ROWS: usize = 2_000;
/// Maximum number of records that wait for the one of a chunk before them: rows with consecutive ids take less room.
const MAX_WAITING: usize = 4_096;

/// Writes chunks into the file in the order of plans.
///
/// As long as they are the chunks of the base, from its first one on, nothing is written: if that remains so to the
/// end, the file of the base can be the archive.
pub(super) struct Assembler<'a, 'f> {
    state: &'a PipelineState<'a>,
    writer: ArchiveWriter<'f>,
    records: Sender<Vec<CatalogChunk>>,
    comment: &'a str,
    read_started: Timestamp,
    /// The chunks of the base that are part of the archive and not written yet; `None` once the archive was begun.
    unwritten: Option<Unwritten<'a>>,
    batch: Vec<CatalogChunk>,
    batch_rows: usize,
    /// The chunk with the header of a large file of which not all pieces have been read.
    held: Option<HeldChunk>,
    /// The records of the chunks after that one.
    waiting: Vec<CatalogChunk>,
    base_bytes: BaseBytes<'a>,
    /// In segments.
    base_range: BaseRange,
    counts: MemberCounts,
}

/// A chunk with the header of a large file.
struct HeldChunk {
    /// Its chunk in the archive file, once it is written.
    written: Option<WrittenChunk>,
    /// The chunk of the base with the same bytes.
    base: Option<BaseRef>,
    rows: Vec<CatalogRow>,
    read_started: Timestamp,
    file: Arc<LargeFile>,
}

/// What the assembler made.
pub(super) enum Assembled<'f> {
    /// An archive of which the trailer is still to be written, and its ranges that share blocks with the base.
    Written(Box<ArchiveWriter<'f>>, Vec<Range<u64>>, MemberCounts),
    /// Nothing: the archive is that of the base, byte for byte.
    Unchanged(Finished, MemberCounts),
}

impl<'a, 'f> Assembler<'a, 'f> {
    /// Starts the archive.
    pub(super) fn start(
        state: &'a PipelineState<'a>,
        writer: ArchiveWriter<'f>,
        records: Sender<Vec<CatalogChunk>>,
        (comment, base_bytes): (&'a str, BaseBytes<'a>),
        read_started: Timestamp,
    ) -> Result<Self> {
        let mut assembler = Assembler {
            state,
            writer,
            records,
            comment,
            read_started,
            unwritten: state.base.map(Unwritten::new),
            batch: Vec::new(),
            batch_rows: 0,
            held: None,
            waiting: Vec::new(),
            base_bytes,
            base_range: BaseRange::new(state.base),
            counts: MemberCounts::default(),
        };
        if state.base.is_none() {
            assembler.put_header()?;
        }
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
        for chunk in message.chunks {
            self.release_held()?;
            self.put_chunk(chunk)?;
            self.release_held()?;
        }
        if let Some(bytes) = message.ended_plan_bytes {
            self.state.next_turn(bytes);
        }
        Ok(())
    }

    /// Counts the members of a chunk, writes it unless that can be put off, and keeps its record for the catalog.
    fn put_chunk(&mut self, built: BuiltChunk) -> Result<()> {
        let BuiltChunk { bytes, members, read_started, large_file } = built;
        let base = match &bytes {
            ChunkBytes::Base(base) => Some(*base),
            ChunkBytes::Encoded(_) => None,
        };
        let rows = self.count(members);
        let is_held = large_file.is_some();
        // The record of a chunk with the header of a large file is not known yet; its bytes are.
        let is_same = base.is_some() && (is_held || rows.as_deref().is_none_or(are_known));
        if let (Some(unwritten), Some(base), true) = (&mut self.unwritten, base, is_same)
            && unwritten.add(&base)
        {
            match (large_file, rows) {
                (Some(file), Some(rows)) => {
                    self.held = Some(HeldChunk { written: None, base: Some(base), rows, read_started, file });
                }
                (_, Some(_)) => unwritten.add_reread(base.id)?,
                (_, None) => {}
            }
            return Ok(());
        }
        self.begin()?;
        if large_file.is_none()
            && let Some(base) = base.filter(|base| base.place.is_some())
        {
            return self.refer(base, read_started, record_of(Some(base), rows));
        }
        let written = self.write(bytes)?;
        match (large_file, rows) {
            (Some(file), Some(rows)) => {
                self.held = Some(HeldChunk { written: Some(written), base, rows, read_started, file });
                Ok(())
            }
            (_, rows) => self.keep_record(written, read_started, record_of(base, rows)),
        }
    }

    /// Counts the members of a chunk; returns their rows if they were read.
    fn count(&mut self, members: ChunkMembers) -> Option<Vec<CatalogRow>> {
        match members {
            ChunkMembers::Unchanged(counts) => {
                self.counts.add_all(&counts);
                None
            }
            ChunkMembers::Read(rows) => {
                rows.iter().for_each(|row| self.counts.add(&row.entry.member));
                Some(rows)
            }
        }
    }

    /// Begins the archive with its header and what was put off, if that was not done yet.
    fn begin(&mut self) -> Result<()> {
        let (Some(mut unwritten), Some(base)) = (self.unwritten.take(), self.state.base) else { return Ok(()) };
        unwritten.flush()?;
        self.put_header()?;
        let mut next = 1;
        while next < unwritten.end() {
            if self.state.is_stopped() {
                return Ok(());
            }
            let page = (base.pages)(next, unwritten.page_chunks(next))?;
            for chunk in &page {
                next = chunk.chunk.sequence + 1;
                let is_held = self.held.as_ref().is_some_and(|held| held.base.is_some_and(|base| base.id == chunk.id));
                let record = ChunkRecord::Reused { id: chunk.id, reread: false };
                if !is_held && chunk.place.is_some() {
                    self.refer(BaseRef::of(chunk), chunk.read_started, record)?;
                    continue;
                }
                let written = self.write(ChunkBytes::Base(BaseRef::of(chunk)))?;
                match self.held.as_mut().filter(|_| is_held) {
                    Some(held) => held.written = Some(written),
                    None => self.keep_record(written, chunk.read_started, record)?,
                }
            }
            if page.is_empty() {
                return Err(base.incomplete());
            }
        }
        Ok(())
    }

    fn put_header(&mut self) -> Result<()> {
        let header = self.writer.put_global_header(self.comment)?;
        self.keep_record(header, self.read_started, ChunkRecord::New { members: Vec::new() })
    }

    /// Adds a chunk of the base that lies in a segment, once it is known whether it is copied.
    fn refer(&mut self, base: BaseRef, read_started: Timestamp, record: ChunkRecord) -> Result<()> {
        let Some(place) = base.place else { return Ok(()) };
        if !self.base_range.is_continued_by(&place) {
            self.end_range(false)?;
        }
        let decided = self.base_range.add(PendingChunk { base, place, read_started, record });
        self.put_range(decided, false)
    }

    /// Adds the chunks of which was not decided yet whether they are copied; `is_beside_new`: what follows is written.
    fn end_range(&mut self, is_beside_new: bool) -> Result<()> {
        let (pending, is_copied) = self.base_range.end(&self.writer, is_beside_new);
        self.put_range(pending, is_copied)
    }

    fn put_range(&mut self, chunks: Vec<PendingChunk>, is_copied: bool) -> Result<()> {
        for PendingChunk { base: BaseRef { chunk, .. }, place, read_started, record } in chunks {
            let written = match self.state.base.filter(|_| is_copied) {
                Some(base) => {
                    let mut stored = Buffer::new();
                    base.read(&chunk, &mut stored)?;
                    self.writer.put(&EncodedChunk { chunk, stored })?
                }
                None => self.writer.refer(&chunk, place)?,
            };
            self.keep_record(written, read_started, record)?;
        }
        Ok(())
    }

    /// Writes the bytes of a chunk; returns it with its position in the file.
    fn write(&mut self, bytes: ChunkBytes) -> Result<WrittenChunk> {
        self.end_range(matches!(bytes, ChunkBytes::Encoded(_)))?;
        match bytes {
            ChunkBytes::Base(BaseRef { chunk, place: Some(place), .. }) => self.writer.refer(&chunk, place),
            ChunkBytes::Base(chunk) => {
                let chunk = self.base_bytes.put(&chunk.chunk, &mut self.writer)?;
                Ok(WrittenChunk { chunk, place: None })
            }
            ChunkBytes::Encoded(encoded) => {
                self.base_bytes.flush(&mut self.writer)?;
                let written = self.writer.put(&encoded)?;
                self.state.give_buffer(encoded.stored);
                Ok(written)
            }
        }
    }

    /// Keeps the record of a chunk for the catalog, in order: after that of a held chunk.
    fn keep_record(&mut self, written: WrittenChunk, read_started: Timestamp, record: ChunkRecord) -> Result<()> {
        let WrittenChunk { chunk, place } = written;
        self.waiting.push(CatalogChunk { chunk, place, read_started, record });
        if self.held.is_none() || self.waiting.len() >= MAX_WAITING {
            self.release_waiting();
        }
        Ok(())
    }

    /// Records the held chunk once all pieces of its file have been read; that is the case before any chunk after its
    /// last piece arrives here.
    fn release_held(&mut self) -> Result<()> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let Some(result) = held.file.result() else { return Ok(()) };
        if let Some(row) = held.rows.last_mut() {
            row.entry.content_digest = Some(result.digest);
            row.entry.is_reusable = result.is_reusable;
            row.known = held.file.hint.as_ref().and_then(|hint| hint.row_of(&row.entry));
        }
        if let (Some(unwritten), Some(base)) = (&mut self.unwritten, held.base) {
            if are_known(&held.rows) {
                self.held = None;
                return unwritten.add_reread(base.id);
            }
            // The same bytes, and other facts about the file.
            self.begin()?;
        }
        if let Some(HeldChunk { written: Some(written), base, rows, read_started, .. }) = self.held.take() {
            let (WrittenChunk { chunk, place }, record) = (written, record_of(base, Some(rows)));
            self.add_to_batch(CatalogChunk { chunk, place, read_started, record });
        }
        self.release_waiting();
        Ok(())
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

    /// Ends the archive after the last chunk. If it would hold exactly the chunks of the base, `link` may make that the
    /// archive, and returns whether it did; otherwise writes the end marks of the tar and passes the
    /// last records on.
    pub(super) fn finish(mut self, link: &dyn Fn(&Base<'_>, &MemberCounts) -> bool) -> Result<Assembled<'f>> {
        self.release_held()?;
        if let (Some(unwritten), Some(base)) = (&mut self.unwritten, self.state.base)
            && unwritten.is_whole()
        {
            unwritten.flush()?;
            if link(base, &self.counts) {
                let finished =
                    Finished { size: base.size, chunks: base.chunks, digest: base.digest, in_segments: None };
                return Ok(Assembled::Unchanged(finished, self.counts));
            }
        }
        self.begin()?;
        self.base_bytes.flush(&mut self.writer)?;
        self.end_range(true)?;
        let end_marks = self.writer.put_end_marks()?;
        self.keep_record(end_marks, self.read_started, ChunkRecord::New { members: Vec::new() })?;
        self.send_batch();
        Ok(Assembled::Written(Box::new(self.writer), self.base_bytes.into_shared(), self.counts))
    }
}

/// Returns whether all rows are those of the base.
fn are_known(rows: &[CatalogRow]) -> bool {
    rows.iter().all(|row| row.known.is_some())
}

/// Returns the record of a chunk with these rows, `None` if it was not read, and with the bytes of `base`.
fn record_of(base: Option<BaseRef>, rows: Option<Vec<CatalogRow>>) -> ChunkRecord {
    match (base, rows) {
        (Some(base), None) => ChunkRecord::Reused { id: base.id, reread: false },
        (Some(base), Some(rows)) if are_known(&rows) => ChunkRecord::Reused { id: base.id, reread: true },
        (_, rows) => {
            let record = |row: CatalogRow| row.known.map_or(MemberRecord::New(row.entry), MemberRecord::Known);
            ChunkRecord::New { members: rows.unwrap_or_default().into_iter().map(record).collect() }
        }
    }
}

//! The bytes that an archive takes from its base: shared with the base's file where the file system can, else copied,
//! by threads of their own.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crossbeam_channel::{Receiver, Sender};

use super::reuse::Base;
use super::state::PipelineState;
use crate::archive::buffer::Buffer;
use crate::archive::padding::Padding;
use crate::archive::writer::ArchiveWriter;
use crate::chunk::Chunk;
use crate::durable::SHARED_BLOCK_BYTES;
use crate::error::{Error, Result};

/// Chunks that are shared by one call: more is slower to copy if it fails.
const MAX_PENDING: usize = 1024;

/// Maximum number of ranges that are remembered as shared. What further ones hold is verified like what was written.
const MAX_RANGES: usize = 1 << 16;

/// A chunk that is to be copied.
pub(super) struct Copy {
    /// As the base stores it.
    chunk: Chunk,
    /// Where it begins in the archive.
    offset: u64,
}

/// Copies chunks of the base, each checked by its digest, into the archive file at `path` until there are no more.
///
/// Errors: `Damage` if bytes of the base are not those that were written; `DiskFull`.
pub(super) fn copy_chunks(
    state: &PipelineState<'_>,
    base: &Base<'_>,
    file: &File,
    path: &Path,
    copies: &Receiver<Copy>,
) -> Result<()> {
    let mut stored = Buffer::new();
    for Copy { chunk, offset } in copies {
        if state.is_stopped() {
            break;
        }
        base.read(&chunk, &mut stored)?;
        file.write_all_at(&stored, offset).map_err(Error::io("write", path))?;
    }
    Ok(())
}

/// Takes chunks of the base into the archive, those that are side by side in both together.
pub(super) struct BaseBytes<'a> {
    base: Option<&'a Base<'a>>,
    /// Chunks are shared where possible: theirs are whole blocks.
    shares: bool,
    /// Chunks that were added to the archive without their bytes, as the base stores them.
    pending: Vec<Chunk>,
    /// Where the first of them begins in the archive.
    pending_offset: u64,
    /// To the threads that copy.
    copies: Sender<Copy>,
    /// The ranges of the archive that share blocks with the base.
    shared: Vec<Range<u64>>,
}

impl<'a> BaseBytes<'a> {
    pub(super) fn new(base: Option<&'a Base<'a>>, padding: Padding, copies: Sender<Copy>) -> Self {
        BaseBytes {
            base,
            shares: padding == Padding::Blocks,
            pending: Vec::new(),
            pending_offset: 0,
            copies,
            shared: Vec::new(),
        }
    }

    /// Adds a chunk of the base to the archive; returns it with its position there. Its bytes may follow later.
    pub(super) fn put(&mut self, chunk: &Chunk, writer: &mut ArchiveWriter<'_>) -> Result<Chunk> {
        let is_next = self.pending.last().is_some_and(|last| last.end() == chunk.offset);
        if !is_next || self.pending.len() >= MAX_PENDING {
            self.flush(writer)?;
        }
        let place = writer.add(chunk)?;
        if self.pending.is_empty() {
            self.pending_offset = place.offset;
        }
        self.pending.push(*chunk);
        if !self.shares {
            self.flush(writer)?;
        }
        Ok(place)
    }

    /// Shares the bytes of all chunks added so far, or has them copied. To be called after the last one.
    ///
    /// Errors: `DiskFull`.
    pub(super) fn flush(&mut self, writer: &mut ArchiveWriter<'_>) -> Result<()> {
        let (Some(first), Some(base)) = (self.pending.first(), self.base) else { return Ok(()) };
        let (from, offset) = (first.offset, self.pending_offset);
        let shared = self.share(from, base, writer)?;
        let in_any_order = writer.extend()?;
        let mut stored = Buffer::new();
        for chunk in &self.pending {
            let place = offset + (chunk.offset - from);
            if shared.start <= place && place + chunk.stored_length <= shared.end {
                continue;
            }
            if !in_any_order {
                base.read(chunk, &mut stored)?;
                writer.fill(place, &stored)?;
                continue;
            }
            // Nothing receives it once the pipeline has stopped.
            let _ = self.copies.send(Copy { chunk: *chunk, offset: place });
        }
        self.pending.clear();
        self.remember(shared);
        Ok(())
    }

    /// Shares the whole blocks of the pending chunks, which begin at `from` in the base. Returns their range in the
    /// archive, empty if they are not shared.
    fn share(&self, from: u64, base: &Base<'_>, writer: &ArchiveWriter<'_>) -> Result<Range<u64>> {
        const BLOCK: u64 = SHARED_BLOCK_BYTES;
        let offset = self.pending_offset;
        let end = offset + self.pending.iter().map(|chunk| chunk.stored_length).sum::<u64>();
        let (first, last) = (offset.next_multiple_of(BLOCK), end - end % BLOCK);
        let Some(file) = base.reader.whole_file().filter(|_| self.shares) else { return Ok(offset..offset) };
        if first >= last || from % BLOCK != offset % BLOCK {
            return Ok(offset..offset);
        }
        let is_shared = writer.share(file, from + (first - offset), first, last - first)?;
        Ok(if is_shared { first..last } else { offset..offset })
    }

    fn remember(&mut self, range: Range<u64>) {
        let count = self.shared.len();
        match self.shared.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ if count < MAX_RANGES => self.shared.push(range),
            _ => {}
        }
    }

    /// Returns the ranges of the archive that share blocks with the base, in order, and were neither read nor written.
    pub(super) fn into_shared(self) -> Vec<Range<u64>> {
        self.shared
    }
}

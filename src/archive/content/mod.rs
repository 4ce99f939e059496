//! The content of an archive file: its bytes of tar in order, decoded in advance by other threads. Either all of it, or
//! only the chunks of a plan. What cannot be read is a gap, of known length where that is known, so that the rest can
//! still be read.

mod pieces;
mod stream;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::pieces::{Piece, PieceQueue, Task};
use self::stream::PIECE_BYTES;
use super::block::padding;
use super::buffer::Buffer;
use super::codec::Codec;
use super::reader::ArchiveReader;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::member::Span;

pub use self::pieces::PlannedChunk;

/// Chunks to be read, in order.
pub type Plan = Box<dyn Iterator<Item = Result<PlannedChunk>> + Send>;

/// Why content cannot be read.
#[derive(Clone, Debug)]
pub(super) enum ReadError {
    /// The archive, or the part before a jump, ends here.
    End,
    /// A span cannot be read, but the content after it can.
    Gap(String),
    /// Nothing can be read from here on.
    Broken(String),
    /// Nothing can be decoded from here on, and a checksum of what was read before was not reached or is wrong.
    Undecodable(String),
}

impl ReadError {
    /// Returns what is wrong, in words.
    pub fn reason(&self) -> String {
        match self {
            ReadError::End => "it ends in the middle: it was cut off".to_owned(),
            ReadError::Gap(reason) | ReadError::Broken(reason) | ReadError::Undecodable(reason) => reason.clone(),
        }
    }
}

/// A [`Result`](std::result::Result) of reading content.
type ReadResult<T> = std::result::Result<T, ReadError>;

/// The token of work that nobody cancels.
static NEVER: CancelToken = CancelToken::new();

/// The content of an archive file, read from beginning to end.
pub struct Content<'c> {
    archive: Arc<ArchiveReader>,
    queue: PieceQueue,
    /// Pieces are chunks, which begin and end with members or pieces of files, not anywhere.
    is_chunked: bool,
    /// No checksum vouches for the whole: frames of another segment in the place of the right ones would decode too.
    is_unvouched: bool,
    current: CurrentPiece,
    /// Position of the beginning of the current piece in the content of all planned chunks.
    start: u64,
    failure: Option<Error>,
    /// Ends searches, which may take as long as reading the whole file.
    pub(super) cancel: &'c CancelToken,
}

enum CurrentPiece {
    Data {
        sequence: u64,
        bytes: Buffer,
        at: usize,
    },
    Gap {
        sequence: u64,
        length: u64,
        at: u64,
        reason: Option<String>,
    },
    /// A piece that does not begin where the last one ended. It is read after [`Content::pass_jump`].
    Jump(Box<CurrentPiece>),
    Over(ReadError),
}

impl Content<'static> {
    /// Reads and decodes the chunks of a plan with `threads` threads.
    pub fn chunks(archive: Arc<ArchiveReader>, plan: Plan, threads: usize) -> Self {
        let queue = PieceQueue::start(&archive, plan.map(|planned| planned.map(Task::Chunk)), threads);
        Content::new(archive, queue, true)
    }

    /// Reads a whole file that has no chunks: an archive of another program, or one of ours without its trailer.
    pub fn stream(archive: Arc<ArchiveReader>) -> Self {
        let is_unvouched = archive.whole_file().is_none();
        if archive.codec() != Codec::Plain {
            let queue = stream::start(&archive);
            return Content { is_unvouched, ..Content::new(archive, queue, false) };
        }
        let parts = archive.clone();
        let offsets = (0..archive.size()).step_by(PIECE_BYTES);
        // What lies in several segments is read from each by itself: one that is missing leaves no larger gap.
        let spans = offsets.flat_map(move |offset| parts.spans(offset, PIECE_BYTES as u64));
        Content { is_unvouched, ..Content::ranges(archive, spans) }
    }

    /// Reads ranges of an uncompressed file, one after the other. One that cannot be read is a gap.
    pub(super) fn ranges(archive: Arc<ArchiveReader>, ranges: impl Iterator<Item = Span> + Send + 'static) -> Self {
        let tasks = (0..).zip(ranges).map(|(sequence, range)| Ok(Task::Range(sequence, range)));
        let queue = PieceQueue::start(&archive, tasks, 1);
        Content::new(archive, queue, false)
    }

    fn new(archive: Arc<ArchiveReader>, queue: PieceQueue, is_chunked: bool) -> Self {
        let current = CurrentPiece::Data { sequence: 0, bytes: Buffer::new(), at: 0 };
        Content { archive, queue, is_chunked, is_unvouched: false, current, start: 0, failure: None, cancel: &NEVER }
    }
}

impl Content<'_> {
    /// Fails if the work was cancelled. [`Content::take_failure`] then returns that.
    pub(super) fn check_cancelled(&mut self) -> ReadResult<()> {
        self.cancel.check("reading the archive was cancelled").map_err(|error| {
            let reason = error.to_string();
            self.failure = Some(error);
            ReadError::Broken(reason)
        })
    }

    /// Returns whether the file has no bytes.
    pub(super) fn is_empty(&self) -> bool {
        self.archive.size() == 0
    }

    /// Returns the archive file.
    pub(super) fn path(&self) -> &Path {
        self.archive.path()
    }

    /// Returns the chunk that holds the next byte, and the offset of the byte in it.
    pub(super) fn position(&mut self) -> (u64, u64) {
        let _ = self.fetch();
        match &self.current {
            CurrentPiece::Data { sequence, at, .. } => (*sequence, *at as u64),
            CurrentPiece::Gap { sequence, at, .. } => (*sequence, *at),
            CurrentPiece::Jump(_) | CurrentPiece::Over(_) => (u64::MAX, 0),
        }
    }

    /// Returns whether the file is read chunk by chunk, each with its own digest.
    pub(super) fn is_chunked(&self) -> bool {
        self.is_chunked
    }

    /// Reads what follows the end marks of a file without chunks, up to its end: it is not tar, but the checksum of a
    /// codec lies there. Errors: a part that cannot be read or decoded. Data behind the last compressed frame, whose
    /// checksum was right, is none.
    pub(super) fn read_rest(&mut self) -> ReadResult<()> {
        if self.is_chunked {
            return Ok(());
        }
        loop {
            self.check_cancelled()?;
            match self.fetch() {
                Ok(()) => {}
                Err(ReadError::Broken(_)) if self.failure.is_none() => return Ok(()),
                Err(ReadError::End) => return Ok(()),
                Err(error) => return Err(error),
            }
            match &mut self.current {
                CurrentPiece::Data { bytes, at, .. } => *at = bytes.len(),
                CurrentPiece::Gap { reason: Some(reason), .. } => return Err(ReadError::Gap(reason.clone())),
                CurrentPiece::Gap { length, at, .. } => *at = *length,
                CurrentPiece::Jump(_) | CurrentPiece::Over(_) => return Ok(()),
            }
        }
    }

    /// Takes the error that kept the plan itself from being read.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Copies up to `out.len()` bytes, at least one. An attempt to read a gap does not pass it.
    pub(super) fn read(&mut self, out: &mut [u8]) -> ReadResult<usize> {
        self.fetch()?;
        match &mut self.current {
            CurrentPiece::Data { bytes, at, .. } => {
                let count = out.len().min(bytes.len() - *at);
                out[..count].copy_from_slice(&bytes[*at..*at + count]);
                *at += count;
                Ok(count)
            }
            CurrentPiece::Gap { reason, .. } => {
                Err(ReadError::Gap(reason.clone().unwrap_or_else(|| "it was skipped".to_owned())))
            }
            CurrentPiece::Jump(_) => Err(ReadError::End),
            CurrentPiece::Over(error) => Err(error.clone()),
        }
    }

    /// Fills all of `out`, or stops where bytes are missing.
    pub(super) fn read_exact(&mut self, out: &mut [u8]) -> ReadResult<()> {
        let mut filled = 0;
        while filled < out.len() {
            match self.read(&mut out[filled..]) {
                Ok(count) => filled += count,
                Err(ReadError::End) if filled > 0 => {
                    return Err(ReadError::Broken("it ends in the middle".to_owned()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Skips `count` bytes, gaps included. Pieces that lie in them whole and are not decoded yet never are. Errors: the
    /// content ends before, or the work was cancelled.
    pub(super) fn skip(&mut self, mut count: u64) -> ReadResult<()> {
        while count > 0 {
            self.fetch()?;
            let skipped = match &mut self.current {
                CurrentPiece::Data { bytes, at, .. } => {
                    let skipped = count.min((bytes.len() - *at) as u64);
                    *at += skipped as usize;
                    skipped
                }
                CurrentPiece::Gap { length, at, .. } => {
                    let skipped = count.min(*length - *at);
                    *at += skipped;
                    skipped
                }
                CurrentPiece::Jump(_) => return Err(ReadError::End),
                CurrentPiece::Over(error) => return Err(error.clone()),
            };
            count -= skipped;
            if count > 0 {
                self.queue.skip_to.store(self.offset() + count, Ordering::Relaxed);
                // A compressed stream decodes what it skips, which may take as long as reading the whole file.
                if !self.is_chunked && self.archive.codec() != Codec::Plain {
                    self.check_cancelled()?;
                }
            }
        }
        Ok(())
    }

    /// Skips to the next position where a header can begin after damage: the beginning of a chunk, or else a block.
    pub(super) fn resynchronise(&mut self) {
        match &mut self.current {
            CurrentPiece::Data { bytes, at, .. } if self.is_chunked => *at = bytes.len(),
            CurrentPiece::Gap { length, at, .. } => *at = *length,
            _ => {}
        }
        if !self.is_chunked {
            // The alignment after a gap is unknown; an error here shows again at the next header.
            let _ = self.skip(padding(self.offset()));
        }
    }

    /// Continues after a jump, where chunks are left out. Returns whether there was one.
    pub(super) fn pass_jump(&mut self) -> bool {
        let _ = self.fetch();
        match std::mem::replace(&mut self.current, CurrentPiece::Over(ReadError::End)) {
            CurrentPiece::Jump(next) => {
                self.current = *next;
                true
            }
            other => {
                self.current = other;
                false
            }
        }
    }

    /// Returns the number of bytes before the next one in the content of all planned chunks.
    fn offset(&self) -> u64 {
        match &self.current {
            CurrentPiece::Data { at, .. } => self.start + *at as u64,
            CurrentPiece::Gap { at, .. } => self.start + *at,
            CurrentPiece::Jump(_) | CurrentPiece::Over(_) => self.start,
        }
    }

    /// Makes sure that the current piece has a byte left.
    fn fetch(&mut self) -> ReadResult<()> {
        loop {
            let start = self.offset();
            let spent = match &mut self.current {
                CurrentPiece::Data { bytes, at, .. } if *at < bytes.len() => return Ok(()),
                CurrentPiece::Gap { length, at, .. } if *at < *length => return Ok(()),
                CurrentPiece::Jump(_) => return Err(ReadError::End),
                CurrentPiece::Over(error) => return Err(error.clone()),
                CurrentPiece::Data { bytes, .. } => std::mem::take(bytes),
                CurrentPiece::Gap { .. } => Buffer::new(),
            };
            self.start = start;
            if spent.capacity() > 0 {
                // The threads may have ended already.
                let _ = self.queue.spent.send(spent);
            }
            self.next_piece();
        }
    }

    /// Returns what the end of the file means.
    fn end(&self) -> ReadError {
        match self.is_unvouched {
            true => ReadError::Undecodable("its trailer, which vouches for its segments, cannot be read".to_owned()),
            false => ReadError::End,
        }
    }

    fn next_piece(&mut self) {
        let piece = match self.queue.pieces.recv() {
            Err(_) => return self.current = CurrentPiece::Over(self.end()),
            Ok(answer) => {
                answer.recv().unwrap_or_else(|_| Piece::Failed(Error::failed("a thread that reads panicked")))
            }
        };
        let (next, is_jump) = match piece {
            Piece::Data { sequence, is_jump, bytes } => (CurrentPiece::Data { sequence, bytes, at: 0 }, is_jump),
            Piece::Skipped { sequence, is_jump, length } => {
                (CurrentPiece::Gap { sequence, length, at: 0, reason: None }, is_jump)
            }
            Piece::Gap { sequence, is_jump, length, reason } => {
                (CurrentPiece::Gap { sequence, length, at: 0, reason: Some(reason) }, is_jump)
            }
            Piece::Broken(reason) => (CurrentPiece::Over(ReadError::Broken(reason)), false),
            Piece::Undecodable(reason) => (CurrentPiece::Over(ReadError::Undecodable(reason)), false),
            Piece::Failed(error) => {
                let reason = error.to_string();
                self.failure = Some(error);
                (CurrentPiece::Over(ReadError::Broken(reason)), false)
            }
        };
        self.current = if is_jump { CurrentPiece::Jump(Box::new(next)) } else { next };
    }
}

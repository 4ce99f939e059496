//! Pieces of content: what worker threads read and decode, and hand over in order, for the reader of members.
//! Verification checks stored bytes and has threads of its own (`archive/check.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::archive::buffer::Buffer;
use crate::archive::codec::{Codec, Decoder};
use crate::archive::reader::ArchiveReader;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};
use crate::member::Span;

/// A chunk to be read. Its stored bytes must have the digest that it names.
#[derive(Clone, Copy, Debug)]
pub struct PlannedChunk {
    /// Where it is stored.
    pub chunk: Chunk,
    /// Chunks before it are left out, and a member begins at its first byte.
    pub is_jump: bool,
}

/// What one thread reads in one go.
pub(super) enum Task {
    Chunk(PlannedChunk),
    /// A range of an uncompressed file that has no chunks, and its position among these ranges.
    Range(u64, Span),
}

impl Task {
    fn sequence(&self) -> u64 {
        match self {
            Task::Chunk(planned) => planned.chunk.sequence,
            Task::Range(sequence, _) => *sequence,
        }
    }

    fn content_length(&self) -> u64 {
        match self {
            Task::Chunk(planned) => planned.chunk.content_length,
            Task::Range(_, range) => range.length,
        }
    }

    fn is_jump(&self) -> bool {
        matches!(self, Task::Chunk(PlannedChunk { is_jump: true, .. }))
    }
}

/// The result of a task.
pub(super) enum Piece {
    Data {
        sequence: u64,
        is_jump: bool,
        bytes: Buffer,
    },
    /// Was not read because the reader skips it.
    Skipped {
        sequence: u64,
        is_jump: bool,
        length: u64,
    },
    /// Could not be read.
    Gap {
        sequence: u64,
        is_jump: bool,
        length: u64,
        reason: String,
    },
    /// Nothing can be read from here on: the reader stops.
    Broken(String),
    /// Nothing can be decoded from here on, and a checksum of the pieces before was not reached or is wrong.
    Undecodable(String),
    /// The plan itself could not be read, or no thread could be started.
    Failed(Error),
}

/// The reader's ends of the channels to the threads that produce pieces.
pub(super) struct PieceQueue {
    /// One receiver for each piece, in order.
    pub pieces: Receiver<Receiver<Piece>>,
    /// Returns buffers to the threads.
    pub spent: Sender<Buffer>,
    /// Content before this position, counted over all planned content, need not be decoded. A compressed stream without
    /// chunks has to decode it all the same.
    pub skip_to: Arc<AtomicU64>,
}

impl PieceQueue {
    /// Starts `threads` threads that work on the tasks of a plan.
    pub fn start(
        archive: &Arc<ArchiveReader>,
        plan: impl Iterator<Item = Result<Task>> + Send + 'static,
        threads: usize,
    ) -> PieceQueue {
        let threads = threads.max(1);
        let (work, tasks) = bounded::<(Task, u64, Sender<Piece>)>(1);
        let (order, pieces) = bounded(threads + 1);
        let (spent, free) = unbounded();
        let skip_to = Arc::new(AtomicU64::new(0));
        let start = || {
            for _ in 0..threads {
                let (archive, tasks, free, skip_to) = (archive.clone(), tasks.clone(), free.clone(), skip_to.clone());
                thread::Builder::new().spawn(move || read_tasks(&archive, &tasks, &free, &skip_to))?;
            }
            thread::Builder::new().spawn(move || distribute(plan, &order, &work))
        };
        match start() {
            Ok(_) => PieceQueue { pieces, spent, skip_to },
            Err(error) => PieceQueue::failed(Error::no_thread(error)),
        }
    }

    /// Returns a queue from which only an error can be read.
    pub fn failed(error: Error) -> PieceQueue {
        let ((order, pieces), (answer, answered)) = (bounded(1), bounded(1));
        // Both channels have room, and their other ends are held here.
        let _ = answer.send(Piece::Failed(error)).is_ok() && order.send(answered).is_ok();
        PieceQueue { pieces, spent: unbounded().0, skip_to: Arc::default() }
    }
}

/// Gives out the tasks of a plan, each with the position in the content where it ends, and the receivers of their
/// pieces in the same order.
fn distribute(
    plan: impl Iterator<Item = Result<Task>>,
    order: &Sender<Receiver<Piece>>,
    work: &Sender<(Task, u64, Sender<Piece>)>,
) {
    let mut end = 0;
    for task in plan {
        let (answer, answered) = bounded(1);
        if order.send(answered).is_err() {
            return;
        }
        match task {
            Ok(task) => {
                end += task.content_length();
                if work.send((task, end, answer)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let _ = answer.send(Piece::Failed(error));
                return;
            }
        }
    }
}

fn read_tasks(
    archive: &ArchiveReader,
    tasks: &Receiver<(Task, u64, Sender<Piece>)>,
    free: &Receiver<Buffer>,
    skip_to: &AtomicU64,
) {
    let mut decoder = Decoder::new(archive.codec());
    let mut stored = Buffer::new();
    for (task, end, answer) in tasks {
        let (sequence, is_jump, length) = (task.sequence(), task.is_jump(), task.content_length());
        let piece = if end <= skip_to.load(Ordering::Relaxed) {
            Piece::Skipped { sequence, is_jump, length }
        } else {
            let mut bytes = free.try_recv().unwrap_or_default();
            bytes.clear();
            match &mut decoder {
                Err(error) => Piece::Broken(error.to_string()),
                Ok(decoder) => match read_task(archive, decoder, &task, &mut stored, &mut bytes) {
                    Ok(()) => Piece::Data { sequence, is_jump, bytes },
                    Err(error) => Piece::Gap { sequence, is_jump, length, reason: error.to_string() },
                },
            }
        };
        // Nothing receives the piece if the reader was dropped before the end.
        let _ = answer.send(piece);
    }
}

fn read_task(
    archive: &ArchiveReader,
    decoder: &mut Decoder,
    task: &Task,
    stored: &mut Buffer,
    out: &mut Buffer,
) -> Result<()> {
    match task {
        Task::Chunk(planned) => read_chunk(archive, decoder, &planned.chunk, stored, out),
        Task::Range(_, range) => archive.read_stored(range.offset, range.length, out),
    }
}

fn read_chunk(
    archive: &ArchiveReader,
    decoder: &mut Decoder,
    chunk: &Chunk,
    stored: &mut Buffer,
    out: &mut Buffer,
) -> Result<()> {
    let read = if archive.codec() == Codec::Plain { &mut *out } else { &mut *stored };
    read.clear();
    archive.read_stored(chunk.offset, chunk.stored_length, read)?;
    if blake3::hash(read) != chunk.stored_digest {
        return Err(archive.mismatch(chunk));
    }
    if archive.codec() == Codec::Plain {
        return match chunk.stored_length == chunk.content_length {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Damage, "its length is wrong")),
        };
    }
    decoder.decode(stored, chunk.content_length, out)
}

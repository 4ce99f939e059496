//! The bytes of tar in an archive file, in order, decoded ahead by other threads: all of it, or only the chunks that
//! are wanted. What cannot be read comes as a gap of known length where that is known, so that the rest is not lost.

use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::buffer::Buffer;
use super::codec::{Codec, Decoder};
use super::header::BLOCK;
use super::reader::ArchiveReader;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};
use crate::member::Span;

/// Bytes that are read at a time where there are no chunks.
const PIECE_BYTES: usize = 1 << 20;

/// A chunk to be read. Its stored bytes must have the digest that it names.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// Where it is stored.
    pub chunk: Chunk,
    /// Chunks before it are left out, and a member begins at its first byte.
    pub jump: bool,
}

/// Chunks to be read, in order.
pub type Plan = Box<dyn Iterator<Item = Result<Planned>> + Send>;

/// What one thread reads in one go.
enum Task {
    Chunk(Planned),
    /// A range of a plain file that has no chunks, and its position among these ranges.
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
        matches!(self, Task::Chunk(Planned { jump: true, .. }))
    }
}

/// Why no bytes come.
#[derive(Clone, Debug)]
pub(super) enum Missing {
    /// The archive ends here.
    End,
    /// A span cannot be read; what lies behind it can.
    Gap(String),
    /// Nothing can be read from here on.
    Broken(String),
}

enum Piece {
    Data { sequence: u64, jump: bool, bytes: Buffer },
    Skipped { sequence: u64, jump: bool, length: u64 },
    Gap { sequence: u64, jump: bool, length: u64, reason: String },
    Broken(String),
    Failed(Error),
}

/// The bytes of tar in an archive file, from front to back.
pub struct Content {
    archive: Arc<ArchiveReader>,
    pieces: Receiver<Receiver<Piece>>,
    spent: Sender<Buffer>,
    /// What lies before it need not be decoded any more.
    skip_to: Arc<AtomicU64>,
    /// Chunks begin and end with members or pieces of files, not anywhere.
    chunked: bool,
    current: Current,
    /// Of the beginning of the current piece, counted over all planned chunks.
    start: u64,
    failure: Option<Error>,
}

enum Current {
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
    /// A piece that has been asked for and begins elsewhere than where the last one ended.
    Jump(Box<Current>),
    Over(Missing),
}

impl Content {
    /// Reads and decodes the chunks of a plan with `threads` threads.
    pub fn chunks(archive: Arc<ArchiveReader>, plan: Plan, threads: usize) -> Content {
        Content::planned(archive, plan.map(|planned| planned.map(Task::Chunk)), threads, true)
    }

    /// Reads a whole file that has no chunks: another program's archive, or one of ours without its trailer.
    pub fn stream(archive: Arc<ArchiveReader>) -> Content {
        if archive.codec() != Codec::Plain {
            return Content::decoded(archive);
        }
        let size = archive.size();
        let count = size.div_ceil(PIECE_BYTES as u64);
        let tasks = (0..count).map(move |sequence| {
            let offset = sequence * PIECE_BYTES as u64;
            Ok(Task::Range(sequence, Span { offset, length: (size - offset).min(PIECE_BYTES as u64) }))
        });
        Content::planned(archive, tasks, 1, false)
    }

    fn planned(
        archive: Arc<ArchiveReader>,
        plan: impl Iterator<Item = Result<Task>> + Send + 'static,
        threads: usize,
        chunked: bool,
    ) -> Content {
        let threads = threads.max(1);
        let (work, tasks) = bounded::<(Task, u64, Sender<Piece>)>(1);
        let (order, pieces) = bounded(threads + 1);
        let (spent, free) = unbounded();
        let skip_to = Arc::new(AtomicU64::new(0));
        for _ in 0..threads {
            let (archive, tasks, free, skip_to) = (archive.clone(), tasks.clone(), free.clone(), skip_to.clone());
            std::thread::spawn(move || read_tasks(&archive, &tasks, &free, &skip_to));
        }
        std::thread::spawn(move || {
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
        });
        Content::new(archive, pieces, spent, skip_to, chunked)
    }

    /// Decodes a compressed stream from its beginning, one piece after another.
    fn decoded(archive: Arc<ArchiveReader>) -> Content {
        let (order, pieces) = bounded(4);
        let (spent, free) = unbounded::<Buffer>();
        let read = Arc::clone(&archive);
        std::thread::spawn(move || {
            let mut sequence = 0;
            let put = |piece| {
                let (answer, answered) = bounded(1);
                answer.send(piece).is_ok() && order.send(answered).is_ok()
            };
            let mut stream = match decoder(&read) {
                Ok(stream) => stream,
                Err(e) => {
                    put(Piece::Broken(e.to_string()));
                    return;
                }
            };
            loop {
                let mut bytes = free.try_recv().unwrap_or_default();
                bytes.clear();
                let end = fill(&mut stream, &mut bytes);
                let more = !bytes.is_empty() && put(Piece::Data { sequence, jump: false, bytes });
                sequence += 1;
                match end {
                    Ok(false) if more => {}
                    Err(reason) => {
                        put(Piece::Broken(reason));
                        return;
                    }
                    Ok(_) => return,
                }
            }
        });
        Content::new(archive, pieces, spent, Arc::default(), false)
    }

    fn new(
        archive: Arc<ArchiveReader>,
        pieces: Receiver<Receiver<Piece>>,
        spent: Sender<Buffer>,
        skip_to: Arc<AtomicU64>,
        chunked: bool,
    ) -> Content {
        let current = Current::Data { sequence: 0, bytes: Buffer::new(), at: 0 };
        Content { archive, pieces, spent, skip_to, chunked, current, start: 0, failure: None }
    }

    /// Returns the archive file.
    pub(super) fn path(&self) -> &Path {
        self.archive.path()
    }

    /// Returns the chunk that the next byte lies in, and the byte's offset there.
    pub(super) fn place(&mut self) -> (u64, u64) {
        let _ = self.ready();
        match &self.current {
            Current::Data { sequence, at, .. } => (*sequence, *at as u64),
            Current::Gap { sequence, at, .. } => (*sequence, *at),
            Current::Jump(_) | Current::Over(_) => (u64::MAX, 0),
        }
    }

    /// Takes the error that kept the plan itself from being read.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Copies up to `out.len()` bytes, at least one. A gap is not passed over by trying to read it.
    pub(super) fn read(&mut self, out: &mut [u8]) -> std::result::Result<usize, Missing> {
        self.ready()?;
        match &mut self.current {
            Current::Data { bytes, at, .. } => {
                let count = out.len().min(bytes.len() - *at);
                out[..count].copy_from_slice(&bytes[*at..*at + count]);
                *at += count;
                Ok(count)
            }
            Current::Gap { reason, .. } => {
                Err(Missing::Gap(reason.clone().unwrap_or_else(|| "it was passed over".to_owned())))
            }
            Current::Jump(_) => Err(Missing::End),
            Current::Over(missing) => Err(missing.clone()),
        }
    }

    /// Fills `out` whole, or stops where bytes are missing.
    pub(super) fn read_exact(&mut self, out: &mut [u8]) -> std::result::Result<(), Missing> {
        let mut filled = 0;
        while filled < out.len() {
            match self.read(&mut out[filled..]) {
                Ok(count) => filled += count,
                Err(Missing::End) if filled > 0 => return Err(Missing::Broken("it ends in the middle".to_owned())),
                Err(missing) => return Err(missing),
            }
        }
        Ok(())
    }

    /// Passes over bytes, gaps among them; what is not decoded yet never will be. Says whether there were so many.
    pub(super) fn skip(&mut self, mut count: u64) -> std::result::Result<(), Missing> {
        while count > 0 {
            self.ready()?;
            let passed = match &mut self.current {
                Current::Data { bytes, at, .. } => {
                    let passed = count.min((bytes.len() - *at) as u64);
                    *at += passed as usize;
                    passed
                }
                Current::Gap { length, at, .. } => {
                    let passed = count.min(*length - *at);
                    *at += passed;
                    passed
                }
                Current::Jump(_) => return Err(Missing::End),
                Current::Over(missing) => return Err(missing.clone()),
            };
            count -= passed;
            if count > 0 {
                self.skip_to.store(self.position() + count, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Goes to the next place where a header may stand: behind damage, a chunk's beginning, or the next block.
    pub(super) fn resynchronise(&mut self) {
        match &mut self.current {
            Current::Data { bytes, at, .. } if self.chunked => *at = bytes.len(),
            Current::Gap { length, at, .. } => *at = *length,
            _ => {}
        }
        if !self.chunked {
            let past = self.position() % BLOCK as u64;
            // Behind a gap of unknown alignment; whatever is wrong with it shows at the next header.
            let _ = if past > 0 { self.skip(BLOCK as u64 - past) } else { Ok(()) };
        }
    }

    /// Goes on behind a place where chunks were left out; says whether it stood at one.
    pub(super) fn jump(&mut self) -> bool {
        let _ = self.ready();
        match std::mem::replace(&mut self.current, Current::Over(Missing::End)) {
            Current::Jump(next) => {
                self.current = *next;
                true
            }
            other => {
                self.current = other;
                false
            }
        }
    }

    fn position(&self) -> u64 {
        match &self.current {
            Current::Data { at, .. } => self.start + *at as u64,
            Current::Gap { at, .. } => self.start + *at,
            Current::Jump(_) | Current::Over(_) => self.start,
        }
    }

    /// Makes sure that the current piece has a byte left.
    fn ready(&mut self) -> std::result::Result<(), Missing> {
        loop {
            let start = self.position();
            let spent = match &mut self.current {
                Current::Data { bytes, at, .. } if *at < bytes.len() => return Ok(()),
                Current::Gap { length, at, .. } if *at < *length => return Ok(()),
                Current::Jump(_) => return Err(Missing::End),
                Current::Over(missing) => return Err(missing.clone()),
                Current::Data { bytes, .. } => std::mem::take(bytes),
                Current::Gap { .. } => Buffer::new(),
            };
            self.start = start;
            if spent.room() > 0 {
                // The threads may be done already.
                let _ = self.spent.send(spent);
            }
            self.next_piece();
        }
    }

    fn next_piece(&mut self) {
        let piece = match self.pieces.recv() {
            Err(_) => return self.current = Current::Over(Missing::End),
            Ok(answer) => {
                answer.recv().unwrap_or_else(|_| Piece::Failed(Error::failed("a thread that reads panicked")))
            }
        };
        let (next, jump) = match piece {
            Piece::Data { sequence, jump, bytes } => (Current::Data { sequence, bytes, at: 0 }, jump),
            Piece::Skipped { sequence, jump, length } => (Current::Gap { sequence, length, at: 0, reason: None }, jump),
            Piece::Gap { sequence, jump, length, reason } => {
                (Current::Gap { sequence, length, at: 0, reason: Some(reason) }, jump)
            }
            Piece::Broken(reason) => (Current::Over(Missing::Broken(reason)), false),
            Piece::Failed(error) => {
                let reason = error.to_string();
                self.failure = Some(error);
                (Current::Over(Missing::Broken(reason)), false)
            }
        };
        self.current = if jump { Current::Jump(Box::new(next)) } else { next };
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
        let (sequence, jump, length) = (task.sequence(), task.is_jump(), task.content_length());
        let piece = if end <= skip_to.load(Ordering::Relaxed) {
            Piece::Skipped { sequence, jump, length }
        } else {
            let mut bytes = free.try_recv().unwrap_or_default();
            bytes.clear();
            match &mut decoder {
                Err(error) => Piece::Broken(error.to_string()),
                Ok(decoder) => match read_task(archive, decoder, &task, &mut stored, &mut bytes) {
                    Ok(()) => Piece::Data { sequence, jump, bytes },
                    Err(error) => Piece::Gap { sequence, jump, length, reason: error.to_string() },
                },
            }
        };
        // Nobody waits for it where the reader was left half-way.
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
    let damage = |why: &str| Err(Error::new(ErrorKind::Damage, why));
    let read = if archive.codec() == Codec::Plain { &mut *out } else { &mut *stored };
    read.clear();
    archive.read_stored(chunk.offset, chunk.stored_length, read)?;
    if blake3::hash(read) != chunk.stored_digest {
        return damage("its bytes are not those that were written");
    }
    if archive.codec() == Codec::Plain {
        return if chunk.stored_length == chunk.content_length { Ok(()) } else { damage("its length is wrong") };
    }
    decoder.decode(stored, chunk.content_length, out)
}

fn decoder(archive: &Arc<ArchiveReader>) -> std::io::Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(1 << 17, Positioned { archive: archive.clone(), at: 0 });
    Ok(match archive.codec() {
        Codec::Plain => Box::new(file),
        Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
    })
}

/// Fills a piece; says whether the stream ended. Errors: what is wrong with it.
fn fill(stream: &mut dyn Read, bytes: &mut Buffer) -> std::result::Result<bool, String> {
    while bytes.len() < PIECE_BYTES {
        let room = PIECE_BYTES - bytes.len();
        match stream.read(bytes.spare(room)) {
            Ok(0) => return Ok(true),
            Ok(count) => bytes.keep(count),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("it does not decode: {e}")),
        }
    }
    Ok(false)
}

/// Reads an archive file from front to back, whoever else reads it.
struct Positioned {
    archive: Arc<ArchiveReader>,
    at: u64,
}

impl Read for Positioned {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.archive.file().read_at(out, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

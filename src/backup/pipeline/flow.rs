//! What the threads of a pipeline share: when to stop, how much may be under way, whose turn it is to write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::archive::buffer::Buffer;
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind};
use crate::progress::{Observer, Problem};

/// Bytes of chunks that may be under way at once for each thread, raw and encoded together, and in all. With the
/// codecs and what the members take in memory this keeps the pipeline below 48 MiB.
const THREAD_BYTES: u64 = 8 << 20;
const LEAST_BYTES: u64 = 16 << 20;
const MOST_BYTES: u64 = 32 << 20;

/// Room kept for later chunks.
const POOL_BYTES: usize = 8 << 20;

/// Buffers up to this size serve ordinary chunks, larger ones serve pieces of large files.
const SMALL_ROOM: usize = 2 << 20;

/// Problems kept word for word; the others are counted.
const MOST_PROBLEMS: usize = 10_000;

/// What the threads of a pipeline share.
pub(super) struct Flow<'a> {
    cancel: &'a CancelToken,
    observer: &'a dyn Observer,
    budget: u64,
    stopped: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    pool: Mutex<Vec<Buffer>>,
    problems: Mutex<Problems>,
    /// Members that stand in chunks.
    pub(super) members: AtomicU64,
    /// Bytes of content read.
    pub(super) bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    failure: Option<Error>,
    under_way: u64,
    turn: u64,
}

/// Problems met so far.
#[derive(Default)]
pub(super) struct Problems {
    /// The first ones.
    pub(super) list: Vec<Problem>,
    /// How many there were.
    pub(super) total: u64,
    /// How many of them mean missing or doubtful data.
    pub(super) losses: u64,
}

impl<'a> Flow<'a> {
    pub(super) fn new(threads: usize, cancel: &'a CancelToken, observer: &'a dyn Observer) -> Self {
        Flow {
            budget: (threads as u64).saturating_mul(THREAD_BYTES).clamp(LEAST_BYTES, MOST_BYTES),
            cancel,
            observer,
            stopped: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            pool: Mutex::default(),
            problems: Mutex::default(),
            members: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the pipeline. Of several errors the first one counts.
    pub(super) fn stop(&self, error: Error) {
        let mut state = self.state();
        state.failure.get_or_insert(error);
        self.stopped.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Says whether the pipeline ends early, by an error or because it was cancelled.
    pub(super) fn is_stopped(&self) -> bool {
        if self.cancel.is_cancelled() && !self.stopped.load(Ordering::Relaxed) {
            self.stop(Error::new(ErrorKind::Interrupted, "the backup was cancelled"));
        }
        self.stopped.load(Ordering::Relaxed)
    }

    /// Returns the error that stopped the pipeline.
    pub(super) fn failure(&self) -> Option<Error> {
        self.state().failure.take()
    }

    /// Waits until `bytes` more may be under way. What is larger than the whole budget goes alone.
    pub(super) fn acquire(&self, bytes: u64) {
        let mut state = self.state();
        while state.under_way > 0 && state.under_way + bytes > self.budget && !self.stopped.load(Ordering::Relaxed) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.under_way += bytes;
    }

    /// Ends the turn of one plan: its bytes are written, the next may write.
    pub(super) fn next_turn(&self, bytes: u64) {
        let mut state = self.state();
        state.under_way -= bytes;
        state.turn += 1;
        self.changed.notify_all();
    }

    /// Waits until all plans before `sequence` are written. Plans are taken up in order, so none of them waits for
    /// this one.
    pub(super) fn wait_turn(&self, sequence: u64) {
        let mut state = self.state();
        while state.turn < sequence && !self.stopped.load(Ordering::Relaxed) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lends a buffer for about `bytes`.
    pub(super) fn take_buffer(&self, bytes: u64) -> Buffer {
        let is_small = bytes <= SMALL_ROOM as u64 / 2;
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = pool.iter().position(|buffer| (buffer.capacity() <= SMALL_ROOM) == is_small);
        let mut buffer = fitting.map_or_else(Buffer::new, |at| pool.swap_remove(at));
        buffer.clear();
        buffer
    }

    /// Takes a buffer back.
    pub(super) fn give_buffer(&self, buffer: Buffer) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = pool.iter().map(Buffer::capacity).sum();
        if buffer.capacity() > 0 && held + buffer.capacity() <= POOL_BYTES {
            pool.push(buffer);
        }
    }

    /// Tells and keeps a problem.
    pub(super) fn problem(&self, problem: Problem) {
        self.observer.problem(&problem);
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.total += 1;
        problems.losses += u64::from(problem.kind.is_loss());
        if problems.list.len() < MOST_PROBLEMS {
            problems.list.push(problem);
        }
    }

    /// Returns the problems met so far, by path, and starts with none.
    pub(super) fn take_problems(&self) -> Problems {
        let mut problems = std::mem::take(&mut *self.problems.lock().unwrap_or_else(PoisonError::into_inner));
        problems.list.sort_by(|a, b| a.path.cmp(&b.path));
        problems
    }
}

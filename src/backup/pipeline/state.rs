//! The state that the threads of a pipeline share: the stop flag, the memory budget, the order of writing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::reuse::{Base, ReadReasons};
use crate::archive::buffer::Buffer;
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind};
use crate::progress::{Observer, Problem, ProblemKind};

/// Bytes of chunks, raw and encoded together, that may be in memory at once: for each thread, and the limits of the
/// sum. With the codecs and the members this keeps the pipeline below 48 MiB.
const BYTES_PER_THREAD: u64 = 8 << 20;
const MIN_BUDGET_BYTES: u64 = 16 << 20;
const MAX_BUDGET_BYTES: u64 = 32 << 20;

/// Maximum capacity of the pooled buffers together.
const MAX_POOL_BYTES: usize = 8 << 20;

/// Buffers up to this capacity are used for ordinary chunks, larger ones for pieces of large files.
const MAX_SMALL_BYTES: usize = 2 << 20;

/// Maximum number of problems that are kept; further ones are only counted.
const MAX_PROBLEMS: usize = 10_000;

/// The state that the threads of a pipeline share.
pub(super) struct PipelineState<'a> {
    cancel: &'a CancelToken,
    observer: &'a dyn Observer,
    budget_bytes: u64,
    is_stopped: AtomicBool,
    locked: Mutex<Locked>,
    changed: Condvar,
    pool: Mutex<Vec<Buffer>>,
    problems: Mutex<Problems>,
    /// The archive that unchanged chunks are taken from.
    pub(super) base: Option<&'a Base<'a>>,
    /// Why members were read although there is a base.
    pub(super) reads: ReadReasons,
    /// Members in encoded chunks.
    pub(super) members: AtomicU64,
    /// Bytes of content read.
    pub(super) bytes: AtomicU64,
}

#[derive(Default)]
struct Locked {
    failure: Option<Error>,
    bytes_in_use: u64,
    /// The sequence number of the plan that is written next.
    turn: u64,
}

/// The problems recorded so far.
#[derive(Default)]
pub(super) struct Problems {
    /// The first ones.
    pub(super) list: Vec<Problem>,
    /// How many there were.
    pub(super) total: u64,
    /// How many of them mean missing or doubtful data.
    pub(super) losses: u64,
    /// How many files changed without their times.
    pub(super) silent_changes: u64,
}

impl<'a> PipelineState<'a> {
    pub(super) fn new(
        threads: usize,
        cancel: &'a CancelToken,
        observer: &'a dyn Observer,
        base: Option<&'a Base<'a>>,
    ) -> Self {
        PipelineState {
            base,
            reads: ReadReasons::default(),
            budget_bytes: (threads as u64).saturating_mul(BYTES_PER_THREAD).clamp(MIN_BUDGET_BYTES, MAX_BUDGET_BYTES),
            cancel,
            observer,
            is_stopped: AtomicBool::new(false),
            locked: Mutex::default(),
            changed: Condvar::new(),
            pool: Mutex::default(),
            problems: Mutex::default(),
            members: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the pipeline. Of several errors the first one is kept.
    pub(super) fn stop(&self, error: Error) {
        let mut locked = self.lock();
        locked.failure.get_or_insert(error);
        self.is_stopped.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Returns whether the pipeline was stopped by an error or a cancellation.
    pub(super) fn is_stopped(&self) -> bool {
        if self.cancel.is_cancelled() && !self.is_stopped.load(Ordering::Relaxed) {
            self.stop(Error::new(ErrorKind::Interrupted, "the backup was cancelled"));
        }
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Takes the error that stopped the pipeline.
    pub(super) fn take_failure(&self) -> Option<Error> {
        self.lock().failure.take()
    }

    /// Waits until `bytes` more fit into the memory budget. A request above the whole budget is granted alone.
    pub(super) fn acquire(&self, bytes: u64) {
        let mut locked = self.lock();
        while locked.bytes_in_use > 0
            && locked.bytes_in_use + bytes > self.budget_bytes
            && !self.is_stopped.load(Ordering::Relaxed)
        {
            locked = self.changed.wait(locked).unwrap_or_else(PoisonError::into_inner);
        }
        locked.bytes_in_use += bytes;
    }

    /// Ends the turn of one plan: its bytes are written and leave the budget, and the next plan may write.
    pub(super) fn next_turn(&self, bytes: u64) {
        let mut locked = self.lock();
        locked.bytes_in_use -= bytes;
        locked.turn += 1;
        self.changed.notify_all();
    }

    /// Waits until all plans before `sequence` are written. Workers take plans in order, so none of them waits for this
    /// one.
    pub(super) fn wait_turn(&self, sequence: u64) {
        let mut locked = self.lock();
        while locked.turn < sequence && !self.is_stopped.load(Ordering::Relaxed) {
            locked = self.changed.wait(locked).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a buffer for about `bytes` out of the pool, or a new one.
    pub(super) fn take_buffer(&self, bytes: u64) -> Buffer {
        let is_small = bytes <= MAX_SMALL_BYTES as u64 / 2;
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = pool.iter().position(|buffer| (buffer.capacity() <= MAX_SMALL_BYTES) == is_small);
        let mut buffer = fitting.map_or_else(Buffer::new, |at| pool.swap_remove(at));
        buffer.clear();
        buffer
    }

    /// Returns a buffer to the pool, if it fits.
    pub(super) fn give_buffer(&self, buffer: Buffer) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let pooled_bytes: usize = pool.iter().map(Buffer::capacity).sum();
        if buffer.capacity() > 0 && pooled_bytes + buffer.capacity() <= MAX_POOL_BYTES {
            pool.push(buffer);
        }
    }

    /// Reports a problem to the observer and records it.
    pub(super) fn problem(&self, problem: Problem) {
        self.observer.problem(&problem);
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.total += 1;
        problems.losses += u64::from(problem.kind.is_loss());
        problems.silent_changes += u64::from(problem.kind == ProblemKind::ChangedWithoutTimes);
        if problems.list.len() < MAX_PROBLEMS {
            problems.list.push(problem);
        }
    }

    /// Returns how many problems were recorded so far, and how many of them mean missing or doubtful data.
    pub(super) fn problem_counts(&self) -> (u64, u64) {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        (problems.total, problems.losses)
    }

    /// Takes the problems recorded so far, sorted by path.
    pub(super) fn take_problems(&self) -> Problems {
        let mut problems = std::mem::take(&mut *self.problems.lock().unwrap_or_else(PoisonError::into_inner));
        problems.list.sort_by(|a, b| a.path.cmp(&b.path));
        problems
    }
}

//! A byte buffer that is filled, sent to another thread and filled again.

use std::ops::Deref;

use super::block;

/// Smallest capacity of a buffer that is not empty, in bytes.
pub const MIN_CAPACITY: usize = 64 << 10;

/// A growing buffer whose capacity stays initialised, so that reading into it again costs no zeroing.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// Returns an empty buffer with no capacity.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes the content and keeps the capacity.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Returns the number of bytes of memory that it takes.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends `bytes`.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.spare(bytes.len()).copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// Appends `count` zero bytes.
    pub fn extend_zeros(&mut self, count: usize) {
        self.spare(count).fill(0);
        self.length += count;
    }

    /// Inserts `bytes` before the content from `at` on.
    pub fn insert(&mut self, at: usize, bytes: &[u8]) {
        let end = self.length;
        self.extend(bytes);
        self.bytes.copy_within(at..end, at + bytes.len());
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends zero bytes up to a multiple of the tar block.
    pub fn pad_block(&mut self) {
        self.extend_zeros(block::padding(self.length as u64) as usize);
    }

    /// Returns `count` bytes after the content, with arbitrary values, to be filled. [`Buffer::keep`] then makes them
    /// part of the content.
    pub fn spare(&mut self, count: usize) -> &mut [u8] {
        let end = self.length + count;
        if self.bytes.len() < end {
            if self.bytes.capacity() < end {
                // Few different sizes, so that freed memory fits the next buffer: others would fragment the heap.
                let capacity = end.next_power_of_two().max(MIN_CAPACITY);
                self.bytes.reserve_exact(capacity - self.bytes.len());
            }
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.length..end]
    }

    /// Makes the next `count` bytes, which [`Buffer::spare`] returned, part of the content.
    pub fn keep(&mut self, count: usize) {
        assert!(self.length + count <= self.bytes.len(), "only bytes that `spare` returned can be kept");
        self.length += count;
    }

    /// Shortens the content to `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

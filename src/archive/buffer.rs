//! Bytes that are filled, sent and filled again.

use std::ops::Deref;

/// Room of a buffer that holds anything at all.
const SMALLEST_ROOM: usize = 64 << 10;

/// A growing run of bytes whose room stays initialised, so that reading into it again costs no zeroing.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// Makes an empty buffer with no room.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the content and keeps the room.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Returns how many bytes of memory it takes.
    pub fn room(&self) -> usize {
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

    /// Appends zero bytes up to a multiple of the tar block.
    pub fn pad_block(&mut self) {
        self.extend_zeros(self.length.next_multiple_of(super::header::BLOCK) - self.length);
    }

    /// Returns `count` bytes of room behind the content, holding anything, to be filled and then kept by
    /// [`Buffer::keep`].
    pub fn spare(&mut self, count: usize) -> &mut [u8] {
        let end = self.length + count;
        if self.bytes.len() < end {
            if self.bytes.capacity() < end {
                // Few sizes, so that what one buffer leaves in memory serves the next: sizes at will would leave holes.
                let room = end.next_power_of_two().max(SMALLEST_ROOM);
                self.bytes.reserve_exact(room - self.bytes.len());
            }
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.length..end]
    }

    /// Makes the next `count` bytes, which [`Buffer::spare`] lent out, part of the content.
    pub fn keep(&mut self, count: usize) {
        assert!(self.length + count <= self.bytes.len(), "only bytes that were lent out can be kept");
        self.length += count;
    }

    /// Cuts the content to `length` bytes.
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

//! Padding of chunks to whole blocks of the file system, so that archive files can share the blocks of equal chunks.
//!
//! It is part of the stored bytes of a chunk, and readers skip it: in gzip an empty member, in zstd a skippable frame,
//! in a plain archive a pax global header with a comment.

use super::buffer::Buffer;
use super::header::MIN_GLOBAL_BYTES;
use crate::durable::SHARED_BLOCK_BYTES;

/// Magic number of the skippable zstd frame.
const FRAME_MAGIC: u32 = 0x184D_2A5C;
const FRAME_HEAD_BYTES: usize = 8;
/// Size of an empty gzip member without the content of its extra field, in bytes.
pub(super) const MEMBER_BYTES: usize = MEMBER_HEAD_BYTES + 10;
pub(super) const MEMBER_HEAD_BYTES: usize = 16;

/// Whether the chunks of an archive are padded. This decides its bytes, so that it is the same for all its chunks, and
/// for those of its base: a chunk is the same whether it was read or taken from there (I13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Chunks follow each other directly.
    None,
    /// Chunks begin and end at multiples of [`SHARED_BLOCK_BYTES`] in the file; of the pieces of a large file in a
    /// plain archive only the first one begins there, and the last one ends there.
    Blocks,
}

impl Padding {
    /// Appends an empty gzip member to the encoded bytes of a chunk, if they need padding.
    pub(super) fn pad_gzip(self, stored: &mut Buffer) {
        if let Some(length) = self.length(stored.len(), MEMBER_BYTES) {
            stored.extend(&empty_member(&vec![0; length - MEMBER_BYTES]));
        }
    }

    /// Appends a skippable zstd frame to the encoded bytes of a chunk, if they need padding.
    pub(super) fn pad_zstd(self, stored: &mut Buffer) {
        if let Some(length) = self.length(stored.len(), FRAME_HEAD_BYTES) {
            let data_bytes = length - FRAME_HEAD_BYTES;
            stored.extend(&frame_head(FRAME_MAGIC, data_bytes as u32));
            stored.extend_zeros(data_bytes);
        }
    }

    /// Returns the length of the pax global header that a plain chunk of `length` bytes needs, in bytes.
    pub(super) fn plain_length(self, length: usize) -> Option<usize> {
        self.length(length, MIN_GLOBAL_BYTES)
    }

    /// Returns the length of the padding for `length` bytes, in bytes; `None` if there is none. No padding is shorter
    /// than `smallest`.
    fn length(self, length: usize, smallest: usize) -> Option<usize> {
        let block = SHARED_BLOCK_BYTES as usize;
        let missing = length.next_multiple_of(block) - length;
        match (self, missing) {
            (Padding::None, _) | (Padding::Blocks, 0) => None,
            (Padding::Blocks, _) if missing < smallest => Some(missing + block),
            (Padding::Blocks, _) => Some(missing),
        }
    }
}

/// Returns a gzip member without content that holds `data`, at most 65,531 bytes, in its extra field.
pub fn empty_member(data: &[u8]) -> Vec<u8> {
    let length = data.len() as u16;
    let mut member = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
    member.extend((length + 4).to_le_bytes());
    member.extend(b"BM");
    member.extend(length.to_le_bytes());
    member.extend(data);
    member.extend([3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    member
}

/// Returns the head of a skippable zstd frame with `length` bytes of data.
pub(super) fn frame_head(magic: u32, length: u32) -> [u8; 8] {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&magic.to_le_bytes());
    head[4..].copy_from_slice(&length.to_le_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padding_is_never_shorter_than_its_form_and_no_longer_than_needed() {
        for (length, expected) in [(4096, None), (4095, Some(4097)), (4089, Some(4103)), (4088, Some(8)), (0, None)] {
            assert_eq!(Padding::Blocks.length(length, 8), expected, "{length}");
            assert_eq!(Padding::None.length(length, 8), None);
        }
    }
}

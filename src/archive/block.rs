//! The block, the unit that tar archives consist of.

/// The size of a tar block in bytes.
pub const BLOCK_BYTES: usize = 512;

/// The end marks of an archive, which follow the last member: two blocks of zeros.
pub const END_MARKS: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// Returns the number of bytes that fill up `length` bytes to whole blocks; 0 if the sum would not fit in a `u64`.
pub(super) fn padding(length: u64) -> u64 {
    length.checked_next_multiple_of(BLOCK_BYTES as u64).map_or(0, |end| end - length)
}

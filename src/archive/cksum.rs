//! The checksum of the program `cksum` (POSIX), so that a user can check an archive without this program. It can be
//! combined from those of its parts.
//!
//! It is the CRC with the polynomial 0x04C11DB7, most significant bit first, from 0, over the bytes and then over their
//! number, inverted at the end.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// The polynomial without its highest power, x^32.
const POLYNOMIAL: u32 = 0x04C1_1DB7;
/// Bytes whose bits are reversed at a time.
const BLOCK_BYTES: usize = 4096;

/// The CRC of some bytes without their number: the form that can be combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crc {
    value: u32,
    bytes: u64,
}

impl Crc {
    /// Computes the CRC of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        // The library has the CRC of gzip, which is the same with the bits of each byte and of the result reversed, and
        // which starts from and ends with an inversion. Four bytes 0xFF in front turn its start into 0.
        let mut crc = libdeflater::Crc::new();
        crc.update(&[0xff; 4]);
        let mut block = [0; BLOCK_BYTES];
        for part in bytes.chunks(BLOCK_BYTES) {
            let reversed = &mut block[..part.len()];
            reversed.iter_mut().zip(part).for_each(|(to, from)| *to = from.reverse_bits());
            crc.update(reversed);
        }
        Crc { value: (!crc.sum()).reverse_bits(), bytes: bytes.len() as u64 }
    }

    /// Returns the CRC of `bytes` bytes that has this value: see [`Crc::value`].
    pub fn from_parts(value: u32, bytes: u64) -> Self {
        Crc { value, bytes }
    }

    /// Returns its value.
    pub fn value(self) -> u32 {
        self.value
    }

    /// Returns the number of bytes.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Turns it into the CRC of its own bytes followed by those of `next`.
    pub fn append(&mut self, next: Crc) {
        self.value = shift(self.value, next.bytes) ^ next.value;
        self.bytes += next.bytes;
    }

    /// Returns what `cksum` prints for the bytes.
    pub fn cksum(self) -> Cksum {
        let number = self.bytes.to_le_bytes();
        let length = number.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let mut whole = self;
        whole.append(Crc::of(&number[..length]));
        Cksum { sum: !whole.value, bytes: self.bytes }
    }
}

/// The CRC of a file of known size, to which several threads add its parts in any order.
#[derive(Debug)]
pub(super) struct CrcOfParts {
    value: AtomicU32,
    bytes: u64,
}

impl CrcOfParts {
    /// Returns that of a file of `bytes` bytes, of which no part was added yet.
    pub(super) fn new(bytes: u64) -> Self {
        CrcOfParts { value: AtomicU32::new(0), bytes }
    }

    /// Adds the bytes from `offset` on; each byte of the file is to be added once.
    pub(super) fn add(&self, offset: u64, part: &[u8]) {
        // The CRC is linear: each part counts by itself, followed by as many zeros as bytes follow it.
        let behind = self.bytes.saturating_sub(offset + part.len() as u64);
        self.value.fetch_xor(shift(Crc::of(part).value, behind), Ordering::Relaxed);
    }

    /// Returns what `cksum` prints for the file, if all of it was added.
    pub(super) fn cksum(&self) -> Cksum {
        Crc::from_parts(self.value.load(Ordering::Relaxed), self.bytes).cksum()
    }
}

/// What `cksum` prints for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cksum {
    /// The checksum.
    pub sum: u32,
    /// Number of bytes.
    pub bytes: u64,
}

impl fmt::Display for Cksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.sum, self.bytes)
    }
}

/// Returns the CRC after `bytes` bytes of zeros: multiplies it by x^(8 * bytes).
fn shift(value: u32, mut bytes: u64) -> u32 {
    let (mut product, mut power) = (value, 1 << 8);
    while bytes > 0 {
        if bytes & 1 == 1 {
            product = multiply(product, power);
        }
        power = multiply(power, power);
        bytes >>= 1;
    }
    product
}

/// Multiplies two polynomials over GF(2), modulo that of the CRC. Bit n is the coefficient of x^n.
fn multiply(a: u32, b: u32) -> u32 {
    (0..u32::BITS).rev().fold(0, |product, bit| {
        let carried = if product >> 31 == 1 { POLYNOMIAL } else { 0 };
        (product << 1) ^ carried ^ if b >> bit & 1 == 1 { a } else { 0 }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    /// Returns what the program `cksum` prints for these bytes.
    fn printed(bytes: &[u8]) -> String {
        let mut child = Command::new("cksum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[test]
    fn it_is_that_of_the_program_cksum() {
        assert_eq!(Crc::of(b"").cksum().to_string(), "4294967295 0");
        assert_eq!(Crc::of(b"123456789").cksum().to_string(), "930766865 9");
        let bytes: Vec<u8> = (0..70_001_u32).flat_map(|n| (n.wrapping_mul(n) / 7).to_le_bytes()).collect();
        for length in [0, 1, 4, 255, 256, 257, 4095, 4096, 4097, 65_536, 280_004] {
            assert_eq!(Crc::of(&bytes[..length]).cksum().to_string(), printed(&bytes[..length]), "{length}");
        }
    }

    #[test]
    fn lengths_beyond_four_gibibytes_are_counted() {
        // What `yes | head -c 5368709120 | cksum` prints.
        let mut crc = Crc::of(&b"y\n".repeat(1 << 20));
        (0..9).for_each(|_| crc.append(crc));
        let gibibyte = crc;
        (0..4).for_each(|_| crc.append(gibibyte));
        assert_eq!(crc.cksum().to_string(), "3542244252 5368709120");
    }

    proptest! {
        #[test]
        fn parts_are_combined_to_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..20_000),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            places.sort_unstable();
            let (mut crc, parts) = (Crc::default(), CrcOfParts::new(bytes.len() as u64));
            let mut ranges = Vec::new();
            let mut from = 0;
            for to in places.into_iter().chain([bytes.len()]) {
                crc.append(Crc::of(&bytes[from..to]));
                ranges.push(from..to);
                from = to;
            }
            prop_assert_eq!(crc, Crc::of(&bytes));
            ranges.into_iter().rev().for_each(|range| parts.add(range.start as u64, &bytes[range]));
            prop_assert_eq!(parts.cksum(), crc.cksum());
        }
    }
}

//! One header block of a tar archive: its fields, its checksum, and numbers as every tar writes them.

use std::ops::Range;

use crate::archive::header::BLOCK;

/// What family of tar wrote a header block: it decides what lies behind the link name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Nothing lies there.
    V7,
    /// Owners' names, device numbers and the beginning of long names.
    Ustar,
    /// The same, with less room for the beginning of names.
    Star,
    /// Owners' names and device numbers, and what GNU tar needs for old sparse files.
    Gnu,
}

/// A header block whose checksum is right.
#[derive(Clone)]
pub(super) struct Block([u8; BLOCK]);

impl Block {
    /// Takes a block whose checksum is right; nothing for any other.
    pub fn new(bytes: &[u8; BLOCK]) -> Option<Block> {
        let told = number(&bytes[148..156]).and_then(|told| u64::try_from(told).ok())?;
        let sum = |value: fn(u8) -> i64| -> i64 {
            let rest = bytes[..148].iter().chain(&bytes[156..]).map(|&b| value(b)).sum::<i64>();
            rest + 8 * i64::from(b' ')
        };
        // Some old tars added up signed bytes.
        let is_right = [sum(i64::from), sum(|b| i64::from(b.cast_signed()))].contains(&told.cast_signed());
        is_right.then_some(Block(*bytes))
    }

    pub fn family(&self) -> Family {
        match (&self.0[257..265], &self.0[508..512]) {
            (b"ustar  \0", _) => Family::Gnu,
            ([b'u', b's', b't', b'a', b'r', 0, ..], b"tar\0") => Family::Star,
            ([b'u', b's', b't', b'a', b'r', ..], _) => Family::Ustar,
            _ => Family::V7,
        }
    }

    pub fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// Returns the name, with its beginning where the family keeps that apart.
    pub fn name(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = match self.family() {
            Family::Ustar => self.text(345..500),
            Family::Star => self.text(345..476),
            Family::Gnu | Family::V7 => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link_name(&self) -> &[u8] {
        self.text(157..257)
    }

    /// Returns the names of owner and group.
    pub fn owner_names(&self) -> (&[u8], &[u8]) {
        match self.family() {
            Family::V7 => (b"", b""),
            _ => (self.text(265..297), self.text(297..329)),
        }
    }

    /// Returns major and minor number of a device.
    pub fn device_number(&self) -> Option<(u32, u32)> {
        let part = |field: Range<usize>| u32::try_from(number(&self.0[field])?).ok();
        match self.family() {
            Family::V7 => None,
            _ => Some((part(329..337)?, part(337..345)?)),
        }
    }

    /// Returns a number; an empty field counts as zero, a broken one is none.
    pub fn number(&self, field: Range<usize>) -> Option<i64> {
        number(&self.0[field])
    }

    /// Returns bytes as they stand there.
    pub fn bytes(&self, field: Range<usize>) -> &[u8] {
        &self.0[field]
    }

    fn text(&self, field: Range<usize>) -> &[u8] {
        let bytes = &self.0[field];
        bytes.iter().position(|&b| b == 0).map_or(bytes, |end| &bytes[..end])
    }
}

/// Reads a number field: octal digits between blanks and zeros, or big-endian in base 256 where the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement; the marking bit is not part of it, the next one is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { i64::from(first) - 0x100 } else { i64::from(first & 0x3f) };
        for &byte in rest {
            value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
        }
        return Some(value);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if rest.first().is_some_and(|&b| b != 0 && b != b' ') {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\0\x01\x00", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}

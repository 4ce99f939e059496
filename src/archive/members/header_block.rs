//! One header block of a tar archive: its checksum, its fields as the `tar` crate lays them out, and its numbers.
//!
//! The crate parses numbers and checks magic numbers more strictly than the archives of old tars allow, so only the
//! layout of the fields is the crate's.

use crate::archive::block::BLOCK_BYTES;

/// The family of tar that wrote a header block. It decides which fields follow the link name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::archive) enum Family {
    /// None.
    V7,
    /// Names of owner and group, device numbers and the beginning of long names.
    Ustar,
    /// The same, with less room for the beginning of names.
    Star,
    /// Names of owner and group, device numbers, and the map of old sparse files.
    Gnu,
}

impl Family {
    fn of(bytes: &[u8; BLOCK_BYTES]) -> Family {
        match (&bytes[MAGIC], &bytes[508..512]) {
            (b"ustar  \0", _) => Family::Gnu,
            ([b'u', b's', b't', b'a', b'r', 0, ..], b"tar\0") => Family::Star,
            ([b'u', b's', b't', b'a', b'r', ..], _) => Family::Ustar,
            _ => Family::V7,
        }
    }
}

/// The fields magic and version.
const MAGIC: std::ops::Range<usize> = 257..265;
/// The part of the prefix field that star uses for the beginning of names.
const STAR_PREFIX_BYTES: usize = 131;

/// A header block whose checksum is right.
#[derive(Clone)]
pub(in crate::archive) struct HeaderBlock {
    header: tar::Header,
    family: Family,
}

impl HeaderBlock {
    /// Takes a block. Returns `None` if its checksum is wrong.
    pub fn parse(bytes: &[u8; BLOCK_BYTES]) -> Option<HeaderBlock> {
        let mut header = tar::Header::new_old();
        *header.as_mut_bytes() = *bytes;
        if !has_right_checksum(&header) {
            return None;
        }
        let family = Family::of(bytes);
        if matches!(family, Family::Ustar | Family::Star) {
            // The crate gives its view for one magic number and version only.
            header.as_mut_bytes()[MAGIC].copy_from_slice(b"ustar\x0000");
        }
        Some(HeaderBlock { header, family })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn type_flag(&self) -> u8 {
        self.header.as_old().linkflag[0]
    }

    /// Returns the name, joined with the prefix where the family has one.
    pub fn name(&self) -> Vec<u8> {
        let name = text(&self.header.as_old().name);
        let prefix = match (self.family, self.header.as_ustar()) {
            (Family::Ustar, Some(fields)) => text(&fields.prefix),
            (Family::Star, Some(fields)) => text(&fields.prefix[..STAR_PREFIX_BYTES]),
            _ => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link_name(&self) -> &[u8] {
        text(&self.header.as_old().linkname)
    }

    /// Returns the names of owner and group.
    pub fn owner_names(&self) -> (&[u8], &[u8]) {
        match (self.header.as_ustar(), self.header.as_gnu()) {
            (Some(fields), _) => (text(&fields.uname), text(&fields.gname)),
            (_, Some(fields)) => (text(&fields.uname), text(&fields.gname)),
            _ => (b"", b""),
        }
    }

    /// Returns major and minor number of a device.
    pub fn device_number(&self) -> Option<(u32, u32)> {
        let (major, minor) = match (self.header.as_ustar(), self.header.as_gnu()) {
            (Some(fields), _) => (&fields.dev_major, &fields.dev_minor),
            (_, Some(fields)) => (&fields.dev_major, &fields.dev_minor),
            _ => return None,
        };
        Some((u32::try_from(number(major)?).ok()?, u32::try_from(number(minor)?).ok()?))
    }

    /// Returns the permission bits. As with all numbers of a header, an empty field is 0 and a broken one `None`.
    pub fn mode(&self) -> Option<i64> {
        number(&self.header.as_old().mode)
    }

    pub fn uid(&self) -> Option<u64> {
        unsigned(&self.header.as_old().uid)
    }

    pub fn gid(&self) -> Option<u64> {
        unsigned(&self.header.as_old().gid)
    }

    /// Returns the number of bytes that follow the header.
    pub fn size(&self) -> Option<u64> {
        unsigned(&self.header.as_old().size)
    }

    /// Returns the modification time in seconds since 1970.
    pub fn modified(&self) -> Option<i64> {
        number(&self.header.as_old().mtime)
    }

    /// Returns the fields that the GNU family adds.
    pub fn gnu_fields(&self) -> Option<&tar::GnuHeader> {
        self.header.as_gnu()
    }
}

/// Returns whether the checksum of a block is right.
fn has_right_checksum(header: &tar::Header) -> bool {
    let Some(stated) = number(&header.as_old().cksum).filter(|&stated| stated >= 0) else { return false };
    let mut blanked = header.clone();
    blanked.as_old_mut().cksum = [b' '; 8];
    let sum = |value: fn(u8) -> i64| -> i64 { blanked.as_bytes().iter().map(|&byte| value(byte)).sum() };
    // Some old tars added up signed bytes.
    stated == sum(i64::from) || stated == sum(|byte| i64::from(byte.cast_signed()))
}

/// Returns the bytes of a text field up to its first zero byte.
fn text(field: &[u8]) -> &[u8] {
    field.iter().position(|&b| b == 0).map_or(field, |end| &field[..end])
}

/// Reads a number field that cannot be negative.
pub(super) fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|number| u64::try_from(number).ok())
}

/// Reads a number field: octal digits between blanks and zero bytes, or big-endian in base 256 if the first bit is set.
fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement. The first bit only marks the form, the second one is the sign.
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

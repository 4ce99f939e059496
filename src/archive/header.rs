//! Headers of members: pax, with all that a Linux file system says of a file.
//!
//! What fits stands in the plain `ustar` fields, which every reader knows; the rest goes into a pax header before it.
//! The bytes depend on the member alone: a later run recognises an unchanged member by its header.

use std::fmt::Write;

use super::acl;
use super::buffer::Buffer;
use super::sparse;
use crate::member::{FileTime, Member, MemberKind, Span, Xattrs};

/// The size of a tar block in bytes.
pub const BLOCK: usize = 512;

/// What stands behind the last member: two blocks of zeros.
pub const END_MARKS: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

const NAME: std::ops::Range<usize> = 0..100;
const LINK_NAME: std::ops::Range<usize> = 157..257;
const PREFIX: std::ops::Range<usize> = 345..500;
const LARGEST_ID: u64 = 0o7_777_777;
const LARGEST_SIZE: u64 = 0o77_777_777_777;

/// Appends the header of a member. For a sparse file, `spans` are its spans of data; their map is appended too, and the
/// header's size counts the map and the spans. What follows must be exactly the data the header announces, then
/// [`Buffer::pad_block`] over it.
pub fn append(out: &mut Buffer, member: &Member, spans: Option<&[Span]>) {
    let map = spans.map(|spans| sparse::encode_map(spans, member.size));
    let mut name = member.path.as_bytes().to_vec();
    if member.kind == MemberKind::Folder {
        name.push(b'/');
    }
    let mut records = Vec::new();
    let mut header = Header::new(type_flag(member.kind));
    if map.is_some() {
        append_record(&mut records, b"GNU.sparse.major", b"1");
        append_record(&mut records, b"GNU.sparse.minor", b"0");
        append_record(&mut records, b"GNU.sparse.realsize", member.size.to_string().as_bytes());
        if is_text(&name) {
            append_record(&mut records, b"GNU.sparse.name", &name);
            // A reader that knows no sparse files finds the map and the spans under this name, and not a wrong file.
            name = [b"GNUSparseFile.0/", member.path.file_name()].concat();
            while name.len() > NAME.len() || !is_text(&name) {
                name.pop();
            }
        }
    }
    if !header.set_name(&name) {
        append_long(out, &mut records, b'L', b"path", &name);
    }
    if let Some(target) = &member.link_target
        && !header.set_text(LINK_NAME, target)
    {
        append_long(out, &mut records, b'K', b"linkpath", target);
    }
    let data_bytes = match (&map, spans) {
        (Some(map), Some(spans)) => map.len() as u64 + spans.iter().map(|span| span.length).sum::<u64>(),
        _ => member.size,
    };
    header.set_octal(100..108, u64::from(member.mode & 0o7777));
    for (field, id, key) in [(108..116, member.uid, "uid"), (116..124, member.gid, "gid")] {
        append_number(&mut records, &mut header, field, u64::from(id), LARGEST_ID, key);
    }
    append_number(&mut records, &mut header, 124..136, data_bytes, LARGEST_SIZE, "size");
    append_time(&mut records, &mut header, member.modified);
    for (field, name, key) in [(265..297, &member.user_name, "uname"), (297..329, &member.group_name, "gname")] {
        // These two end with a zero byte always.
        if name.len() >= 32 || !header.set_text(field, name) {
            append_record(&mut records, key.as_bytes(), name);
        }
    }
    if let Some((major, minor)) = member.device_number {
        header.set_octal(329..337, u64::from(major));
        header.set_octal(337..345, u64::from(minor));
    }
    append_xattrs(&mut records, &member.xattrs);
    if !records.is_empty() {
        let mut pax = Header::new(b'x');
        let mut name = [b"PaxHeaders/", member.path.file_name()].concat();
        name.truncate(NAME.len());
        pax.set_text(NAME, &name);
        append_data(out, pax, &records);
    }
    out.extend(&header.finished());
    out.extend(map.as_deref().unwrap_or_default());
}

/// Appends a pax global header that holds `comment`. It must not be the last header of an archive: Python fails on
/// that.
pub fn append_global(out: &mut Buffer, comment: &str) {
    let mut records = Vec::new();
    append_record(&mut records, b"comment", comment.as_bytes());
    let mut header = Header::new(b'g');
    header.set_text(NAME, b"pax_global_header");
    append_data(out, header, &records);
}

/// Returns how many bytes a member probably takes in the archive: for cutting chunks and for counting memory, so it
/// depends on nothing but what a walk knows.
pub fn entry_bytes(kind: MemberKind, size: u64) -> u64 {
    const HEADERS: u64 = 3 * BLOCK as u64;
    match kind {
        MemberKind::File => HEADERS.saturating_add(size.checked_next_multiple_of(BLOCK as u64).unwrap_or(size)),
        _ => HEADERS,
    }
}

/// Appends a header that only serves the next one, with its data.
fn append_data(out: &mut Buffer, mut header: Header, data: &[u8]) {
    header.set_octal(100..108, 0o644);
    header.set_octal(108..116, 0);
    header.set_octal(116..124, 0);
    header.set_octal(124..136, data.len() as u64);
    header.set_octal(136..148, 0);
    out.extend(&header.finished());
    out.extend(data);
    out.extend_zeros(data.len().next_multiple_of(BLOCK) - data.len());
}

/// Keeps a path that does not fit its field: text in a record; bytes that are no text, which bsdtar would take amiss
/// there, in a header of their own as GNU tar writes it, before all others of the member.
fn append_long(out: &mut Buffer, records: &mut Vec<u8>, type_flag: u8, key: &[u8], path: &[u8]) {
    if is_text(path) {
        return append_record(records, key, path);
    }
    let mut header = Header::new(type_flag);
    header.set_text(NAME, b"././@LongLink");
    append_data(out, header, &[path, b"\0"].concat());
}

fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

fn append_number(
    records: &mut Vec<u8>,
    header: &mut Header,
    field: std::ops::Range<usize>,
    value: u64,
    largest: u64,
    key: &str,
) {
    if value > largest {
        append_record(records, key.as_bytes(), value.to_string().as_bytes());
    }
    header.set_octal(field, if value > largest { 0 } else { value });
}

fn append_time(records: &mut Vec<u8>, header: &mut Header, time: FileTime) {
    let seconds = u64::try_from(time.seconds).ok().filter(|&s| s <= LARGEST_SIZE);
    if seconds.is_none() || time.nanoseconds != 0 {
        append_record(records, b"mtime", time_text(time).as_bytes());
    }
    header.set_octal(136..148, seconds.unwrap_or(0));
}

/// Returns seconds with a decimal fraction as exact as needed; a time before 1970 has a minus over all of it.
fn time_text(time: FileTime) -> String {
    let (sign, seconds, nanoseconds) = match time {
        FileTime { seconds: ..0, nanoseconds: 1.. } => {
            ("-", (time.seconds + 1).unsigned_abs(), 1_000_000_000 - time.nanoseconds)
        }
        FileTime { seconds: ..0, .. } => ("-", time.seconds.unsigned_abs(), 0),
        _ => ("", time.seconds.unsigned_abs(), time.nanoseconds),
    };
    let mut text = format!("{sign}{seconds}");
    if nanoseconds != 0 {
        let _infallible = write!(text, ".{nanoseconds:09}");
        text.truncate(text.trim_end_matches('0').len());
    }
    text
}

fn append_xattrs(records: &mut Vec<u8>, xattrs: &Xattrs) {
    for (name, value) in xattrs.iter() {
        // The attribute as it is, for exactness, and the text that other tars restore ACLs from.
        let text_key: Option<&[u8]> = match name {
            acl::ACCESS => Some(b"SCHILY.acl.access"),
            acl::DEFAULT => Some(b"SCHILY.acl.default"),
            _ => None,
        };
        if let Some(key) = text_key
            && let Some(text) = acl::to_text(value)
        {
            append_record(records, key, text.as_bytes());
        }
        let mut key = b"SCHILY.xattr.".to_vec();
        for &byte in name {
            // A keyword ends at its first `=`; GNU tar writes and reads it so.
            match byte {
                b'=' => key.extend(b"%3D"),
                b'%' => key.extend(b"%25"),
                _ => key.push(byte),
            }
        }
        append_record(records, &key, value);
    }
}

/// Appends one pax record: its own length in decimal, a space, `key=value`, a newline.
fn append_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(length.to_string().as_bytes());
    records.push(b' ');
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

fn type_flag(kind: MemberKind) -> u8 {
    match kind {
        MemberKind::File => b'0',
        MemberKind::HardLink => b'1',
        MemberKind::Symlink => b'2',
        MemberKind::CharDevice => b'3',
        MemberKind::BlockDevice => b'4',
        MemberKind::Folder => b'5',
        MemberKind::Fifo => b'6',
    }
}

/// One `ustar` header block being filled.
struct Header([u8; BLOCK]);

impl Header {
    fn new(type_flag: u8) -> Self {
        let mut block = [0; BLOCK];
        block[156] = type_flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        Header(block)
    }

    /// Puts a path into the name field, or into prefix and name; says whether it fitted. If not, its beginning stands
    /// there.
    fn set_name(&mut self, name: &[u8]) -> bool {
        if self.set_text(NAME, name) {
            return true;
        }
        let latest = name.len().min(PREFIX.len() + 1);
        let slash = name[..latest].iter().rposition(|&b| b == b'/');
        match slash {
            Some(slash) if slash > 0 && (1..=NAME.len()).contains(&(name.len() - slash - 1)) => {
                self.0[NAME].fill(0);
                self.set_text(PREFIX, &name[..slash]) && self.set_text(NAME, &name[slash + 1..])
            }
            _ => false,
        }
    }

    /// Puts text into a field; says whether it fitted. If not, its beginning stands there.
    fn set_text(&mut self, field: std::ops::Range<usize>, text: &[u8]) -> bool {
        let length = text.len().min(field.len());
        self.0[field.start..field.start + length].copy_from_slice(&text[..length]);
        length == text.len()
    }

    /// Puts octal digits and a zero byte into a field. The value must fit.
    fn set_octal(&mut self, field: std::ops::Range<usize>, mut value: u64) {
        let digits = field.start..field.end - 1;
        self.0[field.end - 1] = 0;
        for digit in self.0[digits].iter_mut().rev() {
            *digit = b'0' + (value & 7) as u8;
            value >>= 3;
        }
        debug_assert_eq!(value, 0, "the value fits its field");
    }

    fn finished(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum = self.0.iter().map(|&b| u64::from(b)).sum();
        self.set_octal(148..155, sum);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        for length in 0..2000 {
            let mut records = Vec::new();
            append_record(&mut records, b"k", &vec![b'v'; length]);
            let told: usize = String::from_utf8_lossy(&records).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(told, records.len());
        }
    }

    #[test]
    fn times_before_1970_are_negative_as_a_whole() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (1, 500_000_000, "1.5"),
            (-1, 0, "-1"),
            (-1, 500_000_000, "-0.5"),
            (-2, 999_999_999, "-1.000000001"),
            (1, 1, "1.000000001"),
            (i64::MIN, 1, "-9223372036854775807.999999999"),
        ] {
            assert_eq!(time_text(FileTime { seconds, nanoseconds }), text);
        }
    }

    #[test]
    fn names_are_split_at_a_slash_where_that_fits() {
        let fits = |name: &[u8]| Header::new(b'0').set_name(name);
        let long = |n: usize| vec![b'n'; n];
        assert!(fits(&long(100)));
        assert!(!fits(&long(101)));
        assert!(fits(&[&long(155)[..], b"/", &long(100)].concat()));
        assert!(!fits(&[&long(155)[..], b"/", &long(101)].concat()));
        assert!(!fits(&[&long(156)[..], b"/", &long(100)].concat()));
        assert!(!fits(&[&long(120)[..], b"/"].concat()), "the name itself must not be empty");
        assert!(!fits(&[b"/", &long(101)[..]].concat()));
    }
}

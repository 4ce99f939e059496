//! Pax headers: records of the form `length key=value`, with what does not fit in the header block of a member.

use crate::archive::acl;
use crate::member::{FileTime, Xattrs};

/// The records of a pax header that are used.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub user_name: Option<Vec<u8>>,
    pub group_name: Option<Vec<u8>>,
    pub modified: Option<FileTime>,
    /// It has an mtime that is no time.
    pub has_bad_time: bool,
    pub xattrs: Xattrs,
    pub comment: Option<Vec<u8>>,
    pub sparse: Sparse,
}

/// Largest number of extended attributes of a member. Linux bounds their names to 64 KiB; a header with many more is
/// hostile and would cost time.
const MAX_XATTRS: usize = 1 << 13;

/// The records with which GNU tar describes a sparse file, in its three forms 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    pub major: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// Offsets and lengths in turn, for the forms 0.0 and 0.1.
    pub map: Vec<u64>,
    pub has_map: bool,
}

impl Pax {
    /// Adds the records of a header. Errors: why they cannot be trusted.
    pub fn add(&mut self, mut records: &[u8], max_spans: usize) -> Result<(), String> {
        let mut seen = Vec::new();
        while !records.is_empty() {
            let (record, rest) = split_record(records).ok_or("its pax header is broken")?;
            records = rest;
            let equals = record.iter().position(|&b| b == b'=').ok_or("its pax header has a record without =")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            // Readers differ in which of two records they use: an archive with both is made to deceive one of them.
            if matches!(key, b"path" | b"linkpath" | b"size" | b"GNU.sparse.name") {
                if seen.contains(&key) {
                    return Err(format!("its pax header has two records of {}", String::from_utf8_lossy(key)));
                }
                seen.push(key);
            }
            self.add_record(key, value, max_spans)?;
        }
        Ok(())
    }

    fn add_record(&mut self, key: &[u8], value: &[u8], max_spans: usize) -> Result<(), String> {
        // An empty value means that there is none: the header block has it.
        if value.is_empty()
            && matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" | b"GNU.sparse.name")
        {
            return Ok(());
        }
        let number = || decimal(value).ok_or_else(|| format!("its {} is no number", String::from_utf8_lossy(key)));
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            // A number that is none becomes an owner that cannot be set.
            b"uid" => self.uid = Some(decimal(value).unwrap_or(u64::MAX)),
            b"gid" => self.gid = Some(decimal(value).unwrap_or(u64::MAX)),
            b"uname" => self.user_name = Some(value.to_vec()),
            b"gname" => self.group_name = Some(value.to_vec()),
            // The content is worth more than the time.
            b"mtime" => (self.modified, self.has_bad_time) = (time(value), time(value).is_none()),
            b"comment" => self.comment = Some(value.to_vec()),
            b"SCHILY.acl.access" => self.set_acl(acl::ACCESS, value),
            b"SCHILY.acl.default" => self.set_acl(acl::DEFAULT, value),
            b"GNU.sparse.major" => self.sparse.major = Some(number()?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.add_to_map(number()?, max_spans)?,
            b"GNU.sparse.map" => {
                for part in value.split(|&b| b == b',').filter(|part| !part.is_empty()) {
                    self.add_to_map(decimal(part).ok_or("its sparse map is broken")?, max_spans)?;
                }
                self.sparse.has_map = true;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if self.xattrs.len() >= MAX_XATTRS {
                        return Err(format!("it has more than {MAX_XATTRS} extended attributes"));
                    }
                    self.xattrs.set(&unescape(name), value);
                }
            }
        }
        Ok(())
    }

    /// Sets an ACL from its text, unless the attribute itself is recorded. A text that cannot be read is kept as it is:
    /// the kernel refuses it, and the restore counts it as an attribute that could not be set.
    fn set_acl(&mut self, name: &[u8], text: &[u8]) {
        if self.xattrs.get(name).is_none() {
            self.xattrs.set(name, &acl::from_text(text).unwrap_or_else(|| text.to_vec()));
        }
    }

    fn add_to_map(&mut self, number: u64, max_spans: usize) -> Result<(), String> {
        if self.sparse.map.len() >= 2 * max_spans {
            return Err(format!("it has more than {max_spans} spans"));
        }
        self.sparse.map.push(number);
        self.sparse.has_map = true;
        Ok(())
    }

    /// Returns the records that can apply to all members that follow: no names, sizes or attributes of one member.
    pub fn into_global(mut self) -> Pax {
        self.path = None;
        self.link_path = None;
        self.size = None;
        self.sparse = Sparse::default();
        self.xattrs.clear();
        self
    }
}

/// Returns `key=value` of the first record, and the records after it.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = records.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&records[..space])?).ok()?;
    let record = records.get(space + 1..length)?;
    Some((record.strip_suffix(b"\n")?, &records[length..]))
}

/// Reads a decimal number without a sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Reads seconds with a decimal fraction. Digits finer than a nanosecond are dropped.
fn time(text: &[u8]) -> Option<FileTime> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let point = text.iter().position(|&b| b == b'.');
    let (whole, fraction) = point.map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]));
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let whole = i64::try_from(decimal(whole)?).ok()?;
    let mut nanoseconds = 0;
    for at in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
    }
    Some(match (negative, nanoseconds) {
        (false, _) => FileTime { seconds: whole, nanoseconds },
        (true, 0) => FileTime { seconds: -whole, nanoseconds },
        (true, _) => FileTime { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Decodes the characters that a keyword cannot hold: `%3D` is `=`, `%25` is `%`.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match rest {
            [b'%', b'3', b'D', after @ ..] => (b'=', after),
            [b'%', b'2', b'5', after @ ..] => (b'%', after),
            _ => (byte, after),
        };
        plain.push(byte);
        rest = after;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_read() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("-0.5", -1, 500_000_000),
            ("-1.000000001", -2, 999_999_999),
            ("-9223372036854775807.999999999", i64::MIN, 1),
            ("7.1234567899", 7, 123_456_789),
        ] {
            assert_eq!(time(text.as_bytes()), Some(FileTime { seconds, nanoseconds }), "{text}");
        }
        for bad in ["", "x", "1.x", "--1", "99999999999999999999"] {
            assert_eq!(time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn records_with_a_wrong_length_are_refused() {
        for bad in ["9 a=b\n", "6 a=b\n7", "0 a=b\n", "x a=b\n", "6 a=bx", "99999999999999999999 a=b\n", "5 ab\n"] {
            assert!(Pax::default().add(bad.as_bytes(), 9).is_err(), "{bad}");
        }
        let mut pax = Pax::default();
        pax.add(b"22 SCHILY.xattr.u.a%3D=\n21 SCHILY.xattr.u.%25=\n", 9).unwrap_err();
        pax.add(b"24 SCHILY.xattr.u.a%3D=\n", 9).unwrap();
        assert_eq!(pax.xattrs.get(b"u.a="), Some(&b""[..]));
    }

    #[test]
    fn two_names_in_one_header_are_refused() {
        assert!(Pax::default().add(b"9 path=a\n9 path=b\n", 9).is_err());
    }
}

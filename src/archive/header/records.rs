//! Pax records, which hold what does not fit in the fields of a header block.

use std::fmt::Write;

use crate::archive::acl;
use crate::member::{FileTime, Xattrs};

/// The records of one pax header, encoded.
#[derive(Default)]
pub(super) struct Records(Vec<u8>);

impl Records {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends one record: its own length in decimal, a space, `key=value`, a newline.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend(key);
        self.0.push(b'=');
        self.0.extend(value);
        self.0.push(b'\n');
    }

    /// Appends a record whose value is a decimal number.
    pub fn add_number(&mut self, key: &[u8], value: u64) {
        self.add(key, value.to_string().as_bytes());
    }

    /// Appends the modification time.
    pub fn add_modified(&mut self, time: FileTime) {
        self.add(b"mtime", time_text(time).as_bytes());
    }

    /// Appends extended attributes; ACLs also as the text from which other tars restore them.
    pub fn add_xattrs(&mut self, xattrs: &Xattrs) {
        for (name, value) in xattrs.iter() {
            let text_key: Option<&[u8]> = match name {
                acl::ACCESS => Some(b"SCHILY.acl.access"),
                acl::DEFAULT => Some(b"SCHILY.acl.default"),
                _ => None,
            };
            if let Some(key) = text_key
                && let Some(text) = acl::to_text(value)
            {
                self.add(key, text.as_bytes());
            }
            let mut key = b"SCHILY.xattr.".to_vec();
            for &byte in name {
                // A keyword ends at its first `=`; GNU tar writes and reads names in this form.
                match byte {
                    b'=' => key.extend(b"%3D"),
                    b'%' => key.extend(b"%25"),
                    _ => key.push(byte),
                }
            }
            self.add(&key, value);
        }
    }
}

/// Returns seconds with as many decimals as needed. A time before 1970 is negative as a whole, fraction included.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        for length in 0..2000 {
            let mut records = Records::default();
            records.add(b"k", &vec![b'v'; length]);
            let text = String::from_utf8_lossy(records.as_bytes());
            let stated_length: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(stated_length, records.as_bytes().len());
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
}

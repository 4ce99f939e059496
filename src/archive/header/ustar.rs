//! The `ustar` header block, with the fields and number formats of the `tar` crate.

use tar::EntryType;

use crate::archive::block::BLOCK_BYTES;

/// The largest owner or group number that the octal digits of its field can hold.
pub(super) const MAX_ID: u64 = 0o7_777_777;
/// The largest size or time that the octal digits of its field can hold.
pub(super) const MAX_SIZE: u64 = 0o77_777_777_777;

/// A header block that is being filled.
pub(super) struct UstarHeader(tar::Header);

impl UstarHeader {
    pub fn new(entry_type: EntryType) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry_type);
        UstarHeader(header)
    }

    /// Sets the numbers of a header that only describes the next one.
    pub fn set_extension_fields(&mut self, size: u64) {
        self.set_mode(0o644);
        self.set_uid(0);
        self.set_gid(0);
        self.set_size(size);
    }

    /// Stores a path in the name field, or split at a slash in the prefix and name fields. Returns whether it fits; if
    /// not, the name field holds its beginning.
    pub fn set_name(&mut self, name: &[u8]) -> bool {
        let fields = self.fields();
        if copy_text(&mut fields.name, name) {
            return true;
        }
        let end = name.len().min(fields.prefix.len() + 1);
        let slash = name[..end].iter().rposition(|&b| b == b'/');
        match slash {
            Some(slash) if slash > 0 && (1..=fields.name.len()).contains(&(name.len() - slash - 1)) => {
                fields.name.fill(0);
                copy_text(&mut fields.prefix, &name[..slash]) && copy_text(&mut fields.name, &name[slash + 1..])
            }
            _ => false,
        }
    }

    /// Stores as much of a path as the name field holds.
    pub fn set_name_start(&mut self, name: &[u8]) {
        copy_text(&mut self.fields().name, name);
    }

    /// Stores the target of a link. Returns whether it fits; if not, the field holds its beginning.
    pub fn set_link_name(&mut self, target: &[u8]) -> bool {
        copy_text(&mut self.fields().linkname, target)
    }

    /// Stores the name of the owner. Returns whether it fits; if not, the field stays empty.
    pub fn set_user_name(&mut self, name: &[u8]) -> bool {
        copy_terminated(&mut self.fields().uname, name)
    }

    /// Stores the name of the group. Returns whether it fits; if not, the field stays empty.
    pub fn set_group_name(&mut self, name: &[u8]) -> bool {
        copy_terminated(&mut self.fields().gname, name)
    }

    pub fn set_mode(&mut self, mode: u32) {
        self.0.set_mode(mode);
    }

    /// Stores the number of the owner, at most [`MAX_ID`].
    pub fn set_uid(&mut self, uid: u64) {
        debug_assert!(uid <= MAX_ID, "the number fits its field");
        self.0.set_uid(uid);
    }

    /// Stores the number of the group, at most [`MAX_ID`].
    pub fn set_gid(&mut self, gid: u64) {
        debug_assert!(gid <= MAX_ID, "the number fits its field");
        self.0.set_gid(gid);
    }

    /// Stores the number of bytes that follow the header, at most [`MAX_SIZE`].
    pub fn set_size(&mut self, size: u64) {
        debug_assert!(size <= MAX_SIZE, "the number fits its field");
        self.0.set_size(size);
    }

    /// Stores the modification time in seconds, at most [`MAX_SIZE`].
    pub fn set_modified(&mut self, seconds: u64) {
        debug_assert!(seconds <= MAX_SIZE, "the number fits its field");
        self.0.set_mtime(seconds);
    }

    pub fn set_device_number(&mut self, major: u32, minor: u32) {
        let fields = self.fields();
        fields.set_device_major(major);
        fields.set_device_minor(minor);
    }

    /// Returns the block with its checksum.
    pub fn finish(mut self) -> [u8; BLOCK_BYTES] {
        self.0.set_cksum();
        // Six digits, a zero byte and a blank, as all other tars write it; the crate writes seven digits.
        let checksum = &mut self.0.as_old_mut().cksum;
        checksum.rotate_left(1);
        checksum[7] = b' ';
        *self.0.as_bytes()
    }

    fn fields(&mut self) -> &mut tar::UstarHeader {
        self.0.as_ustar_mut().expect("the header was created as ustar")
    }
}

/// Copies text to a field. Returns whether it fits; if not, the field holds its beginning.
fn copy_text(field: &mut [u8], text: &[u8]) -> bool {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    length == text.len()
}

/// Copies text to a field that ends with a zero byte always. Returns whether it fits; if not, the field is unchanged.
fn copy_terminated(field: &mut [u8], text: &[u8]) -> bool {
    text.len() < field.len() && copy_text(field, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_a_slash_where_that_fits() {
        let fits = |name: &[u8]| UstarHeader::new(EntryType::Regular).set_name(name);
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

//! POSIX ACLs: converts the attributes in which the kernel stores them to the text that other tars read, and back.

/// The attribute that holds the ACL of a file or folder.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds the ACL which new entries of a folder inherit.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
/// The owner or group number of an entry that names none.
const NO_ID: u32 = u32::MAX;

/// Returns the text of an ACL attribute, as in `SCHILY.acl.access`, entries joined by commas. Owners and groups are
/// written as numbers: on another machine the same name may belong to someone else. Returns `None` for an unknown form.
pub(super) fn to_text(attribute: &[u8]) -> Option<String> {
    let (version, entries) = attribute.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() || entries.is_empty() {
        return None;
    }
    let mut text = String::new();
    for &[tag_low, tag_high, permissions_low, _, id @ ..] in entries {
        let id = u32::from_le_bytes(id);
        let (word, named) = match u16::from_le_bytes([tag_low, tag_high]) {
            0x01 => ("user", false),
            0x02 => ("user", true),
            0x04 => ("group", false),
            0x08 => ("group", true),
            0x10 => ("mask", false),
            0x20 => ("other", false),
            _ => return None,
        };
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(word);
        text.push(':');
        if named {
            text.push_str(&id.to_string());
        }
        text.push(':');
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if permissions_low & bit != 0 { letter } else { '-' });
        }
    }
    Some(text)
}

/// Returns the attribute for the text of an ACL, as star, GNU tar and bsdtar write it: entries separated by commas or
/// newlines, `user:1001:r-x` or `user:name:r-x:1001`. Returns `None` if an entry has a name without a number: the same
/// name may belong to someone else on this machine.
pub(super) fn from_text(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    let lines = text.split([',', '\n']).map(|line| line.split('#').next().unwrap_or_default().trim());
    for line in lines.filter(|line| !line.is_empty()) {
        let mut fields = line.split(':');
        let (word, name, permissions) = (fields.next()?, fields.next()?, fields.next()?);
        let id = match (name, fields.next()) {
            ("", None) => NO_ID,
            (name, number) => number.unwrap_or(name).parse().ok()?,
        };
        let tag = match (word, name) {
            ("user" | "u", "") => 0x01,
            ("user" | "u", _) => 0x02,
            ("group" | "g", "") => 0x04,
            ("group" | "g", _) => 0x08,
            ("mask" | "m", "") => 0x10,
            ("other" | "o", "") => 0x20,
            _ => return None,
        };
        let mut bits = 0_u16;
        for letter in permissions.bytes() {
            bits |= match letter {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => return None,
            };
        }
        entries.push((tag, id, bits));
    }
    // The kernel accepts them in this order only.
    entries.sort_unstable();
    let mut attribute = VERSION.to_le_bytes().to_vec();
    for (tag, id, bits) in entries {
        let tag: u16 = tag;
        attribute.extend(tag.to_le_bytes());
        attribute.extend(bits.to_le_bytes());
        attribute.extend(id.to_le_bytes());
    }
    Some(attribute)
}

/// Returns the mask of an ACL attribute, which are the group bits of the mode; `None` if it has no mask.
pub(super) fn mask(attribute: &[u8]) -> Option<u32> {
    let (entries, _) = attribute.get(4..)?.as_chunks::<8>();
    entries.iter().find(|entry| entry[..2] == [0x10, 0]).map(|entry| u32::from(entry[2] & 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_written_in_order_and_by_number() {
        let mut attribute = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1u16, 6u16, !0u32), (2, 5, 1001), (4, 4, !0), (8, 1, 70_000), (16, 7, !0), (32, 0, !0)]
        {
            attribute.extend(tag.to_le_bytes());
            attribute.extend(permissions.to_le_bytes());
            attribute.extend(id.to_le_bytes());
        }
        let text = "user::rw-,user:1001:r-x,group::r--,group:70000:--x,mask::rwx,other::---";
        assert_eq!(to_text(&attribute).as_deref(), Some(text));
        assert_eq!(from_text(text.as_bytes()), Some(attribute.clone()));
        for length in 0..attribute.len() {
            let whole_entries = length > 4 && (length - 4) % 8 == 0;
            assert_eq!(to_text(&attribute[..length]).is_some(), whole_entries, "{length}");
        }
        attribute[0] = 3;
        assert_eq!(to_text(&attribute), None);
    }

    #[test]
    fn texts_of_other_tars_are_read_except_names_without_numbers() {
        let ours = from_text(b"user::rw-,user:7:r--,group::r--,group:9:r-x,mask::r-x,other::---").unwrap();
        let bsdtar = b"group:staff:r-x:9,user::rw-,group::r--,other::---,user:ann:r--:7,mask::r-x";
        assert_eq!(from_text(bsdtar), Some(ours.clone()));
        assert_eq!((mask(&ours), mask(&ours[..12]), mask(b"x")), (Some(5), None, None));
        let lines = b"u::rw-\nu:7:r--\t#effective:r--\ng::r--\ng:9:r-x\nm::r-x\no::---\n";
        assert_eq!(from_text(lines), Some(ours));
        for text in ["user:ann:r--", "user::rwX", "what::rwx", "user:", "mask:5:rwx", "\u{e9}", "user:-1:r--"] {
            assert_eq!(from_text(text.as_bytes()), None, "{text}");
        }
    }
}

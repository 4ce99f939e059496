//! POSIX ACLs: from the form in which the kernel keeps them to the text that other tars read.

/// The attribute that holds the ACL of a file or folder.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what new entries of a folder inherit.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;

/// Returns the text of an ACL attribute, as in `SCHILY.acl.access`, entries joined by commas. Owners and groups stand
/// there by number: names of another machine would give rights to others. Nothing for a form this does not know.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_in_order_and_by_number() {
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
        for length in 0..attribute.len() {
            let whole_entries = length > 4 && (length - 4) % 8 == 0;
            assert_eq!(to_text(&attribute[..length]).is_some(), whole_entries, "{length}");
        }
        attribute[0] = 3;
        assert_eq!(to_text(&attribute), None);
    }
}

//! Writes the headers of members, in pax format, with everything that a Linux file system records about a file.
//!
//! A value is stored in the `ustar` field, which every reader knows, where it fits; else in a pax header before it.
//! The bytes depend on the member alone, so a later run can recognise an unchanged member by its header.

mod records;
mod ustar;

use tar::EntryType;

use self::records::Records;
use self::ustar::{MAX_ID, MAX_SIZE, UstarHeader};
use super::block::{BLOCK_BYTES, padding};
use super::buffer::Buffer;
use super::sparse;
use crate::member::{Member, MemberKind, Span};

/// The length of the name field of a header block in bytes.
const NAME_BYTES: usize = 100;

/// Appends the header of a member. For a sparse file, `spans` are its spans of data; their map is appended too, and the
/// size in the header counts the map and the spans. The caller appends exactly the data that the header announces, then
/// calls [`Buffer::pad_block`].
pub fn append(out: &mut Buffer, member: &Member, spans: Option<&[Span]>) {
    let map = spans.map(|spans| sparse::encode_map(spans, member.size));
    let data_bytes = match (&map, spans) {
        (Some(map), Some(spans)) => map.len() as u64 + spans.iter().map(|span| span.length).sum::<u64>(),
        _ => member.size,
    };
    let mut records = Records::default();
    let mut header = UstarHeader::new(entry_type(member.kind));
    let name = name_in_header(&mut records, member, map.is_some());
    if !header.set_name(&name) {
        append_long_path(out, &mut records, EntryType::GNULongName, b"path", &name);
    }
    if let Some(target) = &member.link_target
        && !header.set_link_name(target)
    {
        append_long_path(out, &mut records, EntryType::GNULongLink, b"linkpath", target);
    }
    set_fields(&mut records, &mut header, member, data_bytes);
    records.add_xattrs(&member.xattrs);
    if !records.is_empty() {
        let mut pax = UstarHeader::new(EntryType::XHeader);
        pax.set_name_start(&[b"PaxHeaders/", member.path.file_name()].concat());
        append_extension(out, pax, records.as_bytes());
    }
    out.extend(&header.finish());
    out.extend(map.as_deref().unwrap_or_default());
}

/// Appends a pax global header that holds `comment`. It must not be the last header of an archive: Python fails on
/// that.
pub fn append_global(out: &mut Buffer, comment: &str) {
    let mut records = Records::default();
    records.add(b"comment", comment.as_bytes());
    let mut header = UstarHeader::new(EntryType::XGlobalHeader);
    header.set_name_start(b"pax_global_header");
    append_extension(out, header, records.as_bytes());
}

/// The size of the smallest pax global header with a record, in bytes.
pub const MIN_GLOBAL_BYTES: usize = 2 * BLOCK_BYTES;

/// Appends a pax global header of exactly `length` bytes, whole blocks and at least [`MIN_GLOBAL_BYTES`], that holds
/// `comment` and spaces behind it.
pub fn append_global_of(out: &mut Buffer, comment: &str, length: usize) {
    let record_bytes = length - BLOCK_BYTES;
    // Its length, a space, the keyword, `=` and a newline.
    let around = record_bytes.to_string().len() + b" comment=\n".len();
    // A width of `format!` counts characters.
    let spaces = (record_bytes - around).saturating_sub(comment.len());
    append_global(out, &format!("{comment}{}", " ".repeat(spaces)));
}

/// Returns how many bytes a member probably takes in the archive. Chunks are cut and memory is bounded by this
/// estimate, so it depends on nothing but what a walk knows.
pub fn entry_bytes(kind: MemberKind, size: u64) -> u64 {
    const HEADERS: u64 = 3 * BLOCK_BYTES as u64;
    match kind {
        MemberKind::File => HEADERS.saturating_add(size.saturating_add(padding(size))),
        _ => HEADERS,
    }
}

/// Returns the name for the header block. For a sparse file, adds the records that describe the form of its map.
fn name_in_header(records: &mut Records, member: &Member, is_sparse: bool) -> Vec<u8> {
    let mut name = member.path.as_bytes().to_vec();
    if member.kind == MemberKind::Folder {
        name.push(b'/');
    }
    if is_sparse {
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add_number(b"GNU.sparse.realsize", member.size);
        if is_text(&name) {
            records.add(b"GNU.sparse.name", &name);
            // A reader that does not know sparse files extracts map and spans under this name, and not a wrong file.
            name = [b"GNUSparseFile.0/", member.path.file_name()].concat();
            while name.len() > NAME_BYTES || !is_text(&name) {
                name.pop();
            }
        }
    }
    name
}

/// Sets mode, owner, size, time and device number; adds records for values that do not fit in their fields.
fn set_fields(records: &mut Records, header: &mut UstarHeader, member: &Member, data_bytes: u64) {
    header.set_mode(member.mode & 0o7777);
    header.set_uid(number_in_header(records, u64::from(member.uid), MAX_ID, b"uid"));
    header.set_gid(number_in_header(records, u64::from(member.gid), MAX_ID, b"gid"));
    header.set_size(number_in_header(records, data_bytes, MAX_SIZE, b"size"));
    let seconds = u64::try_from(member.modified.seconds).ok().filter(|&seconds| seconds <= MAX_SIZE);
    if seconds.is_none() || member.modified.nanoseconds != 0 {
        records.add_modified(member.modified);
    }
    header.set_modified(seconds.unwrap_or(0));
    if !header.set_user_name(&member.user_name) {
        records.add(b"uname", &member.user_name);
    }
    if !header.set_group_name(&member.group_name) {
        records.add(b"gname", &member.group_name);
    }
    if let Some((major, minor)) = member.device_number {
        header.set_device_number(major, minor);
    }
}

/// Returns the value for a number field. A number above `max` is added as a record, and the field holds 0.
fn number_in_header(records: &mut Records, value: u64, max: u64, key: &[u8]) -> u64 {
    if value <= max {
        return value;
    }
    records.add_number(key, value);
    0
}

/// Appends a header that only describes the next one, with its data.
fn append_extension(out: &mut Buffer, mut header: UstarHeader, data: &[u8]) {
    header.set_extension_fields(data.len() as u64);
    out.extend(&header.finish());
    out.extend(data);
    out.extend_zeros(padding(data.len() as u64) as usize);
}

/// Stores a path that does not fit in its field: text in a record; other bytes, which bsdtar would misread in a record,
/// in a GNU header of their own, before all other headers of the member.
fn append_long_path(out: &mut Buffer, records: &mut Records, entry_type: EntryType, key: &[u8], path: &[u8]) {
    if is_text(path) {
        return records.add(key, path);
    }
    let mut header = UstarHeader::new(entry_type);
    header.set_name_start(b"././@LongLink");
    append_extension(out, header, &[path, b"\0"].concat());
}

fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

fn entry_type(kind: MemberKind) -> EntryType {
    match kind {
        MemberKind::File => EntryType::Regular,
        MemberKind::HardLink => EntryType::Link,
        MemberKind::Symlink => EntryType::Symlink,
        MemberKind::CharDevice => EntryType::Char,
        MemberKind::BlockDevice => EntryType::Block,
        MemberKind::Folder => EntryType::Directory,
        MemberKind::Fifo => EntryType::Fifo,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::acl;
    use crate::member::{FileTime, MemberPath, Xattrs};

    #[test]
    fn a_global_header_has_the_asked_length_with_letters_of_several_bytes_too() {
        for comment in ["", "a", "für Müller"] {
            let mut out = Buffer::new();
            append_global_of(&mut out, comment, 3 * BLOCK_BYTES);
            assert_eq!(out.len(), 3 * BLOCK_BYTES, "{comment}");
        }
    }

    /// First 8 bytes of the BLAKE3 digests of the headers of [`varied_members`] and of a global header.
    const DIGESTS: [&str; 21] = [
        "114393e565ca5216",
        "688a0850644df43d",
        "36a5a80b97122866",
        "68a4cceedcc9f479",
        "cf25f619f94d6364",
        "5a7a91345293eaea",
        "e0c6a77e9ab51a07",
        "462a3dabfce5add5",
        "3ca98ec91498caf4",
        "0f5d4053c9dd8c53",
        "57b7111aaf044737",
        "55e2943812931746",
        "1e5538aeb4e5d133",
        "e02d3b5992162cd6",
        "9d787898438b8234",
        "a9290ae3903056bb",
        "c0976cab46e5a16d",
        "3122959b31bf47d2",
        "badf17da01d15ca1",
        "996486c8889bfc1b",
        "1297f0664c91deb8",
    ];

    fn member(path: &[u8], kind: MemberKind) -> Member {
        Member {
            path: MemberPath::parse(path).unwrap(),
            kind,
            size: 0,
            mode: 0o644,
            uid: 1000,
            gid: 100,
            user_name: b"ann".as_slice().into(),
            group_name: b"users".as_slice().into(),
            modified: FileTime { seconds: 1_700_000_000, nanoseconds: 0 },
            link_target: None,
            device_number: None,
            xattrs: Xattrs::new(),
        }
    }

    /// Members of all kinds, with values at and beyond the limits of the fields.
    fn varied_members() -> Vec<(Member, Option<Vec<Span>>)> {
        use MemberKind::{BlockDevice, CharDevice, Fifo, File, Folder, HardLink, Symlink};
        let link = |path: &[u8], kind, target: &[u8]| Member { link_target: Some(target.into()), ..member(path, kind) };
        let mut xattrs = Xattrs::new();
        xattrs.set(b"user.binary=odd%name", b"\0\xff\n=");
        let acl = [&2u32.to_le_bytes()[..], &[1, 0, 6, 0], &u32::MAX.to_le_bytes(), &[2, 0, 5, 0], &7u32.to_le_bytes()];
        xattrs.set(acl::ACCESS, &acl.concat());
        xattrs.set(acl::DEFAULT, b"of no known form");
        let time = |seconds, nanoseconds| FileTime { seconds, nanoseconds };
        let spans = vec![Span { offset: 4096, length: 5 }, Span { offset: 9000, length: 1000 }];
        let plain = vec![
            Member { size: 5, ..member(b"root/file", File) },
            Member { size: 8 << 30, mode: 0o7777, ..member(b"root/8 GiB", File) },
            Member { size: (8 << 30) - 1, uid: 0o7_777_777, gid: 0o10_000_000, ..member(b"root/limits", File) },
            Member { mode: 0o755, modified: time(1, 500_000_000), ..member(b"root/folder", Folder) },
            Member { modified: time(-2, 999_999_999), ..member(&[b'd'; 120], Folder) },
            member(&[&[b'p'; 150][..], b"/", &[b'n'; 100]].concat(), File),
            member(&[&[b'p'; 156][..], b"/", &[b'n'; 100]].concat(), File),
            member(&[&[b'p'; 150][..], b"/caf\xe9", &[b'n'; 100]].concat(), File),
            link(b"root/link", Symlink, b"../target"),
            link(b"root/long link", Symlink, &[b't'; 101]),
            link(b"root/long link of bytes", Symlink, &[0xff; 101]),
            link(b"root/hard", HardLink, &[b'h'; 100]),
            member(b"root/fifo", Fifo),
            Member { device_number: Some((4, 64)), ..member(b"root/char", CharDevice) },
            Member { device_number: Some((4095, 1_048_575)), uid: u32::MAX, ..member(b"root/block", BlockDevice) },
            Member { user_name: vec![b'u'; 31].into(), group_name: vec![b'g'; 32].into(), ..member(b"names", File) },
            Member { modified: time(1 << 33, 1), xattrs, ..member(b"root/xattrs", File) },
        ];
        let sparse = [
            (Member { size: 20_000, ..member(b"root/sparse", File) }, Some(spans.clone())),
            (Member { size: 10_000, ..member(b"caf\xe9", File) }, Some(spans)),
            (Member { size: 1 << 40, ..member(&[b's'; 200], File) }, Some(Vec::new())),
        ];
        plain.into_iter().map(|member| (member, None)).chain(sparse).collect()
    }

    #[test]
    fn the_bytes_of_headers_never_change() {
        let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..16].to_owned();
        let mut found = Vec::new();
        for (member, spans) in varied_members() {
            let mut out = Buffer::new();
            append(&mut out, &member, spans.as_deref());
            found.push(digest(&out));
        }
        let mut out = Buffer::new();
        append_global(&mut out, "{\"schedule\":\"docs\"}");
        found.push(digest(&out));
        assert_eq!(found, DIGESTS);
    }
}

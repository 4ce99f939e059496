//! Finds out which members of a damaged chunk are damaged.

use super::block::BLOCK_BYTES;
use super::buffer::Buffer;
use super::codec::{Codec, Decoder};
use super::header;
use super::members::{Family, HeaderBlock};
use super::reader::ArchiveReader;
use crate::chunk::Chunk;
use crate::member::{CatalogMember, Member, MemberKind};

/// Returns the members of a damaged chunk that are damaged or cannot be checked. If its content can still be decoded,
/// each member is compared by header and content; else all members are returned.
pub fn differing<'m>(reader: &ArchiveReader, chunk: &Chunk, members: &'m [CatalogMember]) -> Vec<&'m Member> {
    let Some(content) = content_of(reader, chunk) else { return members.iter().map(|m| &m.member).collect() };
    let mut rest: &[u8] = &content;
    let mut found = Vec::new();
    for member in members {
        let entry = usize::try_from(member.entry_bytes).ok().and_then(|bytes| rest.split_off(..bytes));
        if !entry.is_some_and(|bytes| is_as_written(member, bytes)) {
            found.push(&member.member);
        }
    }
    // Something differs in the chunk, but the comparison did not find it, so any member may be damaged.
    if found.is_empty() { members.iter().map(|m| &m.member).collect() } else { found }
}

/// Returns whether the bytes of an entry are those that would be written for the member now. The catalog holds neither
/// extended attributes nor maps of sparse files: entries with them, and files that continue in further chunks, count
/// as different.
fn is_as_written(entry: &CatalogMember, bytes: &[u8]) -> bool {
    if entry.xattr_digest.is_some() {
        return false;
    }
    let mut expected = Buffer::new();
    header::append(&mut expected, &entry.member, None);
    let Some(content) = without_padding(bytes).and_then(|bytes| bytes.strip_prefix(&*expected)) else { return false };
    let size = if entry.member.kind == MemberKind::File { entry.member.size } else { 0 };
    let Some((data, padding)) = usize::try_from(size).ok().and_then(|size| content.split_at_checked(size)) else {
        return false;
    };
    let is_same = size == 0 || entry.content_digest.is_some_and(|digest| blake3::hash(data) == digest);
    is_same && padding.iter().all(|byte| *byte == 0)
}

/// Returns an entry without the padding of its chunk, which lies before the last member; `None` if it is damaged.
fn without_padding(bytes: &[u8]) -> Option<&[u8]> {
    let header = bytes.first_chunk().and_then(HeaderBlock::parse);
    let Some(header) = header.filter(|header| header.type_flag() == b'g') else { return Some(bytes) };
    let length = usize::try_from(header.size()?).ok()?.checked_add(BLOCK_BYTES)?;
    if !(header::MIN_GLOBAL_BYTES..=bytes.len()).contains(&length) {
        return None;
    }
    let mut padding = Buffer::new();
    header::append_global_of(&mut padding, "", length);
    bytes.strip_prefix(&*padding)
}

/// Returns the content of a chunk whatever its digest; `None` if it does not decode to the expected length.
fn content_of(reader: &ArchiveReader, chunk: &Chunk) -> Option<Buffer> {
    let mut stored = Buffer::new();
    reader.read_stored(chunk.offset, chunk.stored_length, &mut stored).ok()?;
    if reader.codec() == Codec::Plain {
        return Some(stored);
    }
    let mut content = Buffer::new();
    Decoder::new(reader.codec()).ok()?.decode(&stored, chunk.content_length, &mut content).ok()?;
    Some(content)
}

/// Returns the names in a damaged chunk that no catalog describes: those of all headers that are valid. It is unknown
/// which of these members are damaged.
pub fn names_in(reader: &ArchiveReader, chunk: &Chunk) -> Vec<Vec<u8>> {
    let Some(content) = content_of(reader, chunk) else { return Vec::new() };
    let (blocks, _) = content.as_chunks::<BLOCK_BYTES>();
    let headers = blocks.iter().filter_map(HeaderBlock::parse);
    // Data can look like a header of the V7 family, which has no magic number.
    let headers = headers.filter(|header| header.family() != Family::V7 && !matches!(header.type_flag(), b'x' | b'g'));
    headers.map(|header| header.name()).collect()
}

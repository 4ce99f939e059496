//! Which members a damaged chunk takes along.

use super::buffer::Buffer;
use super::codec::{Codec, Decoder};
use super::header::{self, BLOCK};
use super::reader::ArchiveReader;
use crate::chunk::Chunk;
use crate::member::{CatalogMember, Member, MemberKind};

/// Returns those of the members of a damaged chunk that cannot be shown to be whole: where its content can still be
/// decoded, each is compared by header and content; else all of them.
pub fn differing<'m>(reader: &ArchiveReader, chunk: &Chunk, members: &'m [CatalogMember]) -> Vec<&'m Member> {
    let Some(content) = content_of(reader, chunk) else { return members.iter().map(|m| &m.member).collect() };
    let ends = members.iter().skip(1).map(|next| next.offset).chain([content.len() as u64]);
    let is_whole = |member: &CatalogMember, end: u64| {
        usize::try_from(member.offset)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(from, to)| content.get(from..to))
            .is_some_and(|bytes| is_as_written(member, bytes))
    };
    let found: Vec<&Member> =
        members.iter().zip(ends).filter(|(member, end)| !is_whole(member, *end)).map(|(m, _)| &m.member).collect();
    // Something differs, and it could not be found: then it may be any of them.
    if found.is_empty() { members.iter().map(|m| &m.member).collect() } else { found }
}

/// Compares the bytes of an entry with what would be written for the member now. Extended attributes and maps of holes
/// are not in the catalog: entries with them, and files that go on in further chunks, count as not whole.
fn is_as_written(entry: &CatalogMember, bytes: &[u8]) -> bool {
    if entry.xattr_digest.is_some() {
        return false;
    }
    let mut expected = Buffer::new();
    header::append(&mut expected, &entry.member, None);
    let Some(content) = bytes.strip_prefix(&*expected) else { return false };
    let size = if entry.member.kind == MemberKind::File { entry.member.size } else { 0 };
    let Some((data, padding)) = usize::try_from(size).ok().and_then(|size| content.split_at_checked(size)) else {
        return false;
    };
    let is_same = size == 0 || entry.content_digest.is_some_and(|digest| blake3::hash(data) == digest);
    is_same && padding.iter().all(|byte| *byte == 0)
}

/// Returns the content of a chunk whatever its digest, if it decodes to the length it must have.
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

/// Returns the names in what can still be read of a damaged chunk, where no catalog knows them: those of every header
/// that is whole. Which of them is damaged cannot be told.
pub fn names_in(reader: &ArchiveReader, chunk: &Chunk) -> Vec<Vec<u8>> {
    let Some(content) = content_of(reader, chunk) else { return Vec::new() };
    let mut names = Vec::new();
    for block in content.chunks_exact(BLOCK) {
        let mut copy = tar::Header::new_old();
        copy.as_mut_bytes().copy_from_slice(block);
        let is_header = block[257..262] == *b"ustar" && checksum(block) == copy.cksum().ok();
        let is_member = !matches!(block[156], b'x' | b'g');
        if is_header && is_member {
            names.push(copy.path_bytes().into_owned());
        }
    }
    names
}

fn checksum(block: &[u8]) -> Option<u32> {
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let field: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
    Some(sum - field + 8 * u32::from(b' '))
}

//! The trailer of an archive file, by which it can be verified without any database (I12): which run made it, and the
//! lengths and the digest of every chunk.
//!
//! It consists of the table of chunks (40 bytes for each: stored length and content length as `u32`, BLAKE3 of the
//! stored bytes), the facts about the run as JSON, and a footer of 64 bytes: number of chunks `u64`, bytes of JSON
//! `u32`, version `u32`, BLAKE3 over everything before it (table, facts, these 16 bytes), 8 zero bytes, a magic number.
//! All numbers are little-endian.
//!
//! In a plain archive it follows the end marks, where readers stop, and is padded with zeros before it to end with a
//! whole block. In gzip it is stored in the extra fields of empty members, the footer in the last one. In zstd it is a
//! skippable frame before the standard seek table, which lists it as a frame without content.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::block::{BLOCK_BYTES, padding};
use super::chunk_table::{ChunkTable, ENTRY_BYTES, PART_BYTES, encode_entry};
use super::codec::Codec;
use super::padding::{MEMBER_BYTES, MEMBER_HEAD_BYTES, empty_member, frame_head};
use super::stored::StoredBytes;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};
use crate::member::Extent;

/// Largest size of the facts in bytes. More could fill memory.
const MAX_FACTS_BYTES: u64 = 1 << 20;
const FOOTER_BYTES: usize = 64;
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"bkp-mgr\n";
const FRAME_MAGIC: u32 = 0x184D_2A5B;
const SEEK_TABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEK_TABLE_END: u32 = 0x8F92_EAB1;
const SEEK_FOOTER_BYTES: u64 = 9;

/// The facts that a trailer records about the run that made the archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Number of the run.
    pub run: i64,
    /// `succeeded` or `incomplete`.
    pub outcome: String,
    /// Members in the archive.
    pub members: u64,
    /// Regular files among them, including further names of one file.
    pub files: u64,
    /// Folders among them.
    pub folders: u64,
    /// Bytes of content of the files, holes included.
    pub content_bytes: u64,
    /// Number of problems.
    pub problems: u64,
    /// Number of problems that mean missing or doubtful data.
    pub losses: u64,
}

impl Facts {
    /// Returns how much the archive holds.
    pub fn extent(&self) -> Extent {
        Extent { members: self.members, files: self.files, content_bytes: self.content_bytes }
    }
}

/// Writes a trailer by calling `put` with its bytes in order. `content_end` is the offset in the file at which the
/// trailer begins.
pub(super) fn write(
    codec: Codec,
    content_end: u64,
    table: &ChunkTable,
    facts: &Facts,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let facts = serde_json::to_vec(facts).map_err(|e| Error::failed("cannot write the trailer").because(e))?;
    let footer = footer(table, &facts)?;
    let body_bytes = table.size_bytes() + (facts.len() + FOOTER_BYTES) as u64;
    match codec {
        Codec::Plain => {
            let end = content_end + body_bytes;
            put(&[0; BLOCK_BYTES][..padding(end) as usize])?;
            table.for_each_part(put)?;
            put(&facts)?;
            put(&footer)
        }
        Codec::Gzip => {
            let mut rest = Vec::new();
            table.for_each_part(&mut |part| {
                if part.len() == PART_BYTES {
                    return put(&empty_member(part));
                }
                rest.extend_from_slice(part);
                Ok(())
            })?;
            rest.extend_from_slice(&facts);
            for part in rest.chunks(PART_BYTES) {
                put(&empty_member(part))?;
            }
            put(&empty_member(&footer))
        }
        Codec::Zstd => {
            let length = u32::try_from(body_bytes).map_err(|_| too_many_chunks())?;
            put(&frame_head(FRAME_MAGIC, length))?;
            table.for_each_part(put)?;
            put(&facts)?;
            put(&footer)?;
            write_seek_table(table, 8 + length, put)
        }
    }
}

fn footer(table: &ChunkTable, facts: &[u8]) -> Result<[u8; FOOTER_BYTES]> {
    let mut footer = [0; FOOTER_BYTES];
    footer[..8].copy_from_slice(&table.count().to_le_bytes());
    footer[8..12].copy_from_slice(&(facts.len() as u32).to_le_bytes());
    footer[12..16].copy_from_slice(&VERSION.to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    table.for_each_part(&mut |part| {
        hasher.update(part);
        Ok(())
    })?;
    let digest = hasher.update(facts).update(&footer[..16]).finalize();
    footer[16..48].copy_from_slice(digest.as_bytes());
    footer[56..].copy_from_slice(&MAGIC);
    Ok(footer)
}

/// Returns a size that no trailer of so many chunks exceeds, unless its facts are very long.
pub(super) fn max_bytes(chunks: u64) -> u64 {
    // The table, a seek table, and around each part of them the frame of a member.
    chunks * (ENTRY_BYTES as u64 + 9) + (64 << 10)
}

fn too_many_chunks() -> Error {
    Error::failed("the archive has more chunks than a zstd seek table holds").hint("use gzip or no compression")
}

fn write_seek_table(table: &ChunkTable, trailer_frame: u32, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let frames = u32::try_from(table.count() + 1).map_err(|_| too_many_chunks())?;
    let length = u32::try_from(u64::from(frames) * 8 + SEEK_FOOTER_BYTES).map_err(|_| too_many_chunks())?;
    put(&frame_head(SEEK_TABLE_MAGIC, length))?;
    table.for_each_part(&mut |part| {
        let lengths: Vec<u8> = part.chunks(ENTRY_BYTES).flat_map(|entry| entry[..8].iter().copied()).collect();
        put(&lengths)
    })?;
    put(&trailer_frame.to_le_bytes())?;
    put(&0u32.to_le_bytes())?;
    put(&frames.to_le_bytes())?;
    put(&[0])?;
    put(&SEEK_TABLE_END.to_le_bytes())
}

/// The footer of a trailer, not checked yet.
struct Footer {
    bytes: [u8; FOOTER_BYTES],
    /// End of the table and facts in the file.
    body_end: u64,
}

impl Footer {
    /// Reads the footer of an archive. Returns `None` if it does not end with one.
    fn read(stored: &StoredBytes, codec: Codec) -> Result<Option<Footer>> {
        let Some((offset, body_end)) = find_footer(stored, codec)? else { return Ok(None) };
        let mut bytes = [0; FOOTER_BYTES];
        stored.read_exact_at(&mut bytes, offset)?;
        Ok((bytes[56..] == MAGIC).then_some(Footer { bytes, body_end }))
    }

    fn chunks(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 0)) | u64::from(u32_at(&self.bytes, 4)) << 32
    }

    fn facts_bytes(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 8))
    }

    fn version(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 12))
    }

    /// Returns where table and facts are stored; `None` if their sizes cannot be true.
    fn body_place(&self, codec: Codec, size: u64) -> Option<BodyPlace> {
        if self.facts_bytes() > MAX_FACTS_BYTES {
            return None;
        }
        let table_bytes = self.chunks().checked_mul(ENTRY_BYTES as u64).filter(|&bytes| bytes < size)?;
        let body_bytes = table_bytes + self.facts_bytes();
        let in_members = codec == Codec::Gzip;
        let around = if in_members { body_bytes.div_ceil(PART_BYTES as u64) * MEMBER_BYTES as u64 } else { 0 };
        Some(BodyPlace { start: self.body_end.checked_sub(body_bytes + around)?, in_members })
    }
}

/// The trailer of an archive file, read and checked.
#[derive(Clone, Debug)]
pub struct Trailer {
    stored: Arc<StoredBytes>,
    facts: Facts,
    chunks: u64,
    content_end: u64,
    place: BodyPlace,
}

/// Where table and facts are stored in the file: contiguous, or in the extra fields of gzip members.
#[derive(Clone, Copy, Debug)]
struct BodyPlace {
    start: u64,
    in_members: bool,
}

impl BodyPlace {
    fn read(&self, stored: &StoredBytes, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        if !self.in_members {
            return stored.read_exact_at(buffer, self.start + offset);
        }
        while !buffer.is_empty() {
            let (part, within) = (offset / PART_BYTES as u64, offset % PART_BYTES as u64);
            let at = self.start + part * (PART_BYTES + MEMBER_BYTES) as u64 + MEMBER_HEAD_BYTES as u64 + within;
            let now = buffer.len().min(PART_BYTES - within as usize);
            let (head, rest) = buffer.split_at_mut(now);
            stored.read_exact_at(head, at)?;
            offset += now as u64;
            buffer = rest;
        }
        Ok(())
    }
}

impl Trailer {
    /// Finds the trailer of an archive file and checks it against its own digest. Returns `None` if the file does not
    /// end with one: another program made it, or it was cut off. Errors: a trailer that is damaged.
    pub(super) fn read(stored: &Arc<StoredBytes>, codec: Codec) -> Result<Option<Self>> {
        let Some(footer) = Footer::read(stored, codec)? else { return Ok(None) };
        let place = footer.body_place(codec, stored.size()).ok_or_else(|| damaged(stored, footer.body_end))?;
        let (facts, chunks) = (Facts::default(), footer.chunks());
        let mut trailer = Trailer { stored: stored.clone(), facts, chunks, content_end: 0, place };
        let mut hasher = blake3::Hasher::new();
        for chunk in trailer.entries() {
            let chunk = chunk?;
            hasher.update(&encode_entry(&chunk)?);
            trailer.content_end = chunk.end();
        }
        let mut facts = vec![0; footer.facts_bytes() as usize];
        place.read(&trailer.stored, trailer.chunks * ENTRY_BYTES as u64, &mut facts)?;
        if hasher.update(&facts).update(&footer.bytes[..16]).finalize() != footer.bytes[16..48] {
            return Err(damaged(stored, place.start));
        }
        if footer.version() != u64::from(VERSION) || trailer.content_end > place.start {
            let path = stored.path().display();
            return Err(Error::failed(format!("{path} was made by a newer version of this program"))
                .hint("upgrade, or read it with tar"));
        }
        trailer.facts = serde_json::from_slice(&facts).map_err(|e| damaged(stored, place.start).because(e))?;
        Ok(Some(trailer))
    }

    /// Returns the chunks in order. They are read from the archive when they are needed.
    pub fn entries(&self) -> Entries {
        let Trailer { stored, place, chunks, .. } = self;
        Entries { stored: stored.clone(), place: *place, chunks: *chunks, sequence: 0, offset: 0, page: Vec::new() }
    }

    /// Returns the facts about the run that made the archive.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the number of chunks.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Returns the offset in the file at which the last chunk ends and the trailer begins.
    pub fn content_end(&self) -> u64 {
        self.content_end
    }
}

/// Returns the error of a trailer that is not as it was written. It begins at `start`.
fn damaged(stored: &StoredBytes, start: u64) -> Error {
    let place = stored.place_of(start, stored.size() - start.min(stored.size()));
    Error::new(ErrorKind::Damage, format!("the trailer of {} is damaged{place}", stored.path().display()))
        .hint("the members may still be whole: try tar, and compare with another copy")
}

/// Returns the error of an archive that has a trailer, of which the footer is not as it was written.
pub(super) fn without_footer(stored: &StoredBytes, codec: Codec) -> Error {
    let footer = find_footer(stored, codec).ok().flatten();
    damaged(stored, footer.map_or(stored.size().saturating_sub(SEEK_FOOTER_BYTES), |(start, _)| start))
}

/// The chunks of an archive file in order, as its trailer lists them.
#[derive(Debug)]
pub struct Entries {
    stored: Arc<StoredBytes>,
    place: BodyPlace,
    chunks: u64,
    sequence: u64,
    offset: u64,
    page: Vec<u8>,
}

impl Entries {
    const PAGE_ENTRIES: u64 = 1024;

    fn read_page(&mut self) -> Result<()> {
        let entries = (self.chunks - self.sequence).min(Self::PAGE_ENTRIES);
        self.page.resize(entries as usize * ENTRY_BYTES, 0);
        self.place.read(&self.stored, self.sequence * ENTRY_BYTES as u64, &mut self.page)
    }
}

impl Iterator for Entries {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.sequence == self.chunks {
            return None;
        }
        if self.sequence.is_multiple_of(Self::PAGE_ENTRIES)
            && let Err(e) = self.read_page()
        {
            self.sequence = self.chunks;
            return Some(Err(e));
        }
        let at = (self.sequence % Self::PAGE_ENTRIES) as usize * ENTRY_BYTES;
        let mut stored_digest = [0; 32];
        stored_digest.copy_from_slice(&self.page[at + 8..at + ENTRY_BYTES]);
        let chunk = Chunk {
            sequence: self.sequence,
            offset: self.offset,
            stored_length: u64::from(u32_at(&self.page, at)),
            content_length: u64::from(u32_at(&self.page, at + 4)),
            stored_digest,
            content_digest: None,
        };
        self.sequence += 1;
        self.offset += chunk.stored_length;
        Some(Ok(chunk))
    }
}

/// Returns how an archive is stored, by where its footer lies; `None` if it has none that can be read.
pub(super) fn codec_by_footer(stored: &StoredBytes) -> Option<Codec> {
    let has_footer = |codec: &Codec| Footer::read(stored, *codec).is_ok_and(|footer| footer.is_some());
    [Codec::Plain, Codec::Gzip, Codec::Zstd].into_iter().find(has_footer)
}

/// Returns the offset of the footer in an archive, and the end of what comes before it, if it has a trailer at all.
fn find_footer(stored: &StoredBytes, codec: Codec) -> Result<Option<(u64, u64)>> {
    let size = stored.size();
    let footer_bytes = FOOTER_BYTES as u64;
    Ok(match codec {
        Codec::Plain => size.checked_sub(footer_bytes).map(|at| (at, at)),
        Codec::Gzip => {
            let member = size.checked_sub((FOOTER_BYTES + MEMBER_BYTES) as u64);
            member.map(|at| (at + MEMBER_HEAD_BYTES as u64, at))
        }
        Codec::Zstd => {
            let Some(seek_footer_at) = size.checked_sub(SEEK_FOOTER_BYTES) else { return Ok(None) };
            let mut seek_footer = [0; SEEK_FOOTER_BYTES as usize];
            stored.read_exact_at(&mut seek_footer, seek_footer_at)?;
            if u32_at(&seek_footer, 5) != SEEK_TABLE_END {
                return Ok(None);
            }
            let table = 8 + u64::from(u32_at(&seek_footer, 0)) * 8 + SEEK_FOOTER_BYTES;
            size.checked_sub(table + footer_bytes).map(|at| (at, at))
        }
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;

    fn read(file: &File, codec: Codec) -> Result<Option<Trailer>> {
        let size = file.metadata().unwrap().len();
        Trailer::read(&Arc::new(StoredBytes::of_file(Path::new("x"), file.try_clone().unwrap(), size)), codec)
    }

    fn archive(codec: Codec, chunks: u64) -> (File, Vec<Chunk>, Facts) {
        let mut file = tempfile::tempfile().unwrap();
        let (mut table, mut expected, mut offset) = (ChunkTable::new(Path::new("x")), Vec::new(), 0);
        for sequence in 0..chunks {
            let stored_digest = *blake3::hash(&sequence.to_le_bytes()).as_bytes();
            let (stored_length, content_length) = (sequence % 7, sequence % 11);
            file.write_all(&vec![9; stored_length as usize]).unwrap();
            let content_digest = None;
            let chunk = Chunk { sequence, offset, stored_length, stored_digest, content_length, content_digest };
            table.push(&encode_entry(&chunk).unwrap()).unwrap();
            expected.push(chunk);
            offset += stored_length;
        }
        let facts = Facts { run: 17, outcome: "incomplete".to_owned(), members: 3, ..Facts::default() };
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", "trailer"));
        write(codec, offset, &table, &facts, &mut put).unwrap();
        (file, expected, facts)
    }

    #[test]
    fn a_trailer_is_read_back_as_written_in_every_format() {
        for codec in [Codec::Plain, Codec::Gzip, Codec::Zstd] {
            for chunks in [0, 1, 1023, 1024, 1025, 1599, 1600, 1601, 3200, 5000] {
                let (file, expected, facts) = archive(codec, chunks);
                let trailer = read(&file, codec).unwrap().unwrap();
                assert_eq!(trailer.facts(), &facts);
                assert_eq!(trailer.content_end(), expected.last().map_or(0, Chunk::end));
                let read: Vec<_> = trailer.entries().map(|chunk| chunk.unwrap()).collect();
                assert_eq!(read, expected, "{codec:?} {chunks}");
            }
        }
    }

    #[test]
    fn any_flipped_bit_and_any_missing_end_is_detected() {
        for codec in [Codec::Plain, Codec::Gzip, Codec::Zstd] {
            let (file, expected, _) = archive(codec, 5);
            let size = file.metadata().unwrap().len();
            let whole = read(&file, codec).unwrap().unwrap();
            let body = whole.place.start + if whole.place.in_members { MEMBER_HEAD_BYTES as u64 } else { 0 };
            for at in body..body + 5 * ENTRY_BYTES as u64 {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 4], at).unwrap();
                let read = read(&file, codec);
                assert!(read.is_err_and(|e| e.kind() == ErrorKind::Damage), "{codec:?} {at}");
                file.write_all_at(&byte, at).unwrap();
            }
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            for cut in 0..size {
                file.set_len(cut).unwrap();
                let read = read(&file, codec);
                assert!(!matches!(read, Ok(Some(_))), "{codec:?} cut to {cut} of {size}, {} chunks", expected.len());
                file.set_len(0).unwrap();
                file.write_all_at(&bytes, 0).unwrap();
            }
        }
    }
}

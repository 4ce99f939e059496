//! Rebuilds the catalog from an archive file, chunk by chunk and member by member, verified by the trailer (I12).

use std::sync::Arc;

use super::buffer::Buffer;
use super::codec::{Codec, Decoder};
use super::content::{Content, Plan, PlannedChunk};
use super::members::{Entry, Event, Members, global_comment};
use super::reader::ArchiveReader;
use super::trailer::Trailer;
use crate::chunk::{CatalogChunk, Chunk, ChunkRecord, MemberRecord};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::member::{CatalogMember, FileTime, MemberKind, Span};

/// Largest sparse file whose content is hashed, in bytes: holes cost time although nothing is stored. The digest of a
/// larger one is left out.
const MAX_HASHED_SPARSE_BYTES: u64 = 1 << 32;

/// Reads all chunks of an archive file with a valid trailer and calls `put` with the records of each, in order.
///
/// Errors: `Damage` if a chunk does not agree with the trailer or holds members that cannot be read; any error of
/// `put`.
pub fn read_records(
    archive: Arc<ArchiveReader>,
    trailer: &Trailer,
    read_started: Timestamp,
    threads: usize,
    put: &mut dyn FnMut(CatalogChunk) -> Result<()>,
) -> Result<()> {
    let mut found = MembersByChunk::new(&archive, trailer, threads)?;
    let mut reader = ChunkReader::new(&archive)?;
    let mut content = Buffer::new();
    for chunk in trailer.entries() {
        let chunk = chunk?;
        let content_digest = if archive.codec() == Codec::Plain {
            // The same as the stored digest, and the bytes are compared with it when the members are read.
            chunk.stored_digest
        } else {
            reader.read(&chunk, &mut content)?;
            *blake3::hash(&content).as_bytes()
        };
        let chunk = Chunk { content_digest: Some(content_digest), ..chunk };
        let members = found.in_chunk(&chunk)?.into_iter().map(MemberRecord::New).collect();
        put(CatalogChunk { chunk, place: None, read_started, record: ChunkRecord::New { members } })?;
    }
    Ok(())
}

/// Returns the comment of the pax global header at the start of an archive file, if it has one.
pub fn read_comment(archive: &ArchiveReader, trailer: &Trailer) -> Result<Option<Vec<u8>>> {
    let Some(first) = trailer.entries().next().transpose()? else { return Ok(None) };
    let mut text = Buffer::new();
    ChunkReader::new(archive)?.read(&first, &mut text)?;
    Ok(global_comment(&text))
}

/// Reads and decodes single chunks of an archive file.
pub struct ChunkReader<'a> {
    archive: &'a ArchiveReader,
    decoder: Decoder,
    stored: Buffer,
}

impl<'a> ChunkReader<'a> {
    /// Returns a reader of the chunks of an archive file.
    pub fn new(archive: &'a ArchiveReader) -> Result<ChunkReader<'a>> {
        Ok(ChunkReader { archive, decoder: Decoder::new(archive.codec())?, stored: Buffer::new() })
    }

    /// Replaces `content` by the bytes of tar in a chunk.
    ///
    /// Errors: `Damage` if the stored bytes are not those that were written, or do not decode.
    pub fn read(&mut self, chunk: &Chunk, content: &mut Buffer) -> Result<()> {
        let ChunkReader { archive, decoder, stored } = self;
        content.clear();
        stored.clear();
        archive.read_stored(chunk.offset, chunk.stored_length, stored)?;
        if blake3::hash(stored) != chunk.stored_digest {
            let message = format!("{} is damaged in chunk {}", archive.path().display(), chunk.sequence);
            return Err(Error::new(ErrorKind::Damage, message).because(archive.mismatch(chunk)));
        }
        decoder.decode(stored, chunk.content_length, content)
    }
}

/// A member, the chunk in which its entry begins, and its offset there.
struct FoundMember {
    sequence: u64,
    offset: u64,
    member: CatalogMember,
}

/// The members of an archive, grouped by chunk.
struct MembersByChunk {
    members: Members<'static>,
    /// A member that was read already and lies in a later chunk.
    next_chunk: Option<FoundMember>,
    buffer: Vec<u8>,
    name: String,
}

impl MembersByChunk {
    fn new(archive: &Arc<ArchiveReader>, trailer: &Trailer, threads: usize) -> Result<Self> {
        let chunks = trailer.entries();
        let plan: Plan = Box::new(chunks.map(|chunk| Ok(PlannedChunk { chunk: chunk?, is_jump: false })));
        let members = Members::new(Content::chunks(Arc::clone(archive), plan, threads));
        Ok(MembersByChunk {
            members,
            next_chunk: None,
            buffer: vec![0; 1 << 17],
            name: archive.path().display().to_string(),
        })
    }

    fn in_chunk(&mut self, chunk: &Chunk) -> Result<Vec<CatalogMember>> {
        let mut found: Vec<CatalogMember> = Vec::new();
        let mut start = 0;
        loop {
            let next = match self.next_chunk.take() {
                Some(next) => Some(next),
                None => self.next()?,
            };
            let next_here = next.as_ref().filter(|next| next.sequence == chunk.sequence).map(|next| next.offset);
            let end = next_here.unwrap_or(chunk.content_length);
            match found.last_mut() {
                Some(last) => last.entry_bytes = end.saturating_sub(start),
                None if next_here.is_some_and(|offset| offset > 0) => {
                    let what = format!("{}: chunk {} does not begin with a member", self.name, chunk.sequence);
                    return Err(Error::new(ErrorKind::Damage, what));
                }
                None => {}
            }
            match next {
                Some(next) if next_here.is_some() => found.push(next.member),
                later => {
                    self.next_chunk = later;
                    return Ok(found);
                }
            }
            start = end;
        }
    }

    fn next(&mut self) -> Result<Option<FoundMember>> {
        let damage = |what: String| Error::new(ErrorKind::Damage, format!("{}: {what}", self.name));
        let entry = match self.members.next()? {
            None => return Ok(None),
            Some(Event::Member(entry)) => entry,
            Some(Event::Refused { name, reason }) => {
                return Err(damage(format!("the member {} is refused: {reason}", String::from_utf8_lossy(&name))));
            }
            Some(Event::Damaged { reason, .. } | Event::Undecodable { reason }) => return Err(damage(reason)),
        };
        // The global header fills chunk 0, and the reader takes it for a header of the first member.
        let (sequence, offset) = if entry.sequence == 0 { (1, 0) } else { (entry.sequence, entry.offset) };
        let content_digest = if entry.member.kind == MemberKind::File { self.digest(&entry)? } else { None };
        let member = CatalogMember {
            xattr_digest: entry.member.xattrs.digest(),
            member: entry.member,
            // Known only when the next member has been read.
            entry_bytes: 0,
            // The source file is unknown.
            device: 0,
            inode: 0,
            changed: FileTime::default(),
            content_digest,
            is_reusable: false,
        };
        Ok(Some(FoundMember { sequence, offset, member }))
    }

    /// Returns the digest of the logical content: the stored data, and zeros for the holes.
    fn digest(&mut self, entry: &Entry) -> Result<Option<[u8; 32]>> {
        let size = entry.member.size;
        let mut hasher = blake3::Hasher::new();
        let whole = [Span { offset: 0, length: size }];
        let spans = entry.spans.as_deref().unwrap_or(&whole);
        if entry.spans.is_some() && size > MAX_HASHED_SPARSE_BYTES {
            return Ok(None);
        }
        let mut at = 0;
        for span in spans {
            hash_zeros(&mut hasher, span.offset.saturating_sub(at));
            let mut left = span.length;
            while left > 0 {
                let room = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
                let damage = |what: String| Error::new(ErrorKind::Damage, format!("{}: {what}", self.name));
                match self.members.read(&mut self.buffer[..room]).map_err(damage)? {
                    0 => return Err(Error::new(ErrorKind::Damage, format!("{}: a file ends early", self.name))),
                    count => {
                        hasher.update(&self.buffer[..count]);
                        left -= count as u64;
                    }
                }
            }
            at = span.end();
        }
        hash_zeros(&mut hasher, size.saturating_sub(at));
        Ok(Some(*hasher.finalize().as_bytes()))
    }
}

fn hash_zeros(hasher: &mut blake3::Hasher, mut count: u64) {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..now as usize]);
        count -= now;
    }
}

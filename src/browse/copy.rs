//! Copies the bytes of an archive, each compared with what was written.

use std::io::Write;

use super::OpenArchive;
use crate::archive::buffer::Buffer;
use crate::archive::cksum::{Cksum, Crc};
use crate::archive::reader::ArchiveReader;
use crate::archive::trailer::Trailer;
use crate::archive::writer::ArchiveDigest;
use crate::cancel::CancelToken;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the trailer that are copied at a time.
const PAGE_BYTES: u64 = 1 << 20;

/// What was copied.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// The archive digest.
    pub digest: [u8; 32],
    /// What `cksum` prints for the bytes, and their number.
    pub cksum: Cksum,
}

/// Writes the bytes that the archive has in the whole layout to `out`, and calls `on_progress` with the number of bytes
/// so far. Each chunk is compared with its digest in the trailer, the whole with the catalog and the index.
///
/// Errors: [`ErrorKind::Damage`] if a byte is not what was written, after which what `out` received is of no use;
/// `Failed` for an archive of another program, which has nothing to compare with; `Interrupted` after `cancel`; the
/// errors of `out` as `Error::io` makes them for `name`.
pub fn copy_archive(
    archive: &OpenArchive,
    out: &mut dyn Write,
    name: &std::path::Path,
    cancel: &CancelToken,
    on_progress: &mut dyn FnMut(u64),
) -> Result<Copied> {
    let reader = archive.reader();
    let Some(trailer) = reader.trailer()? else {
        let message = format!("{} has no trailer of this program to check a copy with", reader.path().display());
        return Err(Error::failed(message).hint("another program made it, or it was cut off: copy the file with `cp`"));
    };
    let mut copy = Copy { reader, crc: Crc::default(), buffer: Buffer::new() };
    let mut put = |bytes: &[u8], done: u64| {
        out.write_all(bytes).map_err(Error::io("write", name))?;
        on_progress(done);
        cancel.check("the export was cancelled")
    };
    let digest = copy.copy(&trailer, &mut put)?;
    let cksum = copy.crc.cksum();
    if archive.digest().is_some_and(|expected| expected != digest) {
        let path = reader.path().display();
        return Err(Error::new(ErrorKind::Damage, format!("{path} is not the archive that the catalog describes")));
    }
    reader.check_cksum(cksum)?;
    Ok(Copied { digest, cksum })
}

/// Receives bytes, and how many there are with them.
type Put<'a> = dyn FnMut(&[u8], u64) -> Result<()> + 'a;

struct Copy<'a> {
    reader: &'a ArchiveReader,
    crc: Crc,
    buffer: Buffer,
}

impl Copy<'_> {
    /// Copies the chunks, then the trailer. Returns the archive digest.
    fn copy(&mut self, trailer: &Trailer, put: &mut Put<'_>) -> Result<[u8; 32]> {
        let mut digest = ArchiveDigest::new();
        for chunk in trailer.entries() {
            let chunk = chunk?;
            self.read(chunk.offset, chunk.stored_length)?;
            self.check(&chunk)?;
            digest.add(&chunk.stored_digest);
            put(&self.buffer, chunk.end())?;
        }
        let mut hasher = blake3::Hasher::new();
        let (mut offset, size) = (trailer.content_end(), self.reader.size());
        while offset < size {
            let length = (size - offset).min(PAGE_BYTES);
            self.read(offset, length)?;
            hasher.update(&self.buffer);
            offset += length;
            put(&self.buffer, offset)?;
        }
        Ok(digest.finish(hasher.finalize().as_bytes()))
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<()> {
        self.buffer.clear();
        self.reader.read_stored(offset, length, &mut self.buffer)?;
        self.crc.append(Crc::of(&self.buffer));
        Ok(())
    }

    fn check(&self, chunk: &Chunk) -> Result<()> {
        if blake3::hash(&self.buffer) == chunk.stored_digest {
            return Ok(());
        }
        let message = format!("{} is damaged in chunk {}", self.reader.path().display(), chunk.sequence);
        Err(Error::new(ErrorKind::Damage, message)
            .because(self.reader.mismatch(chunk))
            .hint("restore what is whole with `backup-manager restore`, or export another archive"))
    }
}

//! Archives that another program made, taken in as they are.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::codec::Codec;
use super::reader::ArchiveReader;
use crate::error::{Error, ErrorKind, Result};
use crate::member::Extent;

/// Reads any tar file, plain, gzip or zstd, from its first header to its end marks, and counts what it holds.
///
/// Errors: [`ErrorKind::Damage`] if it is no tar file, is damaged where tar can tell, or ends without end marks.
pub fn check_plain_tar(path: &Path) -> Result<Extent> {
    let codec = ArchiveReader::open(path)?.codec();
    let file = BufReader::with_capacity(1 << 18, File::open(path).map_err(Error::io("open", path))?);
    let stream: Box<dyn Read> = match codec {
        Codec::Plain => Box::new(file),
        Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Codec::Zstd => Box::new(zstd::Decoder::with_buffer(file).map_err(Error::io("read", path))?),
    };
    let damaged = |e: io::Error| {
        Error::new(ErrorKind::Damage, format!("{} is not a whole tar file", path.display()))
            .because(e)
            .hint("what can still be read of it, `backup-manager restore` gives back")
    };
    let mut archive = tar::Archive::new(EndWatcher { stream, has_ended: false });
    let facts = count(&mut archive).map_err(damaged)?;
    let mut stream = archive.into_inner();
    // The crate takes the end of the file for the end of the archive too.
    if stream.has_ended {
        return Err(damaged(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends without end marks")));
    }
    // What stands behind the end marks is no tar, but the codec may have a checksum there.
    io::copy(&mut stream, &mut io::sink()).map_err(damaged)?;
    Ok(facts)
}

fn count(archive: &mut tar::Archive<EndWatcher>) -> io::Result<Extent> {
    let mut facts = Extent::default();
    for entry in archive.entries()? {
        let entry = entry?;
        // A global header stands for no member, though the crate hands it out as one.
        if !entry.header().entry_type().is_pax_global_extensions() {
            facts.members += 1;
            facts.files += u64::from(entry.header().entry_type().is_file());
            facts.content_bytes += entry.size();
        }
    }
    Ok(facts)
}

/// Notices when its stream has come to its end.
struct EndWatcher {
    stream: Box<dyn Read>,
    has_ended: bool,
}

impl Read for EndWatcher {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.has_ended |= length == 0 && !buffer.is_empty();
        Ok(length)
    }
}

//! Archives that another program made: whether they can be read to their end.

use std::io::{self, BufReader, Read};
use std::path::Path;

use super::codec::Codec;
use super::reader::ArchiveReader;
use crate::error::{Error, ErrorKind, Result};

/// What a tar file of another program holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TarFacts {
    /// Members in it.
    pub members: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Reads a tar file, plain or packed, to its end.
///
/// Errors: `Damage` where it cannot be read so far.
pub fn check_plain_tar(path: &Path) -> Result<TarFacts> {
    let damage = |e: io::Error| {
        Error::new(ErrorKind::Damage, format!("{} cannot be read to its end", path.display())).because(e)
    };
    let archive = ArchiveReader::open(path)?;
    let file = BufReader::new(archive.file());
    let reader: Box<dyn Read> = match archive.codec() {
        Codec::Plain => Box::new(file),
        Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Codec::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(damage)?),
    };
    let mut members = tar::Archive::new(reader);
    let mut facts = TarFacts::default();
    for entry in members.entries().map_err(damage)? {
        let mut entry = entry.map_err(damage)?;
        facts.members += 1;
        facts.bytes += io::copy(&mut entry, &mut io::sink()).map_err(damage)?;
    }
    Ok(facts)
}

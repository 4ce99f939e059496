//! Encodes and decodes chunks: as a gzip member, a zstd frame with checksum, or plain bytes.

use libdeflater::{CompressionLvl, Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, DParameter};

use super::buffer::Buffer;
use super::padding::Padding;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::Compression;

/// The largest chunk in bytes, stored or decoded. This program makes no larger one, so a larger length is damage.
const MAX_CHUNK_BYTES: u64 = 64 << 20;

/// Fails for a length that no chunk has, before memory is allocated for it.
pub(super) fn check_length(length: u64) -> Result<()> {
    match length {
        0..=MAX_CHUNK_BYTES => Ok(()),
        _ => Err(Error::new(ErrorKind::Damage, format!("{length} bytes are more than any chunk has"))),
    }
}

/// How the chunks of an archive file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As plain bytes.
    Plain,
    /// Each as a gzip member.
    Gzip,
    /// Each as a zstd frame.
    Zstd,
}

impl Codec {
    /// Returns the codec by the first bytes of a file. Anything but gzip and zstd counts as plain.
    pub fn of_first_bytes(bytes: &[u8]) -> Codec {
        match bytes {
            [0x1f, 0x8b, 8, ..] => Codec::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Codec::Zstd,
            _ => Codec::Plain,
        }
    }

    /// Returns the word for it in the catalog.
    pub fn as_str(self) -> &'static str {
        match self {
            Codec::Plain => "none",
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
        }
    }

    /// Returns the codec of archives with this extension.
    pub fn of_extension(extension: &str) -> Codec {
        match extension {
            "tar.gz" => Codec::Gzip,
            "tar.zst" => Codec::Zstd,
            _ => Codec::Plain,
        }
    }

    /// Returns whether a frame of this codec begins with these bytes: of zstd also one that decoders skip.
    pub(super) fn begins_frame(self, bytes: &[u8]) -> bool {
        Codec::of_first_bytes(bytes) == self || self == Codec::Zstd && is_skippable(bytes)
    }
}

/// Returns whether a zstd frame that decoders skip begins with these bytes.
pub(super) fn is_skippable(bytes: &[u8]) -> bool {
    matches!(bytes, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

impl From<Compression> for Codec {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Codec::Plain,
            Compression::Gzip(_) => Codec::Gzip,
            Compression::Zstd(_) => Codec::Zstd,
        }
    }
}

/// An encoded chunk that is not in an archive file yet.
#[derive(Debug)]
pub struct EncodedChunk {
    /// The bytes to be written.
    pub stored: Buffer,
    /// Its lengths and digests; `sequence` and `offset` are 0 until it is written.
    pub chunk: Chunk,
}

impl EncodedChunk {
    fn new(stored: Buffer, stored_digest: [u8; 32], content_length: u64, content_digest: [u8; 32]) -> Self {
        let stored_length = stored.len() as u64;
        let content_digest = Some(content_digest);
        let chunk = Chunk { sequence: 0, offset: 0, stored_length, stored_digest, content_length, content_digest };
        EncodedChunk { stored, chunk }
    }
}

/// Encodes chunks, one at a time, and reuses the memory of the codec.
pub struct Encoder {
    kind: EncoderKind,
    padding: Padding,
}

/// Codecs with their memory. Chunks are encoded into the same memory each time and copied from there, so that what
/// waits to be written takes no more memory than it has bytes.
enum EncoderKind {
    Plain,
    Gzip(Compressor, Buffer),
    Zstd(zstd::bulk::Compressor<'static>, Vec<u8>),
}

impl Encoder {
    /// Returns an encoder. Errors: a level that the codec does not have.
    pub fn new(compression: Compression, padding: Padding) -> Result<Self> {
        let refused = |why: String| Error::failed(format!("cannot compress with {compression}: {why}"));
        let kind = match compression {
            Compression::None => EncoderKind::Plain,
            Compression::Gzip(level) => {
                let level =
                    CompressionLvl::new(i32::from(level)).map_err(|_| refused(format!("it has no level {level}")))?;
                EncoderKind::Gzip(Compressor::new(level), Buffer::new())
            }
            Compression::Zstd(level) => {
                let make = || {
                    let mut compressor = zstd::bulk::Compressor::new(i32::from(level))?;
                    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
                    std::io::Result::Ok(compressor)
                };
                EncoderKind::Zstd(make().map_err(|e| refused(e.to_string()))?, Vec::new())
            }
        };
        Ok(Encoder { kind, padding })
    }

    /// Returns about how many bytes of memory one encoder takes, without the chunk it reads and the one it writes.
    pub fn memory_bytes(compression: Compression) -> u64 {
        const MIB: u64 = 1 << 20;
        match compression {
            Compression::None => 0,
            // With the memory of the largest chunk that it encoded.
            Compression::Gzip(0..=9) => 5 * MIB,
            Compression::Gzip(_) => 13 * MIB,
            Compression::Zstd(0..=3) => 8 * MIB,
            Compression::Zstd(4..=9) => 20 * MIB,
            Compression::Zstd(10..=15) => 44 * MIB,
            Compression::Zstd(_) => 84 * MIB,
        }
    }

    /// Returns the length of the pax global header by which `length` bytes of content become whole blocks of the file
    /// system; `None` if they need none. Only plain chunks are padded by their content.
    pub fn content_padding(&self, length: usize) -> Option<usize> {
        match self.kind {
            EncoderKind::Plain => self.padding.plain_length(length),
            EncoderKind::Gzip(..) | EncoderKind::Zstd(..) => None,
        }
    }

    /// Encodes `content`.
    pub fn encode(&mut self, content: Buffer) -> Result<EncodedChunk> {
        let content_digest = *blake3::hash(&content).as_bytes();
        self.encode_hashed(content, content_digest, |_| Buffer::new()).map(|(encoded, _)| encoded)
    }

    /// Encodes content whose BLAKE3 digest is known. `room` returns an empty buffer for so many bytes. Also returns the
    /// buffer of the content, without a capacity if that holds the encoded bytes.
    pub fn encode_hashed(
        &mut self,
        content: Buffer,
        content_digest: [u8; 32],
        room: impl FnOnce(usize) -> Buffer,
    ) -> Result<(EncodedChunk, Buffer)> {
        let content_length = content.len() as u64;
        let failed = |why: String| Error::failed(format!("cannot compress {content_length} bytes: {why}"));
        let mut stored;
        match &mut self.kind {
            EncoderKind::Plain => {
                let encoded = EncodedChunk::new(content, content_digest, content_length, content_digest);
                return Ok((encoded, Buffer::new()));
            }
            EncoderKind::Gzip(compressor, memory) => {
                memory.clear();
                let memory = memory.spare(compressor.gzip_compress_bound(content.len()));
                let length = compressor.gzip_compress(&content, memory).map_err(|e| failed(e.to_string()))?;
                stored = room(length);
                stored.extend(&memory[..length]);
                self.padding.pad_gzip(&mut stored);
            }
            EncoderKind::Zstd(compressor, memory) => {
                memory.clear();
                memory.reserve(zstd::zstd_safe::compress_bound(content.len()));
                compressor.compress_to_buffer(&content, memory).map_err(|e| failed(e.to_string()))?;
                stored = room(memory.len());
                stored.extend(memory);
                self.padding.pad_zstd(&mut stored);
            }
        }
        let stored_digest = *blake3::hash(&stored).as_bytes();
        Ok((EncodedChunk::new(stored, stored_digest, content_length, content_digest), content))
    }
}

/// Decodes chunks, one at a time.
pub struct Decoder(DecoderKind);

enum DecoderKind {
    Plain,
    Gzip(Decompressor),
    Zstd(zstd::bulk::Decompressor<'static>),
}

impl Decoder {
    /// Returns a decoder.
    pub fn new(codec: Codec) -> Result<Self> {
        Ok(Decoder(match codec {
            Codec::Plain => DecoderKind::Plain,
            Codec::Gzip => DecoderKind::Gzip(Decompressor::new()),
            Codec::Zstd => {
                let make = || {
                    let mut decompressor = zstd::bulk::Decompressor::new()?;
                    decompressor.set_parameter(DParameter::WindowLogMax(27))?;
                    std::io::Result::Ok(decompressor)
                };
                let refused = |e: std::io::Error| Error::failed("cannot set up zstd").because(e);
                DecoderKind::Zstd(make().map_err(refused)?)
            }
        }))
    }

    /// Decodes `stored` and appends the result to `out`. Errors: [`ErrorKind::Damage`] if it does not decode to exactly
    /// `content_length` bytes.
    pub fn decode(&mut self, stored: &[u8], content_length: u64, out: &mut Buffer) -> Result<()> {
        let damage = |why: String| Error::new(ErrorKind::Damage, format!("a chunk does not decode: {why}"));
        check_length(content_length)?;
        let length = usize::try_from(content_length).map_err(|e| damage(e.to_string()))?;
        let written = match &mut self.0 {
            DecoderKind::Plain if stored.len() == length => {
                out.extend(stored);
                return Ok(());
            }
            DecoderKind::Plain => stored.len(),
            DecoderKind::Gzip(decompressor) => {
                decompressor.gzip_decompress(stored, out.spare(length)).map_err(|e| damage(e.to_string()))?
            }
            DecoderKind::Zstd(decompressor) => {
                decompressor.decompress_to_buffer(stored, out.spare(length)).map_err(|e| damage(e.to_string()))?
            }
        };
        if written != length {
            return Err(damage(format!("{written} bytes instead of {length}")));
        }
        out.keep(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::SHARED_BLOCK_BYTES;

    #[test]
    fn no_memory_is_allocated_for_a_length_that_no_chunk_has() {
        for codec in [Codec::Plain, Codec::Gzip, Codec::Zstd] {
            let mut out = Buffer::new();
            let error = Decoder::new(codec).unwrap().decode(b"short", 1 << 40, &mut out).unwrap_err();
            assert!(error.to_string().contains("more than any chunk has"), "{error}");
        }
    }

    #[test]
    fn chunks_are_decoded_as_encoded_and_damage_is_detected() {
        for compression in [Compression::None, Compression::Gzip(6), Compression::Zstd(3), Compression::Zstd(19)] {
            let mut content = Buffer::new();
            (0..100_000u32).for_each(|i| content.extend(&(i / 7).to_le_bytes()));
            let plain = content.to_vec();
            let mut encoder = Encoder::new(compression, Padding::None).unwrap();
            let chunk = encoder.encode(content).unwrap();
            assert_eq!(chunk.chunk.content_length, plain.len() as u64);
            let mut decoder = Decoder::new(compression.into()).unwrap();
            let mut out = Buffer::new();
            decoder.decode(&chunk.stored, chunk.chunk.content_length, &mut out).unwrap();
            assert_eq!(&out[..], &plain[..]);
            for wrong in [chunk.chunk.content_length - 1, chunk.chunk.content_length + 1] {
                assert!(decoder.decode(&chunk.stored, wrong, &mut Buffer::new()).is_err(), "{compression}");
            }
            if compression != Compression::None {
                let mut broken = chunk.stored.to_vec();
                let middle = broken.len() / 2;
                broken[middle] ^= 1;
                assert!(
                    decoder.decode(&broken, chunk.chunk.content_length, &mut Buffer::new()).is_err(),
                    "{compression}"
                );
            }
        }
    }

    #[test]
    fn padded_chunks_are_whole_blocks_and_decode_to_their_content() {
        for compression in [Compression::Gzip(6), Compression::Zstd(3)] {
            let mut encoder = Encoder::new(compression, Padding::Blocks).unwrap();
            let mut decoder = Decoder::new(compression.into()).unwrap();
            let mut noise = blake3::Hasher::new().finalize_xof();
            // Many lengths, so that many paddings are met, those that are too short for one among them.
            for length in (1..9000).step_by(7) {
                let mut content = Buffer::new();
                noise.fill(content.spare(length));
                content.keep(length);
                let plain = content.to_vec();
                let chunk = encoder.encode(content).unwrap();
                assert_eq!(chunk.stored.len() as u64 % SHARED_BLOCK_BYTES, 0);
                assert_eq!(*blake3::hash(&chunk.stored).as_bytes(), chunk.chunk.stored_digest);
                let mut decoded = Buffer::new();
                decoder.decode(&chunk.stored, length as u64, &mut decoded).unwrap();
                assert_eq!(decoded[..], plain[..]);
            }
        }
    }
}

//! Decodes a compressed file that has no chunks: from its beginning, one piece after another.

use std::io::{BufReader, Read};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::pieces::{Piece, PieceQueue};
use crate::archive::buffer::Buffer;
use crate::archive::codec::Codec;
use crate::archive::reader::ArchiveReader;
use crate::error::Error;

/// Bytes that are read at a time where there are no chunks.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Starts a thread that decodes an archive file.
pub(super) fn start(archive: &Arc<ArchiveReader>) -> PieceQueue {
    let (order, pieces) = bounded(4);
    let (spent, free) = unbounded::<Buffer>();
    let archive = Arc::clone(archive);
    match std::thread::Builder::new().spawn(move || decode_pieces(archive, &free, &order)) {
        Ok(_) => PieceQueue { pieces, spent, skip_to: Arc::default() },
        Err(error) => PieceQueue::failed(Error::no_thread(error)),
    }
}

fn decode_pieces(archive: Arc<ArchiveReader>, free: &Receiver<Buffer>, order: &Sender<Receiver<Piece>>) {
    let send = |piece| {
        let (answer, answered) = bounded(1);
        answer.send(piece).is_ok() && order.send(answered).is_ok()
    };
    let mut frames = Frames::new(archive);
    let mut sequence = 0;
    loop {
        let mut bytes = free.try_recv().unwrap_or_default();
        bytes.clear();
        let end = frames.fill(&mut bytes);
        let is_wanted = bytes.is_empty() || send(Piece::Data { sequence, is_jump: false, bytes });
        sequence += 1;
        match end {
            Ok(false) if is_wanted => {}
            Ok(_) => return,
            Err(error) => {
                send(error);
                return;
            }
        }
    }
}

/// Reads a compressed file frame by frame: gzip members or zstd frames, each with its own checksum.
struct Frames {
    codec: Codec,
    /// `None` only while its source moves on to the next frame.
    current: Option<Frame>,
    /// Bytes of the current frame were delivered, and its checksum was not reached yet.
    has_delivered: bool,
}

type Source = BufReader<PositionedReader>;

enum Frame {
    /// Between two frames.
    Before(Source),
    Gzip(Box<flate2::bufread::GzDecoder<Source>>),
    Zstd(zstd::stream::read::Decoder<'static, Source>),
}

impl Frames {
    fn new(archive: Arc<ArchiveReader>) -> Frames {
        let codec = archive.codec();
        let source = BufReader::with_capacity(1 << 17, PositionedReader { archive, at: 0 });
        Frames { codec, current: Some(Frame::Before(source)), has_delivered: false }
    }

    /// Fills a piece. Returns whether the file ended. Errors: the last piece, with what is wrong.
    fn fill(&mut self, bytes: &mut Buffer) -> Result<bool, Piece> {
        while bytes.len() < PIECE_BYTES {
            let room = PIECE_BYTES - bytes.len();
            let read = match &mut self.current {
                Some(Frame::Gzip(decoder)) => decoder.read(bytes.spare(room)),
                Some(Frame::Zstd(decoder)) => decoder.read(bytes.spare(room)),
                Some(Frame::Before(_)) | None => Ok(0),
            };
            match read {
                Ok(0) if self.begin_next()? => {}
                Ok(0) => return Ok(true),
                Ok(count) => {
                    bytes.keep(count);
                    self.has_delivered = true;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if self.has_delivered => return Err(Piece::Undecodable(format!("it does not decode: {e}"))),
                // The frames before have checksums of their own, which were right.
                Err(e) => return Err(Piece::Broken(format!("it does not decode: {e}"))),
            }
        }
        Ok(false)
    }

    /// Begins the next frame. Returns false at the end of the file, which may be padded with zeros.
    fn begin_next(&mut self) -> Result<bool, Piece> {
        let source = match self.current.take() {
            None => return Ok(false),
            Some(Frame::Before(source)) => source,
            Some(Frame::Gzip(decoder)) => decoder.into_inner(),
            Some(Frame::Zstd(decoder)) => decoder.finish(),
        };
        let broken = |e: std::io::Error| Piece::Broken(format!("it cannot be read: {e}"));
        let at = source.get_ref().at - source.buffer().len() as u64;
        let archive = &source.get_ref().archive;
        let mut first = [0; 4];
        let length = archive.stored().read_at(&mut first, at).map_err(broken)?;
        if !self.codec.begins_frame(&first[..length]) {
            return match is_zero_from(archive, at).map_err(broken)? {
                true => Ok(false),
                false => Err(Piece::Broken(format!("other data follows its compressed data at byte {at}"))),
            };
        }
        self.has_delivered = false;
        self.current = Some(match self.codec {
            Codec::Plain => Frame::Before(source),
            Codec::Gzip => Frame::Gzip(Box::new(flate2::bufread::GzDecoder::new(source))),
            Codec::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(broken)?.single_frame();
                decoder.window_log_max(27).map_err(broken)?;
                Frame::Zstd(decoder)
            }
        });
        Ok(true)
    }
}

/// Returns whether a file has only zeros from `at` to its end: what tapes and block devices are padded with.
fn is_zero_from(archive: &ArchiveReader, mut at: u64) -> std::io::Result<bool> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match archive.stored().read_at(&mut bytes, at)? {
            0 => return Ok(true),
            count if bytes[..count].iter().any(|&byte| byte != 0) => return Ok(false),
            count => at += count as u64,
        }
    }
}

/// Reads an archive file from beginning to end with its own position, which other readers of the file do not move.
struct PositionedReader {
    archive: Arc<ArchiveReader>,
    at: u64,
}

impl Read for PositionedReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.archive.stored().read_at(out, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

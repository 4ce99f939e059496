//! Decodes a compressed file that has no chunks: from its beginning, one piece after another.

use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::pieces::{Piece, PieceQueue};
use crate::archive::buffer::Buffer;
use crate::archive::codec::Codec;
use crate::archive::reader::ArchiveReader;

/// Bytes that are read at a time where there are no chunks.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Starts a thread that decodes an archive file.
pub(super) fn start(archive: &Arc<ArchiveReader>) -> PieceQueue {
    let (order, pieces) = bounded(4);
    let (spent, free) = unbounded::<Buffer>();
    let archive = Arc::clone(archive);
    std::thread::spawn(move || decode_pieces(archive, &free, &order));
    PieceQueue { pieces, spent, skip_to: Arc::default() }
}

fn decode_pieces(archive: Arc<ArchiveReader>, free: &Receiver<Buffer>, order: &Sender<Receiver<Piece>>) {
    let send = |piece| {
        let (answer, answered) = bounded(1);
        answer.send(piece).is_ok() && order.send(answered).is_ok()
    };
    let mut stream = match decoder(archive) {
        Ok(stream) => stream,
        Err(e) => {
            send(Piece::Broken(e.to_string()));
            return;
        }
    };
    let mut sequence = 0;
    loop {
        let mut bytes = free.try_recv().unwrap_or_default();
        bytes.clear();
        let end = fill(&mut stream, &mut bytes);
        let is_wanted = !bytes.is_empty() && send(Piece::Data { sequence, is_jump: false, bytes });
        sequence += 1;
        match end {
            Ok(false) if is_wanted => {}
            Err(reason) => {
                send(Piece::Broken(reason));
                return;
            }
            Ok(_) => return,
        }
    }
}

fn decoder(archive: Arc<ArchiveReader>) -> std::io::Result<Box<dyn Read>> {
    let codec = archive.codec();
    let file = BufReader::with_capacity(1 << 17, PositionedReader { archive, at: 0 });
    Ok(match codec {
        Codec::Plain => Box::new(file),
        Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
    })
}

/// Fills a piece. Returns whether the stream ended. Errors: what is wrong with it.
fn fill(stream: &mut dyn Read, bytes: &mut Buffer) -> Result<bool, String> {
    while bytes.len() < PIECE_BYTES {
        let room = PIECE_BYTES - bytes.len();
        match stream.read(bytes.spare(room)) {
            Ok(0) => return Ok(true),
            Ok(count) => bytes.keep(count),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("it does not decode: {e}")),
        }
    }
    Ok(false)
}

/// Reads an archive file from beginning to end with its own position, which other readers of the file do not move.
struct PositionedReader {
    archive: Arc<ArchiveReader>,
    at: u64,
}

impl Read for PositionedReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.archive.file().read_at(out, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

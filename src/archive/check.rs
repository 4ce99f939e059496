//! Verifies archive files: every byte is read back from disk and compared with what was written.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::buffer::Buffer;
use super::chunk_table::encode_entry;
use super::cksum::CrcOfParts;
use super::codec::{Codec, Decoder};
use super::direct::DirectReader;
use super::reader::ArchiveReader;
use super::trailer::Trailer;
use super::writer::ArchiveDigest;
use crate::cancel::CancelToken;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};

/// A chunk whose bytes differ from those that were written.
#[derive(Clone, Debug)]
pub struct DamagedChunk {
    /// The chunk as it was written.
    pub chunk: Chunk,
    /// What is wrong, in words.
    pub reason: String,
}

impl DamagedChunk {
    fn into_error(self, path: &Path) -> Error {
        let DamagedChunk { chunk, reason } = self;
        let message = format!("{} is damaged in chunk {} at byte {}", path.display(), chunk.sequence, chunk.offset);
        Error::new(ErrorKind::Damage, format!("{message}: {reason}"))
    }
}

/// Verifies that the file at `path` consists of exactly the chunks `expected`, in order and without a gap, and a
/// trailer that agrees with them, of `size` bytes in all with the archive digest `digest`. Reads from disk, not from
/// the page cache, and decodes with `threads` threads.
///
/// Errors: [`ErrorKind::Damage`] names the first chunk that differs; `Interrupted` after `cancel`; any error of
/// `expected`.
pub fn check_file(
    path: &Path,
    expected: &mut dyn Iterator<Item = Result<Chunk>>,
    digest: &[u8; 32],
    size: u64,
    threads: usize,
    cancel: &CancelToken,
) -> Result<()> {
    check_except(path, expected, &[], digest, size, threads, cancel)
}

/// The same, but chunks that lie in the ranges `unread` of the file, which are in order, are not read: they are taken
/// to be what they should be.
pub fn check_except(
    path: &Path,
    expected: &mut dyn Iterator<Item = Result<Chunk>>,
    unread: &[Range<u64>],
    digest: &[u8; 32],
    size: u64,
    threads: usize,
    cancel: &CancelToken,
) -> Result<()> {
    let reader = ArchiveReader::open(path)?;
    let damage = |what: String| Error::new(ErrorKind::Damage, format!("{} is damaged: {what}", path.display()));
    if reader.size() != size {
        return Err(damage(format!("it has {} bytes and was written with {size}", reader.size())));
    }
    let found = check_until_damage(&reader, expected, unread, threads, cancel)?;
    if found != *digest {
        return Err(damage("its digest is not the one it was written with".to_owned()));
    }
    Ok(())
}

/// Verifies an archive file by its own trailer, without a catalog. Returns the trailer and the archive digest.
///
/// Errors: [`ErrorKind::Damage`] names the first chunk that differs, or reports that there is no trailer; `Interrupted`
/// after `cancel`.
pub fn check_by_trailer(path: &Path, threads: usize, cancel: &CancelToken) -> Result<(Trailer, [u8; 32])> {
    let reader = ArchiveReader::open(path)?;
    let trailer = reader.trailer()?.ok_or_else(|| no_trailer(path))?;
    let digest = check_until_damage(&reader, &mut trailer.entries(), &[], threads, cancel)?;
    Ok((trailer, digest))
}

fn check_until_damage(
    reader: &ArchiveReader,
    expected: &mut dyn Iterator<Item = Result<Chunk>>,
    unread: &[Range<u64>],
    threads: usize,
    cancel: &CancelToken,
) -> Result<[u8; 32]> {
    let mut first = None;
    let found = check_read_chunks(reader, expected, unread, threads, cancel, &mut |damaged| {
        first = Some(damaged);
        ControlFlow::Break(())
    });
    match first {
        Some(damaged) => Err(damaged.into_error(reader.path())),
        None => found,
    }
}

/// Reads all chunks `expected` from disk and compares them, then the trailer. Returns the archive digest that the file
/// has if no chunk is damaged. `on_damage` is called for every damaged chunk, on the calling thread and in no
/// particular order; if it returns `Break`, the check ends with `Interrupted`.
///
/// Errors: [`ErrorKind::Damage`] if the chunks are not contiguous or the trailer does not agree with them.
pub fn check_chunks(
    reader: &ArchiveReader,
    expected: &mut dyn Iterator<Item = Result<Chunk>>,
    threads: usize,
    cancel: &CancelToken,
    on_damage: &mut dyn FnMut(DamagedChunk) -> ControlFlow<()>,
) -> Result<[u8; 32]> {
    check_read_chunks(reader, expected, &[], threads, cancel, on_damage)
}

fn check_read_chunks(
    reader: &ArchiveReader,
    expected: &mut dyn Iterator<Item = Result<Chunk>>,
    unread: &[Range<u64>],
    threads: usize,
    cancel: &CancelToken,
    on_damage: &mut dyn FnMut(DamagedChunk) -> ControlFlow<()>,
) -> Result<[u8; 32]> {
    reader.drop_cached()?;
    let threads = threads.max(1);
    let (work, batches) = bounded(threads);
    let (answers, answered) = unbounded();
    let crc = (reader.has_cksum() && unread.is_empty()).then(|| CrcOfParts::new(reader.size()));
    let crc = crc.as_ref();
    let mut is_damaged = false;
    thread::scope(|scope| {
        for _ in 0..threads {
            let (batches, answers) = (batches.clone(), answers.clone());
            let work = move || check_received(reader, crc, &batches, &answers);
            thread::Builder::new().spawn_scoped(scope, work).map_err(Error::no_thread)?;
        }
        // Only the threads keep these ends, so that both sides notice when the other has ended.
        drop((batches, answers));
        let on_damage = &mut |damaged| {
            is_damaged = true;
            on_damage(damaged)
        };
        let mut feeder = Feeder { reader, unread, work, answered, batch: Vec::new(), on_damage };
        let summary = feeder.feed(expected, cancel)?;
        feeder.finish()?;
        let digest = compare_trailer(reader, &summary, crc)?;
        crc.filter(|_| !is_damaged).map_or(Ok(()), |crc| reader.check_cksum(crc.cksum()))?;
        Ok(digest)
    })
}

/// The side of a check that hands the chunks to the threads, in order, and collects what they find.
struct Feeder<'a> {
    reader: &'a ArchiveReader,
    /// Ranges of the file that are not read, from the first one that does not end before the next chunk on.
    unread: &'a [Range<u64>],
    work: Sender<Batch>,
    answered: Receiver<DamagedChunk>,
    batch: Batch,
    on_damage: &'a mut dyn FnMut(DamagedChunk) -> ControlFlow<()>,
}

/// Chunks side by side in the file, which a thread reads at once.
type Batch = Vec<Chunk>;

/// A batch is complete when it has this many bytes. Smaller direct reads cost more time.
const BATCH_BYTES: u64 = 1 << 20;
/// The most chunks in a batch: a false table may list any number of chunks without bytes.
const MAX_BATCH_CHUNKS: usize = 4096;

/// What is known of the expected chunks as a whole.
struct Summary {
    /// Offset in the file at which the last chunk ends.
    end: u64,
    /// Digest of their entries in the trailer.
    entries: blake3::Hasher,
    /// Archive digest, without the trailer.
    digest: ArchiveDigest,
}

impl Feeder<'_> {
    fn feed(&mut self, expected: &mut dyn Iterator<Item = Result<Chunk>>, cancel: &CancelToken) -> Result<Summary> {
        let mut summary = Summary { end: 0, entries: blake3::Hasher::new(), digest: ArchiveDigest::new() };
        for chunk in expected {
            let chunk = chunk?;
            cancel.check("the verification was cancelled")?;
            if chunk.offset != summary.end {
                let (path, sequence) = (self.reader.path().display(), chunk.sequence);
                let message = format!("chunk {sequence} of {path} does not begin where the one before it ends");
                return Err(Error::new(ErrorKind::Damage, message));
            }
            summary.end = chunk.end();
            summary.digest.add(&chunk.stored_digest);
            summary.entries.update(&encode_entry(&chunk)?);
            if self.is_unread(&chunk) {
                // A batch is read at once, and ends where a chunk is left out.
                self.send_batch()?;
                continue;
            }
            self.batch.push(chunk);
            let bytes = chunk.end() - self.batch[0].offset;
            if bytes >= BATCH_BYTES || self.batch.len() == MAX_BATCH_CHUNKS {
                self.send_batch()?;
            }
        }
        self.send_batch()?;
        Ok(summary)
    }

    /// Returns whether the next chunk lies in a range that is not read.
    fn is_unread(&mut self, chunk: &Chunk) -> bool {
        while let [first, rest @ ..] = self.unread
            && first.end <= chunk.offset
        {
            self.unread = rest;
        }
        self.unread.first().is_some_and(|range| range.start <= chunk.offset && chunk.end() <= range.end)
    }

    fn send_batch(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.work.send(batch).map_err(|_| thread_died())?;
        while let Ok(damaged) = self.answered.try_recv() {
            report(self.on_damage, damaged)?;
        }
        Ok(())
    }

    /// Waits for the chunks that the threads still check.
    fn finish(self) -> Result<()> {
        let Feeder { work, answered, on_damage, .. } = self;
        drop(work);
        answered.iter().try_for_each(|damaged| report(on_damage, damaged))
    }
}

fn report(on_damage: &mut dyn FnMut(DamagedChunk) -> ControlFlow<()>, damaged: DamagedChunk) -> Result<()> {
    match on_damage(damaged) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ended_early()),
    }
}

fn ended_early() -> Error {
    Error::new(ErrorKind::Interrupted, "the verification ended at the first damage")
}

fn thread_died() -> Error {
    Error::failed("a thread that checks chunks panicked")
}

/// Reads and checks the batches that a thread receives.
fn check_received(
    reader: &ArchiveReader,
    crc: Option<&CrcOfParts>,
    batches: &Receiver<Batch>,
    answers: &Sender<DamagedChunk>,
) {
    let mut checker = Checker {
        reader,
        crc,
        direct: DirectReader::new(reader),
        decoder: Decoder::new(reader.codec()),
        content: Buffer::new(),
    };
    for batch in batches {
        checker.check(&batch, &mut |damaged| {
            // Nothing receives it if the check ended early.
            let _ = answers.send(damaged);
        });
    }
}

/// What a thread needs to check chunks.
struct Checker<'a> {
    reader: &'a ArchiveReader,
    /// Receives all that is read, if it is to be compared with an index.
    crc: Option<&'a CrcOfParts>,
    direct: DirectReader<'a>,
    decoder: Result<Decoder>,
    content: Buffer,
}

impl Checker<'_> {
    /// Reads chunks that lie side by side, and reports those that are not as they were written.
    fn check(&mut self, batch: &[Chunk], report: &mut dyn FnMut(DamagedChunk)) {
        let [first, .., last] = batch else {
            return batch.iter().for_each(|chunk| self.check_one(*chunk, report));
        };
        let Ok(stored) = self.direct.read(first.offset, last.end() - first.offset) else {
            // A range that the disk cannot read is damage like any other, and the chunks beside it count too.
            return batch.iter().for_each(|chunk| self.check_one(*chunk, report));
        };
        if let Some(crc) = self.crc {
            crc.add(first.offset, stored);
        }
        let mut rest = stored;
        for chunk in batch {
            let (stored, after) = rest.split_at(chunk.stored_length as usize);
            rest = after;
            if let Some(reason) = find_damage(self.reader, &mut self.decoder, chunk, stored, &mut self.content) {
                report(DamagedChunk { chunk: *chunk, reason });
            }
        }
    }

    fn check_one(&mut self, chunk: Chunk, report: &mut dyn FnMut(DamagedChunk)) {
        let damage = match self.direct.read(chunk.offset, chunk.stored_length) {
            Ok(stored) => {
                if let Some(crc) = self.crc {
                    crc.add(chunk.offset, stored);
                }
                find_damage(self.reader, &mut self.decoder, &chunk, stored, &mut self.content)
            }
            Err(error) => Some(error.to_string()),
        };
        damage.into_iter().for_each(|reason| report(DamagedChunk { chunk, reason }));
    }
}

fn find_damage(
    reader: &ArchiveReader,
    decoder: &mut Result<Decoder>,
    chunk: &Chunk,
    stored: &[u8],
    content: &mut Buffer,
) -> Option<String> {
    if blake3::hash(stored) != chunk.stored_digest {
        return Some(reader.mismatch(chunk).to_string());
    }
    if reader.codec() == Codec::Plain {
        let is_same = chunk.content_digest.is_none_or(|digest| digest == chunk.stored_digest)
            && chunk.content_length == chunk.stored_length;
        return (!is_same).then(|| "the catalog contradicts itself about it".to_owned());
    }
    content.clear();
    let decoded = match decoder {
        Ok(decoder) => decoder.decode(stored, chunk.content_length, content),
        Err(error) => return Some(error.to_string()),
    };
    if let Err(error) = decoded {
        return Some(error.to_string());
    }
    let is_same = chunk.content_digest.is_none_or(|digest| blake3::hash(content) == digest);
    (!is_same).then(|| "it decodes to other bytes than were encoded".to_owned())
}

/// Compares the trailer with the expected chunks and returns the archive digest.
fn compare_trailer(reader: &ArchiveReader, summary: &Summary, crc: Option<&CrcOfParts>) -> Result<[u8; 32]> {
    let path = reader.path();
    let trailer = reader.trailer()?.ok_or_else(|| no_trailer(path))?;
    let mut entries = blake3::Hasher::new();
    for chunk in trailer.entries() {
        entries.update(&encode_entry(&chunk?)?);
    }
    if trailer.content_end() != summary.end || entries.finalize() != summary.entries.finalize() {
        let message = format!("the trailer of {} lists other chunks than the catalog", path.display());
        return Err(Error::new(ErrorKind::Damage, message));
    }
    let mut hasher = blake3::Hasher::new();
    let mut page = Buffer::new();
    let mut offset = summary.end;
    while offset < reader.size() {
        let length = (reader.size() - offset).min(1 << 20);
        page.clear();
        reader.read_stored(offset, length, &mut page)?;
        hasher.update(&page);
        if let Some(crc) = crc {
            crc.add(offset, &page);
        }
        offset += length;
    }
    Ok(summary.digest.clone().finish(hasher.finalize().as_bytes()))
}

fn no_trailer(path: &Path) -> Error {
    Error::new(ErrorKind::Damage, format!("{} has no trailer of this program", path.display()))
        .hint("it was cut off, or another program made it: try tar -t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_chunks_without_bytes_is_checked_in_batches_of_bounded_size() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = ArchiveReader::open(file.path()).unwrap();
        let (work, batches) = bounded(100);
        let on_damage = &mut |_| ControlFlow::Continue(());
        let mut feeder =
            Feeder { reader: &reader, unread: &[], work, answered: unbounded().1, batch: Vec::new(), on_damage };
        let (stored_digest, content_digest) = ([0; 32], None);
        let empty = |sequence| Chunk {
            sequence,
            offset: 0,
            stored_length: 0,
            stored_digest,
            content_length: 0,
            content_digest,
        };
        let chunks = 50 * MAX_BATCH_CHUNKS as u64 + 1;
        feeder.feed(&mut (0..chunks).map(|sequence| Ok(empty(sequence))), &CancelToken::new()).unwrap();
        drop(feeder);
        let sizes: Vec<usize> = batches.iter().map(|batch| batch.len()).collect();
        assert_eq!(sizes.iter().sum::<usize>() as u64, chunks);
        assert!(sizes.iter().all(|&size| size <= MAX_BATCH_CHUNKS), "{sizes:?}");
    }

    #[test]
    fn only_chunks_that_lie_in_an_unread_range_whole_are_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 80]).unwrap();
        let reader = ArchiveReader::open(file.path()).unwrap();
        let (stored_digest, content_digest) = ([0; 32], None);
        let chunks = (0..8).map(|sequence| {
            let offset = sequence * 10;
            Ok(Chunk { sequence, offset, stored_length: 10, stored_digest, content_length: 10, content_digest })
        });
        let (work, batches) = bounded(100);
        let on_damage = &mut |_| ControlFlow::Continue(());
        let unread = [10..30, 35..60, 60..65];
        let mut feeder =
            Feeder { reader: &reader, unread: &unread, work, answered: unbounded().1, batch: Vec::new(), on_damage };
        let summary = feeder.feed(&mut chunks.into_iter(), &CancelToken::new()).unwrap();
        assert_eq!(summary.end, 80);
        drop(feeder);
        let read = |batch: Batch| batch.iter().map(|chunk| chunk.sequence).collect::<Vec<_>>();
        assert_eq!(batches.iter().map(read).collect::<Vec<_>>(), [vec![0], vec![3], vec![6, 7]]);
    }
}

//! Reads ranges of an archive file from the disk, past the page cache: what was just written is still in the cache, and
//! copying it out of there costs more than the reading.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::OFlags;

use super::buffer::Buffer;
use super::reader::ArchiveReader;
use super::segments::Piece;
use crate::error::Result;

/// Offsets, lengths and addresses of direct reads are multiples of this. Disks ask for 512 or 4096 bytes.
const ALIGNMENT: u64 = 4096;

/// Reads ranges of one archive file, into one buffer.
pub(super) struct DirectReader<'a> {
    reader: &'a ArchiveReader,
    /// The number of the file that was read last, and the same file, opened for direct reads. `None` where these are
    /// refused (tmpfs, FUSE, some network file systems).
    direct: Option<(u32, Option<File>)>,
    room: Vec<u8>,
    buffered: Buffer,
}

impl<'a> DirectReader<'a> {
    /// Returns a reader that opens the files of `reader` a second time.
    pub(super) fn new(reader: &'a ArchiveReader) -> Self {
        DirectReader { reader, direct: None, room: Vec::new(), buffered: Buffer::new() }
    }

    /// Returns `length` bytes from `offset` on. Reads through the page cache what cannot be read directly.
    ///
    /// Errors: as [`ArchiveReader::read_stored`].
    pub(super) fn read(&mut self, offset: u64, length: u64) -> Result<&[u8]> {
        self.reader.check_range(offset, length)?;
        let reader = self.reader;
        let first = reader.stored().pieces(offset, length).next();
        if let Some(piece) = first.filter(|piece| piece.length == length)
            && let Some(start) = self.read_directly(piece)
        {
            return Ok(&self.room[start..start + length as usize]);
        }
        self.buffered.clear();
        let mut at = offset;
        for piece in reader.stored().pieces(offset, length) {
            match self.read_directly(piece) {
                Some(start) => self.buffered.extend(&self.room[start..start + piece.length as usize]),
                None => reader.read_stored(at, piece.length, &mut self.buffered)?,
            }
            at += piece.length;
        }
        Ok(&self.buffered)
    }

    /// Opens a file for direct reads, if it is not the one that was read last.
    fn open_directly(&mut self, number: u32) {
        if self.direct.as_ref().is_none_or(|(open, _)| *open != number) {
            let open = || {
                let file = self.reader.stored().file(number).ok()?;
                // By its descriptor, not its path: another file may have that name by now.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let flags = (OFlags::DIRECT | OFlags::NONBLOCK).bits().cast_signed();
                OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
            };
            self.direct = Some((number, open()));
        }
    }

    /// Returns where in `room` the bytes are; `None` if they could not be read this way.
    fn read_directly(&mut self, piece: Piece) -> Option<usize> {
        self.open_directly(piece.file);
        let file = self.direct.as_ref()?.1.as_ref()?;
        let Piece { offset, length, .. } = piece;
        let before = offset % ALIGNMENT;
        let wanted = before + length;
        let aligned = usize::try_from(wanted.next_multiple_of(ALIGNMENT)).ok()?;
        if self.room.len() < aligned + ALIGNMENT as usize {
            self.room = vec![0; aligned + ALIGNMENT as usize];
        }
        let skip = self.room.as_ptr().align_offset(ALIGNMENT as usize);
        let room = &mut self.room[skip..skip + aligned];
        let mut filled = 0;
        while (filled as u64) < wanted {
            match file.read_at(&mut room[filled..], offset - before + filled as u64) {
                // A read that stops within a block has reached the end of the file, or cannot go on aligned.
                Ok(0) => return None,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(skip + before as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_file_at_every_alignment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content: Vec<u8> = (0..20_011_u32).flat_map(|value| (value % 251).to_le_bytes()).collect();
        std::fs::write(&path, &content).unwrap();
        let reader = ArchiveReader::open(&path).unwrap();
        let mut direct = DirectReader::new(&reader);
        for (offset, length) in [(0, 1), (0, 4096), (1, 4095), (4095, 2), (5000, 70_000), (80_043, 1), (0, 80_044)] {
            let expected = &content[offset..offset + length];
            assert_eq!(direct.read(offset as u64, length as u64).unwrap(), expected, "{offset} {length}");
        }
        assert!(direct.read(80_000, 45).is_err(), "beyond the end");
    }
}

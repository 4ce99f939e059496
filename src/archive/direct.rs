//! Reads ranges of an archive file from the disk, past the page cache: what was just written is still in the cache, and
//! copying it out of there costs more than the reading.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::OFlags;

use super::buffer::Buffer;
use super::codec;
use super::reader::ArchiveReader;
use crate::error::Result;

/// Offsets, lengths and addresses of direct reads are multiples of this. Disks ask for 512 or 4096 bytes.
const ALIGNMENT: u64 = 4096;

/// Reads ranges of one archive file, into one buffer.
pub(super) struct DirectReader<'a> {
    reader: &'a ArchiveReader,
    /// The same file, opened for direct reads. `None` where these are refused (tmpfs, FUSE, some network file systems).
    direct: Option<File>,
    room: Vec<u8>,
    buffered: Buffer,
}

impl<'a> DirectReader<'a> {
    /// Opens the file of `reader` a second time.
    pub(super) fn new(reader: &'a ArchiveReader) -> Self {
        // By its descriptor, not its path: another file may have that name by now.
        let path = format!("/proc/self/fd/{}", reader.file().as_raw_fd());
        let flags = (OFlags::DIRECT | OFlags::NONBLOCK).bits().cast_signed();
        let direct = OpenOptions::new().read(true).custom_flags(flags).open(path).ok();
        DirectReader { reader, direct, room: Vec::new(), buffered: Buffer::new() }
    }

    /// Returns `length` bytes from `offset` on. Reads through the page cache what cannot be read directly.
    ///
    /// Errors: as [`ArchiveReader::read_stored`].
    pub(super) fn read(&mut self, offset: u64, length: u64) -> Result<&[u8]> {
        if codec::check_length(length).is_ok()
            && offset.checked_add(length).is_some_and(|end| end <= self.reader.size())
            && let Some(start) = self.read_directly(offset, length)
        {
            return Ok(&self.room[start..start + length as usize]);
        }
        self.buffered.clear();
        self.reader.read_stored(offset, length, &mut self.buffered)?;
        Ok(&self.buffered)
    }

    /// Returns where in `room` the bytes are; `None` if they could not be read this way.
    fn read_directly(&mut self, offset: u64, length: u64) -> Option<usize> {
        let file = self.direct.as_ref()?;
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

//! Reads the stored bytes of an archive file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

use super::buffer::Buffer;
use super::codec::{self, Codec};
use super::trailer::Trailer;
use crate::error::{Error, ErrorKind, Result};

/// Largest number of skippable zstd frames before the first one with content.
const MAX_SKIPPED_FRAMES: usize = 1000;

/// An archive file opened for reading.
#[derive(Debug)]
pub struct ArchiveReader {
    file: File,
    path: PathBuf,
    codec: Codec,
    size: u64,
}

impl ArchiveReader {
    /// Opens an archive file. Errors: [`ErrorKind::NotFound`] if it is missing.
    pub fn open(path: &Path) -> Result<Self> {
        // A FIFO without a writer would block the opening; a regular file is read the same way.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = opened.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::not_found(format!("there is no archive file {}", path.display()))
                .hint("check whether its disk is mounted"),
            _ => Error::io("open", path)(e),
        })?;
        let stat = file.metadata().map_err(Error::io("inspect", path))?;
        if !stat.is_file() {
            let what = if stat.is_dir() { "a folder" } else { "a pipe or a device" };
            return Err(Error::failed(format!(
                "cannot read {} as an archive: it is {what}, not a file",
                path.display()
            ))
            .hint("save the archive as a regular file and name that"));
        }
        let codec = detect_codec(&file).map_err(Error::io("read", path))?;
        Ok(ArchiveReader { file, path: path.to_owned(), codec, size: stat.len() })
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns how its chunks are stored.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns the size of the file in bytes, as it was at opening.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads the trailer. Returns `None` if the file has no trailer of this program. Errors: a trailer that is damaged.
    pub fn trailer(&self) -> Result<Option<Trailer>> {
        Trailer::read(&self.file, &self.path, self.codec)
    }

    /// Appends `length` stored bytes from `offset` on to `out`. Errors: [`ErrorKind::Damage`] if the file ends earlier.
    pub fn read_stored(&self, offset: u64, length: u64, out: &mut Buffer) -> Result<()> {
        let ends_early = || {
            let message = format!("{} has no {length} bytes at offset {offset}: it was cut off", self.path.display());
            Error::new(ErrorKind::Damage, message).hint("restore from another archive")
        };
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(ends_early());
        }
        codec::check_length(length)?;
        let length = usize::try_from(length).map_err(|_| ends_early())?;
        self.file.read_exact_at(out.spare(length), offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ends_early(),
            _ => Error::io("read", &self.path)(e),
        })?;
        out.keep(length);
        Ok(())
    }

    /// Drops the file from the page cache, so that the next reads come from the disk.
    pub fn drop_cached(&self) -> Result<()> {
        // Pages that are not on disk yet cannot be dropped. Read-only file systems (ISO 9660, squashfs) have no fsync.
        match self.file.sync_all() {
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::ROFS)) => {}
            synced => synced.map_err(Error::io("sync", &self.path))?,
        }
        // Only advice: a file system without a page cache need not follow it.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        let _ = fadvise(&self.file, 0, None, Advice::Sequential);
        Ok(())
    }
}

/// Returns the codec by the beginning of a file. A zstd file may begin with skippable frames, as pzstd writes them.
fn detect_codec(file: &File) -> io::Result<Codec> {
    let mut at = 0;
    for _ in 0..MAX_SKIPPED_FRAMES {
        let mut first = [0; 8];
        let length = file.read_at(&mut first, at)?;
        if at > 0 && !Codec::Zstd.begins_frame(&first[..length]) {
            return Ok(Codec::Plain);
        }
        if length < first.len() || !codec::is_skippable(&first) {
            return Ok(Codec::of_first_bytes(&first[..length]));
        }
        let [.., a, b, c, d] = first;
        at += first.len() as u64 + u64::from(u32::from_le_bytes([a, b, c, d]));
    }
    Ok(Codec::Plain)
}

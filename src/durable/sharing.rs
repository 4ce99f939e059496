//! Blocks that files share, on file systems that can do that (XFS, btrfs, bcachefs): a range of one file becomes part
//! of another without its bytes being read or written.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::create_unnamed_file;
use crate::error::{Error, ErrorKind, Result};

/// Ranges that are shared begin and end at multiples of this, in bytes. File systems with larger blocks share none.
pub const SHARED_BLOCK_BYTES: u64 = 4096;

/// Returns whether files in a folder can share blocks, by doing it. Whether they do it does not depend on the kind of
/// file system alone, but on how it was made, its mount options and the kernel.
///
/// Errors: the folder does not take a file; `DiskFull`.
pub fn shares_blocks(folder: &Path) -> Result<bool> {
    const BLOCK: usize = SHARED_BLOCK_BYTES as usize;
    let path = folder.join("probe");
    let file = create_unnamed_file(&path)?;
    // Not at the beginning: btrfs stores the first bytes of a small file in another way.
    file.write_all_at(&[1; 2 * BLOCK], 0).map_err(Error::io("write", &path))?;
    match share_range(&file, SHARED_BLOCK_BYTES, &file, 2 * SHARED_BLOCK_BYTES, SHARED_BLOCK_BYTES) {
        Ok(()) => Ok(true),
        Err(error) => {
            log::debug!("files in {} share no blocks: {error}", folder.display());
            only_if_full(error, &path).map(|()| false)
        }
    }
}

/// Makes `length` bytes of `from` at `from_offset` those of `to` at `to_offset`. All three are multiples of
/// [`SHARED_BLOCK_BYTES`]; the range lies in `from`.
///
/// Errors: those of the system. Then `to` may hold any bytes there.
pub fn share_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: from_offset,
        src_length: length,
        dest_offset: to_offset,
    };
    #[allow(unsafe_code, reason = "neither the standard library nor rustix has this call")]
    let result = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the error of a range that was not shared if it means that the disk is full, which copying would not change.
pub fn only_if_full(error: io::Error, path: &Path) -> Result<()> {
    let error = Error::io("write", path)(error);
    if error.kind() == ErrorKind::DiskFull { Err(error) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_where_nothing_is_shared_is_no_error_and_keeps_no_file() {
        // Whatever the file system is, the answer is that of the system.
        let folder = tempfile::tempdir().unwrap();
        shares_blocks(folder.path()).unwrap();
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
        assert!(shares_blocks(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn only_a_full_disk_is_an_error() {
        let path = Path::new("file");
        for errno in [libc::EOPNOTSUPP, libc::EXDEV, libc::EINVAL, libc::EPERM, libc::ENOTTY, libc::EINTR, libc::EIO] {
            only_if_full(io::Error::from_raw_os_error(errno), path).unwrap();
        }
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            let error = only_if_full(io::Error::from_raw_os_error(errno), path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DiskFull);
        }
    }
}

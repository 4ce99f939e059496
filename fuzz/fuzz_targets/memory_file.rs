//! A file in memory: the archive reader takes paths.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// A file that holds `parts` one after the other, and the path at which it can be opened.
pub fn memory_file(parts: &[&[u8]]) -> (File, PathBuf) {
    let mut file = File::from(rustix::fs::memfd_create("archive", rustix::fs::MemfdFlags::CLOEXEC).expect("a file"));
    parts.iter().for_each(|part| file.write_all(part).expect("room in memory"));
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

//! Extended attributes, which include ACLs and capabilities.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{fgetxattr, flistxattr, getxattr, lgetxattr, listxattr, llistxattr};
use rustix::io::Errno;

use crate::member::Xattrs;

/// Size of the first buffer. Most answers fit, so that a file without attributes costs one call.
const FIRST_BYTES: usize = 1024;

/// The kernel's limit of a list of names, and of a value.
const MAX_BYTES: usize = 64 * 1024;

/// Reads the attributes of an open file.
pub(super) fn of_handle(file: impl AsFd) -> Result<Xattrs, Errno> {
    let file = file.as_fd();
    collect(|buffer| flistxattr(file, buffer), |name, buffer| fgetxattr(file, name, buffer))
}

/// Reads the attributes of `path`; of a link those of the link itself.
pub(super) fn of_path(path: &Path) -> Result<Xattrs, Errno> {
    collect(|buffer| llistxattr(path, buffer), |name, buffer| lgetxattr(path, name, buffer))
}

/// Reads the attributes of `path`, following links.
pub(super) fn of_path_followed(path: &Path) -> Result<Xattrs, Errno> {
    collect(|buffer| listxattr(path, buffer), |name, buffer| getxattr(path, name, buffer))
}

fn collect(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    let names = match read_growing(&list) {
        Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
        names => names?,
    };
    let mut xattrs = Xattrs::new();
    for name in names.split_inclusive(|&b| b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        match read_growing(|buffer| get(name, buffer)) {
            Ok(value) => xattrs.set(name.to_bytes(), &value),
            // Removed since it was listed, or listed by a file system that does not serve it as mounted.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(xattrs)
}

fn read_growing(fill: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; FIRST_BYTES];
    match fill(&mut small) {
        Ok(length) => Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; MAX_BYTES];
            let length = fill(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(errno) => Err(errno),
    }
}

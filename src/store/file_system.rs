//! File systems on which a database is safe.

use std::io;
use std::path::Path;

use rustix::fs::statfs;

use crate::error::{Error, Result};

/// Refuses network and FUSE file systems, which do not support the shared memory and the locks that WAL needs.
pub(super) fn refuse_network(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    let kind = statfs(folder).map_err(io::Error::from).map_err(Error::io("determine the file system of", folder))?;
    match network_name(kind.f_type as u64 & 0xFFFF_FFFF) {
        None => Ok(()),
        Some(name) => Err(Error::failed(format!(
            "the database {} would be stored on {name}, where SQLite cannot protect it from damage",
            path.display()
        ))
        .hint("put it on a local disk or a named volume with --db or BACKUP_DB; the archives need not be moved")),
    }
}

/// Returns the name of a network or FUSE file system by its magic number (linux/magic.h and the file systems' own
/// sources).
fn network_name(magic: u64) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517B | 0xFF53_4D42 | 0xFE53_4D42 => "SMB",
        0x6573_5546 => "FUSE or virtiofs",
        0x0102_1997 => "9p",
        0x00C3_6400 => "Ceph",
        0x5346_414F => "AFS",
        0x0BD0_0BD0 => "Lustre",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_recognised_by_their_magic_numbers() {
        assert_eq!(network_name(0x6969), Some("NFS"));
        assert_eq!(network_name(0xEF53), None, "ext4");
    }
}

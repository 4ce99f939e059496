//! Checks archives that another program made.

use std::path::Path;
use std::sync::Arc;

use super::content::Content;
use super::members::{Event, Members};
use super::reader::ArchiveReader;
use crate::error::{Error, ErrorKind, Result};
use crate::member::{Extent, MemberKind};

/// Reads any tar file, plain, gzip or zstd, from its first byte to its last, and counts what it holds. A member that is
/// refused, as for a name with `..`, counts as a member, for the file may be whole.
///
/// Errors: [`ErrorKind::Damage`] if it is no tar file, is damaged where tar or the codec can detect it, or ends without
/// end marks.
pub fn check_tar(path: &Path) -> Result<Extent> {
    let damaged = |reason: String| {
        Error::new(ErrorKind::Damage, format!("{} is not a whole tar file: {reason}", path.display()))
            .hint("restore what can still be read of it with `backup-manager restore`")
    };
    let archive = Arc::new(ArchiveReader::open(path)?);
    let mut members = Members::new(Content::stream(archive));
    let mut extent = Extent::default();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match members.next()? {
            None => break,
            Some(Event::Damaged { reason, .. }) => return Err(damaged(reason)),
            Some(Event::Refused { .. }) => extent.members += 1,
            Some(Event::Member(entry)) => {
                extent.members += 1;
                extent.files += u64::from(entry.member.kind == MemberKind::File);
                extent.content_bytes += entry.member.size;
                // Data that is skipped instead may never be read from disk.
                while members.read(&mut buffer).map_err(damaged)? > 0 {}
            }
        }
    }
    members.read_rest().map_err(damaged)?;
    Ok(extent)
}

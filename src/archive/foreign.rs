//! Checks archives that another program made.

use std::path::Path;
use std::sync::Arc;

use super::content::Content;
use super::members::{Event, Members};
use super::reader::ArchiveReader;
use super::refusals::Refusals;
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::member::{Extent, MemberKind};

/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 1 << 17;
/// Findings that are kept of one archive; a hostile one could have any number.
const MAX_FINDINGS: usize = 10_000;

/// What an archive of another program holds, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct ForeignTar {
    /// Its members, refused ones included.
    pub extent: Extent,
    /// Members that a restore refuses, as for a name with `..`, each with the reason. The file may be whole.
    pub refused: Vec<(Vec<u8>, String)>,
    /// Members whose data is not whole.
    pub damaged_members: Vec<Vec<u8>>,
    /// Other damage, in words.
    pub damage: Vec<String>,
}

/// Reads any tar file, plain, gzip or zstd, from its first byte to its last, with the reader that a restore uses, and
/// records all that it finds.
///
/// Errors: [`ErrorKind::Damage`] if it is no tar file or only zeros; `Interrupted` after `cancel`.
pub fn examine(archive: ArchiveReader, cancel: &CancelToken) -> Result<ForeignTar> {
    let archive = Arc::new(archive);
    // What a page cache holds may not be on disk.
    archive.drop_cached()?;
    let mut members = Members::new(Content::stream(archive)).cancelled_by(cancel);
    let (mut found, mut refusals) = (ForeignTar::default(), Refusals::default());
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(event) = members.next()? {
        cancel.check("the verification was cancelled")?;
        match event {
            Event::Damaged { reason, .. } | Event::Undecodable { reason } => add(&mut found.damage, reason),
            Event::Refused { name, reason } => {
                found.extent.members += 1;
                add(&mut found.refused, (name, reason));
            }
            Event::Member(entry) => {
                found.extent.members += 1;
                found.extent.files += u64::from(entry.member.kind == MemberKind::File);
                found.extent.content_bytes += entry.member.size;
                if let Some(reason) = refusals.check(&entry.member) {
                    add(&mut found.refused, (entry.member.path.as_bytes().to_vec(), reason));
                }
                // Data that is skipped instead may never be read from disk.
                if let Err(reason) = read_data(&mut members, entry.stored, &mut buffer) {
                    let path = entry.member.path.as_bytes();
                    add(&mut found.damage, format!("{}: {reason}", entry.member.path));
                    add(&mut found.damaged_members, path.to_vec());
                }
            }
        }
    }
    for (path, reason) in refusals.finish() {
        add(&mut found.refused, (path.as_bytes().to_vec(), reason));
    }
    Ok(found)
}

fn add<T>(findings: &mut Vec<T>, finding: T) {
    if findings.len() < MAX_FINDINGS {
        findings.push(finding);
    }
}

/// Reads the data of the current member. Errors: why it is not whole.
fn read_data(members: &mut Members, mut left: u64, buffer: &mut [u8]) -> std::result::Result<(), String> {
    while left > 0 {
        match members.read(buffer)? {
            0 => return Err("its data ends early".to_owned()),
            count => left = left.saturating_sub(count as u64),
        }
    }
    Ok(())
}

/// Reads any tar file as [`examine`] does, and counts what it holds.
///
/// Errors: [`ErrorKind::Damage`] if it is no tar file, is damaged where tar or the codec can detect it, or ends without
/// end marks.
pub fn check_tar(path: &Path) -> Result<Extent> {
    let found = examine(ArchiveReader::open(path)?, &CancelToken::new())?;
    match found.damage.first() {
        None => Ok(found.extent),
        Some(reason) => {
            let message = format!("{} is not a whole tar file: {reason}", path.display());
            Err(Error::new(ErrorKind::Damage, message)
                .hint("restore what can still be read of it with `backup-manager restore`"))
        }
    }
}

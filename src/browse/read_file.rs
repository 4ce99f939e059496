//! The content of one member, without restoring it.

use super::{OpenArchive, Selection};
use crate::archive::members::{Entry, Event, Members};
use crate::error::{Error, ErrorKind, Result};
use crate::member::{MemberKind, MemberPath, Span};

/// Bytes that are passed on at a time.
const PIECE_BYTES: usize = 1 << 18;

/// Passes the content of a file to `put`, holes as zeros. Of a name that the archive of another program has several
/// times, the last counts, as when it is restored; a further name of a file has that file's content.
///
/// Errors: `NotFound`; `Usage` for what has no content; `Damage` where it is not whole, after what there is of it.
pub fn read_file(archive: &OpenArchive, path: &MemberPath, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let selection = Selection::exactly(vec![path.clone()])?;
    let mut before = if archive.is_ours() { 0 } else { times(archive, &selection, path)?.saturating_sub(1) };
    let mut members = archive.members(&selection, 2)?;
    let mut trouble = None;
    while let Some(event) = members.next()? {
        match event {
            Event::Member(entry) if entry.member.path == *path && before == 0 => {
                return pass(archive, &mut members, &entry, put);
            }
            Event::Member(entry) => before -= u64::from(entry.member.path == *path),
            Event::Refused { reason, .. } | Event::Damaged { reason, .. } => trouble = Some(reason),
        }
    }
    match trouble {
        Some(reason) => Err(damaged(path, &reason)),
        None => Err(archive.not_found([path])),
    }
}

/// Counts how often an archive has a name.
fn times(archive: &OpenArchive, selection: &Selection, path: &MemberPath) -> Result<u64> {
    let mut members = archive.members(selection, 2)?;
    let mut count = 0;
    while let Some(event) = members.next()? {
        count += u64::from(matches!(event, Event::Member(entry) if entry.member.path == *path));
    }
    Ok(count)
}

fn damaged(path: &MemberPath, reason: &str) -> Error {
    Error::new(ErrorKind::Damage, format!("{path} is damaged in the archive: {reason}"))
        .hint(format!("look for it in others: `backup-manager find --versions {path}`"))
}

fn pass(
    archive: &OpenArchive,
    members: &mut Members,
    entry: &Entry,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let path = &entry.member.path;
    match entry.member.kind {
        MemberKind::File => {}
        MemberKind::HardLink => {
            let first = MemberPath::parse(entry.member.link_target.as_deref().unwrap_or_default())?;
            if first == *path {
                return Err(damaged(path, "it is a hard link to itself"));
            }
            return read_first_name(archive, &first, put);
        }
        _ => {
            return Err(Error::usage(format!("{path} is no file, so it has no content")).hint("list it with `ls -l`"));
        }
    }
    read_content(members, entry, put)
}

/// Links lead to the name that carries the data; a link to a link is none that a tar program makes.
fn read_first_name(archive: &OpenArchive, first: &MemberPath, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let selection = Selection::exactly(vec![first.clone()])?;
    let mut members = archive.members(&selection, 2)?;
    while let Some(event) = members.next()? {
        if let Event::Member(entry) = event
            && entry.member.path == *first
            && entry.member.kind == MemberKind::File
        {
            return read_content(&mut members, &entry, put);
        }
    }
    Err(damaged(first, "a further name leads to it, and it is not there"))
}

/// Passes the content of the current member to `put`.
pub(super) fn read_content(
    members: &mut Members,
    entry: &Entry,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let path = &entry.member.path;
    let mut buffer = vec![0; PIECE_BYTES];
    let mut next = |members: &mut Members, most: u64| -> Result<Vec<u8>> {
        let most = usize::try_from(most).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        match members.read(&mut buffer[..most]) {
            Ok(0) => Err(damaged(path, "its data ends early")),
            Ok(count) => Ok(buffer[..count].to_vec()),
            Err(reason) => Err(damaged(path, &reason)),
        }
    };
    let whole = [Span { offset: 0, length: entry.stored }];
    let mut at = 0;
    for span in entry.spans.as_deref().unwrap_or(&whole) {
        put_zeros(span.offset - at, put)?;
        let mut left = span.length;
        while left > 0 {
            let bytes = next(members, left)?;
            left -= bytes.len() as u64;
            put(&bytes)?;
        }
        at = span.end();
    }
    put_zeros(entry.member.size - at, put)
}

fn put_zeros(mut count: u64, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    static ZEROS: [u8; 65536] = [0; 65536];
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        put(&ZEROS[..now as usize])?;
        count -= now;
    }
    Ok(())
}

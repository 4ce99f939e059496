//! Reads the content of one member without restoring it.

use super::hard_links::HardLinks;
use super::open_archive::OpenArchive;
use super::selection::Selection;
use crate::archive::members::{Entry, Event, Members};
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::member::{MemberKind, MemberPath, Span};

/// Bytes that are read and passed on at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// Passes the content of a file to `put`, holes as zeros. If an archive of another program has several members of this
/// path, the last one counts, as in a restore. A hard link has the content of the file that it refers to.
///
/// Errors: `NotFound`; `Usage` for a member without content; `Damage` if it is not whole, after the bytes that could be
/// read were passed.
pub fn read_file(archive: &OpenArchive, path: &MemberPath, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let selection = Selection::exactly(vec![path.clone()])?;
    if archive.is_ours() {
        return read_last(archive, &selection, path, 0, put);
    }
    let (count, doubt) = count_members(archive, &selection, path)?;
    read_last(archive, &selection, path, count.saturating_sub(1), put)?;
    doubt.map_or(Ok(()), |reason| {
        let message = format!("{} is damaged, and {path} may be wrong: {reason}", archive.path().display());
        Err(Error::new(ErrorKind::Damage, message).hint("restore it from another archive"))
    })
}

/// Passes the content of the member of this path to `put` that has `earlier` others before it.
fn read_last(
    archive: &OpenArchive,
    selection: &Selection,
    path: &MemberPath,
    mut earlier: u64,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut members = archive.members(selection, 2)?;
    let mut damage = None;
    while let Some(event) = members.next()? {
        match event {
            Event::Member(entry) if entry.member.path == *path && earlier == 0 => {
                return read_entry(archive, &mut members, &entry, put);
            }
            Event::Member(entry) => earlier -= u64::from(entry.member.path == *path),
            Event::Refused { reason, .. } | Event::Damaged { reason, .. } | Event::Undecodable { reason } => {
                damage = Some(reason);
            }
        }
    }
    match damage {
        Some(reason) => Err(damaged(path, &reason)),
        None => Err(archive.not_found([path])),
    }
}

/// Returns how many members of this path an archive has, and why all of them may be wrong, if the file does not decode
/// to its end.
fn count_members(archive: &OpenArchive, selection: &Selection, path: &MemberPath) -> Result<(u64, Option<String>)> {
    let mut members = archive.members(selection, 2)?;
    let (mut count, mut doubt) = (0, None);
    while let Some(event) = members.next()? {
        match event {
            Event::Member(entry) => count += u64::from(entry.member.path == *path),
            Event::Undecodable { reason } => doubt = Some(reason),
            Event::Refused { .. } | Event::Damaged { .. } => {}
        }
    }
    Ok((count, doubt))
}

fn damaged(path: &MemberPath, reason: &str) -> Error {
    Error::new(ErrorKind::Damage, format!("{path} is damaged in the archive: {reason}"))
        .hint(format!("search other archives: `backup-manager find --versions {path}`"))
}

fn read_entry(
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
            return read_linked_file(archive, first, put);
        }
        _ => return Err(without_content(path)),
    }
    read_content(members, entry, put)
}

fn without_content(path: &MemberPath) -> Error {
    Error::usage(format!("{path} is not a file and has no content")).hint("list it with `ls -l`")
}

/// Reads the file that a hard link refers to. Our archives name the file itself; others may name a further link.
fn read_linked_file(
    archive: &OpenArchive,
    mut first: MemberPath,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut found = find_member(archive, &first)?;
    if found.as_ref().is_some_and(|(_, entry)| entry.member.kind == MemberKind::HardLink) {
        let end = HardLinks::read(archive, &CancelToken::new())?.end_of_chain(&first);
        first = end.ok_or_else(|| damaged(&first, "hard links refer to each other, and to no file"))?;
        found = find_member(archive, &first)?;
    }
    let Some((mut members, entry)) = found else {
        return Err(damaged(&first, "a hard link refers to it, and it does not exist"));
    };
    match entry.member.kind {
        MemberKind::File => read_content(&mut members, &entry, put),
        _ => Err(without_content(&first)),
    }
}

/// Returns the member of this path, which is still to be read: a file if there is one, else the first.
fn find_member(archive: &OpenArchive, path: &MemberPath) -> Result<Option<(Members<'static>, Box<Entry>)>> {
    let selection = Selection::exactly(vec![path.clone()])?;
    for only_files in [true, false] {
        let mut members = archive.members(&selection, 2)?;
        while let Some(event) = members.next()? {
            if let Event::Member(entry) = event
                && entry.member.path == *path
                && (entry.member.kind == MemberKind::File || !only_files)
            {
                return Ok(Some((members, entry)));
            }
        }
    }
    Ok(None)
}

/// Passes the content of the current member to `put`.
pub(super) fn read_content(
    members: &mut Members,
    entry: &Entry,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let path = &entry.member.path;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut next = |members: &mut Members, max_bytes: u64| -> Result<Vec<u8>> {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        match members.read(&mut buffer[..max_bytes]) {
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

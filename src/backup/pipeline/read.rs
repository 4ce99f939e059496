//! Reading files of the source into chunks.

use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use super::flow::Flow;
use super::large::LargeFile;
use crate::archive::buffer::Buffer;
use crate::member::{Member, MemberKind, Span, Xattrs};
use crate::progress::{Problem, ProblemKind};
use crate::source::{OpenFile, OwnerNames, SourceEntry, Stability, Stat};

/// How often a file is read, or a replaced one looked at, before what there is has to do.
pub(super) const ATTEMPTS: u32 = 3;

/// A file of the source, open.
pub(super) struct Opened {
    pub(super) found: SourceEntry,
    pub(super) file: OpenFile,
    /// It is the file that was listed, and not another that has taken its place since.
    pub(super) is_same: bool,
}

/// Opens a file. One that was replaced by another since it was listed, as programs do to save a file, is that other
/// one.
pub(super) fn open(mut found: SourceEntry) -> Result<Opened, Problem> {
    let mut is_same = true;
    for _ in 1..ATTEMPTS {
        match found.open() {
            Ok(file) => return Ok(Opened { found, file, is_same }),
            Err(problem) if problem.kind != ProblemKind::Replaced => return Err(problem),
            Err(problem) => {
                found = found.stat_again()?;
                is_same = false;
                if found.kind != MemberKind::File {
                    return Err(problem);
                }
            }
        }
    }
    found.open().map(|file| Opened { found, file, is_same })
}

/// Makes the member of something found, without what only some kinds have.
pub(super) fn member(names: &OwnerNames, found: &SourceEntry, stat: &Stat, kind: MemberKind, xattrs: Xattrs) -> Member {
    Member {
        path: found.path.clone(),
        kind,
        size: if kind == MemberKind::File { stat.size } else { 0 },
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        user_name: names.user(stat.uid),
        group_name: names.group(stat.gid),
        modified: stat.modified,
        link_target: None,
        device_number: stat.device_number,
        xattrs,
    }
}

/// Reads the extended attributes of an open file; trouble with them is recorded and costs no more than them.
pub(super) fn xattrs(flow: &Flow<'_>, file: &OpenFile) -> Xattrs {
    file.xattrs().unwrap_or_else(|problem| {
        flow.problem(attributes_lost(problem));
        Xattrs::new()
    })
}

/// Says of a problem that only the extended attributes are lost.
pub(super) fn attributes_lost(problem: Problem) -> Problem {
    Problem { reason: format!("its extended attributes could not be read: {}", problem.reason), ..problem }
}

/// Returns the spans of data of a sparse file; nothing for others.
pub(super) fn spans(file: &OpenFile) -> Option<Vec<Span>> {
    // Where holes cannot be told, their zeros are read and stored.
    file.data_spans().unwrap_or_default()
}

/// Prepares an open file of more than one piece.
pub(super) fn large_file(flow: &Flow<'_>, names: &OwnerNames, found: SourceEntry, file: OpenFile) -> LargeFile {
    let member = member(names, &found, file.stat(), MemberKind::File, xattrs(flow, &file));
    let spans = spans(&file);
    LargeFile::new(found, file, member, spans)
}

/// Returns how many bytes of data lie in a span of the file.
pub(super) fn data_bytes(spans: &[Span], range: &Range<u64>) -> u64 {
    clipped(spans, range).map(|part| part.end - part.start).sum()
}

/// Returns the parts of the spans of data that lie in `range`.
fn clipped<'s>(spans: &'s [Span], range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'s> {
    let range = range.clone();
    let first = spans.partition_point(|span| span.end() <= range.start);
    spans[first..]
        .iter()
        .take_while(move |span| span.offset < range.end)
        .map(move |span| span.offset.max(range.start)..span.end().min(range.end))
}

/// What came of reading a span of a file. Where bytes are missing, zeros stand in the chunk.
#[derive(Default)]
pub(super) struct Reading {
    /// Bytes missing at the end of what was to be read, because the file ended.
    pub(super) missing: u64,
    /// The file goes on behind what was to be read.
    pub(super) goes_on: bool,
    /// Where the system refused to read, and why.
    pub(super) error: Option<(u64, io::Error)>,
}

impl Reading {
    /// Says that all was read and the file ends there.
    pub(super) fn is_exact(&self) -> bool {
        self.missing == 0 && !self.goes_on && self.error.is_none()
    }

    /// Returns what went wrong, if something did.
    pub(super) fn shortfall(&self) -> Option<Shortfall> {
        match &self.error {
            Some((offset, error)) => Some(Shortfall::Refused { offset: *offset, reason: error.to_string() }),
            None => (self.missing > 0).then_some(Shortfall::Ended { bytes: self.missing }),
        }
    }
}

/// Why zeros stand in the archive instead of bytes of a file.
pub(super) enum Shortfall {
    /// The system refused to read from this offset on.
    Refused { offset: u64, reason: String },
    /// The file ended so many bytes before its size at the beginning.
    Ended { bytes: u64 },
}

/// Appends the data that lies in `range` of a file to a chunk, hashing it with the holes between.
pub(super) fn data(
    file: &OpenFile,
    spans: Option<&[Span]>,
    range: &Range<u64>,
    content: &mut Buffer,
    hasher: &mut blake3::Hasher,
) -> Reading {
    let Some(spans) = spans else { return dense(file, range, content, hasher) };
    let mut whole = Reading::default();
    let mut position = range.start;
    for part in clipped(spans, range) {
        hash_zeros(hasher, part.start - position);
        let reading = dense(file, &part, content, hasher);
        whole.missing += reading.missing;
        whole.error = whole.error.or(reading.error);
        position = part.end;
    }
    hash_zeros(hasher, range.end - position);
    whole
}

fn dense(file: &OpenFile, range: &Range<u64>, content: &mut Buffer, hasher: &mut blake3::Hasher) -> Reading {
    let length = (range.end - range.start) as usize;
    let mut reading = Reading::default();
    // One byte more than there should be: a file that goes on is noticed without another call.
    let room = content.spare(length + 1);
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut room[filled..], range.start + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) => {
                reading.error = Some((range.start + filled as u64, e));
                break;
            }
        }
    }
    reading.goes_on = filled > length || length == 0 && matches!(file.read_at(&mut room[..1], range.start), Ok(1));
    if filled < length {
        room[filled..length].fill(0);
        reading.missing = (length - filled) as u64;
    }
    hasher.update(&room[..length]);
    content.keep(length);
    reading
}

/// Reads from the beginning until the file ends, at most `most` bytes; also says whether it ended. In small steps: some
/// files of the system refuse large ones.
pub(super) fn to_its_end(file: &OpenFile, most: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    let mut step = [0; 64 << 10];
    while bytes.len() <= most {
        match file.read_at(&mut step, bytes.len() as u64)? {
            0 => return Ok((bytes, true)),
            count => bytes.extend_from_slice(&step[..count]),
        }
    }
    bytes.truncate(most);
    Ok((bytes, false))
}

fn hash_zeros(hasher: &mut blake3::Hasher, mut count: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..now as usize]);
        count -= now;
    }
}

/// Makes a problem of something found.
pub(super) fn problem(found: &SourceEntry, kind: ProblemKind, reason: impl Into<String>) -> Problem {
    Problem { path: found.fs_path().as_os_str().as_bytes().into(), kind, reason: reason.into() }
}

/// Returns the problem of a file that did not hold still or could not be read whole, if there is one.
pub(super) fn trouble(
    found: &SourceEntry,
    shortfall: Option<Shortfall>,
    stability: Result<Stability, Problem>,
) -> Option<Problem> {
    let (kind, reason) = match (shortfall, stability) {
        (Some(Shortfall::Refused { offset, reason }), _) => {
            let reason = format!("it cannot be read from byte {offset} on: {reason}; zeros stand in its place");
            (ProblemKind::Unreadable, reason)
        }
        (Some(Shortfall::Ended { bytes }), Ok(Stability::Unchanged)) => {
            let reason = format!("it ends {bytes} bytes before its size; zeros stand in their place");
            (ProblemKind::Unreadable, reason)
        }
        (Some(Shortfall::Ended { bytes }), Ok(_)) => {
            let reason = format!("it lost its last {bytes} bytes while it was read; zeros stand in their place");
            (ProblemKind::Changed, reason)
        }
        (None, Ok(Stability::Unchanged)) => return None,
        (None, Ok(Stability::Grew)) => {
            let reason = "it grew while it was read; the archive holds it up to its size at the beginning";
            (ProblemKind::Grew, reason.to_owned())
        }
        (None, Ok(Stability::Changed)) => {
            let reason = "it changed while it was read; what the archive holds may be a mixture";
            (ProblemKind::Changed, reason.to_owned())
        }
        (_, Err(problem)) => return Some(problem),
    };
    Some(problem(found, kind, reason))
}

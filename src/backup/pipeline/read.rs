//! Reading files of the source into chunks.

use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use super::reuse::BaseHint;
use super::state::PipelineState;
use crate::archive::buffer::Buffer;
use crate::member::{Member, MemberKind, Span, Xattrs};
use crate::progress::{Problem, ProblemKind};
use crate::source::{OpenFile, OwnerNames, SourceEntry, Stability, Stat};

/// Maximum number of times that a file that changes is read, or one that was replaced is opened.
pub(super) const MAX_ATTEMPTS: u32 = 3;

/// An open file of the source.
pub(super) struct OpenedFile {
    pub(super) entry: SourceEntry,
    pub(super) file: OpenFile,
    /// It is the file that was listed, not another one that replaced it since.
    pub(super) is_same: bool,
    /// The member of the base with its path.
    pub(super) hint: Option<BaseHint>,
}

/// Opens a file. If another file has replaced it since it was listed, as programs do to save a file, opens that one.
pub(super) fn open(mut entry: SourceEntry, hint: Option<BaseHint>) -> Result<OpenedFile, Problem> {
    let mut is_same = true;
    for _ in 1..MAX_ATTEMPTS {
        match entry.open() {
            Ok(file) => return Ok(OpenedFile { entry, file, is_same, hint }),
            Err(problem) if problem.kind != ProblemKind::Replaced => return Err(problem),
            Err(problem) => {
                entry = entry.stat_again()?;
                is_same = false;
                if entry.kind != MemberKind::File {
                    return Err(problem);
                }
            }
        }
    }
    entry.open().map(|file| OpenedFile { entry, file, is_same, hint })
}

/// Returns the member of an entry, without the fields that only some kinds have.
pub(super) fn member(names: &OwnerNames, entry: &SourceEntry, stat: &Stat, kind: MemberKind, xattrs: Xattrs) -> Member {
    Member {
        path: entry.path.clone(),
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

/// Reads the extended attributes of an open file. If that fails, records the problem and returns `None`.
pub(super) fn xattrs(state: &PipelineState<'_>, file: &OpenFile) -> Option<Xattrs> {
    file.xattrs().map_err(|problem| state.problem(attributes_lost(problem))).ok()
}

/// Converts a problem into one that says that only the extended attributes are lost.
pub(super) fn attributes_lost(problem: Problem) -> Problem {
    Problem { reason: format!("its extended attributes could not be read: {}", problem.reason), ..problem }
}

/// Returns the spans of data of a sparse file; `None` for other files.
pub(super) fn spans(file: &OpenFile) -> Option<Vec<Span>> {
    // If holes cannot be found, their zeros are read and stored.
    file.data_spans().unwrap_or_default()
}

/// Returns the number of bytes of data in a range of the file.
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

/// The outcome of reading a range of a file. Missing bytes are zeros in the chunk.
#[derive(Default)]
pub(super) struct ReadOutcome {
    /// Bytes missing at the end of the range, because the file ended.
    pub(super) missing: u64,
    /// The file continues after the range.
    pub(super) has_more: bool,
    /// The offset at which reading failed, and the error.
    pub(super) error: Option<(u64, io::Error)>,
}

impl ReadOutcome {
    /// Returns whether everything was read and the file ends there.
    pub(super) fn is_exact(&self) -> bool {
        self.missing == 0 && !self.has_more && self.error.is_none()
    }

    /// Returns why bytes are missing, if some are.
    pub(super) fn shortfall(&self) -> Option<Shortfall> {
        match &self.error {
            Some((offset, error)) => Some(Shortfall::Failed { offset: *offset, reason: error.to_string() }),
            None => (self.missing > 0).then_some(Shortfall::Ended { bytes: self.missing }),
        }
    }
}

/// Why the archive holds zeros instead of bytes of a file.
pub(super) enum Shortfall {
    /// Reading failed from this offset on.
    Failed { offset: u64, reason: String },
    /// The file ended this many bytes before its size at opening.
    Ended { bytes: u64 },
}

/// Appends the data in `range` of a file to a chunk, and hashes it with the holes between.
pub(super) fn data(
    file: &OpenFile,
    spans: Option<&[Span]>,
    range: &Range<u64>,
    content: &mut Buffer,
    hasher: &mut blake3::Hasher,
) -> ReadOutcome {
    let Some(spans) = spans else { return read_contiguous(file, range, content, hasher) };
    let mut whole = ReadOutcome::default();
    let mut position = range.start;
    for part in clipped(spans, range) {
        hash_zeros(hasher, part.start - position);
        let outcome = read_contiguous(file, &part, content, hasher);
        whole.missing += outcome.missing;
        whole.error = whole.error.or(outcome.error);
        position = part.end;
    }
    hash_zeros(hasher, range.end - position);
    whole
}

fn read_contiguous(
    file: &OpenFile,
    range: &Range<u64>,
    content: &mut Buffer,
    hasher: &mut blake3::Hasher,
) -> ReadOutcome {
    let length = (range.end - range.start) as usize;
    let mut outcome = ReadOutcome::default();
    // One byte more than the range: so a file that continues is detected without another call.
    let room = content.spare(length + 1);
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut room[filled..], range.start + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) => {
                outcome.error = Some((range.start + filled as u64, e));
                break;
            }
        }
    }
    outcome.has_more = filled > length || length == 0 && matches!(file.read_at(&mut room[..1], range.start), Ok(1));
    if filled < length {
        room[filled..length].fill(0);
        outcome.missing = (length - filled) as u64;
    }
    hasher.update(&room[..length]);
    content.keep(length);
    outcome
}

/// Reads a file from its beginning to its end, at most `max_bytes`, and returns whether it ended there. In small steps,
/// because some files of the system refuse large reads.
pub(super) fn read_to_end(file: &OpenFile, max_bytes: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    let mut step = [0; 64 << 10];
    while bytes.len() <= max_bytes {
        match file.read_at(&mut step, bytes.len() as u64)? {
            0 => return Ok((bytes, true)),
            count => bytes.extend_from_slice(&step[..count]),
        }
    }
    bytes.truncate(max_bytes);
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

/// Returns a problem of an entry.
pub(super) fn problem(entry: &SourceEntry, kind: ProblemKind, reason: impl Into<String>) -> Problem {
    Problem { path: entry.fs_path().as_os_str().as_bytes().into(), kind, reason: reason.into() }
}

/// Returns the problem of a file that changed while it was read or could not be read completely; `None` if neither.
pub(super) fn file_problem(
    entry: &SourceEntry,
    shortfall: Option<Shortfall>,
    stability: Result<Stability, Problem>,
) -> Option<Problem> {
    let (kind, reason) = match (shortfall, stability) {
        (Some(Shortfall::Failed { offset, reason }), _) => {
            let reason = format!("it cannot be read from byte {offset} on: {reason}; the archive holds zeros instead");
            (ProblemKind::Unreadable, reason)
        }
        (Some(Shortfall::Ended { bytes }), Ok(Stability::Unchanged)) => {
            let reason = format!("it ends {bytes} bytes before its size; the archive holds zeros instead");
            (ProblemKind::Unreadable, reason)
        }
        (Some(Shortfall::Ended { bytes }), Ok(_)) => {
            let reason = format!("it lost its last {bytes} bytes while it was read; the archive holds zeros instead");
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
    Some(problem(entry, kind, reason))
}

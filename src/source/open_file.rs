//! An open file of the source: its content, its holes, and whether it changed while it was read.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{SeekFrom, fstat, seek};
use rustix::io::{Errno, pread, retry_on_intr};

use super::attributes;
use super::location::{Location, fs_path};
use super::path_error::PathError;
use super::stat::Stat;
use crate::member::{MemberPath, Span, Xattrs};
use crate::progress::Problem;

/// Beyond this number spans are merged in pairs; the hole between two merged spans is read as zeros.
const MAX_SPANS: usize = 65_536;

/// Whether a file changed while it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Neither content nor attributes changed, as far as the system reports.
    Unchanged,
    /// It is longer now, and nothing else indicates a change. The system does not report whether its earlier content
    /// was also overwritten.
    Grew,
    /// It changed in another way.
    Changed,
}

/// A regular file opened for reading.
#[derive(Debug)]
pub struct OpenFile {
    file: OwnedFd,
    stat: Stat,
    location: Location,
    path: MemberPath,
}

impl OpenFile {
    pub(super) fn new(file: OwnedFd, stat: Stat, location: Location, path: MemberPath) -> Self {
        OpenFile { file, stat, location, path }
    }

    /// Returns its descriptor.
    pub(super) fn handle(&self) -> &OwnedFd {
        &self.file
    }

    /// Returns its facts when it was opened, or at the last [`OpenFile::refresh`].
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Returns the spans that hold data, in order and within the size at opening; `None` for a file without holes, or
    /// if the file system does not report them.
    pub fn data_spans(&self) -> Result<Option<Vec<Span>>, Problem> {
        // Files on a compressing file system also pass this check, and no hole is found in them.
        if self.stat.allocated >= self.stat.size {
            return Ok(None);
        }
        let spans = match self.find_spans() {
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => return Ok(None),
            spans => spans.map_err(|errno| self.problem(errno))?,
        };
        let is_whole = spans == [Span { offset: 0, length: self.stat.size }];
        Ok((!is_whole).then_some(spans))
    }

    fn find_spans(&self) -> Result<Vec<Span>, Errno> {
        let size = self.stat.size;
        let mut spans = Vec::new();
        let mut position = 0;
        while position < size {
            let start = match seek(&self.file, SeekFrom::Data(position)) {
                Err(Errno::NXIO) => break,
                start => start?.min(size),
            };
            // For a file that is truncated or punched at this moment the answers may make no progress: then the rest
            // counts as data.
            let end = match seek(&self.file, SeekFrom::Hole(start)) {
                Err(Errno::NXIO) => size,
                end => end?.min(size),
            };
            let end = if end > start { end } else { size };
            if start < size {
                spans.push(Span { offset: start, length: end - start });
            }
            if spans.len() > MAX_SPANS {
                merge_pairs(&mut spans);
            }
            position = end;
        }
        Ok(spans)
    }

    /// Reads into `buffer` from `offset` and returns the number of bytes, 0 at the end. Never blocks on a file without
    /// data (`/proc` has such files): that is an error of the kind `WouldBlock`.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(retry_on_intr(|| pread(&self.file, &mut *buffer, offset))?)
    }

    /// Reads its extended attributes.
    pub fn xattrs(&self) -> Result<Xattrs, Problem> {
        attributes::of_handle(&self.file).map_err(|errno| self.problem(errno))
    }

    /// Compares the file with its state at opening (or at the last [`OpenFile::refresh`]), by size, times, owner and
    /// mode through the same handle, so that it does not matter if another file takes its name.
    ///
    /// Linux before 6.13, and some file systems still, keep times with a granularity of a few milliseconds: there a
    /// change that keeps the size, made in the same tick as the last one before opening, is not detected.
    pub fn check(&self) -> Result<Stability, Problem> {
        let now = self.stat_now()?;
        let then = &self.stat;
        // A rename or a new hard link also moves `changed`, and the file is then read again for nothing; but a program
        // that sets `modified` back leaves no other trace.
        let same_owner_and_mode = (now.mode, now.uid, now.gid) == (then.mode, then.uid, then.gid);
        let same_times = (now.modified, now.changed) == (then.modified, then.changed);
        let is_later = now.modified >= then.modified && now.changed >= then.changed;
        Ok(if now.size == then.size && same_times && same_owner_and_mode {
            Stability::Unchanged
        } else if now.size > then.size && is_later && same_owner_and_mode {
            Stability::Grew
        } else {
            Stability::Changed
        })
    }

    /// Makes the current state the one to compare with: the first step of reading the file again.
    pub fn refresh(&mut self) -> Result<(), Problem> {
        self.stat = self.stat_now()?;
        Ok(())
    }

    fn stat_now(&self) -> Result<Stat, Problem> {
        let stat = fstat(&self.file).map_err(|errno| self.problem(errno))?;
        Ok(Stat::from_system(&stat).1)
    }

    fn problem(&self, errno: Errno) -> Problem {
        PathError::from(errno).at(&fs_path(self.location.tree(), &self.path))
    }
}

/// Merges each two neighbours into one.
fn merge_pairs(spans: &mut Vec<Span>) {
    let merged = spans.chunks(2).map(|pair| {
        let end = pair[pair.len() - 1].end();
        Span { offset: pair[0].offset, length: end - pair[0].offset }
    });
    *spans = merged.collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_spans_cover_all_spans_before() {
        let span = |offset, length| Span { offset, length };
        let mut spans = vec![span(0, 1), span(10, 5), span(20, 1), span(30, 2), span(40, 3)];
        merge_pairs(&mut spans);
        assert_eq!(spans, [span(0, 15), span(20, 12), span(40, 3)]);
    }
}

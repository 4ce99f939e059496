//! A file of the source, open: its content, its holes, and whether it changed while it was read.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{SeekFrom, fstat, seek};
use rustix::io::{Errno, pread, retry_on_intr};

use super::attributes;
use super::found::{SourceEntry, Stat};
use super::trouble::Trouble;
use crate::member::{Span, Xattrs};
use crate::progress::Problem;

/// More spans than this are told coarser: what is between two of them is then read as the zeros it is.
const MAX_SPANS: usize = 65_536;

/// What became of a file while it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Neither content nor attributes changed, as far as the system tells.
    Unchanged,
    /// It is longer now, and nothing else speaks for a change. The system does not tell whether what stood there before
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
    found: SourceEntry,
}

impl OpenFile {
    pub(super) fn new(file: OwnedFd, stat: Stat, found: SourceEntry) -> Self {
        OpenFile { file, stat, found }
    }

    /// Returns what the system said when it was opened, or at the last [`OpenFile::refresh`].
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Returns the spans that hold data, in order, none beyond the size at opening; none at all for a file without
    /// holes, or where the file system does not tell.
    pub fn data_spans(&self) -> Result<Option<Vec<Span>>, Problem> {
        // A compressing file system takes this road too, and finds no hole.
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
            // A file cut off or punched just now may answer with no progress: the rest counts as data then.
            let end = match seek(&self.file, SeekFrom::Hole(start)) {
                Err(Errno::NXIO) => size,
                end => end?.min(size),
            };
            let end = if end > start { end } else { size };
            if start < size {
                spans.push(Span { offset: start, length: end - start });
            }
            if spans.len() > MAX_SPANS {
                halve(&mut spans);
            }
            position = end;
        }
        Ok(spans)
    }

    /// Reads into `buffer` from `offset` on and returns how many bytes that were; 0 at the end. Never waits for data
    /// that is not there (`/proc` has such files): that is an error of the kind `WouldBlock`.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(retry_on_intr(|| pread(&self.file, &mut *buffer, offset))?)
    }

    /// Reads its extended attributes.
    pub fn xattrs(&self) -> Result<Xattrs, Problem> {
        attributes::of_handle(&self.file).map_err(|errno| self.problem(errno))
    }

    /// Compares the file with what it was at opening (or at the last [`OpenFile::refresh`]). Told by size and times
    /// through the same handle, so what other files take its name does not matter.
    ///
    /// Linux before 6.13, and some file systems still, keep times to a few milliseconds: there a change that keeps the
    /// size, made in the same tick as the last one before opening, is not seen.
    pub fn check(&self) -> Result<Stability, Problem> {
        let now = self.look()?;
        let then = &self.stat;
        // A new name or link moves `changed` too, and has the file read once more for nothing; but whoever sets
        // `modified` back by hand leaves no other trace.
        let same_owner_and_mode = (now.mode, now.uid, now.gid) == (then.mode, then.uid, then.gid);
        let same_times = (now.modified, now.changed) == (then.modified, then.changed);
        let later = now.modified >= then.modified && now.changed >= then.changed;
        Ok(if now.size == then.size && same_times && same_owner_and_mode {
            Stability::Unchanged
        } else if now.size > then.size && later && same_owner_and_mode {
            Stability::Grew
        } else {
            Stability::Changed
        })
    }

    /// Takes the file as it is now for what it is to be compared with: the first step of reading it once more.
    pub fn refresh(&mut self) -> Result<(), Problem> {
        self.stat = self.look()?;
        Ok(())
    }

    fn look(&self) -> Result<Stat, Problem> {
        let stat = fstat(&self.file).map_err(|errno| self.problem(errno))?;
        Ok(Stat::from_system(&stat).1)
    }

    fn problem(&self, errno: Errno) -> Problem {
        Trouble::from(errno).at(&self.found.fs_path())
    }
}

/// Joins each two neighbours to one.
fn halve(spans: &mut Vec<Span>) {
    let joined = spans.chunks(2).map(|pair| {
        let end = pair[pair.len() - 1].end();
        Span { offset: pair[0].offset, length: end - pair[0].offset }
    });
    *spans = joined.collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarser_spans_hold_all_that_the_finer_ones_held() {
        let span = |offset, length| Span { offset, length };
        let mut spans = vec![span(0, 1), span(10, 5), span(20, 1), span(30, 2), span(40, 3)];
        halve(&mut spans);
        assert_eq!(spans, [span(0, 15), span(20, 12), span(40, 3)]);
    }
}

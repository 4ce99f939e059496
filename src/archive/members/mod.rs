//! The one reader of tar members. The catalog, listings and restores all see what it returns. It reads our archives and
//! those of others: `ustar`, pax, GNU (long names, sparse files, numbers in base 256) and v7.
//!
//! What it returns is safe to name: paths are [`MemberPath`]s. A member that cannot be trusted is reported as refused,
//! with its name, and reading continues after it. Memory is bounded whatever the archive holds.

mod blocks;
mod entries;
mod error;
mod header_block;
mod names;
mod pax;
mod spans;

use self::blocks::BlockReader;
use self::entries::EntryReader;
use self::error::HeaderError;
use self::pax::Pax;
use super::block::BLOCK_BYTES;
use super::content::{Content, ReadError};
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::member::MemberPath;

pub use self::entries::Entry;
pub(super) use self::header_block::{Family, HeaderBlock};

/// Largest number of members in an archive. More could keep a reader busy without end.
const MAX_MEMBERS: u64 = 50_000_000;

/// What [`Members::next`] found: a member, or a place where one is missing.
#[derive(Debug)]
pub enum Event {
    /// A member. [`Members::read`] returns its data until the next call of [`Members::next`].
    Member(Box<Entry>),
    /// A member that cannot be trusted. Its data is skipped.
    Refused {
        /// The name as the archive has it, or what there is of it.
        name: Vec<u8>,
        /// Why it is refused.
        reason: String,
    },
    /// Damage, in which members may be lost.
    Damaged {
        /// The chunk in which it was found; in an archive without chunks, the MiB.
        sequence: u64,
        /// Name of the last member before it.
        after: Option<MemberPath>,
        /// What is wrong.
        reason: String,
    },
    /// The compressed file does not decode to its end, so a checksum of what was read before was not reached or is
    /// wrong: any member before may be wrong, and members after it may be lost. The last event.
    Undecodable {
        /// What is wrong, and what it means.
        reason: String,
    },
}

/// Returns the comment of the pax global header with which `content` begins, if there is one.
pub(super) fn global_comment(content: &[u8]) -> Option<Vec<u8>> {
    let (block, data) = content.split_first_chunk::<BLOCK_BYTES>()?;
    let header = HeaderBlock::parse(block).filter(|header| header.type_flag() == b'g')?;
    let records = data.get(..usize::try_from(header.size()?).ok()?)?;
    let mut pax = Pax::default();
    pax.add(records, 0).ok()?;
    pax.comment
}

/// Reads the members of an archive in order.
pub struct Members<'c> {
    entries: EntryReader<'c>,
    /// Events so far.
    count: u64,
    last: Option<MemberPath>,
    is_over: bool,
}

impl<'c> Members<'c> {
    /// Reads a whole archive from its beginning.
    pub fn new(content: Content<'c>) -> Self {
        Members::starting(content, false)
    }

    /// Reads the members in some chunks of an archive.
    pub fn partial(content: Content<'c>) -> Self {
        Members::starting(content, true)
    }

    /// Lets `cancel` end what may read the whole file before it returns anything: the search for a header after damage,
    /// the data of a member that is skipped in a compressed stream, and what follows the end marks.
    pub fn cancelled_by(mut self, cancel: &'c CancelToken) -> Self {
        self.entries.blocks.content.cancel = cancel;
        self
    }

    fn starting(content: Content<'c>, is_partial: bool) -> Self {
        let blocks = BlockReader::new(content, is_partial);
        Members { entries: EntryReader { blocks, global: Pax::default() }, count: 0, last: None, is_over: false }
    }

    /// Returns the comment of the first pax global header that has one.
    pub fn comment(&self) -> Option<&[u8]> {
        self.entries.global.comment.as_deref()
    }

    /// Returns the next event; `None` at the end of the archive.
    ///
    /// Errors: [`ErrorKind::Damage`] if this is no tar archive or only zeros, [`ErrorKind::Failed`] if it has
    /// too many, `Interrupted` after [`Members::cancelled_by`], and the error that kept the plan of chunks from being
    /// read.
    #[allow(clippy::should_implement_trait, reason = "its data is read between two calls")]
    pub fn next(&mut self) -> Result<Option<Event>> {
        if self.is_over {
            return Ok(None);
        }
        let was_in_data = self.entries.blocks.is_in_data();
        if let Err(error) = self.entries.blocks.skip_data() {
            // Only padding at the very end of the archive may be missing.
            let is_missing = was_in_data || !matches!(error, ReadError::End);
            return if is_missing { self.interrupted(error) } else { self.next() };
        }
        // A member after chunks that are left out begins there, not where the last one ended.
        self.entries.blocks.pass_jump();
        let (sequence, offset) = self.entries.blocks.content.position();
        let event = match self.entries.next_entry() {
            Ok(None) => return self.end(),
            Ok(Some(mut entry)) => {
                (entry.sequence, entry.offset) = (sequence, offset);
                self.last = Some(entry.member.path.clone());
                Event::Member(entry)
            }
            Err(HeaderError::Refused { name, reason, can_continue }) => {
                if !can_continue {
                    self.entries.blocks.forget_data();
                }
                Event::Refused { name, reason }
            }
            Err(HeaderError::Read(error)) => return self.interrupted(error),
        };
        self.count += 1;
        if self.count > MAX_MEMBERS {
            return Err(Error::failed(format!("the archive has more than {MAX_MEMBERS} members"))
                .hint("name the paths that you want"));
        }
        Ok(Some(event))
    }

    /// Ends at the end marks. What follows them is no tar, but a codec may have a checksum there.
    fn end(&mut self) -> Result<Option<Event>> {
        self.is_over = true;
        let has_begun = self.entries.blocks.has_begun();
        let BlockReader { content, .. } = &mut self.entries.blocks;
        let result = content.read_rest();
        if let Some(error) = content.take_failure() {
            return Err(error);
        }
        match result {
            // Nothing but zeros: an empty archive, or a file that lost its content.
            Ok(()) if !has_begun => {
                let file = content.path().display();
                Err(Error::new(ErrorKind::Damage, format!("{file} holds no members, only zeros"))
                    .hint("restore from another archive"))
            }
            Ok(()) => Ok(None),
            Err(error @ ReadError::Undecodable(_)) => {
                let reason = format!("{}; any of the files above may be wrong", error.reason());
                Ok(Some(Event::Undecodable { reason }))
            }
            Err(error) => {
                let (sequence, _) = self.entries.blocks.content.position();
                Ok(Some(Event::Damaged { sequence, after: self.last.clone(), reason: error.reason() }))
            }
        }
    }

    fn no_tar(&self, reason: &str) -> Error {
        let file = self.entries.blocks.content.path().display();
        Error::new(ErrorKind::Damage, format!("{file} cannot be read as a tar archive: {reason}"))
            .hint("tar files are read plain, or compressed by gzip or zstd: unpack any other first")
    }

    /// Reads data of the current member: as many bytes as are available, 0 at its end. Errors: why bytes are missing,
    /// in words; the rest of the archive can still be read.
    pub fn read(&mut self, out: &mut [u8]) -> std::result::Result<usize, String> {
        self.entries.blocks.read_data(out).map_err(|error| error.reason())
    }

    /// Continues after bytes that are missing, where that is possible.
    fn interrupted(&mut self, error: ReadError) -> Result<Option<Event>> {
        let content = &mut self.entries.blocks.content;
        if let Some(error) = content.take_failure() {
            return Err(error);
        }
        let (sequence, _) = content.position();
        match error {
            ReadError::End if content.pass_jump() => return self.next(),
            ReadError::Gap(_) => self.entries.blocks.resynchronise(),
            ReadError::End | ReadError::Broken(_) | ReadError::Undecodable(_) => self.is_over = true,
        }
        let reason = error.reason();
        if self.is_over && !self.entries.blocks.has_begun() {
            return Err(self.no_tar(&reason));
        }
        if let ReadError::Undecodable(_) = error {
            let reason = format!("{reason}; any of the files above may be wrong, and files after them may be lost");
            return Ok(Some(Event::Undecodable { reason }));
        }
        Ok(Some(Event::Damaged { sequence, after: self.last.clone(), reason }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::archive::reader::ArchiveReader;
    use crate::member::Span;

    fn header(name: &str, size: u64) -> [u8; BLOCK_BYTES] {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_size(size);
        header.set_cksum();
        *header.as_bytes()
    }

    #[test]
    fn data_that_cannot_be_read_behind_a_header_found_after_damage_is_a_gap() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let blocks = [[b'x'; BLOCK_BYTES], header("found", 512), header("next", 0), [0; 512], [0; 512]];
        std::fs::write(file.path(), blocks.concat()).unwrap();
        let archive = Arc::new(ArchiveReader::open(file.path()).unwrap());
        // The data of the found member lies beyond the end of the file, where nothing can be read.
        let ranges = [(0, 1024), (1 << 20, 512), (1024, 1536)].map(|(offset, length)| Span { offset, length });
        let mut members = Members::new(Content::ranges(archive, ranges.into_iter()));
        assert!(matches!(members.next().unwrap(), Some(Event::Damaged { after: None, .. })));
        for (name, is_whole) in [("found", false), ("next", true)] {
            let event = members.next().unwrap();
            let Some(Event::Member(entry)) = event else { panic!("{event:?} is not {name}") };
            assert_eq!(entry.member.path.to_string(), name);
            assert_eq!(members.read(&mut [0; 512]).is_ok(), is_whole, "{name}");
        }
    }
}

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
use super::content::{Content, ReadError};
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
}

/// Reads the members of an archive in order.
pub struct Members {
    entries: EntryReader,
    /// Events so far.
    count: u64,
    last: Option<MemberPath>,
    is_over: bool,
}

impl Members {
    /// Reads a whole archive from its beginning.
    pub fn new(content: Content) -> Members {
        Members::starting(content, false)
    }

    /// Reads the members in some chunks of an archive.
    pub fn partial(content: Content) -> Members {
        Members::starting(content, true)
    }

    fn starting(content: Content, is_partial: bool) -> Members {
        let blocks = BlockReader::new(content, is_partial);
        Members { entries: EntryReader { blocks, global: Pax::default() }, count: 0, last: None, is_over: false }
    }

    /// Returns the comment of the last pax global header, if there was one.
    pub fn comment(&self) -> Option<&[u8]> {
        self.entries.global.comment.as_deref()
    }

    /// Returns the next event; `None` at the end of the archive.
    ///
    /// Errors: [`ErrorKind::Damage`] if this is no tar archive, [`ErrorKind::Failed`] if it has too many members, and
    /// the error that kept the plan of chunks from being read.
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
        let (sequence, offset) = self.entries.blocks.content.position();
        let event = match self.entries.next_entry() {
            Ok(None) => {
                self.is_over = true;
                None
            }
            Ok(Some(mut entry)) => {
                (entry.sequence, entry.offset) = (sequence, offset);
                self.last = Some(entry.member.path.clone());
                Some(Event::Member(entry))
            }
            Err(HeaderError::Refused { name, reason, can_continue }) => {
                if !can_continue {
                    self.entries.blocks.forget_data();
                }
                Some(Event::Refused { name, reason })
            }
            Err(HeaderError::Read(error)) => return self.interrupted(error),
        };
        self.entries.blocks.set_begun();
        self.count += 1;
        if self.count > MAX_MEMBERS {
            return Err(Error::failed(format!("the archive has more than {MAX_MEMBERS} members"))
                .hint("name the paths that you want"));
        }
        Ok(event)
    }

    /// Reads data of the current member: as many bytes as are available, 0 at its end. Errors: why bytes are missing,
    /// in words; the rest of the archive can still be read.
    pub fn read(&mut self, out: &mut [u8]) -> std::result::Result<usize, String> {
        self.entries.blocks.read_data(out).map_err(|error| error.reason())
    }

    /// Reads what follows the end marks, up to the end of the file: not tar, but a codec may have a checksum there.
    /// Errors: what is wrong with it, in words.
    pub(super) fn read_rest(&mut self) -> std::result::Result<(), String> {
        let mut buffer = vec![0; 1 << 17];
        loop {
            match self.entries.blocks.content.read(&mut buffer) {
                Ok(_) => {}
                Err(ReadError::End) => return Ok(()),
                Err(error) => return Err(error.reason()),
            }
        }
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
            ReadError::Gap(_) => content.resynchronise(),
            ReadError::End | ReadError::Broken(_) => self.is_over = true,
        }
        let reason = error.reason();
        if self.is_over && !self.entries.blocks.has_begun() {
            let file = self.entries.blocks.content.path().display();
            return Err(Error::new(ErrorKind::Damage, format!("{file} cannot be read as a tar archive: {reason}"))
                .hint("tar files are read plain, or compressed by gzip or zstd: unpack any other first"));
        }
        Ok(Some(Event::Damaged { sequence, after: self.last.clone(), reason }))
    }
}

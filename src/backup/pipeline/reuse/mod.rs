//! Reuse of the base, an earlier archive of the same schedule: what did not change is taken from it without being read,
//! and what was read and is equal is not encoded again.
//!
//! The planner joins the members of its plans with those of the base ([`cursor`]); a worker decides whether all members
//! of a plan are unchanged, by the rule in [`unchanged`]; the assembler takes the bytes from the base.

mod cursor;
mod pages;
mod reasons;
mod unchanged;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) use self::cursor::{BaseCursor, BaseHint, BaseRef, Match};
pub(super) use self::pages::{Page, read_pages};
pub(super) use self::reasons::ReadReasons;
pub use self::reasons::{ReadReason, ReuseCounts};
pub use self::unchanged::Rules;
pub(super) use self::unchanged::{Details, check_details};
use crate::archive::buffer::Buffer;
use crate::archive::reader::ArchiveReader;
use crate::archive::trailer::Facts;
use crate::chunk::{BaseChunk, Chunk};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::source::WalkSummary;

/// The archive that a run takes unchanged chunks from. Nothing of it is removed as long as the run lasts.
pub struct Base<'a> {
    /// Number of the run that made it.
    pub run: i64,
    /// Its bytes, open, so that no other file can take the place of its own.
    pub reader: &'a ArchiveReader,
    /// Chunks in it, those of the global header and the end marks counted.
    pub chunks: u64,
    /// Bytes in the file.
    pub size: u64,
    /// The archive digest.
    pub digest: [u8; 32],
    /// When a member counts as unchanged.
    pub rules: Rules,
    /// Returns up to so many of its chunks with their members, from a sequence number on.
    pub pages: &'a (dyn Fn(u64, u32) -> Result<Vec<BaseChunk>> + Sync),
    /// Records that chunks of it, by their rows, were read again by this run and are equal.
    pub mark_reread: &'a (dyn Fn(&[i64]) -> Result<()> + Sync),
    /// What its trailer says, if its file may become that of a run that finds nothing changed.
    pub facts: Option<Facts>,
    /// An unused name in the folder of the new archive, for the moment before a link takes the temporary one.
    pub link_name: &'a Path,
    /// Set when the bytes of a chunk are not those that were written.
    pub is_damaged: &'a AtomicBool,
}

impl Base<'_> {
    /// Makes the file at `temporary` a further name of the base's file, if an archive with these facts may have it;
    /// returns whether it is one.
    pub(super) fn link_to(&self, temporary: &Path, facts: &Facts) -> bool {
        let is_same = self.is_described_by(facts);
        let Some(file) = self.reader.whole_file().filter(|_| is_same) else { return false };
        durable::link_over(file, self.reader.path(), self.link_name, temporary)
            .inspect_err(|error| log::info!("the archive is written, not linked: {error}"))
            .is_ok()
    }

    /// Returns whether the archive of the base may be one with these facts: only the run may differ.
    pub(super) fn is_described_by(&self, facts: &Facts) -> bool {
        self.facts.as_ref().is_some_and(|base| *base == Facts { run: base.run, ..facts.clone() })
    }

    /// Returns the notes on what the base was of use for.
    pub(super) fn notes(&self, counts: &ReuseCounts, summary: &WalkSummary) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        for kind in summary.untrusted.iter().filter(|_| !self.rules.trusts_times) {
            notes.push(format!(
                "reuse off: {kind}: the files there are read by each run, because their times may not show changes"
            ));
        }
        let count = |reason| counts.read.get(&reason).copied().unwrap_or(0);
        let read: u64 = counts.read.values().sum();
        if count(ReadReason::InodeOnly) > read / 2 && read > counts.reused {
            notes.push(
                "most files were read again only because their inode numbers changed; if the file system assigns new \
                 ones each time, set --ignore-inode"
                    .to_owned(),
            );
        }
        notes
    }

    /// Returns the error of a base that the catalog does not hold completely.
    pub(super) fn incomplete(&self) -> Error {
        Error::failed(format!("the catalog does not hold all chunks of archive @{}", self.run))
    }

    /// Reads the stored bytes of a chunk.
    ///
    /// Errors: [`ErrorKind::Damage`] if they are not those that were written.
    pub(super) fn read(&self, chunk: &Chunk, stored: &mut Buffer) -> Result<()> {
        stored.clear();
        let found = self.reader.read_stored(chunk.offset, chunk.stored_length, stored);
        if found.is_ok() && blake3::hash(stored) == chunk.stored_digest {
            return Ok(());
        }
        self.is_damaged.store(true, Ordering::Relaxed);
        let (path, sequence, offset) = (self.reader.path().display(), chunk.sequence, chunk.offset);
        let reason = found.map_or_else(|e| e.to_string(), |()| "its bytes are not those that were written".to_owned());
        let message = format!("{path} is damaged in chunk {sequence} at byte {offset}: {reason}");
        Err(Error::new(ErrorKind::Damage, message))
    }
}

//! Writes the data of one file, checks it and renames the file into place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::report::Report;
use super::state::RestoreState;
use crate::archive::members::Entry;
use crate::confined::{self, MetadataLoss, NewEntry, OpenFolder, Privileges};
use crate::member::Span;

/// Bytes of a file that are read at a time, unless it is small.
pub(super) const READ_BYTES: usize = 1 << 18;

/// Holes longer than this in all are not hashed as zeros: the digests of the chunks cover the map of the file.
const MAX_HASHED_HOLE_BYTES: u64 = 256 << 20;

/// A file to be written. The path of its member is relative to the target.
pub(super) struct FileJob {
    pub folder: Arc<OpenFolder>,
    pub entry: Box<Entry>,
    /// BLAKE3 of its logical content, if the catalog has it.
    pub digest: Option<[u8; 32]>,
    /// An existing entry is replaced.
    pub replace: bool,
}

/// Why a file was not written.
pub(super) enum WriteError {
    /// The archive does not have it whole.
    Damaged(String),
    /// The system reports an error.
    Io(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        WriteError::Io(error)
    }
}

impl FileJob {
    /// Writes the file. `next` fills a buffer with the next part of the data and returns false at its end; its error is
    /// the reason why data is missing.
    pub fn write(
        &self,
        privileges: Privileges,
        next: &mut dyn FnMut(&mut Vec<u8>) -> Result<bool, String>,
    ) -> Result<MetadataLoss, WriteError> {
        let member = &self.entry.member;
        let is_private = self.folder.is_private;
        let mode = if is_private { confined::mode_at_creation(member) } else { confined::PRIVATE_MODE };
        let (new_entry, file) = NewEntry::file(&self.folder.handle, mode)?;
        let mut writer = SparseWriter {
            file: &file,
            spans: self.entry.spans.as_deref(),
            position: 0,
            hasher: self.is_hashed().then(blake3::Hasher::new),
            hashed_bytes: 0,
        };
        let (mut buffer, mut written) = (Vec::new(), 0);
        while next(&mut buffer).map_err(WriteError::Damaged)? {
            writer.write(&buffer)?;
            written += buffer.len() as u64;
        }
        if written != self.entry.stored {
            return Err(WriteError::Damaged(format!(
                "the archive has only {written} of its {} bytes",
                self.entry.stored
            )));
        }
        let digest = writer.finish(member.size)?;
        if digest.is_some() && digest != self.digest {
            return Err(WriteError::Damaged("its content has not the digest in the catalog".to_owned()));
        }
        if self.folder.may_have_default_acl {
            confined::clear_inherited_acl(&file);
        }
        let loss = confined::apply_metadata(&file, member, privileges)?;
        new_entry.rename_into_place(member.path.file_name(), self.replace)?;
        Ok(loss)
    }

    fn is_hashed(&self) -> bool {
        let holes = self.entry.spans.as_ref().map_or(0, |_| self.entry.member.size.saturating_sub(self.entry.stored));
        self.digest.is_some() && holes <= MAX_HASHED_HOLE_BYTES
    }

    /// Writes the file whose whole data this is.
    pub fn write_whole(&self, privileges: Privileges, data: Vec<u8>) -> Result<MetadataLoss, WriteError> {
        let mut data = Some(data).filter(|data| !data.is_empty());
        self.write(privileges, &mut |buffer| {
            let next = data.take();
            Ok(next.map(|bytes| *buffer = bytes).is_some())
        })
    }

    /// Adds a file that was written to the report.
    pub fn count(&self, report: &mut Report, loss: MetadataLoss) {
        report.add_file(self.entry.member.size);
        report.record_loss(&self.entry.member.path, loss);
    }

    /// Records the result of [`FileJob::write`].
    pub fn record(&self, state: &RestoreState, result: Result<MetadataLoss, WriteError>) {
        let path = &self.entry.member.path;
        match result {
            Ok(loss) => state.complete(path, |report| self.count(report, loss)),
            Err(WriteError::Damaged(reason)) => {
                state.abort(path, |report| report.damaged.add(path.as_bytes(), reason));
            }
            Err(WriteError::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                state.abort(path, |report| {
                    report.conflicts.add(path.as_bytes(), "another process created it during the restore".to_owned())
                });
            }
            Err(WriteError::Io(error)) => state.record_failure(path, &error),
        }
    }
}

/// Writes the stored bytes of a file at their offsets, past its holes.
struct SparseWriter<'a> {
    file: &'a File,
    /// The spans that are not complete; `None` for a file without holes.
    spans: Option<&'a [Span]>,
    /// Offset of the next byte in the file; in a sparse file, in the first of `spans`.
    position: u64,
    hasher: Option<blake3::Hasher>,
    hashed_bytes: u64,
}

impl SparseWriter<'_> {
    fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let (offset, room) = match self.spans {
                None => (self.position, data.len()),
                Some([]) => return Err(io::Error::other("the archive has more data than its map of holes")),
                Some([span, ..]) => {
                    (span.offset + self.position, data.len().min((span.length - self.position) as usize))
                }
            };
            let (now, rest) = data.split_at(room);
            self.file.write_all_at(now, offset)?;
            self.hash_zeros(offset);
            if let Some(hasher) = &mut self.hasher {
                hasher.update(now);
                self.hashed_bytes += now.len() as u64;
            }
            self.position += now.len() as u64;
            if let Some([span, spans @ ..]) = self.spans
                && self.position == span.length
            {
                (self.spans, self.position) = (Some(spans), 0);
            }
            data = rest;
        }
        Ok(())
    }

    /// Hashes zeros up to the offset `end`.
    fn hash_zeros(&mut self, end: u64) {
        static ZEROS: [u8; 65536] = [0; 65536];
        let Some(hasher) = &mut self.hasher else { return };
        while self.hashed_bytes < end {
            let count = (end - self.hashed_bytes).min(ZEROS.len() as u64);
            hasher.update(&ZEROS[..count as usize]);
            self.hashed_bytes += count;
        }
    }

    /// Sets the size of the file and returns the digest of its content if it was hashed.
    fn finish(mut self, size: u64) -> io::Result<Option<[u8; 32]>> {
        if self.spans.is_some() {
            self.file.set_len(size)?;
        }
        self.hash_zeros(size);
        Ok(self.hasher.map(|hasher| *hasher.finalize().as_bytes()))
    }
}

//! One file: its data from the archive to its place, checked on the way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::shared::Shared;
use super::tree::Folder;
use crate::archive::members::Entry;
use crate::confined::{self, MetadataLoss, NewEntry, Privileges};
use crate::member::Span;

/// Zeros longer than this are not hashed: the chunks' digests vouch for the map.
const MOST_HOLES_HASHED: u64 = 256 << 20;

/// A file and where it goes. The member's path is where it goes, beneath the target.
pub(super) struct FileJob {
    pub folder: Arc<Folder>,
    pub entry: Box<Entry>,
    /// BLAKE3 of its logical content, where the catalog knows it.
    pub digest: Option<[u8; 32]>,
    /// Whatever stands there is replaced.
    pub replace: bool,
}

/// Why a file was not restored.
pub(super) enum Unwritten {
    /// The archive does not have it whole.
    Damaged(String),
    Io(io::Error),
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Unwritten::Io(error)
    }
}

impl FileJob {
    /// Writes the file. `next` fills a buffer with what comes next of the data, and returns none at its end; its error
    /// says why the data is missing.
    pub fn write(
        &self,
        privileges: Privileges,
        next: &mut dyn FnMut(&mut Vec<u8>) -> Result<bool, String>,
    ) -> Result<MetadataLoss, Unwritten> {
        let member = &self.entry.member;
        let (made, file) = NewEntry::file(&self.folder.handle)?;
        let mut writer = Writer {
            file: &file,
            spans: self.entry.spans.as_deref(),
            at: 0,
            hasher: self.hashes().then(blake3::Hasher::new),
            hashed: 0,
        };
        let (mut buffer, mut written) = (Vec::new(), 0);
        while next(&mut buffer).map_err(Unwritten::Damaged)? {
            writer.put(&buffer)?;
            written += buffer.len() as u64;
        }
        if written != self.entry.stored {
            return Err(Unwritten::Damaged(format!("{written} of {} bytes are there", self.entry.stored)));
        }
        let found = writer.finish(member.size)?;
        if found.is_some() && found != self.digest {
            return Err(Unwritten::Damaged("its content is not what the catalog says".to_owned()));
        }
        if self.folder.lends_rights {
            confined::clear_inherited_acl(&file);
        }
        let loss = confined::apply_metadata(&file, member, privileges)?;
        made.rename_into_place(member.path.file_name(), self.replace)?;
        Ok(loss)
    }

    fn hashes(&self) -> bool {
        let holes = self.entry.spans.as_ref().map_or(0, |_| self.entry.member.size.saturating_sub(self.entry.stored));
        self.digest.is_some() && holes <= MOST_HOLES_HASHED
    }

    /// Records what became of it.
    pub fn record(&self, shared: &Shared, result: Result<MetadataLoss, Unwritten>) {
        let member = &self.entry.member;
        let path = &member.path;
        match result {
            Ok(loss) => shared.placed(path, |report| {
                report.extent.members += 1;
                report.extent.files += 1;
                report.extent.content_bytes += member.size;
                report.fell_short(path, loss);
            }),
            Err(Unwritten::Damaged(reason)) => {
                shared.given_up(path, |report| report.damaged.add(path.as_bytes(), reason));
            }
            Err(Unwritten::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                shared
                    .given_up(path, |report| report.conflicts.add(path.as_bytes(), "it has just been made".to_owned()));
            }
            Err(Unwritten::Io(error)) => shared.failed(path, &error),
        }
    }
}

/// Puts data where it belongs in a file that may have holes.
struct Writer<'a> {
    file: &'a File,
    spans: Option<&'a [Span]>,
    /// Where the next byte goes; in a sparse file, how much of the first of `spans` is written.
    at: u64,
    hasher: Option<blake3::Hasher>,
    hashed: u64,
}

impl Writer<'_> {
    fn put(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let (offset, room) = match self.spans {
                None => (self.at, data.len()),
                Some([]) => return Err(io::Error::other("there is more data than the sparse map has room for")),
                Some([span, ..]) => (span.offset + self.at, data.len().min((span.length - self.at) as usize)),
            };
            let (now, later) = data.split_at(room);
            self.file.write_all_at(now, offset)?;
            self.hash_zeros(offset);
            if let Some(hasher) = &mut self.hasher {
                hasher.update(now);
                self.hashed += now.len() as u64;
            }
            self.at += now.len() as u64;
            if let Some([span, rest @ ..]) = self.spans
                && self.at == span.length
            {
                (self.spans, self.at) = (Some(rest), 0);
            }
            data = later;
        }
        Ok(())
    }

    fn hash_zeros(&mut self, end: u64) {
        static ZEROS: [u8; 65536] = [0; 65536];
        let Some(hasher) = &mut self.hasher else { return };
        while self.hashed < end {
            let count = (end - self.hashed).min(ZEROS.len() as u64);
            hasher.update(&ZEROS[..count as usize]);
            self.hashed += count;
        }
    }

    /// Gives the file its size and returns the digest of its content, if it was asked for.
    fn finish(mut self, size: u64) -> io::Result<Option<[u8; 32]>> {
        if self.spans.is_some() {
            self.file.set_len(size)?;
        }
        self.hash_zeros(size);
        Ok(self.hasher.map(|hasher| *hasher.finalize().as_bytes()))
    }
}

//! A part of a file that is too large to be restored whole: some of its chunks, spread over it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::archive::buffer::Buffer;
use crate::archive::reader::ArchiveReader;
use crate::archive::rebuild;
use crate::cancel::CancelToken;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};
use crate::member::MemberPath;
use crate::store::Store;

/// Chunks of one file, in order.
pub(super) struct FilePart {
    path: MemberPath,
    chunks: Vec<Chunk>,
}

impl FilePart {
    /// Chooses chunks of the file whose header lies in chunk `sequence` of the archive of `run`: at most `max_bytes`,
    /// but at least one. `seed` decides which.
    pub(super) fn choose(
        store: &Store,
        run: i64,
        path: MemberPath,
        sequence: u64,
        max_bytes: u64,
        seed: u64,
    ) -> Result<FilePart> {
        let all = store.chunks_of_unit(run, sequence)?;
        let total_bytes: u64 = all.iter().map(|chunk| chunk.content_length).sum();
        let step = total_bytes.div_ceil(max_bytes.max(1)).clamp(1, all.len().max(1) as u64);
        let mut spread: Vec<Chunk> = all.into_iter().skip((seed % step) as usize).step_by(step as usize).collect();
        // Perhaps not all of them fit: the ones left out are others each time.
        let first = (seed / step) % spread.len().max(1) as u64;
        spread.rotate_left(first as usize);
        let mut taken_bytes = 0_u64;
        let mut chunks: Vec<Chunk> = Vec::new();
        for chunk in spread {
            if !chunks.is_empty() && taken_bytes + chunk.content_length > max_bytes {
                break;
            }
            taken_bytes += chunk.content_length;
            chunks.push(chunk);
        }
        chunks.sort_by_key(|chunk| chunk.sequence);
        Ok(FilePart { path, chunks })
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &MemberPath {
        &self.path
    }

    /// Returns the bytes of tar in the chunks.
    pub(super) fn content_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.content_length).sum()
    }

    /// Decodes the chunks from the archive file into a file in `target`, reads that file back and compares it with the
    /// catalog; returns the differences, in words.
    pub(super) fn restore_and_compare(
        &self,
        archive: &Path,
        target: &Path,
        cancel: &CancelToken,
    ) -> Result<Vec<String>> {
        let archive = ArchiveReader::open(archive)?;
        archive.drop_cached()?;
        let path = target.join("part");
        let mut file =
            File::options().read(true).write(true).create_new(true).open(&path).map_err(Error::io("create", &path))?;
        let mut reader = rebuild::ChunkReader::new(&archive)?;
        let mut content = Buffer::new();
        let mut differences = Vec::new();
        for chunk in &self.chunks {
            if cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Interrupted, "the restore test was interrupted"));
            }
            match reader.read(chunk, &mut content) {
                Err(error) if error.kind() == ErrorKind::Damage => {
                    differences.push(format!("{}: {error}", self.path));
                    continue;
                }
                read => read?,
            }
            // One chunk at a time, so that the scratch folder needs no more than that.
            file.rewind().and_then(|()| file.write_all(&content)).map_err(Error::io("write", &path))?;
            let mut restored = vec![0; content.len()];
            file.rewind().and_then(|()| file.read_exact(&mut restored)).map_err(Error::io("read", &path))?;
            if chunk.content_digest.is_some_and(|digest| blake3::hash(&restored) != digest) {
                differences.push(format!("{}: chunk {} is not what was archived", self.path, chunk.sequence));
            }
        }
        Ok(differences)
    }
}

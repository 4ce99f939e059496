//! Searches the archives for chunks with the same stored bytes as damaged ones.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::cancel::CancelToken;
use crate::chunk::Chunk;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::store::{Store, StoredPlace};

/// Rows of chunks that are read at a time.
const PAGE_CHUNKS: u32 = 4_096;

/// Length and BLAKE3 of stored bytes.
type Content = (u64, [u8; 32]);

/// Where bytes are stored that are equal to those which damaged chunks should have.
#[derive(Debug, Default)]
pub(super) struct EqualChunks {
    places: HashMap<Content, StoredPlace>,
}

impl EqualChunks {
    /// Reads what the catalog says about all chunks, and the bytes of those that should be equal to a wanted one, until
    /// one is what it should be.
    pub(super) fn find<'a>(
        home: &Home,
        store: &Store,
        wanted: impl Iterator<Item = &'a Chunk>,
        cancel: &CancelToken,
    ) -> Result<EqualChunks> {
        let mut missing: HashSet<Content> = wanted.map(content_of).collect();
        let mut found = EqualChunks::default();
        let mut after = 0;
        while !missing.is_empty() {
            cancel.check("the repair was cancelled")?;
            let page = store.chunk_digests(after, PAGE_CHUNKS)?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for chunk in page {
                let content = (chunk.stored_length, chunk.stored_digest);
                if !missing.contains(&content) {
                    continue;
                }
                let mut places = store.places_of_chunk(chunk.id)?.into_iter();
                let is_right = |place: &StoredPlace| match read(home, place, content) {
                    Err(error) if error.kind() != ErrorKind::Damage => {
                        log::warn!("bytes of another archive are not used: {error}");
                        false
                    }
                    bytes => bytes.is_ok(),
                };
                if let Some(place) = places.find(|place| is_right(place)) {
                    missing.remove(&content);
                    found.places.insert(content, place);
                }
            }
        }
        Ok(found)
    }

    /// Returns whether there are bytes for a chunk.
    pub(super) fn has(&self, chunk: &Chunk) -> bool {
        self.places.contains_key(&content_of(chunk))
    }

    /// Returns the bytes for a chunk, read anew.
    ///
    /// Errors: `Damage` if they are not there any more.
    pub(super) fn read(&self, home: &Home, chunk: &Chunk) -> Result<Vec<u8>> {
        let content = content_of(chunk);
        let place = self.places.get(&content);
        let gone = || Error::new(ErrorKind::Damage, format!("nothing equal to chunk {} is left", chunk.sequence));
        read(home, place.ok_or_else(gone)?, content)
    }
}

fn content_of(chunk: &Chunk) -> Content {
    (chunk.stored_length, chunk.stored_digest)
}

fn read(home: &Home, place: &StoredPlace, (length, digest): Content) -> Result<Vec<u8>> {
    let path = home.backups().join(&place.file_name);
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    let size = file.metadata().map_err(Error::io("inspect", &path))?.len();
    let differs = || Error::new(ErrorKind::Damage, format!("{} differs at byte {}", path.display(), place.offset));
    // A row that is wrong must not fill memory.
    if place.offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(differs());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| differs())?];
    file.read_exact_at(&mut bytes, place.offset).map_err(Error::io("read", &path))?;
    if *blake3::hash(&bytes).as_bytes() == digest { Ok(bytes) } else { Err(differs()) }
}

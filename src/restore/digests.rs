//! Content digests from the catalog.

use std::collections::HashMap;

use crate::browse::OpenArchive;
use crate::error::Result;

/// The content digests of the members in a few chunks, read from the catalog page by page.
#[derive(Default)]
pub(super) struct CatalogDigests {
    /// By chunk and offset of the member's header in it.
    digests: HashMap<(u64, u64), [u8; 32]>,
    /// The chunks that were read: from the first up to and without the second.
    chunks: (u64, u64),
}

impl CatalogDigests {
    /// Returns the digest of the member whose header is at `offset` of the chunk `sequence`, if the catalog has it.
    pub fn find(&mut self, archive: &OpenArchive, sequence: u64, offset: u64) -> Result<Option<[u8; 32]>> {
        // The global header fills the first chunk; a reader of the whole archive meets it on the way to the first
        // member.
        let (sequence, offset) = if sequence == 0 { (1, 0) } else { (sequence, offset) };
        if !(self.chunks.0..self.chunks.1).contains(&sequence) {
            let Some((members, next)) = archive.catalog_page(sequence)? else { return Ok(None) };
            self.chunks = (sequence, next.unwrap_or(u64::MAX));
            self.digests.clear();
            self.digests
                .extend(members.into_iter().filter_map(|m| Some(((m.sequence, m.offset), m.entry.content_digest?))));
        }
        Ok(self.digests.get(&(sequence, offset)).copied())
    }
}

//! Members by the chunk they lie in, as verification names them.

use rusqlite::{OptionalExtension, params};

use super::Store;
use crate::error::Result;
use crate::member::CatalogMember;

impl Store {
    /// Returns the members whose headers start in one chunk of an archive, in order.
    pub fn chunk_members(&self, run: i64, sequence: u64) -> Result<Vec<CatalogMember>> {
        let (members, _) = self.members(run, sequence, 1)?;
        Ok(members.into_iter().filter(|listed| listed.sequence == sequence).map(|listed| listed.entry).collect())
    }

    /// Returns the path of the last member whose header starts before a chunk of an archive: the file whose content
    /// goes on in it.
    pub fn member_before(&self, run: i64, sequence: u64) -> Result<Option<Vec<u8>>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT path FROM archive_chunk JOIN member USING (chunk_id) \
                     WHERE archive_file_id = (SELECT archive_file_id FROM archive WHERE run_id = ?1) \
                     AND sequence < ?2 ORDER BY sequence DESC, ordinal DESC LIMIT 1",
                )?
                .query_row(params![run, sequence], |row| row.get(0))
                .optional()
        })
    }
}

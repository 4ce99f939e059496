//! Indexes that were replaced since a copy of the database was made that was put back.

use super::index_replacement::{expected_index, stored_bytes_at};
use crate::archive::index::Index;
use crate::error::Result;
use crate::home::Home;
use crate::schedule::Layout;
use crate::store::{Archive, Store};

/// Returns whether the index of an archive is the file that the database knows, by size and time. Then it may still
/// list other bytes than the database has: as long as they are moved to another segment.
pub fn is_known_index(home: &Home, store: &Store, archive: &Archive) -> Result<bool> {
    let Ok(found) = stored_bytes_at(&home.backups().join(&archive.file_name)) else { return Ok(true) };
    let known = store.index_file(archive.run)?;
    Ok(known.is_some_and(|known| (known.size, known.modified_ns) == (Some(found.size), found.modified_ns)))
}

/// Returns the index of an archive of the database, below the archive folder, that lists other bytes than the database
/// has; `None` if there is none.
pub(super) fn find_other_index(home: &Home, store: &Store) -> Result<Option<String>> {
    for archive in store.archives(None)?.into_iter().filter(|archive| archive.layout == Layout::Segmented) {
        if is_known_index(home, store, &archive)? {
            continue;
        }
        let path = home.backups().join(&archive.file_name);
        // What is wrong with it otherwise is found by a verification.
        if let (Ok(index), Ok(expected)) = (Index::open(&path), expected_index(store, &archive))
            && index != expected
        {
            return Ok(Some(archive.file_name));
        }
    }
    Ok(None)
}

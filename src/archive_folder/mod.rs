//! The archive folder as a whole: its identity (I9), the stable links in it, the deletion of archives (I8), and
//! archives that the catalog does not know.

mod copying_segment;
mod deletion;
mod free_space;
mod identity;
mod index_replacement;
mod indexes;
mod orphans;
mod other_index;
mod segments;
mod stable_links;
mod unknown;

pub use copying_segment::{CopiedSegment, CopyingSegment};
pub use deletion::{Deleted, delete_marked, finish_deletions, remove_orphaned_files};
pub use free_space::free_bytes;
pub use identity::{
    COPIES_FOLDER, adopt, belongs_to_lost_database, contains, ensure_ours, has_database_copy, inspect,
    is_database_copy, record_use,
};
pub use index_replacement::{
    expected_index, index_from_rows, persist_lost_index, replace_index, replace_moved_indexes, stored_bytes,
    stored_bytes_at, write_lost_index,
};
pub use indexes::{UnreadableIndex, find_unreadable_indexes};
pub use orphans::{OrphanedSegment, Orphans, find_orphans, remove_orphans};
pub use other_index::is_known_index;
pub use segments::{remove_unused_segments, remove_unused_segments_in};
pub use stable_links::{refresh_links_only, refresh_stable_links};
pub use unknown::{UnknownArchives, find_unknown_archives, reserve_run_numbers};

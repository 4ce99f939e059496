//! The archive folder as a whole: its identity (I9), the stable links in it, and the deletion of archives (I8).

mod deletion;
mod identity;
mod stable_links;

pub use deletion::{finish_deletions, remove_orphaned_files};
pub use identity::{adopt, belongs_to_other_database, ensure_ours, inspect};
pub use stable_links::{refresh_links_only, refresh_stable_links};

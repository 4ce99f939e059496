//! Reads archives without restoring them: which members are selected, what a file contains, what differs.

mod compare;
mod copy;
mod hard_links;
mod open_archive;
mod read_file;
mod selection;

pub use compare::{Change, MemberSummary, MembersByPath, compare, members_by_path};
pub use copy::{Copied, copy_archive};
pub use hard_links::HardLinks;
pub use open_archive::OpenArchive;
pub use read_file::read_file;
pub use selection::{Globs, Selection};

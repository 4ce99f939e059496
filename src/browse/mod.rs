//! Reads archives without restoring them: which members are selected, what a file contains, what differs.

mod compare;
mod opened;
mod read_file;
mod selection;

pub use compare::{Brief, Change, Contents, compare, contents};
pub use opened::Opened;
pub use read_file::read_file;
pub use selection::{Globs, Selection};

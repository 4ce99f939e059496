//! The files being backed up, and nothing else: walking them, excluding what is to be excluded, reading them and
//! detecting that they change meanwhile.
//!
//! Everything happens relative to descriptors of folders, never by whole paths. So a folder that is replaced by a link
//! is not followed, and paths longer than the system accepts can be read.

mod attributes;
mod entry;
mod file_system;
mod filter;
mod folder;
mod listing;
mod location;
mod open_file;
mod own_files;
mod owner_names;
mod path_error;
mod root;
mod stat;
mod walk;

pub use entry::SourceEntry;
pub use file_system::{FileSystem, Times, boot_id, reader_rights};
pub use filter::{check_marker_names, check_patterns, pattern_problem};
pub use open_file::{OpenFile, Stability};
pub use owner_names::OwnerNames;
pub use root::SourceRoot;
pub use stat::Stat;
pub use walk::{ExtentCounter, WalkOptions, WalkSummary, scan, walk};

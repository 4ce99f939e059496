//! The files being backed up, and nothing else: finding them, leaving out what is to be left out, reading them and
//! noticing when they change meanwhile.
//!
//! Everything happens relative to descriptors of folders, never by whole paths: that is how a folder swapped for a link
//! is not followed, and how paths longer than the system takes are reached.

mod attributes;
mod filter;
mod folder;
mod found;
mod listing;
mod names;
mod open_file;
mod own;
mod root;
mod trouble;
mod walk;

pub use filter::check_patterns;
pub use found::{SourceEntry, Stat};
pub use names::OwnerNames;
pub use open_file::{OpenFile, Stability};
pub use root::SourceRoot;
pub use walk::{WalkOptions, WalkSummary, scan, walk};

//! Schedules and their parts, as values: what, when, how, and what is kept.

mod compression;
mod excludes;

pub use compression::Compression;
pub use excludes::Excludes;

//! Scheduled backups into plain tar archives, with a catalog, history and proof in SQLite.
//!
//! The modules stand on four floors, and a module imports from lower floors only; `docs/design.md` draws them.

pub mod archive;
pub mod clock;
pub mod error;
pub mod member;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod source;

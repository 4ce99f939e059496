//! Scheduled backups into plain tar archives, with a catalog, history and proof in SQLite.
//!
//! The modules stand on four floors, and a module imports from lower floors only; `docs/design.md` draws them.

pub mod archive;
pub mod archive_folder;
pub mod archive_name;
pub mod backup;
pub mod browse;
pub mod cancel;
pub mod chunk;
pub mod cli;
pub mod clock;
pub mod confined;
pub mod durable;
pub mod error;
pub mod health;
pub mod home;
pub mod import_export;
pub mod liveness;
pub mod maintenance;
pub mod member;
pub mod progress;
pub mod restore;
pub mod schedule;
pub mod service;
pub mod source;
pub mod store;

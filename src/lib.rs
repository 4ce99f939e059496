//! Scheduled backups into plain tar archives, with a catalog, a history and verification results in SQLite.
//!
//! The modules form layers, and a module imports only from lower ones; `docs/design.md` shows them and
//! `tests/tidy.rs` checks them.

pub mod approval;
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
pub mod containers;
pub mod durable;
pub mod error;
pub mod health;
pub mod home;
pub mod hooks;
pub mod import_export;
pub mod liveness;
pub mod maintenance;
pub mod member;
pub mod owner;
pub mod progress;
pub mod restore;
pub mod schedule;
pub mod secrets;
pub mod service;
pub mod source;
pub mod store;
pub mod words;

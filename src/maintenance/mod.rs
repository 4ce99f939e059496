//! Maintenance: verification, restore tests, pruning, copies of the database, and rebuilding the catalog. A service
//! runs the daily tasks by itself; commands run each of them on request.

pub mod compaction;
mod daily;
mod database_copies;
pub mod drill;
mod equal_chunks;
pub mod prune;
mod reconcile;
pub mod repair;
mod repair_context;
mod repair_segments;
mod repair_whole;
pub mod rescan;
mod rescan_damaged;
mod rescan_moves;
mod rescan_segments;
pub mod retention;
pub mod shared_files;
pub mod verify;
mod verify_segments;

pub use daily::{Intervals, MaintenanceContext, MaintenanceReport, run_maintenance};
pub use database_copies::{RestoredDatabase, copy_database, recovery_step, restore_database_copy};

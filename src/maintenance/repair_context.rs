//! What repairing needs.

use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::home::Home;
use crate::store::Store;

/// What repairing needs.
#[derive(Clone, Copy)]
pub struct RepairContext<'a> {
    /// The paths of the installation.
    pub home: &'a Home,
    /// The database.
    pub store: &'a Store,
    /// The time.
    pub now: Timestamp,
    /// Threads that decode.
    pub threads: usize,
    /// Ends the repair between two steps.
    pub cancel: &'a CancelToken,
    /// Only finds out what a repair would do.
    pub dry_run: bool,
}

//! The lock under which containers are stopped and started, so that no run starts one that another is about to stop.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

use super::segment_locks::open;
use crate::error::{Error, Result};
use crate::home::Home;

/// The lock on stopping and starting containers for this database, until it is dropped.
#[derive(Debug)]
pub struct ContainerLock {
    locked: File,
}

impl ContainerLock {
    /// Waits for the lock.
    pub fn wait(home: &Home) -> Result<ContainerLock> {
        let locked = open(home, "containers", "stops").and_then(|file| {
            retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
            Ok(file)
        });
        let locked = locked.map_err(Error::io("lock stopping and starting containers in", home.segment_locks()))?;
        Ok(ContainerLock { locked })
    }
}

impl Drop for ContainerLock {
    fn drop(&mut self) {
        // A child process that is just being started may hold the file until it executes another program.
        let _ = flock(&self.locked, FlockOperation::Unlock);
    }
}

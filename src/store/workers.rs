//! Processes that claim runs, and requests to stop them.

use rusqlite::{Row, params};
use uuid::Uuid;

use super::Store;
use super::rows::parse_uuid;
use crate::clock::Timestamp;
use crate::error::Result;

/// What kind of process a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `serve` or `start`.
    Service,
    /// A command that carries out a run itself.
    Command,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Role::Service => "service",
            Role::Command => "command",
        }
    }
}

/// How a worker is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// Claim no further run; running ones may end within the grace period.
    Drain,
    /// Cancel running runs.
    Now,
}

/// A worker that is registered. Its liveness lock shows whether it is alive, not this row.
#[derive(Clone, Debug)]
pub struct WorkerRow {
    /// Name of its liveness file.
    pub uuid: Uuid,
    /// What kind of process it is.
    pub role: Role,
    /// Its process number within its container or machine.
    pub pid: u32,
    /// Name of its container or machine.
    pub host: String,
    /// When it registered.
    pub started_at: Timestamp,
    /// How it was requested to stop.
    pub stop_requested: Option<StopRequest>,
}

impl Store {
    /// Registers a worker.
    pub fn add_worker(&self, uuid: Uuid, role: Role, pid: u32, host: &str, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "INSERT INTO worker (uuid, role, pid, host, started_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![uuid.to_string(), role.as_str(), pid, host, now.millis()],
                )
                .map(drop)
        })
    }

    /// Unregisters a worker that ends or is dead.
    pub fn remove_worker(&self, uuid: Uuid) -> Result<()> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM worker WHERE uuid = ?1", [uuid.to_string()]).map(drop)
        })
    }

    /// Returns all registered workers, alive or dead, oldest first.
    pub fn workers(&self) -> Result<Vec<WorkerRow>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT uuid, role, pid, host, started_at_ms, stop_requested FROM worker \
                     ORDER BY started_at_ms, uuid",
                )?
                .query_map([], worker_row)?
                .collect()
        })
    }

    /// Requests a worker to stop. [`StopRequest::Now`] is never replaced by [`StopRequest::Drain`].
    pub fn request_stop(&self, uuid: Uuid, request: StopRequest) -> Result<()> {
        let word = match request {
            StopRequest::Drain => "drain",
            StopRequest::Now => "now",
        };
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE worker SET stop_requested = ?2 WHERE uuid = ?1 AND stop_requested IS NOT 'now'",
                    params![uuid.to_string(), word],
                )
                .map(drop)
        })
    }

    /// Returns how a worker was requested to stop.
    pub fn stop_request(&self, uuid: Uuid) -> Result<Option<StopRequest>> {
        Ok(self.workers()?.into_iter().find(|row| row.uuid == uuid).and_then(|row| row.stop_requested))
    }
}

fn worker_row(row: &Row<'_>) -> rusqlite::Result<WorkerRow> {
    let (uuid, role): (String, String) = (row.get(0)?, row.get(1)?);
    let stop: Option<String> = row.get(5)?;
    Ok(WorkerRow {
        uuid: parse_uuid(&uuid)?,
        role: if role == "service" { Role::Service } else { Role::Command },
        pid: row.get(2)?,
        host: row.get(3)?,
        started_at: Timestamp::from_millis(row.get(4)?),
        stop_requested: stop.map(|word| if word == "now" { StopRequest::Now } else { StopRequest::Drain }),
    })
}

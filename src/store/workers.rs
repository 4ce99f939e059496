//! Rows of the processes that claim runs, and the requests that reach them through the database.

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
    /// A command that carries a run out itself.
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
    /// Claim nothing more, let running work finish within the grace.
    Drain,
    /// Cancel running work.
    Now,
}

/// A worker that registered and has not signed off; whether it lives, its lock tells.
#[derive(Clone, Debug)]
pub struct WorkerRow {
    /// Name of its worker file.
    pub uuid: Uuid,
    /// What kind of process it is.
    pub role: Role,
    /// Its process number in its own container or machine.
    pub pid: u32,
    /// Name of its container or machine.
    pub host: String,
    /// When it registered.
    pub started_at: Timestamp,
    /// What it was asked.
    pub stop_requested: Option<StopRequest>,
}

impl Store {
    /// Signs a worker on.
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

    /// Signs a worker off, or takes the row of a dead one away.
    pub fn remove_worker(&self, uuid: Uuid) -> Result<()> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM worker WHERE uuid = ?1", [uuid.to_string()]).map(drop)
        })
    }

    /// Returns all workers that have a row, oldest first.
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

    /// Asks a worker to stop; a request to cancel is never weakened.
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

    /// Returns what a worker was asked.
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

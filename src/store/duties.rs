//! Duties: what a run began and is to be undone (I16). A row is committed before the act that it undoes, and outlives
//! its run and its schedule.
//!
//! One worker at a time works on a duty: the one that planned it, until it is dead, or the one that took it over. Each
//! write checks worker and number of tries, so that whoever lost the duty settles nothing.

use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

use super::Store;
use super::rows::parse_uuid;
use super::types::{Claim, Duty, NewDuty};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};

const COLUMNS: &str = "id, run_id, attempt, schedule_name, kind, subject, shared_key, state, worker, planned_at_ms, \
     not_before_ms, tries, error";

/// Condition of a duty on which the worker `?2` works, with its number of tries `?3`.
const HELD: &str = "id = ?1 AND state <> 'settled' AND worker = ?2 AND tries = ?3";

impl Store {
    /// Plans a duty of a claimed run, before the act that it undoes.
    pub fn plan_duty(&self, claim: &Claim, new: &NewDuty<'_>, now: Timestamp) -> Result<Duty> {
        self.write_fenced(claim, |transaction| {
            transaction
                .prepare_cached(&format!(
                    "INSERT INTO duty (run_id, attempt, schedule_name, kind, subject, shared_key, state, worker, \
                         planned_at_ms, not_before_ms) \
                     VALUES (?1, ?2, (SELECT name FROM schedule WHERE id = ?3), ?4, ?5, ?6, 'planned', ?7, ?8, ?8) \
                     RETURNING {COLUMNS}"
                ))?
                .query_row(
                    params![
                        claim.run,
                        claim.attempt,
                        claim.schedule,
                        new.kind.as_str(),
                        new.subject,
                        new.shared_key,
                        claim.worker.to_string(),
                        now.millis()
                    ],
                    duty_row,
                )
        })
    }

    /// Records that the act was done, with what is known of it since.
    ///
    /// Errors: `Fenced` if another worker has the duty.
    pub fn mark_duty_done(&self, duty: &Duty, subject: &str) -> Result<Duty> {
        self.write_held(
            duty,
            &format!("UPDATE duty SET state = 'done', subject = ?4 WHERE {HELD} RETURNING {COLUMNS}"),
            &[&subject],
        )
    }

    /// Records that a duty was undone, or that nothing was to be undone.
    ///
    /// Errors: `Fenced` if another worker has the duty.
    pub fn settle_duty(&self, duty: &Duty) -> Result<()> {
        self.write_held(
            duty,
            &format!("UPDATE duty SET state = 'settled', worker = NULL, error = NULL WHERE {HELD} RETURNING {COLUMNS}"),
            &[],
        )
        .map(drop)
    }

    /// Leaves a duty to the others with its key: settles it if there is another open one, in one transaction, so that
    /// of several the last remains; returns whether it did. If not, the caller undoes it and settles it then.
    ///
    /// Errors: `Fenced` if another worker has the duty.
    pub fn settle_shared_duty(&self, duty: &Duty) -> Result<bool> {
        self.write_or(|transaction| {
            let database_error = |e| self.database_error(e);
            let held = transaction
                .prepare_cached(&format!("SELECT shared_key FROM duty WHERE {HELD}"))
                .and_then(|mut statement| {
                    statement.query_row(params![duty.id, worker_text(duty), duty.tries], |row| row.get(0)).optional()
                })
                .map_err(database_error)?;
            let Some(key) = held else { return Err(lost(duty)) };
            let key: Option<String> = key;
            let changed = transaction
                .prepare_cached(
                    "UPDATE duty SET state = 'settled', worker = NULL, error = NULL WHERE id = ?1 \
                     AND EXISTS (SELECT 1 FROM duty AS other WHERE other.state <> 'settled' \
                         AND other.shared_key = ?2 AND other.kind = ?3 AND other.id <> ?1)",
                )
                .and_then(|mut statement| statement.execute(params![duty.id, key, duty.kind.as_str()]))
                .map_err(database_error)?;
            Ok(changed == 1)
        })
    }

    /// Records why a duty could not be settled, and when the next try may begin. Nobody works on it until then.
    ///
    /// Errors: `Fenced` if another worker has the duty.
    pub fn postpone_duty(&self, duty: &Duty, error: &str, not_before: Timestamp) -> Result<()> {
        self.write_held(
            duty,
            &format!("UPDATE duty SET worker = NULL, error = ?4, not_before_ms = ?5 WHERE {HELD} RETURNING {COLUMNS}"),
            &[&error, &not_before.millis()],
        )
        .map(drop)
    }

    /// Takes over an open duty as it was seen: one on which nobody works, or a worker that the caller knows to be dead,
    /// or the caller itself earlier. `None` if it changed since.
    pub fn take_duty(&self, seen: &Duty, worker: Uuid) -> Result<Option<Duty>> {
        self.write(|transaction| {
            transaction
                .prepare_cached(&format!(
                    "UPDATE duty SET worker = ?4, tries = tries + 1 WHERE id = ?1 AND state <> 'settled' \
                     AND worker IS ?2 AND tries = ?3 RETURNING {COLUMNS}"
                ))?
                .query_row(params![seen.id, worker_text(seen), seen.tries, worker.to_string()], duty_row)
                .optional()
        })
    }

    /// Returns the duties that are not settled, in the order in which they were planned. A row that cannot be read is
    /// logged and left out, so that it does not prevent the others.
    pub fn open_duties(&self) -> Result<Vec<Duty>> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM duty WHERE state <> 'settled' ORDER BY id"))?;
            let (mut rows, mut duties) = (statement.query([])?, Vec::new());
            while let Some(row) = rows.next()? {
                match duty_row(row) {
                    Ok(duty) => duties.push(duty),
                    Err(error) => {
                        let id: rusqlite::types::Value = row.get("id")?;
                        log::error!("what a run left to be undone cannot be read (row {id:?} of duty): {error}");
                    }
                }
            }
            Ok(duties)
        })
    }

    /// Returns the duties of a run, settled ones too, in the order in which they were planned.
    pub fn duties_of_run(&self, run: i64) -> Result<Vec<Duty>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM duty WHERE run_id = ?1 ORDER BY id"))?
                .query_map([run], duty_row)?
                .collect()
        })
    }

    /// Runs a statement that changes a duty on which its worker still works; `more` are its parameters from `?4` on.
    fn write_held(&self, duty: &Duty, sql: &str, more: &[&dyn rusqlite::ToSql]) -> Result<Duty> {
        let worker = worker_text(duty);
        let mut parameters: Vec<&dyn rusqlite::ToSql> = vec![&duty.id, &worker, &duty.tries];
        parameters.extend(more);
        let changed = self.write(|transaction| {
            transaction.prepare_cached(sql)?.query_row(parameters.as_slice(), duty_row).optional()
        })?;
        changed.ok_or_else(|| lost(duty))
    }
}

fn worker_text(duty: &Duty) -> Option<String> {
    duty.worker.map(|worker| worker.to_string())
}

fn lost(duty: &Duty) -> Error {
    Error::new(ErrorKind::Fenced, format!("another worker settles what run @{} left to be undone", duty.run))
}

fn duty_row(row: &Row<'_>) -> rusqlite::Result<Duty> {
    Ok(Duty {
        id: row.get("id")?,
        run: row.get("run_id")?,
        attempt: row.get("attempt")?,
        schedule_name: row.get("schedule_name")?,
        kind: row.get("kind")?,
        subject: row.get("subject")?,
        shared_key: row.get("shared_key")?,
        state: row.get("state")?,
        worker: row.get::<_, Option<String>>("worker")?.map(|text| parse_uuid(&text)).transpose()?,
        planned_at: Timestamp::from_millis(row.get("planned_at_ms")?),
        not_before: Timestamp::from_millis(row.get("not_before_ms")?),
        tries: row.get("tries")?,
        error: row.get("error")?,
    })
}

//! Maintenance of the database: copies, checks, removal of old history, and records of restore tests.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::Store;
use super::bootstrap::APPLICATION_ID;
use super::connection::database_error;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};

/// Maximum number of runs that one transaction removes from the history.
const MAX_HISTORY_BATCH: u32 = 500;

/// A maintenance task of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Old archives are verified again.
    Reverify,
    /// The newest archives are restored and compared (restore test).
    Drill,
    /// The database is copied.
    Copy,
    /// Old runs are removed from the history.
    History,
    /// Segments of which little is used are compacted. The schema has the word `check` for a task that no version had.
    Compaction,
}

impl Task {
    /// Returns what the task does, for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Task::Reverify => "verifying old archives",
            Task::Drill => "testing restores",
            Task::Copy => "copying the database",
            Task::History => "pruning the history",
            Task::Compaction => "compacting segments",
        }
    }
}

text_enum!(Task, Reverify = "reverify", Drill = "drill", Copy = "copy", History = "history", Compaction = "check");

/// What is known of the last start of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It was never started.
    NeverStarted,
    /// It failed when it was last started, and is due again.
    Failed,
    /// It was last started then, and has not failed since.
    Started(Timestamp),
}

/// The result of a restore test.
#[derive(Clone, Debug)]
pub struct Drill {
    /// Number of the run whose archive was restored.
    pub run: i64,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Everything was restored as it was archived.
    pub passed: bool,
    /// Files restored.
    pub files: u64,
    /// Bytes of their content.
    pub content_bytes: u64,
    /// What failed.
    pub error: Option<String>,
}

impl Store {
    /// Writes a copy of the database into the file at `path`, which must be empty or not exist.
    pub fn copy_into(&self, path: &Path) -> Result<()> {
        let target = utf8(path)?;
        self.read(|connection| vacuum_into(connection, target))
    }

    /// Starts a task if its last start is at least `every` ago, or in the future, as after a clock that was wrong;
    /// returns whether it did. Of several services one starts it.
    pub fn begin_task(&self, task: Task, every: std::time::Duration, now: Timestamp) -> Result<bool> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "INSERT INTO upkeep (task, done_at_ms) VALUES (?1, ?2) ON CONFLICT (task) DO UPDATE \
                 SET done_at_ms = excluded.done_at_ms WHERE done_at_ms <= ?3 OR done_at_ms > ?2",
                params![task.as_str(), now.millis(), now.minus(every).millis()],
            )?;
            Ok(changed == 1)
        })
    }

    /// Records that a task failed: it is due again at the next check.
    pub fn record_task_failure(&self, task: Task) -> Result<()> {
        self.write(|transaction| {
            transaction.execute("UPDATE upkeep SET done_at_ms = 0 WHERE task = ?1", [task.as_str()]).map(drop)
        })
    }

    /// Returns what is known of the last start of a task.
    pub fn task_state(&self, task: Task) -> Result<TaskState> {
        let started: Option<i64> = self.read(|connection| {
            connection
                .prepare_cached("SELECT done_at_ms FROM upkeep WHERE task = ?1")?
                .query_row([task.as_str()], |row| row.get(0))
                .optional()
        })?;
        Ok(match started {
            None => TaskState::NeverStarted,
            Some(0) => TaskState::Failed,
            Some(at) => TaskState::Started(Timestamp::from_millis(at)),
        })
    }

    /// Returns whether no copy of the database has been begun since the first schedule was created. A copy that failed
    /// was begun: it is tried again at the next check. A schedule of the future was created while the clock was ahead,
    /// and until then no copy would be late enough.
    pub fn lacks_copy_of_first_schedule(&self, now: Timestamp) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM upkeep WHERE task = 'copy' AND done_at_ms > 0 AND done_at_ms <= \
                     (SELECT created_at_ms FROM schedule WHERE deleted_at_ms IS NULL AND created_at_ms <= ?1 \
                      ORDER BY id LIMIT 1))",
                )?
                .query_row([now.millis()], |row| row.get(0))
        })
    }

    /// Removes up to a batch of the runs that ended before `limit` from the history, with the output of their commands,
    /// the restore tests that started before, and the settled duties that were planned before; keeps runs with archives
    /// and the newest of each schedule. Returns how many runs were removed.
    pub fn prune_history(&self, limit: Timestamp) -> Result<usize> {
        self.write(|transaction| {
            transaction.execute(
                "DELETE FROM duty WHERE id IN \
                 (SELECT id FROM duty WHERE state = 'settled' AND planned_at_ms < ?1 LIMIT ?2)",
                params![limit.millis(), MAX_HISTORY_BATCH],
            )?;
            transaction.execute(
                "DELETE FROM drill WHERE started_at_ms < ?1 \
                 AND id <> (SELECT max(id) FROM drill AS newest WHERE newest.schedule_id = drill.schedule_id)",
                [limit.millis()],
            )?;
            transaction.execute(
                "DELETE FROM run WHERE id IN (SELECT id FROM run AS old WHERE finished_at_ms < ?1 \
                 AND NOT EXISTS (SELECT 1 FROM archive WHERE archive.run_id = old.id) \
                 AND id <> (SELECT max(id) FROM run AS newest WHERE newest.schedule_id = old.schedule_id) \
                 AND NOT EXISTS (SELECT 1 FROM duty WHERE duty.run_id = old.id AND state <> 'settled') \
                 AND NOT EXISTS (SELECT 1 FROM run AS older WHERE older.superseded_by = old.id) LIMIT ?2)",
                params![limit.millis(), MAX_HISTORY_BATCH],
            )
        })
    }

    /// Records a finished restore test of a schedule.
    pub fn record_drill(&self, schedule: i64, drill: &Drill) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "INSERT INTO drill (schedule_id, run_id, started_at_ms, finished_at_ms, outcome, files, \
                     content_bytes, error) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![
                        schedule,
                        drill.run,
                        drill.started_at.millis(),
                        drill.finished_at.map(Timestamp::millis),
                        if drill.passed { "passed" } else { "failed" },
                        drill.files,
                        drill.content_bytes,
                        drill.error
                    ],
                )
                .map(drop)
        })
    }

    /// Returns the last restore test of a schedule.
    pub fn last_drill(&self, schedule: i64) -> Result<Option<Drill>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT run_id, started_at_ms, finished_at_ms, outcome, files, content_bytes, error FROM drill \
                     WHERE schedule_id = ?1 ORDER BY id DESC LIMIT 1",
                )?
                .query_row([schedule], |row| {
                    Ok(Drill {
                        run: row.get(0)?,
                        started_at: Timestamp::from_millis(row.get(1)?),
                        finished_at: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_millis),
                        passed: row.get::<_, String>(3)? == "passed",
                        files: row.get(4)?,
                        content_bytes: row.get(5)?,
                        error: row.get(6)?,
                    })
                })
                .optional()
        })
    }
}

/// Checks a copy of a database from end to end, without changing it.
///
/// Errors: `DatabaseDamage` if it is damaged, or not a database of ours.
pub fn check_copy(path: &Path) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| database_error(path, e))?;
    let application: i32 =
        connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(|e| database_error(path, e))?;
    if application != APPLICATION_ID {
        return Err(damaged(path, "it is not a database of backup-manager"));
    }
    let found: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(|e| database_error(path, e))?;
    if found == "ok" { Ok(()) } else { Err(damaged(path, &found)) }
}

/// Writes the content of the database at `from`, with that of the journal beside it, into the empty file at `to`.
pub fn copy_with_journal(from: &Path, to: &Path) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags).map_err(|e| database_error(from, e))?;
    vacuum_into(&connection, utf8(to)?).map_err(|e| database_error(from, e))
}

/// Writes a copy into the file at `target`. SQLite leaves the journal of a copy that failed beside it: it is removed.
fn vacuum_into(connection: &Connection, target: &str) -> rusqlite::Result<()> {
    let copied = connection.execute("VACUUM INTO ?1", [target]);
    if copied.is_err() {
        // If there is none, or it cannot be removed, the error of the copy is the one to report.
        let _ = std::fs::remove_file(format!("{target}-journal"));
    }
    copied.map(drop)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::failed(format!("the path {} is not UTF-8, which SQLite requires", path.display())))
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::DatabaseDamage, format!("the database {} is damaged: {what}", path.display()))
}

//! Schedules: creating, editing, pausing, deleting, and finding those that are due.

use chrono_tz::Tz;
use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};

use super::Store;
use super::base::NOT_HELD;
use super::enqueue::compare_and_set_watermark;
use super::hooks::{remove_hooks, write_hooks};
use super::retention::{HELD_FOR_FIRST_PRUNE, hold_next_prune};
use super::rows::exactly_one;
use super::run_end::cancel_queued;
use super::types::{Revived, ScheduleChanges, ScheduleRow, Watermark};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{Cadence, CatchUp, Compression, Layout, Schedule, ScheduleName};

const COLUMNS: &str = "id, name, source, cadence, zone, compression, layout, excludes, retention, reuse, catch_up, \
     verify, enabled, handled_until_ms, next_due_at_ms, accepted_at_ms, reuse_off_at_ms, deleted_at_ms, \
     created_at_ms, edited_at_ms, managed_by";

impl Store {
    /// Returns the schedules that are not deleted, in the order of `list`.
    pub fn schedules(&self) -> Result<Vec<ScheduleRow>> {
        self.select_schedules("deleted_at_ms IS NULL ORDER BY position", [])
    }

    /// Returns the schedule of a name, deleted or not.
    pub fn schedule_named(&self, name: &str) -> Result<Option<ScheduleRow>> {
        Ok(self.select_schedules("name = ?1", [name])?.pop())
    }

    /// Returns the options of a deleted schedule, with which its name comes back.
    pub fn deleted_schedule(&self, name: &str) -> Result<Option<Schedule>> {
        Ok(self.schedule_named(name)?.filter(|row| row.deleted).map(|row| row.schedule))
    }

    /// Returns the schedule of a row number, deleted or not.
    pub fn schedule(&self, id: i64) -> Result<ScheduleRow> {
        self.select_schedules("id = ?1", [id])?
            .pop()
            .ok_or_else(|| Error::not_found(format!("there is no schedule with row {id}")))
    }

    /// Returns up to `limit` schedules that are due, the most overdue first.
    pub fn due_schedules(&self, now: Timestamp, limit: u32) -> Result<Vec<ScheduleRow>> {
        self.select_schedules(
            "enabled = 1 AND deleted_at_ms IS NULL AND next_due_at_ms IS NOT NULL AND next_due_at_ms <= ?1 \
             ORDER BY next_due_at_ms LIMIT ?2",
            params![now.millis(), limit],
        )
    }

    /// Returns the schedules that are handled beyond `limit`, as after a clock that was wrong.
    pub fn schedules_handled_after(&self, limit: Timestamp) -> Result<Vec<ScheduleRow>> {
        self.select_schedules("enabled = 1 AND deleted_at_ms IS NULL AND handled_until_ms > ?1", [limit.millis()])
    }

    /// Returns the next occurrence of any schedule.
    pub fn next_due(&self) -> Result<Option<Timestamp>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT next_due_at_ms FROM schedule WHERE enabled = 1 AND deleted_at_ms IS NULL \
                     AND next_due_at_ms IS NOT NULL ORDER BY next_due_at_ms LIMIT 1",
                )?
                .query_row([], |row| row.get(0).map(Timestamp::from_millis))
                .optional()
        })
    }

    /// Creates schedules, all or none. A deleted name is created again with its history; its first prune waits.
    ///
    /// Errors: `Usage` naming the first name already in use.
    pub fn create_schedules(&self, new: &[(Schedule, Watermark)], now: Timestamp) -> Result<Vec<(i64, Revived)>> {
        self.apply_schedules(&ScheduleChanges { created: new, ..ScheduleChanges::default() }, now)
    }

    fn create_schedule(
        &self,
        transaction: &Transaction<'_>,
        schedule: &Schedule,
        watermark: Watermark,
        now: Timestamp,
    ) -> Result<(i64, Revived)> {
        let name = schedule.name.as_str();
        let existing: Option<(i64, bool)> = transaction
            .query_row("SELECT id, deleted_at_ms IS NULL FROM schedule WHERE name = ?1", [name], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(|e| self.database_error(e))?;
        let (id, revived) = match existing {
            Some((_, true)) => {
                return Err(Error::usage(format!("the name \"{name}\" is already used by a schedule"))
                    .hint(format!("choose another name, or change it with `backup-manager edit {name}`")));
            }
            Some((id, false)) => (Some(id), Revived::FromHistory),
            None => (None, Revived::New),
        };
        write_schedule(transaction, id, schedule, watermark, now)
            .map(|id| (id, revived))
            .map_err(|e| self.database_error(e))
    }

    /// Replaces schedules by their edited form and watermark: with one that starts at the edit, earlier occurrences are
    /// not run.
    pub fn edit_schedules(&self, edited: &[(i64, Schedule, Watermark)], now: Timestamp) -> Result<()> {
        self.apply_schedules(&ScheduleChanges { edited, ..ScheduleChanges::default() }, now).map(drop)
    }

    /// Makes changes of schedules in one transaction: deletes, edits, creates, in this order. Returns the rows of those
    /// that were created.
    ///
    /// Errors: `Usage` naming the first created name already in use.
    pub fn apply_schedules(&self, changes: &ScheduleChanges<'_>, now: Timestamp) -> Result<Vec<(i64, Revived)>> {
        self.write_or(|transaction| {
            for id in changes.deleted {
                delete_schedule(transaction, *id, now).map_err(|e| self.database_error(e))?;
            }
            for (id, schedule, watermark) in changes.edited {
                update_schedule(transaction, *id, schedule, *watermark, now).map_err(|e| self.database_error(e))?;
            }
            for id in changes.held {
                hold_next_prune(transaction, *id).map_err(|e| self.database_error(e))?;
            }
            let create = |(schedule, watermark): &(Schedule, Watermark)| {
                self.create_schedule(transaction, schedule, *watermark, now)
            };
            let created = changes.created.iter().map(create).collect::<Result<_>>()?;
            write_surroundings(transaction, changes).map_err(|e| self.database_error(e))?;
            Ok(created)
        })
    }

    /// Deletes a schedule and cancels its queued run. History and archives are kept.
    pub fn delete_schedule(&self, id: i64, now: Timestamp) -> Result<()> {
        self.write(|transaction| delete_schedule(transaction, id, now))
    }

    /// Deletes a schedule and marks its archives for deletion in one transaction; returns how many archives that are.
    ///
    /// Errors: `Busy` while it is being backed up; `Failed` if one of its archives is pinned.
    pub fn delete_schedule_with_archives(&self, row: &ScheduleRow, now: Timestamp) -> Result<usize> {
        let name = &row.schedule.name;
        self.write_or(|transaction| {
            let first = |query| {
                let found = transaction.query_row(query, [row.id], |found| found.get::<_, i64>(0)).optional();
                found.map_err(|e| self.database_error(e))
            };
            if first("SELECT id FROM run WHERE schedule_id = ?1 AND state = 'running'")?.is_some() {
                return Err(Error::busy(format!("{name} is being backed up"))
                    .hint(format!("wait, or cancel the run first: backup-manager cancel {name}")));
            }
            if let Some(run) =
                first("SELECT run_id FROM archive WHERE schedule_id = ?1 AND pinned = 1 ORDER BY run_id")?
            {
                return Err(Error::failed(format!("the archive @{run} of {name} is pinned"))
                    .hint(format!("unpin it first: `backup-manager pin @{run} --off`")));
            }
            delete_schedule(transaction, row.id, now).map_err(|e| self.database_error(e))?;
            transaction
                .execute(
                    &format!(
                        "UPDATE archive SET state = 'deleting' WHERE schedule_id = ?1 AND state = 'complete' \
                         AND {NOT_HELD}"
                    ),
                    [row.id],
                )
                .map_err(|e| self.database_error(e))
        })
    }

    /// Moves the watermark of an enabled schedule if it still is `from`; returns whether it was.
    pub fn move_watermark(&self, id: i64, from: Watermark, to: Watermark) -> Result<bool> {
        self.write(|transaction| compare_and_set_watermark(transaction, id, from, to))
    }

    fn select_schedules(&self, condition: &str, parameters: impl rusqlite::Params) -> Result<Vec<ScheduleRow>> {
        let rows: Vec<rusqlite::Result<Result<ScheduleRow>>> = self.read(|connection| {
            let mut statement =
                connection.prepare_cached(&format!("SELECT {COLUMNS} FROM schedule WHERE {condition}"))?;
            Ok(statement.query_map(parameters, schedule_row)?.collect())
        })?;
        rows.into_iter().map(|row| row.map_err(|e| self.database_error(e))?).collect()
    }
}

/// Inserts a schedule, or overwrites the deleted row `id` of the same name; either way it is listed last.
fn write_schedule(
    transaction: &Transaction<'_>,
    id: Option<i64>,
    schedule: &Schedule,
    watermark: Watermark,
    now: Timestamp,
) -> rusqlite::Result<i64> {
    let position: i64 =
        transaction.query_row("SELECT coalesce(max(position), 0) + 1 FROM schedule", [], |row| row.get(0))?;
    let id = match id {
        Some(id) => {
            transaction.execute(
                "UPDATE schedule SET position = ?2, created_at_ms = ?3, deleted_at_ms = NULL, accepted_at_ms = NULL, \
                     prune_held_run = ?4 WHERE id = ?1",
                params![id, position, now.millis(), HELD_FOR_FIRST_PRUNE],
            )?;
            remove_hooks(transaction, id)?;
            id
        }
        None => {
            transaction.execute(
                "INSERT INTO schedule (name, position, source, compression, excludes, retention, catch_up, verify, \
                     enabled, handled_until_ms, created_at_ms, edited_at_ms) \
                 VALUES (?1, ?2, ?3, 'none', '{}', '{}', 'latest', 1, 1, 0, ?4, ?4)",
                params![schedule.name.as_str(), position, schedule.source, now.millis()],
            )?;
            transaction.last_insert_rowid()
        }
    };
    update_schedule(transaction, id, schedule, watermark, now)?;
    Ok(id)
}

fn update_schedule(
    transaction: &Transaction<'_>,
    id: i64,
    schedule: &Schedule,
    watermark: Watermark,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let changed = transaction.execute(
        "UPDATE schedule SET source = :source, cadence = :cadence, zone = :zone, compression = :compression, \
             layout = :layout, excludes = :excludes, retention = :retention, reuse = :reuse, catch_up = :catch_up, \
             verify = :verify, enabled = :enabled, handled_until_ms = :handled_until, next_due_at_ms = :next_due, \
             edited_at_ms = :now WHERE id = :id",
        named_params! {
            ":id": id,
            ":source": schedule.source,
            ":cadence": schedule.cadence.as_ref().map(ToString::to_string),
            ":zone": schedule.zone.map(Tz::name),
            ":compression": schedule.compression.to_string(),
            ":layout": schedule.layout.as_str(),
            ":excludes": serde_json::to_string(&schedule.excludes).map_err(json_error)?,
            ":retention": serde_json::to_string(&schedule.retention).map_err(json_error)?,
            ":reuse": serde_json::to_string(&schedule.reuse).map_err(json_error)?,
            ":catch_up": schedule.catch_up.as_str(),
            ":verify": schedule.verify,
            ":enabled": schedule.enabled,
            ":handled_until": watermark.handled_until.millis(),
            ":next_due": watermark.next_due.map(Timestamp::millis),
            ":now": now.millis(),
        },
    )?;
    if !schedule.enabled {
        cancel_queued(transaction, id, "the schedule was paused", now)?;
    }
    exactly_one(changed)
}

/// Writes what surrounds the runs of schedules, and who manages them.
fn write_surroundings(transaction: &Transaction<'_>, changes: &ScheduleChanges<'_>) -> rusqlite::Result<()> {
    for (name, hooks) in changes.hooks {
        let id = transaction
            .prepare_cached("SELECT id FROM schedule WHERE name = ?1 AND deleted_at_ms IS NULL")?
            .query_row([name.as_str()], |row| row.get(0))?;
        write_hooks(transaction, id, hooks)?;
    }
    for (name, managed) in changes.managed {
        let managed = managed.as_ref().map(serde_json::to_string).transpose().map_err(json_error)?;
        let changed = transaction.execute(
            "UPDATE schedule SET managed_by = ?2 WHERE name = ?1 AND deleted_at_ms IS NULL",
            params![name.as_str(), managed],
        )?;
        exactly_one(changed)?;
    }
    Ok(())
}

fn json_error(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

fn delete_schedule(transaction: &Transaction<'_>, id: i64, now: Timestamp) -> rusqlite::Result<()> {
    cancel_queued(transaction, id, "the schedule was deleted", now)?;
    let changed = transaction.execute(
        "UPDATE schedule SET deleted_at_ms = ?2, next_due_at_ms = NULL, managed_by = NULL \
         WHERE id = ?1 AND deleted_at_ms IS NULL",
        params![id, now.millis()],
    )?;
    exactly_one(changed)
}

fn schedule_row(row: &Row<'_>) -> rusqlite::Result<Result<ScheduleRow>> {
    let id: i64 = row.get("id")?;
    let cadence: Option<String> = row.get("cadence")?;
    let zone: Option<String> = row.get("zone")?;
    let (name, compression): (String, String) = (row.get("name")?, row.get("compression")?);
    let (excludes, retention): (String, String) = (row.get("excludes")?, row.get("retention")?);
    let (layout, reuse): (Layout, String) = (row.get("layout")?, row.get("reuse")?);
    let catch_up: String = row.get("catch_up")?;
    let (source, verify, enabled) = (row.get("source")?, row.get("verify")?, row.get("enabled")?);
    let watermark = Watermark {
        handled_until: Timestamp::from_millis(row.get("handled_until_ms")?),
        next_due: row.get::<_, Option<i64>>("next_due_at_ms")?.map(Timestamp::from_millis),
    };
    let accepted = row.get::<_, Option<i64>>("accepted_at_ms")?.is_some();
    let reuse_off = row.get::<_, Option<i64>>("reuse_off_at_ms")?.is_some();
    let deleted = row.get::<_, Option<i64>>("deleted_at_ms")?.is_some();
    let managed_by: Option<String> = row.get("managed_by")?;
    let created_at = Timestamp::from_millis(row.get("created_at_ms")?);
    let edited_at = Timestamp::from_millis(row.get("edited_at_ms")?);
    let parse = || -> Result<ScheduleRow> {
        let json = |error| Error::failed("its options").because(error);
        let schedule = Schedule {
            name: ScheduleName::parse(&name)?,
            source,
            cadence: cadence.as_deref().map(str::parse::<Cadence>).transpose()?,
            zone: zone.as_deref().map(crate::schedule::parse_zone).transpose()?,
            compression: compression.parse::<Compression>()?,
            layout,
            excludes: serde_json::from_str(&excludes).map_err(json)?,
            retention: serde_json::from_str(&retention).map_err(json)?,
            reuse: serde_json::from_str(&reuse).map_err(json)?,
            catch_up: catch_up.parse::<CatchUp>()?,
            verify,
            enabled,
        };
        let managed_by = managed_by.as_deref().map(serde_json::from_str).transpose().map_err(json)?;
        Ok(ScheduleRow { id, schedule, watermark, accepted, reuse_off, deleted, managed_by, created_at, edited_at })
    };
    Ok(parse().map_err(|cause| {
        Error::new(ErrorKind::Failed, format!("the schedule \"{name}\" in the database cannot be read"))
            .because(cause)
            .hint(format!("correct it with `backup-manager edit {name}` of the version that wrote it, or delete it"))
    }))
}

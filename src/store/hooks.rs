//! What surrounds the runs of schedules, and what commands of runs printed.

use std::collections::BTreeMap;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::Store;
use super::types::{CommandEnding, CommandOutput, ScheduleHooks};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::schedule::{CommandKind, HookOptions, Hooks};

/// How much of the end of an output is kept.
pub const MAX_OUTPUT_BYTES: usize = 64 << 10;

impl FromSql for CommandKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|_| FromSqlError::InvalidType)
    }
}

impl Store {
    /// Returns what surrounds the runs of a schedule.
    pub fn hooks(&self, schedule: i64) -> Result<ScheduleHooks> {
        self.read(|connection| hooks_of(connection, schedule))
    }

    /// Records the approvals of commands of a schedule, each only if the command is still the one that was approved.
    pub fn approve_commands(&self, schedule: i64, approved: &ScheduleHooks) -> Result<()> {
        self.write(|transaction| {
            for (kind, approval) in &approved.approvals {
                let Some(command) = approved.hooks.commands.get(kind) else { continue };
                transaction.execute(
                    "UPDATE schedule_command SET approval = ?4 WHERE schedule_id = ?1 AND kind = ?2 AND command = ?3",
                    params![schedule, kind.as_str(), command, approval],
                )?;
            }
            Ok(())
        })
    }

    /// Adds a command that a run executed to its record, with the last [`MAX_OUTPUT_BYTES`] of its output. Not fenced:
    /// whoever lost the run executed it all the same. Does nothing if the run is not in the history any more.
    pub fn record_command(&self, run: i64, executed: &CommandOutput) -> Result<()> {
        let (ending, code) = match executed.ending {
            CommandEnding::Exited(code) => ("exited", Some(code)),
            CommandEnding::Signal(number) => ("signal", Some(number)),
            CommandEnding::TimeLimit => ("time-limit", None),
            CommandEnding::NotStarted => ("not-started", None),
            CommandEnding::Lost => ("lost", None),
        };
        let tail = &executed.output[executed.output.len().saturating_sub(MAX_OUTPUT_BYTES)..];
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO command_output (run_id, sequence, attempt, kind, container, started_at_ms, \
                         ended_at_ms, ending, code, output) \
                     SELECT ?1, (SELECT coalesce(max(sequence), 0) + 1 FROM command_output WHERE run_id = ?1), \
                         ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 WHERE EXISTS (SELECT 1 FROM run WHERE id = ?1)",
                )?
                .execute(params![
                    run,
                    executed.attempt,
                    executed.kind.as_str(),
                    executed.container,
                    executed.started_at.millis(),
                    executed.ended_at.millis(),
                    ending,
                    code,
                    tail
                ])
                .map(drop)
        })
    }

    /// Returns the commands that a run executed, in that order.
    pub fn command_outputs(&self, run: i64) -> Result<Vec<CommandOutput>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT attempt, kind, container, started_at_ms, ended_at_ms, ending, code, output \
                     FROM command_output WHERE run_id = ?1 ORDER BY sequence",
                )?
                .query_map([run], output_row)?
                .collect()
        })
    }
}

fn hooks_of(connection: &Connection, schedule: i64) -> rusqlite::Result<ScheduleHooks> {
    let options: Option<String> = connection
        .prepare_cached("SELECT options FROM schedule_hooks WHERE schedule_id = ?1")?
        .query_row([schedule], |row| row.get(0))
        .optional()?;
    let unfit_json = |e| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(e));
    let options: Option<HookOptions> =
        options.map(|json| serde_json::from_str(&json)).transpose().map_err(unfit_json)?;
    let mut found = ScheduleHooks {
        hooks: Hooks { commands: BTreeMap::new(), options: options.unwrap_or_default() },
        approvals: BTreeMap::new(),
    };
    let mut statement =
        connection.prepare_cached("SELECT kind, command, approval FROM schedule_command WHERE schedule_id = ?1")?;
    let mut rows = statement.query([schedule])?;
    while let Some(row) = rows.next()? {
        let kind: CommandKind = row.get(0)?;
        found.hooks.commands.insert(kind, row.get(1)?);
        if let Some(approval) = row.get(2)? {
            found.approvals.insert(kind, approval);
        }
    }
    Ok(found)
}

/// Replaces what surrounds the runs of a schedule.
pub(super) fn write_hooks(
    transaction: &Transaction<'_>,
    schedule: i64,
    wanted: &ScheduleHooks,
) -> rusqlite::Result<()> {
    remove_hooks(transaction, schedule)?;
    let ScheduleHooks { hooks, approvals } = wanted;
    if hooks.options != HookOptions::default() {
        let json = serde_json::to_string(&hooks.options)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        transaction
            .execute("INSERT INTO schedule_hooks (schedule_id, options) VALUES (?1, ?2)", params![schedule, json])?;
    }
    for (kind, command) in &hooks.commands {
        transaction.execute(
            "INSERT INTO schedule_command (schedule_id, kind, command, approval) VALUES (?1, ?2, ?3, ?4)",
            params![schedule, kind.as_str(), command, approvals.get(kind)],
        )?;
    }
    Ok(())
}

/// Removes what surrounds the runs of a schedule. A deleted schedule keeps it, as what a run began is still to be
/// undone, but its name does not get it back.
pub(super) fn remove_hooks(transaction: &Transaction<'_>, schedule: i64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM schedule_hooks WHERE schedule_id = ?1", [schedule])?;
    transaction.execute("DELETE FROM schedule_command WHERE schedule_id = ?1", [schedule]).map(drop)
}

fn output_row(row: &Row<'_>) -> rusqlite::Result<CommandOutput> {
    let (ending, code): (String, Option<i32>) = (row.get("ending")?, row.get("code")?);
    let ending = match (ending.as_str(), code) {
        ("exited", Some(code)) => CommandEnding::Exited(code),
        ("signal", Some(number)) => CommandEnding::Signal(number),
        ("time-limit", _) => CommandEnding::TimeLimit,
        ("not-started", _) => CommandEnding::NotStarted,
        _ => CommandEnding::Lost,
    };
    Ok(CommandOutput {
        attempt: row.get("attempt")?,
        kind: row.get("kind")?,
        container: row.get("container")?,
        started_at: Timestamp::from_millis(row.get("started_at_ms")?),
        ended_at: Timestamp::from_millis(row.get("ended_at_ms")?),
        ending,
        output: row.get("output")?,
    })
}

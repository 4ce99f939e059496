//! What a new text of the followed file changes, and whether it may.

use chrono_tz::Tz;

use super::import::{check_source, with_line};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::schedule::text_file::Change;
use crate::schedule::{Cadence, DailyTimes, Schedule, ScheduleName};
use crate::store::{ScheduleChanges, ScheduleRow, Store, Watermark};

/// Names that an error lists.
const MAX_LISTED_NAMES: usize = 8;

/// What the changes of a text file do to the schedules.
#[derive(Default)]
pub(super) struct ChangePlan {
    created: Vec<(Schedule, Watermark)>,
    edited: Vec<(i64, Schedule, Watermark)>,
    deleted: Vec<i64>,
    deleted_names: Vec<String>,
    /// What is logged once they are applied.
    notes: Vec<String>,
}

impl ChangePlan {
    pub(super) fn new(
        store: &Store,
        rows: &[ScheduleRow],
        changes: &[Change],
        zone: Tz,
        now: Timestamp,
    ) -> Result<Self> {
        let mut plan = ChangePlan::default();
        for change in changes {
            let name = &change.name;
            let present = rows.iter().find(|row| row.schedule.name == *name);
            present.map_or(Ok(()), ScheduleRow::ensure_changeable)?;
            let daily: &[_] = match present.and_then(|row| row.schedule.cadence.as_ref()) {
                Some(Cadence::Daily(times)) => times.as_slice(),
                _ => &[],
            };
            match (present, change.apply(daily)) {
                (Some(row), Some(times)) => {
                    let source = change.source.clone().unwrap_or_else(|| row.schedule.source.clone());
                    let schedule = with_line(Some(row.schedule.clone()), name, source, times);
                    check_source(store, rows, &schedule)?;
                    if schedule != row.schedule {
                        plan.notes.push(format!("{name}: changed by the text file"));
                        let watermark = Watermark::starting(&schedule, zone, now);
                        plan.edited.push((row.id, schedule, watermark));
                    }
                }
                // A command gave it a cron expression, so the removed lines no longer describe it.
                (Some(_), None) if daily.is_empty() => plan.notes.push(format!("{name}: not changed")),
                (Some(row), None) => {
                    plan.notes.push(format!("{name}: deleted by the text file; its history and archives are kept"));
                    plan.deleted.push(row.id);
                    plan.deleted_names.push(name.to_string());
                }
                (None, Some(times)) => {
                    let Some(source) = change.source.clone() else { continue };
                    plan.create(store.deleted_schedule(name.as_str())?, name, source, times, zone, now);
                }
                (None, None) => {}
            }
        }
        Ok(plan)
    }

    fn create(
        &mut self,
        before: Option<Schedule>,
        name: &ScheduleName,
        source: Vec<u8>,
        times: DailyTimes,
        zone: Tz,
        now: Timestamp,
    ) {
        self.notes.push(match &before {
            None => format!("{name}: created by the text file"),
            Some(before) => {
                let paused = if before.enabled { "" } else { ", and is paused as it was" };
                format!("{name}: created again by the text file; it keeps its options, history and archives{paused}")
            }
        });
        let schedule = with_line(before, name, source, times);
        let watermark = Watermark::starting(&schedule, zone, now);
        self.created.push((schedule, watermark));
    }

    /// Refuses deletions that a cut-off file has too: all lines are gone, or more than one schedule and over a third
    /// of the `made` ones that the file describes.
    pub(super) fn check_deletions(&self, name: &str, made: usize, is_empty: bool) -> Result<()> {
        let count = self.deleted.len();
        if count == 0 || !(is_empty || (count > 1 && count * 3 > made)) {
            return Ok(());
        }
        let what = if is_empty { "is empty" } else { "may be cut off" };
        let listed = self.deleted_names.iter().take(MAX_LISTED_NAMES).cloned().collect::<Vec<_>>().join(", ");
        let more = if count > MAX_LISTED_NAMES { ", ..." } else { "" };
        Err(Error::usage(format!(
            "the text file {name} {what}: it lacks {count} of the {made} schedules that it made ({listed}{more}), and \
             nothing of it was applied. To delete them, run `backup-manager delete` with their names, or \
             `backup-manager import --replace {name}`, which deletes every schedule that the file lacks"
        )))
    }

    pub(super) fn apply(&self, store: &Store, now: Timestamp) -> Result<()> {
        if !(self.created.is_empty() && self.edited.is_empty() && self.deleted.is_empty()) {
            let changes = ScheduleChanges {
                created: &self.created,
                edited: &self.edited,
                deleted: &self.deleted,
                ..ScheduleChanges::default()
            };
            store.apply_schedules(&changes, now)?;
        }
        self.notes.iter().for_each(|note| log::info!("{note}"));
        Ok(())
    }
}

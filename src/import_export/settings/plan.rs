//! What a settings file changes, and whether it may.

use std::collections::BTreeSet;
use std::fmt;

use chrono_tz::Tz;

use super::keys::{KEYS, Key};
use super::parse::{Entry, Problems};
use crate::approval;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::schedule::{Hooks, Schedule, ScheduleName};
use crate::store::{Managed, ScheduleChanges, ScheduleHooks, ScheduleRow, Store, Watermark};
use crate::words;

/// Names that an error lists.
const MAX_LISTED_NAMES: usize = 8;

/// What becomes of the schedules that the file had and has no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// They are paused, and commands may change them.
    Pause,
    /// They are deleted. Their history and archives are kept.
    Delete,
}

/// A key whose value changes. The values are as the file has them; `None` if there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: &'static str,
    /// Its value before.
    pub before: Option<String>,
    /// Its value afterwards.
    pub after: Option<String>,
}

/// A schedule that the file changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryChange {
    /// The name.
    pub name: String,
    /// The keys whose values change; none if only who manages it changes.
    pub differences: Vec<Difference>,
    /// Commands managed it so far, or another file.
    pub is_taken_over: bool,
    /// Commands that were held may be executed, since the file has them.
    pub is_approved: bool,
}

impl EntryChange {
    /// Returns what changes, without values: a command may hold what is not for the log.
    fn note(&self) -> String {
        let facts = [
            (self.is_taken_over, "managed by the settings file from now on".to_owned()),
            (self.is_approved, "its commands are approved".to_owned()),
            (!self.differences.is_empty(), format!("changed {}", self.keys().join(", "))),
        ];
        let facts: Vec<_> = facts.into_iter().filter_map(|(is_so, fact)| is_so.then_some(fact)).collect();
        format!("{}: {}", self.name, facts.join("; "))
    }

    fn keys(&self) -> Vec<&'static str> {
        self.differences.iter().map(|difference| difference.key).collect()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = [&self.before, &self.after].map(|value| value.as_deref().unwrap_or("not set"));
        write!(f, "{} {before} -> {after}", self.key)
    }
}

/// What applying a settings file does.
#[derive(Clone, Debug, Default)]
pub struct SettingsPlan {
    /// Names of new schedules.
    pub created: Vec<String>,
    /// Those of `created` that were deleted before: their history and archives belong to them again.
    pub revived: Vec<String>,
    /// Schedules that change.
    pub changed: Vec<EntryChange>,
    /// Names of schedules that are paused because the file has them no more.
    pub paused: Vec<String>,
    /// Names of schedules that are deleted because the file has them no more.
    pub deleted: Vec<String>,
    /// Number of schedules that are already as the file has them.
    pub unchanged: usize,
    /// How many schedules the file managed so far.
    managed_before: usize,
    /// The schedule whose entry was the last one of the file is not in it any more.
    lacks_last: bool,
    /// Rows of schedules of which less is kept from now on.
    keep_less: Vec<i64>,
    /// Those of them whose next prune waits for a later good run.
    held: Vec<i64>,
    new_schedules: Vec<(Schedule, Watermark)>,
    edits: Vec<(i64, Schedule, Watermark)>,
    deletions: Vec<i64>,
    marks: Vec<(ScheduleName, Option<Managed>)>,
    /// What surrounds the runs of schedules, where it changes or is approved.
    hooks: Vec<(ScheduleName, Hooks)>,
}

/// What a file is compared with.
pub struct Present<'a> {
    /// The home of the database.
    pub home: &'a Home,
    /// The database; `None` if there is none yet.
    pub store: Option<&'a Store>,
    /// The names in the text file that a service follows, too.
    pub in_text_file: &'a BTreeSet<ScheduleName>,
    /// The zone of schedules without one.
    pub zone: Tz,
    /// The time.
    pub now: Timestamp,
}

impl SettingsPlan {
    /// Compares the schedules of `file`, an absolute path, with those of the database.
    ///
    /// Errors: `Usage` with all names that also the text file or another settings file has; those of the database.
    pub fn new(file: &str, entries: Vec<Entry>, removed: Removed, present: &Present<'_>) -> Result<Self> {
        let rows = present.store.map_or_else(|| Ok(Vec::new()), Store::schedules)?;
        let is_own = |row: &&ScheduleRow| row.managed_by.as_ref().is_some_and(|managed| managed.file == file);
        let mut plan = SettingsPlan { managed_before: rows.iter().filter(is_own).count(), ..SettingsPlan::default() };
        let names: BTreeSet<ScheduleName> = entries.iter().map(|entry| entry.schedule.name.clone()).collect();
        let line = |row: &&ScheduleRow| row.managed_by.as_ref().map(|managed| managed.line);
        let last = rows.iter().filter(is_own).max_by_key(line);
        plan.lacks_last = last.is_some_and(|row| !names.contains(&row.schedule.name));
        for row in rows.iter().filter(is_own).filter(|row| !names.contains(&row.schedule.name)) {
            plan.remove(row, removed, present);
        }
        let mut problems = Problems::default();
        for entry in entries {
            let row = rows.iter().find(|row| row.schedule.name == entry.schedule.name);
            let other = row.and_then(|row| row.managed_by.as_ref()).filter(|managed| managed.is_of_other(file));
            let name = &entry.schedule.name;
            let mark = Managed { file: file.to_owned(), line: entry.line, is_paused: !entry.schedule.enabled };
            if present.in_text_file.contains(name) {
                problems.add(entry.line, format!("the text file that the service follows has {name}, too"));
            } else if let Some(other) = other {
                problems.add(entry.line, format!("{name} is managed by {other}"));
            } else if let Some(row) = row {
                plan.change(row, entry, mark, present)?;
            } else {
                plan.create(entry, mark, present)?;
            }
        }
        if problems.found.is_empty() { Ok(plan) } else { Err(problems.into_error(file)) }
    }

    /// Returns whether the schedules are already as the file has them.
    pub fn is_empty(&self) -> bool {
        self.created.is_empty() && self.changed.is_empty() && self.paused.is_empty() && self.deleted.is_empty()
    }

    /// Returns whether a schedule is gone, or less of one is kept.
    pub fn loses(&self) -> bool {
        !(self.paused.is_empty() && self.deleted.is_empty() && self.keep_less.is_empty())
    }

    /// Lets the next prune of schedules of which less is kept from now on wait for a later good run: a file that is
    /// written still may lack the rest of their rules.
    pub fn hold_prunes(&mut self) {
        self.held.clone_from(&self.keep_less);
    }

    /// Refuses what a file that is cut off would do, too: all schedules of the file are gone, the last one, or more
    /// than one of them and over a third. `confirm` is the command by which it is done all the same.
    pub fn check_removals(&self, file: &str, confirm: &str) -> Result<()> {
        let removed: Vec<&str> = self.paused.iter().chain(&self.deleted).map(String::as_str).collect();
        let (count, made) = (removed.len(), self.managed_before);
        let is_empty = self.created.is_empty() && self.changed.is_empty() && self.unchanged == 0;
        if count == 0 || !(is_empty || self.lacks_last || (count > 1 && count * 3 > made)) {
            return Ok(());
        }
        let what = if is_empty { "has no schedule" } else { "may be cut off" };
        let more = if count > MAX_LISTED_NAMES { ", ..." } else { "" };
        let listed = removed.into_iter().take(MAX_LISTED_NAMES).collect::<Vec<_>>().join(", ");
        Err(Error::usage(format!(
            "the settings file {file} {what}: it lacks {count} of the {made} schedules that it managed \
             ({listed}{more}), and nothing of it was applied. To {confirm} {}`",
            words::shell_word(file)
        )))
    }

    /// Makes all of the changes in one transaction. Whoever can write the file may have commands executed, so its
    /// commands are approved.
    pub fn apply(&self, home: &Home, store: &Store, now: Timestamp) -> Result<()> {
        let approved = |(name, hooks): &(ScheduleName, Hooks)| {
            approval::approve(home, name, hooks.clone(), |_| true).map(|hooks| (name.clone(), hooks))
        };
        let hooks = self.hooks.iter().map(approved).collect::<Result<Vec<_>>>()?;
        let changes = ScheduleChanges {
            created: &self.new_schedules,
            edited: &self.edits,
            deleted: &self.deletions,
            held: &self.held,
            managed: &self.marks,
            hooks: &hooks,
        };
        if self.is_empty() && self.marks.is_empty() { Ok(()) } else { store.apply_schedules(&changes, now).map(drop) }
    }

    /// Returns what is done, a line for each schedule.
    pub fn notes(&self) -> Vec<String> {
        let of_names = |names: &[String], what: &str| -> Vec<String> {
            names.iter().map(|name| format!("{name}: {what}")).collect()
        };
        let mut notes = of_names(&self.created, "created by the settings file");
        notes.extend(self.changed.iter().map(EntryChange::note));
        notes.extend(of_names(&self.paused, "paused, because it is not in the settings file any more"));
        notes.extend(of_names(&self.deleted, "deleted, because it is not in the settings file any more"));
        notes
    }

    fn create(&mut self, entry: Entry, mark: Managed, present: &Present<'_>) -> Result<()> {
        let Entry { schedule, hooks, .. } = entry;
        let name = schedule.name.to_string();
        let before = present.store.map_or(Ok(None), |store| store.deleted_schedule(&name))?;
        self.revived.extend(before.map(|_| name.clone()));
        self.created.push(name);
        self.marks.push((schedule.name.clone(), Some(mark)));
        self.hooks.push((schedule.name.clone(), hooks));
        let watermark = Watermark::starting(&schedule, present.zone, present.now);
        self.new_schedules.push((schedule, watermark));
        Ok(())
    }

    fn change(&mut self, row: &ScheduleRow, entry: Entry, mark: Managed, present: &Present<'_>) -> Result<()> {
        let Entry { schedule: mut wanted, hooks, .. } = entry;
        // Whoever paused it by command resumes it, too: a restart of the service must not. What the file paused is
        // resumed by the file.
        let is_paused_by_command =
            !row.schedule.enabled && row.managed_by.as_ref().is_some_and(|managed| !managed.is_paused);
        wanted.enabled &= !is_paused_by_command;
        let before = present.store.map_or(Ok(ScheduleHooks::default()), |store| store.hooks(row.id))?;
        let is_approved =
            !hooks.commands.is_empty() && !approval::held_commands(present.home, &wanted.name, &before)?.is_empty();
        let is_taken_over = row.managed_by.as_ref().is_none_or(|managed| managed.file != mark.file);
        let differences = differences((&row.schedule, &before.hooks), (&wanted, &hooks));
        if differences.is_empty() && !is_taken_over && !is_approved {
            self.unchanged += 1;
        } else {
            self.changed.push(EntryChange { name: wanted.name.to_string(), differences, is_taken_over, is_approved });
        }
        if row.managed_by.as_ref() != Some(&mark) {
            self.marks.push((wanted.name.clone(), Some(mark)));
        }
        if hooks != before.hooks || is_approved {
            self.hooks.push((wanted.name.clone(), hooks));
        }
        if wanted.retention.keeps_less_than(&row.schedule.retention) {
            self.keep_less.push(row.id);
        }
        if wanted != row.schedule {
            let watermark = Watermark::starting(&wanted, present.zone, present.now);
            self.edits.push((row.id, wanted, watermark));
        }
        Ok(())
    }

    fn remove(&mut self, row: &ScheduleRow, removed: Removed, present: &Present<'_>) {
        let name = row.schedule.name.to_string();
        if removed == Removed::Delete {
            self.deleted.push(name);
            self.deletions.push(row.id);
            return;
        }
        self.paused.push(name);
        self.marks.push((row.schedule.name.clone(), None));
        if row.schedule.enabled {
            let schedule = Schedule { enabled: false, ..row.schedule.clone() };
            let watermark = Watermark::starting(&schedule, present.zone, present.now);
            self.edits.push((row.id, schedule, watermark));
        }
    }
}

fn differences(before: (&Schedule, &Hooks), after: (&Schedule, &Hooks)) -> Vec<Difference> {
    let of_key = |key: &Key| {
        let value = |(schedule, hooks): (&Schedule, &Hooks)| (key.get)(schedule, hooks).map(|value| value.to_string());
        let (before, after) = (value(before), value(after));
        (before != after).then_some(Difference { key: key.name, before, after })
    };
    KEYS.iter().filter_map(of_key).collect()
}

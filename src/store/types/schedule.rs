//! Schedules with the state that the engine keeps for them.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::hooks::ScheduleHooks;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::schedule::{Schedule, ScheduleName};
use crate::words::shell_word;

/// A schedule with the state that the engine keeps for it.
#[derive(Clone, Debug)]
pub struct ScheduleRow {
    /// Row number; the same after a deleted name is created again.
    pub id: i64,
    /// What the user configured.
    pub schedule: Schedule,
    /// How far its occurrences have been handled, and when the next one is due.
    pub watermark: Watermark,
    /// The next run may find its source emptied or shrunken.
    pub accepted: bool,
    /// A file changed without its times: runs read everything until that is accepted.
    pub reuse_off: bool,
    /// Deleted schedules keep their row, for history and archives.
    pub deleted: bool,
    /// The settings file that manages it; `None`: commands do.
    pub managed_by: Option<Managed>,
    /// When it was created, or created again.
    pub created_at: Timestamp,
    /// When it was last edited, paused or resumed.
    pub edited_at: Timestamp,
}

impl ScheduleRow {
    /// Fails if a settings file manages the schedule: the next time that it is applied it would undo the change.
    pub fn ensure_changeable(&self) -> Result<()> {
        match &self.managed_by {
            None => Ok(()),
            Some(managed) => {
                let apply = format!("backup-manager apply {}", shell_word(&managed.file));
                Err(Error::usage(format!("{} is managed by {managed}", self.schedule.name))
                    .hint(format!("change it there, then `{apply}`; to manage it by commands: `{apply} --release`")))
            }
        }
    }
}

/// Where the entry of a schedule is that a settings file manages. Its JSON form is in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Managed {
    /// Absolute path of the file.
    pub file: String,
    /// Line of the entry, from 1.
    pub line: u32,
    /// The file says that the schedule is not enabled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_paused: bool,
}

impl Managed {
    /// Returns whether another file than `file` manages it, and still exists. It exists no more if its folder does: a
    /// folder that is missing may be one that is not mounted.
    pub fn is_of_other(&self, file: &str) -> bool {
        let path = Path::new(&self.file);
        let is_gone = fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            && path.parent().is_some_and(Path::is_dir);
        self.file != file && !is_gone
    }
}

impl fmt::Display for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// How far the occurrences of a schedule have been handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// Every occurrence up to this time is a run or is coalesced into exactly one (I2).
    pub handled_until: Timestamp,
    /// The next occurrence after that; `None` for a schedule without one.
    pub next_due: Option<Timestamp>,
}

impl Watermark {
    /// Returns the watermark of a schedule that counts its occurrences from `now` on: none before is run.
    /// `service_zone` applies if the schedule has no zone of its own.
    pub fn starting(schedule: &Schedule, service_zone: Tz, now: Timestamp) -> Watermark {
        Watermark { handled_until: now, next_due: schedule.next_after(service_zone, now) }
    }
}

/// Whether a created schedule continues a deleted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revived {
    /// The name was never used.
    New,
    /// The name had been deleted; its history and archives belong to it again.
    FromHistory,
}

/// Changes of schedules that are made together or not at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScheduleChanges<'a> {
    /// New schedules. A deleted name is created again with its history.
    pub created: &'a [(Schedule, Watermark)],
    /// Rows, with what is in them from now on.
    pub edited: &'a [(i64, Schedule, Watermark)],
    /// Rows that are deleted.
    pub deleted: &'a [i64],
    /// Rows whose next prune waits for a later good run.
    pub held: &'a [i64],
    /// Names, with what surrounds their runs from now on. Others keep what they have.
    pub hooks: &'a [(ScheduleName, ScheduleHooks)],
    /// Names, with the settings file that manages them from now on; `None` for commands.
    pub managed: &'a [(ScheduleName, Option<Managed>)],
}

/// Occurrences of one schedule that are due.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// Row of the schedule.
    pub schedule: i64,
    /// The watermark they were computed from; nothing is enqueued if it has moved.
    pub from: Watermark,
    /// The watermark once they are handled.
    pub to: Watermark,
    /// The newest of them.
    pub occurrence: Timestamp,
    /// How many there are, the newest included.
    pub count: u64,
    /// They are recorded as missed instead of run.
    pub missed: bool,
}

/// What became of due occurrences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnqueueOutcome {
    /// A run was queued.
    Queued(i64),
    /// They were coalesced into the run already queued.
    Coalesced(i64),
    /// They were recorded as missed.
    Missed(i64),
    /// The newest already was a run, as after a clock that was set back.
    AlreadyRun,
    /// Another process was first, or the schedule was edited meanwhile.
    Overtaken,
}

//! Schedules and their parts, as values: what is backed up, when, how, and what is kept. Nothing here reads the clock,
//! the disk or the database.

mod cadence;
mod compression;
mod cron;
mod excludes;
mod hooks;
mod json;
mod layout;
mod name;
mod retention;
mod reuse;
mod spec;
pub mod text_file;
mod wall_clock;
mod when;
mod zone;

use std::fmt;
use std::str::FromStr;

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

pub use cadence::{Cadence, DailyTimes, DueOccurrences, TimeOfDay};
pub use compression::Compression;
pub use cron::{CronExpr, DayRule};
pub use excludes::Excludes;
pub use hooks::{CommandKind, HookOptions, Hooks};
pub use layout::Layout;
pub use name::ScheduleName;
pub use retention::Retention;
pub use reuse::Reuse;
pub use spec::Spec;
pub use when::{format_age, parse_age, parse_duration, parse_since, parse_when};
pub use zone::{ServiceZone, ZoneOrigin, parse_zone, service_zone};

use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// What happens to occurrences that were missed because no service was running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    /// One catch-up run for the newest of them, which counts the others.
    #[default]
    Latest,
    /// They are recorded as missed.
    Skip,
}

impl CatchUp {
    /// Returns the word used in the database, in options and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            CatchUp::Latest => "latest",
            CatchUp::Skip => "skip",
        }
    }

    /// Returns what happens to missed occurrences, in words.
    pub fn describe(self) -> &'static str {
        match self {
            CatchUp::Latest => "one catch-up run",
            CatchUp::Skip => "recorded as missed, not run",
        }
    }
}

impl fmt::Display for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CatchUp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "latest" => Ok(CatchUp::Latest),
            "skip" => Ok(CatchUp::Skip),
            _ => Err(Error::usage(format!("\"{}\" is not a way to catch up", text.escape_debug()))
                .hint("write latest or skip")),
        }
    }
}

/// A complete schedule, without its history: what `export --format json` writes and what the header of an archive
/// holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "json::ScheduleJson", into = "json::ScheduleJson")]
pub struct Schedule {
    /// The name, which identifies the schedule.
    pub name: ScheduleName,
    /// The path to back up, as bytes; a relative path is relative to the home.
    pub source: Vec<u8>,
    /// When it is due; `None` after a rescan that found only archives of it.
    pub cadence: Option<Cadence>,
    /// The time zone of the cadence; `None` for that of the service.
    pub zone: Option<Tz>,
    /// Codec and level of new archives.
    pub compression: Compression,
    /// How new archives are stored.
    pub layout: Layout,
    /// What is excluded.
    pub excludes: Excludes,
    /// The retention policy.
    pub retention: Retention,
    /// By which facts unchanged files are recognised.
    pub reuse: Reuse,
    /// What happens to missed occurrences.
    pub catch_up: CatchUp,
    /// Whether a run verifies its archive before it ends.
    pub verify: bool,
    /// `false` while the schedule is paused.
    pub enabled: bool,
}

/// Returns why bytes cannot be the path of a source; `None` if they can. An empty path would mean the home.
pub fn source_problem(source: &[u8]) -> Option<&'static str> {
    match source {
        [] => Some("the path is empty"),
        _ if source.contains(&0) => Some("the path has a NUL byte"),
        _ => None,
    }
}

impl Schedule {
    /// Creates a schedule with the default options.
    pub fn new(name: ScheduleName, source: Vec<u8>, cadence: Cadence) -> Self {
        Schedule {
            name,
            source,
            cadence: Some(cadence),
            zone: None,
            compression: Compression::default(),
            layout: Layout::default(),
            excludes: Excludes::default(),
            retention: Retention::default(),
            reuse: Reuse::default(),
            catch_up: CatchUp::default(),
            verify: true,
            enabled: true,
        }
    }

    /// Returns the next occurrence after an instant, in the schedule's own zone, else in `service_zone`.
    pub fn next_after(&self, service_zone: Tz, after: Timestamp) -> Option<Timestamp> {
        self.cadence.as_ref().and_then(|cadence| cadence.next_after(self.zone.unwrap_or(service_zone), after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docs() -> Schedule {
        let cadence = Cadence::parse_daily("09:00,18:30").unwrap();
        Schedule::new(ScheduleName::parse("docs").unwrap(), b"documents".to_vec(), cadence)
    }

    #[test]
    fn the_names_of_the_json_fields_are_fixed() {
        let written = serde_json::to_string(&docs()).unwrap();
        let excludes = r#"{"globs":[],"files":[],"caches":false,"if_present":[],"one_file_system":false}"#;
        let retention = r#"{"daily":7,"weekly":4,"monthly":6,"within":"3d","manual":"14d"}"#;
        assert_eq!(
            written,
            format!(
                "{{\"name\":\"docs\",\"source\":\"documents\",\"cadence\":\"09:00,18:30\",\"zone\":null,\
                 \"compression\":\"none\",\"excludes\":{excludes},\"retention\":{retention},\
                 \"catch_up\":\"latest\",\"verify\":true,\"enabled\":true}}"
            )
        );
    }

    #[test]
    fn a_schedule_survives_a_round_trip_through_json() {
        let full = Schedule {
            source: b"/caf\xe9".to_vec(),
            cadence: Some(Cadence::parse_cron("*/15  * * * mon-fri").unwrap()),
            zone: Some(Tz::Europe__Paris),
            compression: Compression::Zstd(7),
            layout: Layout::Segmented,
            retention: Retention { all: true, ..Retention::EMPTY },
            reuse: Reuse { ignore_ctime: true, trust_times: true, ..Reuse::default() },
            catch_up: CatchUp::Skip,
            verify: false,
            enabled: false,
            ..docs()
        };
        let rescanned = Schedule { cadence: None, ..docs() };
        for schedule in [docs(), full, rescanned] {
            let json = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule, "{json}");
        }
        let minimal = r#"{"name":"docs","source":"documents","cadence":"09:00,18:30"}"#;
        assert_eq!(serde_json::from_str::<Schedule>(minimal).unwrap(), docs());
    }

    #[test]
    fn invalid_json_is_refused() {
        for bad in [
            r#"{"name":"docs"}"#,
            r#"{"name":"a/b","source":"x"}"#,
            r#"{"name":"docs","source":""}"#,
            r#"{"name":"docs","source":"x\u0000"}"#,
            r#"{"name":"docs","source":"x","surprise":1}"#,
            r#"{"name":"docs","source":"x","cadence":"25:00"}"#,
            r#"{"name":"docs","source":"x","zone":"Nowhere"}"#,
            r#"{"name":"docs","source":"x","source_b64":"eQ=="}"#,
            r#"{"name":"docs","source":"x","source_b64":"*"}"#,
            r#"{"name":"docs","source":"x","retention":{}}"#,
            r#"{"name":"docs","source":"x","excludes":{"glob":[]}}"#,
            r#"{"name":"docs","source":"x","reuse":{"ignore_inode":true,"ignore_ctime":true}}"#,
            r#"{"name":"docs","source":"x","catch_up":"all"}"#,
            r#"{"name":"docs","source":"x","layout":"split"}"#,
        ] {
            assert!(serde_json::from_str::<Schedule>(bad).is_err(), "{bad}");
        }
    }
}

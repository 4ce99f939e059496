//! The JSON documents that several verbs print. Those of one verb are beside that verb.
//!
//! Scripts rely on them: a field keeps its name, its type, and whether it is null or absent when there is no value.
//! Times are RFC 3339 with the offset of a time zone, sizes are bytes. `tests/snapshots.rs` pins them all.

mod error;

use std::os::unix::ffi::OsStrExt;

use base64::Engine;
use chrono_tz::Tz;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::Context;
use crate::clock::Timestamp;
use crate::schedule::Cadence;
use crate::store::{Archive, Drill, Run, ScheduleRow};

pub use error::{ErrorDocument, FailureDocument, ItemDocument};

/// A path, for `#[serde(flatten)]`: the field `KEY` as text and, only if the path is not UTF-8, `KEY_b64` with its
/// exact bytes.
pub struct PathFields {
    key: &'static str,
    path: Vec<u8>,
}

impl PathFields {
    /// Makes the fields `key` and, if necessary, `key_b64`.
    pub fn new(key: &'static str, path: &[u8]) -> PathFields {
        PathFields { key, path: path.to_owned() }
    }
}

impl Serialize for PathFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(None)?;
        fields.serialize_entry(self.key, &String::from_utf8_lossy(&self.path))?;
        if std::str::from_utf8(&self.path).is_err() {
            let exact = base64::engine::general_purpose::STANDARD.encode(&self.path);
            fields.serialize_entry(&format!("{}_b64", self.key), &exact)?;
        }
        fields.end()
    }
}

/// Returns a time as documents hold it.
pub fn time(at: Timestamp, zone: &Tz) -> String {
    at.rfc3339(zone)
}

/// Returns a time as documents hold it; `None` becomes null.
pub fn time_or_null(at: Option<Timestamp>, zone: &Tz) -> Option<String> {
    at.map(|at| time(at, zone))
}

/// Returns a digest as documents hold it.
pub fn hex(digest: [u8; 32]) -> String {
    blake3::Hash::from_bytes(digest).to_hex().to_string()
}

/// A schedule.
#[derive(serde::Serialize)]
pub struct ScheduleDocument {
    /// Position in `list`, counted from 0.
    index: usize,
    name: String,
    /// `path`: the source as it was given.
    #[serde(flatten)]
    path: PathFields,
    /// `source`: the absolute path of the source.
    #[serde(flatten)]
    source: PathFields,
    /// Times of day, `HH:MM`; empty with `cron` or without a cadence.
    at: Vec<String>,
    cron: Option<String>,
    timezone: &'static str,
    /// Whether the zone is the schedule's own rather than that of the service.
    timezone_is_own: bool,
    enabled: bool,
    /// Codec and level: `zstd:3`.
    compress: String,
    /// How its next archives are stored: `whole` or `segmented`.
    layout: &'static str,
    /// Null while it is paused.
    next_due: Option<String>,
    /// The settings file that manages it, and the line there: `FILE:LINE`; null if commands do.
    managed_by: Option<String>,
}

impl ScheduleDocument {
    /// Describes the schedule at `index` of `list`; `zone` is that of schedules without their own.
    pub fn new(context: &Context, index: usize, row: &ScheduleRow, zone: Tz) -> ScheduleDocument {
        let schedule = &row.schedule;
        let own_zone = schedule.zone.unwrap_or(zone);
        let (at, cron) = match &schedule.cadence {
            Some(Cadence::Daily(times)) => (times.as_slice().iter().map(ToString::to_string).collect(), None),
            Some(Cadence::Cron(cron)) => (Vec::new(), Some(cron.as_str().to_owned())),
            None => (Vec::new(), None),
        };
        ScheduleDocument {
            index,
            name: schedule.name.to_string(),
            path: PathFields::new("path", &schedule.source),
            source: PathFields::new("source", context.home.source_path(&schedule.source).as_os_str().as_bytes()),
            at,
            cron,
            timezone: own_zone.name(),
            timezone_is_own: schedule.zone.is_some(),
            enabled: schedule.enabled,
            compress: schedule.compression.to_string(),
            layout: schedule.layout.as_str(),
            next_due: time_or_null(row.watermark.next_due.filter(|_| schedule.enabled), &own_zone),
            managed_by: row.managed_by.as_ref().map(ToString::to_string),
        }
    }
}

/// A run.
#[derive(serde::Serialize)]
pub struct RunDocument {
    /// Its number.
    run: i64,
    /// Name of its schedule.
    name: String,
    /// `schedule`, `manual` or `rescan`.
    trigger: &'static str,
    state: &'static str,
    /// The due time, if its trigger is the schedule.
    scheduled_for: Option<String>,
    /// Further due times before `scheduled_for` that this run covers.
    coalesced: u64,
    attempts_made: i64,
    queued: String,
    /// When it may start; null once it has ended.
    not_before: Option<String>,
    started: Option<String>,
    finished: Option<String>,
    members: u64,
    files: u64,
    content_bytes: u64,
    archive_bytes: u64,
    /// How many problems it recorded.
    problems: u64,
    /// How many of them lost content.
    losses: u64,
    notes: Vec<String>,
    accepted: bool,
    /// The run that covers the due time that this one missed.
    superseded_by: Option<i64>,
    /// Why it failed.
    error: Option<String>,
}

impl RunDocument {
    /// Describes a run, with times in `zone`.
    pub fn new(run: &Run, zone: &Tz) -> RunDocument {
        RunDocument {
            run: run.id,
            name: run.schedule_name.clone(),
            trigger: run.trigger.as_str(),
            state: run.state.as_str(),
            scheduled_for: time_or_null(run.scheduled_for, zone),
            coalesced: run.coalesced,
            attempts_made: run.attempt,
            queued: time(run.queued_at, zone),
            not_before: time_or_null((!run.state.is_final()).then_some(run.not_before), zone),
            started: time_or_null(run.started_at, zone),
            finished: time_or_null(run.finished_at, zone),
            members: run.counts.extent.members,
            files: run.counts.extent.files,
            content_bytes: run.counts.extent.content_bytes,
            archive_bytes: run.counts.archive_bytes,
            problems: run.counts.problems,
            losses: run.counts.losses,
            notes: run.counts.notes.clone(),
            accepted: run.accepted,
            superseded_by: run.superseded_by,
            error: run.error.clone(),
        }
    }
}

/// An archive.
#[derive(serde::Serialize)]
pub struct ArchiveDocument {
    /// The run that made it.
    run: i64,
    /// Name of its schedule.
    name: String,
    /// `path`: the file, or the index of an archive in segments.
    #[serde(flatten)]
    path: PathFields,
    /// `whole` or `segmented`.
    layout: &'static str,
    created: String,
    /// Size of the archive.
    size: u64,
    /// Bytes of the archive that other archives have, too.
    shared_bytes: u64,
    /// Bytes that deleting this archive alone would free.
    freed_bytes: u64,
    content_bytes: u64,
    members: u64,
    files: u64,
    /// Whether it is good in the sense of I8.
    good: bool,
    health: &'static str,
    /// When it was last verified.
    verified: Option<String>,
    incomplete: bool,
    suspect: bool,
    pinned: bool,
}

impl ArchiveDocument {
    /// Describes an archive of this home, with times in the zone of this process.
    pub fn new(context: &Context, archive: &Archive) -> ArchiveDocument {
        let path = context.home.backups().join(&archive.file_name);
        ArchiveDocument {
            run: archive.run,
            name: archive.schedule_name.clone(),
            path: PathFields::new("path", path.as_os_str().as_bytes()),
            layout: archive.layout.as_str(),
            created: time(archive.created_at, &context.zone),
            size: archive.size,
            shared_bytes: archive.shared_bytes(),
            freed_bytes: archive.freed_bytes(),
            content_bytes: archive.extent.content_bytes,
            members: archive.extent.members,
            files: archive.extent.files,
            good: archive.good,
            health: archive.health.as_str(),
            verified: time_or_null(archive.verified_at, &context.zone),
            incomplete: archive.incomplete,
            suspect: archive.suspect,
            pinned: archive.pinned,
        }
    }
}

/// The last restore test of a schedule.
#[derive(serde::Serialize)]
pub struct DrillDocument {
    /// The run whose archive was restored.
    run: i64,
    started: String,
    finished: Option<String>,
    passed: bool,
    files: u64,
    content_bytes: u64,
    /// Why it failed.
    error: Option<String>,
}

impl DrillDocument {
    /// Describes a restore test, with times in `zone`.
    pub fn new(drill: &Drill, zone: &Tz) -> DrillDocument {
        DrillDocument {
            run: drill.run,
            started: time(drill.started_at, zone),
            finished: time_or_null(drill.finished_at, zone),
            passed: drill.passed,
            files: drill.files,
            content_bytes: drill.content_bytes,
            error: drill.error.clone(),
        }
    }
}

/// What `start`, `stop` and, at its end, `serve` print as JSON.
#[derive(serde::Serialize)]
pub struct ServiceStateDocument<'a> {
    /// `running` (it ran already), `started` or `stopped`.
    pub service: &'a str,
    /// Its process; absent if it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct Document {
        #[serde(flatten)]
        path: PathFields,
        #[serde(flatten)]
        target: Option<PathFields>,
    }

    #[test]
    fn a_path_that_is_not_utf_8_has_its_bytes_in_a_second_field() {
        let document = |path, target: Option<&[u8]>| {
            let target = target.map(|target| PathFields::new("target", target));
            serde_json::to_value(Document { path: PathFields::new("path", path), target }).unwrap()
        };
        assert_eq!(document(b"a", None), serde_json::json!({ "path": "a" }));
        assert_eq!(
            document(b"\xe9", Some(b"\xe9")),
            serde_json::json!({ "path": "\u{fffd}", "path_b64": "6Q==", "target": "\u{fffd}", "target_b64": "6Q==" })
        );
    }
}

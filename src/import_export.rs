//! Import and export of schedules: the old text file, JSON, and the text file that a service follows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::schedule::text_file::{self, BadLine, Change, Entry};
use crate::schedule::{Cadence, Schedule};
use crate::store::{ScheduleRow, Store, Watermark};

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Names of created schedules.
    pub created: Vec<String>,
    /// Names of changed schedules.
    pub changed: Vec<String>,
    /// Names of deleted schedules.
    pub deleted: Vec<String>,
    /// Number of schedules that were already as imported.
    pub unchanged: usize,
}

/// All schedules as a JSON document.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Version of the format.
    version: u32,
    schedules: Vec<Schedule>,
}

const DOCUMENT_VERSION: u32 = 1;

/// Parses a text file. Reports all bad lines in one usage error; `name` is the name of the file in it.
pub fn parse_text(bytes: &[u8], name: &str) -> Result<Vec<Entry>> {
    text_file::read(bytes).map_err(|bad| bad_lines_error(&bad, name))
}

fn bad_lines_error(bad: &[BadLine], name: &str) -> Error {
    let lines: String = bad.iter().map(|line| format!("\n  {line}")).collect();
    let count = if bad.len() == 1 { "1 bad line".to_owned() } else { format!("{} bad lines", bad.len()) };
    Error::usage(format!("{name} has {count}, and nothing of it was imported:{lines}"))
        .hint("a line is PATH;HH:MM;NAME; correct these and import again")
}

/// Imports the entries of a text file in one transaction. Options that the file cannot hold are not changed. With
/// `replace`, schedules that are not in the file are deleted.
pub fn import_text(store: &Store, entries: &[Entry], replace: bool, zone: Tz, now: Timestamp) -> Result<Imported> {
    let rows = store.schedules()?;
    let wanted = entries.iter().map(|entry| {
        let cadence = Cadence::Daily(entry.times.clone());
        match rows.iter().find(|row| row.schedule.name == entry.name) {
            Some(row) => Schedule { source: entry.source.clone(), cadence: Some(cadence), ..row.schedule.clone() },
            None => Schedule::new(entry.name.clone(), entry.source.clone(), cadence),
        }
    });
    import(store, &rows, wanted.collect(), replace, zone, now)
}

/// Imports a JSON document of [`export_json`] in one transaction. With `replace`, schedules that are not in it are
/// deleted.
///
/// Errors: `Usage` if the document is invalid; then nothing is changed.
pub fn import_json(
    store: &Store,
    bytes: &[u8],
    name: &str,
    replace: bool,
    zone: Tz,
    now: Timestamp,
) -> Result<Imported> {
    let invalid = |e| {
        Error::usage(format!("{name} is not a JSON document of schedules, and nothing of it was imported"))
            .because(e)
            .hint("make one with `backup-manager export --format json`")
    };
    let document: Document = serde_json::from_slice(bytes).map_err(invalid)?;
    if document.version != DOCUMENT_VERSION {
        return Err(Error::usage(format!(
            "{name} has the format version {}, and this program supports {DOCUMENT_VERSION}",
            document.version
        ))
        .hint("import it with the version that wrote it, or a newer one"));
    }
    let names: Vec<&str> = document.schedules.iter().map(|schedule| schedule.name.as_str()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        return Err(Error::usage(format!("{name} has the name \"{}\" twice, and nothing of it was imported", twice.1)));
    }
    import(store, &store.schedules()?, document.schedules, replace, zone, now)
}

/// Creates and changes schedules so that those with the names of `wanted` are equal to them.
fn import(
    store: &Store,
    rows: &[ScheduleRow],
    wanted: Vec<Schedule>,
    replace: bool,
    zone: Tz,
    now: Timestamp,
) -> Result<Imported> {
    let mut imported = Imported::default();
    let (mut created, mut edited, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    if replace {
        for row in rows.iter().filter(|row| wanted.iter().all(|schedule| schedule.name != row.schedule.name)) {
            imported.deleted.push(row.schedule.name.to_string());
            deleted.push(row.id);
        }
    }
    for schedule in wanted {
        let watermark = Watermark::starting(&schedule, zone, now);
        match rows.iter().find(|row| row.schedule.name == schedule.name) {
            Some(row) if row.schedule == schedule => imported.unchanged += 1,
            Some(row) => {
                imported.changed.push(schedule.name.to_string());
                edited.push((row.id, schedule, watermark));
            }
            None => {
                imported.created.push(schedule.name.to_string());
                created.push((schedule, watermark));
            }
        }
    }
    if !(created.is_empty() && edited.is_empty() && deleted.is_empty()) {
        store.apply_schedules(&created, &edited, &deleted, now)?;
    }
    Ok(imported)
}

/// Formats the schedules as a text file. Also returns the names of those that it cannot hold, each with the reason.
pub fn export_text(rows: &[ScheduleRow]) -> (Vec<u8>, Vec<(String, String)>) {
    let mut entries = Vec::new();
    let mut left_out = Vec::new();
    for row in rows {
        let schedule = &row.schedule;
        match &schedule.cadence {
            Some(Cadence::Daily(times)) => entries.push(Entry {
                name: schedule.name.clone(),
                source: schedule.source.clone(),
                times: times.clone(),
            }),
            Some(Cadence::Cron(_)) => {
                left_out.push((schedule.name.to_string(), "a cron schedule has no place in it".to_owned()));
            }
            None => left_out.push((schedule.name.to_string(), "it has no times".to_owned())),
        }
    }
    let written = text_file::format(&entries);
    left_out.extend(written.left_out.into_iter().map(|(name, reason)| (name.to_string(), reason.to_owned())));
    (written.text, left_out)
}

/// Formats the schedules with all their options as a JSON document.
pub fn export_json(rows: &[ScheduleRow]) -> Result<Vec<u8>> {
    let schedules = rows.iter().map(|row| row.schedule.clone()).collect();
    let mut text = serde_json::to_vec_pretty(&Document { version: DOCUMENT_VERSION, schedules })
        .map_err(|e| Error::failed("cannot write the schedules as JSON").because(e))?;
    text.push(b'\n');
    Ok(text)
}

/// A text file that a service follows, and its state when it was last read.
#[derive(Debug)]
pub struct TextFileState {
    path: PathBuf,
    last_read: Option<FileStamp>,
    /// A newer state that was seen once: an editor may still be writing the file.
    pending: Option<FileStamp>,
}

/// Distinguishes one state of the file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FileStamp {
    Missing,
    File { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
}

impl TextFileState {
    /// Creates the state of a file that has not been read.
    pub fn new(path: PathBuf) -> Self {
        TextFileState { path, last_read: None, pending: None }
    }

    /// Returns whether the file differs from the state last read and from the pending one.
    pub fn has_changed(&self) -> bool {
        stamp_of(&self.path).is_ok_and(|now| ![&self.last_read, &self.pending].contains(&&Some(now)))
    }
}

/// Reads the file if it changed, and applies the lines that differ from the text last imported. Bad lines are logged
/// and reported by `status` as an error, and nothing is applied. A missing file, or a folder in its place, is a
/// warning.
///
/// A change is applied only when the file is unchanged at the next call, since it may be written in parts. Returns
/// whether such a change is pending and the next call should come soon.
pub fn follow_text_file(state: &mut TextFileState, store: &Store, zone: Tz, now: Timestamp) -> Result<bool> {
    let stamp = stamp_of(&state.path)?;
    if state.last_read.as_ref() == Some(&stamp) {
        state.pending = None;
        return Ok(false);
    }
    if state.last_read.is_some() && state.pending.as_ref() != Some(&stamp) {
        state.pending = Some(stamp);
        return Ok(true);
    }
    let name = state.path.display().to_string();
    if stamp == FileStamp::Missing {
        log::warn!("{name} is not a file; the schedules are not changed");
        store.set_import_error(None)?;
        state.last_read = Some(stamp);
        return Ok(false);
    }
    let bytes = fs::read(&state.path).map_err(Error::io("read", &state.path))?;
    match parse_text(&bytes, &name) {
        Ok(entries) => {
            let last = store.imported()?;
            // Text that was applied once is valid. If it were not, every line would count as new.
            let before = last.text.as_deref().and_then(|text| parse_text(text, &name).ok()).unwrap_or_default();
            apply_changes(store, &text_file::changes(&before, &entries), zone, now)?;
            if last.text.as_deref() != Some(&bytes[..]) || last.error.is_some() {
                store.set_imported(&bytes, now)?;
            }
        }
        Err(error) => {
            log::error!("{error}");
            store.set_import_error(Some(&error.to_string()))?;
        }
    }
    state.last_read = Some(stamp);
    Ok(false)
}

fn stamp_of(path: &Path) -> Result<FileStamp> {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(m) if m.is_file() => Ok(FileStamp::File {
            device: m.dev(),
            inode: m.ino(),
            size: m.len(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }),
        Ok(_) => Ok(FileStamp::Missing),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(FileStamp::Missing)
        }
        Err(error) => Err(Error::io("inspect", path)(error)),
    }
}

fn apply_changes(store: &Store, changes: &[Change], zone: Tz, now: Timestamp) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let rows = store.schedules()?;
    let (mut created, mut edited, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        let present = rows.iter().find(|row| row.schedule.name == change.name);
        let daily: &[_] = match present.and_then(|row| row.schedule.cadence.as_ref()) {
            Some(Cadence::Daily(times)) => times.as_slice(),
            _ => &[],
        };
        match (present, change.apply(daily)) {
            (Some(row), Some(times)) => {
                let source = change.source.clone().unwrap_or_else(|| row.schedule.source.clone());
                let schedule = Schedule { source, cadence: Some(Cadence::Daily(times)), ..row.schedule.clone() };
                if schedule != row.schedule {
                    log::info!("{}: changed by the text file", change.name);
                    let watermark = Watermark::starting(&schedule, zone, now);
                    edited.push((row.id, schedule, watermark));
                }
            }
            // A command gave it a cron expression, so the removed lines no longer describe it.
            (Some(row), None) if daily.is_empty() => log::info!("{}: not changed", row.schedule.name),
            (Some(row), None) => {
                log::info!("{}: deleted by the text file; its history and archives are kept", change.name);
                deleted.push(row.id);
            }
            (None, Some(times)) => {
                let Some(source) = change.source.clone() else { continue };
                log::info!("{}: created by the text file", change.name);
                let schedule = Schedule::new(change.name.clone(), source, Cadence::Daily(times));
                let watermark = Watermark::starting(&schedule, zone, now);
                created.push((schedule, watermark));
            }
            (None, None) => {}
        }
    }
    store.apply_schedules(&created, &edited, &deleted, now)
}

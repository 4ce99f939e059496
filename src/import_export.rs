//! Schedules in and out: the old text file, JSON, and the text file that a service follows.

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

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Names of schedules that are new.
    pub created: Vec<String>,
    /// Names of schedules that changed.
    pub changed: Vec<String>,
    /// Names of schedules that went.
    pub deleted: Vec<String>,
    /// Schedules that were already so.
    pub unchanged: usize,
}

/// All schedules as JSON holds them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// The form of this document.
    version: u32,
    schedules: Vec<Schedule>,
}

const DOCUMENT_VERSION: u32 = 1;

/// Reads a text file, or tells every bad line of it in one error.
pub fn parse_text(bytes: &[u8], name: &str) -> Result<Vec<Entry>> {
    text_file::read(bytes).map_err(|bad| bad_lines(&bad, name))
}

fn bad_lines(bad: &[BadLine], name: &str) -> Error {
    let lines: String = bad.iter().map(|line| format!("\n  {line}")).collect();
    let count = if bad.len() == 1 { "1 bad line".to_owned() } else { format!("{} bad lines", bad.len()) };
    Error::usage(format!("{name} has {count}, and nothing of it was imported:{lines}"))
        .hint("a line is PATH;HH:MM;NAME; correct these and import again")
}

/// Imports the entries of a text file in one transaction. Options that the file cannot hold stay as they are; `replace`
/// also deletes what the file lacks.
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

/// Imports a JSON document made by [`export_json`] in one transaction.
pub fn import_json(
    store: &Store,
    bytes: &[u8],
    name: &str,
    replace: bool,
    zone: Tz,
    now: Timestamp,
) -> Result<Imported> {
    let refuse = |e| {
        Error::usage(format!("{name} is not a JSON document of schedules, and nothing of it was imported"))
            .because(e)
            .hint("make one with `backup-manager export --format json`")
    };
    let document: Document = serde_json::from_slice(bytes).map_err(refuse)?;
    if document.version != DOCUMENT_VERSION {
        return Err(Error::usage(format!(
            "{name} has the form {}, and this program knows {DOCUMENT_VERSION}",
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

/// Makes the schedules under their names what they are wanted to be.
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

/// Writes the schedules as a text file; also returns those it cannot hold, each with the reason.
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

/// Writes the schedules with all their options as JSON.
pub fn export_json(rows: &[ScheduleRow]) -> Result<Vec<u8>> {
    let schedules = rows.iter().map(|row| row.schedule.clone()).collect();
    let mut text = serde_json::to_vec_pretty(&Document { version: DOCUMENT_VERSION, schedules })
        .map_err(|e| Error::failed("cannot write the schedules as JSON").because(e))?;
    text.push(b'\n');
    Ok(text)
}

/// A text file that a service follows, and what it looked like when it was last read.
#[derive(Debug)]
pub struct TextFileState {
    path: PathBuf,
    seen: Option<Seen>,
    /// A newer state, looked at once: an editor may be in the middle of writing it.
    newer: Option<Seen>,
}

/// What tells one state of the file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Missing,
    File { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
}

impl TextFileState {
    /// Makes the state of a file that has not been read.
    pub fn new(path: PathBuf) -> Self {
        TextFileState { path, seen: None, newer: None }
    }

    /// Says whether the file is another than the one last read.
    pub fn has_changed(&self) -> bool {
        look(&self.path).is_ok_and(|now| ![&self.seen, &self.newer].contains(&&Some(now)))
    }
}

/// Reads the file if it changed and applies the lines that differ from the text last imported (§4). Bad lines are an
/// error in the log and in `status`, and nothing is applied; a missing file, or a folder in its place, is a warning.
///
/// A change is applied when the file looks the same the next time, since it may be half written. Returns whether it
/// wants to look again soon.
pub fn follow_text_file(state: &mut TextFileState, store: &Store, zone: Tz, now: Timestamp) -> Result<bool> {
    let seen = look(&state.path)?;
    if state.seen.as_ref() == Some(&seen) {
        state.newer = None;
        return Ok(false);
    }
    if state.seen.is_some() && state.newer.as_ref() != Some(&seen) {
        state.newer = Some(seen);
        return Ok(true);
    }
    let name = state.path.display().to_string();
    if seen == Seen::Missing {
        log::warn!("{name} is not a file; the schedules stay as they are");
        store.set_import_error(None)?;
        state.seen = Some(seen);
        return Ok(false);
    }
    let bytes = fs::read(&state.path).map_err(Error::io("read", &state.path))?;
    match parse_text(&bytes, &name) {
        Ok(entries) => {
            let last = store.imported()?;
            // What was applied once parses; were it otherwise, every line would count as new.
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
    state.seen = Some(seen);
    Ok(false)
}

fn look(path: &Path) -> Result<Seen> {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(m) if m.is_file() => Ok(Seen::File {
            device: m.dev(),
            inode: m.ino(),
            size: m.len(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }),
        Ok(_) => Ok(Seen::Missing),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Seen::Missing)
        }
        Err(error) => Err(Error::io("look at", path)(error)),
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
            // Its times were changed to a cron expression by command: the lines that went were no longer its own.
            (Some(row), None) if daily.is_empty() => log::info!("{}: left as it is", row.schedule.name),
            (Some(row), None) => {
                log::info!("{}: deleted by the text file; its history and archives stay", change.name);
                deleted.push(row.id);
            }
            (None, Some(times)) => {
                let Some(source) = change.source.clone() else { continue };
                log::info!("{}: made by the text file", change.name);
                let schedule = Schedule::new(change.name.clone(), source, Cadence::Daily(times));
                let watermark = Watermark::starting(&schedule, zone, now);
                created.push((schedule, watermark));
            }
            (None, None) => {}
        }
    }
    store.apply_schedules(&created, &edited, &deleted, now)
}

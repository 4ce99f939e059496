//! Import and export of schedules: the old text file, JSON, and the text file that a service follows.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::schedule::text_file::{self, BadLine, Change, Entry};
use crate::schedule::{Cadence, CatchUp, Compression, DailyTimes, Retention, Schedule, ScheduleName};
use crate::source;
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
    /// Those of `created` that were deleted before: their history and archives belong to them again.
    pub revived: Vec<String>,
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

/// Imports the entries of a text file in one transaction. Options that the file cannot hold are not changed, and a name
/// that was deleted comes back with those that it had. With `replace`, schedules that are not in the file are deleted.
pub fn import_text(store: &Store, entries: &[Entry], replace: bool, zone: Tz, now: Timestamp) -> Result<Imported> {
    let rows = store.schedules()?;
    let wanted = entries.iter().map(|entry| {
        let present = match rows.iter().find(|row| row.schedule.name == entry.name) {
            Some(row) => Some(row.schedule.clone()),
            None => store.deleted_schedule(entry.name.as_str())?,
        };
        Ok(with_line(present, &entry.name, entry.source.clone(), entry.times.clone()))
    });
    import(store, &rows, wanted.collect::<Result<_>>()?, replace, zone, now)
}

/// Returns a schedule with the path and times of lines: `present`, if there is one, keeps its other options.
fn with_line(present: Option<Schedule>, name: &ScheduleName, source: Vec<u8>, times: DailyTimes) -> Schedule {
    let cadence = Cadence::Daily(times);
    match present {
        Some(present) => Schedule { source, cadence: Some(cadence), ..present },
        None => Schedule::new(name.clone(), source, cadence),
    }
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
    // Checked here as on the command line: in the database they would fail every run.
    document.schedules.iter().try_for_each(|schedule| {
        source::check_patterns(&schedule.excludes.globs).map_err(|cause| {
            Error::usage(format!("the excludes of \"{}\" in {name} are invalid", schedule.name)).because(cause)
        })
    })?;
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
                if store.deleted_schedule(schedule.name.as_str())?.is_some() {
                    imported.revived.push(schedule.name.to_string());
                }
                created.push((schedule, watermark));
            }
        }
    }
    if !(created.is_empty() && edited.is_empty() && deleted.is_empty()) {
        store.apply_schedules(&created, &edited, &deleted, now)?;
    }
    Ok(imported)
}

/// Schedules as a text file, and what it cannot hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportedText {
    /// The file's bytes.
    pub text: Vec<u8>,
    /// The names of schedules that are not in it, each with the reason.
    pub left_out: Vec<(String, String)>,
    /// The names of schedules that are in it, each with the options that are not.
    pub without_options: Vec<(String, Vec<&'static str>)>,
}

/// Formats the schedules as a text file.
pub fn export_text(rows: &[ScheduleRow]) -> ExportedText {
    let mut entries = Vec::new();
    let mut exported = ExportedText::default();
    for row in rows {
        let schedule = &row.schedule;
        let name = schedule.name.to_string();
        match &schedule.cadence {
            Some(Cadence::Daily(times)) => entries.push(Entry {
                name: schedule.name.clone(),
                source: schedule.source.clone(),
                times: times.clone(),
            }),
            Some(Cadence::Cron(_)) => {
                exported.left_out.push((name, "a cron schedule has no place in it".to_owned()));
            }
            None => exported.left_out.push((name, "it has no times".to_owned())),
        }
    }
    let written = text_file::format(&entries);
    exported.text = written.text;
    exported.left_out.extend(written.left_out.into_iter().map(|(name, reason)| (name.to_string(), reason.to_owned())));
    for row in rows.iter().filter(|row| exported.left_out.iter().all(|(name, _)| *name != row.schedule.name.as_str())) {
        let options = options_not_in_text(&row.schedule);
        if !options.is_empty() {
            exported.without_options.push((row.schedule.name.to_string(), options));
        }
    }
    exported
}

/// Returns the options of a schedule that differ from those of a schedule imported from a text file.
fn options_not_in_text(schedule: &Schedule) -> Vec<&'static str> {
    let Schedule { name: _, source: _, cadence: _, zone, compression, excludes, retention, catch_up, verify, enabled } =
        schedule;
    let options = [
        (zone.is_some(), "time zone"),
        (*compression != Compression::default(), "compression"),
        (!excludes.is_empty(), "excludes"),
        (*retention != Retention::default(), "keep rules"),
        (*catch_up != CatchUp::default(), "catch-up"),
        (!verify, "--no-verify"),
        (!enabled, "pause"),
    ];
    options.into_iter().filter_map(|(is_lost, option)| is_lost.then_some(option)).collect()
}

/// Formats the schedules with all their options as a JSON document.
pub fn export_json(rows: &[ScheduleRow]) -> Result<Vec<u8>> {
    let schedules = rows.iter().map(|row| row.schedule.clone()).collect();
    let mut text = serde_json::to_vec_pretty(&Document { version: DOCUMENT_VERSION, schedules })
        .map_err(|e| Error::failed("cannot write the schedules as JSON").because(e))?;
    text.push(b'\n');
    Ok(text)
}

/// How long a text file must be unchanged before it is applied: a copy may be slow, and an editor may write in parts.
const SETTLE_TIME: Duration = Duration::from_secs(5);
/// A larger file is no list of schedules.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// Names that an error lists.
const MAX_LISTED_NAMES: usize = 8;

/// A text file that a service follows, and its state when it was last applied.
#[derive(Debug)]
pub struct TextFileState {
    path: PathBuf,
    applied: Option<FileStamp>,
    /// A newer state, and when it was first seen by the monotonic clock.
    pending: Option<(FileStamp, Duration)>,
}

/// Distinguishes one state of the file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FileStamp {
    Missing,
    /// A folder, a pipe or a device is in its place.
    NotAFile,
    Inaccessible(io::ErrorKind),
    File {
        device: u64,
        inode: u64,
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
}

impl FileStamp {
    fn new(metadata: &fs::Metadata) -> Self {
        if !metadata.is_file() {
            return FileStamp::NotAFile;
        }
        FileStamp::File {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn of_path(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(metadata) => FileStamp::new(&metadata),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => FileStamp::Missing,
            Err(e) => FileStamp::Inaccessible(e.kind()),
        }
    }
}

impl TextFileState {
    /// Creates the state of a file that has not been read.
    pub fn new(path: PathBuf) -> Self {
        TextFileState { path, applied: None, pending: None }
    }

    /// Returns whether the file differs from the state last applied and from the pending one.
    pub fn has_changed(&self) -> bool {
        let stamp = FileStamp::of_path(&self.path);
        self.applied.as_ref() != Some(&stamp) && self.pending.as_ref().is_none_or(|(pending, _)| *pending != stamp)
    }
}

/// Applies the lines of the file that differ from the text last imported, once the file is unchanged for
/// [`SETTLE_TIME`]. Any trouble with the file is logged and recorded as the import error that `status` reports; then
/// nothing is applied, and each later call tries again.
///
/// Returns how long the file must stay unchanged until it is applied; `None` if no change is pending. Errors: only
/// those of the database.
pub fn follow_text_file(
    state: &mut TextFileState,
    store: &Store,
    zone: Tz,
    now: Timestamp,
    monotonic: Duration,
) -> Result<Option<Duration>> {
    let stamp = FileStamp::of_path(&state.path);
    if state.applied.as_ref() == Some(&stamp) {
        state.pending = None;
        return Ok(None);
    }
    let since = match &state.pending {
        Some((pending, since)) if *pending == stamp => *since,
        _ => monotonic,
    };
    state.pending = Some((stamp.clone(), since));
    let rest = SETTLE_TIME.saturating_sub(monotonic.saturating_sub(since));
    if !rest.is_zero() {
        return Ok(Some(rest));
    }
    match apply_text_file(&state.path, &stamp, store, zone, now) {
        Ok(()) => state.applied = Some(stamp),
        Err(error) => {
            state.applied = None;
            let error = error.to_string();
            if store.imported()?.error.as_ref() != Some(&error) {
                log::error!("{error}");
                store.set_import_error(Some(&error))?;
            }
        }
    }
    Ok(None)
}

fn apply_text_file(path: &Path, stamp: &FileStamp, store: &Store, zone: Tz, now: Timestamp) -> Result<()> {
    let name = path.display().to_string();
    let last = store.imported()?;
    if matches!(stamp, FileStamp::Missing | FileStamp::NotAFile) && last.text.is_none() {
        log::warn!("{name} is not a file; it has never been imported, and the schedules are not changed");
        return store.set_import_error(None);
    }
    let bytes = read_text_file(path, stamp)?;
    let entries = parse_text(&bytes, &name)?;
    // Text that was applied once is valid. If it were not, every line would count as new.
    let before = last.text.as_deref().and_then(|text| parse_text(text, &name).ok()).unwrap_or_default();
    let rows = store.schedules()?;
    let plan = ChangePlan::new(store, &rows, &text_file::changes(&before, &entries), zone, now)?;
    let made = before.iter().filter(|entry| rows.iter().any(|row| row.schedule.name == entry.name)).count();
    plan.check_deletions(&name, made, entries.is_empty())?;
    plan.apply(store, now)?;
    if last.text.as_deref() != Some(&bytes[..]) || last.error.is_some() {
        store.set_imported(&bytes, now)?;
    }
    Ok(())
}

/// Reads the file if it still is in the state `stamp`. Opening it never waits, as it would on a pipe.
fn read_text_file(path: &Path, stamp: &FileStamp) -> Result<Vec<u8>> {
    let not_blocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = fs::OpenOptions::new().read(true).custom_flags(not_blocking).open(path);
    let mut file = opened.map_err(Error::io("read the text file", path))?;
    let metadata = |file: &fs::File| file.metadata().map_err(Error::io("inspect the text file", path));
    let found = metadata(&file)?;
    if !found.is_file() {
        return Err(Error::failed(format!("the text file {} is not a regular file", path.display())));
    }
    if found.len() > MAX_TEXT_BYTES {
        return Err(Error::failed(format!(
            "the text file {} is too large: {} bytes, and at most {MAX_TEXT_BYTES} are read",
            path.display(),
            found.len()
        )));
    }
    let mut bytes = Vec::new();
    (&mut file).take(MAX_TEXT_BYTES).read_to_end(&mut bytes).map_err(Error::io("read the text file", path))?;
    if FileStamp::new(&metadata(&file)?) != *stamp {
        return Err(Error::failed(format!("the text file {} changed while it was read", path.display())));
    }
    Ok(bytes)
}

/// What the changes of a text file do to the schedules.
#[derive(Default)]
struct ChangePlan {
    created: Vec<(Schedule, Watermark)>,
    edited: Vec<(i64, Schedule, Watermark)>,
    deleted: Vec<i64>,
    deleted_names: Vec<String>,
    /// What is logged once they are applied.
    notes: Vec<String>,
}

impl ChangePlan {
    fn new(store: &Store, rows: &[ScheduleRow], changes: &[Change], zone: Tz, now: Timestamp) -> Result<Self> {
        let mut plan = ChangePlan::default();
        for change in changes {
            let name = &change.name;
            let present = rows.iter().find(|row| row.schedule.name == *name);
            let daily: &[_] = match present.and_then(|row| row.schedule.cadence.as_ref()) {
                Some(Cadence::Daily(times)) => times.as_slice(),
                _ => &[],
            };
            match (present, change.apply(daily)) {
                (Some(row), Some(times)) => {
                    let source = change.source.clone().unwrap_or_else(|| row.schedule.source.clone());
                    let schedule = with_line(Some(row.schedule.clone()), name, source, times);
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
    fn check_deletions(&self, name: &str, made: usize, is_empty: bool) -> Result<()> {
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

    fn apply(&self, store: &Store, now: Timestamp) -> Result<()> {
        if !(self.created.is_empty() && self.edited.is_empty() && self.deleted.is_empty()) {
            store.apply_schedules(&self.created, &self.edited, &self.deleted, now)?;
        }
        self.notes.iter().for_each(|note| log::info!("{note}"));
        Ok(())
    }
}

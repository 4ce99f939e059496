//! The text file that a service follows: each change of it is applied once the file rests.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono_tz::Tz;

use super::change_plan::ChangePlan;
use super::import::parse_text;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::schedule::text_file;
use crate::store::Store;

/// How long a text file must be unchanged before it is applied: a copy may be slow, and an editor may write in parts.
const SETTLE_TIME: Duration = Duration::from_secs(5);
/// The same for a file that may be cut off inside its last line. Some editors write no newline at the end.
const UNFINISHED_SETTLE_TIME: Duration = Duration::from_secs(60);
/// A larger file is no list of schedules.
const MAX_TEXT_BYTES: u64 = 16 << 20;

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
    let unchanged_for = monotonic.saturating_sub(since);
    let rest = SETTLE_TIME.saturating_sub(unchanged_for);
    if !rest.is_zero() {
        return Ok(Some(rest));
    }
    match apply_text_file(&state.path, &stamp, unchanged_for, store, zone, now) {
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

fn apply_text_file(
    path: &Path,
    stamp: &FileStamp,
    unchanged_for: Duration,
    store: &Store,
    zone: Tz,
    now: Timestamp,
) -> Result<()> {
    let name = path.display().to_string();
    let last = store.imported()?;
    if matches!(stamp, FileStamp::Missing | FileStamp::NotAFile) && last.text.is_none() {
        log::warn!("{name} is not a file; it has never been imported, and the schedules are not changed");
        return store.set_import_error(None);
    }
    let bytes = read_text_file(path, stamp)?;
    let entries = parse_text(&bytes, &name)?;
    if unchanged_for < UNFINISHED_SETTLE_TIME
        && let Some(line) = text_file::unfinished_line(&bytes, last.text.as_deref().unwrap_or_default())
    {
        return Err(Error::usage(format!(
            "the text file {name} may be cut off: its last line, \"{line}\", has no newline at its end. It is applied \
             once it has not changed for a minute"
        )));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_longer_in_the_state_that_settled_is_not_applied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("schedules.txt");
        fs::write(&path, "/a;09:00;one\n").unwrap();
        let settled = FileStamp::of_path(&path);
        assert_eq!(read_text_file(&path, &settled).unwrap(), b"/a;09:00;one\n");
        fs::write(&path, "").unwrap();
        let error = read_text_file(&path, &settled).unwrap_err().to_string();
        assert!(error.contains("changed while it was read"), "{error}");
    }
}

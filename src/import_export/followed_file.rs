//! A file that a service follows: whether it has changed, and reading it once it rests.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::store::Store;

/// How long a file must be unchanged before it is applied: a copy may be slow, and an editor may write in parts.
const SETTLE_TIME: Duration = Duration::from_secs(5);
/// The same for a file that may be cut off inside its last line. Some editors write no newline at the end.
const UNFINISHED_SETTLE_TIME: Duration = Duration::from_secs(60);
/// A larger file is no list of schedules.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// The kind of a file that a service follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowedKind {
    /// The text file: its changed lines are applied.
    Text,
    /// The settings file: the schedules that it manages become equal to it.
    Settings {
        /// The service follows a text file, too.
        beside_text_file: bool,
    },
}

impl FollowedKind {
    fn words(self) -> &'static str {
        match self {
            FollowedKind::Text => "text file",
            FollowedKind::Settings { .. } => "settings file",
        }
    }

    fn error(self, store: &Store) -> Result<Option<String>> {
        match self {
            FollowedKind::Text => Ok(store.imported()?.error),
            FollowedKind::Settings { .. } => store.config_error(),
        }
    }

    fn set_error(self, store: &Store, error: Option<&str>) -> Result<()> {
        match self {
            FollowedKind::Text => store.set_import_error(error),
            FollowedKind::Settings { .. } => store.set_config_error(error),
        }
    }
}

/// A file that a service follows, and its state when it was last applied.
#[derive(Debug)]
pub struct FollowedFile {
    path: PathBuf,
    kind: FollowedKind,
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

impl FollowedFile {
    /// Creates the state of a file that has not been read.
    pub fn new(path: PathBuf, kind: FollowedKind) -> Self {
        FollowedFile { path, kind, applied: None, pending: None }
    }

    /// Calls `apply` if the file is in another state than the one applied last, once it is unchanged for
    /// [`SETTLE_TIME`]. Its error is logged and recorded.
    pub(super) fn follow(
        &mut self,
        store: &Store,
        monotonic: Duration,
        apply: impl FnOnce(&Settled<'_>) -> Result<()>,
    ) -> Result<Option<Duration>> {
        let stamp = FileStamp::of_path(&self.path);
        if self.applied.as_ref() == Some(&stamp) {
            self.pending = None;
            return Ok(None);
        }
        let since = match &self.pending {
            Some((pending, since)) if *pending == stamp => *since,
            _ => monotonic,
        };
        self.pending = Some((stamp.clone(), since));
        let unchanged_for = monotonic.saturating_sub(since);
        let rest = SETTLE_TIME.saturating_sub(unchanged_for);
        if !rest.is_zero() {
            return Ok(Some(rest));
        }
        match apply(&Settled { path: &self.path, kind: self.kind, stamp: &stamp, unchanged_for }) {
            Ok(()) => self.applied = Some(stamp),
            Err(error) => {
                self.applied = None;
                let error = error.to_string();
                if self.kind.error(store)?.as_ref() != Some(&error) {
                    log::error!("{error}");
                    self.kind.set_error(store, Some(&error))?;
                }
            }
        }
        Ok(None)
    }

    /// Returns whether the file differs from the state last applied and from the pending one.
    pub fn has_changed(&self) -> bool {
        let stamp = FileStamp::of_path(&self.path);
        self.applied.as_ref() != Some(&stamp) && self.pending.as_ref().is_none_or(|(pending, _)| *pending != stamp)
    }
}

/// A state of a followed file that has settled.
pub(super) struct Settled<'a> {
    path: &'a Path,
    kind: FollowedKind,
    stamp: &'a FileStamp,
    unchanged_for: Duration,
}

impl Settled<'_> {
    pub(super) fn path(&self) -> &Path {
        self.path
    }

    pub(super) fn kind(&self) -> FollowedKind {
        self.kind
    }

    /// Returns whether no regular file is there.
    pub(super) fn is_no_file(&self) -> bool {
        matches!(self.stamp, FileStamp::Missing | FileStamp::NotAFile)
    }

    /// Returns the name of the file in messages.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Returns whether nobody will write the rest of a last line that may be cut off.
    pub(super) fn is_finished(&self) -> bool {
        self.unchanged_for >= UNFINISHED_SETTLE_TIME
    }
}

/// Reads the file, and what it is, if it still is in the state that has settled. Opening it never waits, as it would on
/// a pipe.
pub(super) fn read_settled(settled: &Settled<'_>) -> Result<(Vec<u8>, fs::Metadata)> {
    let (path, words) = (settled.path, settled.kind.words());
    let in_words = |action: &str| format!("cannot {action} the {words} {}", path.display());
    let not_blocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = fs::OpenOptions::new().read(true).custom_flags(not_blocking).open(path);
    let mut file = opened.map_err(|e| Error::failed(in_words("read")).because(e))?;
    let metadata = |file: &fs::File| file.metadata().map_err(|e| Error::failed(in_words("inspect")).because(e));
    let found = metadata(&file)?;
    if !found.is_file() {
        return Err(Error::failed(format!("the {words} {} is not a regular file", path.display())));
    }
    if found.len() > MAX_TEXT_BYTES {
        return Err(Error::failed(format!(
            "the {words} {} is too large: {} bytes, and at most {MAX_TEXT_BYTES} are read",
            path.display(),
            found.len()
        )));
    }
    let mut bytes = Vec::new();
    let read = (&mut file).take(MAX_TEXT_BYTES).read_to_end(&mut bytes);
    read.map_err(|e| Error::failed(in_words("read")).because(e))?;
    if FileStamp::new(&metadata(&file)?) != *settled.stamp {
        return Err(Error::failed(format!("the {words} {} changed while it was read", path.display())));
    }
    Ok((bytes, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_longer_in_the_state_that_settled_is_not_applied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("schedules.txt");
        fs::write(&path, "/a;09:00;one\n").unwrap();
        let stamp = FileStamp::of_path(&path);
        let settled =
            Settled { path: &path, kind: FollowedKind::Text, stamp: &stamp, unchanged_for: Duration::from_secs(5) };
        assert_eq!(read_settled(&settled).unwrap().0, b"/a;09:00;one\n");
        fs::write(&path, "").unwrap();
        let error = read_settled(&settled).unwrap_err().to_string();
        assert!(error.contains("changed while it was read"), "{error}");
    }
}

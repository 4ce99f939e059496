//! How to restore, and what a restore reports while it runs.

use std::path::{Path, PathBuf};

use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::member::MemberPath;
use crate::progress::Observer;

/// What happens to a file that exists at the path of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// It is kept. If it differs from the archive, that is a conflict.
    #[default]
    Never,
    /// It is replaced if its kind, size or modification time differs; if only owner, mode or attributes differ, these
    /// are corrected.
    IfChanged,
    /// It is replaced.
    Always,
}

/// How to restore.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder to restore into; created if it does not exist.
    pub to: PathBuf,
    /// What happens to existing files.
    pub overwrite: Overwrite,
    /// Reads existing files of equal size and time, and compares their digests with those in the catalog.
    pub compare_content: bool,
    /// Number of leading components removed from every name.
    pub strip: usize,
    /// Replaces the first component of every name, before any component is stripped.
    pub rename_root: Option<Vec<u8>>,
    /// Writes nothing.
    pub dry_run: bool,
    /// Restores setuid and setgid bits and capabilities.
    pub setuid: bool,
    /// Creates devices (root only).
    pub devices: bool,
    /// Opens folders component by component, as on systems that do not have `openat2`.
    pub without_openat2: bool,
    /// Waits in the end until everything is on disk.
    pub sync: bool,
    /// Number of threads that decode, and of those that write.
    pub threads: usize,
}

impl Options {
    /// Restores into `to` and replaces nothing.
    pub fn to(to: &Path) -> Options {
        Options {
            to: to.to_owned(),
            overwrite: Overwrite::Never,
            compare_content: false,
            strip: 0,
            rename_root: None,
            dry_run: false,
            setuid: false,
            devices: false,
            without_openat2: false,
            sync: true,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What a restore does at a path, or would do in a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Creates an entry where none exists.
    Create,
    /// Replaces the existing entry.
    Replace,
    /// Keeps the existing entry, which is as the archive has it.
    Keep,
    /// Keeps the content of the existing entry, and corrects its owner, mode and attributes.
    Correct,
    /// Keeps the existing entry, which differs from the archive.
    Conflict,
}

/// What a restore needs besides the archive.
pub struct RestoreContext<'a> {
    /// Source of the time.
    pub clock: &'a dyn Clock,
    /// Receives progress and problems.
    pub observer: &'a dyn Observer,
    /// Ends the restore early.
    pub cancel: &'a CancelToken,
    /// Called with what happens at each path, relative to the target.
    pub on_action: &'a mut dyn FnMut(Action, &MemberPath),
}

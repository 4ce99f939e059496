//! The file that is locked as long as a command runs, and what is left of commands whose program was killed.
//!
//! `backup.db.workers/hook-RUN-ATTEMPT` is empty, locked, and the standard input of the command: the lock is held as
//! long as the shell, or any of its processes that has not another input, lives, however this program ended. A job that
//! the shell started in the background reads `/dev/null`; it is found by the process group, which lies in a file beside
//! it. Therefore both are tested before another command of the run starts.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::process_table::{self, ProcessGroup};
use super::supervise::{KILL_AFTER, POLL_INTERVAL};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::liveness;
use crate::owner;
use crate::source;

const PREFIX: &str = "hook-";
const RECORD_SUFFIX: &str = ".group";

/// The process group of a command, as its file records it. A number of a group means the same group only in one boot,
/// and only if its first process was started at that time.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct GroupRecord {
    /// The worker that executes the command. As long as it is alive, it ends the command itself.
    worker: Option<Uuid>,
    boot: Option<String>,
    /// Unknown until the first process was started.
    group: Option<i32>,
    /// When the first process was started, in clock ticks since the boot.
    started: u64,
}

/// The locked file of the command that an attempt runs at present.
pub(super) struct HookFile {
    path: PathBuf,
    file: File,
    worker: Uuid,
}

impl HookFile {
    /// Creates and locks the file. The caller has ended what is left of earlier commands of the run.
    pub(super) fn create(home: &Home, run: i64, attempt: i64, worker: Uuid) -> Result<HookFile> {
        let path = home.workers().join(format!("{PREFIX}{run}-{attempt}"));
        let failed = |error: io::Error| Error::io("lock the file of a command", &path)(error);
        // Only readable, so that no command writes into it.
        let file = owner::open_or_create(&path, OFlags::RDONLY, 0o600).map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from).map_err(failed)?;
        let created = HookFile { path, file, worker };
        // A command that makes room on a full disk is started all the same.
        if let Err(error) = created.write_record(&GroupRecord { worker: Some(worker), ..GroupRecord::default() }) {
            log::warn!("run @{run}: the worker that executes a command is not recorded: {error}");
        }
        Ok(created)
    }

    /// Returns the locked file as the input of a process. The lock is free once that, and this, are closed.
    pub(super) fn input(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Records the group of the command, whose first process is `pid`.
    pub(super) fn record(&self, pid: i32) -> Result<()> {
        let Some(started) = process_table::started(pid) else { return Ok(()) };
        let worker = Some(self.worker);
        self.write_record(&GroupRecord { worker, boot: source::boot_id(), group: Some(pid), started })
    }

    fn write_record(&self, record: &GroupRecord) -> Result<()> {
        let text = serde_json::to_vec(&record).map_err(|e| Error::failed("the group of a command").because(e))?;
        let (path, new) = (record_path(&self.path), record_path(&record_path(&self.path)));
        // Whoever reads it finds the worker at any time.
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(Error::io("write", &path))
    }

    /// Removes the files, once the command has ended.
    pub(super) fn remove(self) {
        remove_files(&self.path);
    }
}

fn record_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(RECORD_SUFFIX);
    name.into()
}

/// Removes the file of a command and the record beside it; what cannot be removed is tried again by the next command.
fn remove_files(path: &Path) {
    for path in [record_path(path), path.to_owned()] {
        if let Err(error) = owner::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{} was not removed: {error}", path.display());
        }
    }
}

/// Ends the commands of a run that a killed program has left: SIGTERM to their process groups, SIGKILL after 10 s. When
/// this returns, none of them is alive. The caller holds the claim of the run, or the run has ended.
///
/// Errors: `Busy` if a live worker executes a command of the run, and nothing is ended, or if a command does not end,
/// for example one of another user.
pub fn end_orphans(home: &Home, run: i64, clock: &dyn Clock) -> Result<()> {
    for path in files_of(home, run)? {
        check_writer(home, &path, run)?;
        end_orphan(&path, run, clock)?;
        remove_files(&path);
    }
    Ok(())
}

/// Returns the runs of which a command is alive, or was when its program was killed.
pub fn runs_with_commands(home: &Home) -> Result<BTreeSet<i64>> {
    Ok(files(home)?.into_iter().map(|(run, _)| run).collect())
}

/// Fails if something of a command is alive, and the worker that started it, too.
fn check_writer(home: &Home, path: &Path, run: i64) -> Result<()> {
    let worker = read_record(path).and_then(|record| record.worker);
    if worker.is_some_and(|worker| liveness::is_alive(&home.workers(), &worker)) && Left::find(path, run)?.is_some() {
        return Err(Error::busy(format!("a command of run @{run} is being executed")).hint("wait for its end"));
    }
    Ok(())
}

fn read_record(path: &Path) -> Option<GroupRecord> {
    fs::read(record_path(path)).ok().and_then(|text| serde_json::from_slice(&text).ok())
}

/// Returns the files of the commands of a run, without their records.
fn files_of(home: &Home, run: i64) -> Result<Vec<PathBuf>> {
    let of_run = files(home)?.into_iter().filter(|(of, _)| *of == run);
    Ok(of_run.map(|(run, attempt)| home.workers().join(format!("{PREFIX}{run}-{attempt}"))).collect())
}

/// Returns the runs and attempts that have files of commands.
fn files(home: &Home) -> Result<BTreeSet<(i64, i64)>> {
    let folder = home.workers();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(Error::io("list", &folder)(error)),
    };
    let parse = |name: &str| {
        let (run, attempt) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let attempt = attempt.strip_suffix(RECORD_SUFFIX).unwrap_or(attempt);
        Some((run.parse().ok()?, attempt.parse().ok()?))
    };
    Ok(entries.flatten().filter_map(|entry| parse(entry.file_name().to_str()?)).collect())
}

fn end_orphan(path: &Path, run: i64, clock: &dyn Clock) -> Result<()> {
    let began = clock.monotonic();
    let mut last = None;
    loop {
        let Some(left) = Left::find(path, run)? else { return Ok(()) };
        let since = clock.monotonic().saturating_sub(began);
        let signal = if since < KILL_AFTER { Signal::TERM } else { Signal::KILL };
        if last != Some(signal) {
            log::warn!("run @{run}: a command that a killed program has left is ended: {signal:?}");
            last = Some(signal);
            left.groups.iter().for_each(|group| group.signal(signal));
        }
        if since >= KILL_AFTER * 2 {
            let numbers: Vec<_> = left.groups.iter().map(|group| format!("-{}", group.number())).collect();
            let next = match &numbers[..] {
                [] => format!("find it with `fuser -v {}`, and end it", path.display()),
                _ => format!("end it with `kill -KILL -- {}`", numbers.join(" ")),
            };
            return Err(Error::busy(format!("a command that run @{run} started is still running")).hint(next));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// What is alive of a command.
struct Left {
    /// Its process groups, as far as they are known.
    groups: Vec<ProcessGroup>,
}

impl Left {
    /// Tests the lock and the group; `None` if nothing is alive.
    fn find(path: &Path, run: i64) -> Result<Option<Left>> {
        let locked = locked_by_another(path)?;
        let recorded = read_record(path).and_then(|record| alive_group(&record, run));
        let mut groups: Vec<_> = recorded.into_iter().collect();
        if let Some(file) = &locked {
            // The program may have been killed before it had recorded the group.
            groups.extend(process_table::groups_reading(file).into_iter().filter(|group| Some(*group) != recorded));
        }
        Ok((locked.is_some() || !groups.is_empty()).then_some(Left { groups }))
    }
}

/// Returns the group of a record if it is alive and still the same.
fn alive_group(record: &GroupRecord, run: i64) -> Option<ProcessGroup> {
    let group = ProcessGroup::new(record.group?)?;
    let variable = format!("BACKUP_RUN={run}");
    let is_ours = |environ: &[u8]| environ.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes());
    (record.boot == source::boot_id() && group.is_alive_since(record.started, is_ours)).then_some(group)
}

/// Returns the file if a process has it locked.
fn locked_by_another(path: &Path) -> Result<Option<fs::Metadata>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(None),
        Err(_) => file.metadata().map(Some).map_err(Error::io("inspect", path)),
    }
}

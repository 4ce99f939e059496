//! Worker files: liveness is a lock, not a clock (I6).
//!
//! A process that claims runs holds `flock` on a file of its own for as long as it lives; the kernel lets go of it
//! however the process ends. The file is made under a temporary name, locked, and only then linked to its UUID, so
//! that nobody ever finds it unlocked while its owner lives. What the owner is doing stands in the file, for `status`
//! and for who waits.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// What a live worker says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its process.
    pub pid: u32,
    /// When its loop last came round, in milliseconds since 1970; zero for a worker without one.
    pub ticked_at_ms: i64,
    /// Why it does nothing although it lives, if so.
    pub trouble: Option<String>,
    /// The runs under way in it.
    pub runs: Vec<RunHeartbeat>,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHeartbeat {
    /// Number of the run.
    pub run: i64,
    /// What it is doing: `scanning`, `writing`, `proving`.
    pub phase: String,
    /// Members done.
    pub members: u64,
    /// Bytes of content done.
    pub bytes: u64,
    /// Members in all, if known or estimated.
    pub members_total: Option<u64>,
    /// Bytes in all, if known or estimated.
    pub bytes_total: Option<u64>,
    /// When it began, in milliseconds since 1970.
    pub started_at_ms: i64,
    /// When the numbers last moved, in milliseconds since 1970.
    pub moved_at_ms: i64,
}

/// This process as a worker. Its file is locked until this is dropped.
#[derive(Debug)]
pub struct Worker {
    uuid: Uuid,
    path: PathBuf,
    file: File,
    heartbeat: Mutex<Heartbeat>,
}

impl Worker {
    /// Makes and locks a worker file in `folder`, which is made if need be with `folder_mode`.
    pub fn register(folder: &Path, folder_mode: u32, now: Timestamp) -> Result<Worker> {
        // Not while somebody sweeps: until it is locked, the new file looks like that of a dead worker.
        let _registration = Registration::lock(folder, folder_mode)?;
        sweep(folder)?;
        let uuid = Uuid::new_v4();
        let path = folder.join(uuid.to_string());
        let temporary = folder.join(format!(".{uuid}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary)
            .map_err(Error::io("create the worker file", &temporary))?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .and_then(|()| fs::hard_link(&temporary, &path).or_else(|_| fs::rename(&temporary, &path)));
        // Gone already where it was renamed: file systems without hard links.
        let _ = fs::remove_file(&temporary);
        locked.map_err(Error::io("lock the worker file", &path))?;
        let heartbeat = Heartbeat { pid: std::process::id(), ticked_at_ms: now.millis(), ..Heartbeat::default() };
        let worker = Worker { uuid, path, file, heartbeat: Mutex::new(heartbeat) };
        worker.update(|_| {})?;
        Ok(worker)
    }

    /// Returns the name of this worker in claims.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Changes what the worker says of itself, and writes it.
    pub fn update(&self, change: impl FnOnce(&mut Heartbeat)) -> Result<()> {
        let mut heartbeat = self.heartbeat.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        change(&mut heartbeat);
        let mut text = serde_json::to_vec(&*heartbeat).map_err(|e| Error::failed("worker heartbeat").because(e))?;
        text.push(b'\n');
        self.file
            .write_all_at(&text, 0)
            .and_then(|()| self.file.set_len(text.len() as u64))
            .map_err(Error::io("write the worker file", &self.path))
    }

    /// Changes the line of one run, which is added if it is not there.
    pub fn update_run(&self, run: i64, change: impl FnOnce(&mut RunHeartbeat)) -> Result<()> {
        self.update(|heartbeat| match heartbeat.runs.iter_mut().find(|line| line.run == run) {
            Some(line) => change(line),
            None => {
                let mut line = RunHeartbeat { run, ..RunHeartbeat::default() };
                change(&mut line);
                heartbeat.runs.push(line);
            }
        })
    }

    /// Takes the line of a run that has ended away.
    pub fn forget_run(&self, run: i64) -> Result<()> {
        self.update(|heartbeat| heartbeat.runs.retain(|line| line.run != run))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Unlinked while still locked: who finds the name gone knows the worker is.
        let _ = fs::remove_file(&self.path);
    }
}

/// Says whether the worker lives. Only a lock taken or a file gone means dead; any other answer means alive.
/// A dead worker's file is removed.
pub fn is_alive(folder: &Path, uuid: &Uuid) -> bool {
    let path = folder.join(uuid.to_string());
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        // Another user's file may be readable only; a lock needs no more.
        Err(_) => match File::open(&path) {
            Ok(file) => file,
            Err(error) => return error.kind() != io::ErrorKind::NotFound,
        },
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let _ = fs::remove_file(&path);
            false
        }
        Err(_) => true,
    }
}

/// Removes the files of dead workers, also of those that died before anything but the file told of them. The caller
/// holds the registration.
fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.strip_prefix('.').unwrap_or(&name).parse::<Uuid>().is_err() {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Reads what a worker says of itself; `None` if it is gone or was just writing.
pub fn read_heartbeat(folder: &Path, uuid: &Uuid) -> Option<Heartbeat> {
    let text = fs::read(folder.join(uuid.to_string())).ok()?;
    let line = text.split(|&b| b == b'\n').next()?;
    serde_json::from_slice(line).ok()
}

/// Held while workers come and go, so that "is anybody serving?" and "I serve" are one act.
#[derive(Debug)]
pub struct Registration {
    _locked: File,
}

impl Registration {
    /// Waits for the lock on the folder of worker files, which is made if need be.
    pub fn lock(folder: &Path, folder_mode: u32) -> Result<Registration> {
        make_private_folder(folder, folder_mode)?;
        let handle = File::open(folder).map_err(Error::io("open the folder", folder))?;
        flock(&handle, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(Error::io("lock the folder", folder))?;
        Ok(Registration { _locked: handle })
    }
}

fn make_private_folder(folder: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(Error::io("make the folder", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    #[test]
    fn a_worker_is_alive_until_it_is_dropped_and_its_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("workers");
        let worker = Worker::register(&folder, 0o700, NOW).unwrap();
        let uuid = worker.uuid();
        assert!(is_alive(&folder, &uuid));
        worker.update_run(7, |run| run.bytes = 42).unwrap();
        assert_eq!(read_heartbeat(&folder, &uuid).unwrap().runs[0].bytes, 42);
        drop(worker);
        assert!(!is_alive(&folder, &uuid));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn an_unlocked_file_is_dead_and_a_missing_one_too() {
        let dir = tempfile::tempdir().unwrap();
        let uuid = Uuid::new_v4();
        assert!(!is_alive(dir.path(), &uuid));
        fs::write(dir.path().join(uuid.to_string()), "").unwrap();
        assert!(!is_alive(dir.path(), &uuid));
        assert!(!dir.path().join(uuid.to_string()).exists(), "a dead worker's file is removed");
    }

    #[test]
    fn who_registers_sweeps_away_what_dead_workers_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let living = Worker::register(dir.path(), 0o700, NOW).unwrap();
        let (whole, half) = (Uuid::new_v4().to_string(), format!(".{}", Uuid::new_v4()));
        for name in [whole.as_str(), half.as_str(), "notes"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let second = Worker::register(dir.path(), 0o700, NOW).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let mut wanted = vec![living.uuid().to_string(), second.uuid().to_string(), "notes".to_owned()];
        left.sort();
        wanted.sort();
        assert_eq!(left, wanted);
    }

    #[test]
    fn shorter_activity_leaves_nothing_of_the_longer_behind() {
        let dir = tempfile::tempdir().unwrap();
        let worker = Worker::register(dir.path(), 0o700, NOW).unwrap();
        worker.update(|a| a.trouble = Some("x".repeat(500))).unwrap();
        worker.update(|a| a.trouble = None).unwrap();
        assert_eq!(read_heartbeat(dir.path(), &worker.uuid()).unwrap().trouble, None);
    }
}

//! Heartbeat files and their liveness locks: whether a process is alive is decided by a lock, not by a clock (I6).
//!
//! A process that claims runs has `flock` on a file of its own for as long as it lives; the kernel releases the lock
//! however the process ends. The file is created under a temporary name, locked, and only then linked to its UUID, so
//! that no process ever finds it unlocked while its owner is alive. The file holds the heartbeat of the process, which
//! `status` and waiting commands read.

mod container_lock;
mod segment_locks;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::container_lock::ContainerLock;
pub use self::segment_locks::SegmentLock;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home;
use crate::owner::{self, Owner};
use crate::progress::Progress;

/// The heartbeat of a live worker. The names of the fields are part of the file format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its process ID.
    pub pid: u32,
    /// The user it runs as; `None` from a version that did not write it.
    #[serde(default)]
    pub uid: Option<u32>,
    /// How long running work may go on after a request to stop, in milliseconds; `None` for a command.
    #[serde(default)]
    pub grace_ms: Option<u64>,
    /// Whether it follows a text file of schedules.
    #[serde(default)]
    pub follows_text_file: bool,
    /// Its last scheduler tick, in milliseconds since 1970; for a command, when it registered.
    pub ticked_at_ms: i64,
    /// Why it does no work although it is alive; `None` if it works.
    pub trouble: Option<String>,
    /// The runs it is working on.
    pub runs: Vec<RunHeartbeat>,
}

/// The progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHeartbeat {
    /// Number of the run.
    pub run: i64,
    /// Phase of the run: `scanning`, `writing` or `proving` (post-write verification).
    pub phase: String,
    /// Members done.
    pub members: u64,
    /// Bytes of content done.
    pub bytes: u64,
    /// Members in all, if known or estimated.
    pub members_total: Option<u64>,
    /// Bytes in all, if known or estimated.
    pub bytes_total: Option<u64>,
    /// When it started, in milliseconds since 1970.
    pub started_at_ms: i64,
    /// When the numbers last changed, in milliseconds since 1970.
    pub moved_at_ms: i64,
}

impl RunHeartbeat {
    /// Returns the progress of the run at `now`.
    pub fn progress(&self, now: Timestamp) -> Progress {
        Progress {
            members: self.members,
            bytes: self.bytes,
            members_total: self.members_total,
            bytes_total: self.bytes_total,
            elapsed: now.since(Timestamp::from_millis(self.started_at_ms)),
        }
    }
}

/// This process as a worker. Its heartbeat file is locked until this is dropped.
#[derive(Debug)]
pub struct Worker {
    uuid: Uuid,
    path: PathBuf,
    file: File,
    heartbeat: Mutex<Heartbeat>,
}

impl Worker {
    /// Creates and locks a heartbeat file in `folder`, which is created with `folder_mode` if it does not exist.
    pub fn register(folder: &Path, folder_mode: u32, now: Timestamp) -> Result<Worker> {
        // Until it is locked, the new file looks like that of a dead worker, so no other process may sweep meanwhile.
        let _registration = Registration::lock(folder, folder_mode)?;
        sweep(folder)?;
        let uuid = Uuid::new_v4();
        let path = folder.join(uuid.to_string());
        let temporary = folder.join(format!(".{uuid}"));
        let file = owner::create_new(&temporary, OFlags::RDWR, 0o644, Owner::OfDatabase)
            .map_err(|e| unwritable(folder, Error::io("create the heartbeat file", &temporary)(e)))?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .and_then(|()| fs::hard_link(&temporary, &path).or_else(|_| fs::rename(&temporary, &path)));
        // On file systems without hard links it was renamed and no longer exists.
        let _ = fs::remove_file(&temporary);
        locked.map_err(Error::io("lock the heartbeat file", &path))?;
        let heartbeat = Heartbeat {
            pid: std::process::id(),
            uid: Some(rustix::process::geteuid().as_raw()),
            ticked_at_ms: now.millis(),
            ..Heartbeat::default()
        };
        let worker = Worker { uuid, path, file, heartbeat: Mutex::new(heartbeat) };
        worker.update(|_| {})?;
        Ok(worker)
    }

    /// Returns the UUID that claims of this worker carry.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Changes the heartbeat and writes it.
    pub fn update(&self, change: impl FnOnce(&mut Heartbeat)) -> Result<()> {
        let mut heartbeat = self.heartbeat.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        change(&mut heartbeat);
        let mut text = serde_json::to_vec(&*heartbeat).map_err(|e| Error::failed("worker heartbeat").because(e))?;
        text.push(b'\n');
        self.file
            .write_all_at(&text, 0)
            .and_then(|()| self.file.set_len(text.len() as u64))
            .map_err(Error::io("write the heartbeat file", &self.path))
    }

    /// Changes the heartbeat of one run, which is added if the worker has none for it.
    pub fn update_run(&self, run: i64, change: impl FnOnce(&mut RunHeartbeat)) -> Result<()> {
        self.update(|heartbeat| match heartbeat.runs.iter_mut().find(|entry| entry.run == run) {
            Some(entry) => change(entry),
            None => {
                let mut entry = RunHeartbeat { run, ..RunHeartbeat::default() };
                change(&mut entry);
                heartbeat.runs.push(entry);
            }
        })
    }

    /// Removes the heartbeat of a run that has ended.
    pub fn forget_run(&self, run: i64) -> Result<()> {
        self.update(|heartbeat| heartbeat.runs.retain(|entry| entry.run != run))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Unlinked while still locked: a missing file always means a dead worker.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns whether the worker is alive. It is dead only if its file does not exist or could be locked; any other error
/// means alive. The file of a dead worker is removed.
pub fn is_alive(folder: &Path, uuid: &Uuid) -> bool {
    let path = folder.join(uuid.to_string());
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        // The file of another user may be readable only, which is enough for a lock.
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

/// Removes the files of dead workers, including those of workers that died before they had a row in the database. The
/// caller has the registration lock.
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

/// Reads the heartbeat of a worker; `None` if its file does not exist or was just being written.
pub fn read_heartbeat(folder: &Path, uuid: &Uuid) -> Option<Heartbeat> {
    let text = fs::read(folder.join(uuid.to_string())).ok()?;
    let line = text.split(|&b| b == b'\n').next()?;
    serde_json::from_slice(line).ok()
}

/// Reads the heartbeat of the run that a worker works on; `None` if the worker wrote none.
pub fn read_run_heartbeat(folder: &Path, uuid: &Uuid, run: i64) -> Option<RunHeartbeat> {
    read_heartbeat(folder, uuid)?.runs.into_iter().find(|of_run| of_run.run == run)
}

/// The registration lock, held while workers register, so that checking for another service and registering this one is
/// one atomic step.
#[derive(Debug)]
pub struct Registration {
    _locked: File,
}

impl Registration {
    /// Waits for the lock on the folder of heartbeat files, which is created if it does not exist.
    pub fn lock(folder: &Path, folder_mode: u32) -> Result<Registration> {
        owner::create_folder(folder, folder_mode)
            .map_err(|e| unwritable(folder, Error::io("create the folder", folder)(e)))?;
        let handle = File::open(folder).map_err(|e| unwritable(folder, Error::io("open the folder", folder)(e)))?;
        flock(&handle, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(Error::io("lock the folder", folder))?;
        Ok(Registration { _locked: handle })
    }
}

fn unwritable(folder: &Path, cause: Error) -> Error {
    home::unwritable("the folder of heartbeat files", folder, "--db or BACKUP_DB", cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    #[test]
    fn a_worker_is_alive_until_it_is_dropped_and_its_file_is_removed() {
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
    fn a_worker_with_an_unlocked_or_missing_file_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let uuid = Uuid::new_v4();
        assert!(!is_alive(dir.path(), &uuid));
        fs::write(dir.path().join(uuid.to_string()), "").unwrap();
        assert!(!is_alive(dir.path(), &uuid));
        assert!(!dir.path().join(uuid.to_string()).exists(), "the file of a dead worker is removed");
    }

    #[test]
    fn a_worker_whose_file_cannot_be_opened_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let uuid = Uuid::new_v4();
        let path = dir.path().join(uuid.to_string());
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(is_alive(dir.path(), &uuid));
        assert!(path.is_symlink());
    }

    #[test]
    fn registering_removes_the_files_of_dead_workers_and_nothing_else() {
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
    fn a_shorter_heartbeat_replaces_a_longer_one_completely() {
        let dir = tempfile::tempdir().unwrap();
        let worker = Worker::register(dir.path(), 0o700, NOW).unwrap();
        worker.update(|heartbeat| heartbeat.trouble = Some("x".repeat(500))).unwrap();
        worker.update(|heartbeat| heartbeat.trouble = None).unwrap();
        assert_eq!(read_heartbeat(dir.path(), &worker.uuid()).unwrap().trouble, None);
    }
}

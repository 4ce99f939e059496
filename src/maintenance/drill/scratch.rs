//! The folder that restore tests restore into.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::archive_folder;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::words::bytes;

/// Name of the scratch folder in the archive folder, which is used unless another one is given.
const SCRATCH_FOLDER: &str = ".scratch";
/// Bytes that must stay free besides those restored.
const SPARE_BYTES: u64 = 64 << 20;

/// The folder that drills restore into, locked. Files left in it by a killed drill are removed first.
pub(super) struct Scratch {
    folder: PathBuf,
    _locked: File,
}

impl Scratch {
    pub(super) fn open(home: &Home, named: Option<&Path>) -> Result<Scratch> {
        let folder = named.map_or_else(|| home.backups().join(SCRATCH_FOLDER), Path::to_owned);
        durable::make_folder(&folder, home.folder_mode())?;
        let handle = File::open(&folder).map_err(Error::io("open", &folder))?;
        flock(&handle, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::busy(format!("another restore test is running in {}", folder.display()))
                .hint("wait until it has ended")
        })?;
        let scratch = Scratch { folder, _locked: handle };
        scratch.clear()?;
        Ok(scratch)
    }

    /// Returns the only path in the folder that drills use. Whatever else is in the folder belongs to the user.
    fn target(&self) -> PathBuf {
        self.folder.join("backup-manager-drill")
    }

    /// Creates the target, which [`clear`](Self::clear) has removed.
    pub(super) fn create_target(&self) -> Result<PathBuf> {
        let target = self.target();
        // What it gets may come from an archive that only root may read.
        durable::make_own_folder(&target, 0o700)?;
        Ok(target)
    }

    pub(super) fn clear(&self) -> Result<()> {
        let target = self.target();
        match fs::remove_dir_all(&target) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(_) => {
                // Without root rights nothing can be removed from folders without write permission.
                make_folders_writable(&target)?;
                fs::remove_dir_all(&target).map_err(Error::io("remove", &target))
            }
        }
    }

    pub(super) fn check_free_space(&self, content_bytes: u64) -> Result<()> {
        let free_bytes = archive_folder::free_bytes(&self.folder)?;
        let needed_bytes = content_bytes.saturating_add(content_bytes / 10).saturating_add(SPARE_BYTES);
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::DiskFull,
            format!(
                "a restore test needs {} in {}, and {} are free",
                bytes(needed_bytes),
                self.folder.display(),
                bytes(free_bytes)
            ),
        )
        .hint("name another folder with --scratch or BACKUP_SCRATCH, or restore less with --size"))
    }
}

fn make_folders_writable(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(Error::io("set the mode of", folder))?;
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_folders_writable(&entry.path())?;
        }
    }
    Ok(())
}

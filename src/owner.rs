//! The owner of the database, to whom also belongs what root creates beside it. SQLite does the same with its `-wal`
//! file: a command by root must not deny the service of another user what that service needs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::sync::OnceLock;

/// The user and the group of the database; set once, as a process works on one database.
static DATABASE: OnceLock<Option<(u32, u32)>> = OnceLock::new();

/// Determines the owner by the first of `paths` that exists: the database, and files beside it that outlive it.
pub fn determine<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    let found = paths.into_iter().find_map(|path| fs::metadata(path).ok());
    let _ = DATABASE.set(found.map(|metadata| (metadata.uid(), metadata.gid())));
}

/// Returns the user to whom the database belongs; `None` if there is no database.
pub fn database_uid() -> Option<u32> {
    DATABASE.get().copied().flatten().map(|(uid, _)| uid)
}

/// Gives a file or folder that this process has just created at `path` to the owner of the database, if this process
/// is root's and the folder around it belongs to that owner, who could have created it too.
pub fn give_created(created: &File, path: &Path) {
    if let Some((uid, gid)) = other_owner(path) {
        // Fails where even root has no right to change owners, which is no reason to fail.
        let _ = fchown(created, Some(uid), Some(gid));
    }
}

/// Creates the folder `path`, and missing parents, with `mode`, which the umask may reduce.
pub fn create_folder(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => give_created_folder(path),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                create_folder(parent, mode)?;
                create_folder(path, mode)
            }
            _ => Err(error),
        },
        Err(error) => Err(error),
    }
}

fn give_created_folder(path: &Path) -> io::Result<()> {
    if other_owner(path).is_some() {
        let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
        give_created(&OpenOptions::new().read(true).custom_flags(flags).open(path)?, path);
    }
    Ok(())
}

/// Opens a file with `options`, and creates it if it does not exist. For root in the folder of another user it follows
/// no symbolic link.
pub fn open_or_create(options: &OpenOptions, path: &Path) -> io::Result<File> {
    if other_owner(path).is_none() {
        return options.clone().create(true).open(path);
    }
    loop {
        match options.clone().create_new(true).open(path) {
            Ok(file) => {
                give_created(&file, path);
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        match options.clone().custom_flags(libc::O_NOFOLLOW).open(path) {
            // Another process has just removed or renamed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
    }
}

/// Returns the owner of the database, if this process is root's and neither the database nor the folder of `path` is.
fn other_owner(path: &Path) -> Option<(u32, u32)> {
    let (uid, gid) = DATABASE.get().copied().flatten().filter(|(uid, _)| *uid != 0)?;
    let is_theirs = || path.parent().and_then(|folder| fs::metadata(folder).ok()).is_some_and(|f| f.uid() == uid);
    (rustix::process::geteuid().is_root() && is_theirs()).then_some((uid, gid))
}

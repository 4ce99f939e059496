//! The owner of the database, to whom also belongs what root creates beside it. SQLite does the same with its `-wal`
//! file: a command by root must not deny the service of another user what that service needs.
//!
//! The folder of a new file is opened first, and whose it is is asked of that descriptor: by a path, its owner could
//! put another folder in its place between the question and the creation.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, mkdirat, openat, unlinkat};
use rustix::io::retry_on_intr;

/// The user and the group of the database; set once, as a process works on one database.
static DATABASE: OnceLock<Option<(u32, u32)>> = OnceLock::new();

/// Determines the owner by the first of `paths` that exists: the database, and files beside it that outlive it.
pub fn determine<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    let found = paths.into_iter().find_map(|path| fs::metadata(path).ok());
    let _ = DATABASE.set(found.map(|metadata| (metadata.uid(), metadata.gid())));
}

/// Returns the user and the group to whom the database belongs; `None` if there is no database.
pub fn of_database() -> Option<(u32, u32)> {
    DATABASE.get().copied().flatten()
}

/// Returns the user to whom the database belongs; `None` if there is no database.
pub fn database_uid() -> Option<u32> {
    of_database().map(|(uid, _)| uid)
}

/// To whom a new file belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// To the owner of the database, if this process is root's and the folder around it belongs to that owner, who
    /// could have created it too; else to the user of this process.
    OfDatabase,
    /// To the user of this process: what only root may read does not get into other hands.
    OfProcess,
}

/// Creates a file, which must not exist, with `mode`, which the umask may reduce. `access` are the flags with which it
/// is opened.
pub fn create_new(path: &Path, access: OFlags, mode: u32, owner: Owner) -> io::Result<File> {
    let (folder, name) = Folder::of(path, owner)?;
    folder.create_new(name, access, mode)
}

/// Opens a file, and creates it with `mode`, which the umask may reduce, if it does not exist. For root in the folder
/// of another user it follows no symbolic link.
pub fn open_or_create(path: &Path, access: OFlags, mode: u32) -> io::Result<File> {
    let (folder, name) = Folder::of(path, Owner::OfDatabase)?;
    if folder.heir.is_none() {
        return folder.open(name, access | OFlags::CREATE, mode);
    }
    loop {
        match folder.create_new(name, access, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created,
        }
        // Without waiting: a pipe that nobody reads would hold the command for ever.
        match folder.open(name, access | OFlags::NOFOLLOW | OFlags::NONBLOCK, 0) {
            Ok(opened) if !opened.metadata()?.is_file() => return Err(io::Error::other("it is not a regular file")),
            // Another process has just removed or renamed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
    }
}

/// Removes a file. For root in the home of another user the folder around it must not be a symbolic link: that user
/// could have root remove files of that name anywhere.
pub fn remove_file(path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name().filter(|_| is_root_for_another()) else { return fs::remove_file(path) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = retry_on_intr(|| openat(CWD, parent_of(path), flags, Mode::empty()))?;
    Ok(unlinkat(&folder, name, AtFlags::empty())?)
}

fn is_root_for_another() -> bool {
    database_uid().is_some_and(|uid| uid != 0) && rustix::process::geteuid().is_root()
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a folder, which must not exist, with `mode`, which the umask may reduce, and opens it.
pub fn create_new_folder(path: &Path, mode: u32, owner: Owner) -> io::Result<File> {
    let (folder, name) = Folder::of(path, owner)?;
    mkdirat(&folder.handle, name, Mode::from_raw_mode(mode))?;
    let created = folder.open(name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0)?;
    folder.give(&created);
    Ok(created)
}

/// Creates the folder `path`, and missing parents, with `mode`, which the umask may reduce.
pub fn create_folder(path: &Path, mode: u32) -> io::Result<()> {
    match create_new_folder(path, mode, Owner::OfDatabase) {
        Ok(_) => Ok(()),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            // In /proc no folder can be created, although its parent exists.
            Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
                create_folder(parent, mode)?;
                create_folder(path, mode)
            }
            _ => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// The folder in which something is created.
struct Folder {
    handle: OwnedFd,
    /// The user and the group to whom belongs what is created in it, if not to the user of this process.
    heir: Option<(u32, u32)>,
}

impl Folder {
    /// Opens the folder of `path`, in which something is created for `owner`; returns it with the name in it.
    fn of(path: &Path, owner: Owner) -> io::Result<(Folder, &OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = retry_on_intr(|| openat(CWD, parent_of(path), flags, Mode::empty()))?;
        let mut heir = of_database().filter(|_| is_root_for_another());
        if let Some((uid, _)) = heir
            && (owner == Owner::OfProcess || fstat(&handle)?.st_uid != uid)
        {
            heir = None;
        }
        Ok((Folder { handle, heir }, name))
    }

    fn create_new(&self, name: &OsStr, access: OFlags, mode: u32) -> io::Result<File> {
        let created = self.open(name, access | OFlags::CREATE | OFlags::EXCL, mode)?;
        self.give(&created);
        Ok(created)
    }

    fn open(&self, name: &OsStr, flags: OFlags, mode: u32) -> io::Result<File> {
        let mode = Mode::from_raw_mode(mode);
        Ok(File::from(retry_on_intr(|| openat(&self.handle, name, flags | OFlags::CLOEXEC, mode))?))
    }

    fn give(&self, created: &File) {
        if let Some((uid, gid)) = self.heir {
            // Fails where even root has no right to change owners, which is no reason to fail.
            let _ = fchown(created, Some(uid), Some(gid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_replaced_by_a_link_after_the_check_gets_the_file_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (checked, moved, other) = (dir.path().join("checked"), dir.path().join("moved"), dir.path().join("other"));
        fs::create_dir(&checked).unwrap();
        fs::create_dir(&other).unwrap();
        let path = checked.join("file");
        let (folder, name) = Folder::of(&path, Owner::OfDatabase).unwrap();
        fs::rename(&checked, &moved).unwrap();
        std::os::unix::fs::symlink(&other, &checked).unwrap();
        drop(folder.create_new(name, OFlags::WRONLY, 0o600).unwrap());
        assert!(moved.join("file").exists());
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
    }

    #[test]
    fn folders_are_created_with_their_parents_and_existing_ones_are_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_folder(&path, 0o700).unwrap();
        create_folder(&path, 0o700).unwrap();
        create_folder(Path::new("/"), 0o700).unwrap();
        let error = create_new_folder(&path, 0o700, Owner::OfDatabase).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let file = dir.path().join("file");
        drop(open_or_create(&file, OFlags::RDWR, 0o600).unwrap());
        drop(open_or_create(&file, OFlags::RDWR, 0o600).unwrap());
        let twice = create_new(&file, OFlags::RDWR, 0o600, Owner::OfDatabase).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
    }
}

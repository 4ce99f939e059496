//! Safe file replacement, the only way in which files get their final names (I3): write a temporary file in the same
//! folder, fsync it, rename it atomically, fsync the folder. An existing file is replaced only on request. The
//! temporary file is removed on errors.
//!
//! Temporary files of killed processes are removed under a [`FolderLock`].

mod links;
mod sharing;
mod temporary;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

pub use self::links::{link_over, symlink_relative};
pub use self::sharing::{SHARED_BLOCK_BYTES, only_if_full, share_range, shares_blocks};
use self::temporary::TempName;
pub use self::temporary::{FolderLock, is_temporary_name, random_name, remove_abandoned, temporary_name};
use crate::error::{Error, ErrorKind, Result};
use crate::owner::{self, Owner};

/// A file that is being written under a temporary name in the folder of its final one. It is removed when dropped
/// unless it is sealed.
#[derive(Debug)]
#[must_use = "an unsealed file is removed when dropped"]
pub struct PendingFile {
    file: File,
    temp: TempName,
}

impl PendingFile {
    /// Creates an empty file with exactly the permission bits `mode`, under a random name in the folder of
    /// `final_path`.
    pub fn create(final_path: &Path, mode: u32) -> Result<Self> {
        let folder = folder_of(final_path);
        loop {
            match Self::create_exclusive(&folder.join(random_name()?), mode, Owner::OfDatabase) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(creation_error(final_path)(e)),
                Ok(pending) => return Ok(pending),
            }
        }
    }

    /// Creates an empty file with exactly the permission bits `mode` under the temporary name `temp`. Errors:
    /// [`ErrorKind::Busy`] if that exists.
    pub fn create_named(temp: &Path, mode: u32) -> Result<Self> {
        Self::create_exclusive(temp, mode, Owner::OfDatabase).map_err(creation_error(temp))
    }

    /// Same as [`PendingFile::create_named`], for content that only the user of this process may read: the file belongs
    /// to that user, in whatever folder it is.
    pub fn create_own(temp: &Path, mode: u32) -> Result<Self> {
        Self::create_exclusive(temp, mode, Owner::OfProcess).map_err(creation_error(temp))
    }

    fn create_exclusive(temp: &Path, mode: u32, owner: Owner) -> io::Result<Self> {
        let file = owner::create_new(temp, OFlags::RDWR, mode, owner)?;
        let pending = PendingFile { file, temp: TempName { path: temp.to_owned(), armed: true } };
        set_mode(&pending.file, mode)?;
        Ok(pending)
    }

    /// Gives the file the owner and the group of the file at `path`, which it replaces or takes bytes from, if this
    /// process is root's. On a file system without owners it keeps its own.
    pub fn give_owner_of(&self, path: &Path) {
        if rustix::process::geteuid().is_root()
            && let Ok(found) = std::fs::symlink_metadata(path)
        {
            let _ = std::os::unix::fs::fchown(&self.file, Some(found.uid()), Some(found.gid()));
        }
    }

    /// Returns the open file, for writing and reading back.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Returns the temporary name of the file.
    pub fn temp_path(&self) -> &Path {
        &self.temp.path
    }

    /// Opens the file that has the temporary name now, for reading: after [`link_over`].
    pub fn reopen(&mut self) -> Result<()> {
        self.file = File::open(&self.temp.path).map_err(Error::io("open", &self.temp.path))?;
        Ok(())
    }

    /// Syncs content and metadata to disk. The file is complete then.
    pub fn seal(self) -> Result<SealedFile> {
        // After an fsync that failed the next one may succeed although data was lost, so there is no second attempt.
        self.file.sync_all().map_err(Error::io("sync", &self.temp.path))?;
        let stat = self.file.metadata().map_err(Error::io("inspect", &self.temp.path))?;
        let modified_ns = stat.mtime().saturating_mul(1_000_000_000).saturating_add(stat.mtime_nsec());
        let (size, device, inode) = (stat.len(), stat.dev(), stat.ino());
        Ok(SealedFile { file: self.file, temp: self.temp, size, device, inode, modified_ns })
    }
}

/// A file that is complete and on disk, still under its temporary name. It is removed when dropped unless it is
/// persisted or kept.
#[derive(Debug)]
#[must_use = "a sealed file that is neither persisted nor kept is removed when dropped"]
pub struct SealedFile {
    file: File,
    temp: TempName,
    size: u64,
    device: u64,
    inode: u64,
    modified_ns: i64,
}

/// How a file got its final name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersistMethod {
    /// By an atomic rename (or link) of a synced file.
    Renamed,
    /// The final name is a mount point and cannot be renamed over: its content was overwritten and synced. This is not
    /// atomic, so the user should learn of it.
    WrittenInPlace,
}

impl SealedFile {
    /// Returns the temporary name of the file.
    pub fn temp_path(&self) -> &Path {
        &self.temp.path
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the number of the device that holds the file.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// Returns the inode number of the file.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns when its bytes changed last, in nanoseconds since 1970.
    pub fn modified_ns(&self) -> i64 {
        self.modified_ns
    }

    /// Renames the file to its final name, in the same folder, and syncs the folder. Without `replace` an existing file
    /// is left alone and the error is [`ErrorKind::Busy`].
    pub fn persist(mut self, final_path: &Path, replace: bool) -> Result<PersistMethod> {
        if !replace {
            rename_no_replace(&self.temp.path, final_path)?;
            self.temp.armed = false;
            return Ok(PersistMethod::Renamed);
        }
        match rustix::fs::rename(&self.temp.path, final_path) {
            Ok(()) => self.temp.armed = false,
            Err(Errno::BUSY) => {
                overwrite(&mut self.file, final_path).map_err(Error::io("write", final_path))?;
                return Ok(PersistMethod::WrittenInPlace);
            }
            Err(e) => return Err(Error::io("replace", final_path)(e.into())),
        }
        sync_folder(folder_of(final_path))?;
        Ok(PersistMethod::Renamed)
    }

    /// Keeps the file under its temporary name and returns that, for work that recovery resumes.
    pub fn keep(mut self) -> PathBuf {
        self.temp.armed = false;
        self.temp.path.clone()
    }
}

/// Creates a file without a name in the folder of `path`, which the system removes when it is closed, however the
/// process ends. Where the file system knows no such files, it has a temporary name for an instant.
pub fn create_unnamed_file(path: &Path) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(folder_of(path), flags, Mode::RUSR | Mode::WUSR) {
        return Ok(file.into());
    }
    let mut pending = PendingFile::create(path, 0o600)?;
    pending.file().try_clone().map_err(Error::io("open a file beside", path))
}

/// Writes a file at `path` that holds `bytes`, with exactly the permission bits `mode`. Without `replace` an existing
/// file is left alone and the error is [`ErrorKind::Busy`].
pub fn write_file(path: &Path, bytes: &[u8], mode: u32, replace: bool) -> Result<PersistMethod> {
    let mut pending = PendingFile::create(path, mode)?;
    pending.file().write_all(bytes).map_err(Error::io("write", path))?;
    pending.seal()?.persist(path, replace)
}

/// Renames a file to an unused name in the same file system and syncs the folder. An existing file is left alone and
/// the error is [`ErrorKind::Busy`].
pub fn rename_no_replace(from: &Path, to: &Path) -> Result<()> {
    rename_unsynced(from, to)?;
    sync_folder(folder_of(to))?;
    if folder_of(from) != folder_of(to) {
        sync_folder(folder_of(from))?;
    }
    Ok(())
}

/// Same as [`rename_no_replace`], without the sync, which the caller does once for many files.
pub fn rename_unsynced(from: &Path, to: &Path) -> Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // The file system does not know the flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_by_link(from, to)?,
        Err(e) => return Err(naming_error(to)(e.into())),
    }
    Ok(())
}

/// Returns the device and the inode number of a file, without following a link; `None` if it does not exist.
pub fn identity(path: &Path) -> Result<Option<(u64, u64)>> {
    match path.symlink_metadata() {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("inspect", path)(error)),
    }
}

/// Renames by a hard link, which never replaces, where rename has no such flag. A crash between link and unlink leaves
/// both names of the file.
fn rename_by_link(from: &Path, to: &Path) -> Result<()> {
    match rustix::fs::link(from, to) {
        Ok(()) => std::fs::remove_file(from).map_err(Error::io("remove", from)),
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => rename_after_check(from, to),
        Err(e) => Err(naming_error(to)(e.into())),
    }
}

/// Renames where the file system has no hard links either, as FAT through FUSE. It can only check first that the name
/// is unused; names of archives contain the number of their run, which is unique.
fn rename_after_check(from: &Path, to: &Path) -> Result<()> {
    if std::fs::symlink_metadata(to).is_ok() {
        return Err(naming_error(to)(io::ErrorKind::AlreadyExists.into()));
    }
    rustix::fs::rename(from, to).map_err(|e| naming_error(to)(e.into()))
}

/// Creates a folder with exactly the permission bits `mode`, and missing parents likewise, and syncs the parent of
/// each. Returns whether the folder was created.
pub fn make_folder(path: &Path, mode: u32) -> Result<bool> {
    make_folder_of(path, mode, Owner::OfDatabase)
}

/// Same as [`make_folder`], for content that only the user of this process may read: the folder belongs to that user,
/// in whatever folder it is.
pub fn make_own_folder(path: &Path, mode: u32) -> Result<bool> {
    make_folder_of(path, mode, Owner::OfProcess)
}

fn make_folder_of(path: &Path, mode: u32, owner: Owner) -> Result<bool> {
    let folder = match owner::create_new_folder(path, mode, owner) {
        Ok(folder) => folder,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return existing_folder(path),
        // In /proc no folder can be created, although its parent exists.
        Err(e) if e.kind() == io::ErrorKind::NotFound && !folder_of(path).is_dir() => {
            make_folder_of(folder_of(path), mode, owner)?;
            return make_folder_of(path, mode, owner);
        }
        Err(e) => return Err(Error::io("make the folder", path)(e)),
    };
    set_mode(&folder, mode).map_err(Error::io("set the mode of", path))?;
    sync_folder(folder_of(path))?;
    Ok(true)
}

fn existing_folder(path: &Path) -> Result<bool> {
    let stat = std::fs::metadata(path).map_err(Error::io("inspect", path))?;
    if !stat.is_dir() {
        return Err(Error::failed(format!("{} is not a folder", path.display())).hint("move it away or choose another"));
    }
    Ok(false)
}

/// Unlinks a file and syncs its folder. A file that does not exist is no error.
pub fn remove(path: &Path) -> Result<()> {
    match owner::remove_file(path) {
        Ok(()) => sync_folder(folder_of(path)),
        // An unlink before a crash may not have been synced, so the folder is synced again.
        Err(e) if e.kind() == io::ErrorKind::NotFound && folder_of(path).is_dir() => sync_folder(folder_of(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", path)(e)),
    }
}

/// Syncs a folder, so that names created, changed or removed in it survive a power cut.
pub fn sync_folder(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(Error::io("open", path))?;
    match folder.sync_all() {
        // Some network file systems cannot sync folders and keep names synchronously anyway.
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        other => other.map_err(Error::io("sync", path)),
    }
}

/// Overwrites the content of a file that cannot be renamed over, and syncs it.
fn overwrite(from: &mut File, to: &Path) -> io::Result<()> {
    from.seek(SeekFrom::Start(0))?;
    let mut target = File::options().write(true).truncate(true).open(to)?;
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return target.sync_all(),
            n => target.write_all(&buffer[..n])?,
        }
    }
}

/// Sets permission bits whatever the umask. File systems that store none (FAT, some network ones) refuse; there the
/// mount options decide about access, which is the administrator's choice.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    match file.set_permissions(std::fs::Permissions::from_mode(mode)) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS)) => Ok(()),
        other => other,
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn creation_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |e| {
        let folder = folder_of(&path).display().to_string();
        match e.kind() {
            io::ErrorKind::AlreadyExists => naming_error(&path)(e),
            io::ErrorKind::NotFound => Error::io("create", &path)(e).hint(format!("make the folder {folder}")),
            io::ErrorKind::PermissionDenied => {
                Error::io("create", &path)(e).hint(format!("make {folder} writable for this user"))
            }
            _ => Error::io("create", &path)(e),
        }
    }
}

fn naming_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |e| match e.kind() {
        io::ErrorKind::AlreadyExists => Error::new(ErrorKind::Busy, format!("{} exists already", path.display()))
            .hint("move it away or choose another name"),
        _ => Error::io("create", &path)(e),
    }
}

//! The one way to put a file in place (I3): a random temporary name in the same folder, write, fsync, rename without
//! clobbering unless replacing was asked for, fsync the folder; on error the temporary goes.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// What random temporary names begin and end with.
const TEMP_PREFIX: &str = ".backup-manager-";
const TEMP_SUFFIX: &str = ".part";

/// A file being written under a temporary name beside its final one; removed when dropped unless it is sealed.
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
            match Self::create_exclusive(&folder.join(random_name()?), mode) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(creation_error(final_path)(e)),
                Ok(pending) => return Ok(pending),
            }
        }
    }

    /// Creates an empty file with exactly the permission bits `mode` under the temporary name `temp`, which must be
    /// free.
    pub fn create_named(temp: &Path, mode: u32) -> Result<Self> {
        Self::create_exclusive(temp, mode).map_err(creation_error(temp))
    }

    fn create_exclusive(temp: &Path, mode: u32) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).mode(mode).open(temp)?;
        let pending = PendingFile { file, temp: TempName { path: temp.to_owned(), armed: true } };
        set_mode(&pending.file, mode)?;
        Ok(pending)
    }

    /// Returns the open file, for writing and reading back.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Returns the name the file has until it is placed.
    pub fn temp_path(&self) -> &Path {
        &self.temp.path
    }

    /// Syncs content and metadata to disk; nothing can be written through this value any more.
    pub fn seal(self) -> Result<SealedFile> {
        // An fsync that failed once may succeed the next time although data was lost, so its error is believed.
        self.file.sync_all().map_err(Error::io("sync", &self.temp.path))?;
        let stat = self.file.metadata().map_err(Error::io("inspect", &self.temp.path))?;
        Ok(SealedFile { file: self.file, temp: self.temp, size: stat.len(), device: stat.dev(), inode: stat.ino() })
    }
}

/// A file that is complete and on disk, still under its temporary name; removed when dropped unless placed or left.
#[derive(Debug)]
#[must_use = "a sealed file that is neither placed nor left is removed when dropped"]
pub struct SealedFile {
    file: File,
    temp: TempName,
    size: u64,
    device: u64,
    inode: u64,
}

/// How a file came to its final name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// By an atomic rename (or link) of a synced file.
    Renamed,
    /// The target is a mount point and cannot be renamed over: its content was overwritten and synced. Worth saying.
    WrittenInPlace,
}

impl SealedFile {
    /// Returns the name the file has until it is placed.
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

    /// Gives the file its final name, in the same folder, and syncs the folder. Without `replace` an existing file is
    /// left alone and the error is [`ErrorKind::Busy`].
    pub fn place(mut self, final_path: &Path, replace: bool) -> Result<Placement> {
        if !replace {
            rename_new(&self.temp.path, final_path)?;
            self.temp.armed = false;
            return Ok(Placement::Renamed);
        }
        match rustix::fs::rename(&self.temp.path, final_path) {
            Ok(()) => self.temp.armed = false,
            Err(Errno::BUSY) => {
                overwrite(&mut self.file, final_path).map_err(Error::io("write", final_path))?;
                return Ok(Placement::WrittenInPlace);
            }
            Err(e) => return Err(Error::io("replace", final_path)(e.into())),
        }
        sync_folder(folder_of(final_path))?;
        Ok(Placement::Renamed)
    }

    /// Leaves the file under its temporary name and returns that, for work that is resumed by recovery.
    pub fn leave(mut self) -> PathBuf {
        self.temp.armed = false;
        self.temp.path.clone()
    }
}

/// A temporary name that is unlinked when dropped while armed.
#[derive(Debug)]
struct TempName {
    path: PathBuf,
    armed: bool,
}

impl Drop for TempName {
    fn drop(&mut self) {
        if self.armed {
            // Nothing can be done about a failure here; recovery removes what a dead attempt left.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes `bytes` to a file at `path` with exactly the permission bits `mode`. Without `replace` an existing file is
/// left alone and the error is [`ErrorKind::Busy`].
pub fn put(path: &Path, bytes: &[u8], mode: u32, replace: bool) -> Result<Placement> {
    let mut pending = PendingFile::create(path, mode)?;
    pending.file().write_all(bytes).map_err(Error::io("write", path))?;
    pending.seal()?.place(path, replace)
}

/// Renames a file to a name in the same file system that must be free, and syncs the folder. An existing file is left
/// alone and the error is [`ErrorKind::Busy`].
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // The file system does not know the flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_by_link(from, to)?,
        Err(e) => return Err(naming_error(to)(e.into())),
    }
    sync_folder(folder_of(to))?;
    if folder_of(from) != folder_of(to) {
        sync_folder(folder_of(from))?;
    }
    Ok(())
}

/// Renames without clobbering where rename cannot: a link never replaces. A crash between leaves both names, of one
/// file.
fn rename_by_link(from: &Path, to: &Path) -> Result<()> {
    match rustix::fs::link(from, to) {
        Ok(()) => std::fs::remove_file(from).map_err(Error::io("remove", from)),
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => rename_unlinkable(from, to),
        Err(e) => Err(naming_error(to)(e.into())),
    }
}

/// Renames where there are no links either, as on FAT through FUSE. Looking first is all that can be done; names that
/// matter hold the number of their run, which nobody else has.
fn rename_unlinkable(from: &Path, to: &Path) -> Result<()> {
    if std::fs::symlink_metadata(to).is_ok() {
        return Err(naming_error(to)(io::ErrorKind::AlreadyExists.into()));
    }
    rustix::fs::rename(from, to).map_err(|e| naming_error(to)(e.into()))
}

/// Makes a folder with exactly the permission bits `mode`, and its missing parents likewise, and syncs the parent of
/// each. Returns whether the folder was missing.
pub fn make_folder(path: &Path, mode: u32) -> Result<bool> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return existing_folder(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(|p| !p.as_os_str().is_empty()) => {
            make_folder(folder_of(path), mode)?;
            return make_folder(path, mode);
        }
        Err(e) => return Err(Error::io("make the folder", path)(e)),
    }
    let folder = File::open(path).map_err(Error::io("open", path))?;
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

/// Unlinks a file and syncs its folder. A file that is not there is no error.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder(folder_of(path)),
        // An unlink before a crash may not have been synced: sync again, so that "gone" means gone.
        Err(e) if e.kind() == io::ErrorKind::NotFound && folder_of(path).is_dir() => sync_folder(folder_of(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", path)(e)),
    }
}

/// Syncs a folder, so that names made, changed or removed in it outlive a power cut.
pub fn sync_folder(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(Error::io("open", path))?;
    match folder.sync_all() {
        // Some network file systems cannot sync folders and keep names synchronously anyway.
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        other => other.map_err(Error::io("sync", path)),
    }
}

/// Makes `link` a symbolic link to `target` by a path relative to the link's folder, atomically, and syncs the folder.
/// Both must be absolute or relative to the same folder. An older link is replaced; anything else at `link` is left
/// alone and the error is [`ErrorKind::Busy`].
pub fn link_relative(link: &Path, target: &Path) -> Result<()> {
    let relative = relative_path(folder_of(link), target);
    let exists = match std::fs::symlink_metadata(link) {
        Ok(stat) if stat.is_symlink() => true,
        Ok(_) => return Err(naming_error(link)(io::ErrorKind::AlreadyExists.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io("inspect", link)(e)),
    };
    if exists && std::fs::read_link(link).is_ok_and(|current| current == relative) {
        return Ok(());
    }
    let mut temp = TempName { path: folder_of(link).join(random_name()?), armed: false };
    std::os::unix::fs::symlink(&relative, &temp.path).map_err(Error::io("make the link", link))?;
    temp.armed = true;
    if exists {
        std::fs::rename(&temp.path, link).map_err(Error::io("replace the link", link))?;
    } else {
        rename_new(&temp.path, link)?;
    }
    temp.armed = false;
    sync_folder(folder_of(link))
}

/// Returns the path that leads from the folder `from` to `to`.
fn relative_path(from: &Path, to: &Path) -> PathBuf {
    let plain = |path: &Path| -> Vec<OsString> {
        path.components().filter(|c| *c != Component::CurDir).map(|c| c.as_os_str().to_owned()).collect()
    };
    let (from, to) = (plain(from), plain(to));
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(OsString::from(".."), from.len() - common);
    up.chain(to[common..].iter().cloned()).collect()
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

/// Sets permission bits whatever the umask. File systems that keep none (FAT, some network ones) refuse: then the mount
/// decides who may read, and that is the administrator's choice.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    match file.set_permissions(std::fs::Permissions::from_mode(mode)) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS)) => Ok(()),
        other => other,
    }
}

/// Returns a name for something that is about to be renamed.
pub fn random_name() -> Result<String> {
    let random = getrandom::u64()
        .map_err(|e| Error::failed("the system gives no random numbers").because(io::Error::other(e.to_string())))?;
    Ok(format!("{TEMP_PREFIX}{random:016x}{TEMP_SUFFIX}"))
}

/// Removes what a killed process left in a folder under names that only this module makes. The caller holds the lock
/// that everybody who places something there holds, so that nobody is using one of them.
pub fn remove_abandoned(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    for entry in entries.flatten() {
        if is_temporary_name(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Says whether only this module makes such names.
pub fn is_temporary_name(name: &str) -> bool {
    let random = name.strip_prefix(TEMP_PREFIX).and_then(|rest| rest.strip_suffix(TEMP_SUFFIX));
    random.is_some_and(|random| random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit()))
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

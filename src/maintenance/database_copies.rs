//! Copies of the database in the archive folder, one a day, and restoring the database from one.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::archive_folder::{self, COPIES_FOLDER};
use crate::clock::Timestamp;
use crate::durable::{self, PendingFile};
use crate::error::{Error, ErrorKind, Result};
use crate::home::{Home, with_suffix};
use crate::owner;
use crate::store::{self, Store};

/// Number of copies that are kept.
const KEPT_COPIES: usize = 7;
/// zstd level of copies.
const COMPRESSION_LEVEL: i32 = 3;
/// The first bytes of a compressed copy.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Bytes unpacked at a time.
const BUFFER_BYTES: usize = 1 << 17;

/// A database that was restored from a copy.
#[derive(Clone, Debug)]
pub struct RestoredDatabase {
    /// The copy, which is kept.
    pub copy: PathBuf,
    /// The new name of the previous database, if there was one.
    pub previous: Option<PathBuf>,
}

/// Copies the database into the archive folder, checks the whole copy before it gets its name, and removes the oldest
/// copies. Returns the path of the copy.
pub fn copy_database(home: &Home, store: &Store, now: Timestamp) -> Result<PathBuf> {
    archive_folder::ensure_ours(home, store)?;
    let folder = home.backups().join(COPIES_FOLDER);
    durable::make_folder(&folder, home.folder_mode())?;
    // Temporary files of killed processes: only one of several services makes the copy, so no process uses them.
    durable::remove_abandoned(&folder)?;
    let path = copy_path(home, now);
    let plain = PendingFile::create(&path, home.file_mode())?;
    store.copy_into(plain.temp_path())?;
    store::check_copy(plain.temp_path())?;
    let mut pending = PendingFile::create(&path, home.file_mode())?;
    compress(plain.temp_path(), &mut pending)?;
    drop(plain);
    match pending.seal()?.persist(&path, false) {
        Err(error) if path.exists() => log::debug!("a copy with this time exists: {error}"),
        other => drop(other?),
    }
    // Copies made under a clock that was ahead must not displace those with the right time. Which of the two clocks is
    // wrong is unknown, so both groups are kept.
    for group in later_and_earlier(home, &path)? {
        for path in group.iter().rev().skip(KEPT_COPIES) {
            durable::remove(path)?;
        }
    }
    Ok(path)
}

/// Compresses the database at `from` into an empty file, and reads that again: what it unpacks to must be the database.
fn compress(from: &Path, to: &mut PendingFile) -> Result<()> {
    let path = to.temp_path().to_owned();
    let mut database = File::open(from).map_err(Error::io("open", from))?;
    let mut encoder = zstd::Encoder::new(to.file(), COMPRESSION_LEVEL).map_err(Error::io("compress", &path))?;
    encoder.include_checksum(true).map_err(Error::io("compress", &path))?;
    io::copy(&mut database, &mut encoder).map_err(Error::io("write", &path))?;
    encoder.finish().map_err(Error::io("write", &path))?;
    let digest = |content: &mut dyn Read| {
        let mut hasher = blake3::Hasher::new();
        io::copy(content, &mut hasher).map(|_| hasher.finalize())
    };
    let open = |path: &Path| File::open(path).map_err(Error::io("open", path));
    let mut decoder = zstd::Decoder::new(open(&path)?).map_err(Error::io("unpack", &path))?;
    let unpacked = digest(&mut decoder).map_err(Error::io("unpack", &path))?;
    match unpacked == digest(&mut open(from)?).map_err(Error::io("read", from))? {
        true => Ok(()),
        false => Err(Error::failed(format!("{} does not unpack to what was packed", path.display()))),
    }
}

/// Returns the path of a copy made at `now`.
fn copy_path(home: &Home, now: Timestamp) -> PathBuf {
    home.backups().join(COPIES_FOLDER).join(format!("backup-{}.db.zst", now.compact_utc()))
}

/// Returns the copies whose names have a later time than `path`, and the others, each oldest first.
fn later_and_earlier(home: &Home, path: &Path) -> Result<[Vec<PathBuf>; 2]> {
    let (later, earlier) = copies(home)?.into_iter().partition(|other| other.as_path() > path);
    Ok([later, earlier])
}

/// Returns the copies in the archive folder, oldest first.
fn copies(home: &Home) -> Result<Vec<PathBuf>> {
    let folder = home.backups().join(COPIES_FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", &folder)(error)),
    };
    let is_copy =
        |path: &PathBuf| archive_folder::is_database_copy(&path.file_name().unwrap_or_default().to_string_lossy());
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_copy).collect();
    paths.sort();
    Ok(paths)
}

/// Restores the database from `copy`, or from the newest copy that is intact. The previous database is renamed.
///
/// Errors: `NotFound` if there is no copy; `Busy` while another process has the database open; `DatabaseDamage` if the
/// copy is damaged. In these cases nothing is changed.
pub fn restore_database_copy(home: &Home, copy: Option<&Path>, now: Timestamp) -> Result<RestoredDatabase> {
    let candidates = match copy {
        Some(path) => {
            fs::metadata(path)
                .map_err(|e| Error::not_found(format!("there is no copy {}", path.display())).because(e))?;
            vec![path.to_owned()]
        }
        None => copies_to_try(home, now)?,
    };
    if let Some(folder) = home.db().parent() {
        durable::make_folder(folder, home.folder_mode())?;
    }
    let _lock = lock_database(home)?;
    let (copy, pending) = unpack_first_intact(home, candidates).map_err(|error| {
        let is_beside = |path: &Path| path.parent().is_some_and(|folder| folder.ends_with(COPIES_FOLDER));
        let is_another_better = archive_folder::has_database_copy(home) && copy.is_some_and(|path| !is_beside(path));
        error.hint(if is_another_better { recovery_step(home) } else { rebuild_step(home) })
    })?;
    let sealed = pending.seal()?;
    let previous = rename_previous(home, now)?;
    sealed.persist(home.db(), false)?;
    Ok(RestoredDatabase { copy, previous })
}

/// Unpacks the first of `candidates` that is intact beside the database, which is locked. The error is that of the
/// first one.
fn unpack_first_intact(home: &Home, candidates: Vec<PathBuf>) -> Result<(PathBuf, PendingFile)> {
    let mut first_error = None;
    for copy in candidates {
        match unpack(home, &copy) {
            Ok(pending) => return Ok((copy, pending)),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| no_copy(home)))
}

/// Writes the content of a copy, compressed or not, into a temporary file beside the database, and checks all of it.
fn unpack(home: &Home, copy: &Path) -> Result<PendingFile> {
    // With the lock no process uses a file of this name; one may remain of a killed process.
    let temporary = with_suffix(home.db(), ".put-back");
    durable::remove(&temporary)?;
    let mut pending = PendingFile::create_named(&temporary, home.file_mode())?;
    let mut from = File::open(copy).map_err(Error::io("open", copy))?;
    let mut magic = Vec::new();
    (&from).take(ZSTD_MAGIC.len() as u64).read_to_end(&mut magic).map_err(Error::io("read", copy))?;
    from.rewind().map_err(Error::io("read", copy))?;
    if magic == ZSTD_MAGIC {
        let mut decoder = zstd::Decoder::new(from).map_err(Error::io("unpack", copy))?;
        let damaged = |kind| Error::new(kind, format!("the copy {} is damaged", copy.display()));
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match decoder.read(&mut buffer).map_err(|e| damaged(ErrorKind::DatabaseDamage).because(e))? {
                0 => break,
                n => pending.file().write_all(&buffer[..n]).map_err(Error::io("write", &temporary))?,
            }
        }
        store::check_copy(&temporary).map_err(|error| damaged(error.kind()).because(error))?;
        return Ok(pending);
    }
    store::check_copy(copy)?;
    if with_suffix(copy, "-wal").exists() {
        // Part of its content lies in the journal beside it.
        store::copy_with_journal(copy, &temporary)?;
    } else {
        io::copy(&mut from, pending.file()).map_err(Error::io("copy", copy))?;
    }
    Ok(pending)
}

/// Locks the database against every other process. The lock lasts until the result is dropped.
fn lock_database(home: &Home) -> Result<File> {
    let path = with_suffix(home.db(), ".lock");
    let lock = owner::open_or_create(&path, OFlags::WRONLY, 0o644).map_err(Error::io("open", &path))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::busy(format!("other processes have the database {} open", home.db().display()))
            .hint("stop the service first: `backup-manager stop`"));
    }
    Ok(lock)
}

/// Returns the copies, newest first. Those with a time in the future, made under a clock that was ahead, come last.
///
/// Errors: `NotFound` if there are none.
fn copies_to_try(home: &Home, now: Timestamp) -> Result<Vec<PathBuf>> {
    let mut copies = later_and_earlier(home, &copy_path(home, now))?.concat();
    copies.reverse();
    match copies.is_empty() {
        true => Err(no_copy(home).hint(rebuild_step(home))),
        false => Ok(copies),
    }
}

fn no_copy(home: &Home) -> Error {
    let folder = home.backups().join(COPIES_FOLDER);
    Error::not_found(format!("there is no copy of the database in {}", folder.display()))
}

/// Returns the command that brings back a database that is damaged or lost.
pub fn recovery_step(home: &Home) -> String {
    match archive_folder::has_database_copy(home) {
        true => "restore its newest copy with `backup-manager rescan --from-copy`".to_owned(),
        false => rebuild_step(home),
    }
}

/// Returns the commands that bring back a database of which there is no intact copy.
fn rebuild_step(home: &Home) -> String {
    let rescan = "rebuild it from the archives with `backup-manager rescan`";
    let db = home.db().display();
    match fs::symlink_metadata(home.db()) {
        Ok(_) => format!("move {db}, {db}-wal and {db}-shm to another folder, then {rescan}"),
        Err(_) => rescan.to_owned(),
    }
}

/// Renames the database together with its journals, since a journal must never be applied to another database. Returns
/// the new name; `None` if there was no database.
fn rename_previous(home: &Home, now: Timestamp) -> Result<Option<PathBuf>> {
    const PARTS: [&str; 4] = ["-wal", "-shm", "-journal", ""];
    let exists = fs::symlink_metadata(home.db()).is_ok_and(|found| found.size() > 0);
    let mut previous = with_suffix(home.db(), &format!(".aside-{}", now.compact_utc()));
    // A restore that was interrupted in this same second may have taken the name.
    while PARTS.iter().any(|suffix| fs::symlink_metadata(with_suffix(&previous, suffix)).is_ok()) {
        previous = with_suffix(&previous, "-again");
    }
    for suffix in PARTS {
        let from = with_suffix(home.db(), suffix);
        match fs::symlink_metadata(&from) {
            Ok(_) => durable::rename_no_replace(&from, &with_suffix(&previous, suffix))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("inspect", &from)(error)),
        }
    }
    Ok(exists.then_some(previous))
}

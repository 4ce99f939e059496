//! The stable names: `docs.tar` leads to the newest good archive of `docs`, and what the old system left under such a
//! name is moved aside.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::archive::foreign;
use crate::archive_name::{EXTENSIONS, legacy_codec, legacy_name};
use crate::clock::Timestamp;
use crate::durable::{self, FolderLock};
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::{LegacyArchive, ScheduleRow, Store};

/// Makes the stable names of `schedules` (`docs.tar`) point to their newest good archives.
///
/// A regular file found under such a name is the old system's: it is moved aside without clobbering and taken into the
/// catalog, pinned. Returns what is worth saying; where links cannot be made that is said, and never a failure.
pub fn refresh_stable_links(
    home: &Home,
    store: &Store,
    schedules: &[ScheduleRow],
    now: Timestamp,
) -> Result<Vec<String>> {
    if !home.backups().exists() {
        return Ok(Vec::new());
    }
    super::ensure_ours(home, store)?;
    let _lock = FolderLock::acquire(home.backups())?;
    let mut notes = Vec::new();
    for row in schedules {
        notes.extend(take_legacy_in(home, store, row, now)?);
        notes.extend(refresh(home.backups(), store, row).err().and_then(|error| unmade(row, &error)));
    }
    Ok(notes)
}

/// Like [`refresh_stable_links`], but leaves what the old system left where it is: reading that through takes long.
pub fn refresh_links_only(home: &Home, store: &Store, schedules: &[ScheduleRow]) -> Result<Vec<String>> {
    if !home.backups().exists() {
        return Ok(Vec::new());
    }
    super::ensure_ours(home, store)?;
    let _lock = FolderLock::acquire(home.backups())?;
    let notes =
        schedules.iter().filter_map(|row| refresh(home.backups(), store, row).err().and_then(|e| unmade(row, &e)));
    Ok(notes.collect())
}

/// A file system that knows no links is worth one word, not one with every run.
fn unmade(row: &ScheduleRow, error: &Error) -> Option<String> {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let note = format!("no stable name for {}: {error}", row.schedule.name);
    let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    said.insert(note.clone()).then_some(note)
}

fn refresh(folder: &Path, store: &Store, row: &ScheduleRow) -> Result<()> {
    let name = row.schedule.name.as_str();
    let newest = store.newest_good(row.id)?;
    for (extension, _) in EXTENSIONS {
        let link = folder.join(format!("{name}.{extension}"));
        let wanted = newest.as_ref().map(|a| a.file_name.as_str()).filter(|f| f.ends_with(&format!(".{extension}")));
        let current = fs::read_link(&link).ok();
        match wanted {
            // `.tar` is no suffix of the others, so at most one extension is wanted.
            Some(target) if current.as_deref() == Some(Path::new(target)) => {}
            Some(target) => durable::symlink_relative(&link, &folder.join(target))?,
            None if current.is_some_and(|target| target.starts_with(name)) => durable::remove(&link)?,
            None => {}
        }
    }
    Ok(())
}

/// Moves the old system's files aside, and takes those that lie aside into the catalog: a crash between the two heals
/// itself.
fn take_legacy_in(home: &Home, store: &Store, row: &ScheduleRow, now: Timestamp) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let name = row.schedule.name.as_str();
    let own_folder = home.backups().join(name);
    for (extension, _) in EXTENSIONS {
        let found = home.backups().join(format!("{name}.{extension}"));
        let Ok(metadata) = fs::symlink_metadata(&found) else { continue };
        if metadata.is_file() {
            durable::make_folder(&own_folder, home.folder_mode())?;
            let modified = Timestamp::from_millis(metadata.mtime().saturating_mul(1000));
            let aside = own_folder.join(legacy_name(name, modified, extension));
            durable::rename_no_replace(&found, &aside)?;
            notes.push(format!("{} was there before: it is now {}, pinned", found.display(), aside.display()));
        }
    }
    let Ok(entries) = fs::read_dir(&own_folder) else { return Ok(notes) };
    let known = store.archives(Some(row.id))?;
    for entry in entries.flatten() {
        let file = entry.file_name();
        let Some(codec) = file.to_str().and_then(|text| legacy_codec(text, name)) else { continue };
        let file_name = format!("{name}/{}", file.to_string_lossy());
        if known.iter().all(|archive| archive.file_name != file_name) {
            take_in(store, home, row, &entry.path(), file_name, codec, now)?;
        }
    }
    Ok(notes)
}

fn take_in(
    store: &Store,
    home: &Home,
    row: &ScheduleRow,
    path: &PathBuf,
    file_name: String,
    codec: &'static str,
    now: Timestamp,
) -> Result<()> {
    let metadata = fs::metadata(path).map_err(Error::io("look at", path))?;
    let facts = foreign::check_tar(path);
    let legacy = LegacyArchive {
        file_name,
        created_at: Timestamp::from_millis(metadata.mtime().saturating_mul(1000)),
        size: metadata.len(),
        device: metadata.dev(),
        inode: metadata.ino(),
        codec,
        extent: facts.as_ref().copied().unwrap_or_default(),
        readable: facts.is_ok(),
        source_root: home.source_path(&row.schedule.source).as_os_str().as_bytes().to_owned(),
    };
    store.add_legacy_archive(row.id, &legacy, now).map(drop)
}

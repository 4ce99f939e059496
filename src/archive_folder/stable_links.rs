//! Stable links: `docs.tar` points to the newest good archive of `docs`, `docs.tar.index` to its index if it lies in
//! segments. A file of the old system under such a name is
//! renamed and added to the catalog.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::archive::foreign;
use crate::archive_name::{ArchiveName, EXTENSIONS, INDEX_SUFFIX, legacy_codec, legacy_name};
use crate::clock::Timestamp;
use crate::durable::{self, FolderLock};
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::{LegacyArchive, ScheduleRow, Store};

/// Makes the stable links of `schedules` (`docs.tar`) point to their newest good archives.
///
/// A regular file under such a name was created by the old system: it is renamed without replacing anything and added
/// to the catalog, pinned. Returns notes for the user. A link that cannot be created is a note, never an error.
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
        notes.extend(adopt_legacy_files(home, store, row, now)?);
        notes.extend(update_link(home.backups(), store, row).err().and_then(|error| link_note(row, &error)));
    }
    Ok(notes)
}

/// Does what [`refresh_stable_links`] does, but leaves files of the old system alone: reading them in full takes long.
pub fn refresh_links_only(home: &Home, store: &Store, schedules: &[ScheduleRow]) -> Result<Vec<String>> {
    if !home.backups().exists() {
        return Ok(Vec::new());
    }
    super::ensure_ours(home, store)?;
    let _lock = FolderLock::acquire(home.backups())?;
    let note = |row| update_link(home.backups(), store, row).err().and_then(|error| link_note(row, &error));
    Ok(schedules.iter().filter_map(note).collect())
}

/// Returns the note on a link that could not be created, and `None` if this process has returned it before: a file
/// system without links is reported once, not with every run.
fn link_note(row: &ScheduleRow, error: &Error) -> Option<String> {
    static REPORTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let note = format!("no stable link for {}: {error}", row.schedule.name);
    let mut reported = REPORTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    reported.insert(note.clone()).then_some(note)
}

fn update_link(folder: &Path, store: &Store, row: &ScheduleRow) -> Result<()> {
    let name = row.schedule.name.as_str();
    let newest = store.newest_good(row.id)?;
    let mut result = Ok(());
    let extensions =
        EXTENSIONS.iter().flat_map(|(extension, _)| [(*extension).to_owned(), format!("{extension}{INDEX_SUFFIX}")]);
    for extension in extensions {
        let link = folder.join(format!("{name}.{extension}"));
        let wanted = newest.as_ref().map(|a| a.file_name.as_str()).filter(|f| f.ends_with(&format!(".{extension}")));
        let current = fs::read_link(&link).ok();
        // A link to anything else belongs to the user.
        let is_own = current.as_deref().is_some_and(is_archive_path);
        match (wanted, current) {
            // None of them ends with a point and another one, so at most one is wanted.
            (Some(target), Some(current)) if current == Path::new(target) => {}
            (Some(_), Some(current)) if !is_own => result = Err(foreign_link(&link, &current)),
            (Some(target), _) => durable::symlink_relative(&link, &folder.join(target))?,
            (None, _) if is_own => durable::remove(&link)?,
            (None, _) => {}
        }
    }
    result
}

/// Returns whether a path relative to the archive folder has the form of an archive's: `docs/docs-TIME-17.tar`.
fn is_archive_path(path: &Path) -> bool {
    let parts = path.to_str().and_then(|path| path.split_once('/'));
    parts.is_some_and(|(folder, file)| {
        ArchiveName::parse(file, folder).is_some()
            || ArchiveName::parse_index(file, folder).is_some()
            || legacy_codec(file, folder).is_some()
    })
}

fn foreign_link(link: &Path, target: &Path) -> Error {
    Error::busy(format!(
        "{} is a link to {}, which is not an archive of this program, so it stays as it is; move it away to get the \
         stable link",
        link.display(),
        target.display()
    ))
}

/// Renames files of the old system, and adds renamed ones to the catalog. A crash between the two is repaired by the
/// next call.
fn adopt_legacy_files(home: &Home, store: &Store, row: &ScheduleRow, now: Timestamp) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let name = row.schedule.name.as_str();
    let own_folder = home.backups().join(name);
    for (extension, _) in EXTENSIONS {
        let found = home.backups().join(format!("{name}.{extension}"));
        let Ok(metadata) = fs::symlink_metadata(&found) else { continue };
        if metadata.is_file() {
            durable::make_folder(&own_folder, home.folder_mode())?;
            let modified = Timestamp::from_millis(metadata.mtime().saturating_mul(1000));
            let renamed = own_folder.join(legacy_name(name, modified, extension));
            durable::rename_no_replace(&found, &renamed)?;
            notes.push(format!("{} existed before: it is now {}, pinned", found.display(), renamed.display()));
        }
    }
    let Ok(entries) = fs::read_dir(&own_folder) else { return Ok(notes) };
    let known = store.archives(Some(row.id))?;
    for entry in entries.flatten() {
        let file = entry.file_name();
        let Some(codec) = file.to_str().and_then(|text| legacy_codec(text, name)) else { continue };
        let file_name = format!("{name}/{}", file.to_string_lossy());
        if known.iter().all(|archive| archive.file_name != file_name) {
            add_to_catalog(store, home, row, &entry.path(), file_name, codec, now)?;
        }
    }
    Ok(notes)
}

fn add_to_catalog(
    store: &Store,
    home: &Home,
    row: &ScheduleRow,
    path: &PathBuf,
    file_name: String,
    codec: &'static str,
    now: Timestamp,
) -> Result<()> {
    let metadata = fs::metadata(path).map_err(Error::io("inspect", path))?;
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

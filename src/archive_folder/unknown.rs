//! Compares the archive folder with the catalog: after an older database was put back, the folder holds archives that
//! the catalog does not know.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::identity;
use super::other_index::find_other_index;
use crate::archive_name::ArchiveName;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::store::Store;

/// What the names of archive files show that the catalog does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownArchives {
    /// Number of archive files that the catalog does not have.
    pub count: u64,
    /// Path of one of them below the archive folder: the one with the highest number.
    pub example: String,
    /// The highest run number in the name of any of them; 0 if there are none.
    pub highest_run: i64,
    /// The index of an archive of the catalog that lists other bytes than the catalog has.
    pub other_index: Option<String>,
}

impl UnknownArchives {
    /// Returns what is wrong, as an error; `None` if the catalog knows all archives.
    pub fn error(&self, home: &Home) -> Option<Error> {
        let other_index = self.other_index.as_ref().map(|name| {
            let path = home.backups().join(name);
            let what = "lists other bytes than the database has: that may be an older copy, so nothing is pruned";
            Error::failed(format!("the index {} {what}", path.display()))
                .hint("let the database follow it with `backup-manager rescan`")
        });
        let unknown = (self.count > 0).then(|| {
            let what = match self.count {
                1 => format!("an archive that the database does not know, {}", self.example),
                count => format!("{count} archives that the database does not know, such as {}", self.example),
            };
            let folder = home.backups().display();
            Error::failed(format!("{folder} holds {what}: the database may be an older copy, so nothing is pruned"))
                .hint("add them with `backup-manager rescan`; move files that it reports as damaged out of the folder")
        });
        unknown.or(other_index)
    }
}

/// Finds the archive files that the catalog does not have. None if the folder belongs to another database.
pub fn find_unknown_archives(home: &Home, store: &Store) -> Result<UnknownArchives> {
    let mut unknown = UnknownArchives::default();
    if identity::belongs_to_other_database(home, store) {
        return Ok(unknown);
    }
    for (path, file_name, run) in named_archives(home, store)? {
        // Removed since the folder was listed, and its row with it.
        if store.has_archive_file(&file_name)? || !path.exists() {
            continue;
        }
        unknown.count += 1;
        if run >= unknown.highest_run {
            (unknown.highest_run, unknown.example) = (run, file_name);
        }
    }
    unknown.other_index = find_other_index(home, store)?;
    Ok(unknown)
}

/// Finds the archive files that the catalog does not have, and makes the numbers of new runs start above theirs: two
/// archives must not have the same number.
pub fn reserve_run_numbers(home: &Home, store: &Store) -> Result<UnknownArchives> {
    let unknown = find_unknown_archives(home, store)?;
    if unknown.highest_run > 0 {
        store.raise_run_numbers(unknown.highest_run)?;
    }
    Ok(unknown)
}

/// Returns the path, the path below the archive folder and the run number of each regular file that is named as an
/// archive.
fn named_archives(home: &Home, store: &Store) -> Result<Vec<(PathBuf, String, i64)>> {
    let mut found = Vec::new();
    for (folder, name) in schedule_folders(home, store)? {
        for (path, file) in entries_of(&folder)? {
            if let Some(parsed) = ArchiveName::parse(&file, &name).or_else(|| ArchiveName::parse_index(&file, &name))
                && fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file())
            {
                found.push((path, format!("{name}/{file}"), parsed.run));
            }
        }
    }
    Ok(found)
}

/// Returns the folders in the archive folder that may be those of schedules, with their names.
pub(super) fn schedule_folders(home: &Home, store: &Store) -> Result<Vec<(PathBuf, String)>> {
    let mut folders = Vec::new();
    for (folder, name) in entries_of(home.backups())? {
        if name.starts_with('.') || !fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_dir()) {
            continue;
        }
        // `lost+found` of a disk, for example: the folder of a schedule is readable for the owner of the database.
        if fs::read_dir(&folder).is_ok() || store.schedule_named(&name)?.is_some() {
            folders.push((folder, name));
        }
    }
    Ok(folders)
}

/// Returns the entries of a folder whose names are UTF-8; none if the folder does not exist.
pub(super) fn entries_of(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    let named = |entry: fs::DirEntry| Some((entry.path(), entry.file_name().into_string().ok()?));
    Ok(entries.flatten().filter_map(named).collect())
}

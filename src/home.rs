//! Where everything lies: the database, the archives, the logs, and what stands beside the database.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::error::{Error, Result};

/// The file that names the home for everyone on this machine.
const MACHINE_WIDE: &str = "/etc/backup-manager/home";
/// Name of the database in the home.
const DATABASE: &str = "backup.db";

/// HomeOptions given by flags or by the environment; flags are put in by the caller before the environment's.
#[derive(Clone, Debug, Default)]
pub struct HomeOptions {
    /// `--home`, `BACKUP_HOME`.
    pub home: Option<PathBuf>,
    /// `--db`, `BACKUP_DB`.
    pub db: Option<PathBuf>,
    /// `--backups`, `BACKUP_DIR`.
    pub backups: Option<PathBuf>,
    /// `--logs`, `BACKUP_LOGS`.
    pub logs: Option<PathBuf>,
    /// `BACKUP_GROUP_READ=1`.
    pub group_read: bool,
}

/// The paths of one installation, all absolute.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
    db: PathBuf,
    backups: PathBuf,
    logs: PathBuf,
    group_read: bool,
}

impl Home {
    /// Finds the home: the place given, the current folder if it holds a database, the path in
    /// `/etc/backup-manager/home`, the current folder.
    pub fn locate(places: &HomeOptions, current: &Path) -> Result<Home> {
        let root = match &places.home {
            Some(home) => current.join(home),
            None if places.db.is_some() || current.join(DATABASE).exists() => current.to_owned(),
            None => match fs::read(MACHINE_WIDE) {
                Ok(line) => PathBuf::from(OsStr::from_bytes(line.trim_ascii())),
                Err(_) => current.to_owned(),
            },
        };
        if !root.is_absolute() {
            return Err(Error::usage(format!("the home \"{}\" is not an absolute path", root.display()))
                .hint(format!("write the whole path, in --home, BACKUP_HOME or {MACHINE_WIDE}")));
        }
        let root = resolved(&root);
        let below = |given: &Option<PathBuf>, name: &str| match given {
            Some(path) => resolved(&current.join(path)),
            None => root.join(name),
        };
        Ok(Home {
            db: below(&places.db, DATABASE),
            backups: below(&places.backups, "backups"),
            logs: below(&places.logs, "logs"),
            group_read: places.group_read,
            root,
        })
    }

    /// Returns the home folder; relative source paths start here.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the database, without symbolic links where it exists.
    pub fn db(&self) -> &Path {
        &self.db
    }

    /// Returns the archive folder.
    pub fn backups(&self) -> &Path {
        &self.backups
    }

    /// Returns the log folder.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Returns the folder with a locked file for each live worker.
    pub fn workers(&self) -> PathBuf {
        with_suffix(&self.db, ".workers")
    }

    /// Returns the path of the text file that `import` reads by default.
    pub fn text_file(&self) -> PathBuf {
        self.root.join("backup_schedules.txt")
    }

    /// Returns a source as written in a schedule as an absolute path.
    pub fn source_path(&self, source: &[u8]) -> PathBuf {
        let joined = self.root.join(OsStr::from_bytes(source));
        // Dropping `.` keeps messages readable; `..` stays, since it may cross a link.
        joined.components().collect()
    }

    /// Returns what no archive may hold: the live database with all that stands beside it, the archives, the logs.
    pub fn own_paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.db.clone(), self.backups.clone(), self.logs.clone()];
        for suffix in ["-wal", "-shm", "-journal", ".lock", ".workers"] {
            paths.push(with_suffix(&self.db, suffix));
        }
        paths
    }

    /// Returns the mode of the database, its copies and logs.
    pub fn file_mode(&self) -> u32 {
        if self.group_read { 0o640 } else { 0o600 }
    }

    /// Returns the mode of archive files.
    pub fn archive_mode(&self) -> u32 {
        if self.group_read { 0o440 } else { 0o400 }
    }

    /// Returns the mode of folders that the program makes.
    pub fn folder_mode(&self) -> u32 {
        if self.group_read { 0o750 } else { 0o700 }
    }
}

/// Returns `path` with `suffix` behind its last component.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Says that the folder `what` cannot be written: who we are, whose it is, and the command that helps. `another` names
/// how to choose another folder ("--logs or BACKUP_LOGS").
pub fn unwritable(what: &str, folder: &Path, another: &str, cause: Error) -> Error {
    let exists = folder.is_dir();
    let nearest = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    let refusal = Refusal {
        uid: rustix::process::geteuid().as_raw(),
        owner: fs::metadata(nearest).map(|metadata| metadata.uid()).ok(),
        missing: !exists,
        read_only: rustix::fs::statvfs(nearest).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY)),
        contained: ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists()),
    };
    Error::new(cause.kind(), refusal.message(what, folder)).because(cause).hint(refusal.way_out(folder, another))
}

/// Why a folder cannot be written.
struct Refusal {
    uid: u32,
    owner: Option<u32>,
    missing: bool,
    read_only: bool,
    contained: bool,
}

impl Refusal {
    fn message(&self, what: &str, folder: &Path) -> String {
        let (folder, uid) = (folder.display(), self.uid);
        match (self.read_only, self.missing, self.owner.filter(|owner| *owner != uid)) {
            (true, _, _) => format!("{what} {folder} is on a read-only file system"),
            (false, true, _) => format!("{what} {folder} is missing, and uid {uid} cannot make it"),
            (false, false, Some(owner)) => {
                format!("{what} {folder} is not writable for uid {uid}: it belongs to uid {owner}")
            }
            (false, false, None) => format!("{what} {folder} is not writable for uid {uid}"),
        }
    }

    fn way_out(&self, folder: &Path, another: &str) -> String {
        let (folder, uid) = (folder.display(), self.uid);
        // Running as root only because a folder is root's is no advice.
        let owner = self.owner.filter(|owner| *owner != uid && *owner != 0 && !self.missing);
        match (self.contained, self.read_only) {
            (true, true) => format!("mount a folder or a volume at {folder} that can be written (without `:ro`)"),
            (true, false) => {
                let chown = "docker-compose run --rm --user 0 --entrypoint chown backup-system";
                let or = owner.map(|o| format!(", or run as its owner: BACKUP_UID={o} in .env")).unwrap_or_default();
                format!("run `{chown} -R {uid} {folder}`{or}, or name another folder with {another}")
            }
            (false, true) => format!("mount it writable, or name another folder with {another}"),
            (false, false) => {
                let or = owner.map(|owner| format!(" run as uid {owner},")).unwrap_or_default();
                let make = if self.missing { format!("mkdir -p {folder}; sudo ") } else { String::new() };
                format!("run `sudo {make}chown -R {uid} {folder}`,{or} or name another folder with {another}")
            }
        }
    }
}

/// Resolves the symbolic links of what exists of `path`, and keeps the rest as it stands.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(whole) = fs::canonicalize(path) {
        return whole;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_and_the_rest_hangs_below_the_home() {
        let places = HomeOptions {
            home: Some("/nowhere/home".into()),
            logs: Some("/elsewhere".into()),
            ..HomeOptions::default()
        };
        let home = Home::locate(&places, Path::new("/")).unwrap();
        assert_eq!(home.db(), Path::new("/nowhere/home/backup.db"));
        assert_eq!(home.logs(), Path::new("/elsewhere"));
        assert_eq!(home.workers(), Path::new("/nowhere/home/backup.db.workers"));
        assert_eq!(home.source_path(b"./data"), Path::new("/nowhere/home/data"));
        assert_eq!(home.source_path(b"/abs"), Path::new("/abs"));
    }

    #[test]
    fn what_stands_beside_the_database_follows_its_canonical_path() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let places = HomeOptions { db: Some(dir.path().join("link/my.db")), ..HomeOptions::default() };
        let home = Home::locate(&places, dir.path()).unwrap();
        assert_eq!(home.db(), fs::canonicalize(&real).unwrap().join("my.db"));
    }

    #[test]
    fn who_may_not_write_is_told_whose_the_folder_is_and_what_to_run() {
        let folder = Path::new("/app/backups");
        let other = Refusal { uid: 1000, owner: Some(501), missing: false, read_only: false, contained: false };
        assert_eq!(
            other.message("the archive folder", folder),
            "the archive folder /app/backups is not writable for uid 1000: it belongs to uid 501"
        );
        let way = other.way_out(folder, "BACKUP_DIR");
        assert!(way.contains("`sudo chown -R 1000 /app/backups`") && way.contains("uid 501"), "{way}");
        let contained = Refusal { contained: true, ..other };
        let way = contained.way_out(folder, "BACKUP_DIR");
        assert!(way.contains("chown backup-system -R 1000 /app/backups`") && way.contains("BACKUP_UID=501"), "{way}");
        let of_root = Refusal { owner: Some(0), ..contained };
        assert!(!of_root.way_out(folder, "BACKUP_DIR").contains("BACKUP_UID"), "nobody is sent to run as root");
        let read_only = Refusal { read_only: true, ..of_root };
        assert!(read_only.message("the archive folder", folder).contains("read-only file system"));
        assert!(read_only.way_out(folder, "BACKUP_DIR").contains(":ro"));
    }
}

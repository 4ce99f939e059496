//! The paths of an installation: the database, the archives, the logs, and the files next to the database.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::error::{Error, Result};
use crate::owner;

/// The file that holds the path of the home for all users of this machine.
const MACHINE_WIDE: &str = "/etc/backup-manager/home";
/// Name of the database in the home.
const DATABASE: &str = "backup.db";

/// Paths given by options or environment variables. The caller gives options precedence over variables.
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
    /// Finds the home: the path given, else the current folder if it holds a database, else the path in
    /// `/etc/backup-manager/home`, else the current folder.
    ///
    /// Errors: `Usage` if that is not an absolute path.
    pub fn locate(options: &HomeOptions, current: &Path) -> Result<Home> {
        let root = match &options.home {
            Some(home) => current.join(home),
            None if options.db.is_some() || current.join(DATABASE).exists() => current.to_owned(),
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
            db: below(&options.db, DATABASE),
            backups: below(&options.backups, "backups"),
            logs: below(&options.logs, "logs"),
            group_read: options.group_read,
            root,
        })
    }

    /// Returns the home folder; relative source paths start here.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the database, with its symbolic links resolved.
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

    /// Returns the folder with the heartbeat files of the live workers.
    pub fn workers(&self) -> PathBuf {
        with_suffix(&self.db, ".workers")
    }

    /// Returns the folder with the files on which the segments of schedules are locked.
    pub fn segment_locks(&self) -> PathBuf {
        with_suffix(&self.db, ".locks")
    }

    /// Returns the folder with the secrets that the program stores.
    pub fn secrets(&self) -> PathBuf {
        with_suffix(&self.db, ".secrets")
    }

    /// Returns the path of the text file that `import` reads by default.
    pub fn text_file(&self) -> PathBuf {
        self.root.join("backup_schedules.txt")
    }

    /// Returns the source of a schedule as an absolute path.
    pub fn source_path(&self, source: &[u8]) -> PathBuf {
        let joined = self.root.join(OsStr::from_bytes(source));
        // Without `.` messages are easier to read; `..` is kept, since it may cross a symbolic link.
        joined.components().collect()
    }

    /// Returns the paths that no archive may contain: the live database with the files next to it, the secrets, the
    /// archives, the logs.
    pub fn own_paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.db.clone(), self.backups.clone(), self.logs.clone()];
        for suffix in ["-wal", "-shm", "-journal", ".lock", ".locks", ".workers", ".secrets"] {
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

    /// Returns the mode of folders that the program creates.
    pub fn folder_mode(&self) -> u32 {
        if self.group_read { 0o750 } else { 0o700 }
    }
}

/// Returns `path` with `suffix` appended to its last component.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Returns the error for a folder that cannot be written. It states the user of this process, the owner of the folder
/// and the command that helps. `what` describes the folder ("the log folder"); `options` are the options that select
/// another one ("--logs or BACKUP_LOGS").
pub fn unwritable(what: &str, folder: &Path, options: &str, cause: Error) -> Error {
    let exists = folder.is_dir();
    let nearest = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    let facts = UnwritableFolder {
        uid: rustix::process::geteuid().as_raw(),
        owner: fs::metadata(nearest).map(|metadata| metadata.uid()).ok(),
        database_owner: owner::database_uid(),
        is_missing: !exists,
        is_read_only: rustix::fs::statvfs(nearest).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY)),
        is_in_container: ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists()),
    };
    Error::new(cause.kind(), facts.message(what, folder)).because(cause).hint(facts.hint(folder, options))
}

/// What is known about a folder that cannot be written.
struct UnwritableFolder {
    /// The user of this process.
    uid: u32,
    /// The owner of the folder or of its nearest ancestor that exists.
    owner: Option<u32>,
    /// The owner of the database, if there is one.
    database_owner: Option<u32>,
    is_missing: bool,
    is_read_only: bool,
    /// Whether this process is in a container.
    is_in_container: bool,
}

impl UnwritableFolder {
    fn message(&self, what: &str, folder: &Path) -> String {
        let (folder, uid) = (folder.display(), self.uid);
        match (self.is_read_only, self.is_missing, self.owner.filter(|owner| *owner != uid)) {
            (true, _, _) => format!("{what} {folder} is on a read-only file system"),
            (false, true, _) => format!("{what} {folder} is missing, and uid {uid} cannot create it"),
            (false, false, Some(owner)) => {
                format!("{what} {folder} is not writable for uid {uid}: it belongs to uid {owner}")
            }
            (false, false, None) => format!("{what} {folder} is not writable for uid {uid}"),
        }
    }

    fn hint(&self, folder: &Path, options: &str) -> String {
        let (folder, uid) = (folder.display(), self.uid);
        // Nobody should run as root only because a folder belongs to root.
        let owner = self.owner.filter(|owner| *owner != uid && *owner != 0 && !self.is_missing);
        // A home is never taken away from its owner.
        let database_owner = self.database_owner.filter(|owner| *owner != uid);
        match (self.is_in_container, self.is_read_only) {
            (true, true) => format!("mount a folder or a volume at {folder} that can be written (without `:ro`)"),
            (true, false) if let Some(owner) = database_owner.filter(|owner| *owner != 0) => {
                format!(
                    "run as uid {owner}, the owner: BACKUP_UID={owner} in .env; or name another folder with {options}"
                )
            }
            (true, false) => {
                let chown = "docker-compose run --rm --user 0 --entrypoint chown backup-system";
                let or = owner.map(|o| format!(", or run as its owner: BACKUP_UID={o} in .env")).unwrap_or_default();
                format!("run `{chown} -R {uid} {folder}`{or}, or name another folder with {options}")
            }
            (false, true) => format!("mount it writable, or name another folder with {options}"),
            (false, false) if let Some(owner) = database_owner.or(owner) => {
                format!(
                    "run it as uid {owner}, the owner: `{}`; or name another folder with {options}",
                    as_owner(owner)
                )
            }
            (false, false) => {
                let make = if self.is_missing { format!("mkdir -p {folder}; sudo ") } else { String::new() };
                format!("run `sudo {make}chown -R {uid} {folder}`, or name another folder with {options}")
            }
        }
    }
}

/// Returns the command line that runs this program as the user `uid`.
pub fn as_owner(uid: u32) -> String {
    match uid {
        0 => "sudo backup-manager ...".to_owned(),
        uid => format!("sudo -u '#{uid}' backup-manager ..."),
    }
}

/// Resolves the symbolic links in the part of `path` that exists, and keeps the rest unchanged.
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
    fn given_paths_take_precedence_and_the_others_are_in_the_home() {
        let options = HomeOptions {
            home: Some("/nowhere/home".into()),
            logs: Some("/elsewhere".into()),
            ..HomeOptions::default()
        };
        let home = Home::locate(&options, Path::new("/")).unwrap();
        assert_eq!(home.db(), Path::new("/nowhere/home/backup.db"));
        assert_eq!(home.logs(), Path::new("/elsewhere"));
        assert_eq!(home.workers(), Path::new("/nowhere/home/backup.db.workers"));
        assert_eq!(home.source_path(b"./data"), Path::new("/nowhere/home/data"));
        assert_eq!(home.source_path(b"/abs"), Path::new("/abs"));
    }

    #[test]
    fn the_path_of_the_database_is_canonical() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let options = HomeOptions { db: Some(dir.path().join("link/my.db")), ..HomeOptions::default() };
        let home = Home::locate(&options, dir.path()).unwrap();
        assert_eq!(home.db(), fs::canonicalize(&real).unwrap().join("my.db"));
    }

    #[test]
    fn the_error_for_an_unwritable_folder_names_its_owner_and_the_command_that_helps() {
        let folder = Path::new("/app/backups");
        let other = UnwritableFolder {
            uid: 1000,
            owner: Some(501),
            database_owner: None,
            is_missing: false,
            is_read_only: false,
            is_in_container: false,
        };
        assert_eq!(
            other.message("the archive folder", folder),
            "the archive folder /app/backups is not writable for uid 1000: it belongs to uid 501"
        );
        let hint = other.hint(folder, "BACKUP_DIR");
        assert!(hint.contains("`sudo -u '#501' backup-manager") && !hint.contains("chown"), "{hint}");
        let of_root = UnwritableFolder { owner: Some(0), database_owner: Some(1000), ..other };
        let hint = of_root.hint(folder, "BACKUP_DIR");
        assert!(hint.contains("`sudo chown -R 1000 /app/backups`"), "what root left is given back: {hint}");
        let home_of_root = UnwritableFolder { owner: Some(0), database_owner: Some(0), ..other };
        let hint = home_of_root.hint(folder, "BACKUP_DIR");
        assert!(hint.contains("`sudo backup-manager") && !hint.contains("chown"), "{hint}");
        let contained = UnwritableFolder { is_in_container: true, ..other };
        let hint = contained.hint(folder, "BACKUP_DIR");
        assert!(
            hint.contains("chown backup-system -R 1000 /app/backups`") && hint.contains("BACKUP_UID=501"),
            "{hint}"
        );
        let of_database = UnwritableFolder { database_owner: Some(501), ..contained };
        let hint = of_database.hint(folder, "BACKUP_DIR");
        assert!(hint.contains("BACKUP_UID=501") && !hint.contains("chown"), "{hint}");
        let of_root = UnwritableFolder { owner: Some(0), ..contained };
        assert!(!of_root.hint(folder, "BACKUP_DIR").contains("BACKUP_UID"), "the hint never advises to run as root");
        let read_only = UnwritableFolder { is_read_only: true, ..of_root };
        assert!(read_only.message("the archive folder", folder).contains("read-only file system"));
        assert!(read_only.hint(folder, "BACKUP_DIR").contains(":ro"));
    }
}

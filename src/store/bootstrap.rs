//! Opening a database for the first time in a process: checks, creation, migration, all under a lock file.
//!
//! One connection does this before the pool opens, since switching to WAL and migrating need the database exclusively.
//! Every process that has the database open holds the lock file shared, and one that migrates holds it exclusively.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use rusqlite::{Connection, OptionalExtension};
use rustix::fs::{FlockOperation, OFlags, flock};
use uuid::Uuid;

use super::connection::{configure, database_error};
use super::file_system::refuse_network;
use super::migration::{create_database_file, migrate, newest_schema};
use crate::error::{Error, ErrorKind, Result};
use crate::home::{self, with_suffix};
use crate::owner;

/// "BKMG": the `PRAGMA application_id` of our databases.
pub(super) const APPLICATION_ID: i32 = 0x424B_4D47;
/// The table in which refinery records the applied migrations.
const HISTORY: &str = "refinery_schema_history";
/// Content of the lock file while the database is being created: what an interrupted creation leaves is not damaged.
const CREATING: &[u8] = b"creating\n";
/// Older libraries lose data when two processes write and checkpoint at once (the WAL-reset bug).
const MIN_SQLITE: i32 = 3_051_003;

/// Whether a database may be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It must exist.
    Existing,
    /// It is created, with its folder, if it does not exist.
    Create,
}

/// How a database is opened.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    /// Whether it may be created.
    pub access: Access,
    /// Mode of a created database.
    pub file_mode: u32,
    /// Mode of a created folder.
    pub folder_mode: u32,
    /// Reports why opening takes long.
    pub notice: fn(&str),
}

impl Bootstrap {
    /// Checks, creates and migrates the database as needed; returns the shared lock and the database's identity.
    pub(super) fn run(&self, path: &Path) -> Result<(File, Uuid)> {
        refuse_old_sqlite(rusqlite::version_number())?;
        let missing = !path.exists();
        if missing && self.access == Access::Existing {
            let folder = path.parent().unwrap_or(path).display();
            return Err(Error::not_found(format!("there is no database in {folder}")).hint(
                "create one with `backup-manager create`, change to the folder that has it, or name that folder with \
                 --home or BACKUP_HOME",
            ));
        }
        if missing {
            self.make_folder(path)?;
        }
        refuse_network(path)?;
        let lock = self.open_lock(path)?;
        share(&lock, path)?;
        if let Some(identity) = self.current(path, &lock)? {
            // A process killed at the very end of a creation leaves the mark. With it, this database would count as
            // new if it lost its content. Who may not write the lock file leaves it to the next process.
            if is_creating(&lock, path)? {
                let _ = mark_creating(&lock, b"");
            }
            return Ok((lock, identity));
        }
        self.migrate_exclusively(path, &lock)?;
        share(&lock, path)?;
        match self.current(path, &lock)? {
            Some(identity) => Ok((lock, identity)),
            None => Err(Error::failed(format!("the database {} is not at schema {}", path.display(), newest_schema()))),
        }
    }

    fn make_folder(&self, path: &Path) -> Result<()> {
        let Some(folder) = path.parent() else { return Ok(()) };
        owner::create_folder(folder, self.folder_mode).map_err(|e| unwritable(path, Error::io("make", folder)(e)))
    }

    fn open_lock(&self, path: &Path) -> Result<File> {
        let lock = with_suffix(path, ".lock");
        // A lock needs no write permission, and users other than its owner may read a home.
        owner::open_or_create(&lock, OFlags::RDWR, 0o644)
            .or_else(|error| File::open(&lock).map_err(|_| error))
            .map_err(|e| unwritable(path, Error::io("open", &lock)(e)))
    }

    /// Returns the identity if the database is ours, at the newest schema and in WAL; `None` if it is to be created or
    /// migrated.
    fn current(&self, path: &Path, lock: &File) -> Result<Option<Uuid>> {
        match fs::metadata(path) {
            Err(_) => return Ok(None),
            Ok(found) if found.len() == 0 && is_creating(lock, path)? => return Ok(None),
            Ok(found) if found.len() == 0 => return Err(emptied(path)),
            Ok(_) => {}
        }
        self.refuse_foreign_owner(path)?;
        let mut connection = Connection::open(path).map_err(|e| database_error(path, e))?;
        configure(&mut connection).map_err(|e| opening_fault(path, e))?;
        let pragma = |name: &str| -> Result<i32> {
            connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).map_err(|e| opening_fault(path, e))
        };
        let (application, version) = (pragma("application_id")?, pragma("user_version")?);
        if application != APPLICATION_ID {
            let tables: i64 = connection
                .query_row("SELECT count(*) FROM sqlite_schema WHERE tbl_name <> ?1", [HISTORY], |row| row.get(0))
                .map_err(|e| opening_fault(path, e))?;
            // A process that died while it created the database leaves it without tables of ours; refinery commits its
            // own table before the migrations.
            return if tables == 0 { Ok(None) } else { Err(foreign(path)) };
        }
        if version > newest_schema() {
            return Err(Error::failed(format!(
                "the database {} was written by a newer backup-manager (schema {version}, this one supports {})",
                path.display(),
                newest_schema()
            ))
            .hint("use that newer program; nothing was changed"));
        }
        let mode: String =
            connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(|e| opening_fault(path, e))?;
        // A restored copy is not in WAL: VACUUM INTO does not copy the journal mode.
        if version < newest_schema() || mode != "wal" {
            return Ok(None);
        }
        let uuid: Option<String> = connection
            .query_row("SELECT uuid FROM instance WHERE id = 1", [], |row| row.get(0))
            .optional()
            .map_err(|e| opening_fault(path, e))?;
        uuid.and_then(|text| Uuid::from_str(&text).ok()).map(Some).ok_or_else(|| foreign(path))
    }

    /// Reports missing permissions for the database as such; SQLite reports only that it cannot open it.
    fn refuse_foreign_owner(&self, path: &Path) -> Result<()> {
        let wanted = match self.access {
            Access::Existing => rustix::fs::Access::READ_OK,
            Access::Create => rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
        };
        match rustix::fs::access(path, wanted) {
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS) => {
                Err(unwritable(path, Error::failed("no permission for the database itself")))
            }
            _ => Ok(()),
        }
    }

    /// Creates or migrates the database under the exclusive lock.
    fn migrate_exclusively(&self, path: &Path, lock: &File) -> Result<()> {
        // Upgrading a shared lock is not atomic: the process that locks first migrates, the others find it done.
        flock(lock, FlockOperation::Unlock).map_err(io::Error::from).map_err(Error::io("unlock", path))?;
        if !lock_exclusively(lock) {
            return Err(in_use(path));
        }
        if self.current(path, lock)?.is_some() {
            return Ok(());
        }
        let is_creation = !path.exists() || is_creating(lock, path)?;
        if is_creation {
            mark_creating(lock, CREATING)
                .map_err(|e| unwritable(path, Error::io("write the lock file of", path)(e)))?;
        }
        create_database_file(path, self.file_mode)?;
        let mut connection = Connection::open(path).map_err(|e| database_error(path, e))?;
        configure(&mut connection).map_err(|e| database_error(path, e))?;
        let mode: String = connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
            .map_err(|e| database_error(path, e))?;
        if mode != "wal" {
            let message = format!("the database {} cannot use WAL (its journal mode is {mode})", path.display());
            return Err(Error::failed(message).hint("put it on a local file system: --db or BACKUP_DB"));
        }
        migrate(path, &mut connection, self.file_mode, self.notice)?;
        if is_creation {
            mark_creating(lock, b"").map_err(Error::io("write the lock file of", path))?;
        }
        Ok(())
    }
}

/// Returns whether the creation of the database was begun and not completed.
fn is_creating(lock: &File, path: &Path) -> Result<bool> {
    let mut content = [0; CREATING.len()];
    let length = lock.read_at(&mut content, 0).map_err(Error::io("read the lock file of", path))?;
    Ok(content[..length] == *CREATING)
}

/// Makes `mark` the content of the lock file, before the database changes.
fn mark_creating(lock: &File, mark: &[u8]) -> io::Result<()> {
    lock.set_len(0)?;
    lock.write_all_at(mark, 0)?;
    lock.sync_all()
}

/// Returns the error for a database that is to be migrated or created while other processes hold its lock.
fn in_use(path: &Path) -> Error {
    let name = path.display();
    if !path.exists() {
        return Error::busy(format!("the database {name} was removed, and other processes still have it open"))
            .hint("they end by themselves within a minute; try again then");
    }
    // `stop` of this program would need the database, too.
    Error::busy(format!("the database {name} needs a migration, and other processes have it open"))
        .hint("stop the service first, by `backup-manager stop` of the version that it runs or by a signal: `kill PID`")
}

fn emptied(path: &Path) -> Error {
    Error::new(ErrorKind::DatabaseDamage, format!("the database {} is empty: its content was lost", path.display()))
}

fn unwritable(path: &Path, cause: Error) -> Error {
    let folder = path.parent().unwrap_or(path);
    home::unwritable("the folder of the database", folder, "--home, BACKUP_HOME, --db or BACKUP_DB", cause)
}

fn share(lock: &File, path: &Path) -> Result<()> {
    flock(lock, FlockOperation::LockShared)
        .map_err(io::Error::from)
        .map_err(Error::io("lock", with_suffix(path, ".lock")))
}

/// Locks exclusively; retries for five seconds, as commands end soon but a service does not.
fn lock_exclusively(lock: &File) -> bool {
    for _ in 0..50 {
        if flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    false
}

fn foreign(path: &Path) -> Error {
    Error::failed(format!("{} is not a database of backup-manager", path.display()))
        .hint("nothing was changed; name the right database with --db or BACKUP_DB, or another folder with --home")
}

/// Converts an error on opening. A file that is not a database is foreign, unless workers of ours have used it.
fn opening_fault(path: &Path, error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        // If its first page is overwritten, only the folder of workers beside it shows that it was ours.
        Some(rusqlite::ErrorCode::NotADatabase) if with_suffix(path, ".workers").exists() => Error::new(
            ErrorKind::DatabaseDamage,
            format!("{} is no longer a database of backup-manager: it is damaged", path.display()),
        ),
        Some(rusqlite::ErrorCode::NotADatabase) => foreign(path),
        _ => database_error(path, error),
    }
}

fn refuse_old_sqlite(version: i32) -> Result<()> {
    if version >= MIN_SQLITE {
        return Ok(());
    }
    let (major, minor, patch) = (version / 1_000_000, version / 1000 % 1000, version % 1000);
    Err(Error::failed(format!(
        "this program was built with SQLite {major}.{minor}.{patch}, which can lose data when several processes write"
    ))
    .hint("build it with the bundled SQLite (3.51.3 or newer)"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::store::Store;

    const CREATE: Bootstrap =
        Bootstrap { access: Access::Create, file_mode: 0o600, folder_mode: 0o700, notice: |_| () };
    const EXISTING: Bootstrap = Bootstrap { access: Access::Existing, ..CREATE };

    #[test]
    fn the_next_open_completes_a_creation_interrupted_at_any_step() {
        let dir = tempfile::tempdir().unwrap();
        let history = "CREATE TABLE refinery_schema_history (version INT4 PRIMARY KEY, name VARCHAR(255), \
                       applied_on VARCHAR(255), checksum VARCHAR(255))";
        for (at, left) in ["", "PRAGMA journal_mode = WAL", history].into_iter().enumerate() {
            let path = dir.path().join(format!("{at}.db"));
            fs::write(with_suffix(&path, ".lock"), CREATING).unwrap();
            fs::write(&path, "").unwrap();
            Connection::open(&path).unwrap().execute_batch(left).unwrap();
            drop(Store::open(&path, &CREATE).unwrap());
            assert_eq!(fs::read(with_suffix(&path, ".lock")).unwrap(), b"", "it is complete");
        }
    }

    #[test]
    fn a_mark_left_at_the_end_of_a_creation_does_not_make_an_emptied_database_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup.db");
        drop(Store::open(&path, &CREATE).unwrap());
        let lock = with_suffix(&path, ".lock");
        fs::write(&lock, CREATING).unwrap();
        drop(Store::open(&path, &EXISTING).unwrap());
        assert_eq!(fs::read(&lock).unwrap(), b"", "the creation was complete");
        fs::write(&path, "").unwrap();
        assert_eq!(Store::open(&path, &CREATE).unwrap_err().kind(), ErrorKind::DatabaseDamage);
    }

    #[test]
    fn a_new_database_is_private_and_keeps_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home/backup.db");
        let identity = Store::open(&path, &CREATE).unwrap().identity();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Store::open(&path, &EXISTING).unwrap().identity(), identity);
    }

    #[test]
    fn a_restored_copy_is_switched_to_wal() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("backup.db"), dir.path().join("copy.db"));
        let store = Store::open(&path, &CREATE).unwrap();
        store.copy_into(&copy).unwrap();
        let identity = store.identity();
        assert_eq!(Store::open(&copy, &EXISTING).unwrap().identity(), identity);
        let connection = Connection::open(&copy).unwrap();
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
        assert!(!with_suffix(&copy, &format!(".before-schema-{}", newest_schema())).exists());
    }

    #[test]
    fn a_missing_database_is_not_created_for_reading() {
        let dir = tempfile::tempdir().unwrap();
        let error = Store::open(&dir.path().join("backup.db"), &EXISTING).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn newer_foreign_and_damaged_databases_are_refused_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let newer = dir.path().join("newer.db");
        drop(Store::open(&newer, &CREATE).unwrap());
        Connection::open(&newer).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
        let text = Store::open(&newer, &CREATE).unwrap_err().to_string();
        assert!(text.contains("newer backup-manager (schema 99"), "{text}");

        let foreign = dir.path().join("foreign.db");
        Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        let text = Store::open(&foreign, &CREATE).unwrap_err().to_string();
        assert!(text.contains("is not a database of backup-manager"), "{text}");

        let garbage = dir.path().join("garbage.db");
        fs::write(&garbage, "hello ".repeat(2000)).unwrap();
        let text = Store::open(&garbage, &CREATE).unwrap_err().to_string();
        assert!(text.contains("is not a database of backup-manager"), "{text}");
        assert_eq!(fs::read(&garbage).unwrap().len(), 12_000);

        let damaged = dir.path().join("damaged.db");
        drop(Store::open(&damaged, &CREATE).unwrap());
        let mut bytes = fs::read(&damaged).unwrap();
        let end = bytes.len();
        bytes[100..end].fill(0xA5);
        fs::write(&damaged, &bytes).unwrap();
        let error = Store::open(&damaged, &CREATE).unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert_eq!(error.kind(), ErrorKind::DatabaseDamage);
    }

    #[test]
    fn old_libraries_are_refused() {
        assert!(refuse_old_sqlite(3_051_002).is_err());
        assert!(refuse_old_sqlite(rusqlite::version_number()).is_ok(), "the bundled one is new enough");
    }

    #[test]
    fn a_migration_needs_the_exclusive_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup.db");
        let open = Store::open(&path, &CREATE).unwrap();
        let lock = File::open(with_suffix(&path, ".lock")).unwrap();
        assert!(flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(open);
        assert!(flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}

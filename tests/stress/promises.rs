//! The promises of the engine as queries of the database and the folder. Of the program they use only the reader of
//! the trailer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_manager::archive::check;
use backup_manager::cancel::CancelToken;
use rusqlite::{Connection, OpenFlags};

use super::{catalog, stored_files};

/// When a promise must hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At any instant, whichever processes are alive or dead.
    Always,
    /// After recovery, while no process works.
    Settled,
}

/// What a change of a file changes: device, inode, modification time and size.
type Stamp = (u64, u64, i64, i64, u64);

/// Checks the promises, and remembers which archives were verified already.
#[derive(Default)]
pub struct Promises {
    verified: BTreeMap<PathBuf, Stamp>,
    connection: Option<Connection>,
    /// The number of archives that were read whole.
    pub archives_read: u64,
}

struct Row {
    run: i64,
    state: String,
    file_name: String,
    temporary: Option<String>,
    size: Option<u64>,
    digest: Option<Vec<u8>>,
    health: String,
}

impl Row {
    /// Returns whether its file is an index.
    fn is_index(&self) -> bool {
        self.file_name.ends_with(".index")
    }
}

/// Queries that must return no row, at any instant.
const NEVER: &[(&str, &str)] = &[
    ("a foreign key leads nowhere", "SELECT \"table\" FROM pragma_foreign_key_check"),
    (
        "two runs of one occurrence (I2)",
        "SELECT schedule_id FROM run WHERE trigger = 'schedule' GROUP BY schedule_id, scheduled_for_ms \
         HAVING count(*) > 1",
    ),
    (
        "two running or two queued runs of one schedule (I2)",
        "SELECT schedule_id FROM run WHERE state IN ('running', 'queued') GROUP BY schedule_id, state \
         HAVING count(*) > 1",
    ),
    (
        "an unfinished archive of a run that has ended (I1)",
        "SELECT archive.run_id FROM archive JOIN run ON run.id = run_id \
         WHERE archive.state IN ('writing', 'sealed') AND run.state <> 'running'",
    ),
    (
        "a visible archive of a run that has not ended (I1)",
        "SELECT archive.run_id FROM archive JOIN run ON run.id = run_id \
         WHERE archive.state = 'complete' AND run.state IN ('running', 'queued')",
    ),
    (
        "a visible archive that was not verified, of a run with verification (I1)",
        "SELECT archive.run_id FROM archive JOIN file_health USING (run_id) \
         JOIN run ON run.id = run_id JOIN schedule ON schedule.id = archive.schedule_id \
         WHERE archive.state = 'complete' AND run.verify = 1 AND schedule.verify = 1 AND health = 'unproven'",
    ),
    (
        "a file row without an archive",
        "SELECT id FROM archive_file WHERE id NOT IN (SELECT archive_file_id FROM archive)",
    ),
    (
        "an attempt is running although its run has ended",
        "SELECT run_id FROM attempt JOIN run ON run.id = run_id \
         WHERE outcome = 'running' AND run.state NOT IN ('running')",
    ),
    (
        "a superseded run without a successor that ended or waits (I2)",
        "SELECT run.id FROM run LEFT JOIN run AS other ON other.id = run.superseded_by \
         WHERE run.superseded_by IS NOT NULL AND (other.id IS NULL OR other.id <= run.id)",
    ),
];

/// Queries that must return no row after recovery.
const NEVER_SETTLED: &[(&str, &str)] = &[
    ("a run without a worker is running (I6)", "SELECT id FROM run WHERE state = 'running'"),
    ("an archive is unfinished", "SELECT run_id FROM archive WHERE state <> 'complete'"),
    ("the database is damaged", "SELECT quick_check FROM pragma_quick_check WHERE quick_check <> 'ok'"),
];

/// Queries of the catalog that must return no row, at any instant.
const CATALOG_NEVER: &[(&str, &str)] = &[
    (
        "an archive lacks a chunk",
        "SELECT archive_file_id FROM span JOIN archive USING (archive_file_id) WHERE state <> 'deleting' \
         AND (SELECT count(*) FROM chunk WHERE id >= chunk_id AND id < chunk_id + chunks) <> chunks",
    ),
    (
        "an archive has other members than its catalog",
        "SELECT run_id FROM archive WHERE state = 'complete' AND members <> \
         (SELECT coalesce(sum(chunk_members.members), archive.members) FROM span JOIN chunk_members \
         ON chunk_members.chunk_id BETWEEN span.chunk_id AND span.chunk_id + span.chunks - 1 \
         WHERE span.archive_file_id = archive.archive_file_id)",
    ),
    (
        "a chunk lacks a member",
        "SELECT chunk_id FROM chunk_members \
         WHERE (SELECT count(*) FROM member WHERE id >= member_id AND id < member_id + members) <> members",
    ),
];

/// Queries of the catalog that must return no row after recovery.
const CATALOG_NEVER_SETTLED: &[(&str, &str)] = &[
    (
        "a chunk without an archive",
        "SELECT id FROM chunk WHERE NOT EXISTS (SELECT 1 FROM span INDEXED BY span_of_chunk \
         WHERE chunk_id BETWEEN chunk.id - 255 AND chunk.id AND chunk_id + chunks > chunk.id)",
    ),
    (
        "a member without a chunk",
        "SELECT id FROM member WHERE NOT EXISTS (SELECT 1 FROM chunk_members INDEXED BY chunk_members_of_member \
         WHERE member_id BETWEEN member.id - 255 AND member.id AND member_id + members > member.id)",
    ),
];

impl Promises {
    /// Returns the violations in the home `home`, as messages.
    pub fn violations(&mut self, home: &Path, when: When) -> Vec<String> {
        let connection = match self.connection.take().map_or_else(|| open(home), Ok) {
            Ok(connection) => connection,
            Err(error) => return vec![format!("the database does not open: {error}")],
        };
        let violations = self.check(&connection, home, when);
        self.connection = Some(connection);
        violations
    }

    fn check(&mut self, connection: &Connection, home: &Path, when: When) -> Vec<String> {
        let mut violations = Vec::new();
        define_health(connection);
        let mut lists = vec![NEVER];
        // A migration that was killed leaves the catalog in the form of an older schema.
        if has_table(connection, "span") {
            lists.push(CATALOG_NEVER);
        }
        if has_table(connection, "stored_file") {
            lists.push(stored_files::NEVER);
        }
        if when == When::Settled {
            lists.push(NEVER_SETTLED);
            if has_table(connection, "span") {
                lists.push(CATALOG_NEVER_SETTLED);
            }
            if has_table(connection, "stored_file") {
                lists.push(stored_files::NEVER_SETTLED);
            }
        }
        for (what, query) in lists.into_iter().flatten() {
            let rows = column(connection, query);
            if !rows.is_empty() {
                violations.push(format!("{what}: {}", rows.join(", ")));
            }
        }
        let rows = archives(connection);
        let backups = home.join("backups");
        for row in rows.iter().filter(|row| row.state == "complete" && row.health != "damaged") {
            if let Err(why) = self.check_archive(connection, &backups.join(&row.file_name), row) {
                violations.push(format!("the visible archive of run @{} (I1): {why}", row.run));
            }
        }
        violations.extend(unknown_files(connection, &backups, &rows, when));
        if when == When::Settled {
            violations.extend(wrong_stable_links(connection, &backups));
            violations.extend(left_heartbeats(home, connection));
        }
        violations
    }

    fn check_archive(&mut self, connection: &Connection, path: &Path, row: &Row) -> Result<(), String> {
        let stat = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let bytes = if row.is_index() { Some(concatenate(path)?) } else { None };
        let length = bytes.as_ref().map_or(stat.len(), |bytes| bytes.len() as u64);
        if Some(length) != row.size {
            return Err(format!("{length} bytes on disk, {:?} in its row", row.size));
        }
        let stamp = (stat.dev(), stat.ino(), stat.mtime(), stat.mtime_nsec(), stat.len());
        // Segments may be gone although the index is as it was.
        if self.verified.get(path) == Some(&stamp) && !row.is_index() {
            return Ok(());
        }
        if row.digest.is_some() {
            let bytes = bytes.map_or_else(|| fs::read(path).map_err(|e| e.to_string()), Ok)?;
            let (trailer, digest) = check::check_by_trailer(path, 1, &CancelToken::new()).map_err(|e| e.to_string())?;
            if Some(digest.as_slice()) != row.digest.as_deref() {
                return Err("its digest differs from its row".to_owned());
            }
            if has_table(connection, "span") && check_chunks(connection, &bytes, row.run)? != trailer.chunks() {
                return Err(format!("the catalog has other chunks of it than the {} of its trailer", trailer.chunks()));
            }
            check_readable(path, &bytes)?;
        }
        self.archives_read += 1;
        self.verified.insert(path.to_owned(), stamp);
        Ok(())
    }
}

fn open(home: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(home.join("backup.db"), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn has_table(connection: &Connection, name: &str) -> bool {
    !column(connection, &format!("SELECT name FROM sqlite_schema WHERE name = '{name}'")).is_empty()
}

/// Makes a view of what is known about archives, their indexes included, whatever the schema.
fn define_health(connection: &Connection) {
    let source = match has_table(connection, "stored_file") {
        true => "SELECT run_id, health FROM archive_health",
        false => "SELECT run_id, health FROM archive JOIN archive_file ON archive_file.id = archive_file_id",
    };
    connection
        .execute_batch(&format!("DROP VIEW IF EXISTS temp.file_health; CREATE TEMP VIEW file_health AS {source}"))
        .expect("a view");
}

/// Compares each chunk of an archive with its row; returns how many there are.
fn check_chunks(connection: &Connection, archive: &[u8], run: i64) -> Result<u64, String> {
    let mut statement = connection
        .prepare_cached(&format!(
            "SELECT stored_offset, stored_length, stored_digest FROM archive JOIN {} USING (archive_file_id) \
             WHERE run_id = ?1",
            catalog::chunks("main")
        ))
        .expect("a query");
    let rows = statement.query_map([run], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).expect("rows");
    let mut chunks = 0;
    for row in rows {
        let (offset, length, digest): (usize, usize, Vec<u8>) = row.expect("a row");
        let bytes = archive.get(offset..offset + length).ok_or_else(|| format!("it has no chunk at {offset}"))?;
        if blake3::hash(bytes).as_bytes().as_slice() != digest {
            return Err(format!("its chunk at {offset} differs from its row"));
        }
        chunks += 1;
    }
    Ok(chunks)
}

/// Returns the bytes of an archive in segments, by its index alone.
fn concatenate(index: &Path) -> Result<Vec<u8>, String> {
    let text = fs::read_to_string(index).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let parts: Vec<&str> = line.splitn(3, ' ').collect();
        let (start, length): (usize, usize) = (parts[0].parse().unwrap(), parts[1].parse().unwrap());
        let segment = fs::read(index.with_file_name(parts[2])).map_err(|e| format!("{}: {e}", parts[2]))?;
        let range = segment.get(start - 1..start - 1 + length).ok_or_else(|| format!("{} is too short", parts[2]))?;
        bytes.extend_from_slice(range);
    }
    Ok(bytes)
}

/// Reads an archive with nothing but a decoder and the `tar` crate.
fn check_readable(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let name = path.to_string_lossy();
    let decoded: Box<dyn Read> = match name.trim_end_matches(".index").rsplit('.').next() {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
        Some("zst") => Box::new(zstd::Decoder::new(bytes).map_err(|e| e.to_string())?),
        _ => Box::new(bytes),
    };
    let mut archive = tar::Archive::new(decoded);
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let mut entry = entry.map_err(|e| format!("tar: {e}"))?;
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(|e| format!("tar: {e}"))?;
    }
    Ok(())
}

/// Returns the names of segments; before recovery also the temporary ones.
fn segments(connection: &Connection, when: When) -> Vec<String> {
    if !has_table(connection, "stored_file") {
        return Vec::new();
    }
    let mut names = column(connection, "SELECT segment_name FROM stored_file WHERE segment_name IS NOT NULL");
    if when == When::Always {
        names.extend(column(connection, "SELECT temporary_name FROM stored_file WHERE temporary_name IS NOT NULL"));
    }
    names
}

/// Returns messages about files in the archive folder that no row accounts for.
fn unknown_files(connection: &Connection, backups: &Path, rows: &[Row], when: When) -> Vec<String> {
    let segments = segments(connection, when);
    let mut known: BTreeSet<&str> = rows.iter().map(|row| row.file_name.as_str()).collect();
    known.extend(segments.iter().map(String::as_str));
    let unfinished: Vec<&str> =
        rows.iter().filter_map(|row| row.temporary.as_deref()).filter(|_| when == When::Always).collect();
    known.extend(&unfinished);
    // A link to the base has a temporary name of the same attempt until it replaces the file of the row's name.
    let attempts: BTreeSet<&str> = unfinished.iter().filter_map(|name| Some(name.rsplit_once('-')?.0)).collect();
    let is_known = |name: &str| {
        let of_attempt = name.strip_suffix(".part").and_then(|name| name.rsplit_once('-')).map(|(attempt, _)| attempt);
        known.contains(name) || of_attempt.is_some_and(|attempt| attempts.contains(attempt))
    };
    let mut strange = Vec::new();
    let mut folders = vec![backups.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a kind");
            let path = entry.path();
            let name = path.strip_prefix(backups).expect("below").to_string_lossy().into_owned();
            // Of files in the archive folder, and of indexes in that of a schedule, which are replaced as a whole.
            let file_name = path.file_name().unwrap_or_default().to_string_lossy();
            let temporary = file_name.starts_with(".backup-manager-") && file_name.ends_with(".part");
            if kind.is_dir() {
                folders.push(path);
            } else if name.starts_with(".database/") && name.ends_with(".db.zst") {
                // A copy of the database: it has no row, and is recognised by its name.
            } else if name == "ballast" {
                // Made by the tests to fill a small disk.
            } else if temporary && when == When::Settled {
                strange.push(format!("a temporary file is left: {name}"));
            } else if kind.is_file() && !temporary && name != ".backup-manager" && !is_known(&name) {
                strange.push(format!("a file without a row: {name}"));
            }
        }
    }
    strange
}

/// Returns messages about stable links that do not lead to the newest good archive of their schedule, or should not
/// exist.
fn wrong_stable_links(connection: &Connection, backups: &Path) -> Vec<String> {
    let newest = "SELECT name || '=' || coalesce((SELECT file_name FROM archive \
         JOIN archive_file ON archive_file.id = archive_file_id JOIN file_health USING (run_id) \
         WHERE archive.schedule_id = schedule.id AND state = 'complete' AND (suspect = 0 OR acknowledged = 1) \
         AND (file_health.health = 'good' OR (file_health.health = 'unproven' AND verify = 0)) \
         ORDER BY digest IS NULL, run_id DESC LIMIT 1), '') FROM schedule WHERE deleted_at_ms IS NULL";
    let mut wrong = Vec::new();
    for line in column(connection, newest) {
        let (name, file) = line.split_once('=').expect("two parts");
        let found: Vec<String> = ["tar", "tar.gz", "tar.zst", "tar.index", "tar.gz.index", "tar.zst.index"]
            .iter()
            .filter_map(|extension| fs::read_link(backups.join(format!("{name}.{extension}"))).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .collect();
        let wanted: Vec<String> = Some(file.to_owned()).filter(|file| !file.is_empty()).into_iter().collect();
        if found != wanted {
            wrong.push(format!("the stable link of {name} leads to {found:?}, not to {wanted:?}"));
        }
    }
    wrong
}

/// Returns messages about heartbeat files of dead workers, and about workers in the database that are dead.
fn left_heartbeats(home: &Path, connection: &Connection) -> Vec<String> {
    use rustix::fs::{FlockOperation, flock};
    let mut left = Vec::new();
    let mut living = 0;
    for entry in fs::read_dir(home.join("backup.db.workers")).into_iter().flatten().flatten() {
        let Ok(file) = fs::File::open(entry.path()) else { continue };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => left.push(format!("the heartbeat file of a dead worker is left: {}", entry.path().display())),
            Err(_) => living += 1,
        }
    }
    let rows = column(connection, "SELECT uuid FROM worker").len();
    if rows > living {
        left.push(format!("{rows} workers in the database, {living} alive"));
    }
    left
}

fn archives(connection: &Connection) -> Vec<Row> {
    let mut statement = connection
        .prepare_cached(
            "SELECT run_id, state, file_name, temporary_name, size, digest, file_health.health FROM archive \
             JOIN archive_file ON archive_file.id = archive_file_id JOIN file_health USING (run_id)",
        )
        .expect("a query");
    let rows = statement.query_map([], |r| {
        Ok(Row {
            run: r.get(0)?,
            state: r.get(1)?,
            file_name: r.get(2)?,
            temporary: r.get(3)?,
            size: r.get(4)?,
            digest: r.get(5)?,
            health: r.get(6)?,
        })
    });
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

/// Returns the first column of a query's rows as text.
pub fn column(connection: &Connection, query: &str) -> Vec<String> {
    let mut statement = connection.prepare_cached(query).unwrap_or_else(|e| panic!("{query}: {e}"));
    let rows = statement.query_map([], |row| {
        Ok(match row.get_ref(0)? {
            rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            other => format!("{other:?}"),
        })
    });
    rows.expect("rows").map(|row| row.unwrap_or_else(|e| format!("unreadable: {e}"))).collect()
}

/// Returns everything that recovery could change, as text: a second recovery must leave it the same.
pub fn snapshot(home: &Path) -> String {
    let connection = Connection::open(home.join("backup.db")).expect("the database");
    let mut lines = Vec::new();
    for (table, columns) in [
        ("run", "id || ' ' || state || ' ' || attempt || ' ' || tries || ' ' || coalesced || ' ' || not_before_ms"),
        ("run", "id || ' ' || coalesce(scheduled_for_ms, '') || ' ' || coalesce(superseded_by, '')"),
        ("attempt", "run_id || ' ' || attempt || ' ' || outcome || ' ' || coalesce(ended_at_ms, '')"),
        ("archive", "run_id || ' ' || state || ' ' || file_name"),
        ("archive_file", "id || ' ' || coalesce(size, '')"),
        ("stored_file", "id || ' ' || coalesce(size, '') || ' ' || health || ' ' || coalesce(verified_at_ms, '')"),
        ("chunk", "count(*)"),
        ("member", "count(*)"),
        ("schedule", "id || ' ' || handled_until_ms || ' ' || coalesce(next_due_at_ms, '')"),
    ] {
        lines.extend(column(&connection, &format!("SELECT '{table} ' || {columns} FROM {table}")));
    }
    let mut folders = vec![home.join("backups")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let stat = entry.metadata().expect("metadata");
            if stat.is_dir() {
                // No promise is made about empty folders.
                folders.push(entry.path());
                continue;
            }
            lines.push(format!("{} {} {}", entry.path().display(), stat.ino(), stat.len()));
        }
    }
    lines.sort();
    lines.join("\n")
}

/// Returns the lines in which two snapshots differ.
pub fn difference(before: &str, after: &str) -> Vec<String> {
    let (before, after): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    let removed = before.difference(&after).map(|line| format!("- {line}"));
    removed.chain(after.difference(&before).map(|line| format!("+ {line}"))).collect()
}

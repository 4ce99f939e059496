//! Describes the state of a home, to compare with that after a run without a fault; lists what must not be left.

use std::fs;
use std::path::Path;
use std::process::Command;

use backup_manager::archive::check::check_by_trailer;
use backup_manager::cancel::CancelToken;
use rusqlite::{Connection, OpenFlags};

use crate::fault::{program, words};
use crate::homes::{OLD, RESTORED};
use crate::older_schema;
use crate::stress::catalog;
use crate::stress::promises::column;
use crate::tree;

/// Describes the state of a home without times of day, or returns what is wrong with it.
pub type Describe = fn(&Path) -> Result<String, String>;

fn open(path: &Path) -> Result<Connection, String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    Connection::open_with_flags(path, flags).map_err(|e| format!("{}: {e}", path.display()))
}

fn lines(home: &Path, queries: &[&str]) -> Result<String, String> {
    let connection = open(&home.join("backup.db"))?;
    let lines: Vec<String> = queries.iter().flat_map(|query| column(&connection, query)).collect();
    Ok(lines.join("\n"))
}

/// Describes nothing: the promises alone are enough.
pub fn nothing(_: &Path) -> Result<String, String> {
    Ok(String::new())
}

/// A schedule as text.
const SCHEDULE: &str = "SELECT name || ' ' || CAST(source AS TEXT) || ' ' || coalesce(cadence, '') || ' ' || \
                        compression || ' ' || retention || ' ' || enabled FROM schedule";

/// Describes the schedules, in the order of `list`.
pub fn schedules(home: &Path) -> Result<String, String> {
    lines(home, &[&format!("{SCHEDULE} ORDER BY position")])
}

/// Describes the complete archives; the next run may still have to remove others.
pub fn complete_archives(home: &Path) -> Result<String, String> {
    Ok(complete(home).join("\n"))
}

/// Verifies all archives, which must be good, and describes them.
pub fn verified(home: &Path) -> Result<String, String> {
    let verified = program(home, &words("verify")).output().map_err(|e| e.to_string())?;
    if !verified.status.success() {
        return Err(format!("verify: {}", String::from_utf8_lossy(&verified.stdout)));
    }
    complete_archives(home)
}

/// Describes the archives, in every state.
pub fn archives(home: &Path) -> Result<String, String> {
    lines(home, &["SELECT state || ' ' || file_name FROM archive ORDER BY file_name"])
}

/// Compares the newest archive of `docs` with its source by GNU tar, and describes from how many runs back it took what
/// did not change.
pub fn reused(home: &Path) -> Result<String, String> {
    let newest = "FROM archive JOIN run ON run.id = run_id JOIN schedule ON schedule.id = archive.schedule_id \
                  WHERE schedule.name = 'docs' AND archive.state = 'complete' ORDER BY run_id DESC LIMIT 1";
    let file = lines(home, &[&format!("SELECT file_name {newest}")])?;
    let source = lines(home, &[&format!("SELECT CAST(schedule.source AS TEXT) {newest}")])?;
    let mut compare = Command::new("tar");
    compare.arg("--compare").arg("-f").arg(home.join("backups").join(&file));
    let compared = compare.arg("-C").arg(Path::new(&source).parent().unwrap()).output().map_err(|e| e.to_string())?;
    if !compared.status.success() {
        let (out, err) = (String::from_utf8_lossy(&compared.stdout), String::from_utf8_lossy(&compared.stderr));
        return Err(format!("{file} differs from the source: {out}{err}"));
    }
    let facts = format!("SELECT archive.members || ' members, base ' || (base_run_id IS NOT NULL) {newest}");
    lines(home, &[&facts])
}

/// Reads all archives of `docs` by their own trailers, and describes them and their segments.
pub fn compacted(home: &Path) -> Result<String, String> {
    for file in complete(home) {
        let path = home.join("backups").join(&file);
        check_by_trailer(&path, 1, &CancelToken::new()).map_err(|error| format!("{file}: {error}"))?;
    }
    let rows = lines(
        home,
        &[
            "SELECT state || ' ' || file_name || ' ' || health FROM archive JOIN archive_health USING (run_id) \
             ORDER BY file_name",
            "SELECT state || ' ' || size FROM stored_file WHERE segment_name IS NOT NULL ORDER BY size",
        ],
    )?;
    let names = fs::read_dir(home.join("backups/docs")).into_iter().flatten().flatten();
    let segments = names.filter(|entry| entry.file_name().to_string_lossy().ends_with(".segment")).count();
    Ok(format!("{rows}\n{segments} segments"))
}

/// Checks that `--after` was executed whenever `--before` was started, that no two commands were alive at once, and
/// that neither a duty nor a command is left.
pub fn undone(home: &Path) -> Result<String, String> {
    let text = fs::read_to_string(home.join("commands")).map_err(|e| format!("commands: {e}"))?;
    if text.contains("two") {
        return Err(format!("two commands were alive at once: {text}"));
    }
    // Behind each `--before` there is an `--after` in front of the next one.
    let around = text.lines().filter(|line| line.starts_with("before ") || line.starts_with("after "));
    let mut begun: Option<&str> = None;
    for line in around {
        if let Some(run) = line.strip_prefix("before ")
            && let Some(earlier) = begun.replace(run)
        {
            return Err(format!("--before of run {run} was started before --after of run {earlier}: {text}"));
        }
        if line.starts_with("after ") {
            begun = None;
        }
    }
    if let Some(run) = begun {
        return Err(format!("--after of run {run} was not executed: {text}"));
    }
    let open = lines_of_open_duties(home)?;
    let files = fs::read_dir(home.join("backup.db.workers")).into_iter().flatten().flatten();
    let left: Vec<_> =
        files.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().contains("hook")).collect();
    if !open.is_empty() || !left.is_empty() {
        return Err(format!("left: duties {open}, files {left:?}"));
    }
    Ok(String::new())
}

fn lines_of_open_duties(home: &Path) -> Result<String, String> {
    lines(home, &["SELECT run_id || ' ' || coalesce(error, '') FROM duty WHERE state <> 'settled'"])
}

/// Returns the file names of the complete archives.
pub fn complete(home: &Path) -> Vec<String> {
    let Ok(connection) = open(&home.join("backup.db")) else { return Vec::new() };
    column(&connection, "SELECT file_name FROM archive WHERE state = 'complete'")
}

/// Returns whether a deletion of an archive or a segment is still pending: one that could not be synced is finished by
/// the next run.
pub fn has_pending_deletion(home: &Path) -> bool {
    let pending = "SELECT run_id FROM archive WHERE state = 'deleting' \
                   UNION ALL SELECT id FROM stored_file WHERE state = 'deleting'";
    open(&home.join("backup.db")).is_ok_and(|connection| !column(&connection, pending).is_empty())
}

/// Describes everything that a rescan rebuilds. The order of the schedules is left out, since archives do not store it.
pub fn catalog(home: &Path) -> Result<String, String> {
    let of_file = "JOIN archive_file ON archive_file.id = archive_file_id \
                   JOIN archive_file_health USING (archive_file_id)";
    let of_chunk = format!("FROM archive JOIN {} AS chunk USING (archive_file_id)", catalog::chunks("main"));
    let members = catalog::members("main");
    lines(
        home,
        &[
            &format!("{SCHEDULE} ORDER BY name"),
            &format!(
                "SELECT file_name || ' ' || run_id || ' ' || archive.state || ' ' || run.state || ' ' || trigger || \
                 ' ' || health || ' ' || size || ' ' || hex(digest) || ' ' || incomplete || ' ' || archive.members || \
                 ' ' || archive.files || ' ' || archive.content_bytes || ' ' || suspect || ' ' || created_at_ms \
                 FROM archive {of_file} JOIN run ON run.id = run_id ORDER BY file_name"
            ),
            &format!(
                "SELECT file_name || ' ' || sequence || ' ' || stored_offset || ' ' || stored_length || ' ' || \
                 hex(stored_digest) || ' ' || content_length || ' ' || hex(content_digest) {of_chunk} \
                 ORDER BY file_name, sequence"
            ),
            &format!(
                "SELECT file_name || ' ' || sequence || ' ' || ordinal || ' ' || hex(path) || ' ' || kind || ' ' || \
                 member.size || ' ' || mode || ' ' || uid || ' ' || modified_s || ' ' || \
                 coalesce(hex(content_digest), '') || ' ' || content_offset FROM (SELECT file_name, sequence, chunk_id \
                 {of_chunk}) JOIN {members} AS member USING (chunk_id) ORDER BY file_name, sequence, ordinal"
            ),
            "SELECT DISTINCT hex(path) FROM member ORDER BY path",
        ],
    )
}

/// Compares the restored tree with the source, and describes the rest of the home.
pub fn restored(home: &Path) -> Result<String, String> {
    let (source, restored) = (tree::snapshot(&home.join("docs")), home.join(RESTORED));
    if !restored.is_dir() {
        return Err("nothing was restored".to_owned());
    }
    let mut restored = tree::snapshot(&restored);
    restored.retain(|path, _| !path.as_os_str().is_empty());
    let below = |path: &Path| path.strip_prefix("docs").unwrap_or(path).to_owned();
    restored.values_mut().for_each(|found| found.first_name = below(&found.first_name));
    let restored = restored.into_iter().map(|(path, found)| (below(&path), found)).collect();
    tree::compare(&source, &restored, "restored")?;
    rest(home)
}

/// Describes everything in a home except its logs, its database and the restored tree.
fn rest(home: &Path) -> Result<String, String> {
    let mut seen = tree::snapshot(home);
    seen.retain(|path, _| {
        let first = path.iter().next().unwrap_or_default().to_string_lossy();
        !(first.is_empty() || first == "logs" || first.starts_with("backup.db") || first == RESTORED_FIRST)
    });
    Ok(seen.iter().map(|(path, seen)| format!("{} {:?}\n", path.display(), seen.content)).collect())
}

const RESTORED_FIRST: &str = "restored";

/// Compares the rows that the old schema had room for with those of the old database and of its copy, and describes
/// them with the new schema.
pub fn migrated(home: &Path) -> Result<String, String> {
    let (old, new) = (open(&home.join(OLD))?, open(&home.join("backup.db"))?);
    let expected = rows(&old, &old);
    if rows(&old, &new) != expected {
        return Err(format!("the rows differ:\n{}\nnot\n{expected}", rows(&old, &new)));
    }
    let version = column(&new, "SELECT user_version || '' FROM pragma_user_version").join("");
    let copy = open(&home.join(format!("backup.db.before-schema-{version}")))?;
    if rows(&old, &copy) != expected || column(&copy, "PRAGMA quick_check") != ["ok"] {
        return Err("the copy made before the migration differs from the database".to_owned());
    }
    let schema = column(&new, "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").join("\n");
    Ok(format!("schema {version}\n{schema}\n{expected}"))
}

/// Returns the rows of `of`, with the tables and columns that `old` has, except those that a migration sets or drops.
fn rows(old: &Connection, of: &Connection) -> String {
    let mut text = String::new();
    let version =
        |of: &Connection| -> usize { of.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a version") };
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
                  AND name NOT LIKE 'refinery%' ORDER BY name";
    for table in column(old, tables) {
        let columns = column(
            old,
            &format!(
                "SELECT 'quote(' || name || ')' FROM pragma_table_info('{table}') \
                 WHERE name NOT IN ('proved_at_ms', 'changed_while_read')"
            ),
        );
        let is_old = version(of) == version(old);
        let source = if is_old { table.clone() } else { older_schema::rows_of(&table, "main", version(old)) };
        let mut rows = column(of, &format!("SELECT {} FROM {source}", columns.join(" || ',' || ")));
        rows.sort();
        text += &format!("{table}\n{}\n", rows.join("\n"));
    }
    text
}

/// Returns messages about names in a home that only a process leaves that crashed, or failed without clean-up.
pub fn leftovers(home: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let mut folders = vec![home.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else if [".part", "-journal", ".put-back"].iter().any(|end| name.ends_with(end))
                && !name.contains(".aside-")
            {
                left.push(format!("temporary file left: {}", entry.path().display()));
            } else if folder == home.join("backups") && !entry.path().exists() {
                left.push(format!("dangling link: {}", entry.path().display()));
            }
        }
    }
    left
}

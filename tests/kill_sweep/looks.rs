//! What must be as after an undisturbed course, put into words, and what must not be there at all.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::homes::{OLD, RESTORED};
use crate::prove::promises::column;
use crate::tree;

/// Says how a home looks after a course, in words that do not depend on the time of day, or what is wrong with it.
pub type Look = fn(&Path) -> Result<String, String>;

fn open(path: &Path) -> Result<Connection, String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    Connection::open_with_flags(path, flags).map_err(|e| format!("{}: {e}", path.display()))
}

fn lines(home: &Path, questions: &[&str]) -> Result<String, String> {
    let connection = open(&home.join("backup.db"))?;
    let lines: Vec<String> = questions.iter().flat_map(|question| column(&connection, question)).collect();
    Ok(lines.join("\n"))
}

/// The promises alone are enough.
pub fn nothing(_: &Path) -> Result<String, String> {
    Ok(String::new())
}

/// A schedule in words.
const SCHEDULE: &str = "SELECT name || ' ' || CAST(source AS TEXT) || ' ' || coalesce(cadence, '') || ' ' || \
                        compression || ' ' || retention || ' ' || enabled FROM schedule";

/// The schedules, in the order of `list`.
pub fn schedules(home: &Path) -> Result<String, String> {
    lines(home, &[&format!("{SCHEDULE} ORDER BY position")])
}

/// The archives that count; the next run may still have to remove others.
pub fn counting(home: &Path) -> Result<String, String> {
    Ok(complete(home).join("\n"))
}

/// The archives that are there, in whatever state.
pub fn archives(home: &Path) -> Result<String, String> {
    lines(home, &["SELECT state || ' ' || file_name FROM archive ORDER BY file_name"])
}

/// The names of archives that count, one a line.
pub fn complete(home: &Path) -> Vec<String> {
    let Ok(connection) = open(&home.join("backup.db")) else { return Vec::new() };
    column(&connection, "SELECT file_name FROM archive WHERE state = 'complete'")
}

/// Says whether a file is still to be removed: what could not be synced of that is on record, for the next run.
pub fn owes_deletion(home: &Path) -> bool {
    open(&home.join("backup.db"))
        .is_ok_and(|connection| !column(&connection, "SELECT run_id FROM archive WHERE state = 'deleting'").is_empty())
}

/// All that a rescan makes. In which order schedules are listed, no archive says.
pub fn catalog(home: &Path) -> Result<String, String> {
    let of_file = "JOIN archive_file ON archive_file.id = archive_file_id";
    let of_chunk = "FROM archive JOIN archive_chunk USING (archive_file_id) JOIN chunk ON chunk.id = chunk_id";
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
                 {of_chunk}) JOIN member USING (chunk_id) ORDER BY file_name, sequence, ordinal"
            ),
            "SELECT hex(path) FROM path ORDER BY path",
        ],
    )
}

/// The tree that was restored, which must be the source's, and nothing beside it.
pub fn restored(home: &Path) -> Result<String, String> {
    let (source, back) = (tree::look(&home.join("docs")), home.join(RESTORED));
    if !back.is_dir() {
        return Err("nothing was restored".to_owned());
    }
    let mut back = tree::look(&back);
    back.retain(|path, _| !path.as_os_str().is_empty());
    for (path, seen) in &source {
        let name = Path::new("docs").join(path);
        let Some(mut found) = back.remove(&name) else { return Err(format!("{} is missing", path.display())) };
        found.first_name = found.first_name.strip_prefix("docs").unwrap_or(&found.first_name).to_owned();
        if found != *seen {
            return Err(format!("{} is not as it was: {found:?}, not {seen:?}", path.display()));
        }
    }
    if !back.is_empty() {
        return Err(format!("beside what was restored: {:?}", back.keys()));
    }
    beside(home)
}

/// Everything in a home but its logs, its database and what a restore made.
fn beside(home: &Path) -> Result<String, String> {
    let mut seen = tree::look(home);
    seen.retain(|path, _| {
        let first = path.iter().next().unwrap_or_default().to_string_lossy();
        !(first.is_empty() || first == "logs" || first.starts_with("backup.db") || first == RESTORED_FIRST)
    });
    Ok(seen.iter().map(|(path, seen)| format!("{} {:?}\n", path.display(), seen.content)).collect())
}

const RESTORED_FIRST: &str = "restored";

/// The rows of the database that the old schema knew, which must be those of the old database, and the copy of that.
pub fn migrated(home: &Path) -> Result<String, String> {
    let (old, new) = (open(&home.join(OLD))?, open(&home.join("backup.db"))?);
    let wanted = rows(&old, &old);
    if rows(&old, &new) != wanted {
        return Err(format!("the rows are not as they were:\n{}\nnot\n{wanted}", rows(&old, &new)));
    }
    let version = column(&new, "SELECT user_version || '' FROM pragma_user_version").join("");
    let copy = open(&home.join(format!("backup.db.before-schema-{version}")))?;
    if rows(&old, &copy) != wanted || column(&copy, "PRAGMA quick_check") != ["ok"] {
        return Err("the copy made before is not what the database was".to_owned());
    }
    let missing = column(&new, "SELECT hex(path) FROM member WHERE path NOT IN (SELECT path FROM path)");
    if !missing.is_empty() {
        return Err(format!("paths are missing: {missing:?}"));
    }
    let schema = column(&new, "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").join("\n");
    Ok(format!("schema {version}\n{schema}\n{wanted}"))
}

/// The columns that `old` has, as `of` has them.
fn rows(old: &Connection, of: &Connection) -> String {
    let mut text = String::new();
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
                  AND name NOT LIKE 'refinery%' ORDER BY name";
    for table in column(old, tables) {
        let columns = column(old, &format!("SELECT 'quote(' || name || ')' FROM pragma_table_info('{table}')"));
        let mut rows = column(of, &format!("SELECT {} FROM {table}", columns.join(" || ',' || ")));
        rows.sort();
        text += &format!("{table}\n{}\n", rows.join("\n"));
    }
    text
}

/// Names in a home that only something that died, or failed without clearing up, leaves behind.
pub fn left_over(home: &Path) -> Vec<String> {
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
                left.push(format!("left behind: {}", entry.path().display()));
            } else if folder == home.join("backups") && !entry.path().exists() {
                left.push(format!("leads nowhere: {}", entry.path().display()));
            }
        }
    }
    left
}

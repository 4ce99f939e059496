//! Inspects the query plan of every statement of the store: none may read a whole table that grows with the number of
//! runs, archives or files.
//!
//! Every public function of the store is called once on a small database while SQLite reports the statements that it
//! runs. Plans do not depend on the number of rows, as the program never runs ANALYZE. A statement in the sources that
//! was not run fails the test too.

#[path = "query_plans/calls.rs"]
mod calls;
#[path = "query_plans/hooks.rs"]
mod hooks;
#[path = "query_plans/segments.rs"]
mod segments;
#[path = "query_plans/statements.rs"]
mod statements;
#[path = "support/store.rs"]
mod support;

use rusqlite::Connection;

/// The tables that grow.
const LARGE_TABLES: [&str; 13] = [
    "run",
    "attempt",
    "run_problem",
    "archive",
    "archive_file",
    "stored_file",
    "part",
    "chunk",
    "span",
    "chunk_members",
    "member",
    "command_output",
    "duty",
];

/// Partial indexes with few rows, at most one or a few for each schedule. To read all of such an index is cheap.
const SMALL_INDEXES: [&str; 6] =
    ["run_one_running", "run_one_queued", "run_claimable", "run_base", "stored_file_unfinished", "duty_open"];

/// Statements that may read a whole table, by a part of their text, and why.
const ALLOWED: &[(&str, &str)] = &[
    ("WHERE archive.state = 'complete' AND TRUE ORDER BY", "returns all archives"),
    ("SELECT path FROM member GROUP BY path", "returns all paths"),
    ("SELECT DISTINCT source_root FROM archive", "returns a value of every archive"),
    ("SELECT EXISTS (SELECT 1 FROM archive WHERE state <> 'writing')", "stops at the first row, bar archives in work"),
    ("WHERE TRUE ORDER BY run.id DESC LIMIT :limit", "returns runs from the newest on, up to the limit"),
    ("WHERE instr(',' || :states || ',', ',' || run.state || ',') > 0 ORDER BY run.id DESC", "likewise"),
];

#[test]
fn no_statement_reads_a_whole_table_that_grows() {
    let dir = tempfile::tempdir().unwrap();
    let store = support::open(&dir);
    let seen = statements::recorded(|| calls::call_everything(&store, &dir));
    let connection = Connection::open(store.path()).unwrap();
    let mut scans = Vec::new();
    let mut used = vec![false; ALLOWED.len()];
    for sql in &seen {
        let found = scans_of(&connection, sql);
        match ALLOWED.iter().position(|(part, _)| sql.contains(part)) {
            Some(at) => used[at] |= !found.is_empty(),
            None => scans.extend(found.into_iter().map(|plan| format!("{plan}\n    {sql}"))),
        }
    }
    assert!(scans.is_empty(), "{} statements read whole tables:\n{}", scans.len(), scans.join("\n"));
    let unused: Vec<_> = ALLOWED.iter().zip(used).filter(|(_, used)| !used).map(|((part, _), _)| part).collect();
    assert!(unused.is_empty(), "these exceptions are not needed any more: {unused:?}");
    let missing = statements::not_among(&seen);
    assert!(missing.is_empty(), "statements that no call of this test runs:\n{}", missing.join("\n"));
}

/// Deleting a row searches for the rows that refer to it; plans do not show that.
#[test]
fn every_foreign_key_has_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(support::open(&dir).path()).unwrap();
    let keys: Vec<(String, String)> = connection
        .prepare(
            "SELECT m.name, f.\"from\" FROM sqlite_schema AS m, pragma_foreign_key_list(m.name) AS f \
             WHERE m.type = 'table'",
        )
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(keys.len() >= 10, "{keys:?}");
    for (table, column) in keys {
        let plan = plan_of(&connection, &format!("SELECT 1 FROM \"{table}\" WHERE \"{column}\" = ?1"));
        assert!(plan.iter().all(|step| step.starts_with("SEARCH")), "{table}.{column}: {plan:?}");
    }
}

/// Returns the steps of a plan that read a whole large table or a whole large index of it.
fn scans_of(connection: &Connection, sql: &str) -> Vec<String> {
    let mut steps = plan_of(connection, sql);
    steps.retain(|step| {
        let is_small = SMALL_INDEXES.iter().any(|index| step.ends_with(&format!("INDEX {index}")));
        let name = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
        !is_small && name.is_some_and(|name| LARGE_TABLES.contains(&table_of(sql, name)))
    });
    steps
}

/// Returns the table that a name in a plan refers to; plans name the alias of a table if it has one.
fn table_of<'a>(sql: &'a str, name: &'a str) -> &'a str {
    let words: Vec<&str> = sql.split_whitespace().collect();
    let alias = words.windows(3).find(|words| words[1] == "AS" && words[2].trim_end_matches([',', ')']) == name);
    alias.map_or(name, |words| words[0])
}

fn plan_of(connection: &Connection, sql: &str) -> Vec<String> {
    if sql.starts_with("PRAGMA") || sql.starts_with("VACUUM") {
        return Vec::new();
    }
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect(sql);
    // Parameters without a value are NULL; a plan does not depend on values.
    let mut rows = statement.raw_query();
    let mut steps = Vec::new();
    while let Some(row) = rows.next().expect(sql) {
        steps.push(row.get(3).expect(sql));
    }
    steps
}

//! A database of schema 6 with a history, whose runs may end `skipped` from schema 7 on.

use backup_manager::store::{HistoryFilter, RunState};
use rusqlite::Connection;

use crate::migration::at_schema;

fn make(old: &Connection) {
    old.execute_batch(
        "INSERT INTO schedule (name, position, source, compression, excludes, retention, catch_up, verify, enabled, \
             handled_until_ms, created_at_ms, edited_at_ms) \
         VALUES ('docs', 1, x'61', 'none', '{}', '{\"daily\":7}', 'latest', 1, 1, 0, 0, 0); \
         INSERT INTO run (id, schedule_id, trigger, state, attempt, not_before_ms, queued_at_ms, finished_at_ms, \
             error, superseded_by) \
         WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 300) \
         SELECT n, 1, 'manual', CASE n % 3 WHEN 0 THEN 'succeeded' WHEN 1 THEN 'failed' ELSE 'missed' END, 1, n, n, n, \
             'reason ' || n, nullif(n - 1, 0) FROM numbers; \
         INSERT INTO attempt (run_id, attempt, worker, pid, started_at_ms, ended_at_ms, outcome) \
             SELECT id, 1, 'w', 7, id, id, CASE state WHEN 'missed' THEN 'recovered' ELSE state END FROM run; \
         INSERT INTO run_problem SELECT id, 1, x'70', 'vanished', 'gone' FROM run; \
         INSERT INTO archive_file (id, size, digest, codec, level) VALUES (1, 1, x'00', 'none', 0); \
         INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, source_root, \
             scan_started_at_ms, created_at_ms) VALUES (3, 1, 1, 'complete', 'docs/3', x'2f', 0, 0);",
    )
    .unwrap();
}

/// Returns where the rows of the tables lie that may take long to copy.
fn places(connection: &Connection) -> String {
    let query = "SELECT group_concat(name || rootpage) FROM (SELECT name, rootpage FROM sqlite_schema \
                 WHERE name LIKE 'run%' OR name LIKE '%attempt%' ORDER BY name)";
    connection.query_row(query, [], |row| row.get(0)).unwrap()
}

#[test]
fn the_runs_of_schema_6_stay_where_they_are_and_may_end_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let old = at_schema(&dir.path().join("backup.db"), 6);
    make(&old);
    let before = places(&old);
    drop(old);
    let store = crate::support::open(&dir);
    let connection = Connection::open(store.path()).unwrap();
    assert_eq!(places(&connection), before, "a long history was copied");
    let runs = store.history(&HistoryFilter::default()).unwrap();
    assert_eq!(runs.len(), 300);
    for run in &runs {
        let state = [RunState::Succeeded, RunState::Failed, RunState::Missed][run.id as usize % 3];
        assert_eq!((run.state, run.superseded_by), (state, Some(run.id - 1).filter(|id| *id > 0)));
        assert_eq!(run.error, Some(format!("reason {}", run.id)));
        assert_eq!((store.attempts(run.id).unwrap().len(), store.problems(run.id, 9).unwrap().len()), (1, 1));
    }
    assert_eq!(store.schedules().unwrap()[0].managed_by, None);
    let is_sound = "SELECT (SELECT group_concat(integrity_check) = 'ok' FROM pragma_integrity_check) \
                    AND NOT EXISTS (SELECT 1 FROM pragma_foreign_key_check)";
    assert!(connection.query_row(is_sound, [], |row| row.get::<_, bool>(0)).unwrap());
    for column in ["run SET state", "attempt SET outcome"] {
        connection.execute(&format!("UPDATE {column} = 'skipped'"), []).unwrap();
        let refused = connection.execute(&format!("UPDATE {column} = 'postponed'"), []).unwrap_err();
        assert!(refused.to_string().contains("CHECK"), "{refused}");
    }
    assert!(store.history(&HistoryFilter::default()).unwrap().iter().all(|run| run.state == RunState::Skipped));
    // What refers to runs is still deleted with them.
    connection.execute_batch("DELETE FROM archive; UPDATE run SET superseded_by = NULL; DELETE FROM run").unwrap();
    let left = "SELECT (SELECT count(*) FROM attempt) + (SELECT count(*) FROM run_problem)";
    assert_eq!(connection.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

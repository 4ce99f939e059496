//! A database of schema 5 with rows of every kind of physical file.

use backup_manager::store::{ArchiveState, Health, Store};
use rusqlite::{Connection, OptionalExtension, params};

use crate::migration::at_schema;
use crate::stored_files;
use crate::support::query;

/// An archive file as schema 5 stored it, and the archives that are it.
struct OldFile {
    id: i64,
    size: Option<u64>,
    health: &'static str,
    verified_at: Option<i64>,
    /// Numbers of runs, and the states of their archives.
    archives: &'static [(i64, &'static str)],
    /// Ids of chunks of 100 bytes; each inner slice is a span.
    spans: &'static [&'static [i64]],
}

/// The second file has chunks of the first; the third is one of the old system.
const FILES: [OldFile; 6] = [
    file(3, Some(410), "good", Some(7), &[(1, "complete"), (2, "complete")], &[&[1, 2], &[3], &[5]]),
    file(4, Some(300), "unproven", None, &[(3, "complete")], &[&[3], &[4], &[5]]),
    file(6, Some(5_000), "damaged", Some(9), &[(4, "complete")], &[]),
    file(7, Some(120), "missing", Some(8), &[(5, "deleting")], &[&[6]]),
    file(8, Some(120), "unproven", None, &[(6, "sealed")], &[&[7]]),
    file(9, None, "unproven", None, &[(7, "writing")], &[&[8, 9]]),
];

const fn file(
    id: i64,
    size: Option<u64>,
    health: &'static str,
    verified_at: Option<i64>,
    archives: &'static [(i64, &'static str)],
    spans: &'static [&'static [i64]],
) -> OldFile {
    OldFile { id, size, health, verified_at, archives, spans }
}

fn make(old: &Connection) {
    old.execute_batch(
        "INSERT INTO schedule (name, position, source, compression, excludes, retention, catch_up, verify, enabled, \
             handled_until_ms, created_at_ms, edited_at_ms) \
         VALUES ('docs', 1, x'61', 'none', '[]', '{}', 'latest', 1, 1, 0, 0, 0); \
         INSERT INTO member (path, kind, size, mode, uid, gid, user_name, group_name, modified_s, modified_ns, \
             changed_s, changed_ns, device, inode, entry_bytes, is_reusable) \
         VALUES (x'646f6373', 1, 0, 0, 0, 0, x'', x'', 0, 0, 0, 0, 0, 0, 512, 1);",
    )
    .unwrap();
    for id in 1..=9 {
        old.execute("INSERT INTO chunk VALUES (?1, 100, zeroblob(32), 100, zeroblob(32), 5)", [id]).unwrap();
        old.execute("INSERT INTO chunk_members VALUES (?1, 0, 1, 1)", [id]).unwrap();
    }
    for file in &FILES {
        let digest = Some([0_u8; 32]).filter(|_| !file.spans.is_empty());
        old.execute(
            "INSERT INTO archive_file (id, device, inode, size, digest, codec, level, verified_at_ms, health, \
                 modified_ns) VALUES (?1, 11, 12, ?2, ?3, 'none', 0, ?4, ?5, 13)",
            params![file.id, file.size, digest, file.verified_at, file.health],
        )
        .unwrap();
        for (run, state) in file.archives {
            insert_archive(old, *run, file.id, state);
        }
        let mut sequence = 0;
        for span in file.spans {
            let chunks = span.len() as i64;
            old.execute(
                "INSERT INTO span VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                [file.id, sequence, span[0], chunks, sequence * 100, chunks * 100],
            )
            .unwrap();
            sequence += chunks;
        }
    }
}

fn insert_archive(old: &Connection, run: i64, file: i64, state: &str) {
    let ended = if ["complete", "deleting"].contains(&state) { "'succeeded', NULL, 1" } else { "'failed', NULL, 1" };
    old.execute(
        &format!(
            "INSERT INTO run (id, schedule_id, trigger, not_before_ms, queued_at_ms, state, worker, finished_at_ms) \
             VALUES (?1, 1, 'manual', 0, 0, {ended})"
        ),
        [run],
    )
    .unwrap();
    old.execute(
        "INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, source_root, \
             scan_started_at_ms, created_at_ms, root_name, writer_version, archive_mode, effective_uid, capabilities) \
         VALUES (?1, 1, ?2, ?3, 'docs/' || ?1, x'2f736f75726365', 0, 0, x'736f75726365', 1, 256, 0, '')",
        params![run, file, state],
    )
    .unwrap();
}

/// Returns the first value that a query finds.
fn value<T: rusqlite::types::FromSql>(store: &Store, query: &str) -> T {
    Connection::open(store.path()).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
}

#[test]
fn the_files_of_schema_5_become_stored_files() {
    let dir = tempfile::tempdir().unwrap();
    make(&at_schema(&dir.path().join("backup.db"), 5));
    let store = crate::support::open(&dir);
    for archive in store.archives(None).unwrap() {
        let old = FILES.iter().find(|file| file.archives.iter().any(|(run, _)| *run == archive.run)).unwrap();
        assert_eq!((archive.archive_file, Some(archive.size)), (old.id, old.size));
        assert_eq!((archive.health.as_str(), archive.names), (old.health, old.archives.len() as u64));
        assert_eq!(archive.verified_at.map(|at| at.millis()), old.verified_at);
        let offsets: Vec<u64> = store.archive_chunks(archive.run).map(|chunk| chunk.unwrap().offset).collect();
        let chunks = old.spans.iter().map(|span| span.len() as u64).sum::<u64>();
        assert_eq!(offsets, (0..chunks).map(|n| n * 100).collect::<Vec<_>>());
    }
    let base = store.find_base(&query(1)).unwrap().expect("the base of the last run is still one");
    assert_eq!((base.run, base.chunks, base.parts[0].modified_ns, base.size), (2, 4, Some(13), 410));
    assert_eq!(store.known_inode(3).unwrap(), Some(12));
    let pending = store.pending_archive(6).unwrap().unwrap();
    assert_eq!((pending.state, pending.size), (ArchiveState::Sealed, Some(120)));
    assert_eq!(store.pending_archive(7).unwrap().unwrap().state, ArchiveState::Writing);
    check_rows(&store);
    store.record_health(&store.archive(4).unwrap().unwrap(), Health::Good, None).unwrap();
    assert_eq!(store.archive(4).unwrap().unwrap().health, Health::Good);
    assert_eq!(store.mark_deleting(&[1, 2, 3, 4], &[]).unwrap(), 4);
    for run in 1..=5 {
        store.remove_deleted(run).unwrap();
    }
    // What the two unfinished archives hold is left.
    assert_eq!(value::<i64>(&store, "SELECT group_concat(id) = '8,9' FROM stored_file"), 1);
    assert_eq!(value::<i64>(&store, "SELECT group_concat(id) = '7,8,9' FROM chunk"), 1);
}

fn check_rows(store: &Store) {
    let connection = Connection::open(store.path()).unwrap();
    for (what, query) in stored_files::NEVER {
        let found = connection.query_row(query, [], |row| row.get::<_, i64>(0)).optional().unwrap();
        assert!(found.is_none(), "{what}: {found:?}");
    }
    let states: String = value(store, "SELECT group_concat(state) FROM (SELECT state FROM stored_file ORDER BY id)");
    assert_eq!(states, "kept,kept,kept,kept,writing,writing");
    // The trailers, and all of the archive of the old system.
    let rests: String = value(
        store,
        "SELECT group_concat(stored_file_id || ':' || sequence || ':' || file_offset || '+' || bytes) \
         FROM (SELECT * FROM span WHERE chunks = 0 ORDER BY archive_file_id)",
    );
    assert_eq!(rests, "3:4:400+10,6:0:0+5000,7:1:100+20,8:1:100+20");
}

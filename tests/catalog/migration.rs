//! A database of schema 4 with rows.

use std::sync::atomic::{AtomicBool, Ordering};

use backup_manager::chunk::Chunk;
use backup_manager::member::{MemberKind, MemberPath};
use backup_manager::store::{Access, BaseQuery, Bootstrap, Store};
use refinery::Target;
use rusqlite::{Connection, params};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Makes an empty database of an older schema.
pub fn at_schema(path: &std::path::Path, version: i32) -> Connection {
    let mut old = Connection::open(path).unwrap();
    old.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    embedded::migrations::runner().set_grouped(true).set_target(Target::Version(version)).run(&mut old).unwrap();
    old
}

/// Rows as schema 4 stored them: two archives of one schedule, the first a hard link of a third. In the file of the
/// first, the chunk with the header of a large file has the id after its pieces.
fn make(path: &std::path::Path) {
    let old = at_schema(path, 4);
    old.execute_batch(
        "INSERT INTO schedule (name, position, source, compression, excludes, retention, catch_up, verify, enabled, \
             handled_until_ms, created_at_ms, edited_at_ms, cadence) \
             VALUES ('docs', 1, x'61', 'none', '[]', '{}', 'latest', 1, 1, 0, 0, 0, '{}');",
    )
    .unwrap();
    for run in [1, 2, 3] {
        old.execute(
            "INSERT INTO run (id, schedule_id, trigger, state, not_before_ms, queued_at_ms, finished_at_ms) \
             VALUES (?1, 1, 'manual', 'succeeded', 0, 0, 1)",
            [run],
        )
        .unwrap();
    }
    for file in [1, 2] {
        old.execute(
            "INSERT INTO archive_file (id, size, digest, codec, level, health) \
             VALUES (?1, 1, x'00', 'none', 0, 'good')",
            [file],
        )
        .unwrap();
    }
    for (run, file) in [(1, 1), (2, 2), (3, 1)] {
        old.execute(
            "INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, source_root, \
                 scan_started_at_ms, created_at_ms) VALUES (?1, 1, ?2, 'complete', 'docs/' || ?1, x'2f', 0, 0)",
            [run, file],
        )
        .unwrap();
    }
    insert_catalog(&old);
}

fn insert_catalog(old: &Connection) {
    // Sequences and ids of the chunks, and how many members each has.
    let first = [(0, 1, 0), (1, 4, 1), (2, 2, 0), (3, 3, 0), (4, 5, 600)];
    let second = [(0, 6, 0), (1, 7, 2), (2, 8, 0), (3, 10, 3), (4, 9, 0)];
    for (file, chunks) in [(1, first), (2, second)] {
        for (sequence, id, members) in chunks {
            let length = 512 * members + 100;
            old.execute("INSERT INTO chunk VALUES (?1, ?2, zeroblob(32), ?2, zeroblob(32), 5, NULL)", [id, length])
                .unwrap();
            old.execute(
                "INSERT INTO archive_chunk VALUES (?1, ?2, ?3, ?4)",
                params![file, sequence, id, sequence * 1_000],
            )
            .unwrap();
            for ordinal in 0..members {
                let kind = ["file", "folder", "symlink", "hardlink", "fifo", "char", "block"][ordinal as usize % 7];
                old.execute(
                    "INSERT INTO member VALUES (?1, ?2, ?3, ?4, 5, 420, 1, 2, x'75', x'67', -3, 4, 5, 6, 7, 8, 9, 10, \
                         x'6c', zeroblob(32), zeroblob(32), ?5, 0)",
                    params![id, ordinal, path_of(file, sequence, ordinal), kind, ordinal * 512],
                )
                .unwrap();
            }
        }
    }
}

fn path_of(file: i64, sequence: i64, ordinal: i64) -> Vec<u8> {
    format!("docs/{}/{sequence}-{ordinal:04}", if ordinal == 0 { 0 } else { file }).into_bytes()
}

#[test]
fn the_rows_of_schema_4_are_read_after_the_migration_as_before() {
    let dir = tempfile::tempdir().unwrap();
    make(&dir.path().join("backup.db"));
    let store = crate::support::open(&dir);
    for run in [1, 2, 3] {
        let (file, counts) = if run == 2 { (2, [0, 2, 0, 3, 0]) } else { (1, [0, 1, 0, 0, 600]) };
        let chunks: Vec<Chunk> = store.archive_chunks(run).map(Result::unwrap).collect();
        let seen: Vec<_> = chunks.iter().map(|chunk| (chunk.sequence, chunk.offset, chunk.stored_length)).collect();
        let expected: Vec<_> =
            (0..).zip(counts).map(|(n, members)| (n, n * 1_000, 512 * members as u64 + 100)).collect();
        assert_eq!(seen, expected);
        let (members, next) = store.members(run, 0, 10).unwrap();
        assert_eq!((members.len(), next), (counts.iter().sum(), None));
        let mut at = members.iter();
        for (sequence, count) in (0..).zip(counts) {
            for ordinal in 0..count as i64 {
                let listed = at.next().unwrap();
                assert_eq!((listed.sequence, listed.offset), (sequence, 512 * ordinal as u64));
                let member = &listed.entry.member;
                assert_eq!(member.path.as_bytes(), path_of(file, sequence as i64, ordinal));
                let kinds = [MemberKind::File, MemberKind::Folder, MemberKind::Symlink, MemberKind::HardLink];
                assert!(ordinal % 7 > 3 || member.kind == kinds[ordinal as usize % 7]);
                let last = if ordinal + 1 == count as i64 { 612 } else { 512 };
                assert_eq!((listed.entry.entry_bytes, listed.entry.is_reusable), (last, false));
                assert_eq!((member.modified.seconds, listed.entry.inode), (-3, 8));
            }
        }
        assert!(store.has_chunks(run).unwrap());
    }
    other_readers(&store);
    // None of them is a base, whatever is asked for.
    let query = BaseQuery { source_root: b"/".to_vec(), ..crate::support::query(1) };
    assert!(store.find_base(&query).unwrap().is_none());
    for run in [1, 2, 3] {
        assert_eq!(store.mark_deleting(&[run], &[]).unwrap(), 1);
        store.remove_deleted(run).unwrap();
    }
    assert_eq!(crate::tables_with_rows(&store), Vec::<&str>::new());
}

fn other_readers(store: &Store) {
    let unit: Vec<u64> = store.chunks_of_unit(1, 1).unwrap().iter().map(|chunk| chunk.sequence).collect();
    assert_eq!(unit, [1, 2, 3]);
    assert_eq!(store.member_before(1, 3).unwrap().unwrap(), path_of(1, 1, 0));
    let path = MemberPath::parse(&path_of(1, 1, 0)).unwrap();
    assert_eq!(store.chunks_with_path(1, &path, false).unwrap(), [1]);
    let folder = MemberPath::parse(b"docs/1").unwrap();
    assert_eq!(store.chunks_with_path(1, &folder, true).unwrap(), [4]);
    // Both files have a first member of the chunk 1.
    let runs: Vec<i64> = store.path_occurrences(&path, None).unwrap().iter().map(|found| found.run).collect();
    assert_eq!(runs, [3, 2, 1]);
    let mut paths = 0;
    store.paths(&mut |_| paths += 1).unwrap();
    assert_eq!(paths, 1 + 600 + 1 + 3);
    let found = store.base_chunks(2, 3, 1).unwrap();
    assert_eq!((found.len(), found[0].id, found[0].members.len()), (1, 10, 3));
}

static IS_ANNOUNCED: AtomicBool = AtomicBool::new(false);

#[test]
fn the_migration_of_a_large_database_is_announced() {
    for (bytes, is_announced) in [(1, false), (65 << 20, true)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup.db");
        make(&path);
        let sql = "INSERT INTO setting VALUES ('x', CAST(zeroblob(?1) AS TEXT))";
        Connection::open(&path).unwrap().execute(sql, [bytes]).unwrap();
        let notice = |_: &str| IS_ANNOUNCED.store(true, Ordering::Relaxed);
        let bootstrap = Bootstrap { access: Access::Existing, file_mode: 0o600, folder_mode: 0o700, notice };
        Store::open(&path, &bootstrap).unwrap();
        assert_eq!(IS_ANNOUNCED.load(Ordering::Relaxed), is_announced, "{bytes} bytes");
    }
}

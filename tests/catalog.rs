//! The catalog of chunks and members: random histories of archives that share them, compared with a model; and a
//! database of schema 4 that is migrated.

#[path = "catalog/check.rs"]
mod check;
#[path = "catalog/claims.rs"]
mod claims;
#[path = "catalog/hooks.rs"]
mod hooks;
#[path = "catalog/migration.rs"]
mod migration;
#[path = "catalog/migration_of_5.rs"]
mod migration_of_5;
#[path = "catalog/migration_of_6.rs"]
mod migration_of_6;
#[path = "catalog/model.rs"]
mod model;
#[path = "catalog/moves.rs"]
mod moves;
#[path = "support/random.rs"]
mod random;
#[path = "support/seed.rs"]
mod seed;
#[path = "support/stored_files.rs"]
mod stored_files;
#[path = "support/store.rs"]
mod support;
#[path = "support/transactions.rs"]
mod transactions;

use backup_manager::store::Store;
use rusqlite::Connection;

use model::World;
use random::Random;
use seed::seed;

/// Steps of one history.
const STEPS: u64 = 15;

/// Returns the tables of the catalog that have rows.
fn tables_with_rows(store: &Store) -> Vec<&'static str> {
    let connection = Connection::open(store.path()).unwrap();
    let tables = ["archive", "archive_file", "stored_file", "part", "chunk", "span", "chunk_members", "member"];
    let has_rows = |table: &&str| {
        connection.query_row(&format!("SELECT EXISTS (SELECT 1 FROM {table})"), [], |row| row.get(0)).unwrap()
    };
    tables.into_iter().filter(has_rows).collect()
}

#[test]
fn archives_that_share_rows_keep_their_members_and_leave_none() {
    let seed = seed();
    eprintln!("BACKUP_MANAGER_SEED={seed}");
    for case in 0..3 {
        let mut world = World::new(Random::new(seed.wrapping_add(case)));
        for _ in 0..STEPS {
            world.step();
            world.check();
        }
        world.delete_all();
        assert_eq!(tables_with_rows(&world.store), Vec::<&str>::new());
    }
}

/// Maximum number of rows that one transaction writes (I5).
const MAX_ROWS: i64 = 10_000;

#[test]
fn a_removal_that_ends_within_a_chunk_is_continued() {
    let most = transactions::rows_of_largest(|| {
        let mut world = World::new(Random::new(1));
        for _ in 0..2 {
            world.add_large_archive([7_000, 8_000]);
            world.check();
        }
        world.delete_all();
        assert_eq!(tables_with_rows(&world.store), Vec::<&str>::new());
    });
    assert!((8_000..=MAX_ROWS).contains(&most), "{most}");
}

#[test]
fn no_transaction_writes_more_than_10000_rows() {
    let most = transactions::rows_of_largest(|| {
        let mut world = World::new(Random::new(2));
        world.add_scattered_archives();
        world.check();
        world.delete_all();
        assert_eq!(tables_with_rows(&world.store), Vec::<&str>::new());
    });
    assert!((5_000..=MAX_ROWS).contains(&most), "{most}");
}

//! Restore tests: what they restore of an archive, and what they report.

use std::fs;

use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::error::ErrorKind;
use backup_manager::maintenance::drill::{DrillContext, DrillOutcome, drill};
use backup_manager::store::{Role, ScheduleRow};
use rusqlite::Connection;

use crate::runs::{Recording, run_now};
use crate::trust::{flip, path_of, run_daily};
use crate::world::{DAY, World};

fn drill_with(world: &World, row: &ScheduleRow, sample_bytes: u64) -> DrillOutcome {
    let (observer, cancel) = (Recording::default(), CancelToken::new());
    let context = DrillContext {
        clock: &*world.clock,
        observer: &observer,
        cancel: &cancel,
        threads: 1,
        sample_bytes,
        scratch: None,
    };
    drill(&world.home, &world.store, row, &context).unwrap()
}

/// Bytes that no codec makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn an_interrupted_restore_test_leaves_nothing_behind() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    run_daily(&world, &world.process(Role::Command), &row, 1);
    let cancel = CancelToken::new();
    cancel.cancel();
    let scratch = world.path("scratch");
    let observer = Recording::default();
    let context = DrillContext {
        clock: &*world.clock,
        observer: &observer,
        cancel: &cancel,
        threads: 1,
        sample_bytes: 1 << 30,
        scratch: Some(&scratch),
    };
    let error = drill(&world.home, &world.store, &row, &context).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    assert!(world.store.last_drill(row.id).unwrap().is_none());
}

#[test]
fn a_hard_linked_file_that_changed_between_its_names_is_no_difference_and_a_wrong_link_is_one() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    fs::hard_link(world.path("docs/file.txt"), world.path("docs/second")).unwrap();
    fs::write(world.path("docs/other"), "other").unwrap();
    run_daily(&world, &world.process(Role::Command), &row, 1);
    let connection = Connection::open(world.home.db()).unwrap();
    let change = |sql: &str| assert_eq!(connection.execute(sql, []).unwrap(), 1, "{sql}");
    // As the walk saw it later: the header of the second name has the attributes of that moment.
    change("UPDATE member SET modified_s = modified_s + 5, mode = mode + 1, uid = uid + 1 WHERE kind = 3");
    assert_eq!(drill_with(&world, &row, 1 << 30).differences, Vec::<String>::new());
    change("UPDATE member SET link_target = CAST('docs/other' AS BLOB) WHERE kind = 3");
    assert_eq!(drill_with(&world, &row, 1 << 30).differences, ["docs/second: it is not a hard link to docs/other"]);
}

#[test]
fn of_a_file_that_is_too_large_parts_are_restored_and_damage_in_it_is_found() {
    const SAMPLE: u64 = 5 << 20;
    for compression in ["none", "gzip", "zstd"] {
        let world = World::new();
        let row = world.schedule("docs", "01:00");
        fs::remove_file(world.path("docs/file.txt")).unwrap();
        fs::write(world.path("docs/image"), noise(22 << 20)).unwrap();
        let mut schedule = row.schedule.clone();
        schedule.compression = compression.parse().unwrap();
        world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
        run_now(&world, &world.process(Role::Command), &row);
        let outcome = drill_with(&world, &row, SAMPLE);
        assert_eq!(outcome.differences, Vec::<String>::new(), "{compression}");
        assert_eq!(outcome.extent.files, 1);
        assert!((1 << 20..=SAMPLE).contains(&outcome.extent.content_bytes), "{outcome:?}");
        assert_eq!(outcome.part, Some(("docs/image".to_owned(), outcome.extent.content_bytes)));
        assert!(outcome.describe().contains("of docs/image a part of "), "{}", outcome.describe());
        let recorded = world.store.last_drill(row.id).unwrap().unwrap();
        assert!(recorded.passed && recorded.content_bytes == outcome.extent.content_bytes);

        let archive = world.store.newest_good(row.id).unwrap().unwrap();
        flip(&path_of(&world, &archive), archive.size / 2, 3);
        let found = (0..60).any(|_| {
            world.clock.advance(DAY * 7);
            !drill_with(&world, &row, SAMPLE).differences.is_empty()
        });
        assert!(found, "{compression}: all of it is read in time");
        assert!(!world.store.archive(archive.run).unwrap().unwrap().good, "it was verified and marked");
    }
}

#[test]
fn every_file_is_restored_in_time_although_a_sample_holds_few() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    fs::remove_file(world.path("docs/file.txt")).unwrap();
    for name in 0..7 {
        fs::write(world.path("docs").join(name.to_string()), noise(1 << 20)).unwrap();
    }
    run_now(&world, &world.process(Role::Command), &row);
    let archive = world.store.newest_good(row.id).unwrap().unwrap();
    assert_eq!(drill_with(&world, &row, 3 << 20).differences, Vec::<String>::new());
    // In the last file.
    flip(&path_of(&world, &archive), 13 << 19, 3);
    let found = (0..30).any(|_| {
        world.clock.advance(DAY * 7);
        !drill_with(&world, &row, 3 << 20).differences.is_empty()
    });
    assert!(found, "the sample begins with another file each time");
}

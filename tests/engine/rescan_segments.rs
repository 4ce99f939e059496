//! Rescans of archives in segments of which something is missing, or of which an older database has other ranges.

use std::fs::{self, File};
use std::path::PathBuf;

use backup_manager::archive_folder::{self, CopyingSegment};
use backup_manager::backup::Runner;
use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::liveness::SegmentLock;
use backup_manager::maintenance::rescan::{RescanReport, rescan};
use backup_manager::schedule::Compression;
use backup_manager::store::{Archive, Health, StoredRange};

use crate::repair::{Held, check_all, put_index_back, repair_all, try_to_repair, two_in_segments};
use crate::reuse::{file_of, rows, run, verify};
use crate::runs::Recording;
use crate::segments::{
    CODECS, check_by_shell, contents, delete, flip, folder, health, index_of, tree, with_lost_database, world,
};
use crate::world::World;

fn rescanned(world: &World) -> RescanReport {
    let now = world.clock.now();
    rescan(&world.home, &world.store, 2, &Recording::default(), &CancelToken::new(), now).unwrap()
}

/// Returns the segment that a run has written, with the header and the trailer of its archive.
fn own_segment(world: &World, archive: &Archive) -> PathBuf {
    let index = index_of(world, archive);
    let is_own = |name: &&String| name.contains(&format!("-{}.tar", archive.run));
    folder(world).join(index.segments().iter().find(is_own).unwrap())
}

/// Loses the database while the segment that the second of two archives has for itself is away, and rescans. Returns
/// the archives, where the segment belongs (it is at `away`), and how many rows of members the second one had.
fn with_missing_segment(compression: Compression) -> (World, [Archive; 2], PathBuf, usize) {
    let (world, runner, row) = world(compression);
    let first = run(&world, &runner, &row);
    fs::write(world.path("docs/005"), "changed").unwrap();
    let second = run(&world, &runner, &row);
    let members = rows(&world, &second).len();
    let missing = own_segment(&world, &second);
    fs::rename(&missing, world.path("away")).unwrap();
    let world = with_lost_database(world, runner);
    let report = rescanned(&world);
    assert_eq!((report.added.len(), report.damaged.len(), report.orphans.segments.len()), (2, 1, 0), "{report:?}");
    assert_eq!((health(&world, &first), health(&world, &second)), (Health::Good, Health::Missing));
    (world, [first, second], missing, members)
}

#[test]
fn an_archive_with_a_missing_segment_keeps_the_others_and_is_completed_when_it_is_back() {
    for (compression, is_verified) in CODECS.into_iter().flat_map(|codec| [(codec, false), (codec, true)]) {
        let (world, [first, second], missing, members) = with_missing_segment(compression);
        let before = contents(&world);
        delete(&world, &world.store.archive(first.run).unwrap().unwrap());
        assert_eq!(contents(&world).len(), before.len() - 1, "only the index of the first was removed");
        assert_eq!(rescanned(&world).added.len(), 0);
        assert_eq!(health(&world, &second), Health::Missing);
        fs::rename(world.path("away"), &missing).unwrap();
        if is_verified {
            let found = world.store.archive(second.run).unwrap().unwrap();
            assert_eq!(verify(&world, &found), Health::Good, "{compression}");
            let found = world.store.archive(second.run).unwrap().unwrap();
            assert_eq!((found.health, found.digest.as_ref()), (Health::Good, second.digest.as_ref()));
        }
        assert_eq!(rescanned(&world).added.len(), 1);
        let found = world.store.archive(second.run).unwrap().unwrap();
        assert_eq!((found.health, rows(&world, &found).len()), (Health::Good, members));
        let counts = world.store.run(second.run).unwrap().counts;
        assert_eq!((counts.extent, counts.archive_bytes), (second.extent, second.size));
        assert_eq!(verify(&world, &found), Health::Good);
        delete(&world, &found);
        assert!(contents(&world).is_empty());
    }
}

/// An archive of which a rescan added only the ranges keeps its row while another one adds its chunks.
#[test]
fn a_rescan_that_ends_while_it_completes_an_archive_loses_nothing_of_it() {
    let (world, [_, second], missing, members) = with_missing_segment(Compression::None);
    assert!(world.store.set_pinned(second.run, true).unwrap());
    fs::rename(world.path("away"), &missing).unwrap();
    let database = rusqlite::Connection::open(world.home.db()).unwrap();
    for table in ["chunk", "chunk_members", "span"] {
        let stop = format!("CREATE TRIGGER stop BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'stop'); END");
        database.execute_batch(&stop).unwrap();
        let now = world.clock.now();
        let ended = rescan(&world.home, &world.store, 2, &Recording::default(), &CancelToken::new(), now);
        assert!(ended.is_err(), "{table}: {ended:?}");
        database.execute_batch("DROP TRIGGER stop").unwrap();
        let found = world.store.archive(second.run).unwrap().expect("it stays visible");
        assert!(found.pinned && !world.store.has_chunks(found.run).unwrap(), "{table}");
    }
    assert_eq!(rescanned(&world).added.len(), 1);
    let found = world.store.archive(second.run).unwrap().unwrap();
    assert_eq!((found.pinned, rows(&world, &found).len()), (true, members));
    let left: i64 = database.query_row("SELECT count(*) FROM archive", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 2);
    assert_eq!(verify(&world, &found), Health::Good);
}

#[test]
fn a_short_segment_damages_what_it_is_too_short_for() {
    for compression in CODECS {
        let (world, runner, row) = world(compression);
        let first = run(&world, &runner, &row);
        fs::write(world.path("docs/005"), "changed").unwrap();
        let second = run(&world, &runner, &row);
        let short = own_segment(&world, &second);
        let written = fs::read(&short).unwrap();
        fs::remove_file(&short).unwrap();
        fs::write(&short, &written[..written.len() / 2]).unwrap();
        let world = with_lost_database(world, runner);
        let report = rescanned(&world);
        assert_eq!((report.added.len(), report.damaged.len()), (2, 1), "{report:?}");
        assert_eq!((health(&world, &first), health(&world, &second)), (Health::Good, Health::Damaged));
        fs::remove_file(&short).unwrap();
        fs::write(&short, &written).unwrap();
        let found = world.store.archive(second.run).unwrap().unwrap();
        assert_eq!(verify(&world, &found), Health::Good, "{compression}");
        assert_eq!((health(&world, &first), health(&world, &second)), (Health::Good, Health::Good));
    }
}

/// Moves all of the first segment to a new one, as a compaction does.
fn move_first_segment(world: &World, first: &Archive, newest: &Archive) {
    let now = world.clock.now();
    let name = format!("docs/{}", index_of(world, first).segments()[0]);
    let parts = world.store.parts(newest.archive_file).unwrap();
    let old = parts.iter().find(|part| part.segment_name.as_ref() == Some(&name)).unwrap().id;
    let source = File::open(world.home.backups().join(&name)).unwrap();
    let lock = SegmentLock::try_to_change(&world.home, "docs").unwrap();
    let mut copy = CopyingSegment::create(&world.home, &world.store, newest, &file_of(world, newest), now).unwrap();
    for chunk in world.store.chunks_in(old).unwrap() {
        let range = StoredRange { stored_file: old, offset: chunk.offset, bytes: chunk.length };
        assert!(copy.copy(&source, chunk.offset, range, &|digest| *digest == chunk.digest).unwrap());
    }
    for trailer in world.store.trailers_in(old).unwrap() {
        let range = StoredRange { stored_file: old, offset: trailer.offset, bytes: trailer.bytes };
        assert!(copy.copy(&source, trailer.offset, range, &|_| true).unwrap());
    }
    let copied = copy.finish().unwrap();
    world.store.move_spans(newest.schedule_id, copied.row, &copied.copied, now).unwrap();
    let runs = world.store.archives_moved_from(old).unwrap();
    for run in &runs {
        let archive = world.store.archive(*run).unwrap().unwrap();
        assert!(archive_folder::replace_index(&world.home, &world.store, &archive).unwrap());
    }
    assert!(runs.contains(&first.run));
    world.store.remove_moved_parts(old, &runs).unwrap();
    drop(lock);
    archive_folder::finish_deletions(&world.home, &world.store).unwrap();
    assert!(!world.home.backups().join(&name).exists());
}

/// Puts `older.db` back.
fn with_older_database(world: World, runner: Runner) -> World {
    let (dir, lost) = (world.dir, world.store);
    drop((runner, lost));
    for end in ["-wal", "-shm"] {
        fs::remove_file(dir.path().join(format!("backup.db{end}"))).ok();
    }
    fs::rename(dir.path().join("older.db"), dir.path().join("backup.db")).unwrap();
    World::within(dir)
}

#[test]
fn an_older_database_follows_the_indexes_on_disk() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let mut archives = Vec::new();
    for day in 0..3 {
        fs::write(world.path("docs/005"), format!("day {day}")).unwrap();
        archives.push((run(&world, &runner, &row), tree(&world.path("docs"))));
    }
    world.store.copy_into(&world.path("older.db")).unwrap();
    move_first_segment(&world, &archives[0].0, &archives[2].0);
    let files = contents(&world);
    let world = with_older_database(world, runner);
    assert!(archive_folder::find_orphans(&world.home, &world.store).unwrap().segments.is_empty());
    delete(&world, &archives[0].0);
    assert_eq!(contents(&world).len(), files.len() - 1, "only an index was removed");
    let error = || archive_folder::find_unknown_archives(&world.home, &world.store).unwrap().error(&world.home);
    assert!(error().is_some_and(|error| error.to_string().contains("lists other bytes than the database has")));
    for (archive, _) in &archives[1..] {
        assert_eq!(verify(&world, archive), Health::Unverified);
        assert_eq!(health(&world, archive), Health::Unverified, "what is said and what is recorded agree");
    }
    let report = rescanned(&world);
    assert_eq!((report.added.len(), report.damaged.len(), report.orphans.segments.len()), (0, 0, 0), "{report:?}");
    assert!(!report.updated.is_empty() && error().is_none(), "{report:?}");
    for (archive, _) in &archives[1..] {
        assert_eq!(health(&world, archive), Health::Good);
    }
    assert!(rescanned(&world).updated.is_empty());
    for (archive, expected) in &archives[1..] {
        assert_eq!(verify(&world, archive), Health::Good);
        assert_eq!(health(&world, archive), Health::Good);
        check_by_shell(&world, archive, expected);
        let found = world.store.archive(archive.run).unwrap().unwrap();
        assert_eq!(archive_folder::expected_index(&world.store, &found).unwrap(), index_of(&world, archive));
    }
    for (archive, _) in &archives[1..] {
        delete(&world, archive);
    }
    assert!(contents(&world).is_empty());
}

#[test]
fn an_older_index_that_was_put_back_is_replaced_and_its_archive_is_kept() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let first = run(&world, &runner, &row);
    fs::write(world.path("docs/005"), "changed").unwrap();
    let second = (run(&world, &runner, &row), tree(&world.path("docs")));
    let older = fs::read(file_of(&world, &second.0)).unwrap();
    move_first_segment(&world, &first, &second.0);
    delete(&world, &first);
    fs::remove_file(file_of(&world, &second.0)).unwrap();
    fs::write(file_of(&world, &second.0), older).unwrap();
    let report = rescanned(&world);
    assert_eq!((report.updated.len(), report.damaged.len()), (1, 0), "{report:?}");
    archive_folder::finish_deletions(&world.home, &world.store).unwrap();
    check_all(&world, &[second]);
}

#[test]
fn a_rescan_after_a_killed_repair_keeps_what_was_repaired() {
    for compression in CODECS {
        let (world, runner, row, archives) = two_in_segments(compression);
        let damaged = damage_first_segment(&world, &archives);
        let third = run(&world, &runner, &row);
        let old: Vec<_> = archives.iter().map(|(archive, _)| fs::read(file_of(&world, archive)).unwrap()).collect();
        repair_all(&world, false);
        archives.iter().zip(&old).for_each(|((archive, _), old)| put_index_back(&world, archive, old));
        delete(&world, &third);
        let report = rescanned(&world);
        assert_eq!((report.updated.len(), report.damaged.len()), (2, 0), "{report:?}");
        archive_folder::finish_deletions(&world.home, &world.store).unwrap();
        assert!(damaged.exists(), "the rest of it is used");
        check_all(&world, &archives);
    }
}

/// Flips a byte that both archives have, and verifies them; returns the segment.
fn damage_first_segment(world: &World, archives: &[Held]) -> PathBuf {
    let segment = folder(world).join(&index_of(world, &archives[0].0).segments()[0]);
    flip(&segment, fs::metadata(&segment).unwrap().len() / 2);
    for (archive, _) in archives {
        assert_eq!(verify(world, archive), Health::Damaged);
    }
    segment
}

#[test]
fn what_is_right_in_neither_place_is_named_and_left() {
    let (world, runner, row, archives) = two_in_segments(Compression::Zstd(3));
    damage_first_segment(&world, &archives);
    let third = run(&world, &runner, &row);
    let old: Vec<_> = archives.iter().map(|(archive, _)| fs::read(file_of(&world, archive)).unwrap()).collect();
    let before = contents(&world);
    repair_all(&world, false);
    let now = contents(&world);
    let new = now.keys().find(|name| !before.contains_key(*name)).unwrap();
    flip(&folder(&world).join(new), 3);
    archives.iter().zip(&old).for_each(|((archive, _), old)| put_index_back(&world, archive, old));
    let report = rescanned(&world);
    assert_eq!((report.updated.len(), report.damaged.len()), (0, 2), "{report:?}");
    assert!(report.damaged[0].1.contains("neither where"), "{report:?}");
    for ((archive, _), old) in archives.iter().zip(old) {
        assert!(fs::read(file_of(&world, archive)).unwrap() == old);
    }
    assert_eq!(verify(&world, &third), Health::Good);
}

#[test]
fn an_older_database_repairs_nothing_and_follows_what_was_repaired() {
    for compression in CODECS {
        let (world, runner, row, archives) = two_in_segments(compression);
        damage_first_segment(&world, &archives);
        world.store.copy_into(&world.path("older.db")).unwrap();
        let third = run(&world, &runner, &row);
        repair_all(&world, false);
        delete(&world, &third);
        check_all(&world, &archives);
        let files = contents(&world);
        let world = with_older_database(world, runner);
        let refused = try_to_repair(&world, false).unwrap_err();
        assert!(refused.to_string().contains("older copy"), "{refused}");
        assert!(contents(&world) == files);
        assert!(archive_folder::find_orphans(&world.home, &world.store).unwrap().segments.is_empty());
        let report = rescanned(&world);
        // What is moved for one archive is moved for the other, too.
        assert_eq!((report.updated.len(), report.damaged.len()), (1, 0), "{compression}: {report:?}");
        assert!(contents(&world) == files);
        archive_folder::finish_deletions(&world.home, &world.store).unwrap();
        check_all(&world, &archives);
    }
}

//! Archives that are hard links of one file, and whose names become those of different files.

use std::fs;

use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::maintenance::prune::{PruneContext, PrunePlan};
use backup_manager::maintenance::rescan::rescan;
use backup_manager::maintenance::shared_files::separate_files;
use backup_manager::schedule::Retention;
use backup_manager::store::{Archive, Health};

use crate::reuse::{damage, file_of, rows, run, verify, world};
use crate::runs::{Recording, recover_all};
use crate::world::World;

/// Makes the name of an archive that of a copy of its file, with its mtime.
fn copy_in_place(world: &World, archive: &Archive) {
    let path = file_of(world, archive);
    let copy = path.with_extension("copy");
    fs::copy(&path, &copy).unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::File::open(&copy).unwrap().set_modified(modified).unwrap();
    fs::rename(&copy, &path).unwrap();
}

fn archive(world: &World, run: i64) -> Archive {
    world.store.archive(run).unwrap().expect("an archive")
}

#[test]
fn a_missing_name_of_a_file_changes_nothing_of_its_other_names() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let (second, third) = (run(&world, &runner, &row), run(&world, &runner, &row));
    let members = rows(&world, &third);
    fs::remove_file(file_of(&world, &first)).unwrap();
    let (cancel, observer) = (CancelToken::new(), Recording::default());
    let report = rescan(&world.home, &world.store, 1, &observer, &cancel, world.clock.now()).unwrap();
    assert_eq!(report.missing, std::slice::from_ref(&first.file_name));
    let health = [&first, &second, &third].map(|known| archive(&world, known.run).health);
    assert_eq!(health, [Health::Missing, Health::Good, Health::Good]);
    assert_eq!(archive(&world, second.run).archive_file, archive(&world, third.run).archive_file);
    assert_eq!((verify(&world, &archive(&world, first.run)), verify(&world, &third)), (Health::Missing, Health::Good));
    assert_eq!(archive(&world, first.run).health, Health::Missing, "verifying the others does not change it");
    assert_eq!(run(&world, &runner, &row).archive_file, third.archive_file, "the newest is still the base");
    // Its members are known, and removing it removes nothing of the others.
    assert_eq!(rows(&world, &first), members);
    assert_eq!(world.store.mark_deleting(&[first.run], &[]).unwrap(), 1);
    recover_all(&runner);
    assert_eq!((rows(&world, &third), verify(&world, &third)), (members, Health::Good));
}

#[test]
fn what_is_found_of_a_file_counts_for_its_other_names_when_that_name_was_removed_meanwhile() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let second = run(&world, &runner, &row);
    assert_eq!(first.archive_file, second.archive_file);
    assert_eq!(world.store.mark_deleting(&[first.run], &[]).unwrap(), 1);
    recover_all(&runner);
    world.store.record_health(&first, Health::Damaged, Some(world.clock.now())).unwrap();
    assert_eq!(archive(&world, second.run).health, Health::Damaged);
}

#[test]
fn names_that_were_copied_as_files_are_verified_one_by_one() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let (second, third) = (run(&world, &runner, &row), run(&world, &runner, &row));
    copy_in_place(&world, &third);
    damage(&world, &third, 500_000, true);
    copy_in_place(&world, &second);
    separate_files(&world.home, &world.store, Some(row.id)).unwrap();
    let [first, second, third] = [first, second, third].map(|known| archive(&world, known.run));
    assert_eq!((first.verified_at.is_some(), second.verified_at, third.verified_at), (true, None, None));
    assert_eq!((verify(&world, &third), verify(&world, &first)), (Health::Damaged, Health::Good));
    assert_eq!(world.store.newest_good(row.id).unwrap().unwrap().run, second.run);
    for known in [&first, &second, &third] {
        assert_eq!(rows(&world, known).len(), 103);
    }
    // Again changes nothing, and names of one file stay together.
    let fourth = run(&world, &runner, &row);
    separate_files(&world.home, &world.store, None).unwrap();
    assert_eq!(archive(&world, fourth.run).archive_file, second.archive_file);
    // If all were copied, none was verified.
    copy_in_place(&world, &fourth);
    copy_in_place(&world, &second);
    separate_files(&world.home, &world.store, None).unwrap();
    assert_eq!([&second, &fourth].map(|known| archive(&world, known.run).verified_at), [None, None]);
}

#[test]
fn pruning_trusts_no_verification_of_another_file() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let second = run(&world, &runner, &row);
    fs::write(world.path("docs/050"), "changed").unwrap();
    let (third, fourth) = (run(&world, &runner, &row), run(&world, &runner, &row));
    assert_eq!((first.archive_file, third.archive_file), (second.archive_file, fourth.archive_file));
    copy_in_place(&world, &fourth);
    damage(&world, &fourth, 500_000, true);
    let mut edited = row.schedule.clone();
    edited.retention = Retention { last: Some(1), ..Retention::EMPTY };
    world.store.edit_schedules(&[(row.id, edited, row.watermark)], world.clock.now()).unwrap();
    let plan = PrunePlan::compute(&world.store, &world.store.schedule(row.id).unwrap()).unwrap();
    assert!(plan.removals().count() >= 2);
    let (cancel, now) = (CancelToken::new(), world.clock.now());
    let context = PruneContext { home: &world.home, store: &world.store, now, threads: 1, cancel: &cancel };
    assert!(plan.apply(&context).unwrap_err().to_string().contains("is damaged"));
    assert_eq!(world.store.archives(None).unwrap().len(), 4, "nothing is removed");
}

#[test]
fn a_run_takes_no_copy_of_its_base_for_the_file_that_was_verified() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let second = run(&world, &runner, &row);
    copy_in_place(&world, &second);
    damage(&world, &second, 500_000, false);
    let third = run(&world, &runner, &row);
    let health = [&first, &second, &third].map(|known| archive(&world, known.run).health);
    assert_eq!(health, [Health::Good, Health::Damaged, Health::Good]);
    assert_eq!(third.archive_file, first.archive_file, "the other name is a base all the same");
    // A copy that nothing shows was not read since: it is read before its bytes count as verified.
    copy_in_place(&world, &third);
    let before = world.clock.now();
    let fourth = run(&world, &runner, &row);
    assert_eq!(fourth.archive_file, archive(&world, third.run).archive_file);
    assert!(fourth.verified_at >= Some(before) && fourth.archive_file != first.archive_file);
}

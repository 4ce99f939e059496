//! The daily tasks of a service, at the times of a clock that the test moves.

use std::fs;
use std::time::Duration;

use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::schedule::Retention;
use backup_manager::store::{Role, RunState, Task, TaskState};

use crate::runs::run_now;
use crate::trust::{flip, keep, path_of, run_daily};
use crate::world::{DAY, HOUR, MINUTE, World};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn maintenance_verifies_every_archive_each_month_and_drills_each_week() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    keep(&world, &row, Retention { all: true, ..Retention::EMPTY });
    let mut service = world.service(false);
    let cancel = CancelToken::new();
    let (mut drills, mut copies, mut max_verified) = (0, 0, 0);
    for day in 0..75 {
        if day == 50 {
            // A copy as versions before wrote them: it makes room for the others.
            fs::write(world.path("backups/.database/backup-20200102T030405Z.db"), "a copy").unwrap();
        }
        for _ in 0..24 {
            world.clock.advance(HOUR);
            service.tick().unwrap();
            if let Some((claim, intent)) = service.claim().unwrap() {
                assert_eq!(service.execute(claim, &intent).unwrap().state, RunState::Succeeded);
            }
            let report = service.run_maintenance(&cancel).unwrap();
            assert!(report.bad.is_empty());
            drills += report.drilled.len();
            copies += usize::from(report.copied);
            max_verified = max_verified.max(report.verified.len());
        }
        for archive in world.store.archives(Some(row.id)).unwrap() {
            let age = world.clock.now().since(archive.verified_at.unwrap());
            assert!(age <= DAY * 30, "day {day}: @{} was read {age:?} ago", archive.run);
        }
    }
    assert!((10..=12).contains(&drills), "{drills} drills in 75 days");
    assert!((74..=79).contains(&copies), "{copies} copies in 75 days");
    assert!(max_verified <= 6, "a share each day, not {max_verified} archives at once");
    assert_eq!(fs::read_dir(world.path("backups/.database")).unwrap().count(), 7);
    let drill = world.store.last_drill(row.id).unwrap().unwrap();
    assert!(drill.passed && drill.files == 1);
}

#[test]
fn maintenance_finds_a_damaged_archive_and_updates_the_stable_link() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 1);
    // Without a change the second archive would be a link of the first.
    fs::write(world.path("docs/file.txt"), "other content of docs").unwrap();
    run_daily(&world, &runner, &row, 1);
    let newest = world.store.newest_good(row.id).unwrap().unwrap();
    flip(&path_of(&world, &newest), newest.size / 2, 0);
    let service = world.service(false);
    let cancel = CancelToken::new();
    let mut found = None;
    for day in 0..32 {
        world.clock.advance(DAY);
        if service.run_maintenance(&cancel).unwrap().bad.contains(&newest.run) {
            found = Some(day);
            break;
        }
    }
    // The restore test of the first day has found it already if verification did not.
    let good = world.store.newest_good(row.id).unwrap().unwrap();
    assert!(found.is_some() || good.run != newest.run);
    assert_eq!(good.run, 1);
    assert!(fs::read_link(world.path("backups/docs.tar")).unwrap().ends_with(&good.file_name));
}

#[test]
fn old_runs_are_removed_from_the_history_unless_they_have_an_archive() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 1);
    fs::rename(world.path("docs"), world.path("away")).unwrap();
    for _ in 0..3 {
        world.clock.advance(DAY);
        assert_eq!(run_now(&world, &runner, &row).state, RunState::Failed);
    }
    world.clock.advance(DAY * 401);
    let service = world.service(false);
    let report = service.run_maintenance(&CancelToken::new()).unwrap();
    assert_eq!(report.forgotten, 2, "the newest is kept");
    let left: Vec<i64> = world.runs().iter().map(|run| run.id).collect();
    assert_eq!(left, [1, 4]);
}

#[test]
fn a_copy_of_the_database_that_failed_is_due_again_and_one_follows_the_first_schedule() {
    let world = World::new();
    let service = world.service(false);
    let cancel = CancelToken::new();
    fs::create_dir_all(world.path("backups")).unwrap();
    fs::write(world.path("backups/.database"), "in the way").unwrap();
    let report = service.run_maintenance(&cancel).unwrap();
    assert!(report.failed == [Task::Copy] && !report.copied);
    world.clock.advance(MINUTE);
    assert_eq!(service.run_maintenance(&cancel).unwrap().failed, [Task::Copy]);
    assert_eq!(world.store.task_state(Task::Copy).unwrap(), TaskState::Failed);
    fs::remove_file(world.path("backups/.database")).unwrap();
    world.clock.advance(MINUTE);
    assert!(service.run_maintenance(&cancel).unwrap().copied);
    world.clock.advance(HOUR);
    assert!(!service.run_maintenance(&cancel).unwrap().copied, "not due");
    world.clock.advance(MINUTE);
    assert!(!service.is_maintenance_due(), "only each hour");
    world.schedule("docs", "01:00");
    world.clock.advance(SECOND);
    assert!(service.is_maintenance_due(), "at once, and not only at the next hourly check");
    assert!(service.run_maintenance(&cancel).unwrap().copied, "the first schedule");
    world.clock.advance(MINUTE);
    assert!(!service.is_maintenance_due(), "once");
    world.schedule("photos", "01:00");
    world.clock.advance(HOUR);
    assert!(!service.run_maintenance(&cancel).unwrap().copied, "a further schedule waits for the next day");
}

#[test]
fn a_first_schedule_does_not_make_maintenance_due_again_and_again() {
    // The clock was ahead when the schedule was created, and was set right since.
    let world = World::new();
    let now = world.clock.now();
    world.clock.set(now.plus(DAY * 365));
    world.schedule("docs", "01:00");
    world.clock.set(now);
    let service = world.service(false);
    let cancel = CancelToken::new();
    assert!(service.run_maintenance(&cancel).unwrap().copied);
    world.clock.advance(SECOND);
    assert!(!service.is_maintenance_due());
    world.clock.advance(HOUR);
    assert!(!service.run_maintenance(&cancel).unwrap().copied, "done for today");

    // The archive folder is gone when the schedule is created.
    let world = World::new();
    let service = world.service(false);
    assert!(service.run_maintenance(&cancel).unwrap().copied);
    world.clock.advance(SECOND);
    world.schedule("docs", "01:00");
    fs::remove_dir_all(world.path("backups")).unwrap();
    fs::write(world.path("backups"), "in the way").unwrap();
    world.clock.advance(SECOND);
    assert!(service.is_maintenance_due());
    assert!(service.run_maintenance(&cancel).is_err());
    world.clock.advance(SECOND);
    assert!(!service.is_maintenance_due(), "it failed just now");
}

#[test]
fn work_that_failed_is_tried_again_after_a_minute_and_then_each_hour_until_it_succeeds() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    run_daily(&world, &world.process(Role::Command), &row, 1);
    let service = world.service(false);
    let cancel = CancelToken::new();
    assert!(service.is_maintenance_due(), "at the start");
    // Neither a copy nor a restore test is possible.
    fs::write(world.path("backups/.database"), "in the way").unwrap();
    fs::write(world.path("backups/.scratch"), "in the way").unwrap();
    assert_eq!(service.run_maintenance(&cancel).unwrap().failed, [Task::Copy, Task::Drill]);
    for interval in [MINUTE, HOUR, HOUR] {
        world.clock.advance(interval - SECOND);
        assert!(!service.is_maintenance_due(), "{interval:?}");
        world.clock.advance(SECOND);
        assert!(service.is_maintenance_due(), "{interval:?}");
        assert_eq!(service.run_maintenance(&cancel).unwrap().failed, [Task::Copy, Task::Drill]);
    }
    fs::remove_file(world.path("backups/.database")).unwrap();
    fs::remove_file(world.path("backups/.scratch")).unwrap();
    world.clock.advance(HOUR);
    let report = service.run_maintenance(&cancel).unwrap();
    assert!(report.copied && report.failed.is_empty());
    assert_eq!(report.drilled, ["docs"]);
    world.clock.advance(HOUR);
    let report = service.run_maintenance(&cancel).unwrap();
    assert!(!report.copied && report.drilled.is_empty(), "done for today");
}

#[test]
fn an_archive_that_could_not_be_read_is_verified_when_it_can_be() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    run_daily(&world, &world.process(Role::Command), &row, 1);
    world.clock.advance(DAY * 29);
    let archive = world.store.newest_good(row.id).unwrap().unwrap();
    let (path, away) = (path_of(&world, &archive), world.path("away"));
    fs::rename(&path, &away).unwrap();
    fs::create_dir(&path).unwrap();
    let service = world.service(false);
    let cancel = CancelToken::new();
    assert!(service.run_maintenance(&cancel).unwrap().failed.contains(&Task::Reverify));
    fs::remove_dir(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    world.clock.advance(MINUTE);
    assert!(service.is_maintenance_due());
    assert_eq!(service.run_maintenance(&cancel).unwrap().verified, [archive.run]);
}

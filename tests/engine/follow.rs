//! The text file that a service follows, through the service: half-written, short, unreadable and restored files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use backup_manager::clock::Clock;
use backup_manager::schedule::{Compression, Excludes, Retention, Schedule};
use backup_manager::service::Service;
use backup_manager::store::{Role, RunState, ScheduleRow, Watermark};
use chrono_tz::Tz;

use crate::runs::run_now;
use crate::world::{DAY, HOUR, World};

const SIX: &str = "/a;09:00;one\n/b;10:00;two\n/c;11:00;three\n/d;12:00;four\n/e;13:00;five\n/f;14:00;six\n";
const SETTLED: Duration = Duration::from_secs(5);

fn names(world: &World) -> Vec<String> {
    world.store.schedules().unwrap().iter().map(|row| row.schedule.name.to_string()).collect()
}

fn error(world: &World) -> String {
    world.store.imported().unwrap().error.unwrap_or_default()
}

/// Ticks, lets the file settle, and ticks again.
fn settle(world: &World, service: &mut Service) {
    service.tick().unwrap();
    world.clock.advance(SETTLED);
    service.tick().unwrap();
}

fn following(world: &World, text: &str) -> (PathBuf, Service) {
    let file = world.path("backup_schedules.txt");
    fs::write(&file, text).unwrap();
    let mut service = world.service_following(file.clone());
    settle(world, &mut service);
    (file, service)
}

#[test]
fn a_text_file_that_is_being_written_is_not_applied() {
    let world = World::new();
    let (file, mut service) = following(&world, "/a;09:00;one\n/b;10:00;two\n");
    assert_eq!(names(&world), ["one", "two"]);
    // An editor truncates the file first and writes it afterwards; a copy onto a full disk takes its time.
    for text in ["", "/a;09:00;one\n", "/a;09:00;one\n/b;10:00;two\n/c;11"] {
        fs::write(&file, text).unwrap();
        let next = service.tick().unwrap().next.expect("a tick soon");
        assert!(next <= world.clock.now().plus(SETTLED));
        world.clock.advance(SETTLED - Duration::from_secs(1));
        service.tick().unwrap();
        assert_eq!(names(&world), ["one", "two"]);
    }
    fs::write(&file, "/a;09:00;one\n/b;10:00;two\n/c;11:00;three\n").unwrap();
    settle(&world, &mut service);
    assert_eq!(names(&world), ["one", "two", "three"]);
    assert_eq!(error(&world), "");
    assert!(world.store.schedule_named("one").unwrap().is_some_and(|row| row.id == 1), "never deleted meanwhile");
}

#[test]
fn a_half_written_file_is_not_applied_at_the_start_of_a_service() {
    let world = World::new();
    let file = world.path("backup_schedules.txt");
    fs::write(&file, "/a;09:00;on").unwrap();
    let mut service = world.service_following(file.clone());
    service.tick().unwrap();
    fs::write(&file, "/a;09:00;one\n").unwrap();
    settle(&world, &mut service);
    assert_eq!(names(&world), ["one"]);
}

#[test]
fn a_schedule_that_left_the_text_file_while_no_service_ran_does_not_run_at_the_next_start() {
    let world = World::new();
    let (file, mut service) = following(&world, "/a;09:00;one\n/b;09:00;two\n");
    world.clock.advance(HOUR * 9);
    assert_eq!(service.tick().unwrap().enqueued, 2, "queued before the stop");
    service.unregister().unwrap();
    drop(service);
    fs::write(&file, "/b;09:00;two\n").unwrap();
    world.clock.advance(DAY);
    let mut service = world.service_following(file);
    assert!(service.claim().unwrap().is_none());
    let tick = service.tick().unwrap();
    assert_eq!((tick.enqueued, tick.next), (0, Some(world.clock.now().plus(SETTLED))));
    assert!(service.claim().unwrap().is_none(), "nothing runs before the file is read");
    world.clock.advance(SETTLED);
    assert_eq!(service.tick().unwrap().enqueued, 1);
    let claimed = service.claim().unwrap().expect("the run of the other schedule").0;
    assert_eq!(world.store.run(claimed.run()).unwrap().schedule_name, "two");
    let states = world.runs().into_iter().map(|run| (run.schedule_name, run.state)).collect::<Vec<_>>();
    assert_eq!(states, [("one".to_owned(), RunState::Cancelled), ("two".to_owned(), RunState::Running)]);
    world.store.end_without_archive(claimed, RunState::Failed, "over", world.clock.now()).unwrap();
}

#[test]
fn a_text_file_that_keeps_changing_or_cannot_be_read_delays_the_first_runs_for_a_while_only() {
    let world = World::new();
    world.schedule("docs", "01:00");
    world.clock.advance(HOUR * 2);
    let file = world.path("backup_schedules.txt");
    let mut service = world.service_following(file.clone());
    let mut ticks = 0;
    while service.tick().unwrap().enqueued == 0 {
        ticks += 1;
        fs::write(&file, format!("# {ticks}\n")).unwrap();
        world.clock.advance(Duration::from_secs(3));
    }
    assert_eq!(ticks, 10, "30 s");
    let broken = World::new();
    broken.schedule("docs", "01:00");
    broken.clock.advance(HOUR * 2);
    let file = broken.path("backup_schedules.txt");
    fs::write(&file, "no line of a schedule\n").unwrap();
    let mut service = broken.service_following(file);
    settle(&broken, &mut service);
    assert!(!error(&broken).is_empty());
    assert!(service.claim().unwrap().is_some(), "an error of the file stops no run");
}

#[test]
fn a_text_file_that_deletes_over_a_third_is_an_error_until_it_is_accepted() {
    let world = World::new();
    let (file, mut service) = following(&world, SIX);
    let all = names(&world);
    assert_eq!(all.len(), 6);
    for short in ["", "# all lines are gone\n", "/a;09:00;one\n/b;10:00;two\n/c;11:00;three\n"] {
        fs::write(&file, short).unwrap();
        settle(&world, &mut service);
        assert_eq!(names(&world), all, "{short:?}");
        assert!(error(&world).contains("import --replace"), "{short:?}: {}", error(&world));
    }
    // Two of six are not over a third.
    fs::write(&file, SIX.split_inclusive('\n').take(4).collect::<String>()).unwrap();
    settle(&world, &mut service);
    assert_eq!(names(&world), all[..4]);
    assert_eq!(error(&world), "");
    // What the error advises: `import --replace` deletes them, and nothing is left to confirm.
    fs::write(&file, "/a;09:00;one\n").unwrap();
    settle(&world, &mut service);
    assert!(error(&world).contains("three"), "{}", error(&world));
    for row in world.store.schedules().unwrap().iter().skip(1) {
        world.store.delete_schedule(row.id, world.clock.now()).unwrap();
    }
    service.tick().unwrap();
    assert_eq!((names(&world), error(&world)), (vec!["one".to_owned()], String::new()));
}

#[test]
fn a_short_text_file_is_an_error_after_a_restart_too() {
    let world = World::new();
    let (file, mut service) = following(&world, SIX);
    service.unregister().unwrap();
    drop(service);
    fs::write(&file, "").unwrap();
    let mut service = world.service_following(file.clone());
    settle(&world, &mut service);
    assert_eq!(names(&world).len(), 6);
    assert!(error(&world).contains("empty"), "{}", error(&world));
    fs::write(&file, SIX).unwrap();
    settle(&world, &mut service);
    assert_eq!((names(&world).len(), error(&world)), (6, String::new()));
}

#[test]
fn a_last_line_cut_inside_its_name_makes_no_schedule() {
    let world = World::new();
    let (file, mut service) = following(&world, SIX);
    let all = names(&world);
    for cut in [&SIX[..SIX.len() - 2], &SIX[..SIX.len() - 1].replace("six", "seven")] {
        fs::write(&file, cut).unwrap();
        settle(&world, &mut service);
        assert_eq!(names(&world), all, "{cut:?}");
        assert!(error(&world).contains("newline"), "{}", error(&world));
    }
    // Nobody finishes it: the editor writes no newline there.
    fs::write(&file, format!("{SIX}docs;07:00;seven")).unwrap();
    settle(&world, &mut service);
    assert_eq!(names(&world), all);
    world.clock.advance(Duration::from_secs(61));
    settle(&world, &mut service);
    assert_eq!((names(&world).len(), error(&world)), (7, String::new()));
    fs::write(&file, SIX).unwrap();
    settle(&world, &mut service);
    assert_eq!((names(&world), error(&world)), (all.clone(), String::new()));
    // The same lines without the last newline are no change.
    fs::write(&file, SIX.trim_end()).unwrap();
    settle(&world, &mut service);
    assert_eq!((names(&world), error(&world)), (all.clone(), String::new()));
    fs::write(&file, SIX.replace("six", "seven")).unwrap();
    settle(&world, &mut service);
    assert_eq!((names(&world).len(), error(&world)), (6, String::new()));
    assert!(names(&world).contains(&"seven".to_owned()));
}

#[test]
fn a_name_that_comes_back_keeps_the_options_it_had() {
    let world = World::new();
    let (file, mut service) = following(&world, SIX);
    let row = world.store.schedule_named("six").unwrap().unwrap();
    let edited = Schedule {
        compression: Compression::Zstd(7),
        excludes: Excludes { globs: vec!["*.iso".to_owned()], ..Excludes::default() },
        retention: Retention { all: true, ..Retention::EMPTY },
        ..row.schedule.clone()
    };
    world.store.edit_schedules(&[(row.id, edited.clone(), row.watermark)], world.clock.now()).unwrap();
    fs::write(&file, SIX.replace("/f;14:00;six\n", "")).unwrap();
    settle(&world, &mut service);
    assert_eq!(names(&world).len(), 5);
    fs::write(&file, SIX.replace("14:00", "15:00")).unwrap();
    settle(&world, &mut service);
    let back: ScheduleRow = world.store.schedule_named("six").unwrap().unwrap();
    assert_eq!(back.schedule, Schedule { cadence: back.schedule.cadence.clone(), ..edited });
    assert_eq!(back.schedule.cadence.unwrap().to_string(), "15:00");
}

#[test]
fn an_unreadable_text_file_is_an_import_error_and_runs_go_on() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let (file, mut service) = following(&world, SIX);
    let mut runs = world.runs().len();
    let blocked = world.path("blocked");
    fs::create_dir(&blocked).unwrap();
    let troubles: [&dyn Fn(); 5] = [
        &|| fs::remove_file(&file).unwrap(),
        &|| fs::create_dir(&file).unwrap(),
        &|| {
            fs::remove_dir(&file).unwrap();
            std::os::unix::fs::symlink(&file, &file).unwrap();
        },
        &|| {
            fs::remove_file(&file).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &file,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o600),
                0,
            )
            .unwrap();
        },
        &|| {
            fs::remove_file(&file).unwrap();
            fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
        },
    ];
    for (index, make_trouble) in troubles.iter().enumerate() {
        make_trouble();
        settle(&world, &mut service);
        assert!(error(&world).contains("backup_schedules.txt"), "{index}: {}", error(&world));
        world.clock.advance(HOUR * 24);
        service.tick().unwrap();
        assert!(world.runs().len() > runs || world.runs().last().unwrap().coalesced > 0, "{index}");
        runs = world.runs().len();
    }
    fs::remove_file(&file).unwrap();
    fs::write(&file, SIX).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    settle(&world, &mut service);
    assert_eq!((names(&world).len(), error(&world)), (7, String::new()));
}

#[test]
fn the_first_prune_of_a_name_that_came_back_waits_for_another_good_run() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    let run = || {
        world.clock.advance(DAY);
        assert_eq!(run_now(&world, &runner, &row).state, RunState::Succeeded);
        world.store.archives(Some(row.id)).unwrap().len()
    };
    assert_eq!([run(), run(), run(), run()], [1, 2, 3, 4]);
    world.store.delete_schedule(row.id, world.clock.now()).unwrap();
    let again = Schedule { retention: Retention { last: Some(4), ..Retention::EMPTY }, ..row.schedule.clone() };
    let watermark = Watermark::starting(&again, Tz::UTC, world.clock.now());
    world.store.create_schedules(&[(again, watermark)], world.clock.now()).unwrap();
    assert_eq!([run(), run(), run()], [5, 4, 4]);
}

//! The settings file that a service follows: bad, cut-off, short and restored files, and the text file beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_manager::clock::Clock;
use backup_manager::service::Service;
use backup_manager::store::{ScheduleRow, Watermark};
use chrono_tz::Tz;

use crate::world::{DAY, HOUR, World};

const SETTLED: Duration = Duration::from_secs(5);

fn entry(name: &str, at: &str) -> String {
    format!("[schedule.{name}]\nsource = \"{name}\"\nat = \"{at}\"\n")
}

fn entries(names: &[&str]) -> String {
    names.iter().map(|name| entry(name, "09:00")).collect()
}

fn row(world: &World, name: &str) -> ScheduleRow {
    world.store.schedule_named(name).unwrap().unwrap()
}

/// The schedules that are not paused.
fn enabled(world: &World) -> Vec<String> {
    let rows = world.store.schedules().unwrap();
    rows.iter().filter(|row| row.schedule.enabled).map(|row| row.schedule.name.to_string()).collect()
}

fn error(world: &World) -> String {
    world.store.config_error().unwrap().unwrap_or_default()
}

/// Ticks, lets the file settle, and ticks again.
fn settle(world: &World, service: &mut Service) {
    service.tick().unwrap();
    world.clock.advance(SETTLED);
    service.tick().unwrap();
}

fn following(world: &World, text: &str) -> (PathBuf, Service) {
    let file = world.path("backup.toml");
    fs::write(&file, text).unwrap();
    let mut service = world.service_with_settings(file.clone(), None);
    settle(world, &mut service);
    (file, service)
}

fn restart(world: &World, service: Service, file: &Path) -> Service {
    let mut service = service;
    service.unregister().unwrap();
    drop(service);
    let mut service = world.service_with_settings(file.to_path_buf(), None);
    settle(world, &mut service);
    service
}

fn set_enabled(world: &World, name: &str, is_enabled: bool) {
    let row = row(world, name);
    let mut schedule = row.schedule.clone();
    schedule.enabled = is_enabled;
    let watermark = Watermark::starting(&schedule, Tz::UTC, world.clock.now());
    world.store.edit_schedules(&[(row.id, schedule, watermark)], world.clock.now()).unwrap();
}

#[test]
fn a_followed_file_is_applied_once_it_rests_and_a_bad_one_changes_nothing() {
    let world = World::new();
    let (file, mut service) = following(&world, &entries(&["one", "two"]));
    assert_eq!(enabled(&world), ["one", "two"]);
    fs::write(&file, entries(&["one", "two", "three"])).unwrap();
    service.tick().unwrap();
    world.clock.advance(SETTLED - Duration::from_secs(1));
    service.tick().unwrap();
    assert_eq!(enabled(&world), ["one", "two"], "it may be written still");
    settle(&world, &mut service);
    assert_eq!(enabled(&world), ["one", "two", "three"]);
    fs::write(&file, entries(&["one", "two", "three"]).replace("09:00", "9 Uhr")).unwrap();
    settle(&world, &mut service);
    assert!(error(&world).contains("line 3") && error(&world).contains("backup.toml"), "{}", error(&world));
    let at = |name| row(&world, name).schedule.cadence.unwrap().to_string();
    assert_eq!(at("one"), "09:00");
    // Runs go on.
    world.clock.advance(DAY);
    assert_eq!(service.tick().unwrap().enqueued, 3);
    fs::write(&file, entries(&["one", "two", "three"]).replacen("09:00", "10:00", 1)).unwrap();
    settle(&world, &mut service);
    assert_eq!((at("one"), at("two"), error(&world)), ("10:00".to_owned(), "09:00".to_owned(), String::new()));
}

#[test]
fn an_entry_that_left_the_file_is_paused_and_comes_back_enabled() {
    let world = World::new();
    let all = ["one", "two", "three", "four"];
    let (file, mut service) = following(&world, &entries(&all));
    fs::write(&file, entries(&all[..3])).unwrap();
    settle(&world, &mut service);
    assert!(error(&world).contains("backup-manager apply"), "the last one may be cut off: {}", error(&world));
    assert_eq!(enabled(&world), all);
    let rest = ["one", "three", "four"];
    fs::write(&file, entries(&rest).trim_end()).unwrap();
    settle(&world, &mut service);
    world.clock.advance(HOUR);
    settle(&world, &mut service);
    assert!(error(&world).contains("newline"), "{}", error(&world));
    assert_eq!(enabled(&world), all);
    fs::write(&file, entries(&rest)).unwrap();
    settle(&world, &mut service);
    assert_eq!((enabled(&world), error(&world)), (rest.iter().map(ToString::to_string).collect(), String::new()));
    assert!(row(&world, "two").managed_by.is_none() && !row(&world, "two").deleted);
    fs::write(&file, entries(&all)).unwrap();
    settle(&world, &mut service);
    let mut back = enabled(&world);
    back.sort();
    assert_eq!(back, ["four", "one", "three", "two"]);
}

#[test]
fn the_first_prune_after_a_change_of_the_file_by_which_less_is_kept_waits() {
    let world = World::new();
    let text = format!("{}keep_monthly = 12\n", entry("one", "09:00"));
    let (file, mut service) = following(&world, &format!("{text}keep_yearly = 10\n"));
    let is_held = || world.store.is_prune_held(row(&world, "one").id).unwrap();
    fs::write(&file, format!("{text}keep_yearly = 11\n")).unwrap();
    settle(&world, &mut service);
    assert!(!is_held(), "more is kept");
    fs::write(&file, text.trim_end()).unwrap();
    settle(&world, &mut service);
    world.clock.advance(HOUR);
    settle(&world, &mut service);
    assert!(error(&world).contains("newline"), "{}", error(&world));
    assert_eq!(row(&world, "one").schedule.retention.to_string(), "monthly 12, yearly 11");
    fs::write(&file, &text).unwrap();
    settle(&world, &mut service);
    assert_eq!(row(&world, "one").schedule.retention.to_string(), "monthly 12");
    assert!(is_held());
}

#[test]
fn a_file_that_lacks_over_a_third_is_an_error_until_it_is_applied_by_command_also_after_a_restart() {
    let world = World::new();
    let all = ["one", "two", "three", "four", "five"];
    let (file, mut service) = following(&world, &entries(&all));
    for short in [String::new(), "# nothing\n".to_owned(), entries(&all[..3])] {
        fs::write(&file, &short).unwrap();
        settle(&world, &mut service);
        assert_eq!(enabled(&world), all, "{short:?}");
        assert!(error(&world).contains("backup-manager apply"), "{short:?}: {}", error(&world));
        service = restart(&world, service, &file);
        assert_eq!(enabled(&world), all, "{short:?}");
        assert!(error(&world).contains("backup-manager apply"), "{short:?}: {}", error(&world));
    }
    fs::write(&file, entries(&all)).unwrap();
    settle(&world, &mut service);
    assert_eq!((enabled(&world).len(), error(&world)), (5, String::new()));
}

#[test]
fn a_last_line_without_an_end_is_applied_after_a_minute_and_is_no_error_if_nothing_changes() {
    let world = World::new();
    let (file, mut service) = following(&world, &format!("{}keep_last = 2\n", entry("one", "09:00")));
    fs::write(&file, format!("{}keep_last = 20", entry("one", "09:00"))).unwrap();
    settle(&world, &mut service);
    assert_eq!(row(&world, "one").schedule.retention.to_string(), "last 2");
    assert!(error(&world).contains("newline"), "{}", error(&world));
    world.clock.advance(Duration::from_secs(61));
    settle(&world, &mut service);
    assert_eq!((row(&world, "one").schedule.retention.to_string().as_str(), error(&world)), ("last 20", String::new()));
    let service = restart(&world, service, &file);
    assert_eq!(error(&world), "");
    drop(service);
}

#[test]
fn a_file_that_cannot_be_read_changes_nothing_and_is_reported() {
    let world = World::new();
    let (file, mut service) = following(&world, &entries(&["one"]));
    let troubles: [&dyn Fn(); 3] = [&|| fs::remove_file(&file).unwrap(), &|| fs::create_dir(&file).unwrap(), &|| {
        fs::remove_dir(&file).unwrap();
        fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    }];
    for (index, make_trouble) in troubles.iter().enumerate() {
        make_trouble();
        settle(&world, &mut service);
        assert!(error(&world).contains("backup.toml"), "{index}: {}", error(&world));
        assert_eq!(enabled(&world), ["one"], "{index}");
    }
    fs::write(&file, entries(&["one"])).unwrap();
    settle(&world, &mut service);
    assert_eq!(error(&world), "");
    service.unregister().unwrap();
    drop(service);
    fs::remove_file(&file).unwrap();
    let mut service = world.service_with_settings(file, None);
    settle(&world, &mut service);
    assert!(error(&world).contains("backup.toml"), "also one that was never there: {}", error(&world));
    service.unregister().unwrap();
    drop(service);
    let _service = world.service(false);
    assert_eq!(error(&world), "", "it is followed no more");
}

#[test]
fn a_pause_by_command_outlives_a_restart_and_one_by_the_file_ends_with_it() {
    let world = World::new();
    let (file, service) = following(&world, &entries(&["one", "two"]));
    set_enabled(&world, "one", false);
    let mut service = restart(&world, service, &file);
    assert_eq!(enabled(&world), ["two"]);
    fs::write(&file, format!("{}{}enabled = false\n", entry("one", "10:00"), entry("two", "09:00"))).unwrap();
    settle(&world, &mut service);
    assert_eq!(enabled(&world), [""; 0], "an edit of its time does not resume it");
    fs::write(&file, entries(&["one", "two"])).unwrap();
    settle(&world, &mut service);
    assert_eq!(enabled(&world), ["two"], "what the file paused it resumes");
    set_enabled(&world, "one", true);
    let _service = restart(&world, service, &file);
    assert_eq!(enabled(&world), ["one", "two"]);
}

#[test]
fn a_restart_with_an_unchanged_file_catches_up_what_was_missed() {
    let world = World::new();
    let (file, mut service) = following(&world, &entries(&["one"]));
    service.unregister().unwrap();
    drop(service);
    world.clock.advance(DAY);
    let mut service = world.service_with_settings(file, None);
    assert_eq!(service.tick().unwrap().enqueued, 0, "nothing runs before the file is read");
    world.clock.advance(SETTLED);
    assert_eq!(service.tick().unwrap().enqueued, 1);
}

#[test]
fn a_name_in_both_files_is_an_error_of_the_one_that_would_change_it() {
    let world = World::new();
    let (text, file) = (world.path("schedules.txt"), world.path("backup.toml"));
    fs::write(&text, "/a;09:00;one\n/b;10:00;two\n").unwrap();
    fs::write(&file, entries(&["two", "three"])).unwrap();
    let mut service = world.service_with_settings(file.clone(), Some(text.clone()));
    settle(&world, &mut service);
    assert_eq!(enabled(&world), ["one", "two"], "nothing of the settings file was applied");
    assert!(error(&world).contains("line 1") && error(&world).contains("two"), "{}", error(&world));
    fs::write(&text, "/a;09:00;one\n").unwrap();
    settle(&world, &mut service);
    service.tick().unwrap();
    assert_eq!(
        (enabled(&world), error(&world)),
        (vec!["one".to_owned(), "two".to_owned(), "three".to_owned()], String::new())
    );
    fs::write(&text, "/a;09:00;one\n/b;11:00;three\n").unwrap();
    settle(&world, &mut service);
    let import_error = world.store.imported().unwrap().error.unwrap_or_default();
    assert!(import_error.contains("three is managed by") && import_error.contains("backup.toml:4"), "{import_error}");
    assert_eq!(row(&world, "three").schedule.cadence.unwrap().to_string(), "09:00");
    world.clock.advance(HOUR);
}

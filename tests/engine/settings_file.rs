//! The settings file: what is read, what is refused, and that a written one is read as the same schedules.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use backup_manager::approval;
use backup_manager::clock::Clock;
use backup_manager::error::ErrorKind;
use backup_manager::import_export::{
    Entry, Present, Removed, SettingsPlan, check_owner, export_toml, parse_settings, schedule_keys,
};
use backup_manager::schedule::{
    Cadence, CatchUp, CommandKind, Compression, Excludes, HookOptions, Hooks, Layout, Retention, Reuse, Schedule,
    ScheduleName, parse_age,
};
use chrono_tz::Tz;
use proptest::prelude::*;

use crate::world::World;

/// One schedule with every key, none of them at its usual value, as far as one schedule can have them.
const EVERY_KEY: &str = r#"
[defaults]
compress = "gzip:9"
keep_last = 5

[schedule.photos]
source = "data/photos"
at = "02:30,14:30"
timezone = "Europe/Paris"
catch_up = "skip"
enabled = false
compress = "zstd:7"
layout = "segmented"
exclude = ["*.tmp", "/cache"]
exclude_file = ["ignored.txt"]
exclude_caches = true
exclude_if_present = [".nobackup"]
one_file_system = true
verify = false
ignore_inode = true
ignore_ctime = false
trust_times = true
keep_last = 1
keep_hourly = 2
keep_daily = 3
keep_weekly = 4
keep_monthly = 5
keep_yearly = 6
keep_within = "36h"
keep_manual = "2w"
before = "echo \"it's\" >>before"
after = "echo after"
on_success = "true"
on_failure = "false"
hook_time_limit = "90m"
hook_caps = true
containers = true
max_downtime = "20m"
stop_label = "photos"

[schedule."Büro 2"]
source_b64 = "L2NhZuk="
cron = "0 */6 * * *"
keep_all = true

[schedule.app]
source_command = "echo dump"
source_name = "app.dump"
source_container = "postgres"
allow_empty = true
at = "1:00"
"#;

fn parse(text: &str) -> Vec<Entry> {
    parse_settings(text.as_bytes(), "backup.toml").unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refusal(text: &[u8]) -> String {
    let error = parse_settings(text, "backup.toml").expect_err(&String::from_utf8_lossy(text));
    assert_eq!(error.kind(), ErrorKind::Usage);
    error.to_string()
}

fn photos() -> Schedule {
    Schedule {
        zone: Some(Tz::Europe__Paris),
        compression: Compression::Zstd(7),
        layout: Layout::Segmented,
        excludes: Excludes {
            globs: vec!["*.tmp".to_owned(), "/cache".to_owned()],
            files: vec!["ignored.txt".to_owned()],
            caches: true,
            if_present: vec![".nobackup".to_owned()],
            one_file_system: true,
        },
        retention: Retention {
            last: Some(1),
            hourly: Some(2),
            daily: Some(3),
            weekly: Some(4),
            monthly: Some(5),
            yearly: Some(6),
            within: Some(parse_age("36h").unwrap()),
            all: false,
            manual: Some(parse_age("14d").unwrap()),
        },
        reuse: Reuse { ignore_inode: true, ignore_ctime: false, trust_times: true },
        catch_up: CatchUp::Skip,
        verify: false,
        enabled: false,
        ..Schedule::new(
            ScheduleName::parse("photos").unwrap(),
            b"data/photos".to_vec(),
            Cadence::parse_daily("02:30,14:30").unwrap(),
        )
    }
}

#[test]
fn every_key_has_the_value_that_the_option_has() {
    let entries = parse(EVERY_KEY);
    let office = Schedule {
        compression: Compression::Gzip(9),
        retention: Retention { all: true, ..Retention::EMPTY },
        ..Schedule::new(
            ScheduleName::parse("Büro 2").unwrap(),
            b"/caf\xe9".to_vec(),
            Cadence::parse_cron("0 */6 * * *").unwrap(),
        )
    };
    let commands = [
        (CommandKind::Before, "echo \"it's\" >>before"),
        (CommandKind::After, "echo after"),
        (CommandKind::OnSuccess, "true"),
        (CommandKind::OnFailure, "false"),
    ];
    let hooks = Hooks {
        commands: commands.map(|(kind, command)| (kind, command.to_owned())).into(),
        options: HookOptions {
            time_limit: Duration::from_secs(5_400),
            keep_capabilities: true,
            containers: true,
            max_downtime: Some(Duration::from_secs(1_200)),
            stop_label: Some("photos".to_owned()),
            ..HookOptions::default()
        },
    };
    let entry = |line, schedule, hooks| Entry { line, schedule, hooks };
    assert_eq!(entries[..2], [entry(6, photos(), hooks), entry(41, office, Hooks::default())]);
    let app = &entries[2];
    assert_eq!((&app.schedule.source[..], app.hooks.source_command()), (&b"app.dump"[..], Some("echo dump")));
    let options = &app.hooks.options;
    assert_eq!((options.allow_empty, options.source_container.as_deref()), (true, Some("postgres")));
    let missing: Vec<_> = schedule_keys().filter(|key| !EVERY_KEY.contains(&format!("\n{key} = "))).collect();
    assert_eq!(missing, [""; 0], "keys that this test leaves out");
}

#[test]
fn what_the_file_does_not_say_has_the_usual_value_and_a_rule_of_a_schedule_replaces_all_of_the_defaults() {
    let usual = parse("[schedule.docs]\nsource = \"docs\"\nat = \"09:00\"\n").remove(0).schedule;
    let cadence = Cadence::parse_daily("09:00").unwrap();
    assert_eq!(usual, Schedule::new(ScheduleName::parse("docs").unwrap(), b"docs".to_vec(), cadence));
    let entries = parse(
        "[defaults]\nat = \"09:00\"\nkeep_daily = 3\nkeep_weekly = 2\n[schedule.b]\nsource = \"b\"\nkeep_last = 1\n\
         cron = \"0 5 * * 1\"\n[schedule.a]\nsource = \"a\"\n",
    );
    let shown: Vec<String> = entries
        .iter()
        .map(|entry| {
            let schedule = &entry.schedule;
            format!("{} {} {}", schedule.name, schedule.cadence.as_ref().unwrap(), schedule.retention)
        })
        .collect();
    assert_eq!(shown, ["b cron 0 5 * * 1 last 1", "a 09:00 daily 3, weekly 2"], "in the order of the file");
}

#[test]
fn everything_that_is_wrong_is_named_with_its_line() {
    let error = refusal(
        b"[default]\n\n[schedule.a]\nsource = \"\"\nexclud = []\nat = \"25:00\"\nkeep_daily = \"7\"\ncompress = 3\n\
          verify = \"no\"\nexclude = \"*.tmp\"\nkeep_within = \"3m\"\n[schedule.7]\nsource = \"x\"\nat = \"1:00\"\n",
    );
    for line in [
        "has 10 errors, and nothing of it was applied",
        "line 1: there is no table \"default\"; did you mean defaults?",
        "line 4: schedule.a.source: the path is empty",
        "line 5: schedule.a.exclud: there is no key \"exclud\"; did you mean exclude?",
        "line 6: schedule.a.at: \"25:00\" is not a time of day",
        "line 7: schedule.a.keep_daily: it takes a whole number",
        "line 8: schedule.a.compress: it takes a text in quotes, and this is a number",
        "line 9: schedule.a.verify: it takes true or false, and this is a text",
        "line 10: schedule.a.exclude: it takes texts in brackets",
        "line 11: schedule.a.keep_within: \"3m\" is not an age",
        "line 12: schedule.7: \"7\" is not a name: it has only digits",
    ] {
        assert!(error.contains(line), "{line} is not in: {error}");
    }
}

/// Texts, with what is said of them. `@` is an entry without an error.
const REFUSED: &[(&str, &str)] = &[
    ("[schedule.a]\nsource = \"a\"\nat = 09:00\n", "line 3: schedule.a.at: it takes a text in quotes"),
    ("[schedule.a]\nsource = a\n", "line 2: "),
    ("@@", "line 4: duplicate key a"),
    ("@at = \"2:00\"\n", "line 4: duplicate key at"),
    ("@cron = \"* * * * *\"\n", "line 4: schedule.a: at and cron exclude each other"),
    ("@source_b64 = \"YQ==\"\n", "line 4: schedule.a: source and source_b64 exclude each other"),
    ("[schedule.a]\nsource_b64 = \"*\"\nat = \"1:00\"\n", "line 2: schedule.a.source_b64: "),
    ("[schedule.a]\nsource = \"a\"\n", "line 1: schedule.a: it has no time"),
    ("[schedule.a]\nat = \"1:00\"\n", "line 1: schedule.a: it has no source"),
    ("schedule = 1\n", "line 1: schedule is not a table"),
    ("[schedule]\na = 1\n", "line 2: schedule.a is not a table"),
    ("[[schedule]]\n", "line 1: schedule is not a table"),
    ("[defaults]\nsource = \"a\"\n", "line 2: defaults.source: each schedule has its own"),
    ("@keep_last = 0\n", "line 1: schedule.a: \"last 0\" keeps nothing"),
    ("@keep_last = -1\n", "line 4: schedule.a.keep_last: it takes a whole number"),
    ("@keep_all = true\nkeep_last = 1\n", "line 1: schedule.a: \"all, last 1\" keeps all"),
    ("@ignore_inode = true\nignore_ctime = true\n", "line 1: schedule.a: inode and ctime"),
    ("@exclude = [\"a\", 1]\n", "line 4: schedule.a.exclude: it takes texts only"),
    ("@exclude = [\"\"]\n", "line 4: schedule.a.exclude: one of its texts is empty"),
    ("@exclude = [\"a{b\"]\n", "line 4: schedule.a.exclude: "),
    ("@exclude_if_present = [\"a/b\"]\n", "line 4: schedule.a.exclude_if_present: \"a/b\""),
    ("@timezone = \"Europe/Pari\"\n", "did you mean Europe/Paris"),
    ("@source_command = \"x\"\n", "line 1: schedule.a: source and source_command exclude each other"),
    ("@source_name = \"x\"\n", "line 1: schedule.a: source_name is that of source_command, which it lacks"),
    (
        "[schedule.a]\nsource_command = \"x\"\nat = \"1:00\"\n",
        "line 1: schedule.a: what source_command prints needs a name",
    ),
    (
        "[schedule.a]\nsource_command = \"x\"\nsource_name = \"a/b\"\nat = \"1:00\"\n",
        "\"a/b\" is not a name for the file",
    ),
    ("@allow_empty = true\n", "line 1: schedule.a: --allow-empty is about"),
    ("@source_container = \"x\"\n", "line 1: schedule.a: --source-container is where"),
    ("@stop_label = \"\"\n", "line 1: schedule.a: --stop-label: the value is empty"),
    ("@max_downtime = 20\n", "line 4: schedule.a.max_downtime: it takes a text"),
    ("@before = 1\n", "line 4: schedule.a.before: it takes a text"),
    ("@hook_time_limit = \"0s\"\n", "line 1: schedule.a: --hook-time-limit"),
    ("[defaults]\nsource_command = \"x\"\n", "line 2: defaults.source_command: each schedule has its own"),
    ("@layout = \"split\"\n", "line 4: schedule.a.layout: "),
    ("@catch_up = \"all\"\n", "line 4: schedule.a.catch_up: "),
];

#[test]
fn a_file_that_is_not_what_it_should_be_is_refused_with_the_line_and_the_reason() {
    for (text, words) in REFUSED {
        let text = text.replace('@', "[schedule.a]\nsource = \"a\"\nat = \"1:00\"\n");
        let error = refusal(text.as_bytes());
        assert!(error.contains(words), "{words} is not in: {error}\n{text}");
    }
    assert!(refusal(b"# \xe9\n").contains("line 1: it is not UTF-8"));
    assert_eq!(parse("\u{feff}# only a comment\r\n"), []);
}

#[test]
fn a_file_cut_anywhere_is_refused_or_has_fewer_lines() {
    let whole = parse(EVERY_KEY);
    for end in 0..EVERY_KEY.len() {
        let Ok(entries) = parse_settings(&EVERY_KEY.as_bytes()[..end], "backup.toml") else { continue };
        assert!(entries.len() <= whole.len());
    }
}

fn excludes() -> impl Strategy<Value = Excludes> {
    let words = || proptest::collection::vec("[a-z*.\"'\\\\ä\n\t]{1,5}x", 0..3);
    (words(), words(), any::<bool>(), words(), any::<bool>()).prop_map(
        |(globs, files, caches, if_present, one_file_system)| Excludes {
            globs,
            files,
            caches,
            if_present,
            one_file_system,
        },
    )
}

fn retention() -> impl Strategy<Value = Retention> {
    // Often those of the usual policy: a value that is left out because it is usual must not become another one.
    let count = || proptest::option::of(prop_oneof![Just(7_u32), Just(4), Just(6), 0_u32..100]);
    let age = || proptest::option::of((0_u64..100).prop_map(|hours| std::time::Duration::from_secs(hours * 1800)));
    (count(), count(), count(), count(), count(), count(), age(), age()).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, within, manual)| {
            let all = Retention { all: true, ..Retention::EMPTY };
            let rules = Retention { last, hourly, daily, weekly, monthly, yearly, within, all: false, manual };
            Retention::from_options(rules).unwrap_or(all)
        },
    )
}

/// Schedules with any options.
fn schedules() -> impl Strategy<Value = Schedule> {
    let cadence = prop_oneof![
        "[0-9]:[0-5][0-9]".prop_map(|text| Some(Cadence::parse_daily(&text).unwrap())),
        Just(Some(Cadence::parse_daily("09:00,18:30").unwrap())),
        "[0-9] [0-9] \\* \\* (mon|1-5)".prop_map(|text| Some(Cadence::parse_cron(&text).unwrap())),
        Just(None),
    ];
    let zone = prop_oneof![Just(None), Just(Some(Tz::Europe__Paris)), Just(Some(Tz::UTC))];
    let compression = prop_oneof![
        Just(Compression::None),
        (1_u8..=12).prop_map(Compression::Gzip),
        (1_u8..=19).prop_map(Compression::Zstd)
    ];
    let source = proptest::collection::vec(1_u8..=255, 1..8);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    ("[a-zA-Zé_ .'\"=#-]{1,9}", source, cadence, zone, compression, excludes(), retention(), flags).prop_filter_map(
        "a valid schedule",
        |(name, source, cadence, zone, compression, excludes, retention, flags)| {
            let (ignore_inode, trust_times, verify, enabled, is_segmented) = flags;
            backup_manager::source::check_patterns(&excludes.globs).ok()?;
            let usual = Cadence::parse_daily("1:00").unwrap();
            Some(Schedule {
                zone,
                compression,
                layout: if is_segmented { Layout::Segmented } else { Layout::Whole },
                excludes,
                retention,
                reuse: Reuse { ignore_inode, ignore_ctime: !ignore_inode && trust_times, trust_times },
                catch_up: if trust_times { CatchUp::Skip } else { CatchUp::Latest },
                verify,
                enabled: enabled && cadence.is_some(),
                cadence,
                ..Schedule::new(ScheduleName::parse(&name).ok()?, source, usual)
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_as_equal_schedules(schedules in proptest::collection::vec(schedules(), 1..5)) {
        let mut names = BTreeSet::new();
        let schedules: Vec<_> =
            schedules.into_iter().filter(|schedule| names.insert(schedule.name.clone())).collect();
        let world = World::new();
        schedules.iter().for_each(|schedule| drop(world.add(schedule.clone())));
        let text = export_toml(&world.store, &world.store.schedules().unwrap()).unwrap();
        let read = parse_settings(&text, "backup.toml");
        let read = read.unwrap_or_else(|error| panic!("{error}\n{}", String::from_utf8_lossy(&text)));
        let read: Vec<_> = read.into_iter().map(|entry| entry.schedule).collect();
        prop_assert_eq!(read, schedules, "{}", String::from_utf8_lossy(&text));
    }
}

fn plan(world: &World, file: &str, text: &str, removed: Removed) -> SettingsPlan {
    let in_text_file = BTreeSet::new();
    let present = Present {
        home: &world.home,
        store: Some(&world.store),
        in_text_file: &in_text_file,
        zone: Tz::UTC,
        now: world.clock.now(),
    };
    SettingsPlan::new(file, parse(text), removed, &present).unwrap()
}

#[test]
fn an_exported_file_applied_in_a_new_home_gives_the_same_export_and_changes_nothing_again() {
    let world = World::new();
    plan(&world, "/first.toml", EVERY_KEY, Removed::Pause).apply(&world.home, &world.store, world.clock.now()).unwrap();
    let exported = String::from_utf8(export_toml(&world.store, &world.store.schedules().unwrap()).unwrap()).unwrap();
    let other = World::new();
    plan(&other, "/backup.toml", &exported, Removed::Pause)
        .apply(&other.home, &other.store, other.clock.now())
        .unwrap();
    let again = plan(&other, "/backup.toml", &exported, Removed::Pause);
    assert!(again.is_empty() && again.unchanged == 3, "{again:?}");
    assert_eq!(export_toml(&other.store, &other.store.schedules().unwrap()).unwrap(), exported.as_bytes());
    let entries = parse(&exported).into_iter().map(|entry| (entry.schedule, entry.hooks));
    let first = parse(EVERY_KEY).into_iter().map(|entry| (entry.schedule, entry.hooks));
    assert_eq!(entries.collect::<Vec<_>>(), first.collect::<Vec<_>>());
}

#[test]
fn commands_of_the_file_are_approved_and_again_after_they_were_held() {
    let text = "[defaults]\nbefore = \"true\"\n[schedule.a]\nsource = \"a\"\nat = \"1:00\"\n\
                [schedule.b]\nsource = \"b\"\nat = \"1:00\"\nbefore = \"\"\n";
    let world = World::new();
    plan(&world, "/backup.toml", text, Removed::Pause).apply(&world.home, &world.store, world.clock.now()).unwrap();
    let row = |name: &str| world.store.schedule_named(name).unwrap().unwrap();
    let hooks = |name: &str| approval::hooks_to_execute(&world.home, &world.store, &row(name));
    assert_eq!(hooks("a").unwrap().commands, [(CommandKind::Before, "true".to_owned())].into());
    assert!(hooks("b").unwrap().is_default(), "an empty command removes that of the defaults");
    // As after the database was put back on another machine.
    fs::remove_dir_all(world.home.secrets()).unwrap();
    assert!(hooks("a").is_err());
    let again = plan(&world, "/backup.toml", text, Removed::Pause);
    assert!(again.changed.len() == 1 && again.changed[0].is_approved && again.unchanged == 1, "{again:?}");
    again.apply(&world.home, &world.store, world.clock.now()).unwrap();
    assert!(hooks("a").is_ok());
    let removed = plan(&world, "/backup.toml", &text.replace("before = \"true\"\n", ""), Removed::Pause);
    assert_eq!(removed.changed[0].differences[0].to_string(), "before \"true\" -> not set");
    removed.apply(&world.home, &world.store, world.clock.now()).unwrap();
    assert!(hooks("a").unwrap().is_default());
}

#[test]
fn commands_in_a_file_that_others_may_write_are_refused() {
    let world = World::new();
    let file = world.path("backup.toml");
    fs::write(&file, "").unwrap();
    let plain = parse("[schedule.a]\nsource = \"a\"\nat = \"1:00\"\n");
    let commands = parse("[schedule.a]\nsource = \"a\"\nat = \"1:00\"\nafter = \"true\"\n");
    let check =
        |entries: &[Entry]| check_owner(&world.home, file.to_str().unwrap(), &fs::metadata(&file).unwrap(), entries);
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let folder = file.parent().unwrap();
    set_mode(folder, 0o755);
    set_mode(&file, 0o644);
    check(&commands).unwrap();
    for mode in [0o646, 0o664] {
        set_mode(&file, mode);
        check(&plain).unwrap();
        let error = check(&commands).unwrap_err();
        assert!(error.to_string().contains("others than its owner may write it"), "{error}");
    }
    set_mode(&file, 0o600);
    set_mode(folder, 0o775);
    check(&plain).unwrap();
    let error = check(&commands).unwrap_err();
    assert!(error.to_string().contains("may write its folder"), "{error}");
    set_mode(folder, 0o1777);
    check(&commands).unwrap();
    set_mode(folder, 0o755);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
        check(&plain).unwrap();
        let error = check(&commands).unwrap_err();
        assert!(error.to_string().contains("belongs to uid 65534"), "{error}");
        assert!(error.next_step().unwrap().starts_with("chown 0 "), "{error:?}");
    }
}

#[test]
fn another_line_of_an_entry_is_recorded_without_counting_as_an_edit() {
    let world = World::new();
    let text = "[schedule.a]\nsource = \"a\"\nat = \"1:00\"\n";
    plan(&world, "/backup.toml", text, Removed::Pause).apply(&world.home, &world.store, world.clock.now()).unwrap();
    let before = world.store.schedules().unwrap().remove(0);
    world.clock.advance(crate::world::HOUR);
    let moved = plan(&world, "/backup.toml", &format!("# a comment\n{text}"), Removed::Pause);
    assert!(moved.is_empty());
    moved.apply(&world.home, &world.store, world.clock.now()).unwrap();
    let after = world.store.schedules().unwrap().remove(0);
    assert_eq!((after.edited_at, after.watermark), (before.edited_at, before.watermark));
    let [before, after] = [before, after].map(|row| row.managed_by.unwrap().to_string());
    assert_eq!([before, after], ["/backup.toml:1", "/backup.toml:2"]);
}

#[test]
fn the_documentation_lists_exactly_the_keys_that_are_read() {
    let root = env!("CARGO_MANIFEST_DIR");
    let text = fs::read_to_string(format!("{root}/docs/settings.md")).unwrap();
    let documented: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(key, _)| key).collect();
    assert_eq!(documented, schedule_keys().collect::<BTreeSet<_>>());
    let example = fs::read(format!("{root}/contrib/backup.toml")).unwrap();
    let example = parse_settings(&example, "contrib/backup.toml").unwrap_or_else(|error| panic!("{error}"));
    assert!(!example.is_empty());
}

#[test]
fn a_settings_file_is_gone_only_if_its_folder_is_there() {
    let world = World::new();
    let is_of_other = |path: &Path| {
        let file = path.to_str().unwrap().to_owned();
        backup_manager::store::Managed { file, line: 1, is_paused: false }.is_of_other("/other.toml")
    };
    assert!(!is_of_other(&world.path("gone.toml")));
    assert!(is_of_other(&world.path("not-mounted/backup.toml")));
}

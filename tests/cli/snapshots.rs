//! Pins what the program prints: each JSON document, each help page, and an error of each kind.
//!
//! After an intended change, run `INSTA_UPDATE=always cargo test --test cli snapshots`, read the difference in
//! `tests/snapshots/`, and commit it with the change. No further tool is needed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::environment::{Said, TestHome};

/// What differs from run to run or from machine to machine, and what is printed in its place.
///
/// Times before 2025 are those that the tests set, and stay. Sizes of three digits or more are those of archives and
/// disks: archives hold the times of their runs, compressed.
const REDACTIONS: [(&str, &str); 16] = [
    (r"/[^ \n]*/\.tmp[A-Za-z0-9]{6}", "[home]"),
    (r"-20\d{6}T\d{6}Z-", "-[utc]-"),
    (r"20(2[5-9]|[3-9]\d)-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "[time]"),
    (r"20(2[5-9]|[3-9]\d)-\d\d-\d\d \d\d:\d\d", "[time]"),
    (r#""pid": \d+"#, r#""pid": "[pid]""#),
    (r#""pids": \[\s+\d+\s+\]"#, r#""pids": "[pids]""#),
    (r"process \d+", "process [pid]"),
    (r#""host": ".*""#, r#""host": "[host]""#),
    (
        r#""(size|bytes|shared_bytes|freed_bytes|disk_bytes|bytes_deleted|archive_bytes|free_bytes)": \d{3,}"#,
        r#""$1": "[bytes]""#,
    ),
    (r#""(uid|gid)": \d+"#, r#""$1": "[id]""#),
    (r#""(user|group)": ".*""#, r#""$1": "[name]""#),
    (r"\d+(\.\d+)? [KMGT]iB", "[size]"),
    (r"\b\d+ s old", "[age] old"),
    // What counts as recent depends on the speed of the test.
    (r#""read_reasons": \{\s[^}]*\}"#, r#""read_reasons": "[reasons]""#),
    (r"unchanged  .*", "unchanged  [reasons]"),
    // Which schedule is next depends on the time of day.
    (r"next: \w+ at \[time\]", "next: [schedule] at [time]"),
];

/// Compares what `args` print and their exit code with the snapshot `name`.
#[track_caller]
fn pin(home: &TestHome, name: &str, args: &[&str]) {
    pin_said(name, args, &home.run(args));
}

#[track_caller]
fn pin_said(name: &str, args: &[&str], said: &Said) {
    let mut text = format!("exit code {}\n", said.code);
    for (stream, printed) in [("stdout", &said.stdout), ("stderr", &said.stderr)] {
        if !printed.is_empty() {
            text += &format!("--- {stream}\n{printed}");
        }
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_path("../snapshots");
    settings.set_omit_expression(true);
    let words = args.iter().map(|word| if word.starts_with('/') { "FILE" } else { word });
    settings.set_description(words.fold("backup-manager".to_owned(), |line, word| line + " " + word));
    for (pattern, shown) in REDACTIONS {
        settings.add_filter(pattern, shown);
    }
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Pins each of `commands`, a name and words with a space between, in this order.
#[track_caller]
fn pin_all(home: &TestHome, commands: &[(&str, &str)]) {
    for (name, words) in commands {
        pin(home, name, &words.split(' ').collect::<Vec<_>>());
    }
}

/// Gives a file or link a fixed time: 2020-01-02 03:04:05 UTC and `more` seconds.
fn set_time(path: &Path, more: i64) {
    let time = Timespec { tv_sec: 1_577_934_245 + more, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn write(path: &Path, text: &str, time: i64) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    set_time(path, time);
}

fn make_folder(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A home with two fixed sources and two schedules, `docs` and `photos`.
fn home() -> TestHome {
    let home = TestHome::new();
    for folder in ["docs", "docs/sub", "photos"] {
        make_folder(&home.path(folder));
    }
    write(&home.path("docs/letter.txt"), "dear reader\n", 1);
    write(&home.path("docs/sub/notes.txt"), "notes\n", 2);
    write(&home.path("docs").join(OsStr::from_bytes(b"caf\xe9.txt")), "latin\n", 3);
    write(&home.path("photos/one.jpg"), "jpg", 4);
    symlink("letter.txt", home.path("docs/link")).unwrap();
    symlink(OsStr::from_bytes(b"caf\xe9.txt"), home.path("docs/sub/latin")).unwrap();
    set_time(&home.path("docs/link"), 5);
    set_time(&home.path("docs/sub/latin"), 6);
    for (folder, time) in [("docs/sub", 7), ("docs", 8), ("photos", 9)] {
        set_time(&home.path(folder), time);
    }
    let _ = home.run(&["create", "docs;09:00;docs", "--exclude", "*.tmp", "--keep-last", "2"]).ok();
    let cron = ["create", "photos", "--name", "photos", "--cron", "5 4 * * 1", "--timezone", "Europe/Berlin"];
    let _ = home.run(&[&cron[..], &["--compress", "zstd"]].concat()).ok();
    home
}

/// The same with runs @1 to @3: two of `docs`, between which files change, and one of `photos`.
fn home_with_runs() -> TestHome {
    let home = home();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    write(&home.path("docs/letter.txt"), "dear new reader\n", 20);
    write(&home.path("docs/added.txt"), "added\n", 21);
    fs::remove_file(home.path("docs/sub/notes.txt")).unwrap();
    set_time(&home.path("docs/sub"), 22);
    set_time(&home.path("docs"), 23);
    let _ = home.run(&["run", "docs", "photos", "-q"]).ok();
    home
}

/// Returns the path of the archive of a run.
fn archive_of(home: &TestHome, run: i64) -> String {
    let archives = home.run(&["--json", "backups", "--all"]).ok().json();
    let archive = archives.as_array().unwrap().iter().find(|archive| archive["run"] == run).unwrap();
    archive["path"].as_str().unwrap().to_owned()
}

/// Changes one bit of the content of a plain archive.
fn damage(home: &TestHome, run: i64, text: &[u8]) {
    let path = archive_of(home, run);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text).expect("the archive holds the text");
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
}

#[test]
fn documents_of_schedules() {
    let home = home();
    pin_all(
        &home,
        &[
            ("create", "--json create docs;02:30,14:00;again"),
            ("list", "--json list"),
            ("show", "--json show docs"),
            ("show_cron", "--json show photos"),
            ("show_text", "show photos"),
            ("next", "--json next --at 09:00,18:30 --from 2020-03-01 --count 3 --timezone Europe/Paris"),
            ("next_schedule", "--json next photos --from 2020-03-01 --count 2"),
            ("config", "--json config"),
            ("config_one", "--json config compress"),
            ("export_json", "export --format json"),
            ("config_set", "--json config workers 2"),
            ("pause", "--json pause again docs"),
            ("edit", "--json edit again --at 05:00"),
            ("export_file", "--json export out.txt"),
            ("list_paused", "--json list"),
            ("resume", "--json resume again docs photos"),
            ("delete", "--json delete again"),
        ],
    );
    fs::write(home.path("in.txt"), "docs;10:00;docs\nphotos;11:00;extra\n").unwrap();
    pin_all(&home, &[("import", "--json import in.txt"), ("import_replace", "--json import in.txt --replace")]);
    fs::write(home.path("in.toml"), "[schedule.docs]\nsource = \"docs\"\nat = \"11:00\"\n").unwrap();
    pin_all(&home, &[("apply", "--json apply in.toml")]);
}

#[test]
fn documents_of_runs() {
    let home = home_with_runs();
    // Other archives, and no links of the last ones.
    write(&home.path("photos/one.jpg"), "new", 24);
    write(&home.path("docs/letter.txt"), "dear old reader\n", 25);
    pin_all(
        &home,
        &[
            ("run_dry", "--json run -n docs"),
            ("run", "--json run docs photos"),
            ("delete_archives_asked", "--json delete photos --with-archives"),
            ("history", "--json history"),
            ("history_run", "--json history @2"),
            ("history_run_text", "history @2"),
            ("cancel", "--json cancel docs"),
            ("accept", "--json accept docs"),
            ("status", "--json status"),
            ("status_text", "status"),
            ("status_service_stopped", "--json status --service"),
            ("stop_stopped", "--json stop"),
        ],
    );
    pin(&home, "start", &["--json", "start"]);
    pin(&home, "start_running", &["--json", "start"]);
    pin(&home, "status_service", &["--json", "status", "--service"]);
    pin(&home, "stop", &["--json", "stop", "-q"]);
    pin(&home, "delete_archives", &["--json", "delete", "photos", "docs", "--with-archives", "--yes"]);
}

#[test]
fn documents_of_runs_that_failed_or_lost_files() {
    let home = home();
    fs::write(home.path("docs/secret"), "x").unwrap();
    fs::set_permissions(home.path("docs/secret"), fs::Permissions::from_mode(0o000)).unwrap();
    let _ = home.run_unprivileged(&["create", "nowhere;03:00;lost"]);
    for (name, args) in [
        ("run_incomplete", &["--json", "run", "docs"][..]),
        ("history_incomplete", &["--json", "history", "@1"]),
        ("history_incomplete_text", &["history", "@1"]),
        ("run_failed", &["--json", "run", "lost"]),
        ("history_failed", &["--json", "history", "@2"]),
        ("status_unhealthy", &["--json", "status"]),
        ("status_unhealthy_text", &["status"]),
    ] {
        pin_said(name, args, &home.run_unprivileged(args));
    }
}

#[test]
fn documents_of_archives() {
    let home = home_with_runs();
    pin_all(
        &home,
        &[
            ("backups", "--json backups"),
            ("backups_of_one", "--json backups photos"),
            ("ls", "--json ls @1"),
            ("ls_path", "--json ls docs docs/letter.txt"),
            ("find", "--json find *.txt"),
            ("find_versions", "--json find --versions docs/letter.txt"),
            ("versions", "--json versions docs/sub/notes.txt"),
            ("diff", "--json diff @1 @2"),
            ("diff_source", "--json diff @1"),
            ("diff_text", "diff @1 @2"),
        ],
    );
    let tar = archive_of(&home, 1);
    pin(&home, "ls_file", &["--json", "ls", &tar]);
}

#[test]
fn documents_of_restores() {
    let home = home_with_runs();
    pin_all(
        &home,
        &[
            ("restore_dry", "--json restore @1 -n --to out"),
            ("restore", "--json restore @1 --to out"),
            ("restore_unchanged", "--json restore @1 --to out --overwrite if-changed"),
            ("restore_conflicts", "--json restore @2 --to out"),
            ("restore_nothing", "--json restore @2 --to out docs/nothing"),
        ],
    );
}

#[test]
fn documents_of_verification_and_retention() {
    let home = home_with_runs();
    let tar = archive_of(&home, 1);
    pin_all(
        &home,
        &[
            ("verify", "--json verify"),
            ("verify_one", "--json verify @3"),
            ("drill", "--json drill"),
            ("show_after_drill", "--json show docs"),
            ("pin", "--json pin @1"),
            ("prune_dry", "--json prune -n"),
            ("pin_off", "--json pin --off @1"),
            ("prune", "--json prune docs"),
            ("prune_dry_text", "prune -n docs"),
            ("rescan", "--json rescan"),
        ],
    );
    pin(&home, "verify_file", &["--json", "verify", &tar]);
    damage(&home, 1, b"dear reader");
    fs::write(home.path("backups/docs/stray.tar"), "no archive").unwrap();
    pin_all(
        &home,
        &[
            ("verify_damaged", "--json verify @1"),
            ("verify_damaged_text", "verify @1"),
            ("repair_dry", "--json repair -n"),
            ("repair_dry_text", "repair -n"),
            ("backups_damaged", "--json backups docs"),
            ("status_damaged_text", "status"),
            ("forget", "--json forget @1"),
        ],
    );
    for file in ["backup.db", "backup.db-wal", "backup.db-shm"] {
        let _ = fs::remove_file(home.path(file));
    }
    pin(&home, "rescan_rebuilt", &["--json", "rescan", "--adopt"]);
}

#[test]
fn help_pages() {
    let home = TestHome::new();
    let help = |args: &[&str]| {
        let name = ["help", args.first().unwrap_or(&"main")].join("_");
        let args = [args, &["--help"]].concat();
        pin_said(&name, &args, &crate::environment::said(home.command(&args).env("COLUMNS", "80")));
    };
    help(&[]);
    for verb in [
        "accept", "apply", "backups", "cancel", "cat", "config", "create", "delete", "diff", "drill", "edit", "export",
        "find", "forget", "history", "import", "list", "ls", "next", "pause", "pin", "prune", "repair", "rescan",
        "restore", "resume", "run", "serve", "show", "start", "status", "stop", "verify", "versions",
    ] {
        help(&[verb]);
    }
}

#[test]
fn errors_of_usage() {
    let home = home();
    pin_all(
        &home,
        &[
            ("error_unknown_verb", "frobnicate"),
            ("error_missing_argument", "run"),
            ("error_conflict", "list --json --plain"),
            ("error_json", "--json history --status lost"),
            ("error_json_arguments", "run --json --al"),
            ("error_spec", "create docs;24:00;x"),
            ("error_name_in_use", "create docs;09:00;docs"),
            ("error_zone", "create docs --name x --at 9:00 --timezone Europe/Pariss"),
            ("error_cron", "create docs --name x --cron often"),
            ("error_setting", "config speed"),
            ("error_setting_value", "config workers 0"),
            ("error_state", "history --status lost"),
            ("error_archive_word", "ls docs --archive newest"),
            ("error_pin_word", "pin docs"),
        ],
    );
    fs::write(home.path("bad.txt"), "/a;25:00;hour\n/c;09:00\n").unwrap();
    fs::write(home.path("bad.json"), "{\"version\": 1").unwrap();
    pin_all(&home, &[("error_bad_lines", "import bad.txt"), ("error_bad_json", "import bad.json --format json")]);
    let list = ["serve"];
    pin_said("error_environment", &list, &home.run_with(("BACKUP_COMPRES", "zstd"), &list));
}

#[test]
fn errors_of_what_is_not_found() {
    pin(&TestHome::new(), "error_no_database", &["list"]);
    let home = home_with_runs();
    pin_all(
        &home,
        &[
            ("error_no_schedule", "show doc"),
            ("error_no_index", "show 7"),
            ("error_no_run", "history @99"),
            ("error_no_archive", "ls @99"),
            ("error_other_schedule", "ls docs --archive @3"),
            ("error_too_early", "ls docs --at 2019-01-01"),
            ("error_no_member", "cat docs docs/leter.txt"),
            ("error_no_match", "find nothing"),
            ("error_no_match_of_path", "find sub/nothing"),
            ("error_no_version", "find --versions docs/nothing"),
            ("error_no_text_file", "import missing.txt"),
            ("error_nothing_restored", "restore docs --to out --include nothing"),
        ],
    );
}

#[test]
fn errors_of_failure_damage_and_incompleteness() {
    let home = home_with_runs();
    fs::write(home.path("noise.tar"), "no header ".repeat(200)).unwrap();
    pin_all(
        &home,
        &[
            ("error_forget_newest", "forget @2"),
            ("error_no_tar", "ls noise.tar"),
            ("error_no_tar_verify", "verify noise.tar"),
            ("error_export_exists", "export noise.tar"),
            ("error_export_incomplete", "export out.txt"),
        ],
    );
    let _ = home.run(&["edit", "docs", "--keep-last", "1"]).ok();
    fs::rename(home.path("photos"), home.path("elsewhere")).unwrap();
    pin(&home, "error_no_source", &["run", "photos"]);
    fs::write(home.path("other.db"), "this is no database\n".repeat(100)).unwrap();
    pin(&home, "error_not_our_database", &["list", "--db", "other.db"]);
    damage(&home, 2, b"dear new reader");
    pin(&home, "drill_damaged", &["--json", "drill", "docs"]);
}

#[test]
fn errors_of_what_is_busy() {
    let home = home_with_runs();
    let _lock = home.start_run_of_other_worker();
    pin(&home, "error_busy", &["run", "docs", "--no-wait"]);
    pin(&home, "status_running", &["--json", "status"]);
    pin(&home, "status_running_text", &["status"]);
}

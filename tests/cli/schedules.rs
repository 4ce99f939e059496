//! `create`, `list`, `show`, `edit`, `pause`, `resume`, `delete`, `next`, `config`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::environment::TestHome;

fn home_with_three() -> TestHome {
    let home = TestHome::with_sources(&["documents", "photos", "code"]);
    for spec in ["documents;09:00;docs_morning", "photos;18:30;photos_evening", "code;23:59;code_nightly"] {
        let _ = home.run(&["create", spec]).ok();
    }
    home
}

#[test]
fn create_warns_when_the_kept_copies_will_not_fit() {
    let home = TestHome::with_sources(&["small", "large"]);
    let file = fs::File::create(home.path("large/file")).unwrap();
    file.set_len(1 << 40).unwrap();
    let create = |source: &str, keep: &[&str]| {
        let words = ["create", source, "--name", &format!("{source}{}", keep.concat()), "--at", "09:00"];
        home.run(&[&words[..], keep].concat()).ok().stderr
    };
    let printed = create("large", &["--keep-last", "1000000"]);
    for part in ["the 1000000 copies that it keeps may not fit into", "PiB before compression", "are free", "--keep-"] {
        assert!(printed.contains(part), "{printed}");
    }
    assert!(!create("small", &["--keep-last", "1000"]).contains("fit"));
    assert!(!create("small", &["--keep-all"]).contains("fit"));
}

#[test]
fn the_example_of_the_old_system_is_listed_unchanged() {
    let home = home_with_three();
    let listed = home.run(&["list"]).ok();
    assert_eq!(
        listed.stdout,
        "0: documents;09:00;docs_morning\n1: photos;18:30;photos_evening\n2: code;23:59;code_nightly\n"
    );
    let log = home.log("backup_manager.log");
    assert!(log.lines().any(|line| line.ends_with("Info --> Instruction list")), "{log}");
}

#[test]
fn created_files_are_private() {
    let home = home_with_three();
    for (path, mode) in [("backup.db", 0o600), ("logs/backup_manager.log", 0o600), ("logs", 0o700)] {
        let metadata = fs::metadata(home.path(path)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
    }
}

#[test]
fn create_prints_index_zone_next_run_and_size() {
    let home = TestHome::with_sources(&["documents"]);
    let created = home.run(&["create", "documents;09:00;docs"]).ok();
    for word in ["0: documents;09:00;docs", "next run: ", "T09:00:00", "UTC", "free"] {
        assert!(created.stdout.contains(word), "{word}: {created:?}");
    }
    assert!(created.stderr.contains("created the database"), "{created:?}");
}

#[test]
fn create_takes_several_times_cron_and_a_zone() {
    let home = TestHome::with_sources(&["a", "b"]);
    let _ = home.run(&["create", "a", "--name", "twice", "--at", "18:30,9:00"]).ok();
    let cron = ["--cron", "*/15 8-18 * * mon-fri", "--timezone", "Europe/Paris"];
    let _ = home.run(&[&["create", "b", "--name", "often"][..], &cron].concat()).ok();
    assert_eq!(home.run(&["list"]).ok().stdout, "0: a;09:00,18:30;twice\n1: b;cron */15 8-18 * * mon-fri;often\n");
    let shown = home.run(&["--json", "show", "often"]).ok().json();
    assert_eq!(shown["timezone"], "Europe/Paris");
    assert_eq!(shown["timezone_is_own"], true);
}

#[test]
fn create_names_the_days_of_an_expression_with_a_day_and_a_weekday() {
    let home = TestHome::with_sources(&["a"]);
    for (name, cron, days) in [
        (
            "either",
            "0 0 13 * 5",
            Some("days: each that matches the day of the month, and each that matches the weekday"),
        ),
        ("both", "0 0 */2 * 1", Some("days: only those that match both the day of the month and the weekday")),
        ("month", "0 0 13 * *", None),
        ("daily", "@daily", None),
    ] {
        let created = home.run(&["create", "a", "--name", name, "--cron", cron]).ok();
        let found = created.stdout.lines().map(str::trim).find(|line| line.starts_with("days"));
        assert_eq!(found, days, "{cron}");
    }
    let next = home.run(&["next", "--cron", "@daily", "--timezone", "UTC"]).ok().stdout;
    assert!(next.lines().all(|line| line.contains("T00:00:00+00:00")), "{next}");
}

#[test]
fn pause_is_listed_and_resume_reverts_it() {
    let home = home_with_three();
    let _ = home.run(&["pause", "0", "code_nightly"]).ok();
    assert_eq!(
        home.run(&["list"]).ok().stdout,
        "0: documents;09:00;docs_morning (paused)\n1: photos;18:30;photos_evening\n\
         2: code;23:59;code_nightly (paused)\n"
    );
    let _ = home.run(&["resume", "--all"]).ok();
    assert!(!home.run(&["list"]).ok().stdout.contains("paused"));
}

#[test]
fn edit_changes_what_is_given_and_nothing_else() {
    let home = home_with_three();
    let _ = home.run(&["edit", "docs_morning", "--at", "10:15", "--exclude", "*.tmp", "--compress", "zstd:5"]).ok();
    let shown = home.run(&["--json", "show", "docs_morning"]).ok().json();
    assert_eq!(shown["at"], serde_json::json!(["10:15"]));
    assert_eq!(shown["options"]["excludes"]["globs"], serde_json::json!(["*.tmp"]));
    assert_eq!(shown["compress"], "zstd:5");
    let _ = home.run(&["edit", "docs_morning", "--keep-last", "3"]).ok();
    let shown = home.run(&["--json", "show", "docs_morning"]).ok().json();
    assert_eq!(shown["options"]["excludes"]["globs"], serde_json::json!(["*.tmp"]));
    assert_eq!(shown["options"]["retention"], serde_json::json!({ "last": 3 }));
}

#[test]
fn delete_by_index_moves_the_others_up_and_the_name_can_be_used_again() {
    let home = home_with_three();
    let _ = home.run(&["delete", "0"]).ok();
    assert_eq!(home.run(&["list"]).ok().stdout, "0: photos;18:30;photos_evening\n1: code;23:59;code_nightly\n");
    let again = home.run(&["create", "documents;08:00;docs_morning"]).ok();
    assert!(again.stdout.contains("its history and archives belong to this one"), "{again:?}");
}

#[test]
fn a_name_created_or_imported_again_keeps_the_options_it_had() {
    let home = home_with_three();
    let options = |home: &TestHome| home.run(&["--json", "show", "code_nightly"]).ok().json()["options"].clone();
    let edit = ["--exclude", "*.iso", "--compress", "zstd:5", "--keep-last", "9", "--timezone", "Asia/Tokyo"];
    let _ = home.run(&[&["edit", "code_nightly"][..], &edit].concat()).ok();
    let before = options(&home);
    let _ = home.run(&["delete", "code_nightly"]).ok();
    let again = home.run(&["create", "code;23:59;code_nightly"]).ok();
    assert!(again.stdout.contains("keeps the options that it had"), "{again:?}");
    assert_eq!(options(&home), before);
    let _ = home.run(&["delete", "code_nightly"]).ok();
    let _ = home.run(&["create", "code", "--name", "code_nightly", "--at", "23:59", "--keep-last", "4"]).ok();
    let edited = options(&home);
    assert_eq!(edited["retention"], serde_json::json!({ "last": 4 }), "an option on the command line counts");
    assert_eq!(edited["excludes"], before["excludes"]);
    let _ = home.run(&["delete", "code_nightly"]).ok();
    fs::write(home.path("again.txt"), "code;23:59;code_nightly\n").unwrap();
    let said = home.run(&["import", "again.txt"]).ok();
    assert!(said.stderr.contains("code_nightly was deleted before: its options"), "{said:?}");
    assert_eq!(options(&home), edited);
}

#[test]
fn excludes_that_match_nothing_are_reported_at_create_edit_and_run() {
    let home = TestHome::with_sources(&["src"]);
    fs::create_dir(home.path("src/build")).unwrap();
    let said = home.run(&["create", "src;09:00;code", "--exclude", "./build", "--exclude", "src/build"]).ok();
    assert!(said.stderr.contains("./build can match nothing") && !said.stderr.contains("src/build"), "{said:?}");
    let said = home.run(&["edit", "code", "--exclude", "~/x", "--exclude", "src/build"]).ok();
    assert!(said.stderr.contains("~/x can match nothing"), "{said:?}");
    let said = home.run(&["run", "code"]).ok();
    assert!(said.stderr.contains("the exclude pattern ~/x matched nothing"), "{said:?}");
    assert!(!home.run(&["ls", "code"]).ok().stdout.contains("build"));
}

#[test]
fn a_schedule_named_like_a_file_is_the_schedule_unless_a_folder_is_written() {
    let home = TestHome::with_sources(&["documents"]);
    for name in ["mail.gz", "my.tarball"] {
        let _ = home.run(&["create", &format!("documents;09:00;{name}"), "--now"]).ok();
        fs::write(home.path(name), "this is no archive").unwrap();
        for verb in ["ls", "verify", "diff"] {
            let _ = home.run(&[verb, name]).ok();
        }
        let _ = home.run(&["restore", name, "--to", &format!("out-{name}")]).ok();
        let file = format!("./{name}");
        let _ = home.run(&["ls", &file]).fails(4, &[name]);
        let _ = home.run(&["verify", &file]).fails(4, &[]);
        let _ = home.run(&["delete", name]).ok();
        let _ = home.run(&["ls", name]).ok();
    }
}

#[test]
fn next_needs_no_database_for_a_cadence_on_the_command_line() {
    let home = TestHome::new();
    let said = home
        .run(&["next", "--at", "02:30", "--timezone", "Europe/Paris", "--from", "2026-03-28T00:00:00Z", "--count", "3"])
        .ok();
    assert_eq!(said.stdout, "2026-03-28T02:30:00+01:00\n2026-03-29T03:00:00+02:00\n2026-03-30T02:30:00+02:00\n");
    assert_eq!(fs::read_dir(home.dir.path()).unwrap().count(), 0, "nothing was created");
}

#[test]
fn next_in_the_autumn_overlap_lists_daily_times_once_and_wildcards_twice() {
    let home = TestHome::new();
    let from = ["--timezone", "Europe/Paris", "--from", "2026-10-24T23:50:00Z"];
    let daily = home.run(&[&["next", "--at", "02:30", "--count", "2"][..], &from].concat()).ok();
    assert_eq!(daily.stdout, "2026-10-25T02:30:00+02:00\n2026-10-26T02:30:00+01:00\n");
    let cron = home.run(&[&["next", "--cron", "30 * * * *", "--count", "2"][..], &from].concat()).ok();
    assert_eq!(cron.stdout, "2026-10-25T02:30:00+02:00\n2026-10-25T02:30:00+01:00\n");
}

#[test]
fn settings_come_from_the_environment_then_the_database_then_the_default() {
    let home = home_with_three();
    let value = |said: crate::environment::Said| said.ok().stdout;
    assert_eq!(value(home.run(&["config", "compress"])), "compress=none\n");
    let _ = home.run(&["config", "compress", "gzip:9"]).ok();
    assert_eq!(value(home.run(&["config", "compress"])), "compress=gzip:9\n");
    assert_eq!(value(home.run_with(("BACKUP_COMPRESS", "zstd"), &["config", "compress"])), "compress=zstd\n");
    let _ = home.run(&["create", "code;01:00;packed"]).ok();
    assert_eq!(home.run(&["--json", "show", "packed"]).ok().json()["compress"], "gzip:9");
    let _ = home.run(&["config", "compress", "--unset"]).ok();
    assert_eq!(value(home.run(&["config", "compress"])), "compress=none\n");
}

#[test]
fn help_version_and_a_closed_pipe_are_success() {
    let home = TestHome::new();
    let help = home.run(&["--help"]).ok();
    assert!(help.stdout.contains("Exit codes:"), "{help:?}");
    let _ = home.run(&["--version"]).ok();
    let mut child = home.command(&["next", "--cron", "* * * * * *", "--count", "100000"]);
    let mut child = child.stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success(), "a broken pipe is no error");
}

#[test]
fn a_command_in_a_message_can_be_pasted_whatever_the_name() {
    let home = TestHome::with_sources(&["docs"]);
    for (name, word) in [("docs", "docs"), ("B\u{fc}ro 2", "'B\u{fc}ro 2'"), ("#a", "'#a'")] {
        let _ = home.run(&["create", "docs", "--name", name, "--at", "02:00"]).ok();
        let next = format!("make one with `backup-manager run {word}`");
        let _ = home.run(&["restore", name, "--to", "out"]).fails(10, &[&next]);
        let _ = home.run(&["drill", name]).fails(10, &[&next]);
    }
}

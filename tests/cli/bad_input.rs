//! Bad input: the error names the thing, the reason and the next step, the exit code fits, and nothing is half done.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use crate::environment::{TestHome, said};

#[test]
fn a_malformed_spec_is_explained_and_creates_nothing() {
    for (spec, words) in [
        ("documents", vec!["documents", "PATH;HH:MM;NAME"]),
        ("documents;09:00", vec!["PATH;HH:MM;NAME"]),
        ("documents;24:00;docs", vec!["24", "hour"]),
        ("documents;09:60;docs", vec!["60", "minute"]),
        ("documents;nine;docs", vec!["nine"]),
        ("documents;09:00;", vec!["name"]),
        ("documents;09:00;a/b", vec!["a/b", "/"]),
        ("documents;09:00;123", vec!["123", "digits"]),
        (";09:00;docs", vec!["path"]),
        ("documents;09:00;.hidden", vec![".hidden"]),
        ("documents;09:00;docs.tar", vec![".tar"]),
    ] {
        let home = TestHome::with_sources(&["documents"]);
        let refused = home.run(&["create", spec]).fails(2, &words);
        assert!(refused.stderr.contains("next:"), "{spec}: {refused:?}");
        assert!(!home.path("backup.db").exists(), "{spec}: a database was created");
    }
}

#[test]
fn an_empty_path_never_means_the_home() {
    let home = TestHome::with_sources(&["documents"]);
    let _ = home.run(&["create", "", "--name", "x", "--at", "09:00"]).fails(2, &["path is empty", "next:"]);
    let _ = home.run(&["create", ";09:00;x"]).fails(2, &["path is empty", "next:"]);
    assert!(!home.path("backup.db").exists());
    let _ = home.run(&["create", "documents;09:00;docs"]).ok();
    let _ = home.run(&["edit", "docs", "--path", ""]).fails(2, &["path is empty", "next:"]);
    fs::write(home.path("in.txt"), " ;09:00;x\n").unwrap();
    let _ = home.run(&["import", "in.txt"]).fails(2, &["path is empty"]);
    for bad in [
        r#"{"name":"x","source":""}"#,
        r#"{"name":"x","source":"","source_b64":""}"#,
        r#"{"name":"x","source":"a","excludes":{"globs":[""]}}"#,
        r#"{"name":"x","source":"a","excludes":{"globs":["[z-a]"]}}"#,
    ] {
        fs::write(home.path("in.json"), format!(r#"{{"version":1,"schedules":[{bad}]}}"#)).unwrap();
        let _ = home.run(&["import", "in.json", "--format", "json"]).fails(2, &["in.json"]);
    }
    for command in [&["restore", "docs", "--to", ""][..], &["ls", ""], &["verify", ""], &["export", ""]] {
        assert_ne!(home.run(command).code, 0, "{command:?}");
    }
    assert_eq!(home.run(&["list"]).ok().stdout, "0: documents;09:00;docs\n");
}

#[test]
fn a_name_in_use_refuses_all_specs_of_the_command() {
    let home = TestHome::with_sources(&["a", "b"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let _ = home.run(&["create", "b;10:00;other", "b;11:00;docs"]).fails(2, &["docs", "already used", "next:"]);
    assert_eq!(home.run(&["list"]).ok().stdout, "0: a;09:00;docs\n");
    let _ = home.run(&["create", "b;10:00;x", "b;11:00;x"]).fails(2, &["\"x\"", "twice"]);
}

#[test]
fn unknown_zones_and_bad_cron_expressions_are_never_guessed() {
    let home = TestHome::with_sources(&["a"]);
    let create = |more: &[&str]| home.run(&[&["create", "a", "--name", "docs"], more].concat());
    let _ = create(&["--at", "09:00", "--timezone", "Europe/Pariss"]).fails(2, &["Europe/Pariss", "Europe/Paris"]);
    let _ = create(&["--cron", "61 * * * *"]).fails(2, &["61 * * * *", "next:"]);
    let _ = create(&["--cron", "every day"]).fails(2, &["every day"]);
    let _ = create(&[]).fails(2, &["--at", "--cron"]);
    let _ = create(&["--at", "09:00", "--compress", "rar"]).fails(2, &["rar"]);
    let _ = create(&["--at", "09:00", "--exclude", "[z-a]"]).fails(2, &["[z-a]"]);
    let _ = create(&["--at", "09:00", "--keep-last", "0"]).fails(2, &["keep"]);
    let _ = home.run_with(("TZ", "Mars/Olympus"), &["start"]).fails(2, &["Mars/Olympus"]);
    assert!(!home.path("backup.db").exists());
}

#[test]
fn a_missing_source_is_a_warning_in_create_and_a_failure_in_run() {
    let home = TestHome::new();
    let created = home.run(&["create", "nowhere;09:00;docs"]).ok();
    assert!(created.stderr.contains("warning") && created.stderr.contains("nowhere"), "{created:?}");
    let _ = home.run(&["run", "docs"]).fails(1, &["nowhere", "next:"]);
    assert_eq!(home.run(&["--json", "history"]).ok().json()[0]["state"], "failed");
    assert!(home.archive_files().is_empty());
}

#[test]
fn unknown_indexes_names_and_settings_are_errors() {
    let home = TestHome::with_sources(&["a", "b"]);
    let _ = home.run(&["create", "a;09:00;docs_morning", "b;09:00;photos"]).ok();
    let _ = home.run(&["delete", "2"]).fails(10, &["index 2", "0 to 1"]);
    let _ = home.run(&["run", "docs_mornin"]).fails(10, &["docs_mornin", "did you mean docs_morning?"]);
    let _ = home.run(&["show", "zzz"]).fails(10, &["zzz", "list"]);
    let _ = home.run(&["history", "@99"]).fails(10, &["@99"]);
    let _ = home.run(&["history", "--status", "lost"]).fails(2, &["lost", "succeeded"]);
    let _ = home.run(&["config", "speed"]).fails(2, &["speed", "workers"]);
    let _ = home.run(&["config", "workers", "0"]).fails(2, &["0", "1 to 256"]);
}

#[test]
fn a_verb_in_a_folder_without_a_database_creates_nothing() {
    let home = TestHome::new();
    let folder = home.dir.path().to_str().unwrap().to_owned();
    for verb in [
        &["list"][..],
        &["status"],
        &["run", "x"],
        &["backups"],
        &["history"],
        &["stop"],
        &["delete", "0"],
        &["export"],
        &["config"],
        &["pause", "--all"],
    ] {
        let _ = home.run(verb).fails(10, &[&folder, "BACKUP_HOME"]);
    }
    assert_eq!(fs::read_dir(home.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_foreign_or_newer_database_is_refused_and_not_changed() {
    let home = TestHome::with_sources(&["a"]);
    fs::write(
        home.path("backup.db"),
        "this is no database, only a text that is long enough to be looked at\n".repeat(50),
    )
    .unwrap();
    let before = fs::read(home.path("backup.db")).unwrap();
    let _ = home.run(&["list"]).fails(1, &["not a database of backup-manager", "--db"]);
    let _ = home.run(&["create", "a;09:00;docs"]).fails(1, &["not a database of backup-manager"]);
    assert_eq!(fs::read(home.path("backup.db")).unwrap(), before);

    fs::remove_file(home.path("backup.db")).unwrap();
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    rusqlite::Connection::open(home.path("backup.db")).unwrap().execute_batch("PRAGMA user_version = 77").unwrap();
    let _ = home.run(&["list"]).fails(1, &["newer backup-manager", "77"]);
}

#[test]
fn a_home_that_is_not_writable_names_the_folder_and_the_uid() {
    let home = TestHome::new();
    fs::create_dir(home.path("closed")).unwrap();
    let _ = home.run_unprivileged(&["--version"]).ok();
    fs::set_permissions(home.path("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    let closed = home.path("closed");
    let create = ["create", "/etc;09:00;docs", "--home", closed.to_str().unwrap()];
    let refused = home.run_unprivileged(&create).fails(1, &["closed", "not writable", "next:"]);
    assert!(refused.stderr.contains("--home"), "{refused:?}");
    assert_eq!(fs::read_dir(home.path("closed")).unwrap().count(), 0);
}

#[test]
fn an_archive_folder_of_another_database_is_refused() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    let other = TestHome::with_sources(&["a"]);
    let backups = home.path("backups");
    let _ = other.run(&["create", "a;09:00;docs"]).ok();
    let _ = other
        .run(&["run", "docs", "--backups", backups.to_str().unwrap()])
        .fails(1, &["belongs to another database", "--backups"]);
    assert_eq!(home.archive_files().len(), 1);
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let home = TestHome::new();
    for args in [&["frobnicate"][..], &["run"], &["list", "--json", "--plain"], &["create"], &["next"]] {
        assert_eq!(home.run(args).code, 2, "{args:?}");
    }
    let _ = home.run_with(("BACKUP_COMPRES", "zstd"), &["serve"]).fails(2, &["BACKUP_COMPRES", "BACKUP_COMPRESS"]);
}

#[test]
fn values_out_of_range_and_folders_in_place_of_files_are_named() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    for (args, words) in [
        (&["edit", "docs", "--keep-last", "-1"][..], &["'-1'", "--keep-last"][..]),
        (&["config", "drill_days", "-1"], &["\"-1\" is not a number from 0"]),
        (&["verify", "--threads", "100000"], &["100000", "1 to 256"]),
        (&["verify", "--threads", "0"], &["'0'", "1 to 256"]),
        (&["find", ""], &["glob is empty", "next:"]),
        (&["list", "--db", "a"], &["a is a folder", "--db"]),
        (&["rescan", "--from-copy", "a"], &["the copy a is not a file", "next:"]),
        (&["-v", "list", "-q"], &["--quiet and --verbose"]),
        (&["--json", "list", "--plain"], &["--json and --plain"]),
    ] {
        let _ = home.run(args).fails(2, words);
    }
    let _ = home.run(&["run", "-1"]).fails(10, &["there is no schedule \"-1\""]);
    let _ = home.run(&["rescan", "--from-copy", "missing"]).fails(10, &["missing does not exist", "next:"]);
    let said = home.run(&["start", "--import", "missing.txt"]).ok();
    assert!(said.stderr.contains("missing.txt does not exist"), "{said:?}");
}

#[test]
fn a_place_in_which_no_folder_can_be_created_is_an_error() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--home", "/proc/no"]).fails(1, &["/proc/no", "next:"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let listed = home.run(&["list", "--logs", "/proc/no/logs"]).ok();
    assert!(listed.stderr.contains("warning: ") && listed.stderr.contains("/proc/no"), "{listed:?}");
    let _ = home.run(&["run", "docs", "--backups", "/proc/no"]).fails(1, &["/proc/no"]);
}

#[test]
fn archives_may_have_names_that_are_not_utf_8() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    let made = home.archive_files();
    let name = OsStr::from_bytes(b"caf\xe9.tar");
    fs::copy(home.path("backups/docs").join(&made[0]), home.path("").join(name)).unwrap();
    for (words, printed) in [
        (&["ls", "", "-l"][..], "a/file.txt"),
        (&["cat", "", "a/file.txt"], "content of a"),
        (&["verify", ""], "good: caf"),
        (&["diff", "", "docs"], ""),
        (&["diff", "docs", ""], ""),
        (&["restore", "", "--to", "out"], ""),
        (&["--json", "ls", ""], "\"a/file.txt\""),
    ] {
        let mut command = home.command(&[]);
        command.args(words.iter().map(|word| if word.is_empty() { name } else { OsStr::new(word) }));
        let said = said(&mut command).ok();
        assert!(said.stdout.contains(printed), "{words:?}: {said:?}");
    }
    let verified = said(home.command(&["--json", "verify"]).arg(name)).ok().json();
    assert_eq!(verified[0]["path_b64"], "Y2Fm6S50YXI=");
    // What a terminal would obey, or read as a line of its own.
    let evil = "evil\u{1b}[2J\ngood.tar";
    fs::copy(home.path("").join(name), home.path("backups/docs").join(evil)).unwrap();
    let scanned = home.run(&["rescan"]);
    let verified = home.run(&["verify", &format!("backups/docs/{evil}")]);
    for said in [scanned, verified] {
        assert!(said.stdout.contains("evil\\033[2J\\ngood.tar"), "{said:?}");
    }
    let missing = said(home.command(&["--json", "ls"]).arg(OsStr::from_bytes(b"./\xe9"))).fails(10, &["./\u{fffd}"]);
    assert!(missing.json()["error"]["message"].is_string());
}

#[test]
fn a_file_that_is_no_archive_is_explained_and_control_characters_are_escaped() {
    let home = TestHome::with_sources(&["docs"]);
    let evil = "evil\u{1b}[2J\nname";
    fs::write(home.path("docs").join(evil), "x").unwrap();
    fs::write(home.path("noise.tar"), "\u{1b}]0;title\u{7} no header ".repeat(200)).unwrap();
    let _ = home.run(&["create", "docs;02:00;docs", "--now"]).ok();
    let noise = [&["ls"][..], &["restore", "--to", "out"], &["cat", "--", "a"], &["diff", "docs"]];
    for command in noise {
        let said = home.run(&[&command[..1], &["noise.tar"], &command[1..]].concat());
        assert!(said.fails(4, &["noise.tar", "gzip or zstd"]).stdout.is_empty(), "{command:?}");
    }
    let verified = home.run(&["verify", "noise.tar"]).fails(4, &[]);
    let planned = home.run(&["restore", "docs", "-n", "--to", "out"]).ok();
    assert!(verified.stdout.contains("noise.tar") && planned.stdout.contains("create\tdocs/evil"), "{planned:?}");
    assert!(![verified, planned].iter().any(|said| said.stdout.contains('\u{1b}')));
    let _ = home.run(&["restore", "docs", &format!("docs/{evil}x"), "--to", "out"]).fails(10, &["did you mean"]);
    fs::create_dir_all(home.path("out/docs").join(evil)).unwrap();
    let _ = home.run(&["restore", "docs", "--to", "out"]).fails(3, &["evil"]);
    assert!(!home.log("backup_manager.log").contains('\u{1b}'));
}

#[test]
fn an_unknown_zone_only_fails_what_computes_schedules() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    for tz in ["Mars/Olympus", "CET-1CEST,M3.5.0,M10.5.0/3", "<+03>-3"] {
        let run = |args: &[&str]| home.run_with(("TZ", tz), args);
        for verb in [
            &["list"][..],
            &["show", "docs"],
            &["stop"],
            &["ls", "docs"],
            &["cat", "docs", "a/file.txt"],
            &["verify"],
            &["history"],
            &["backups"],
            &["restore", "docs", "--to", &format!("to-{}", tz.len())],
            &["run", "docs"],
            &["config"],
        ] {
            let said = run(verb).ok();
            assert!(said.stderr.contains("shown in UTC") && said.stderr.contains(tz), "{said:?}");
        }
        assert!(run(&["status"]).stderr.contains("shown in UTC"));
        for verb in [
            &["create", "a;10:00;more"][..],
            &["edit", "docs", "--at", "10:00"],
            &["next", "docs"],
            &["next", "--at", "09:00"],
            &["start"],
            &["serve"],
        ] {
            let _ = run(verb).fails(2, &[tz, "IANA name"]);
        }
        let _ = run(&["next", "--at", "09:00", "--timezone", "Europe/Paris"]).ok();
    }
    assert!(!home.run(&["list"]).ok().stdout.contains("more"));
}

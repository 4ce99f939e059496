//! `run`, `cancel`, `accept`, `backups`, `history`: runs by hand.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::environment::{TestHome, tar_lists};

#[test]
fn create_now_prints_the_archive_and_the_next_run() {
    let home = TestHome::with_sources(&["src"]);
    let made = home.run(&["create", "src;02:00;project_src", "--now"]).ok();
    let archives = home.archive_files();
    assert_eq!(archives.len(), 1);
    for word in [archives[0].as_str(), ", verified", "next run: ", "T02:00:00"] {
        assert!(made.stdout.contains(word), "{word}: {made:?}");
    }
    assert_eq!(tar_lists(&home.path("backups/project_src.tar")), ["src/", "src/file.txt"]);
}

#[test]
fn backups_lists_stable_names_in_list_order() {
    let home = TestHome::with_sources(&["documents", "photos", "code"]);
    let specs = ["documents;09:00;docs_morning", "photos;18:30;photos_evening", "code;23:59;code_nightly"];
    let _ = home.run(&[&["create"][..], &specs].concat()).ok();
    assert_eq!(home.run(&["backups"]).ok().stdout, "");
    let _ = home.run(&["run", "2", "docs_morning"]).ok();
    assert_eq!(home.run(&["backups"]).ok().stdout, "docs_morning.tar\ncode_nightly.tar\n");
    let _ = home.run(&["run", "--all"]).ok();
    assert_eq!(home.run(&["backups"]).ok().stdout, "docs_morning.tar\nphotos_evening.tar\ncode_nightly.tar\n");
    assert_eq!(home.run(&["backups", "--all"]).ok().stdout.lines().count(), 5);
    assert_eq!(home.run(&["snapshots", "--all"]).ok().stdout.lines().count(), 5);
    let json = home.run(&["--json", "backups", "docs_morning"]).ok().json();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!((json[0]["health"].as_str(), json[0]["good"].as_bool()), (Some("good"), Some(true)));
}

#[test]
fn history_lists_runs_and_shows_one_in_detail() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    let runs = home.run(&["--json", "history", "docs"]).ok().json();
    assert_eq!((runs[0]["state"].as_str(), runs[0]["trigger"].as_str()), (Some("succeeded"), Some("manual")));
    let number = runs[0]["run"].as_i64().unwrap();
    let one = home.run(&["--json", "history", &format!("@{number}")]).ok().json();
    assert_eq!(one["attempts"][0]["outcome"], "succeeded");
    assert_eq!(one["archive"]["members"], 2);
    let text = home.run(&["history", &format!("@{number}")]).ok().stdout;
    assert!(text.contains("attempt 1  succeeded"), "{text}");
    let plain = home.run(&["history"]).ok().stdout;
    assert!(plain.starts_with(&format!("@{number}\tdocs\tsucceeded\t")), "{plain}");
    assert_eq!(home.run(&["history", "--status", "failed"]).ok().stdout, "");
}

#[test]
fn dry_run_lists_what_would_be_archived_and_writes_nothing() {
    let home = TestHome::with_sources(&["a"]);
    fs::write(home.path("a/skip.tmp"), "x").unwrap();
    let _ = home.run(&["create", "a;09:00;docs", "--exclude", "*.tmp"]).ok();
    let said = home.run(&["run", "-n", "docs"]).ok();
    assert_eq!(said.stdout, "a\na/file.txt\n");
    assert!(home.archive_files().is_empty());
    assert_eq!(home.run(&["history"]).ok().stdout, "");
}

#[test]
fn excludes_links_and_own_files_stay_out() {
    let home = TestHome::new();
    for folder in ["tree/keep", "tree/node_modules/x", "tree/cache"] {
        fs::create_dir_all(home.path(folder)).unwrap();
        fs::write(home.path(folder).join("f"), "f").unwrap();
    }
    fs::write(home.path("tree/cache/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n").unwrap();
    std::os::unix::fs::symlink("keep/f", home.path("tree/link")).unwrap();
    fs::write(home.path("excludes.txt"), "# build\n*.o\n").unwrap();
    fs::write(home.path("tree/a.o"), "o").unwrap();
    let options = ["--exclude", "node_modules", "--exclude-caches", "--exclude-file", "excludes.txt", "-x"];
    let _ = home.run(&[&["create", "tree", "--name", "t", "--at", "1:00", "--now"][..], &options].concat()).ok();
    assert_eq!(
        tar_lists(&home.path("backups/t.tar")),
        ["tree/", "tree/cache/", "tree/cache/CACHEDIR.TAG", "tree/keep/", "tree/keep/f", "tree/link"]
    );
    // The home itself as the source: database, archives and logs are not in it.
    let _ = home.run(&["create", ".;02:00;whole", "--now"]).ok();
    let listed = tar_lists(&home.path("backups/whole.tar")).join("\n");
    for own in ["backup.db", "backups", "logs"] {
        assert!(!listed.contains(own), "{own} in {listed}");
    }
    assert!(listed.contains("tree/keep/f"));
}

#[test]
fn unreadable_files_are_new_problems_once() {
    let home = TestHome::with_sources(&["a"]);
    for name in ["a/secret", "a/line\nbreak"] {
        fs::write(home.path(name), "x").unwrap();
        fs::set_permissions(home.path(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let _ = home.run_unprivileged(&["create", "a;09:00;docs"]).ok();
    let said = home.run_unprivileged(&["run", "docs"]).fails(3, &["secret", "Permission denied"]);
    assert!(said.stdout.contains("incomplete") && said.stdout.contains("2 paths"), "{said:?}");
    let run = home.run_unprivileged(&["--json", "history", "@1"]).ok().json();
    assert_eq!((run["state"].as_str(), run["losses"].as_u64()), (Some("incomplete"), Some(2)));
    assert_eq!(run["problem_list"][0]["kind"], "unreadable");
    let new_paths = || home.run_unprivileged(&["--json", "status"]).json()["schedules"][0]["new_problems"].clone();
    assert_eq!(new_paths(), 2);
    let _ = home.run_unprivileged(&["run", "docs"]).fails(3, &["secret"]);
    assert_eq!(new_paths(), 0, "the same as last time is not new");
    assert_eq!(tar_lists(&home.path("backups/docs.tar")), ["a/", "a/file.txt"]);
}

#[test]
fn an_emptied_source_fails_until_accepted() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    fs::remove_file(home.path("a/file.txt")).unwrap();
    let _ = home.run(&["run", "docs"]).fails(1, &["empty", "accept docs"]);
    let _ = home.run(&["accept", "docs"]).ok();
    let _ = home.run(&["run", "docs"]).ok();
}

#[test]
fn an_accept_that_fails_accepts_nothing() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    fs::remove_file(home.path("a/file.txt")).unwrap();
    let _ = home.run(&["run", "docs"]).fails(1, &["empty", "accept docs"]);
    let database = rusqlite::Connection::open(home.path("backup.db")).unwrap();
    let refuse = "BEGIN SELECT raise(ABORT, 'as on a full disk'); END";
    database
        .execute_batch(&format!("CREATE TRIGGER refuse BEFORE UPDATE OF acknowledged_at_ms ON run {refuse}"))
        .unwrap();
    let _ = home.run(&["accept", "docs"]).fails(1, &["as on a full disk"]);
    database.execute_batch("DROP TRIGGER refuse").unwrap();
    let _ = home.run(&["run", "docs"]).fails(1, &["empty", "accept docs"]);
    let accepted = home.run(&["--json", "accept", "docs"]).ok().json();
    assert_eq!(accepted, serde_json::json!([{ "name": "docs", "run": 3 }]));
    assert_eq!(home.run(&["--json", "history", "@3"]).ok().json()["accepted"], true);
}

#[test]
fn the_stable_link_leads_to_a_suspect_archive_once_it_is_accepted() {
    let home = TestHome::with_sources(&["a"]);
    fs::write(home.path("a/large"), vec![b'x'; 8 << 20]).unwrap();
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    fs::remove_file(home.path("a/large")).unwrap();
    let ran = home.run(&["--json", "run", "docs"]).ok().json();
    assert_eq!(ran[0]["archive"]["suspect"], true, "{ran}");
    let target = || fs::read_link(home.path("backups/docs.tar")).unwrap().display().to_string();
    assert!(target().ends_with("-1.tar"), "{}", target());
    let _ = home.run(&["accept", "docs"]).ok();
    assert!(target().ends_with("-2.tar"), "{}", target());
}

#[test]
fn delete_with_archives_removes_them() {
    let home = TestHome::with_sources(&["a", "b"]);
    let _ = home.run(&["create", "a;09:00;one", "b;09:00;two", "--now"]).ok();
    assert_eq!(home.archive_files().len(), 2);
    let _ = home.run(&["delete", "one", "--with-archives", "--yes"]).ok();
    assert_eq!(home.archive_files().len(), 1);
    assert!(home.path("backups/one.tar").symlink_metadata().is_err());
    let _ = home.run(&["delete", "two"]).ok();
    assert_eq!(home.archive_files().len(), 1);
    assert_eq!(home.run(&["--json", "history", "two"]).ok().json()[0]["state"], "succeeded");
}

#[test]
fn tables_of_80_columns_break_no_name_and_no_date() {
    let home = TestHome::with_sources(&["a", "b"]);
    let _ = home.run(&["create", "a;09:00;photos_evening", "b;09:00;docs_morning", "--now"]).ok();
    // Two names of one file, so that their space is printed, too.
    let _ = home.run(&["run", "photos_evening"]).ok();
    let archives = home.run(&["--json", "backups", "photos_evening"]).ok().json();
    assert!(archives[0]["shared_bytes"].as_u64() > Some(0), "{archives}");
    let date = home.run(&["--json", "history"]).ok().json()[0]["started"].as_str().unwrap()[..10].to_owned();
    for verb in ["list", "backups", "backups -a", "history", "prune -n", "find file.txt"] {
        let line = format!("stty cols 80; {} {verb}", env!("CARGO_BIN_EXE_backup-manager"));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("TZ", "UTC").current_dir(home.dir.path()).stdin(Stdio::null());
        let printed = String::from_utf8(script.output().unwrap().stdout).unwrap();
        for word in ["photos_evening", "docs_morning", &date] {
            assert!(printed.contains(word), "{verb}: {word}: {printed}");
        }
        let longest = printed.lines().filter(|line| !line.contains('\u{1b}')).map(|line| line.trim_end().len()).max();
        assert!(longest <= Some(80), "{verb}: {printed}");
    }
}

#[test]
fn deleting_archives_needs_a_yes() {
    let home = TestHome::with_sources(&["a", "b"]);
    let _ = home.run(&["create", "a;09:00;one", "b;09:00;two", "--now"]).ok();
    let delete = ["delete", "one", "two", "--with-archives"];
    let _ = home.run(&delete).fails(2, &["2 archives (", " KiB) of one, two", "nothing was deleted", "add --yes"]);
    let on_a_terminal = |answer: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", &format!("{} {}", env!("CARGO_BIN_EXE_backup-manager"), delete.join(" ")), "/dev/null"]);
        script.env("TZ", "UTC").current_dir(home.dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        script.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        let output = script.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, printed) = on_a_terminal("y\n");
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("deletes 2 archives (") && printed.contains("nothing was deleted"), "{printed}");
    assert_eq!((home.archive_files().len(), home.run(&["list"]).ok().stdout.lines().count()), (2, 2));
    let (code, printed) = on_a_terminal("yes\n");
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!((home.archive_files().len(), home.run(&["list"]).ok().stdout.lines().count()), (0, 0));
    // Without archives there is nothing to ask.
    let _ = home.run(&["create", "a;09:00;three"]).ok();
    let _ = home.run(&["delete", "three", "--with-archives"]).ok();
}

#[test]
fn a_home_of_the_old_system_goes_on_and_loses_nothing() {
    let home = TestHome::with_sources(&["documents"]);
    fs::create_dir(home.path("backups")).unwrap();
    let made = std::process::Command::new("tar")
        .args(["-cf", "backups/docs_morning.tar", "documents"])
        .current_dir(home.dir.path())
        .status()
        .unwrap();
    assert!(made.success());
    let old = fs::read(home.path("backups/docs_morning.tar")).unwrap();
    fs::write(home.path("backup_schedules.txt"), "documents;09:00;docs_morning\n").unwrap();
    let _ = home.run(&["import"]).ok();
    let said = home.run(&["run", "docs_morning"]).ok();
    assert!(said.stderr.contains("legacy"), "{said:?}");
    assert!(home.path("backups/docs_morning.tar").symlink_metadata().unwrap().is_symlink());
    let legacy = home.archive_files().into_iter().find(|name| name.contains("-legacy.tar")).unwrap();
    assert_eq!(fs::read(home.path("backups/docs_morning").join(legacy)).unwrap(), old);
    assert_eq!(home.run(&["backups"]).ok().stdout, "docs_morning.tar\n");
    assert_eq!(home.run(&["backups", "--all"]).ok().stdout.lines().count(), 2);
}

#[test]
fn a_command_that_waits_for_a_run_takes_it_over_if_its_process_dies() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs", "--name", "docs", "--at", "9:00", "--now"]).ok();
    let lock = home.start_run_of_other_worker();
    let waiting = home.command(&["run", "docs"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    home.wait_until("waiting", 10, || home.number("SELECT count(*) FROM worker") == 1);
    drop(lock);
    let mut waiting = crate::environment::Running(waiting);
    let mut code = None;
    home.wait_until("end", 20, || {
        code = waiting.0.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    });
    assert_eq!(code, Some(Some(0)));
    assert_eq!(home.number("SELECT count(*) FROM run WHERE state = 'succeeded'"), 2);
}

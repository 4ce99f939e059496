//! `apply`, `serve --config`, and what commands may do with what a settings file manages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::environment::{Running, TestHome};

const TWO: &str = "[defaults]\ncompress = \"gzip\"\n\n[schedule.one]\nsource = \"a\"\nat = \"09:00\"\n\n\
                   [schedule.two]\nsource = \"b\"\ncron = \"0 5 * * *\"\n";

fn home_with(text: &str) -> TestHome {
    let home = TestHome::with_sources(&["a", "b"]);
    fs::write(home.path("backup.toml"), text).unwrap();
    home
}

#[test]
fn applying_a_file_twice_changes_nothing_and_says_so() {
    let home = home_with(TWO);
    let shown = home.run(&["apply", "-n", "backup.toml"]).ok().stdout;
    assert!(shown.contains("new: one\nnew: two\n") && shown.contains("nothing was changed"), "{shown}");
    assert!(!home.path("backup.db").exists(), "-n creates nothing");
    let said = home.run(&["apply", "backup.toml"]).ok();
    assert!(said.stderr.contains("backup.toml: 2 new"), "{said:?}");
    let said = home.run(&["apply", "backup.toml"]).ok();
    assert!(said.stderr.contains("backup.toml: nothing to change"), "{said:?}");
    assert_eq!(home.run(&["list"]).ok().stdout.lines().count(), 2);
    assert_eq!(home.run_with(("BACKUP_CONFIG", "backup.toml"), &["apply", "--json"]).ok().json()["unchanged"], 2);
}

#[test]
fn differences_are_shown_by_key_and_a_dry_run_changes_nothing() {
    let home = home_with(TWO);
    let _ = home.run(&["create", "a;08:00;one", "--exclude", "*.iso", "--keep-last", "3"]).ok();
    let shown = home.run(&["apply", "-n", "backup.toml"]).ok().stdout;
    for line in [
        "new: two",
        "changed: one",
        "  managed by the file from now on",
        "  at \"08:00\" -> \"09:00\"",
        "  compress \"none\" -> \"gzip:4\"",
        "  exclude [\"*.iso\"] -> []",
        "  keep_last 3 -> not set",
        "  keep_daily not set -> 7",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in {shown}");
    }
    assert_eq!(home.run(&["list"]).ok().stdout, "0: a;08:00;one\n");
    let document = home.run(&["apply", "backup.toml", "--json"]).ok().json();
    assert_eq!((&document["dry_run"], &document["created"][0]), (&false.into(), &"two".into()));
    let change = &document["changed"][0];
    assert_eq!((&change["name"], &change["taken_over"]), (&"one".into(), &true.into()));
    assert_eq!(change["differences"][0].to_string(), r#"{"after":"\"09:00\"","before":"\"08:00\"","key":"at"}"#);
    assert_eq!(home.run(&["show", "one", "--json"]).ok().json()["at"][0], "09:00");
}

#[test]
fn commands_name_the_file_and_the_line_that_manage_a_schedule() {
    let home = home_with(TWO);
    let _ = home.run(&["apply", "backup.toml"]).ok();
    let place = format!("{}:8", home.path("backup.toml").display());
    fs::write(home.path("list.txt"), "b;07:00;two\n").unwrap();
    fs::write(home.path("other.txt"), "b;07:00;three\n").unwrap();
    let _ = home.run(&["export", "all.json", "--format", "json"]).ok();
    for args in [
        &["edit", "two", "--at", "07:00"][..],
        &["delete", "two"],
        &["delete", "two", "--with-archives", "--yes"],
        &["import", "list.txt"],
    ] {
        let _ = home.run(args).fails(2, &["two is managed by", &place, "backup-manager apply"]);
    }
    let _ = home.run(&["import", "other.txt", "--replace"]).fails(2, &["is managed by", "backup.toml:4"]);
    let _ = home.run(&["import", "all.json", "--format", "json"]).ok();
    assert!(home.run(&["list"]).ok().stdout.contains("two"));
    assert_eq!(home.run(&["show", "two", "--json"]).ok().json()["managed_by"], place.as_str());
    assert!(home.run(&["show", "two"]).ok().stdout.contains(&format!("managed by    {place}\n")));
    let _ = home.run(&["import", "backup.toml", "--format", "toml"]).fails(2, &["backup-manager apply backup.toml"]);
}

#[test]
fn a_pause_by_command_stays_and_one_of_the_file_is_ended_by_the_file() {
    let home = home_with(TWO);
    let _ = home.run(&["apply", "backup.toml"]).ok();
    let _ = home.run(&["pause", "one"]).ok();
    let said = home.run(&["apply", "backup.toml"]).ok();
    assert!(said.stderr.contains("nothing to change"), "{said:?}");
    let enabled = |name: &str| home.run(&["show", name, "--json"]).ok().json()["enabled"] == true;
    assert!(!enabled("one"));
    let _ = home.run(&["resume", "one"]).ok();
    fs::write(home.path("backup.toml"), format!("{TWO}enabled = false\n")).unwrap();
    let _ = home.run(&["apply", "backup.toml"]).ok();
    let _ = home.run(&["resume", "two"]).fails(2, &["two is paused by", "backup.toml:8", "enabled = false"]);
    let _ = home.run(&["pause", "one"]).ok();
    let said = home.run(&["resume", "--all"]).ok();
    assert!(said.stderr.contains("two is paused by") && enabled("one") && !enabled("two"), "{said:?}");
    fs::write(home.path("backup.toml"), TWO).unwrap();
    let _ = home.run(&["apply", "backup.toml"]).ok();
    assert!(enabled("two"));
}

#[test]
fn what_leaves_the_file_is_paused_and_with_prune_deleted_with_its_archives_kept() {
    let home = home_with(TWO);
    let _ = home.run(&["apply", "backup.toml"]).ok();
    let _ = home.run(&["run", "two"]).ok();
    let archives = home.archive_files();
    assert_eq!(archives.len(), 1);
    let one = TWO.split("[schedule.two]").next().unwrap();
    fs::write(home.path("backup.toml"), one).unwrap();
    let document = home.run(&["apply", "backup.toml", "--prune", "-n", "--json"]).ok().json();
    assert_eq!((&document["deleted"][0], document["paused"].as_array().unwrap().len()), (&"two".into(), 0));
    let said = home.run(&["apply", "backup.toml"]).ok();
    assert!(said.stderr.contains("paused: two") && said.stderr.contains("1 paused, 1 unchanged"), "{said:?}");
    let shown = home.run(&["show", "two", "--json"]).ok().json();
    assert_eq!((&shown["enabled"], &shown["managed_by"]), (&false.into(), &serde_json::Value::Null));
    let _ = home.run(&["edit", "two", "--at", "07:00"]).ok();
    fs::write(home.path("backup.toml"), TWO).unwrap();
    let _ = home.run(&["apply", "backup.toml"]).ok();
    assert_eq!(home.run(&["show", "two", "--json"]).ok().json()["enabled"], true);
    fs::write(home.path("backup.toml"), one).unwrap();
    let _ = home.run(&["apply", "backup.toml", "--prune"]).fails(2, &["may be cut off", "two", "--prune --yes"]);
    fs::write(home.path("backup.toml"), one.trim_end()).unwrap();
    let _ = home.run(&["apply", "backup.toml", "--prune", "--yes"]).fails(2, &["newline", "two"]);
    assert_eq!(home.run(&["list"]).ok().stdout.lines().count(), 2);
    fs::write(home.path("backup.toml"), one).unwrap();
    let said = home.run(&["apply", "backup.toml", "--prune", "--yes"]).ok();
    assert!(said.stderr.contains("deleted: two"), "{said:?}");
    assert_eq!((home.run(&["list"]).ok().stdout.lines().count(), home.archive_files()), (1, archives));
    fs::write(home.path("backup.toml"), TWO).unwrap();
    let said = home.run(&["apply", "backup.toml"]).ok();
    assert!(said.stderr.contains("two was deleted before"), "{said:?}");
}

#[test]
fn a_bad_file_changes_nothing_and_creates_no_database() {
    let home = home_with(&TWO.replace("at =", "att =").replace("0 5", "0 25"));
    let words = ["2 errors", "line 6: schedule.one.att", "did you mean at?", "line 10: schedule.two.cron"];
    let _ = home.run(&["apply", "backup.toml"]).fails(2, &words);
    assert!(!home.path("backup.db").exists());
    let _ = home.run(&["apply", "missing.toml"]).fails(10, &["missing.toml", "export --format toml"]);
    let _ = home.run(&["apply", "a"]).fails(2, &["is a folder"]);
    fs::write(home.path("backup.toml"), TWO).unwrap();
    let _ = home.run(&["apply", "backup.toml"]).ok();
    let before = home.run(&["export", "--format", "json"]).ok().stdout;
    fs::write(home.path("backup.toml"), format!("{}at = 9\n", TWO.replace("09:00", "10:00"))).unwrap();
    let _ = home.run(&["apply", "backup.toml"]).fails(2, &["line 10"]);
    assert_eq!(home.run(&["export", "--format", "json"]).ok().stdout, before);
}

#[test]
fn a_name_in_two_settings_files_is_an_error_until_one_of_them_is_gone_or_released() {
    let home = home_with(TWO);
    let _ = home.run(&["apply", "backup.toml"]).ok();
    fs::copy(home.path("backup.toml"), home.path("other.toml")).unwrap();
    let said = home.run(&["apply", "other.toml"]).fails(2, &["2 errors", "line 4: one is managed by", "backup.toml:4"]);
    assert!(said.stderr.contains("line 8: two is managed by"), "{said:?}");
    fs::rename(home.path("backup.toml"), home.path("old.toml")).unwrap();
    let said = home.run(&["apply", "other.toml"]).ok();
    assert!(said.stderr.contains("managed by the file from now on"), "{said:?}");
    fs::remove_file(home.path("other.toml")).unwrap();
    let _ = home.run(&["edit", "one", "--at", "07:00"]).fails(2, &["other.toml", "--release"]);
    let said = home.run(&["apply", "--release", "other.toml"]).ok();
    assert!(said.stderr.contains("released: one") && said.stderr.contains("2 released"), "{said:?}");
    let _ = home.run(&["edit", "one", "--at", "07:00"]).ok();
}

#[test]
fn an_export_applied_in_its_own_home_only_takes_the_schedules_over() {
    let home = TestHome::with_sources(&["a"]);
    let options = ["--exclude", "it's \"x\"", "--timezone", "Asia/Tokyo", "--keep-within", "36h", "--no-verify", "-x"];
    let _ = home.run(&[&["create", "a;09:00;Büro 2"][..], &options].concat()).ok();
    let _ = home.run(&["create", "a", "--name", "often", "--cron", "*/5 * * * *"]).ok();
    let _ = home.run(&["pause", "often"]).ok();
    let before = home.run(&["export", "--format", "json"]).ok().stdout;
    let _ = home.run(&["export", "--format", "toml", "backup.toml"]).ok();
    let document = home.run(&["apply", "backup.toml", "--json"]).ok().json();
    let changes = document["changed"].as_array().unwrap();
    assert!(changes.len() == 2 && changes.iter().all(|change| change["differences"] == serde_json::json!([])));
    assert_eq!(home.run(&["export", "--format", "json"]).ok().stdout, before);
    let _ = home.run(&["export", "--format", "toml", "--json"]).fails(2, &["one JSON document"]);
}

#[test]
fn a_service_applies_the_file_that_its_environment_names() {
    let home = home_with(TWO);
    fs::write(home.path("schedules.txt"), "a;09:00;three\n").unwrap();
    let mut command = home.command(&["serve", "--import", "schedules.txt"]);
    command.env("BACKUP_CONFIG", "backup.toml").stderr(Stdio::null()).stdout(Stdio::null());
    let _service = Running(command.spawn().unwrap());
    home.wait_until("the file at the start", 40, || home.run(&["list"]).stdout.lines().count() == 3);
    fs::write(home.path("backup.toml"), TWO.replace("09:00", "9")).unwrap();
    home.wait_until("the error", 40, || {
        home.run(&["status", "--json"]).json()["config_error"].as_str().is_some_and(|error| error.contains("line 6"))
    });
    assert!(home.run(&["status"]).stdout.contains("backup.toml has 1 error"));
    // Also a command knows that a service follows a text file.
    let both = format!("{TWO}[schedule.three]\nsource = \"a\"\nat = \"1:00\"\n");
    fs::write(home.path("backup.toml"), both).unwrap();
    let _ = home.run(&["apply", "backup.toml"]).fails(2, &["line 11", "the text file", "three"]);
    fs::write(home.path("backup.toml"), TWO.replace("09:00", "10:00")).unwrap();
    home.wait_until("the change", 40, || home.run(&["list"]).stdout.contains("a;10:00;one"));
    home.wait_until("no error", 40, || home.run(&["status", "--json"]).json()["config_error"].is_null());
}

#[test]
fn a_command_of_the_file_is_executed_and_is_in_no_log() {
    let home = home_with(&TWO.replace("at =", "before = \"echo canary-7c1 >before.txt\"\nat ="));
    let said = home.run(&["apply", "backup.toml"]).ok();
    assert!(said.stderr.contains("2 new"), "{said:?}");
    let _ = home.run(&["run", "one"]).ok();
    let written = home.path("before.txt").exists() || home.path("a/before.txt").exists();
    assert!(written, "the command was executed");
    fs::write(home.path("backup.toml"), TWO.replace("at =", "before = \"echo canary-7c2\"\nat =")).unwrap();
    let said = home.run(&["apply", "backup.toml"]).ok();
    assert!(said.stderr.contains("before \"echo canary-7c1 >before.txt\" -> \"echo canary-7c2\""), "{said:?}");
    let log = home.log("backup_manager.log");
    assert!(log.contains("one: changed before") && !log.contains("canary"), "{log}");
    fs::set_permissions(home.path("backup.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    let _ = home.run(&["apply", "backup.toml"]).fails(2, &["others than its owner may write it", "chmod go-w"]);
}

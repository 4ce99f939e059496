//! `rescan` and the archive folder as a whole: many archives, older databases, folders of other homes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::environment::{Said, TestHome, said};

/// A home with one schedule and one archive, which is returned.
fn home_with_archive() -> (TestHome, PathBuf) {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let archive = home.path("backups/docs").join(&home.archive_files()[0]);
    (home, archive)
}

fn lose_database(home: &TestHome) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(home.path(&format!("backup.db{suffix}")));
    }
}

/// Runs the program with at most `limit` open files.
fn run_with_open_file_limit(home: &TestHome, limit: u32, args: &[&str]) -> Said {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_backup-manager")).args(args);
    said(command.env_clear().env("TZ", "UTC").current_dir(home.dir.path()))
}

#[test]
fn a_hundred_archives_are_found_verified_and_tested_with_48_open_files() {
    let (home, archive) = home_with_archive();
    for number in 2..=100 {
        let name = format!("docs-20260101T{:02}{:02}00Z-{number}.tar", number / 60, number % 60);
        fs::copy(&archive, home.path("backups/docs").join(name)).unwrap();
    }
    lose_database(&home);
    let limited = |args: &[&str]| run_with_open_file_limit(&home, 48, args).ok();
    assert_eq!(limited(&["--json", "rescan"]).json()["added"].as_array().unwrap().len(), 100);
    let verified = limited(&["verify"]);
    assert_eq!(verified.stdout.lines().filter(|line| line.starts_with("good: ")).count(), 100, "{verified:?}");
    let _ = limited(&["drill"]);
    let _ = limited(&["prune", "--dry-run"]);
    assert_eq!(home.run(&["--json", "rescan"]).ok().json()["known"], 100);
}

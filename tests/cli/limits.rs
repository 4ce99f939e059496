//! The program under the limits of the system.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::environment::{Running, Said, TestHome, said};

/// Users that start no other processes: the limit counts all threads of a user.
const USERS: [u32; 2] = [54_321, 54_322];

fn run_limited(home: &TestHome, threads: usize, args: &[&str]) -> Said {
    said(&mut limited(home, USERS[0], threads, args))
}

/// Returns the program as `user`, who may have `threads` threads.
fn limited(home: &TestHome, user: u32, threads: usize, args: &[&str]) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nproc={threads}")).arg(home.path(".program")).args(args);
    command.env_clear().env("TZ", "UTC").env("BACKUP_THREADS", "3").current_dir(home.dir.path());
    command.uid(user).gid(user);
    command
}

/// Makes a home with a source; `None` without root.
fn home_of_user() -> Option<TestHome> {
    if !rustix::process::geteuid().is_root() {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: needs root\n");
        return None;
    }
    Some(TestHome::with_sources(&["a"]))
}

/// Gives the home, with a copy of the program, to a user.
fn give(home: &TestHome, user: u32) {
    fs::copy(env!("CARGO_BIN_EXE_backup-manager"), home.path(".program")).unwrap();
    let owned = Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(home.dir.path()).status();
    assert!(owned.unwrap().success());
}

#[test]
fn a_service_without_threads_waits_for_them_and_does_not_spin() {
    let Some(home) = home_of_user() else { return };
    let _ = home.run(&["create", "a", "--name", "docs", "--cron", "* * * * * *"]).ok();
    give(&home, USERS[1]);
    // The main thread, the two that start commands, the one of the connections and the one for signals.
    let mut service = Running(limited(&home, USERS[1], 5, &["serve", "-q"]).spawn().unwrap());
    let log = || home.log("backup_service.log");
    home.wait_until("coalesced occurrences", 20, || log().matches("occurrence more").count() > 1);
    assert!(service.0.try_wait().unwrap().is_none());
    assert_eq!(log().matches("no thread could be started").count(), 2, "the run, and its recovery: {}", log());
}

#[test]
fn a_thread_that_cannot_be_started_is_an_error() {
    let Some(home) = home_of_user() else { return };
    let _ = home.run(&["create", "a;09:00;docs", "a;10:00;other", "--compress", "gzip", "--now"]).ok();
    let made = Command::new("tar")
        .args(["--owner=54321", "--group=54321", "--numeric-owner", "-czf", "foreign.tar.gz", "a"])
        .current_dir(home.dir.path())
        .status();
    assert!(made.unwrap().success());
    give(&home, USERS[0]);
    let verbs = [
        &["run", "docs"][..],
        &["verify"],
        &["verify", "./foreign.tar.gz"],
        &["drill", "docs"],
        &["restore", "docs", "--to", "out", "--overwrite", "always"],
        &["restore", "./foreign.tar.gz", "--to", "out", "--overwrite", "always"],
        &["ls", "./foreign.tar.gz"],
        &["cat", "docs", "a/file.txt"],
        &["list"],
    ];
    for verb in verbs {
        let mut refused = 0;
        let mut last = None;
        for threads in 1..16 {
            let said = run_limited(&home, threads, verb);
            assert!(!said.stderr.contains("panicked") && said.code != 101, "{threads}: {said:?}");
            refused += usize::from(said.stderr.contains("cannot start a thread"));
            last = Some(said);
        }
        assert!(refused > 0, "{verb:?} was never refused a thread");
        let _ = last.unwrap().ok();
    }
}

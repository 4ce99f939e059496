//! The program under the limits of the system.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::environment::{Said, TestHome, said};

/// A user that no other test starts processes as: the limit counts all threads of a user.
const USER: u32 = 54_321;

/// Runs the program as a user of its own that may have `threads` threads.
fn run_limited(home: &TestHome, threads: usize, args: &[&str]) -> Said {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nproc={threads}")).arg(home.path(".program")).args(args);
    command.env_clear().env("TZ", "UTC").env("BACKUP_THREADS", "3").current_dir(home.dir.path());
    said(command.uid(USER).gid(USER))
}

#[test]
fn a_thread_that_cannot_be_started_is_an_error() {
    if !rustix::process::geteuid().is_root() {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: needs root\n");
        return;
    }
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "a;10:00;other", "--compress", "gzip", "--now"]).ok();
    let made = Command::new("tar")
        .args(["--owner=54321", "--group=54321", "--numeric-owner", "-czf", "foreign.tar.gz", "a"])
        .current_dir(home.dir.path())
        .status();
    assert!(made.unwrap().success());
    fs::copy(env!("CARGO_BIN_EXE_backup-manager"), home.path(".program")).unwrap();
    let owned = Command::new("chown").args(["-R", "54321:54321"]).arg(home.dir.path()).status();
    assert!(owned.unwrap().success());
    let verbs = [
        &["run", "docs"][..],
        &["verify"],
        &["verify", "./foreign.tar.gz"],
        &["drill", "docs"],
        &["restore", "docs", "--to", "out", "--overwrite", "always"],
        &["restore", "./foreign.tar.gz", "--to", "out", "--overwrite", "always"],
        &["ls", "./foreign.tar.gz"],
        &["cat", "docs", "a/file.txt"],
    ];
    for verb in verbs {
        let mut refused = 0;
        let mut last = None;
        for threads in 1..12 {
            let said = run_limited(&home, threads, verb);
            assert!(!said.stderr.contains("panicked") && said.code != 101, "{threads}: {said:?}");
            refused += usize::from(said.stderr.contains("cannot start a thread"));
            last = Some(said);
        }
        assert!(refused > 0, "{verb:?} was never refused a thread");
        let _ = last.unwrap().ok();
    }
    let idle = run_limited(&home, 1, &["list"]).ok();
    assert!(idle.stdout.contains("docs"), "a listing needs no thread: {idle:?}");
}

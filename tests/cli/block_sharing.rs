//! Blocks that cannot be shared although the file system shares others: injected errors of the call.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::{Said, TestHome, said};
use crate::loop_mount::{LoopMount, shared_bytes};

const CALL: &str = "FICLONERANGE";

/// Runs the program with a fault in some of its `ioctl` calls; `faults` is the expression of strace, without the call.
fn run_with_fault(home: &TestHome, faults: &str, log: &Path) -> Said {
    let inject = format!("inject=ioctl{faults}");
    let words = ["strace", "-f", "-o", log.to_str().unwrap(), "-e", "trace=ioctl", "-e", &inject];
    let words: Vec<&str> = words.into_iter().chain([env!("CARGO_BIN_EXE_backup-manager")]).collect();
    said(&mut home.command_through(&words, &["run", "docs"]))
}

fn newest(home: &TestHome) -> PathBuf {
    let archives = home.run(&["--json", "backups", "docs"]).ok().json();
    PathBuf::from(archives[0]["path"].as_str().unwrap())
}

/// A home in a mounted XFS with a source and its first archive; `None` if that is not possible here.
fn home(mount: &LoopMount) -> Option<TestHome> {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: there is no strace");
        return None;
    }
    let home = TestHome { dir: mount.folder() };
    fs::create_dir(home.path("docs")).unwrap();
    let mut noise = blake3::Hasher::new().finalize_xof();
    for file in 0..100 {
        let mut bytes = vec![0; 60_000];
        noise.fill(&mut bytes);
        fs::write(home.path(&format!("docs/{file:02}")), bytes).unwrap();
    }
    let _ = home.run(&["create", "docs;09:00;docs", "--compress", "zstd", "--now"]).ok();
    Some(home)
}

#[test]
fn what_cannot_be_shared_is_copied_unless_the_disk_is_full() {
    let Some(mount) = LoopMount::new("xfs") else { return };
    let Some(home) = home(&mount) else { return };
    let log = home.path("trace");
    fs::write(home.path("docs/50"), "changed").unwrap();
    let _ = run_with_fault(&home, ":retval=0:when=1000", &log).ok();
    assert!(shared_bytes(&newest(&home)) > 1 << 20);
    // The thread that writes shares by its first calls; the main thread asks the file system later than that.
    let traced = fs::read_to_string(&log).unwrap();
    let (before, _) = traced.split_once(CALL).expect("a call that shares");
    let first_calls = format!("1..{}", before.matches("ioctl(").count() - 1);
    for (number, errno) in
        ["EOPNOTSUPP", "EXDEV", "EINVAL", "EPERM", "EACCES", "ENOTTY", "ETXTBSY", "EINTR", "EAGAIN", "EIO", "ENOSYS"]
            .into_iter()
            .enumerate()
    {
        fs::write(home.path("docs/50"), format!("changed {number}")).unwrap();
        let _ = run_with_fault(&home, &format!(":error={errno}:when={first_calls}"), &log).ok();
        let failed = fs::read_to_string(&log).unwrap();
        assert!(failed.lines().any(|line| line.contains(CALL) && line.contains("INJECTED")), "{errno}: {failed}");
        assert_eq!(shared_bytes(&newest(&home)), 0, "{errno}");
    }
    for errno in ["ENOSPC", "EDQUOT"] {
        fs::write(home.path("docs/50"), format!("changed {errno}")).unwrap();
        let files = home.archive_files();
        let _ = run_with_fault(&home, &format!(":error={errno}:when={first_calls}"), &log).fails(1, &["cannot write"]);
        assert_eq!(home.archive_files(), files, "{errno}");
    }
    let _ = home.run(&["run", "docs"]).ok();
    assert!(shared_bytes(&newest(&home)) > 1 << 20);
    let _ = home.run(&["verify"]).ok();
}

#[test]
fn a_file_system_that_shares_no_blocks_any_more_gets_a_whole_archive() {
    let Some(mount) = LoopMount::new("xfs") else { return };
    let Some(home) = home(&mount) else { return };
    let _ = run_with_fault(&home, ":error=EOPNOTSUPP", &home.path("trace")).ok();
    let outcome = home.run(&["--json", "history", "@2"]).ok().json();
    assert!(outcome["base"].is_null(), "its archives have no padding: {outcome}");
    // And the next run takes from the archive with padding again.
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(home.run(&["--json", "history", "@3"]).ok().json()["base"], 1);
    let _ = home.run(&["verify"]).ok();
}

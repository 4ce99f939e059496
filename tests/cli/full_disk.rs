//! A file system that fills up: under the archives, before a run and in the middle of it.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::environment::TestHome;

/// A small file system of its own, taken away at the end.
struct Small(PathBuf);

impl Small {
    /// Mounts one of `size` ("2m") at `path`; says visibly if it cannot.
    fn mount(path: PathBuf, size: &str) -> Option<Small> {
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Small(path));
        }
        let reason = "skipped: mounting a small file system needs root\n";
        std::io::stderr().write_all(reason.as_bytes()).unwrap();
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Bytes that do not pack.
fn noise(home: &TestHome, name: &str, bytes: usize) {
    let mut seed = 88_172_645_463_325_252_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    })
    .take(bytes / 8)
    .flatten()
    .collect();
    fs::create_dir_all(home.path(name)).unwrap();
    fs::write(home.path(name).join("noise"), content).unwrap();
}

#[test]
fn an_archive_that_will_not_fit_is_refused_before_it_is_started() {
    let home = TestHome::new();
    let Some(_small) = Small::mount(home.path("backups"), "2m") else { return };
    noise(&home, "big", 4 << 20);
    let _ = home.run(&["create", "big;09:00;big"]).ok();
    let _ = home.run(&["run", "big"]).fails(1, &["needs about", "free", "next:"]);
    assert!(home.archive_files().is_empty());
}

#[test]
fn a_disk_that_fills_up_in_the_middle_leaves_nothing_and_the_next_run_succeeds() {
    let home = TestHome::new();
    let Some(_small) = Small::mount(home.path("backups"), "2m") else { return };
    noise(&home, "big", 4 << 20);
    for compression in ["gzip", "zstd"] {
        let _ = home.run(&["create", "big", "--name", compression, "--at", "9:00", "--compress", compression]).ok();
        let _ = home.run(&["run", compression]).fails(1, &["No space left"]);
        assert!(home.archive_files().is_empty(), "{:?}", home.archive_files());
        assert_eq!(home.number("SELECT count(*) FROM chunk"), 0);
    }
    noise(&home, "big", 1 << 20);
    let _ = home.run(&["run", "zstd"]).ok();
    assert_eq!(home.archive_files().len(), 1);
}

#[test]
fn an_unwritable_log_and_terminal_do_not_fail_a_backup() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    fs::remove_file(home.path("logs/backup_manager.log")).unwrap();
    std::os::unix::fs::symlink("/dev/full", home.path("logs/backup_manager.log")).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = home.command(&["run", "docs"]).stdout(std::process::Stdio::null()).stderr(full).status().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(home.archive_files().len(), 1);
}

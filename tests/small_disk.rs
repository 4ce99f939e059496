//! Disks that fill up: that of the archives and that of the database, with 4 KiB more of free space in each step. Needs
//! root.
//!
//! `BACKUP_STRESS=full` takes every step; otherwise some.

#[path = "stress/mod.rs"]
mod stress;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stress::promises::{Promises, When, column};
use stress::random::Random;

const PAGE: u64 = 4_096;
/// After this time a command is taken to wait for space, as it does where the end of a run cannot be written.
const MAX_WAIT: Duration = Duration::from_secs(4);

/// A file system in memory, unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Option<Small> {
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "small"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Small(path));
        }
        stress::print("skipped: small disk: mounting a small file system needs root");
        None
    }

    /// Fills it up except for some pages.
    fn fill_except(&self, pages: u64) {
        let mut ballast = fs::File::create(self.0.join("ballast")).unwrap();
        let block = vec![1; PAGE as usize];
        while ballast.write_all(&block).is_ok() {}
        let length = ballast.metadata().unwrap().len();
        ballast.set_len(length.saturating_sub(pages * PAGE)).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Returns a command's exit code, or `None` if it kept waiting, and what it printed.
fn run(home: &Path, backups: &Path, command: &[&str]) -> (Option<i32>, String) {
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    program.args(command).env_clear().env("TZ", "UTC").env("BACKUP_DIR", backups).current_dir(home);
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output.reopen().unwrap());
    let mut child = program.spawn().expect("the program");
    let started = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if started.elapsed() > MAX_WAIT {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (code, fs::read_to_string(output.path()).unwrap())
}

/// Runs the steps until the space was enough three times in a row; returns the number of steps.
fn fill_up(which: &str, home: &Path, backups: &Path, small: &Small) -> u64 {
    let stride = if stress::full() { 1 } else { 9 };
    let (mut pages, mut enough, mut steps, mut failed, mut waited) = (0, 0, 0, 0, 0);
    let mut promises = Promises::default();
    while enough < 3 {
        // A schedule without an archive has no estimate of the space it needs, and so fails in the middle of writing.
        let name = format!("docs{pages}");
        let created = run(home, backups, &["create", "docs", "--name", &name, "--at", "9:00", "--compress", "zstd"]);
        assert_eq!(created.0, Some(0), "{which}: {}", created.1);
        small.fill_except(pages);
        let (code, output) = run(home, backups, &["run", &name]);
        // The checks need some space themselves.
        small.free();
        match code {
            Some(0) => enough += 1,
            Some(code) => {
                (enough, failed) = (0, failed + 1);
                assert!(!output.trim().is_empty() && !output.contains("panicked"), "{pages} pages: {code}: {output}");
                let violations = promises.violations(home, When::Always);
                assert!(violations.is_empty(), "{which}, {pages} pages: {}", violations.join("; "));
                let left = column(&database(home), "SELECT name FROM schedule");
                assert!(left.contains(&name), "{which}, {pages} pages: {left:?}");
            }
            None => (enough, waited) = (0, waited + 1),
        }
        let (code, output) = run(home, backups, &["run", &name]);
        assert_eq!(code, Some(0), "{which}: with space again after {pages} pages: {output}");
        let violations = promises.violations(home, When::Settled);
        assert!(violations.is_empty(), "{which}, {pages} pages, with space again: {}", violations.join("; "));
        (pages, steps) = (pages + stride, steps + 1);
    }
    stress::print(&format!("small disk, {which}: {steps} steps, {failed} failed, {waited} waited for space"));
    steps
}

fn database(home: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(home.join("backup.db")).unwrap()
}

fn fill_source(home: &Path) {
    let mut random = Random::seeded(7);
    fs::create_dir_all(home.join("docs")).unwrap();
    for file in 0..8 {
        let noise: Vec<u8> = (0..20_000).map(|_| random.next() as u8).collect();
        fs::write(home.join(format!("docs/noise {file}")), noise).unwrap();
    }
}

#[test]
fn a_full_archive_disk_leaves_nothing_and_the_next_run_succeeds() {
    let folder = stress::fast_folder();
    let Some(small) = Small::mount(folder.path().join("backups")) else { return };
    fill_source(folder.path());
    let backups = folder.path().join("backups");
    fill_up("archives", folder.path(), &backups, &small);
}

#[test]
fn a_full_database_disk_loses_nothing_and_the_next_run_succeeds() {
    let folder = stress::fast_folder();
    let home = folder.path().join("home");
    let Some(small) = Small::mount(home.clone()) else { return };
    fill_source(&home);
    // In the folder where the checks expect it, but on another disk.
    fs::create_dir(folder.path().join("backups")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("backups"), home.join("backups")).unwrap();
    let backups = home.join("backups");
    fill_up("database", &home, &backups, &small);
}

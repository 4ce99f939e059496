//! Disks that fill up: that of the archives and that of the database, with 4 KiB more of free space in each step, in
//! backups and in compaction. Needs root.
//!
//! `BACKUP_STRESS=full` takes every step; otherwise some.

#[path = "stress/mod.rs"]
mod stress;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stress::promises::{Promises, When, column};
use stress::random::Random;

const PAGE: u64 = 4_096;
/// After this time a command is taken to wait for space, as it does where the end of a run cannot be written.
const MAX_WAIT: Duration = Duration::from_secs(4);

/// A file system in memory, unmounted at the end.
struct Small {
    path: PathBuf,
    mib: u32,
}

impl Small {
    fn mount(path: PathBuf, mib: u32) -> Option<Small> {
        fs::create_dir_all(&path).unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "small"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Small { path, mib });
        }
        stress::print("skipped: small disk: mounting a small file system needs root");
        None
    }

    /// Limits it to what is used and some pages.
    fn fill_except(&self, pages: u64) {
        let is_limited = || {
            let found = rustix::fs::statvfs(&self.path).unwrap();
            let used = (found.f_blocks - found.f_bfree) * found.f_frsize;
            // A size of 0 would be none.
            self.resize(&format!("size={}", (used + pages * PAGE).max(PAGE)))
        };
        // Somebody may be writing.
        while !is_limited() {}
    }

    fn free(&self) {
        assert!(self.resize(&format!("size={}m", self.mib)));
    }

    fn resize(&self, size: &str) -> bool {
        let options = format!("remount,{size}");
        let output = Command::new("mount").args(["-o", &options]).arg(&self.path).output();
        output.unwrap().status.success()
    }

    /// Removes all that is in it.
    fn clear(&self) {
        for entry in fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() && !entry.is_symlink() {
                fs::remove_dir_all(entry).unwrap();
            } else {
                fs::remove_file(entry).unwrap();
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn program(home: &Path, backups: &Path, command: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    program.args(command).env_clear().env("TZ", "UTC").env("BACKUP_DIR", backups).current_dir(home);
    program.stdin(Stdio::null()).stdout(Stdio::null());
    program
}

/// Returns a command's exit code, or `None` if it kept waiting, and what it printed.
fn run(home: &Path, backups: &Path, command: &[&str]) -> (Option<i32>, String) {
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut program = program(home, backups, command);
    let mut child = program.stderr(output.reopen().unwrap()).spawn().expect("the program");
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
    let Some(small) = Small::mount(folder.path().join("backups"), 64) else { return };
    fill_source(folder.path());
    let backups = folder.path().join("backups");
    fill_up("archives", folder.path(), &backups, &small);
}

#[test]
fn a_full_database_disk_loses_nothing_and_the_next_run_succeeds() {
    let folder = stress::fast_folder();
    let home = folder.path().join("home");
    let Some(small) = Small::mount(home.clone(), 64) else { return };
    fill_source(&home);
    // In the folder where the checks expect it, but on another disk.
    fs::create_dir(folder.path().join("backups")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("backups"), home.join("backups")).unwrap();
    let backups = home.join("backups");
    fill_up("database", &home, &backups, &small);
}

/// A home whose database or archives are on the small disk, and a copy of it in which compaction has something to do.
struct Segments {
    folder: tempfile::TempDir,
    small: Small,
    /// Of the folder on the small disk.
    on_small: &'static str,
}

impl Segments {
    fn make(on_small: &'static str) -> Option<Segments> {
        let folder = stress::fast_folder();
        let small = Small::mount(folder.path().join(on_small), 320)?;
        let made = Segments { folder, small, on_small };
        fs::create_dir_all(made.home()).unwrap();
        fs::create_dir_all(made.backups()).unwrap();
        // In the folder where the checks expect it, but on another disk.
        std::os::unix::fs::symlink(made.backups(), made.home().join("backups")).unwrap();
        let write = |version: usize, files: std::ops::Range<usize>| {
            fs::create_dir_all(made.home().join("docs")).unwrap();
            let mut random = Random::seeded(version as u64);
            for file in files {
                // Much, so that the disk can be filled while it is copied.
                let noise: Vec<u8> = (0..100_000).flat_map(|_| random.next().to_le_bytes()).collect();
                fs::write(made.home().join(format!("docs/{file}")), noise).unwrap();
            }
        };
        write(1, 0..24);
        let options = ["--layout", "segmented", "--compress", "zstd", "--keep-last", "3"];
        made.succeeds(&[&["create", "docs", "--name", "docs", "--at", "9:00"], &options[..]].concat());
        made.succeeds(&["run", "docs"]);
        for version in 2..4 {
            write(version, 8..24);
            made.succeeds(&["run", "docs"]);
        }
        made.succeeds(&["edit", "docs", "--keep-last", "2"]);
        for part in ["home", "backups"] {
            copy_tree(&made.folder.path().join(part), &made.folder.path().join("saved").join(part));
        }
        Some(made)
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn backups(&self) -> PathBuf {
        self.folder.path().join("backups")
    }

    fn succeeds(&self, command: &[&str]) {
        let (code, output) = run(&self.home(), &self.backups(), command);
        assert_eq!(code, Some(0), "{command:?}: {output}");
    }

    /// Puts everything back as it was before compaction.
    fn put_back(&self) {
        self.small.clear();
        for part in ["home", "backups"].into_iter().filter(|part| *part != self.on_small) {
            fs::remove_dir_all(self.folder.path().join(part)).unwrap();
        }
        for part in ["home", "backups"] {
            copy_tree(&self.folder.path().join("saved").join(part), &self.folder.path().join(part));
        }
    }

    /// Returns whether a file in the archive folder has a name that ends so.
    fn has(&self, end: &str) -> bool {
        let mut names = fs::read_dir(self.backups().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
        names.any(|name| name.to_string_lossy().ends_with(end))
    }

    /// Runs `prune` while the disk has this much space left from the time when the first bytes were copied, or from the
    /// beginning. Returns what it printed.
    fn prune_on_full_disk(&self, pages: u64) -> String {
        let stops = self.on_small == "home";
        if stops {
            self.small.fill_except(pages);
        }
        let output = tempfile::NamedTempFile::new().unwrap();
        let mut program = program(&self.home(), &self.backups(), &["prune", "--yes"]);
        let mut child = program.stderr(output.reopen().unwrap()).spawn().expect("the program");
        let (started, mut is_full) = (Instant::now(), stops);
        while child.try_wait().unwrap().is_none() && started.elapsed() < MAX_WAIT {
            if !is_full && self.has(".part") {
                self.small.fill_except(pages);
                is_full = true;
            }
        }
        let _ = child.kill();
        child.wait().unwrap();
        if is_full {
            self.small.free();
        }
        fs::read_to_string(output.path()).unwrap()
    }

    /// Fills the disk up in the middle of compaction, with more space left in each step, up to so many pages.
    fn fill_up(&self, most_pages: u64) {
        let steps = if stress::full() { 60 } else { 6 };
        let (mut full, mut waited) = (0, 0);
        for pages in (0..steps).map(|step| step * most_pages / steps) {
            self.put_back();
            let mut promises = Promises::default();
            let output = self.prune_on_full_disk(pages);
            assert!(!output.contains("panicked"), "{pages} pages: {output}");
            full += u64::from(output.contains("o space left") || output.contains("is full"));
            waited += u64::from(output.is_empty());
            let violations = promises.violations(&self.home(), When::Always);
            assert!(violations.is_empty(), "{}, {pages} pages: {}", self.on_small, violations.join("; "));
            self.succeeds(&["verify"]);
            self.succeeds(&["prune", "--yes"]);
            let violations = promises.violations(&self.home(), When::Settled);
            assert!(violations.is_empty(), "{}, {pages} pages, after: {}", self.on_small, violations.join("; "));
            assert!(!self.has("-1.tar.zst.1.segment"), "{pages} pages: not compacted in the end");
        }
        stress::print(&format!("small disk, compaction, {}: {full} met a full disk, {waited} waited", self.on_small));
        assert!(full > 0, "no case met a full disk");
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(copied.unwrap().success());
}

#[test]
fn an_archive_disk_that_fills_up_in_compaction_loses_nothing() {
    if let Some(segments) = Segments::make("backups") {
        segments.fill_up(1_500);
    }
}

#[test]
fn a_database_disk_that_fills_up_in_compaction_loses_nothing() {
    if let Some(segments) = Segments::make("home") {
        segments.fill_up(60);
    }
}

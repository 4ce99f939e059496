//! Disks that fill up: the archives' and the database's, with every 4 KiB more of room. Needs root.
//!
//! `BACKUP_PROVE=full` takes every step; otherwise some.

#[path = "prove/mod.rs"]
mod prove;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prove::promises::{Promises, When, column};
use prove::random::Random;

const PAGE: u64 = 4_096;
/// After that a command is taken to wait for room, as it does where the end of a run cannot be written.
const PATIENCE: Duration = Duration::from_secs(4);

/// A file system in memory, taken away at the end.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Option<Small> {
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "small"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Small(path));
        }
        prove::say("skipped: small disk: mounting a small file system needs root");
        None
    }

    /// Fills it up but for some pages.
    fn leave(&self, pages: u64) {
        let mut ballast = fs::File::create(self.0.join("ballast")).unwrap();
        let block = vec![1; PAGE as usize];
        while ballast.write_all(&block).is_ok() {}
        let length = ballast.metadata().unwrap().len();
        ballast.set_len(length.saturating_sub(pages * PAGE)).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What a command said, and its exit code; `None` if it went on waiting.
fn run(home: &Path, backups: &Path, command: &[&str]) -> (Option<i32>, String) {
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    program.args(command).env_clear().env("TZ", "UTC").env("BACKUP_DIR", backups).current_dir(home);
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.reopen().unwrap());
    let mut child = program.spawn().expect("the program");
    let started = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (code, fs::read_to_string(said.path()).unwrap())
}

/// Goes through the steps until there was room enough several times running; returns how many steps.
fn fill_up(which: &str, home: &Path, backups: &Path, small: &Small) -> u64 {
    let stride = if prove::full() { 1 } else { 9 };
    let (mut pages, mut enough, mut steps, mut refused, mut waited) = (0, 0, 0, 0, 0);
    let mut promises = Promises::default();
    while enough < 3 {
        // A schedule without an archive has nothing to reckon by, and finds the disk full only in the midst of writing.
        let name = format!("docs{pages}");
        let created = run(home, backups, &["create", "docs", "--name", &name, "--at", "9:00", "--compress", "zstd"]);
        assert_eq!(created.0, Some(0), "{which}: {}", created.1);
        small.leave(pages);
        let (code, said) = run(home, backups, &["run", &name]);
        // The questions need some room themselves.
        small.empty();
        match code {
            Some(0) => enough += 1,
            Some(code) => {
                (enough, refused) = (0, refused + 1);
                assert!(!said.trim().is_empty() && !said.contains("panicked"), "{pages} pages: {code}: {said}");
                let broken = promises.broken(home, When::Always);
                assert!(broken.is_empty(), "{which}, {pages} pages: {}", broken.join("; "));
                let left = column(&database(home), "SELECT name FROM schedule");
                assert!(left.contains(&name), "{which}, {pages} pages: {left:?}");
            }
            None => (enough, waited) = (0, waited + 1),
        }
        let (code, said) = run(home, backups, &["run", &name]);
        assert_eq!(code, Some(0), "{which}: with room again after {pages} pages: {said}");
        let broken = promises.broken(home, When::Settled);
        assert!(broken.is_empty(), "{which}, {pages} pages, with room again: {}", broken.join("; "));
        (pages, steps) = (pages + stride, steps + 1);
    }
    prove::say(&format!("small disk, {which}: {steps} steps, {refused} refused, {waited} waited for room"));
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
fn a_full_disk_under_the_archives_leaves_nothing_and_room_mends_all() {
    let folder = prove::fast_folder();
    let Some(small) = Small::mount(folder.path().join("backups")) else { return };
    fill_source(folder.path());
    let backups = folder.path().join("backups");
    fill_up("archives", folder.path(), &backups, &small);
}

#[test]
fn a_full_disk_under_the_database_loses_nothing_and_room_mends_all() {
    let folder = prove::fast_folder();
    let home = folder.path().join("home");
    let Some(small) = Small::mount(home.clone()) else { return };
    fill_source(&home);
    // Where the checks look for it; on another disk.
    fs::create_dir(folder.path().join("backups")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("backups"), home.join("backups")).unwrap();
    let backups = home.join("backups");
    fill_up("database", &home, &backups, &small);
}

//! Series of random changes: each archive made with a base is what a run that reads everything makes.
//!
//! `BACKUP_STRESS=full` takes 1,000 seeds, otherwise a few; `BACKUP_MANAGER_SEED` takes one.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use backup_manager::archive::padding::Padding;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use crate::catalog::World;
use crate::changes::CODECS;
use crate::support::random::Random;

struct Tree {
    root: PathBuf,
    random: Random,
}

impl Tree {
    /// Returns all paths below the root of which `keep` is true.
    fn paths(&self, keep: impl Fn(&fs::Metadata) -> bool) -> Vec<PathBuf> {
        let (mut found, mut folders) = (Vec::new(), vec![self.root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let stat = fs::symlink_metadata(&path).unwrap();
                if stat.is_dir() {
                    folders.push(path.clone());
                }
                if keep(&stat) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    fn pick(&mut self, from: &[PathBuf]) -> Option<PathBuf> {
        (!from.is_empty()).then(|| from[self.random.below(from.len() as u64) as usize].clone())
    }

    fn file(&mut self) -> Option<PathBuf> {
        self.pick(&self.paths(fs::Metadata::is_file))
    }

    fn folder(&mut self) -> PathBuf {
        let folders = self.paths(fs::Metadata::is_dir);
        self.pick(&folders).unwrap_or_else(|| self.root.clone())
    }

    fn new_path(&mut self) -> PathBuf {
        let number = self.random.below(400);
        self.folder().join(format!("{}{number}", ["a", "m-", "z.", "é"][number as usize % 4]))
    }

    fn bytes(&mut self, size: u64) -> Vec<u8> {
        let start = self.random.below(1 << 30);
        (0..size).map(|i| ((start + i / 9) % 251) as u8).collect()
    }

    fn size(&mut self) -> u64 {
        match self.random.below(40) {
            0 => self.random.below(22 << 20),
            1..4 => self.random.below(6 << 20),
            4..10 => 512 * self.random.below(300),
            _ => self.random.below(30_000),
        }
    }

    fn change(&mut self) -> Option<()> {
        match self.random.below(3) {
            0 => self.change_content(),
            1 => self.change_names(),
            _ => self.change_attributes(),
        }
    }

    fn change_content(&mut self) -> Option<()> {
        match self.random.below(6) {
            0..4 => {
                let (path, size) = (self.new_path(), self.size());
                // Opening a fifo would wait for a reader.
                let is_fifo = fs::symlink_metadata(&path).is_ok_and(|stat| stat.file_type().is_fifo());
                (!is_fifo).then(|| fs::write(path, self.bytes(size)).ok())?
            }
            4 => self.overwrite_quietly(),
            _ => {
                let path = self.file()?;
                File::options().write(true).open(path).ok()?.set_len(self.size()).ok()
            }
        }
    }

    fn change_names(&mut self) -> Option<()> {
        let (file, folder, new) = (self.file(), self.folder(), self.new_path());
        match self.random.below(9) {
            0 => fs::create_dir(new).ok(),
            1 => fs::remove_file(file?).ok(),
            2 => fs::rename(file?, new).ok(),
            3 => fs::rename(file?, self.file()?).ok(),
            4 => (folder != self.root).then(|| fs::rename(folder, new).ok())?,
            5 => (folder != self.root).then(|| fs::remove_dir_all(folder).ok())?,
            6 => fs::hard_link(file?, new).ok(),
            7 => symlink(format!("target {}", self.random.below(9)), new).ok(),
            _ => mknodat(CWD, new, FileType::Fifo, Mode::from_raw_mode(0o600), 0).ok(),
        }
    }

    fn change_attributes(&mut self) -> Option<()> {
        let path = self.pick(&self.paths(|stat| stat.is_file() || stat.is_dir()))?;
        match self.random.below(5) {
            0 => fs::set_permissions(path, fs::Permissions::from_mode(0o700 + self.random.below(64) as u32)).ok(),
            1 => {
                let path = self.pick(&self.paths(|_| true))?;
                set_modified(&path, self.random.below(1 << 31) as i64)
            }
            2 => xattr::set(path, "user.test", self.random.below(9).to_string().as_bytes()).ok(),
            3 => xattr::remove(path, "user.test").ok(),
            _ => chown(path, Some(self.random.below(3) as u32), None).ok(),
        }
    }

    /// Overwrites a part of a file and keeps size and mtime.
    fn overwrite_quietly(&mut self) -> Option<()> {
        let path = self.file()?;
        let stat = fs::metadata(&path).ok()?;
        let at = self.random.below(stat.len().max(1));
        let bytes = self.bytes((stat.len() - at).min(9));
        File::options().write(true).open(&path).ok()?.write_all_at(&bytes, at).ok()?;
        let time = Timespec { tv_sec: stat.mtime(), tv_nsec: stat.mtime_nsec() as _ };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &path, &times, AtFlags::empty()).ok()
    }
}

fn set_modified(path: &Path, seconds: i64) -> Option<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).ok()
}

fn series(seed: u64) {
    let mut world = World::new(CODECS[seed as usize % CODECS.len()]);
    if seed / CODECS.len() as u64 % 2 == 1 {
        world.padding = Padding::Blocks;
    }
    let mut tree = Tree { root: world.source.clone(), random: Random::new(seed) };
    for _ in 0..120 {
        tree.change();
    }
    world.later();
    world.run();
    for run in 1..5 {
        let changes = [0, 1, 3, 30][tree.random.below(4) as usize];
        for _ in 0..changes {
            tree.change();
        }
        world.links = tree.random.below(4) > 0;
        world.rules = if tree.random.below(4) == 0 { |rules| rules.rereads_all = true } else { |_| {} };
        // Sometimes the changes are recent for the run after this one.
        match tree.random.below(3) {
            0 => world.clock = backup_manager::clock::ManualClock::at(crate::catalog::now()),
            _ => world.later(),
        }
        let made = world.run();
        assert_eq!(made.written.problems, [], "seed {seed}, run {run}");
        world.assert_as_fresh(&made, &format!("seed {seed}, run {run}, {changes} changes"));
    }
}

#[test]
fn each_archive_of_a_series_is_what_a_run_that_reads_everything_makes() {
    let is_full = std::env::var("BACKUP_STRESS").is_ok_and(|value| value == "full");
    match std::env::var("BACKUP_MANAGER_SEED") {
        Ok(seed) => series(seed.parse().unwrap()),
        Err(_) if is_full => (0..1_000).for_each(series),
        Err(_) => (0..6).for_each(series),
    }
}

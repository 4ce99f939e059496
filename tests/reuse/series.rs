//! Series of random changes: each archive made with a base is what a run that reads everything makes, and GNU tar
//! extracts from it the tree of its day. The same changes are archived with each codec, in both layouts.
//!
//! `BACKUP_STRESS=full` takes 1,000 seeds, `BACKUP_SEEDS=n` so many, otherwise a few; `BACKUP_SEED` takes one.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use backup_manager::archive::padding::Padding;
use backup_manager::clock::{Clock, ManualClock};
use backup_manager::schedule::Compression;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use crate::catalog::{Made, World, now};
use crate::changes::CODECS;
use crate::segmented::Segmented;
use crate::support::archive::{has_tool, run_tool};
use crate::support::random::Random;
use crate::support::tree;

const FULL: u64 = 1_000;
const QUICK: u64 = 4;
/// One seed in so many lies on the disk, with its own file system; the others lie in memory, which is faster.
const ON_DISK: u64 = 16;

struct Tree {
    root: PathBuf,
    random: Random,
    /// What was there before the change.
    entries: Vec<(PathBuf, fs::Metadata)>,
    /// The last members of the chunks of the archives made last.
    chunk_ends: Vec<PathBuf>,
}

impl Tree {
    /// Finds all paths below the root.
    fn scan(&mut self) {
        self.entries.clear();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let stat = fs::symlink_metadata(&path).unwrap();
                if stat.is_dir() {
                    folders.push(path.clone());
                }
                self.entries.push((path, stat));
            }
        }
        self.entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    }

    /// Returns all paths of which `keep` is true.
    fn paths(&self, keep: impl Fn(&fs::Metadata) -> bool) -> Vec<PathBuf> {
        self.entries.iter().filter(|(_, stat)| keep(stat)).map(|(path, _)| path.clone()).collect()
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
        match self.random.below(400) {
            0 => (14 << 20) + self.random.below(8 << 20),
            1..7 => self.random.below(6 << 20),
            7..120 => 512 * self.random.below(300),
            _ => self.random.below(30_000),
        }
    }

    fn change(&mut self) -> Option<()> {
        self.scan();
        match self.random.below(8) {
            0..3 => self.change_content(),
            3..5 => self.change_names(),
            5 => self.change_kind(),
            _ => self.change_attributes(),
        }
    }

    /// Puts an entry of another kind in the place of one, or a file directly behind one.
    fn change_kind(&mut self) -> Option<()> {
        let behind = self.chunk_ends.clone();
        let (path, size) = (self.pick(&self.paths(|_| true))?, self.size());
        let is_folder = fs::symlink_metadata(&path).ok()?.is_dir();
        let remove = || if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match self.random.below(4) {
            0 if is_folder => remove().and_then(|()| fs::write(&path, self.bytes(size))).ok(),
            0 => remove().and_then(|()| fs::create_dir(&path)).ok(),
            1 => remove().and_then(|()| symlink("elsewhere", &path)).ok(),
            2 => fs::write(directly_behind(&path), self.bytes(size)).ok(),
            _ => fs::write(directly_behind(&self.pick(&behind)?), self.bytes(size)).ok(),
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
        let name = self.pick(&self.paths(|stat| stat.is_file() && stat.nlink() > 1));
        match self.random.below(12) {
            0 => fs::create_dir(new).ok(),
            1 => fs::remove_file(file?).ok(),
            2 => fs::rename(file?, new).ok(),
            3 => fs::rename(file?, self.file()?).ok(),
            4 => (folder != self.root).then(|| fs::rename(folder, new).ok())?,
            5 => (folder != self.root).then(|| fs::remove_dir_all(folder).ok())?,
            6 => fs::hard_link(file?, new).ok(),
            7 => symlink(format!("target {}", self.random.below(9)), new).ok(),
            // Another name of the file carries its data from now on.
            8 => fs::rename(name?, new).ok(),
            9 => fs::remove_file(name?).ok(),
            10 => fs::rename(name?, self.file()?).ok(),
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

/// Returns the path that follows directly behind all that lies at `path`.
fn directly_behind(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("!");
    name.into()
}

/// Makes archives of one tree with each codec.
fn series(seed: u64) -> Count {
    let is_in_memory = !seed.is_multiple_of(ON_DISK) && Path::new("/dev/shm").is_dir();
    let folder = if is_in_memory { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() }.unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let world = |codec| World::of(tempfile::tempdir_in(folder.path()).unwrap(), source.clone(), codec);
    let mut worlds = CODECS.map(world);
    let mut segmented =
        CODECS.map(|codec| Segmented::new(tempfile::tempdir_in(folder.path()).unwrap(), &source, codec, now()));
    let mut tree =
        Tree { root: source.clone(), random: Random::new(seed), entries: Vec::new(), chunk_ends: Vec::new() };
    for _ in 0..240 {
        tree.change();
    }
    for world in &mut worlds {
        if seed % 2 == 1 {
            world.padding = Padding::Blocks;
        }
        world.rules = |rules| rules.trusts_times = true;
        world.later();
        world.run();
    }
    let first = unpadded(&worlds).stream();
    for home in &mut segmented {
        home.run(worlds[0].clock.now(), false, &first, &format!("seed {seed}"));
    }
    let mut count = Count { seeds: 1, ..Count::default() };
    for run in 1..6 {
        let changes = [0, 1, 1, 3, 12][tree.random.below(5) as usize];
        (0..changes).for_each(|_| {
            tree.change();
        });
        let (links, rereads) = (tree.random.below(4) > 0, tree.random.below(4) == 0);
        // Sometimes the changes are recent for the run after this one.
        let is_later = tree.random.below(3) > 0;
        let made = worlds.each_mut().map(|world| {
            world.links = links;
            world.rules = if rereads { reading_all } else { |rules| rules.trusts_times = true };
            world.clock = ManualClock::at(now());
            if is_later {
                world.later();
            }
            world.run()
        });
        let what = format!("seed {seed}, run {run}, {changes} changes");
        let extracted = folder.path().join("extracted");
        check(&worlds, &made, &extracted, &what);
        let expected = unpadded(&worlds).stream();
        for (home, codec) in segmented.iter_mut().zip(CODECS) {
            let what = format!("{what}, {codec:?} in segments");
            let index = home.run(worlds[0].clock.now(), rereads, &expected, &what);
            check_extracted(&source, &extracted, &what, || home.extract(&index, &extracted));
            count.segmented += 1;
        }
        if tree.random.below(3) > 0 {
            count.compacted += segmented.iter_mut().map(|home| home.delete_one(&mut tree.random)).sum::<u64>();
        }
        let ends = made.iter().zip(&worlds).flat_map(|(made, world)| world.names(made));
        tree.chunk_ends = ends.filter_map(|names| Some(source.join(names.last()?))).collect();
        made.iter().for_each(|made| count.add(made));
    }
    segmented.iter().for_each(|home| home.check_all(&format!("seed {seed}, after all")));
    count
}

/// Returns an archive of the source without padding.
fn unpadded(worlds: &[World; 3]) -> Made {
    let world = if worlds[0].padding == Padding::Blocks { &worlds[1] } else { &worlds[0] };
    world.fresh().0
}

/// Seeds, and archives with a base.
#[derive(Default)]
struct Count {
    seeds: u64,
    archives: u64,
    /// Archives in segments.
    segmented: u64,
    /// Segments whose bytes were moved to others.
    compacted: u64,
    /// Those that are links of their base.
    links: u64,
    members: u64,
    /// Members that were taken from the base without being read.
    reused: u64,
}

impl Count {
    fn add(&mut self, made: &Made) {
        self.archives += 1;
        self.links += u64::from(made.written.is_link);
        self.members += made.written.extent.members;
        self.reused += made.reused();
    }

    fn add_all(&mut self, other: &Count) {
        self.seeds += other.seeds;
        self.archives += other.archives;
        self.segmented += other.segmented;
        self.compacted += other.compacted;
        self.links += other.links;
        self.members += other.members;
        self.reused += other.reused;
    }
}

fn reading_all(rules: &mut backup_manager::backup::pipeline::Rules) {
    (rules.trusts_times, rules.rereads_all) = (true, true);
}

/// Compares archives of the source, one of each codec, with what is read anew, and with the source.
fn check(worlds: &[World; 3], made: &[Made; 3], extracted: &Path, what: &str) {
    let plain = worlds[0].fresh();
    // The padding of a plain archive is part of its tar.
    let compressed = (worlds[0].padding == Padding::Blocks).then(|| worlds[1].fresh());
    for (world, made) in worlds.iter().zip(made) {
        assert_eq!(made.written.problems, [], "{what}");
        let compressed = compressed.as_ref().filter(|_| world.compression != Compression::None);
        world.assert_same(made, compressed.unwrap_or(&plain), &format!("{what}, {:?}", world.compression));
    }
    for (made, _) in [Some(&plain), compressed.as_ref()].into_iter().flatten() {
        fs::remove_file(&made.path).unwrap();
    }
    for (world, made) in worlds.iter().zip(made) {
        let option = match world.compression {
            Compression::None => "--no-auto-compress",
            Compression::Gzip(_) => "--gzip",
            Compression::Zstd(_) => "--zstd",
        };
        check_extracted(&world.source, extracted, &format!("{what}, {option} with GNU tar"), || {
            let mut command = Command::new("tar");
            command.args([option, "--xattrs", "--xattrs-include=*", "--numeric-owner", "--warning=no-timestamp"]);
            run_tool(command.arg("-xpf").arg(&made.path).arg("-C").arg(extracted));
        });
    }
}

/// Compares the source with what `extract` makes of it in the folder `extracted`, unless there is no GNU tar.
fn check_extracted(source: &Path, extracted: &Path, what: &str, extract: impl FnOnce()) {
    if !has_tool("tar") {
        return;
    }
    // How a tree is stored is not part of a comparison.
    let snapshot = |root: &Path| {
        let mut seen = tree::snapshot(root);
        seen.values_mut().for_each(|seen| seen.is_sparse = false);
        seen
    };
    fs::create_dir(extracted).unwrap();
    extract();
    tree::compare(&snapshot(source), &snapshot(&extracted.join("source")), what).unwrap();
    fs::remove_dir_all(extracted).unwrap();
}

#[test]
fn each_archive_of_a_series_is_what_a_run_that_reads_everything_makes() {
    let number = |variable| std::env::var(variable).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = number("BACKUP_SEED") {
        series(seed);
        return;
    }
    let is_full = std::env::var("BACKUP_STRESS").is_ok_and(|value| value == "full");
    let seeds = number("BACKUP_SEEDS").unwrap_or(if is_full { FULL } else { QUICK });
    let (next, started, count) = (AtomicU64::new(0), Instant::now(), Mutex::new(Count::default()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds {
                        break;
                    }
                    let made = series(seed);
                    let mut count = count.lock().expect("no panic");
                    count.add_all(&made);
                    if count.seeds.is_multiple_of(100) {
                        eprintln!("{} seeds so far", count.seeds);
                    }
                }
            });
        }
    });
    let Count { archives, segmented, compacted, links, members, reused, .. } = count.into_inner().expect("no panic");
    let seconds = started.elapsed().as_secs();
    eprintln!(
        "series: {seeds} seeds, {archives} archives with a base, {links} of them links of it, {reused} of {members} \
         members taken from it; {segmented} archives in segments, {compacted} segments \
         compacted; {seconds} s"
    );
    assert!(reused * 5 > members, "little was taken from a base");
}

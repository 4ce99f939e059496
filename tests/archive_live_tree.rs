//! A source that changes all the time while it is archived: three readers can always read the archive, it agrees with
//! the catalog, unchanged files are in it exactly, and problems name only files that changed.
//!
//! The normal run writes one archive of each format, `BACKUP_MANAGER_LONG_TESTS=1` writes archives for ten minutes.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use backup_manager::clock::{Clock, SystemClock};
use backup_manager::progress::ProblemKind;
use backup_manager::schedule::Compression;

use support::archive::{TestArchive, has_tool, is_long_run, make, run_tool};
use support::random::Random;
use support::seed::seed;
use support::tree;

const SECRET: &[u8] = b"what no link may lead into the archive";

/// A change to the source, repeated at random.
type Change = fn(&Path, &mut Random);

const CHANGES: [Change; 8] = [append, rewrite, resize, vanish, swap_file, save, swap_folder, link];

fn append(live: &Path, random: &mut Random) {
    let mut log = OpenOptions::new().append(true).create(true).open(live.join("log")).unwrap();
    log.write_all(&vec![b'l'; random.below(20_000) as usize]).unwrap();
    if log.metadata().unwrap().len() > 12 << 20 {
        log.set_len(0).unwrap();
    }
}

fn rewrite(live: &Path, random: &mut Random) {
    for (name, size) in [("small database", 100_000), ("database", 7 << 20), ("large database", 17 << 20)] {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(live.join(name)).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&random.below(u64::MAX).to_le_bytes(), random.below(size - 8)).unwrap();
    }
}

fn resize(live: &Path, random: &mut Random) {
    let name = live.join(format!("elastic {}", random.below(3)));
    let size = [0, 10, 5_000, 3 << 20, 6 << 20, 18 << 20][random.below(6) as usize];
    OpenOptions::new().write(true).create(true).truncate(false).open(name).unwrap().set_len(size).unwrap();
}

fn vanish(live: &Path, random: &mut Random) {
    let folder = live.join(format!("vanishing {}", random.below(20)));
    if fs::create_dir(&folder).is_ok() {
        (0..30).for_each(|i| fs::write(folder.join(format!("{i}")), [i; 3000]).unwrap());
    } else {
        fs::remove_dir_all(&folder).unwrap();
    }
}

fn swap_file(live: &Path, random: &mut Random) {
    let path = live.join(format!("chameleon {}", random.below(10)));
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&path);
    match random.below(4) {
        0 => fs::write(&path, "a file").unwrap(),
        1 => symlink(live.join("../../outside/secret"), &path).unwrap(),
        2 => fs::create_dir(&path).unwrap(),
        _ => {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
    }
}

fn save(live: &Path, random: &mut Random) {
    let (path, new) = (live.join(format!("document {}", random.below(30))), live.join("saving"));
    fs::write(&new, vec![b'd'; random.below(50_000) as usize]).unwrap();
    fs::rename(new, path).unwrap();
}

fn swap_folder(live: &Path, random: &mut Random) {
    let (folder, aside) = (live.join("folder"), live.join("folder aside"));
    let _ = fs::create_dir(&folder);
    let _ = fs::write(folder.join("secret"), vec![b's'; random.below(50) as usize]);
    let _ = fs::remove_dir_all(&aside);
    fs::rename(&folder, &aside).unwrap();
    symlink(live.join("../../outside"), &folder).unwrap();
    fs::remove_file(&folder).unwrap();
}

fn link(live: &Path, random: &mut Random) {
    let name = |random: &mut Random| live.join(format!("name {}", random.below(12)));
    let (from, to) = (name(random), name(random));
    let _ = fs::remove_file(&to);
    if fs::hard_link(&from, &to).is_err() {
        fs::write(&to, vec![b'n'; random.below(9_000) as usize]).unwrap();
    }
}

#[test]
fn a_tree_that_always_changes_gives_whole_archives() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("source");
    let (steady, live) = (source.join("steady"), source.join("live"));
    fs::create_dir_all(steady.join("sub")).unwrap();
    fs::create_dir(&live).unwrap();
    fs::create_dir(scratch.path().join("outside")).unwrap();
    fs::write(scratch.path().join("outside/secret"), SECRET).unwrap();
    (0..400u32).for_each(|i| fs::write(steady.join(format!("sub/{i}")), i.to_string().repeat(500)).unwrap());
    fs::write(steady.join("large"), vec![5; 18 << 20]).unwrap();
    let seed = seed();
    println!("seed {seed}");
    let (stop, clock) = (AtomicBool::new(false), SystemClock::new());
    let (mut archives, mut moved, mut torn) = (0, 0, 0);
    thread::scope(|scope| {
        for (number, changes) in CHANGES.chunks(CHANGES.len() / 2).enumerate() {
            let (live, stop) = (&live, &stop);
            scope.spawn(move || {
                let mut random = Random::new(seed + number as u64);
                while !stop.load(Ordering::Relaxed) {
                    changes[random.below(changes.len() as u64) as usize](live, &mut random);
                }
            });
        }
        // The threads must end even if an assertion below fails.
        let _stopper = Stopper(&stop);
        let duration = if is_long_run() { Duration::from_secs(600) } else { Duration::ZERO };
        loop {
            for compression in [Compression::None, Compression::Gzip(1), Compression::Zstd(1)] {
                let made = make(&source, scratch.path(), compression);
                check(&made, &source);
                archives += 1;
                moved += made.written.problems_total;
                torn += made.written.problems.iter().filter(|problem| problem.kind == ProblemKind::Changed).count();
            }
            // Archives without a file that changed while it was read test little.
            if clock.monotonic() >= duration && (torn > 0 || archives > 30) {
                break;
            }
        }
        println!(
            "{archives} archives, {moved} problems in them, {torn} of them files that changed while they were read"
        );
        assert!(torn > 0, "no file was ever caught changing");
    });
    let made = make(&source, scratch.path(), Compression::Zstd(1));
    assert_eq!(made.written.problems, [], "nothing changes any more");
}

struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn check(made: &TestArchive, source: &Path) {
    made.verify().unwrap();
    for tool in ["tar", "bsdtar"].into_iter().filter(|tool| has_tool(tool)) {
        let listed = run_tool(Command::new(tool).arg("-tf").arg(&made.path)).stdout;
        assert_eq!(listed.split(|&b| b == b'\n').count() as u64 - 1, made.written.extent.members, "{tool}");
    }
    let plain = made.path.with_extension("plain");
    if made.path.extension().is_some_and(|e| e == "zst") {
        run_tool(Command::new("zstd").args(["-dqf", "-o"]).arg(&plain).arg(&made.path));
    } else {
        fs::copy(&made.path, &plain).unwrap();
    }
    let script = "import sys, tarfile\nfor m in tarfile.open(sys.argv[1]):\n    m.isfile() and m.name";
    run_tool(Command::new("python3").args(["-c", script]).arg(&plain));
    fs::remove_file(&plain).unwrap();
    for problem in &made.written.problems {
        let path = Path::new(std::ffi::OsStr::from_bytes(&problem.path));
        assert!(path.starts_with(source.join("live")), "{}: {}", path.display(), problem.reason);
        assert_ne!(problem.kind, ProblemKind::Unreadable, "{}: {}", path.display(), problem.reason);
    }
    let secret = *blake3::hash(SECRET).as_bytes();
    let rows = made.records.iter().flat_map(|record| record.new_members());
    assert!(rows.clone().all(|row| row.content_digest != Some(secret)), "a link was followed out of the source");
    // A reader extracts what the catalog records for each file.
    let out = tempfile::tempdir().unwrap();
    run_tool(Command::new("tar").arg("-xpf").arg(&made.path).arg("-C").arg(out.path()));
    let extracted = tree::snapshot(&out.path().join("source"));
    for row in rows.filter(|row| row.content_digest.is_some()) {
        let path = row.member.path.as_path().strip_prefix("source").unwrap();
        let content = extracted.get(path).and_then(|seen| seen.content).map(|hash| *hash.as_bytes());
        assert_eq!(content, row.content_digest, "{}", path.display());
    }
    let steady = tree::snapshot(&source.join("steady"));
    tree::compare(&steady, &tree::snapshot(&out.path().join("source/steady")), "files that do not change").unwrap();
}

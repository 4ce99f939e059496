//! Compaction and locks of the segmented layout, with the program: readers, snapshots, older and second databases.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::archive_files::Writes;
use crate::environment::{Said, TestHome, said};

/// A home with two archives in segments, pinned or newest, and one that expires; without that, less than half of the
/// first segment is used.
fn home(compression: &str) -> TestHome {
    let home = TestHome::with_sources(&["docs"]);
    (0..24).for_each(|file| write(&home, file, 0));
    let create = ["create", "docs;09:00;docs", "--layout", "segmented", "--keep-last", "3", "--compress", compression];
    let _ = home.run(&create).ok();
    let _ = home.run(&["run", "docs"]).ok();
    change(&home, 1);
    let _ = home.run(&["run", "docs"]).ok();
    change(&home, 2);
    let _ = home.run(&["run", "docs"]).ok();
    let _ = home.run(&["edit", "docs", "--keep-last", "2"]).ok();
    home
}

/// Changes two thirds of the source.
fn change(home: &TestHome, version: u8) {
    (8..24).for_each(|file| write(home, file, version.wrapping_mul(31)));
}

fn write(home: &TestHome, file: u8, version: u8) {
    // The content of some chunks.
    let content: Vec<u8> = (0..250_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ file.wrapping_mul(7) ^ version)
        .collect();
    fs::write(home.path(&format!("docs/{file:02}")), content).unwrap();
}

/// Returns the paths of the files in a folder of archives whose names end so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(end));
    paths.sort();
    paths
}

/// Checks that every index in the folder restores, without the database.
fn check_indexes(home: &TestHome, expected: usize) {
    let indexes = files(&home.path("backups/docs"), ".index");
    assert_eq!(indexes.len(), expected, "{indexes:?}");
    let elsewhere = TestHome::new();
    for index in &indexes {
        let _ = elsewhere.run(&["verify", index.to_str().unwrap()]).ok();
    }
}

fn freed(pruned: &Said) -> i64 {
    pruned.json()[0]["compaction"]["freed_bytes"].as_i64().unwrap()
}

#[test]
fn prune_reports_what_compaction_frees_before_and_after_it() {
    for compression in ["none", "gzip", "zstd"] {
        let home = home(compression);
        let planned = home.run(&["--json", "prune", "-n"]).ok();
        assert!(planned.stderr.contains("docs: compaction would free 1 segment"), "{planned:?}");
        let pruned = home.run(&["--json", "prune", "--yes"]).ok();
        assert!(pruned.stderr.contains("docs: compaction freed 1 segment"), "{pruned:?}");
        assert!(freed(&planned) > 0 && freed(&planned) == freed(&pruned), "{planned:?}{pruned:?}");
        check_indexes(&home, 2);
        let again = home.run(&["--json", "prune"]).ok();
        assert_eq!(freed(&again), 0);
        assert!(again.stderr.contains("nothing to remove"), "{again:?}");
        let _ = home.run(&["verify"]).ok();
        let _ = home.run(&["run", "docs"]).ok();
        assert_eq!(home.run(&["diff", "docs"]).code, 0);
    }
}

/// What a file holds, when it was changed, and its inode.
type Seen = (Vec<u8>, i64, u64);

fn seen(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    let see = |path: PathBuf| {
        let found = fs::metadata(&path).unwrap();
        (path.clone(), (fs::read(&path).unwrap(), found.mtime_nsec(), found.ino()))
    };
    files(folder, "").into_iter().map(see).collect()
}

#[test]
fn a_snapshot_of_hard_links_stays_as_it_was_through_prune_and_compaction() {
    let home = home("zstd");
    let snapshot = home.path("snapshot");
    assert!(Command::new("cp").arg("-al").arg(home.path("backups")).arg(&snapshot).status().unwrap().success());
    let before = seen(&snapshot.join("docs"));
    let pruned = home.run(&["--json", "prune", "--yes"]).ok();
    assert!(freed(&pruned) > 0);
    let _ = home.run(&["run", "docs"]).ok();
    assert!(seen(&snapshot.join("docs")) == before, "the snapshot changed");
    let elsewhere = TestHome::new();
    for index in files(&snapshot.join("docs"), ".index") {
        let _ = elsewhere.run(&["verify", index.to_str().unwrap()]).ok();
    }
    check_indexes(&home, 2);
}

#[test]
fn no_synced_segment_or_index_is_ever_written_to() {
    if Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let home = home("gzip");
    let mut writes = Writes::default();
    let steps: [&[&str]; 8] = [
        &["run", "docs"],
        &["prune", "--yes"],
        &["run", "docs"],
        &["verify"],
        &["drill", "docs"],
        &["prune", "--yes"],
        &["forget", "@3"],
        &["rescan"],
    ];
    for (number, step) in steps.into_iter().enumerate() {
        if step == ["run", "docs"] {
            change(&home, 3 + number as u8);
        }
        writes.trace(&home, step);
    }
    writes.check();
    assert!(files(&home.path("backups/docs"), ".segment").iter().any(|path| path.to_string_lossy().contains(".17")));
}

/// Copies the database with what is beside it.
fn copy_database(from: &TestHome, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in ["backup.db", "backup.db-wal"] {
        if from.path(file).exists() {
            fs::copy(from.path(file), to.join(file)).unwrap();
        }
    }
}

#[test]
fn an_older_copy_of_the_database_loses_nothing_that_an_index_lists() {
    for runs_since in [0, 1] {
        let home = home("gzip");
        copy_database(&home, &home.path("older"));
        for run in 0..runs_since {
            change(&home, 5 + run);
            let _ = home.run(&["run", "docs"]).ok();
        }
        assert!(freed(&home.run(&["--json", "prune", "--yes"]).ok()) > 0);
        for end in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(home.path(&format!("backup.db{end}")));
        }
        for file in fs::read_dir(home.path("older")).unwrap().map(|entry| entry.unwrap()) {
            fs::copy(file.path(), home.path("").join(file.file_name())).unwrap();
        }
        // It does not know what was removed and compacted since.
        for _ in 0..2 {
            let _ = home.run(&["prune", "--yes"]);
            check_indexes(&home, 2);
        }
        for step in [["run", "docs"], ["prune", "--yes"]] {
            change(&home, 9);
            let _ = home.run(&step);
            let left = files(&home.path("backups/docs"), ".index").len();
            assert!(left >= 2, "{left}");
            check_indexes(&home, left);
        }
        let _ = home.run(&["rescan"]);
        let _ = home.run(&["prune", "--yes"]);
        let left = files(&home.path("backups/docs"), ".index").len();
        assert!(left >= 2, "{left}");
        check_indexes(&home, left);
    }
}

#[test]
fn two_databases_with_one_identity_lose_nothing_that_an_index_lists() {
    let home = home("zstd");
    let other = TestHome::with_sources(&["docs"]);
    (0..24).for_each(|file| write(&other, file, 0));
    copy_database(&home, other.dir.path());
    let backups = home.path("backups");
    let in_other = |args: &[&str]| other.run_with(("BACKUP_DIR", backups.to_str().unwrap()), args);
    assert!(freed(&home.run(&["--json", "prune", "--yes"]).ok()) > 0);
    for turn in 0..3 {
        change(&home, 40 + turn);
        change(&other, 60 + turn);
        let _ = home.run(&["run", "docs"]);
        let _ = in_other(&["run", "docs"]);
        let _ = home.run(&["prune", "--yes"]);
        let _ = in_other(&["prune", "--yes"]);
        let left = files(&home.path("backups/docs"), ".index").len();
        assert!(left >= 2);
        check_indexes(&home, left);
    }
}

/// Restores an archive by the lines of shell in its index; returns whether the check succeeds and nothing is reported.
fn restore_by_shell(index: &Path, target: &Path) -> bool {
    let Ok(text) = fs::read_to_string(index) else { return false };
    let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap().trim_start_matches("# ").to_owned();
    let shell = |line: &str| {
        let done = Command::new("sh").arg("-c").arg(line).current_dir(index.parent().unwrap()).output().unwrap();
        (done.status.success() && done.stderr.is_empty(), String::from_utf8(done.stdout).unwrap())
    };
    let (is_quiet, sum) = shell(&line("| cksum"));
    let is_same = format!("cksum {}", sum.trim_end()) == line("# cksum ");
    fs::create_dir_all(target).unwrap();
    is_quiet && is_same && shell(&format!("{} -C {}", line("| tar "), target.display())).0
}

fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())).collect()
}

#[test]
fn restoring_beside_prune_and_compaction_is_complete_or_fails() {
    let home = home("gzip");
    let expected = tree(&home.path("docs"));
    let _ = home.run(&["pin", "@3"]).ok();
    let index = files(&home.path("backups/docs"), "-3.tar.gz.index").remove(0);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            for turn in 0..4 {
                change(&home, 20 + turn);
                let _ = home.run(&["run", "docs"]).ok();
                let _ = home.run(&["prune", "--yes"]).ok();
            }
        });
        let (mut turns, mut complete) = (0, 0);
        while !changing.is_finished() {
            let (target, by_shell) = (format!("out/{turns}"), home.path(&format!("shell/{turns}")));
            // The program has a lock.
            let _ = home.run(&["restore", "docs@3", "--to", &target]).ok();
            assert!(tree(&home.path(&target).join("docs")) == expected, "{turns}");
            if restore_by_shell(&index, &by_shell) {
                assert!(tree(&by_shell.join("docs")) == expected, "{turns}");
                complete += 1;
            }
            turns += 1;
        }
        assert!(turns > 2 && complete > 0, "{complete} of {turns}");
    });
}

#[test]
fn whoever_reads_an_archive_locks_its_segments_before_the_index_is_opened() {
    let home = home("gzip");
    if Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let trace = home.path(".trace");
    let steps: [&[&str]; 8] = [
        &["verify", "docs"],
        &["drill", "docs"],
        &["restore", "docs", "--to", "out"],
        &["cat", "docs", "docs/01"],
        &["ls", "docs"],
        &["diff", "@2", "@3"],
        &["export", "docs", "--to", "out.tar"],
        &["run", "docs"],
    ];
    for step in steps {
        let strace = ["strace", "-f", "-y", "-o", trace.to_str().unwrap(), "-e", "trace=flock,openat,open"];
        let through = [&strace[..], &[env!("CARGO_BIN_EXE_backup-manager")]].concat();
        let ran = said(&mut home.command_through(&through, step));
        assert!([0, 1].contains(&ran.code), "{ran:?}");
        let traced = fs::read_to_string(&trace).unwrap();
        let position = |words: &[&str]| traced.lines().position(|line| words.iter().all(|word| line.contains(word)));
        let opened = position(&["open", ".tar.gz.index\"", "O_RDONLY"]);
        let locked = position(&["flock(", "docs.readers", "LOCK_SH"]);
        match opened {
            Some(opened) => assert!(locked.is_some_and(|locked| locked < opened), "{step:?}: {locked:?} {opened:?}"),
            None => assert_eq!(step[0], "ls", "it reads the catalog only"),
        }
    }
}

//! Trees that are deep, wide or both.

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;

use backup_manager::member::MemberKind;
use backup_manager::progress::ProblemKind;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, open, openat, renameat};
use rustix::io::write;

use crate::support::*;

/// A folder whose content only `rm` can remove: its paths are longer than the system accepts.
struct Deep(tempfile::TempDir);

impl Drop for Deep {
    fn drop(&mut self) {
        assert!(succeeds("rm", &["-rf", self.0.path().join("deep").to_str().unwrap()]));
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Creates nested folders. Each has a file before and a file after the next folder in the order, which hold its depth.
fn deep(levels: usize, name: &str) -> Deep {
    let dir = Deep(big_tree(&["deep/"]));
    let mut folder = open(dir.0.path().join("deep"), FOLDER, Mode::empty()).unwrap();
    for level in 0..levels {
        for file in ["a", "z"] {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            let file: OwnedFd = openat(&folder, file, flags, Mode::RUSR).unwrap();
            write(&file, level.to_string().as_bytes()).unwrap();
        }
        mkdirat(&folder, name, Mode::RWXU).unwrap();
        folder = openat(&folder, name, FOLDER, Mode::empty()).unwrap();
    }
    dir
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn four_thousand_levels_of_long_names() {
    let levels = 4000;
    let dir = deep(levels, &"n".repeat(200));
    let mut files = 0;
    let mut kept = Vec::new();
    let mut descriptors = 0;
    let root = dir.0.path().join("deep");
    let source = Source::at(&root);
    let mut visit = |found: backup_manager::source::SourceEntry| {
        // Each folder adds 201 bytes; counting slashes in a megabyte each time would take longer than the walk.
        let level = found.path.as_bytes().len() / 201;
        if found.kind == MemberKind::File {
            files += 1;
            if level % 500 == 1 {
                kept.push((found, level));
            }
        }
        if level % 1000 == 999 {
            descriptors = descriptors.max(open_descriptors());
        }
        ControlFlow::Continue(())
    };
    let mut problems = Vec::new();
    backup_manager::source::walk(&source.options(), &mut visit, &mut |problem| problems.push(problem.reason)).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(files, 2 * levels);
    assert!(descriptors < 700, "{descriptors}");
    // The folders are opened again from the root, for the deepest first and last.
    assert_eq!(kept.len(), 16);
    for (found, level) in kept.iter().rev().chain(&kept) {
        let mut content = [0; 8];
        let length = found.open().unwrap().read_at(&mut content, 0).unwrap();
        assert_eq!(content[..length], *level.to_string().as_bytes());
        assert!(found.xattrs().is_ok());
        assert!(found.fs_path().as_os_str().len() > 4096 || *level == 1);
    }
}

#[test]
fn a_deep_folder_that_was_moved_is_reported_and_not_searched_elsewhere() {
    let dir = deep(300, "d");
    let root = dir.0.path().join("deep");
    let found = Source::at(&root).walk().found;
    let files: Vec<_> = found.iter().filter(|found| found.kind == MemberKind::File).collect();
    assert_eq!(files.len(), 600);
    renameat(CWD, root.join("d/d"), CWD, root.join("d/moved")).unwrap();
    // Files in folders that are still open are read; the others cannot be reached any more.
    let gone = files.iter().filter_map(|file| file.open().err()).inspect(|problem| {
        assert_eq!(problem.kind, ProblemKind::Vanished, "{}", problem.reason);
    });
    assert!(gone.count() > 100);
}

fn fill(folder: &Path, files: usize) {
    let handle = open(folder, FOLDER, Mode::empty()).unwrap();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    for number in 0..files {
        // Out of order, as no file system keeps them sorted.
        let name = format!("file-{:07}", number * 7_919 % files);
        openat(&handle, name, flags, Mode::RUSR).unwrap();
    }
}

/// Walks one folder of `files` files without keeping the entries.
fn walk_wide(folder: &Path, files: usize) {
    let mut next = 0;
    let mut last = None;
    let source = Source::at(folder);
    let mut visit = |found: backup_manager::source::SourceEntry| {
        assert!(last.as_ref().is_none_or(|last| *last < found.path));
        last = Some(found.path);
        next += 1;
        ControlFlow::Continue(())
    };
    backup_manager::source::walk(&source.options(), &mut visit, &mut |problem| panic!("{problem:?}")).unwrap();
    assert_eq!(next, files + 1);
}

#[test]
fn twenty_thousand_names_in_one_folder() {
    let dir = big_tree(&[]);
    fill(dir.path(), 20_000);
    walk_wide(dir.path(), 20_000);
}

#[test]
fn descriptors_do_not_grow_with_what_is_found() {
    let names: Vec<String> = (0..1500).map(|number| format!("d{number}/f")).collect();
    let dir = big_tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let before = open_descriptors();
    let walked = Source::at(dir.path()).walk();
    // Other tests of this process open some at the same time.
    let after = open_descriptors();
    assert_eq!(walked.found.len(), 3001);
    assert!(after < before + 600, "{before} {after}");
}

#[test]
#[ignore = "makes a million files; run with: cargo test --release --test source_suite million -- --ignored --nocapture"]
fn a_million_names_in_one_folder() {
    let dir = big_tree(&[]);
    fill(dir.path(), 1_000_000);
    let peak = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let before = peak();
    walk_wide(dir.path(), 1_000_000);
    eprintln!("peak memory: {before} MiB before, {} MiB after", peak());
    assert!(peak() < before + 64, "{before} {}", peak());
}

//! Small files are written in batches, by other threads: what comes after a file in the archive must find it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use backup_manager::restore::Options;

use crate::fidelity::{outcome_without_owners, restore_all};
use crate::support::archive::has_tool;
use crate::tar_file::{Block, TarFile};

#[test]
fn a_member_that_concerns_a_file_of_an_unfinished_batch_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("a.tar"), folder.path().join("to"));
    let tar = (0..9).fold(TarFile::default().folder("d/"), |tar, number| tar.file(&format!("d/{number}"), b"other"));
    let tar = tar.file("d/twice", b"first").file("d/twice", b"second");
    let tar = tar.file("d/link", b"file").symlink("d/link", "twice").file("d/hard", b"file").hard_link("d/hard", "d/0");
    let tar =
        tar.file("d/name", b"file").hard_link("d/further", "d/name").file("d/folder", b"file").folder("d/folder/");
    fs::write(&file, tar.end()).unwrap();
    for threads in [1, 3] {
        let to = to.join(threads.to_string());
        let report = restore_all(&file, &Options { threads, sync: false, ..Options::to(&to) }).unwrap();
        assert_eq!(outcome_without_owners(&report), None, "{report:?}");
        assert_eq!(fs::read(to.join("d/twice")).unwrap(), b"second");
        assert_eq!(fs::read_link(to.join("d/link")).unwrap().as_os_str(), "twice");
        assert_eq!(fs::read(to.join("d/hard")).unwrap(), b"other");
        let inode = |name: &str| fs::symlink_metadata(to.join(name)).unwrap().ino();
        assert_eq!(inode("d/further"), inode("d/name"));
        assert!(to.join("d/folder").is_dir());
    }
}

#[test]
fn a_file_gets_its_mode_whatever_the_umask_leaves_of_it_at_creation() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("a.tar"), folder.path().join("to"));
    let modes = [0o644, 0o666, 0o600, 0o444, 0o000, 0o777, 0o1644, 0o067];
    let header = |mode: u32| Block::new(format!("d/{mode}").as_bytes(), b'0', 0).mode(mode.into());
    let tar = modes.iter().fold(TarFile::default().folder("d/"), |tar, &mode| tar.block(header(mode)));
    fs::write(&file, tar.end()).unwrap();
    restore_all(&file, &Options { sync: false, ..Options::to(&to) }).unwrap();
    for mode in modes {
        let stat = fs::metadata(to.join(format!("d/{mode}"))).unwrap();
        assert_eq!(stat.permissions().mode() & 0o7777, mode, "{mode:o}");
    }
}

/// A random number for each file, and metadata that it has already, cost as much as creating it.
#[test]
fn a_restore_of_many_small_files_sets_no_metadata_that_they_have() {
    if !has_tool("strace") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, to, counts) = (folder.path().join("a.tar"), folder.path().join("to"), folder.path().join("counts"));
    let files = 1000;
    let ids = rustix::process::geteuid().as_raw();
    let header = |number: usize| {
        let owned = |block: &mut [u8; 512]| {
            for field in [108..116, 116..124] {
                block[field].copy_from_slice(format!("{ids:07o}\0").as_bytes());
            }
        };
        Block::new(format!("d/{number}").as_bytes(), b'0', 0).mode(0o600).with(owned)
    };
    let tar = (0..files).fold(TarFile::default().folder("d/"), |tar, number| tar.block(header(number)));
    fs::write(&file, tar.end()).unwrap();
    let out = Command::new("strace")
        .args(["-f", "-c", "-o"])
        .arg(&counts)
        .arg(env!("CARGO_BIN_EXE_backup-manager"))
        .arg("--home")
        .arg(folder.path())
        .args(["restore", "--to"])
        .args([&to, &file])
        .output()
        .unwrap();
    assert_eq!(fs::read_dir(to.join("d")).map(Iterator::count).ok(), Some(files), "{out:?}");
    let counts = fs::read_to_string(&counts).unwrap();
    for (call, most) in [("getrandom", 50), ("fchown", 50), ("fchmod", 50), ("renameat2", files)] {
        let line = counts.lines().find(|line| line.split_whitespace().last() == Some(call));
        let count = line.map_or(0, |line| line.split_whitespace().nth(3).unwrap().parse::<usize>().unwrap());
        assert!(count <= most, "{call}: {count} calls for {files} files\n{counts}");
    }
}

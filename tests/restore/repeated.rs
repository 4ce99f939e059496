//! A second restore to the same place: what it reports of files that exist already.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use backup_manager::error::ErrorKind;
use backup_manager::restore::{Options, Overwrite, Report};

use crate::fidelity::restore_all;
use crate::tar_file::{Block, TarFile};

/// An archive with owners and attributes that only root can set.
fn roots_archive() -> Vec<u8> {
    let owned = |name: &[u8], flag| {
        Block::new(name, flag, 0).mode(0o2750).with(|block| {
            block[108..116].copy_from_slice(b"0012345\0");
            block[116..124].copy_from_slice(b"0012345\0");
        })
    };
    TarFile::default()
        .pax(&[("SCHILY.xattr.trusted.folder", b"f")])
        .block(owned(b"folder", b'5'))
        .pax(&[
            ("SCHILY.xattr.trusted.key", b"t"),
            ("SCHILY.xattr.security.key", b"s"),
            ("SCHILY.xattr.user.key", b"u"),
        ])
        .block(owned(b"folder/file", b'0'))
        .block(owned(b"folder/link", b'2').link(b"file"))
        .end()
}

/// Restores twice, and checks that the second restore keeps everything and names the same losses as the first.
#[track_caller]
fn check_twice(file: &Path, to: &Path) -> Report {
    let options = |overwrite| Options { sync: false, overwrite, ..Options::to(to) };
    let first = restore_all(file, &options(Overwrite::Never)).unwrap();
    assert_eq!((first.extent.members, first.kept_owners, first.kept_attributes.count), (3, 0, 0), "{first:?}");
    for overwrite in [Overwrite::Never, Overwrite::IfChanged] {
        for dry_run in [true, false] {
            let again = restore_all(file, &Options { dry_run, ..options(overwrite) }).unwrap();
            assert_eq!((again.outcome(), again.unchanged, again.corrected), (None, 3, 0), "{overwrite:?}: {again:?}");
            let losses = (again.kept_owners, again.kept_attributes.count);
            assert_eq!(losses, (first.owners, first.attributes.count), "{overwrite:?}: {again:?}");
        }
    }
    first
}

#[test]
fn what_this_user_cannot_set_is_no_difference_of_a_second_restore_but_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    fs::write(&file, roots_archive()).unwrap();
    let first = check_twice(&file, &folder.path().join("to"));
    if !rustix::process::geteuid().is_root() {
        assert_eq!((first.outcome(), first.owners, first.attributes.count), (Some(ErrorKind::Incomplete), 3, 2));
    }
}

#[test]
fn attributes_that_the_file_system_does_not_store_are_no_difference_of_a_second_restore() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("a.tar"), folder.path().join("to"));
    fs::create_dir(&to).unwrap();
    fs::write(&file, roots_archive()).unwrap();
    let mounted = Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&to).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a file system without attributes cannot be mounted here");
        return;
    }
    let first = std::panic::catch_unwind(|| check_twice(&file, &to));
    assert!(Command::new("umount").arg(&to).status().unwrap().success());
    let first = first.expect("the checks");
    assert_eq!((first.owners, first.attributes.count), (0, 2), "{first:?}");
}

#[test]
fn a_conflict_says_what_exists_and_what_the_archive_has() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("a.tar"), folder.path().join("to"));
    let tar = TarFile::default().folder("d").file("d/size", b"1234").file("d/time", b"same").file("d/kind", b"x");
    fs::write(&file, tar.symlink("d/link", "new").hard_link("d/hard", "d/size").folder("d/f").end()).unwrap();
    fs::create_dir_all(to.join("d/kind")).unwrap();
    fs::write(to.join("d/kind/mine"), "mine").unwrap();
    fs::write(to.join("d/size"), "12").unwrap();
    fs::write(to.join("d/time"), "text").unwrap();
    fs::write(to.join("d/f"), "text").unwrap();
    fs::write(to.join("d/hard"), "text").unwrap();
    std::os::unix::fs::symlink("old", to.join("d/link")).unwrap();
    fs::set_permissions(to.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
    let report = restore_all(&file, &Options { sync: false, ..Options::to(&to) }).unwrap();
    let reasons: Vec<String> =
        report.conflicts.list.iter().map(|(path, why)| format!("{}: {why}", path.escape_ascii())).collect();
    assert_eq!(
        reasons,
        [
            "d: it has mode 0700 instead of 0755",
            "d/size: a file of 2 bytes exists there, and the archive has one of 4",
            "d/time: a file of the same size exists there, with another modification time",
            "d/kind: a folder that is not empty exists there, and the archive has a file",
            "d/link: a symbolic link to old exists there, and the archive has one to new",
            "d/f: a file exists there, and the archive has a folder",
            // A hard link whose first name is in conflict gets the content itself.
            "d/hard: a file of the same size exists there, with another modification time",
        ]
    );
}

#[test]
fn an_attribute_that_a_full_disk_has_no_room_for_ends_the_restore() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to, image) = (folder.path().join("a.tar"), folder.path().join("to"), folder.path().join("image"));
    fs::create_dir(&to).unwrap();
    fs::File::create(&image).unwrap().set_len(2 << 20).unwrap();
    let tool = |name: &str, words: &[&str]| {
        let output = Command::new(name).args(words).args([&image, &to].map(Path::new)).output();
        output.is_ok_and(|output| output.status.success())
    };
    let made = Command::new("mkfs.ext4").args(["-q", "-b", "1024", "-N", "2500", "-m", "0"]).arg(&image).output();
    if !made.is_ok_and(|output| output.status.success()) || !tool("mount", &["-o", "loop"]) {
        eprintln!("skipped: a small file system cannot be made and mounted here");
        return;
    }
    // Each attribute fills a block of its own, and no file has content.
    let tar = (0..2000).fold(TarFile::default().folder("d"), |tar, number| {
        let value = format!("{number:04}").repeat(200);
        tar.pax(&[("SCHILY.xattr.user.key", value.as_bytes())]).file(&format!("d/{number}"), b"")
    });
    fs::write(&file, tar.end()).unwrap();
    let result = restore_all(&file, &Options { sync: false, ..Options::to(&to) });
    let files: Vec<_> = fs::read_dir(to.join("d")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let without = files.iter().filter(|path| !xattr::get(path, "user.key").is_ok_and(|value| value.is_some())).count();
    assert!(Command::new("umount").arg(&to).status().unwrap().success());
    assert_eq!(result.unwrap_err().kind(), ErrorKind::DiskFull);
    assert_eq!((without, files.len() > 100), (0, true), "{} files", files.len());
}

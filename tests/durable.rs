//! Safe file replacement (I3): exact modes, no file replaced without request, no temporary file left.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use backup_manager::durable::{self, PendingFile, PersistMethod};
use backup_manager::error::ErrorKind;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn modes_are_exact_whatever_the_umask() {
    let folder = tempfile::tempdir().unwrap();
    // The umask belongs to the process; a wider one only makes the other tests of this file stricter.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    let path = folder.path().join("a");
    durable::write_file(&path, b"x", 0o646, false).unwrap();
    assert!(durable::make_folder(&folder.path().join("p/q"), 0o757).unwrap());
    assert!(!durable::make_folder(&folder.path().join("p/q"), 0o700).unwrap());
    rustix::process::umask(before);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o646);
    for made in ["p", "p/q"] {
        assert_eq!(fs::metadata(folder.path().join(made)).unwrap().permissions().mode() & 0o7777, 0o757, "{made}");
    }
}

#[test]
fn a_file_is_replaced_only_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    assert_eq!(durable::write_file(&path, b"first", 0o600, false).unwrap(), PersistMethod::Renamed);
    let error = durable::write_file(&path, b"second", 0o600, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("exists already"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"first");
    durable::write_file(&path, b"third", 0o600, true).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"third");
    assert_eq!(names(folder.path()), ["a"]);
    let other = folder.path().join("b");
    fs::write(&other, b"other").unwrap();
    assert_eq!(durable::rename_no_replace(&other, &path).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(names(folder.path()), ["a", "b"]);
}

#[test]
fn a_file_that_is_not_persisted_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let mut pending = PendingFile::create(&path, 0o400).unwrap();
    pending.file().write_all(b"12345").unwrap();
    assert_eq!(names(folder.path()).len(), 1);
    drop(pending);
    assert!(names(folder.path()).is_empty());

    let mut pending = PendingFile::create_named(&folder.path().join(".t.part"), 0o400).unwrap();
    assert_eq!(
        PendingFile::create_named(&folder.path().join(".t.part"), 0o400).unwrap_err().kind(),
        ErrorKind::Busy,
        "an existing file is never opened as a temporary file"
    );
    pending.file().write_all(b"12345").unwrap();
    let sealed = pending.seal().unwrap();
    assert_eq!(sealed.size(), 5);
    assert_eq!(sealed.inode(), fs::metadata(folder.path().join(".t.part")).unwrap().ino());
    drop(sealed);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_sealed_file_can_be_kept_and_renamed_by_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let temp = PendingFile::create(&path, 0o400).unwrap().seal().unwrap().keep();
    durable::rename_no_replace(&temp, &path).unwrap();
    assert_eq!(names(folder.path()), ["a"]);
    durable::remove(&path).unwrap();
    durable::remove(&path).unwrap();
    durable::remove(&folder.path().join("no/such/folder/file")).unwrap();
}

#[test]
fn a_link_is_made_only_to_the_file_that_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let [path, link, temporary] = ["base", "link", "temporary"].map(|name| folder.path().join(name));
    fs::write(&path, "verified").unwrap();
    fs::write(&temporary, "").unwrap();
    let original = fs::File::open(&path).unwrap();
    fs::write(folder.path().join("other"), "never looked at").unwrap();
    fs::rename(folder.path().join("other"), &path).unwrap();
    let error = durable::link_over(&original, &path, &link, &temporary).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(fs::read(&temporary).unwrap(), b"");
    assert_eq!(names(folder.path()), ["base", "temporary"]);

    let original = fs::File::open(&path).unwrap();
    durable::link_over(&original, &path, &link, &temporary).unwrap();
    assert_eq!(fs::metadata(&temporary).unwrap().ino(), fs::metadata(&path).unwrap().ino());
    assert_eq!(names(folder.path()), ["base", "temporary"]);
}

#[test]
fn symlinks_are_relative_and_replace_only_symlinks() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("docs")).unwrap();
    fs::write(folder.path().join("docs/one.tar"), b"1").unwrap();
    fs::write(folder.path().join("docs/two.tar"), b"2").unwrap();
    let link = folder.path().join("docs.tar");
    durable::symlink_relative(&link, &folder.path().join("docs/one.tar")).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("docs/one.tar"));
    durable::symlink_relative(&link, &folder.path().join("docs/two.tar")).unwrap();
    durable::symlink_relative(&link, &folder.path().join("docs/two.tar")).unwrap();
    assert_eq!(fs::read(&link).unwrap(), b"2");
    let deep = folder.path().join("docs/deep.tar");
    durable::symlink_relative(&deep, &folder.path().join("elsewhere/x.tar")).unwrap();
    assert_eq!(fs::read_link(&deep).unwrap(), Path::new("../elsewhere/x.tar"));
    let regular = folder.path().join("regular");
    fs::write(&regular, b"the only copy").unwrap();
    assert_eq!(durable::symlink_relative(&regular, &link).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(fs::read(&regular).unwrap(), b"the only copy");
    assert_eq!(names(folder.path()), ["docs", "docs.tar", "regular"]);
}

#[test]
fn a_file_at_the_path_of_a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), b"").unwrap();
    assert!(durable::make_folder(&folder.path().join("f"), 0o700).is_err());
    fs::create_dir(folder.path().join("real")).unwrap();
    symlink("real", folder.path().join("link")).unwrap();
    assert!(!durable::make_folder(&folder.path().join("link"), 0o700).unwrap());
    let error = PendingFile::create(&folder.path().join("missing/x"), 0o600).unwrap_err();
    assert!(error.next_step().unwrap().contains("missing"), "{error}");
}

#[test]
fn a_mount_point_is_overwritten_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let (below, target) = (folder.path().join("below"), folder.path().join("target"));
    fs::write(&below, b"longer than its replacement").unwrap();
    fs::write(&target, b"").unwrap();
    let mounted = Command::new("mount").arg("--bind").arg(&below).arg(&target).output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: bind mounts need root");
        return;
    }
    let written = durable::write_file(&target, b"new", 0o600, true);
    let read = fs::read(&target);
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    assert_eq!(written.unwrap(), PersistMethod::WrittenInPlace);
    assert_eq!(read.unwrap(), b"new");
    assert_eq!(names(folder.path()), ["below", "target"]);
}

#[test]
fn a_full_file_system_is_reported_and_no_temporary_file_left() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder.path()).output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let error = durable::write_file(&folder.path().join("a"), &vec![1; 1 << 20], 0o600, false);
    let left = names(folder.path());
    assert!(Command::new("umount").arg(folder.path()).status().unwrap().success());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::DiskFull);
    assert!(left.is_empty(), "{left:?}");
}

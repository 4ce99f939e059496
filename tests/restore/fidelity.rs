//! A backup and a restore give an equal tree: every kind of member, every format.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use backup_manager::browse::{Globs, OpenArchive, Selection};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::SystemClock;
use backup_manager::error::{ErrorKind, Result};
use backup_manager::member::MemberPath;
use backup_manager::restore::{self, Options, Overwrite, Report, RestoreContext};
use backup_manager::schedule::Compression;

use crate::support::archive::{Silent, make};
use crate::support::nobody::again_as_nobody;
use crate::tree::{ALL, assert_same, tree};

pub const FORMATS: [Compression; 3] = [Compression::None, Compression::Gzip(6), Compression::Zstd(3)];

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the outcome apart from owners, which no one but root can set.
pub fn outcome_without_owners(report: &Report) -> Option<ErrorKind> {
    Report { owners: 0, ..report.clone() }.outcome()
}

pub fn restore_with(file: &Path, selection: &Selection, options: &Options) -> Result<Report> {
    let archive = OpenArchive::from_file(file)?;
    let clock = SystemClock::new();
    let cancel = CancelToken::new();
    let mut on_action = |_, _: &MemberPath| {};
    let mut context = RestoreContext { clock: &clock, observer: &Silent, cancel: &cancel, on_action: &mut on_action };
    restore::restore(&archive, selection, options, &mut context)
}

pub fn restore_all(file: &Path, options: &Options) -> Result<Report> {
    restore_with(file, &Selection::everything().unwrap(), options)
}

fn paths(list: &[&str]) -> Selection {
    let paths = list.iter().map(|path| MemberPath::parse(path.as_bytes()).unwrap()).collect();
    Selection::new(paths, Globs::parse(&[]).unwrap(), Globs::parse(&[]).unwrap())
}

/// Creates a tree with every kind of member that this user may create.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("sub/deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for i in 0..200 {
        fs::write(root.join(format!("sub/{i:03}")), format!("{i}\n").repeat(i * 40)).unwrap();
    }
    fs::write(root.join("nothing"), b"").unwrap();
    let large: Vec<u8> = (0..9_500_000_u32).map(|i| (i / 3 % 251) as u8).collect();
    fs::write(root.join("large"), &large).unwrap();
    fs::hard_link(root.join("large"), root.join("large again")).unwrap();
    fs::hard_link(root.join("sub/001"), root.join("sub/deep/one")).unwrap();
    symlink("sub/001", root.join("link")).unwrap();
    symlink("../outside", root.join("out")).unwrap();
    symlink("/nowhere", root.join("absolute")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 3_000_000).unwrap();
    sparse.set_len(20_000_000).unwrap();
    fs::write(root.join("new\nline \u{e9}"), "n").unwrap();
    fs::write(root.join("n".repeat(255)), "long").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("fifo"), rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    let xattr = xattr::set(root.join("sub/002"), "user.colour", b"blue\0\xff");
    if let Err(error) = xattr {
        eprintln!("skipped: extended attributes: {error}");
    }
    let _ = xattr::set(root.join("empty"), "user.folder", b"yes");
    for (path, mode) in [("sub/003", 0o400), ("sub/004", 0o777), ("empty", 0o1750)] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    if is_root() {
        add_root_only_members(root);
    } else {
        eprintln!("skipped: owners, ACLs, setuid and devices: need root");
    }
    fs::set_permissions(root.join("sub/deep"), fs::Permissions::from_mode(0o555)).unwrap();
    for (path, seconds, nanoseconds) in [("sub/009", -5, 500_000_000), ("sub", 1_000_000_000, 1), ("link", 4, 999)] {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, root.join(path), &times, flags).unwrap();
    }
}

/// Adds what only root may create: foreign owners, ACLs, setuid bits, a device.
fn add_root_only_members(root: &Path) {
    fs::set_permissions(root.join("sub/005"), fs::Permissions::from_mode(0o000)).unwrap();
    chown(root.join("sub/006"), Some(1234), Some(4321)).unwrap();
    std::os::unix::fs::lchown(root.join("link"), Some(77), Some(78)).unwrap();
    fs::set_permissions(root.join("sub/007"), fs::Permissions::from_mode(0o6755)).unwrap();
    let set = Command::new("setfacl").args(["-m", "u:1234:rw,g:55:r"]).arg(root.join("sub/008")).status();
    let default = Command::new("setfacl").args(["-d", "-m", "u:1234:rwx"]).arg(root.join("sub/deep")).status();
    if !set.is_ok_and(|s| s.success()) || !default.is_ok_and(|s| s.success()) {
        eprintln!("skipped: ACLs: setfacl is missing or the file system has none");
    }
    let device = rustix::fs::makedev(1, 3);
    let kind = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    if rustix::fs::mknodat(rustix::fs::CWD, root.join("device"), kind, mode, device).is_err() {
        eprintln!("skipped: devices: they cannot be created here");
    }
}

#[test]
fn everything_is_restored_in_every_format_with_openat2_and_without() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let was = tree(&source, ALL);
    for compression in FORMATS {
        let made = make(&source, folder.path(), compression);
        made.verify().unwrap();
        for without_openat2 in [false, true] {
            let to = folder.path().join(format!("{}-{without_openat2}", compression.extension()));
            let options = Options { setuid: true, devices: true, without_openat2, threads: 3, ..Options::to(&to) };
            let report = restore_all(&made.path, &options).unwrap();
            assert_eq!(report.outcome(), None, "{report:?}");
            assert_eq!(report.extent.members, made.written.extent.members);
            assert_same(&was, &tree(&to.join("source"), ALL), &format!("{compression} {without_openat2}"));
            let blocks = |root: &Path| root.join("sparse").metadata().unwrap().blocks();
            assert!(blocks(&to.join("source")) <= blocks(&source) + 64, "holes are restored as holes");
            // A repeated restore restores and changes nothing.
            let again = restore_all(&made.path, &options).unwrap();
            assert_eq!((again.outcome(), again.extent.files, again.extent.content_bytes), (None, 0, 0), "{again:?}");
            assert_same(&was, &tree(&to.join("source"), ALL), "again");
        }
    }
}

#[test]
fn all_tests_pass_as_an_unprivileged_user() {
    if !again_as_nobody(&["--skip", "all_tests_pass_as_an_unprivileged_user"]) {
        eprintln!("skipped: this is an unprivileged user already");
    }
}

/// Restored files do not inherit the default ACL of the target, but keep the ACLs that the archive has.
#[test]
fn restored_files_do_not_inherit_the_default_acl_of_the_target() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let was = tree(&source, ALL);
    let made = make(&source, folder.path(), Compression::Gzip(6));
    let to = folder.path().join("to");
    fs::create_dir(&to).unwrap();
    let set = Command::new("setfacl").args(["-d", "-m", "u:1234:rwx,g:99:rwx"]).arg(&to).status();
    if !set.is_ok_and(|status| status.success()) {
        eprintln!("skipped: ACLs: setfacl is missing or the file system has none");
        return;
    }
    let options = Options { setuid: true, devices: true, ..Options::to(&to) };
    let report = restore_all(&made.path, &options).unwrap();
    assert_eq!(report.outcome(), None, "{report:?}");
    assert_same(&was, &tree(&to.join("source"), ALL), "beneath a folder with a default ACL");
}

#[test]
fn setuid_bits_and_devices_are_restored_only_when_requested() {
    if !is_root() {
        eprintln!("skipped: only root restores them");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let made = make(&source, folder.path(), Compression::None);
    let to = folder.path().join("to");
    let report = restore_all(&made.path, &Options::to(&to)).unwrap();
    assert_eq!(report.setuid.count, 1);
    assert_eq!(to.join("source/sub/007").metadata().unwrap().mode() & 0o7777, 0o755);
    if source.join("device").exists() {
        assert_eq!(report.devices.count, 1);
        assert!(!to.join("source/device").exists());
    }
}

#[test]
fn a_hard_link_restored_without_its_first_name_gets_the_content() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    for compression in FORMATS {
        let made = make(&source, folder.path(), compression);
        let to = folder.path().join(compression.extension());
        let selection = paths(&["source/large again", "source/sub/deep"]);
        let report = restore_with(&made.path, &selection, &Options::to(&to)).unwrap();
        assert_eq!(report.outcome(), None, "{report:?}");
        assert_eq!(fs::read(to.join("source/large again")).unwrap(), fs::read(source.join("large")).unwrap());
        assert_eq!(fs::read(to.join("source/sub/deep/one")).unwrap(), fs::read(source.join("sub/001")).unwrap());
        assert!(!to.join("source/large").exists());
    }
}

#[test]
fn paths_globs_and_strip_select_and_rename() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let made = make(&source, folder.path(), Compression::Zstd(3));
    let globs = |list: &[&str]| Globs::parse(&list.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>()).unwrap();
    let to = folder.path().join("to");
    let selection = Selection::new(Vec::new(), globs(&["source/sub/01?"]), globs(&["013"]));
    let options = Options { strip: 2, ..Options::to(&to) };
    let report = restore_with(&made.path, &selection, &options).unwrap();
    assert_eq!((report.outcome(), report.extent.files), (None, 9));
    assert!(to.join("012").exists() && !to.join("013").exists() && !to.join("source").exists());
    let report = restore_with(&made.path, &paths(&["source/sub/012", "source/nope"]), &options).unwrap();
    assert_eq!((report.outcome(), report.unchanged), (Some(ErrorKind::NotFound), 1));
    assert_eq!(report.missing, [MemberPath::parse(b"source/nope").unwrap()]);
}

#[test]
fn existing_members_that_differ_in_metadata_only_are_listed_or_corrected() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let was = tree(&source, ALL);
    let made = make(&source, folder.path(), Compression::None);
    let to = folder.path().join("to");
    let options = Options { sync: false, devices: is_root(), setuid: true, ..Options::to(&to) };
    restore_all(&made.path, &options).unwrap();
    let report = restore_all(&made.path, &options).unwrap();
    assert_eq!((report.outcome(), report.extent.members, report.corrected), (None, 0, 0), "{report:?}");
    let changed = ["sub/005", "sub/deep", "empty", "fifo"];
    for name in changed {
        fs::set_permissions(to.join("source").join(name), fs::Permissions::from_mode(0o711)).unwrap();
    }
    let has_xattr = xattr::get(source.join("sub/002"), "user.colour").is_ok_and(|value| value.is_some());
    if has_xattr {
        xattr::set(to.join("source/sub/002"), "user.colour", b"red").unwrap();
    }
    if is_root() {
        for name in ["sub/006", "link"] {
            std::os::unix::fs::lchown(to.join("source").join(name), Some(12), Some(34)).unwrap();
        }
    }
    let expected = 4 + u64::from(has_xattr) + if is_root() { 2 } else { 0 };
    let inode = |name: &str| to.join("source").join(name).symlink_metadata().unwrap().ino();
    let inodes = ["sub/005", "sub/002", "sub/006"].map(inode);
    let before = tree(&to, ALL);
    let report = restore_all(&made.path, &options).unwrap();
    assert_eq!((report.outcome(), report.conflicts.count), (Some(ErrorKind::Incomplete), expected), "{report:?}");
    let reasons: Vec<_> = report.conflicts.list.iter().map(|(_, reason)| reason.as_str()).collect();
    assert!(reasons.contains(&"it has mode 0711 instead of 1750"), "{reasons:?}");
    assert!(!has_xattr || reasons.contains(&"it has another attribute user.colour"), "{reasons:?}");
    assert!(!is_root() || reasons.contains(&"it has owner 12:34 instead of 1234:4321"), "{reasons:?}");
    let planned = Options { dry_run: true, overwrite: Overwrite::IfChanged, ..options.clone() };
    let planned = restore_all(&made.path, &planned).unwrap();
    assert_eq!((planned.outcome(), planned.corrected), (None, expected), "{planned:?}");
    assert_same(&before, &tree(&to, ALL), "never and a dry run change nothing");
    let report = restore_all(&made.path, &Options { overwrite: Overwrite::IfChanged, ..options }).unwrap();
    assert_eq!((report.outcome(), report.corrected, report.extent.files), (None, expected, 0), "{report:?}");
    assert_same(&was, &tree(&to.join("source"), ALL), "corrected");
    assert_eq!(inodes, ["sub/005", "sub/002", "sub/006"].map(inode), "no content is written again");
}

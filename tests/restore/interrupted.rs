//! Restores that are interrupted and run again; conflicts; damage; a full disk.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use backup_manager::archive::members::Event;
use backup_manager::browse::{OpenArchive, Selection};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::SystemClock;
use backup_manager::error::ErrorKind;
use backup_manager::member::MemberPath;
use backup_manager::restore::{self, Action, Options, Overwrite, RestoreContext};
use backup_manager::schedule::Compression;

use crate::fidelity::{FORMATS, outcome_without_owners, restore_all};
use crate::support::archive::{Silent, make};
use crate::tar_file::TarFile;
use crate::tree::{ALL, assert_same, tree};

fn make_tree(root: &Path) {
    for folder in 0..5 {
        let folder = root.join(format!("d{folder}"));
        fs::create_dir_all(&folder).unwrap();
        for i in 0..40_usize {
            fs::write(folder.join(format!("{i:02}")), [i as u8].repeat(i * 997)).unwrap();
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
    }
    fs::write(root.join("large"), vec![5; 6_000_000]).unwrap();
}

#[test]
fn a_restore_interrupted_anywhere_is_finished_by_running_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let was = tree(&source, ALL);
    let made = make(&source, folder.path(), Compression::Zstd(1));
    for stop_after in [1, 2, 7, 60, 150] {
        let to = folder.path().join(format!("to{stop_after}"));
        let archive = OpenArchive::from_file(&made.path).unwrap();
        let cancel = CancelToken::new();
        let mut seen = 0;
        let mut on_action = |_: Action, _: &MemberPath| {
            seen += 1;
            if seen >= stop_after {
                cancel.cancel();
            }
        };
        let clock = SystemClock::new();
        let mut context =
            RestoreContext { clock: &clock, observer: &Silent, cancel: &cancel, on_action: &mut on_action };
        let everything = Selection::everything().unwrap();
        let error = restore::restore(&archive, &everything, &Options::to(&to), &mut context).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        // A kill would leave the same, and possibly a temporary file.
        let partial = tree(&to, ALL);
        assert!(partial.len() < was.len());
        let folders = fs::read_dir(to.join("source")).into_iter().flatten().map(|entry| entry.unwrap().path());
        let is_unfinished = |path: &Path| path.is_dir() && path.metadata().unwrap().mode() & 0o7777 == 0o1700;
        if let Some(unfinished) = folders.into_iter().find(|path| is_unfinished(path)) {
            fs::write(unfinished.join(".backup-manager-0123456789abcdef.part"), "half").unwrap();
        }
        let report = restore_all(&made.path, &Options::to(&to)).unwrap();
        assert_eq!(report.outcome(), None, "{report:?}");
        assert_same(&was, &tree(&to.join("source"), ALL), &format!("stopped after {stop_after}"));
    }
}

#[test]
fn existing_files_are_kept_unless_overwriting_is_requested() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let was = tree(&source, ALL);
    let made = make(&source, folder.path(), Compression::None);
    let to = folder.path().join("to");
    let options = Options::to(&to);
    restore_all(&made.path, &options).unwrap();
    fs::write(to.join("source/d1/05"), "mine").unwrap();
    fs::remove_file(to.join("source/d1/06")).unwrap();
    fs::create_dir(to.join("source/d1/06")).unwrap();
    fs::write(to.join("source/d1/06/x"), "mine too").unwrap();
    fs::remove_file(to.join("source/d1/07")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", to.join("source/d1/07")).unwrap();
    let report = restore_all(&made.path, &options).unwrap();
    assert_eq!((report.outcome(), report.conflicts.count), (Some(ErrorKind::Incomplete), 3), "{report:?}");
    assert_eq!(fs::read(to.join("source/d1/05")).unwrap(), b"mine");
    let dry = Options { dry_run: true, overwrite: Overwrite::Always, ..options.clone() };
    let before = tree(&to, ALL);
    restore_all(&made.path, &dry).unwrap();
    assert_same(&before, &tree(&to, ALL), "a dry run changes nothing");
    let report = restore_all(&made.path, &Options { overwrite: Overwrite::IfChanged, ..options.clone() }).unwrap();
    assert_eq!((report.conflicts.count, report.extent.files), (1, 2), "{report:?}");
    assert_eq!(fs::read(to.join("source/d1/06/x")).unwrap(), b"mine too", "a folder is never emptied");
    fs::remove_dir_all(to.join("source/d1/06")).unwrap();
    restore_all(&made.path, &Options { overwrite: Overwrite::Always, ..options }).unwrap();
    assert_same(&was, &tree(&to.join("source"), ALL), "always");
}

#[test]
fn damage_costs_only_the_members_it_hits_and_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    for compression in FORMATS {
        let made = make(&source, folder.path(), compression);
        let whole = fs::read(&made.path).unwrap();
        for part in 1..8 {
            let mut bytes = whole.clone();
            let at = bytes.len() * part / 9;
            bytes[at] ^= 0x10;
            let file = folder.path().join("damaged");
            fs::write(&file, &bytes).unwrap();
            let to = tempfile::tempdir().unwrap();
            let report = restore_all(&file, &Options { sync: false, ..Options::to(to.path()) }).unwrap();
            assert_eq!(report.outcome(), Some(ErrorKind::Damage), "{compression} {at}: {report:?}");
            // Every restored file has its original content.
            for (path, text) in tree(to.path(), ALL) {
                if let Some(name) = path.strip_prefix(b"source/")
                    && text.starts_with("file")
                {
                    let original = fs::read(source.join(String::from_utf8_lossy(name).as_ref())).unwrap();
                    let restored = fs::read(to.path().join(String::from_utf8_lossy(&path).as_ref())).unwrap();
                    assert!(original == restored, "{compression} {at} {}", String::from_utf8_lossy(name));
                }
            }
            assert!(report.extent.files > 0, "{compression} {at}: the rest is restored");
        }
        for cut in [whole.len() / 2, whole.len() - 2000] {
            let file = folder.path().join("cut");
            fs::write(&file, &whole[..cut]).unwrap();
            let to = tempfile::tempdir().unwrap();
            let report = restore_all(&file, &Options { sync: false, ..Options::to(to.path()) }).unwrap();
            assert!(
                report.extent.files > 0 && (report.outcome().is_some() || cut > whole.len() / 2),
                "{compression} {report:?}"
            );
        }
    }
}

/// A small file system, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(bytes: u32) -> Option<Small> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|out| out.status.success());
        if !mounted {
            eprintln!("skipped: no file system can be mounted here");
        }
        mounted.then_some(Small(folder))
    }

    fn resize(&self, bytes: u32) {
        self.remount(&format!("size={bytes}"));
    }

    fn remount(&self, option: &str) {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-o", &format!("remount,{option}")]).arg(self.0.path());
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_ends_a_restore_with_an_error_and_the_next_restore_finishes() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let was = tree(&source, ALL);
    let made = make(&source, folder.path(), Compression::None);
    let Some(small) = Small::mount(3_000_000) else { return };
    let options = Options::to(&small.0.path().join("to"));
    let error = restore_all(&made.path, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
    assert!(error.next_step().is_some_and(|next| next.contains("again")));
    // All that has its final name is whole: what was counted as restored, without folders, which are unfinished.
    let left = tree(&options.to, ALL);
    for (path, text) in left.iter().filter(|(_, text)| text.starts_with("file")) {
        let name = path.strip_prefix(b"source/").expect("no temporary file is left");
        assert_eq!(was.get(name), Some(text), "{}", String::from_utf8_lossy(path));
    }
    assert!(left.values().any(|text| text.starts_with("file")) && error.to_string().contains(" members are restored"));
    small.resize(30_000_000);
    let report = restore_all(&made.path, &options).unwrap();
    assert_eq!(report.outcome(), None, "{report:?}");
    assert_same(&was, &tree(&options.to.join("source"), ALL), "after the disk was full");
}

/// Restores `file`; the token is cancelled when the restore comes to `at`.
fn restore_cancelled_at(file: &Path, at: &str, selection: &Selection, to: &Path) -> backup_manager::error::Result<()> {
    let archive = OpenArchive::from_file(file).unwrap();
    let cancel = CancelToken::new();
    let mut on_action = |_: Action, path: &MemberPath| {
        if path.as_bytes() == at.as_bytes() {
            cancel.cancel();
        }
    };
    let clock = SystemClock::new();
    let mut context = RestoreContext { clock: &clock, observer: &Silent, cancel: &cancel, on_action: &mut on_action };
    restore::restore(&archive, selection, &Options::to(to), &mut context).map(drop)
}

#[test]
fn a_restore_cancelled_in_its_last_member_is_interrupted_and_names_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let large = vec![7; 3_000_000];
    let head = || TarFile::default().folder("d").file("d/first", b"first");
    // Each archive, the path at which it is cancelled, and whether that is left out.
    let cases = [
        ("large file", head().file("d/last", &large).end(), "d/last", true),
        ("small file", head().file("d/last", b"last").end(), "d/last", false),
        ("link", head().hard_link("d/last", "d/first").end(), "d/last", false),
        ("symbolic link", head().symlink("d/last", "x").end(), "d/last", false),
        ("folder", head().folder("d/last").end(), "d/last", false),
        ("not the last", head().file("d/last", &large).file("d/more", b"x").end(), "d/last", true),
    ];
    for (name, bytes, at, is_left_out) in cases {
        let (file, to) = (folder.path().join("a.tar"), folder.path().join(name));
        fs::write(&file, bytes).unwrap();
        let error = restore_cancelled_at(&file, at, &Selection::everything().unwrap(), &to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains("members restored") && text.contains("folders without their mode and time: d"), "{text}");
        assert_eq!(text.contains("1 member not restored: d/last"), is_left_out, "{name}: {text}");
        assert_eq!(to.join(at).symlink_metadata().is_err(), is_left_out, "{name}: {text}");
        assert!(error.next_step().is_some_and(|next| next.contains("again")), "{name}");
        let report = restore_all(&file, &Options::to(&to)).unwrap();
        assert_eq!(outcome_without_owners(&report), None, "{name}: {report:?}");
        assert_eq!(to.join("d").metadata().unwrap().mode() & 0o7777, 0o755, "{name}");
    }
}

#[test]
fn a_search_through_a_file_that_is_no_archive_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let tar = || TarFile::default().file("f", b"content");
    let cases = [
        ("for the first header", vec![b'x'; 2_000_000], 0),
        ("for a header after damage", [tar().0, vec![b'x'; 2_000_000]].concat(), 2),
        ("behind the end marks", [tar().end(), vec![0; 2_000_000]].concat(), 1),
    ];
    for (what, bytes, events) in cases {
        fs::write(&file, bytes).unwrap();
        let cancel = CancelToken::new();
        cancel.cancel();
        let archive = OpenArchive::from_file(&file).unwrap();
        let everything = Selection::everything().unwrap();
        let mut members = archive.members(&everything, 1).unwrap().cancelled_by(&cancel);
        for _ in 0..events {
            assert!(members.next().unwrap().is_some(), "{what}");
        }
        assert_eq!(members.next().unwrap_err().kind(), ErrorKind::Interrupted, "{what}");
        let clock = SystemClock::new();
        let mut context =
            RestoreContext { clock: &clock, observer: &Silent, cancel: &cancel, on_action: &mut |_, _| {} };
        let to = Options::to(&folder.path().join("to"));
        let error = restore::restore(&archive, &everything, &to, &mut context).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{what}");
        assert!(!error.to_string().contains("none is left"), "{what}: {error}");
    }
}

#[test]
fn a_large_member_that_is_skipped_in_a_compressed_stream_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&TarFile::default().file("large", &vec![7; 20_000_000]).file("next", b"x").end()).unwrap();
    fs::write(&file, encoder.finish().unwrap()).unwrap();
    let cancel = CancelToken::new();
    let archive = OpenArchive::from_file(&file).unwrap();
    let mut members = archive.members(&Selection::everything().unwrap(), 1).unwrap().cancelled_by(&cancel);
    assert!(matches!(members.next().unwrap(), Some(Event::Member(entry)) if entry.member.size == 20_000_000));
    cancel.cancel();
    assert_eq!(members.next().unwrap_err().kind(), ErrorKind::Interrupted);
}

#[test]
fn a_restore_cancelled_in_a_link_whose_first_name_was_not_selected_names_all_such_links() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("a.tar"), folder.path().join("to"));
    let tar = TarFile::default().file("first", &vec![7; 3_000_000]);
    fs::write(&file, tar.hard_link("l1", "first").hard_link("l2", "first").end()).unwrap();
    let paths = ["l1", "l2"].map(|path| MemberPath::parse(path.as_bytes()).unwrap());
    let selection = Selection::exactly(paths.to_vec()).unwrap();
    let error = restore_cancelled_at(&file, "l1", &selection, &to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(error.to_string().contains("0 members restored, 2 members not restored: l1, l2"), "{error}");
}

#[test]
fn a_hard_link_replaces_an_earlier_file_of_its_path_that_is_still_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let (file, data) = (folder.path().join("a.tar"), vec![1; 1_000_000]);
    let tar = (0..20).fold(TarFile::default().file("first", b"first"), |tar, number| {
        let name = format!("{number}");
        tar.file(&name, &data).hard_link(&name, "first")
    });
    fs::write(&file, tar.end()).unwrap();
    let to = folder.path().join("to");
    let report = restore_all(&file, &Options { threads: 1, sync: false, ..Options::to(&to) }).unwrap();
    assert_eq!(outcome_without_owners(&report), None, "{report:?}");
    for number in 0..20 {
        assert_eq!(fs::read(to.join(number.to_string())).unwrap(), b"first", "{number}");
    }
}

#[test]
fn an_empty_folder_in_the_way_is_replaced_if_requested_and_a_full_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    let tar = TarFile::default().file("file", b"content").symlink("link", "x").hard_link("hard", "file");
    fs::write(&file, tar.end()).unwrap();
    for overwrite in [Overwrite::Never, Overwrite::IfChanged, Overwrite::Always] {
        for is_full in [false, true] {
            let to = tempfile::tempdir().unwrap();
            for name in ["file", "link", "hard"] {
                fs::create_dir(to.path().join(name)).unwrap();
                if is_full {
                    fs::write(to.path().join(name).join("mine"), "mine").unwrap();
                }
            }
            let options = Options { overwrite, sync: false, ..Options::to(to.path()) };
            let planned = restore_all(&file, &Options { dry_run: true, ..options.clone() }).unwrap();
            assert!(to.path().join("file").is_dir(), "a dry run removes nothing");
            let report = restore_all(&file, &options).unwrap();
            // The hard link waits for its first name, which is a conflict, and then gets its content: also a conflict.
            let is_replaced = overwrite != Overwrite::Never && !is_full;
            let conflicts = if is_replaced { 0 } else { 3 };
            assert_eq!(report.conflicts.count, conflicts, "{overwrite:?} {is_full}: {report:?}");
            assert_eq!(planned.conflicts, report.conflicts, "{overwrite:?} {is_full}");
            assert!(!is_full || report.conflicts.list.iter().all(|(_, reason)| reason.contains("not empty")));
            assert_eq!(to.path().join("file").is_file(), is_replaced, "{overwrite:?} {is_full}");
            assert_eq!(to.path().join("file/mine").exists(), is_full, "{overwrite:?}: a full folder is kept");
        }
    }
}

#[test]
fn a_target_on_a_read_only_file_system_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    fs::write(&file, TarFile::default().folder("top").file("top/file", b"content").end()).unwrap();
    let Some(small) = Small::mount(1_000_000) else { return };
    let mount = small.0.path().to_owned();
    fs::create_dir_all(mount.join("docs")).unwrap();
    small.remount("ro");
    let in_place = Options { rename_root: Some(b"docs".to_vec()), ..Options::to(&mount) };
    for options in [in_place.clone(), Options::to(&mount), Options::to(&mount.join("new/folder"))] {
        let error = restore_all(&file, &options).unwrap_err();
        let next = error.next_step().unwrap_or_default().to_owned();
        assert!(error.to_string().contains("is not writable: Read-only file system"), "{error}");
        assert!(next.contains("mount its file system writable") && next.contains("--to"), "{next}");
    }
    // Only the folder that is restored need be writable, not the one above it.
    small.remount("rw");
    let docs = mount.join("docs");
    let bind = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).arg(&docs).status().unwrap();
    assert!(bind(&["-t", "tmpfs", "-o", "mode=755", "tmpfs"]).success());
    small.remount("ro");
    let report = restore_all(&file, &in_place);
    let _ = std::process::Command::new("umount").arg(&docs).status();
    assert_eq!(outcome_without_owners(&report.unwrap()), None);
}

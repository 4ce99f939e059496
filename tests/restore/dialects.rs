//! What other programs write that this one does not: sizes without data, times that are none, chains of links.

use std::fs;
use std::path::{Path, PathBuf};

use backup_manager::browse::{Globs, OpenArchive, Selection, read_file};
use backup_manager::cancel::CancelToken;
use backup_manager::error::{ErrorKind, Result};
use backup_manager::maintenance::verify::verify_file;
use backup_manager::member::MemberPath;
use backup_manager::restore::{Options, Report};

use crate::fidelity::{outcome_without_owners, restore_with};
use crate::tar_file::{Block, TarFile};

/// A file with an archive, and a folder to restore to.
struct Case {
    _folder: tempfile::TempDir,
    file: PathBuf,
    to: PathBuf,
}

impl Case {
    fn new(bytes: &[u8]) -> Case {
        let folder = tempfile::tempdir().unwrap();
        let (file, to) = (folder.path().join("a.tar"), folder.path().join("to"));
        fs::write(&file, bytes).unwrap();
        Case { _folder: folder, file, to }
    }

    fn restore(&self, paths: &[&str]) -> Report {
        let paths = paths.iter().map(|path| MemberPath::parse(path.as_bytes()).unwrap()).collect();
        let none = || Globs::parse(&[]).unwrap();
        let options = Options { sync: false, ..Options::to(&self.to) };
        restore_with(&self.file, &Selection::new(paths, none(), none()), &options).unwrap()
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.to.join(path)).unwrap()
    }

    fn cat(&self, path: &str) -> Result<String> {
        let archive = OpenArchive::from_file(&self.file)?;
        let mut content = Vec::new();
        read_file(&archive, &archive.member_path(Path::new(path))?, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(String::from_utf8(content).unwrap())
    }

    fn is_good(&self) -> bool {
        verify_file(&self.file, 1, &CancelToken::new()).unwrap().is_good()
    }
}

#[test]
fn members_that_have_no_data_swallow_none_whatever_their_size_says() {
    for flag in b'1'..=b'6' {
        for is_pax in [false, true] {
            let size = if is_pax { 0 } else { 4096 };
            let mut tar = TarFile::default().file("first", b"first");
            if is_pax {
                tar = tar.pax(&[("size", b"4096")]);
            }
            tar = tar.block(Block::new(b"odd", flag, size).link(b"first"));
            for name in ["a", "b", "c"] {
                tar = tar.file(name, name.as_bytes());
            }
            let case = Case::new(&tar.end());
            let report = case.restore(&[]);
            assert_eq!((report.refused.count, report.damaged.count), (0, 0), "{flag}: {report:?}");
            for name in ["a", "b", "c", "first"] {
                assert_eq!(case.text(name), name, "{flag}, pax {is_pax}");
            }
            assert!(case.is_good(), "{flag}, pax {is_pax}");
        }
    }
}

#[test]
fn folders_that_are_marked_by_their_names_only_swallow_no_member() {
    // The types of v7, of contiguous and of unknown files.
    for flag in [0, b'0', b'7', b'Z'] {
        for is_pax in [false, true] {
            let mut tar = TarFile::default();
            if is_pax {
                tar = tar.pax(&[("path", b"folder/")]);
            }
            let name: &[u8] = if is_pax { b"f" } else { b"folder/" };
            let tar = tar.block(Block::new(name, flag, 600).mode(0o755)).file("a", b"a").file("b", b"b");
            let case = Case::new(&tar.end());
            let report = case.restore(&[]);
            assert_eq!(
                (report.extent.members, outcome_without_owners(&report)),
                (3, None),
                "{flag}, pax {is_pax}: {report:?}"
            );
            assert!(case.to.join("folder").is_dir(), "{flag}, pax {is_pax}");
            assert_eq!((case.text("a"), case.text("b")), ("a".to_owned(), "b".to_owned()), "{flag}, pax {is_pax}");
            assert!(case.is_good(), "{flag}, pax {is_pax}");
        }
    }
    // A folder of a GNU dump has the names of what lay in it.
    let tar = TarFile::default().block(Block::new(b"dump/", b'D', 600).mode(0o755)).bytes(&[b'Y'; 600]);
    let case = Case::new(&tar.file("a", b"a").end());
    assert_eq!((outcome_without_owners(&case.restore(&[])), case.text("a")), (None, "a".to_owned()));
}

#[test]
fn a_time_that_is_none_costs_the_time_and_not_the_file() {
    for bad in ["", "nonsense", "1e9", "99999999999999999999", "12:30"] {
        let case = Case::new(&TarFile::default().pax(&[("mtime", bad.as_bytes())]).file("f", b"content").end());
        let report = case.restore(&[]);
        assert_eq!((report.refused.count, report.extent.files), (0, 1), "{bad}: {report:?}");
        assert_eq!(report.bad_times, u64::from(!bad.is_empty()), "{bad}");
        assert_eq!(case.text("f"), "content");
        let modified = fs::metadata(case.to.join("f")).unwrap().modified().unwrap();
        let seconds = modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds, 1_700_000_000, "{bad}: that of the header block");
        assert!(case.is_good());
    }
}

#[test]
fn an_empty_pax_value_leaves_what_the_header_has() {
    let keys = ["path", "size", "uid", "gid", "mtime", "linkpath", "GNU.sparse.name"];
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (*key, &b""[..])).collect();
    let case = Case::new(&TarFile::default().pax(&records).file("f", b"content").end());
    let report = case.restore(&[]);
    assert_eq!((report.refused.count, report.extent.files, report.bad_times), (0, 1, 0), "{report:?}");
    assert_eq!(case.text("f"), "content");
}

#[test]
fn chains_of_hard_links_lead_to_the_content() {
    let tar = TarFile::default().file("a", b"content").hard_link("b", "a").hard_link("c", "b").hard_link("d", "c");
    let case = Case::new(&tar.end());
    for name in ["a", "b", "c", "d"] {
        assert_eq!(case.cat(name).unwrap(), "content", "{name}");
    }
    for names in [&["d"][..], &["c", "b"], &["d", "b"], &[]] {
        let _ = fs::remove_dir_all(&case.to);
        let report = case.restore(names);
        assert_ne!(report.outcome(), Some(ErrorKind::Damage), "{names:?}: {report:?}");
        names.iter().for_each(|name| assert_eq!(case.text(name), "content", "{names:?}"));
    }
}

#[test]
fn hard_links_in_a_circle_are_refused_and_never_followed_without_end() {
    let case = Case::new(&TarFile::default().hard_link("a", "b").hard_link("b", "a").file("f", b"f").end());
    assert_eq!(case.cat("a").unwrap_err().kind(), ErrorKind::Damage);
    let report = case.restore(&[]);
    assert_eq!((report.refused.count, report.extent.files), (2, 1), "{report:?}");
}

#[test]
fn a_hard_link_to_a_symbolic_link_is_no_damage() {
    let case = Case::new(&TarFile::default().symlink("s", "target").hard_link("h", "s").end());
    assert_eq!(case.cat("s").unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(case.cat("h").unwrap_err().kind(), ErrorKind::Usage);
    let report = case.restore(&["h"]);
    assert_ne!(report.outcome(), Some(ErrorKind::Damage), "{report:?}");
    assert_eq!(fs::read_link(case.to.join("h")).unwrap(), Path::new("target"));
}

#[test]
fn verify_reports_the_members_that_a_restore_refuses() {
    let good = || TarFile::default().file("good", b"good");
    let chain = good().hard_link("z", "y").hard_link("y", "x").hard_link("x", "good");
    let replaced = good().symlink("s", "/tmp").folder("s").file("s/a", b"a");
    for (what, tar, expected) in [
        ("a name outside the target", good().file("../evil", b"evil"), vec!["../evil"]),
        ("beneath a link", good().symlink("s", "/tmp").file("s/a", b"a").folder("s/d/e"), vec!["s/a", "s/d/e"]),
        ("beneath a file", good().file("good/a", b"a").hard_link("h", "good").file("h/b", b"b"), vec!["good/a", "h/b"]),
        ("a link that became a folder", replaced, vec![]),
        (
            "links to nothing",
            good().hard_link("h", "none").hard_link("i", "h").hard_link("j", "j"),
            vec!["h", "i", "j"],
        ),
        ("links to a folder", good().folder("d").hard_link("h", "d"), vec!["h"]),
        ("links to a later member", good().hard_link("h", "later").file("later", b"l"), vec![]),
        ("a chain of links, the last one first", chain, vec![]),
        (
            "a link to what lies beneath a link",
            good().symlink("s", ".").file("s/a", b"a").hard_link("h", "s/a"),
            vec!["s/a"],
        ),
    ] {
        let case = Case::new(&tar.end());
        let findings = verify_file(&case.file, 1, &CancelToken::new()).unwrap();
        let mut by_verify: Vec<_> =
            findings.refused_members.iter().map(|(path, _)| std::str::from_utf8(path).unwrap()).collect();
        let report = case.restore(&[]);
        let mut by_restore: Vec<_> =
            report.refused.list.iter().map(|(path, _)| std::str::from_utf8(path).unwrap()).collect();
        by_verify.sort();
        by_restore.sort();
        assert_eq!((by_verify, by_restore), (expected.clone(), expected), "{what}");
    }
}

#[test]
fn a_label_is_no_damage_and_zeros_hold_no_members() {
    let labelled = TarFile::default().block(Block::new(b"label", b'V', 0)).file("f", b"f").end();
    assert!(Case::new(&labelled).is_good());
    for size in [1024, 10_240, 1 << 20] {
        let case = Case::new(&vec![0; size]);
        let findings = verify_file(&case.file, 1, &CancelToken::new()).unwrap();
        assert_eq!(findings.structure, [format!("{} holds no members, only zeros", case.file.display())], "{size}");
    }
    // An archive of an empty folder by the name `.` has nothing to restore, and nothing is wrong with it.
    let case = Case::new(&TarFile::default().folder("./").end());
    assert!(case.is_good());
    assert_eq!(case.restore(&[]).outcome(), None);
}

#[test]
fn a_comparison_follows_chains_of_hard_links_to_the_content() {
    use backup_manager::browse::{compare, members_by_path};
    // Names in both orders: `a` refers to a link that comes after it in the order of paths, `z` to one before.
    let tar = |content: &[u8]| {
        let tar = TarFile::default().file("m", content).hard_link("l", "m").hard_link("a", "l").hard_link("z", "l");
        Case::new(&tar.hard_link("ring", "ring").end())
    };
    let cases = [tar(b"one"), tar(b"two"), tar(b"one")];
    let sides = cases.each_ref().map(|case| members_by_path(&OpenArchive::from_file(&case.file).unwrap()).unwrap());
    for (other, expected) in [(1, &["a", "l", "m", "z"][..]), (2, &[])] {
        let mut changed = Vec::new();
        compare(&sides[0], &sides[other], &mut |path, _| {
            changed.push(path.to_string());
            Ok(())
        })
        .unwrap();
        assert_eq!(changed, expected);
    }
}

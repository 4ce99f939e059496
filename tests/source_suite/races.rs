//! Files that change between listing and opening: reported as what they are, and never followed.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use backup_manager::member::MemberKind;
use backup_manager::progress::{Problem, ProblemKind};

use crate::support::*;

fn summary(problem: &Problem) -> (String, ProblemKind) {
    (String::from_utf8_lossy(&problem.path).into_owned(), problem.kind)
}

#[test]
fn a_file_that_became_something_else_is_reported_as_that() {
    type Act = fn(&Path);
    let cases: [(&str, Act, ProblemKind, Option<MemberKind>); 7] = [
        ("gone", |_| {}, ProblemKind::Vanished, None),
        ("link", |path| symlink("/etc/passwd", path).unwrap(), ProblemKind::Replaced, Some(MemberKind::Symlink)),
        ("fifo", mkfifo, ProblemKind::Replaced, Some(MemberKind::Fifo)),
        ("folder", |path| fs::create_dir(path).unwrap(), ProblemKind::Replaced, Some(MemberKind::Folder)),
        ("socket", |path| drop(UnixListener::bind(path).unwrap()), ProblemKind::Replaced, None),
        ("file", |path| fs::write(path, "new").unwrap(), ProblemKind::Replaced, Some(MemberKind::File)),
        ("same", |path| fs::rename(path.with_file_name("aside"), path).unwrap(), ProblemKind::Skipped, None),
    ];
    for (what, act, expected, now) in cases {
        let dir = tree(&["sub/f"]);
        let path = dir.path().join("sub/f");
        let found = Source::at(dir.path()).find("sub/f");
        // Moved aside, so that the new file cannot get the inode number of the old one.
        fs::rename(&path, path.with_file_name("aside")).unwrap();
        act(&path);
        let opened = found.open();
        if what == "same" {
            assert!(opened.is_ok());
            continue;
        }
        let problem = opened.unwrap_err();
        assert_eq!(summary(&problem), (path.to_str().unwrap().to_owned(), expected), "{what}: {}", problem.reason);
        assert!(!problem.reason.is_empty());
        match (found.stat_again(), now) {
            (Ok(again), Some(kind)) => {
                assert_eq!((again.kind, &again.path), (kind, &found.path), "{what}");
                assert_eq!(again.open().is_ok(), kind == MemberKind::File, "{what}");
            }
            (Err(problem), None) => assert_eq!(problem.kind, expected, "{what}"),
            (again, _) => panic!("{what}: {again:?}"),
        }
    }
}

#[test]
fn a_replaced_root_is_reported() {
    let dir = tree(&["f"]);
    let path = dir.path().join("f");
    let found = Source::at(&path).walk().found.remove(0);
    fs::rename(&path, dir.path().join("aside")).unwrap();
    assert_eq!(found.open().unwrap_err().kind, ProblemKind::Vanished);
    fs::write(&path, "other").unwrap();
    assert_eq!(found.open().unwrap_err().kind, ProblemKind::Replaced);
    fs::remove_file(&path).unwrap();
    mkfifo(&path);
    assert_eq!(found.open().unwrap_err().kind, ProblemKind::Replaced);
}

#[test]
fn a_link_that_became_something_else_is_reported() {
    let dir = tree(&[]);
    let path = dir.path().join("link");
    symlink("target", &path).unwrap();
    let found = Source::at(dir.path()).find("link");
    fs::remove_file(&path).unwrap();
    assert_eq!(found.read_link().unwrap_err().kind, ProblemKind::Vanished);
    assert_eq!(found.xattrs().unwrap_err().kind, ProblemKind::Vanished);
    fs::write(&path, "file").unwrap();
    assert_eq!(found.read_link().unwrap_err().kind, ProblemKind::Replaced);
    if xattr::set(&path, "user.x", b"other").is_ok() {
        assert_eq!(found.xattrs().unwrap_err().kind, ProblemKind::Replaced);
    }
}

#[test]
fn a_folder_that_became_something_else_is_not_entered() {
    type Act = fn(&Path);
    let acts: [(&str, Act, ProblemKind); 4] = [
        ("link", |path| symlink("../outside", path).unwrap(), ProblemKind::Replaced),
        ("folder", |path| plant(path, &["stranger"]), ProblemKind::Replaced),
        ("fifo", mkfifo, ProblemKind::Replaced),
        ("gone", |_| {}, ProblemKind::Vanished),
    ];
    for (what, act, expected) in acts {
        let dir = tree(&["src/a/f", "src/z", "outside/secret"]);
        let root = dir.path().join("src");
        let walked = Source::at(&root).walk_with(|found| {
            if found.path.to_string() == "src/a" {
                fs::rename(root.join("a"), dir.path().join("aside")).unwrap();
                act(&root.join("a"));
            }
            ControlFlow::Continue(())
        });
        let walked = walked.unwrap();
        assert_eq!(walked.paths(), ["src", "src/a", "src/z"], "{what}");
        let expected = vec![(root.join("a").to_str().unwrap().to_owned(), expected)];
        assert_eq!(walked.problems.iter().map(summary).collect::<Vec<_>>(), expected, "{what}");
    }
}

#[test]
fn names_that_vanish_during_the_walk_are_reported_one_by_one() {
    let dir = tree(&["a", "b", "c/d", "e"]);
    let walked = Source::at(dir.path()).walk_with(|found| {
        if found.path.to_string() == "src/a" {
            fs::remove_file(dir.path().join("b")).unwrap();
            fs::remove_dir_all(dir.path().join("c")).unwrap();
        }
        ControlFlow::Continue(())
    });
    let walked = walked.unwrap();
    assert_eq!(walked.paths(), ["src", "src/a", "src/e"]);
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let expected = [(at("b"), ProblemKind::Vanished), (at("c"), ProblemKind::Vanished)];
    assert_eq!(walked.problems.iter().map(summary).collect::<Vec<_>>(), expected);
}

#[test]
fn a_file_system_mounted_by_opening_is_entered() {
    // An automounter mounts at the first open: between listing a folder and opening it, its device changes.
    let dir = tree(&["a/", "z"]);
    let mut mount = None;
    let walked = Source::at(dir.path()).walk_with(|found| {
        if found.path.to_string() == "src/a" {
            mount = Mount::new(&["-t", "tmpfs", "none"], &dir.path().join("a"));
            plant(dir.path(), &["a/inside"]);
        }
        ControlFlow::Continue(())
    });
    let walked = walked.unwrap();
    assert!(walked.problems.is_empty(), "{:?}", walked.problems);
    assert_eq!(walked.paths(), ["src", "src/a", "src/a/inside", "src/z"]);
}

#[test]
fn not_even_a_link_to_the_same_file_is_followed() {
    // Moved to a larger disk and linked back: the same file or folder by inode, but the listed name is now a link.
    let dir = tree(&["src/a/f", "src/b", "src/z"]);
    let root = dir.path().join("src");
    let file = Source::at(&root).find("b");
    fs::rename(root.join("b"), dir.path().join("b")).unwrap();
    symlink("../b", root.join("b")).unwrap();
    assert_eq!(file.open().unwrap_err().kind, ProblemKind::Replaced);
    let walked = Source::at(&root).walk_with(|found| {
        if found.path.to_string() == "src/a" {
            fs::rename(root.join("a"), dir.path().join("a")).unwrap();
            symlink("../a", root.join("a")).unwrap();
        }
        ControlFlow::Continue(())
    });
    let walked = walked.unwrap();
    assert_eq!(walked.paths(), ["src", "src/a", "src/b", "src/z"]);
    assert_eq!(walked.problems[0].kind, ProblemKind::Replaced);
}

#[test]
fn a_fifo_with_the_inode_of_a_removed_file_is_not_that_file() {
    // Many file systems reuse the inode number of a removed file for the next new one, unless another test is faster.
    let dir = tree(&[]);
    for _ in 0..100 {
        plant(dir.path(), &["f"]);
        let found = Source::at(dir.path()).find("f");
        fs::remove_file(dir.path().join("f")).unwrap();
        mkfifo(&dir.path().join("f"));
        let again = found.stat_again().unwrap();
        assert_eq!(found.open().unwrap_err().kind, ProblemKind::Replaced);
        fs::remove_file(dir.path().join("f")).unwrap();
        if again.stat.inode == found.stat.inode {
            return;
        }
    }
    skip("the file system does not reuse inode numbers");
}

/// Creates more folders than are kept open, each with one file.
fn many_folders() -> (tempfile::TempDir, Vec<String>) {
    let names: Vec<String> = (0..400).map(|number| format!("d{number:03}/sub/f")).collect();
    (big_tree(&names.iter().map(String::as_str).collect::<Vec<_>>()), names)
}

#[test]
fn entries_can_be_opened_later_from_other_threads() {
    let (dir, names) = many_folders();
    let found: Vec<_> = Source::at(dir.path()).walk().found;
    let files: Vec<_> = found.iter().filter(|found| found.kind == MemberKind::File).collect();
    assert_eq!(files.len(), names.len());
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (files, names) = (&files, &names);
            scope.spawn(move || {
                for step in 0..files.len() {
                    let number = (step * 7 + thread * 131) % files.len();
                    let mut content = [0; 32];
                    let length = files[number].open().unwrap().read_at(&mut content, 0).unwrap();
                    assert_eq!(&content[..length], names[number].as_bytes());
                }
            });
        }
    });
}

#[test]
fn a_folder_replaced_after_the_walk_is_not_followed() {
    let (dir, names) = many_folders();
    let outside = tree(&["sub/f", "f"]);
    let found: Vec<_> = Source::at(dir.path()).walk().found;
    let files: Vec<_> = found.iter().filter(|found| found.kind == MemberKind::File).collect();
    // All but the last have been closed; each top folder is now a link to elsewhere, or another folder.
    for (number, name) in names.iter().enumerate() {
        let folder = dir.path().join(&name[..4]);
        fs::rename(&folder, folder.with_extension("aside")).unwrap();
        match number % 3 {
            0 => symlink(outside.path(), &folder).unwrap(),
            1 => symlink(folder.with_extension("aside"), &folder).unwrap(),
            _ => plant(&folder, &["sub/f"]),
        }
    }
    let (mut replaced, mut still_open) = (0, 0);
    for (file, name) in files.iter().zip(&names) {
        match file.open() {
            // Through a handle that was still open: the file that was listed.
            Ok(opened) => {
                let mut content = [0; 32];
                let length = opened.read_at(&mut content, 0).unwrap();
                assert_eq!(&content[..length], name.as_bytes());
                still_open += 1;
            }
            Err(problem) => {
                assert_eq!(problem.kind, ProblemKind::Replaced, "{}", problem.reason);
                replaced += 1;
            }
        }
    }
    assert!(replaced > 100 && still_open <= 128, "{replaced} {still_open}");
}

#[test]
fn a_link_is_not_read_in_a_folder_that_replaced_its_own() {
    let (dir, names) = many_folders();
    let folders: Vec<_> = names.iter().map(|name| dir.path().join(name).parent().unwrap().to_owned()).collect();
    for folder in &folders {
        symlink("ours", folder.join("link")).unwrap();
    }
    let found: Vec<_> = Source::at(dir.path()).walk().found;
    for folder in &folders {
        fs::rename(folder, folder.with_extension("aside")).unwrap();
        fs::create_dir(folder).unwrap();
        symlink("theirs", folder.join("link")).unwrap();
    }
    let links = found.iter().filter(|found| found.kind == MemberKind::Symlink);
    let refused = links.filter_map(|link| match link.read_link() {
        Ok(target) => {
            assert_eq!(target, b"ours");
            None
        }
        Err(problem) => Some(problem.kind),
    });
    let refused: Vec<_> = refused.collect();
    assert!(refused.len() > 100 && refused.iter().all(|kind| *kind == ProblemKind::Replaced), "{refused:?}");
}

#[test]
fn few_descriptors_are_enough() {
    let (dir, _) = many_folders();
    in_own_process(&["sh", "-c", "ulimit -n 24; exec \"$@\"", "sh"], "races::with_few_descriptors", dir.path());
}

#[test]
#[ignore = "run by few_descriptors_are_enough with 24 of them"]
fn with_few_descriptors() {
    let Some(root) = passed_folder() else { return };
    let walked = Source::at(root).walk();
    assert!(walked.problems.is_empty(), "{:?}", walked.problems[0]);
    let files = walked.found.iter().filter(|found| found.kind == MemberKind::File);
    assert_eq!(files.map(|file| file.open().unwrap()).filter(|file| file.stat().size > 0).count(), 400);
}

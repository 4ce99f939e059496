//! The program's own files are never archived, and no other files are excluded because of them.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use backup_manager::error::ErrorKind;

use crate::support::*;

/// A home with documents of its own beside the program's files.
const HOME: &[&str] = &["backup.db", "backup.db2", "backups/x/a.tar", "backups-old/f", "docs/f", "logs/l.log"];

fn own_paths(home: &std::path::Path) -> Vec<PathBuf> {
    ["backup.db", "backup.db-wal", "backups", "logs"].iter().map(|name| home.join(name)).collect()
}

#[test]
fn own_files_are_skipped_and_reported() {
    let dir = tree(HOME);
    let mut source = Source::at(dir.path());
    source.own_paths = own_paths(dir.path());
    let walked = source.walk();
    assert_eq!(
        walked.paths(),
        ["src", "src/backup.db2", "src/backups-old", "src/backups-old/f", "src/docs", "src/docs/f"]
    );
    let own = ["backup.db", "backups", "logs"].map(|name| dir.path().join(name));
    assert_eq!(walked.summary.own_paths_skipped, own);
    assert_eq!(walked.summary.excluded, 0);
}

#[test]
fn another_path_to_them_is_skipped_too() {
    let dir = tree(&["real/"]);
    let home = dir.path().join("real");
    plant(&home, HOME);
    symlink("real", dir.path().join("way")).unwrap();
    // The archives were moved to a larger disk and linked from the home, as users do.
    fs::rename(home.join("backups"), dir.path().join("disk")).unwrap();
    symlink("../disk", home.join("backups")).unwrap();
    // The home as the caller knows it, and the source as the user wrote it.
    for known in ["real", "way"] {
        for (root, prefix) in [("real", "src"), ("way", "src"), ("", "src/real")] {
            let mut source = Source::at(dir.path().join(root));
            source.own_paths = own_paths(&dir.path().join(known));
            let paths = source.walk().paths();
            for own in ["backup.db", "backups", "logs", "logs/l.log"] {
                assert!(!paths.contains(&format!("{prefix}/{own}")), "{known} {root}: {paths:?}");
            }
            assert!(!paths.iter().any(|path| path.ends_with("a.tar")), "{known} {root}: {paths:?}");
            assert!(paths.contains(&format!("{prefix}/docs/f")));
        }
    }
}

#[test]
fn a_bind_mount_or_a_hard_link_of_them_is_skipped_too() {
    let dir = tree(&["source/other/", "source/f"]);
    let home = tree(HOME);
    fs::hard_link(home.path().join("backup.db"), dir.path().join("source/link.db")).unwrap();
    let mut source = Source::at(dir.path().join("source"));
    source.own_paths = own_paths(home.path());
    let walked = source.walk();
    assert_eq!(walked.paths(), ["src", "src/f", "src/other"]);
    assert_eq!(walked.summary.own_paths_skipped, [dir.path().join("source/link.db")]);
    let other = dir.path().join("source/other");
    let Some(_mount) = Mount::new(&["--bind", home.path().to_str().unwrap()], &other) else { return };
    let walked = source.walk();
    let kept = ["backup.db2", "backups-old", "backups-old/f", "docs", "docs/f"].map(|path| format!("src/other/{path}"));
    assert_eq!(walked.paths()[3..], kept);
}

#[test]
fn one_that_is_created_during_the_walk_is_skipped_too() {
    let dir = tree(&["home/a", "home/backup.db"]);
    let home = dir.path().join("home");
    let mut source = Source::at(dir.path());
    source.own_paths = own_paths(&home);
    let walked = source.walk_with(|found| {
        if found.path.to_string() == "src/home" {
            fs::write(home.join("backup.db-wal"), "log").unwrap();
        }
        ControlFlow::Continue(())
    });
    let walked = walked.unwrap();
    assert_eq!(walked.paths(), ["src", "src/home", "src/home/a"]);
    assert_eq!(walked.summary.own_paths_skipped.len(), 2);
}

#[test]
fn a_user_file_with_the_inode_of_a_removed_one_is_archived() {
    // The inode of the log has another name now: only what is still the program's own may be skipped.
    let dir = tree(&["home/backup.db-wal", "users/"]);
    let mut source = Source::at(dir.path());
    source.own_paths = vec![dir.path().join("home/backup.db-wal")];
    let walked = source.walk_with(|found| {
        if found.path.to_string() == "src" {
            fs::rename(dir.path().join("home/backup.db-wal"), dir.path().join("users/file")).unwrap();
        }
        ControlFlow::Continue(())
    });
    assert_eq!(walked.unwrap().paths(), ["src", "src/home", "src/users", "src/users/file"]);
}

#[test]
fn a_source_inside_the_programs_own_folders_is_refused() {
    let dir = tree(HOME);
    symlink("backups/x", dir.path().join("way")).unwrap();
    for root in ["backups", "backups/x", "way", "backup.db", "logs/l.log"] {
        let mut source = Source::at(dir.path().join(root));
        source.own_paths = own_paths(dir.path());
        let error = source.try_walk().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed);
        assert!(error.to_string().contains(root) && error.next_step().is_some(), "{error}");
    }
    let mut source = Source::at(dir.path().join("docs"));
    source.own_paths = own_paths(dir.path());
    assert_eq!(source.walk().paths(), ["src", "src/f"]);
}

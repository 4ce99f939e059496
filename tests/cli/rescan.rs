//! `rescan` and the archive folder as a whole: many archives, older databases, folders of other homes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::environment::{Said, TestHome, said};

/// A home with one schedule and one archive, which is returned.
fn home_with_archive() -> (TestHome, PathBuf) {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let archive = home.path("backups/docs").join(&home.archive_files()[0]);
    (home, archive)
}

fn lose_database(home: &TestHome) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(home.path(&format!("backup.db{suffix}")));
    }
}

/// Runs the program with at most `limit` open files.
fn run_with_open_file_limit(home: &TestHome, limit: u32, args: &[&str]) -> Said {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_backup-manager")).args(args);
    said(command.env_clear().env("TZ", "UTC").current_dir(home.dir.path()))
}

#[test]
fn a_hundred_archives_are_found_verified_and_tested_with_48_open_files() {
    let (home, archive) = home_with_archive();
    for number in 2..=100 {
        let name = format!("docs-20260101T{:02}{:02}00Z-{number}.tar", number / 60, number % 60);
        fs::copy(&archive, home.path("backups/docs").join(name)).unwrap();
    }
    lose_database(&home);
    let limited = |args: &[&str]| run_with_open_file_limit(&home, 48, args).ok();
    assert_eq!(limited(&["--json", "rescan"]).json()["added"].as_array().unwrap().len(), 100);
    let verified = limited(&["verify"]);
    assert_eq!(verified.stdout.lines().filter(|line| line.starts_with("good: ")).count(), 100, "{verified:?}");
    let _ = limited(&["drill"]);
    let _ = limited(&["prune", "--dry-run"]);
    assert_eq!(home.run(&["--json", "rescan"]).ok().json()["known"], 100);
}

fn newest_run(home: &TestHome) -> i64 {
    home.run(&["--json", "show", "docs"]).ok().json()["newest_good"]["run"].as_i64().expect("a good archive")
}

fn link_target(home: &TestHome) -> PathBuf {
    fs::read_link(home.path("backups/docs.tar")).unwrap()
}

#[test]
fn an_older_database_put_back_is_unhealthy_prunes_nothing_and_repeats_no_run_number() {
    let (home, _) = home_with_archive();
    fs::copy(home.path("backup.db"), home.path("older.db")).unwrap();
    for _ in 0..3 {
        let _ = home.run(&["run", "docs", "-q"]).ok();
    }
    lose_database(&home);
    fs::rename(home.path("older.db"), home.path("backup.db")).unwrap();
    let status = home.run(&["status"]);
    assert!(status.stdout.contains("3 archives that the database does not know"), "{status:?}");
    assert!(status.stdout.contains("`backup-manager rescan`") && !status.stdout.contains("--from-copy"), "{status:?}");
    let run = home.run(&["--json", "run", "docs"]).ok().json();
    assert_eq!(run[0]["archive"]["run"], 5, "{run}");
    let _ = home.run(&["edit", "docs", "--keep-last", "1"]).ok();
    let _ = home.run(&["prune", "--yes"]).fails(1, &["3 archives that the database does not know", "rescan"]);
    let _ = home.run(&["run", "docs", "-q"]).ok();
    assert_eq!(home.archive_files().len(), 6, "retention waits");
    assert_eq!(home.run(&["--json", "rescan"]).ok().json()["added"].as_array().unwrap().len(), 3);
    assert_eq!(newest_run(&home), 6);
    assert!(!home.run(&["status"]).stdout.contains("does not know"));
    let _ = home.run(&["prune", "--yes"]).ok();
    assert_eq!(home.archive_files().len(), 1);
    assert!(link_target(&home).to_string_lossy().contains("-6.tar"));
}

#[test]
fn an_old_archive_whose_number_is_taken_is_not_the_newest() {
    let (home, archive) = home_with_archive();
    // Runs that find nothing changed would make further names of one file.
    fs::write(home.path("docs/second"), "2").unwrap();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let link = link_target(&home);
    fs::copy(&archive, home.path("backups/docs/docs-20200101T000000Z-2.tar")).unwrap();
    // A number above all others, and an old time.
    fs::copy(&archive, home.path("backups/docs/docs-20200102T000000Z-90.tar")).unwrap();
    // A clock that was years ahead.
    fs::copy(&archive, home.path("backups/docs/docs-20900101T000000Z-1.tar")).unwrap();
    assert_eq!(home.run(&["--json", "rescan"]).ok().json()["added"].as_array().unwrap().len(), 3);
    fs::write(home.path("docs/third"), "3").unwrap();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    assert!(newest_run(&home) > 90);
    assert_ne!(link_target(&home), link);
    let _ = home.run(&["edit", "docs", "--keep-last", "2"]).ok();
    let _ = home.run(&["prune", "--yes"]).ok();
    let left = home.archive_files();
    assert!(left.iter().any(|name| link.ends_with(name)), "the two newest are kept: {left:?}");
    assert!(left.iter().all(|name| !name.contains("2020")), "{left:?}");
}

#[test]
fn the_folder_of_another_home_is_not_taken_over_while_that_home_exists() {
    let (home, _) = home_with_archive();
    let other = TestHome::with_sources(&["docs"]);
    let folder = home.path("backups").display().to_string();
    let with = |args: &[&str]| other.run(&[&["--backups", &folder], args].concat());
    let database = home.path("backup.db").display().to_string();
    // A copy of the folder is not in use by the home that it was copied from.
    let copy = TestHome::new();
    let mut copied = Command::new("cp");
    assert!(copied.arg("-a").arg(home.path("backups")).arg(copy.path("backups")).status().unwrap().success());
    let _ = copy.run(&["rescan"]).ok();
    // Empty, with a schedule, and with the path of the living database gone.
    let _ = with(&["rescan"]).fails(1, &["belongs to another database", &database, "last used", "use another folder"]);
    let _ = other.run(&["create", "docs;09:00;docs"]).ok();
    let _ = with(&["rescan"]).fails(1, &[&database, "use another folder"]);
    let _ = with(&["run", "docs"]).fails(1, &[&database, "use another folder"]);
    assert!(!with(&["status"]).stdout.contains("--adopt"));
    let _ = home.run(&["run", "docs", "-q"]).ok();
    fs::rename(home.path("backup.db"), home.path("moved.db")).unwrap();
    let _ = with(&["rescan"]).fails(1, &[&database, "rescan --adopt"]);
    let _ = with(&["rescan", "--adopt"]).ok();
    let _ = with(&["run", "docs"]).ok();
    // The home that comes back reports the present owner of the folder.
    fs::rename(home.path("moved.db"), home.path("backup.db")).unwrap();
    let _ = home.run(&["run", "docs"]).fails(1, &[&other.path("backup.db").display().to_string()]);
}

#[test]
fn one_way_out_is_advised_for_a_lost_database_and_a_folder_without_identity() {
    let (home, _) = home_with_archive();
    let identity = home.path("backups/.backup-manager");
    let text = fs::read(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    let said = home.run(&["run", "docs"]).fails(1, &["has lost its identity", "rescan --adopt"]);
    assert!(!said.stderr.contains("mount"), "{said:?}");
    fs::rename(home.path("backups"), home.path("away")).unwrap();
    fs::create_dir(home.path("backups")).unwrap();
    let said = home.run(&["run", "docs"]).fails(1, &["is not the one that holds the archives", "mount its disk"]);
    assert!(!said.stderr.contains("--adopt"), "{said:?}");
    fs::write(&identity, r#"{"database":"5d3f1a52-6b1f-4b0a-9f3a-0c7f4b3a9e11"}"#).unwrap();
    let said = home.run(&["run", "docs"]).fails(1, &["belongs to another database", "name the folder that holds"]);
    assert!(!said.stderr.contains("--adopt") && !said.stderr.contains("--from-copy"), "{said:?}");
    fs::remove_dir_all(home.path("backups")).unwrap();
    fs::rename(home.path("away"), home.path("backups")).unwrap();
    fs::write(&identity, text).unwrap();
    lose_database(&home);
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    let said = home.run(&["run", "docs"]).fails(1, &["belongs to another database", "`backup-manager rescan --adopt`"]);
    assert!(!said.stderr.contains("--from-copy"), "there is no copy: {said:?}");
    fs::create_dir_all(home.path("backups/.database")).unwrap();
    fs::write(home.path("backups/.database/backup-20261123T020000Z.db"), "a copy").unwrap();
    let said = home.run(&["run", "docs"]).fails(1, &["rescan --from-copy"]);
    assert!(!said.stderr.contains("--adopt"), "{said:?}");
}

#[test]
fn a_copy_is_restored_into_a_new_folder_and_with_the_journal_beside_it() {
    let (home, _) = home_with_archive();
    // A connection that stays open keeps the last changes in the journal.
    let connection = rusqlite::Connection::open(home.path("backup.db")).unwrap();
    connection.query_row("SELECT count(*) FROM run", [], |row| row.get::<_, i64>(0)).unwrap();
    let _ = home.run(&["create", "docs;10:00;later"]).ok();
    fs::create_dir(home.path("copy")).unwrap();
    for suffix in ["", "-wal"] {
        fs::copy(home.path(&format!("backup.db{suffix}")), home.path(&format!("copy/old.db{suffix}"))).unwrap();
    }
    drop(connection);
    assert!(fs::metadata(home.path("copy/old.db-wal")).unwrap().len() > 0);
    let (new, copy) = (home.path("deep/new").display().to_string(), home.path("copy/old.db").display().to_string());
    let folder = home.path("backups").display().to_string();
    let said = home.run(&["--home", &new, "--backups", &folder, "rescan", "--from-copy", &copy]).ok();
    assert!(said.stdout.contains("1 archive known before"), "{said:?}");
    let listed = home.run(&["--home", &new, "--backups", &folder, "--plain", "list"]).ok();
    assert!(listed.stdout.contains("later"), "{listed:?}");
    let nowhere = home.path("nowhere").display().to_string();
    let _ = home.run(&["--home", &nowhere, "rescan", "--from-copy", "missing.db"]).fails(10, &["missing.db"]);
    assert!(!home.path("nowhere").exists());
}

#[test]
fn a_rescan_copies_the_database() {
    let (home, _) = home_with_archive();
    lose_database(&home);
    let _ = home.run(&["rescan"]).ok();
    let copies = || fs::read_dir(home.path("backups/.database")).unwrap().count();
    assert_eq!(copies(), 1);
    lose_database(&home);
    let _ = home.run(&["rescan", "--from-copy"]).ok();
    assert_eq!(newest_run(&home), 1);
}

#[test]
fn copies_are_compressed_and_those_that_are_not_are_restored_too() {
    let (home, _) = home_with_archive();
    let _ = home.run(&["rescan"]).ok();
    let folder = home.path("backups/.database");
    let packed = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    assert!(packed.to_string_lossy().ends_with("Z.db.zst"), "{packed:?}");
    let bytes = fs::read(&packed).unwrap();
    let content = zstd::decode_all(&bytes[..]).unwrap();
    assert!(content.starts_with(b"SQLite format 3\0") && bytes.len() * 3 < content.len(), "{}", bytes.len());
    // As versions before wrote it, and older.
    let plain = folder.join("backup-20260102T030405Z.db");
    fs::write(&plain, content).unwrap();
    let restored = |copy: &[&str]| {
        lose_database(&home);
        let said = home.run(&[&["--json", "rescan", "--from-copy"], copy].concat()).ok().json();
        assert_eq!(newest_run(&home), 1);
        said["restored_copy"].as_str().unwrap().to_owned()
    };
    assert_eq!(restored(&[packed.to_str().unwrap()]), packed.display().to_string());
    assert_eq!(restored(&[plain.to_str().unwrap()]), plain.display().to_string());
    // A damaged one is named, changes nothing, and is passed over. The rescans above made copies, too.
    for copy in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| *path != plain) {
        let mut bytes = fs::read(&copy).unwrap();
        let at = bytes.len() - 1;
        bytes[at] ^= 1;
        fs::write(&copy, bytes).unwrap();
    }
    fs::write(folder.join("backup-20260302T030405Z.db.zst"), &bytes[..bytes.len() / 2]).unwrap();
    let before = fs::read(home.path("backup.db")).unwrap();
    let _ = home.run(&["rescan", "--from-copy", packed.to_str().unwrap()]).fails(4, &["is damaged", "Z.db.zst"]);
    assert_eq!(fs::read(home.path("backup.db")).unwrap(), before);
    assert!(!home.path("backup.db.put-back").exists());
    assert_eq!(restored(&[]), plain.display().to_string());
}

#[test]
fn a_restore_test_continues_after_a_schedule_that_cannot_be_tested() {
    let home = TestHome::with_sources(&["docs", "photos"]);
    fs::write(home.path("photos/large"), vec![7; 3 << 20]).unwrap();
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    let _ = home.run(&["create", "photos;09:00;photos"]).ok();
    let status = home.run(&["status"]);
    assert!(!status.stdout.contains("restore test"), "there is nothing to restore: {status:?}");
    let _ = home.run(&["run", "photos", "-q"]).ok();
    let status = home.run(&["status"]);
    assert!(status.stdout.contains("no restore test yet"), "{status:?}");
    let said = home.run(&["drill", "docs", "photos", "--size", "1"]).fails(10, &["docs: no restore test"]);
    assert!(said.stdout.contains("photos: @1 restored and compared"), "{said:?}");
    assert!(said.stdout.contains("of photos/large a part of"), "{said:?}");
    assert!(home.run(&["status"]).stdout.contains("restore test passed"));
    assert_eq!(fs::read_dir(home.path("backups/.scratch")).unwrap().count(), 0);
}

#[test]
fn what_a_rescan_may_not_read_is_named_and_not_called_damaged() {
    let (home, archive) = home_with_archive();
    let folder = |name: &str| {
        fs::create_dir(home.path("backups").join(name)).unwrap();
        home.path("backups").join(name)
    };
    let (lost_found, other) = (folder("lost+found"), folder("photos"));
    lose_database(&home);
    let _ = home.run_unprivileged(&["rescan"]).ok();
    lose_database(&home);
    for path in [&archive, &lost_found, &other] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }
    let said = home.run_unprivileged(&["--json", "rescan"]);
    assert_eq!(said.code, 3, "{said:?}");
    let document = said.json();
    assert_eq!(document["damaged"].as_array().unwrap().len(), 0, "{document}");
    let unreadable: Vec<&str> =
        document["unreadable"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(unreadable, [archive.to_str().unwrap(), other.to_str().unwrap()]);
    assert_eq!(document["foreign"], serde_json::json!([lost_found.to_str().unwrap()]));
    let said = home.run_unprivileged(&["rescan"]);
    assert!(said.stdout.contains(&format!("cannot be read: {}", archive.display())), "{said:?}");
    for path in [&archive, &lost_found, &other] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    assert_eq!(home.run_unprivileged(&["--json", "rescan"]).ok().json()["added"].as_array().unwrap().len(), 1);
}

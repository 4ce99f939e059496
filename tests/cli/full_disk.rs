//! A file system that fills up: under the archives, before a run and in the middle of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::{TestHome, said};

/// A small file system of its own, taken away at the end.
struct Small(PathBuf);

impl Small {
    /// Mounts one of `size` ("2m") at `path`; says visibly if it cannot.
    fn mount(path: PathBuf, size: &str) -> Option<Small> {
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Small(path));
        }
        let reason = "skipped: mounting a small file system needs root\n";
        std::io::stderr().write_all(reason.as_bytes()).unwrap();
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Bytes that do not pack.
fn noise(home: &TestHome, name: &str, bytes: usize) {
    let mut seed = 88_172_645_463_325_252_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    })
    .take(bytes / 8)
    .flatten()
    .collect();
    fs::create_dir_all(home.path(name)).unwrap();
    fs::write(home.path(name).join("noise"), content).unwrap();
}

#[test]
fn an_archive_that_will_not_fit_is_refused_before_it_is_started() {
    let home = TestHome::new();
    let Some(_small) = Small::mount(home.path("backups"), "2m") else { return };
    noise(&home, "big", 4 << 20);
    let _ = home.run(&["create", "big;09:00;big"]).ok();
    let _ = home.run(&["run", "big"]).fails(1, &["needs about", "free", "next:"]);
    assert!(home.archive_files().is_empty());
}

#[test]
fn a_disk_that_fills_up_in_the_middle_leaves_nothing_and_the_next_run_succeeds() {
    let home = TestHome::new();
    let Some(_small) = Small::mount(home.path("backups"), "2m") else { return };
    noise(&home, "big", 4 << 20);
    for compression in ["gzip", "zstd"] {
        let _ = home.run(&["create", "big", "--name", compression, "--at", "9:00", "--compress", compression]).ok();
        let _ = home.run(&["run", compression]).fails(1, &["No space left"]);
        assert!(home.archive_files().is_empty(), "{:?}", home.archive_files());
        assert_eq!(home.number("SELECT count(*) FROM chunk"), 0);
    }
    noise(&home, "big", 1 << 20);
    let _ = home.run(&["run", "zstd"]).ok();
    assert_eq!(home.archive_files().len(), 1);
}

#[test]
fn a_run_in_segments_needs_room_for_what_it_adds_only() {
    let home = TestHome::new();
    let Some(_small) = Small::mount(home.path("backups"), "7m") else { return };
    noise(&home, "big", 4 << 20);
    let create = ["create", "big;09:00;big", "--layout", "segmented", "--compress", "gzip"];
    let created = home.run(&create).ok();
    assert!(created.stdout.contains("the first copy") && !created.stderr.contains("may not fit"), "{created:?}");
    let _ = home.run(&["run", "big"]).ok();
    fs::write(home.path("big/more"), "more").unwrap();
    // Less is free than the archive is long.
    let _ = home.run(&["run", "big"]).ok();
    let files = home.archive_files();
    assert_eq!(files.len(), 4, "{files:?}");
    // Without a base all of it would be written.
    let _ = home.run(&["edit", "big", "--compress", "none"]).ok();
    let _ = home.run(&["run", "big"]).fails(1, &["needs about", "free", "next:"]);
    // A disk that fills up in the middle.
    let _ = home.run(&["edit", "big", "--compress", "gzip"]).ok();
    noise(&home, "big/sub", 12 << 20);
    let _ = home.run(&["run", "big"]).fails(1, &["No space left"]);
    assert_eq!(home.archive_files(), files);
}

#[test]
fn an_unwritable_log_and_terminal_do_not_fail_a_backup() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    fs::remove_file(home.path("logs/backup_manager.log")).unwrap();
    std::os::unix::fs::symlink("/dev/full", home.path("logs/backup_manager.log")).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = home.command(&["run", "docs"]).stdout(std::process::Stdio::null()).stderr(full).status().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(home.archive_files().len(), 1);
}

#[test]
fn a_restore_of_a_plain_user_to_a_disk_that_fills_up_leaves_whole_files_only_and_is_finished_later() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    let home = TestHome::new();
    let Some(small) = Small::mount(home.path("disk"), "3m") else { return };
    for number in 0..40 {
        noise(&home, &format!("big/{number:02}"), 100_000);
    }
    let _ = home.run(&["create", "big;09:00;big", "--now"]).ok();
    fs::copy(home.path(&format!("backups/big/{}", home.archive_files()[0])), home.path("a.tar")).unwrap();
    for (path, mode) in [(home.path("a.tar"), 0o444), (home.dir.path().to_owned(), 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(&small.0, Some(NOBODY), Some(NOBODY)).unwrap();
    let restore = || {
        let mut command = home.command(&["restore", "./a.tar", "--to", "disk/out"]);
        said(command.uid(NOBODY).gid(NOBODY))
    };
    let _ = restore().fails(1, &["No space left", "members are restored", "free space", "the same command again"]);
    let (mut whole, mut missing) = (0, 0);
    for number in 0..40 {
        let folder = home.path(&format!("disk/out/big/{number:02}"));
        let names: Vec<_> = fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        match names.len() {
            0 => missing += 1,
            _ => assert_eq!(names, ["noise"]),
        }
        if let Ok(content) = fs::read(folder.join("noise")) {
            assert!(content == fs::read(home.path(&format!("big/{number:02}/noise"))).unwrap(), "{number}");
            whole += 1;
        }
    }
    assert!(whole > 10 && missing > 5, "{whole} {missing}");
    let more = Command::new("mount").args(["-o", "remount,size=9m"]).arg(&small.0).status().unwrap();
    assert!(more.success());
    // The owner of these files is root.
    let _ = restore().fails(3, &["owner could not be set"]);
    let _ = restore().ok();
    for number in 0..40 {
        let (of, to) = (format!("big/{number:02}/noise"), format!("disk/out/big/{number:02}/noise"));
        assert!(fs::read(home.path(&of)).unwrap() == fs::read(home.path(&to)).unwrap(), "{number}");
    }
}

#[test]
fn a_limit_of_file_sizes_fails_single_files_and_leaves_nothing_half_written() {
    let home = TestHome::new();
    noise(&home, "big/sub", 4 << 20);
    fs::write(home.path("big/small"), "small").unwrap();
    let _ = home.run(&["create", "big;09:00;big", "--compress", "zstd", "--now"]).ok();
    let limited = |words: &[&str]| {
        let mut command = Command::new("prlimit");
        command.args(["--fsize=1048576", env!("CARGO_BIN_EXE_backup-manager")]).args(words);
        said(command.env_clear().env("TZ", "UTC").current_dir(home.dir.path()))
    };
    let _ = limited(&["restore", "big", "--to", "out"]).fails(3, &["big/sub/noise: File too large"]);
    assert_eq!(fs::read_to_string(home.path("out/big/small")).unwrap(), "small");
    assert_eq!(fs::read_dir(home.path("out/big/sub")).unwrap().count(), 0);
    let before = home.archive_files();
    noise(&home, "big/more", 4 << 20);
    let _ = limited(&["run", "big"]).fails(1, &["File too large"]);
    assert_eq!(home.archive_files(), before);
}

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Makes a database of schema 4 with some content.
fn make_old_database(path: &Path) {
    let mut old = rusqlite::Connection::open(path).unwrap();
    old.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    embedded::migrations::runner().set_grouped(true).set_target(refinery::Target::Version(4)).run(&mut old).unwrap();
    old.execute("INSERT INTO setting VALUES ('x', CAST(zeroblob(300000) AS TEXT))", []).unwrap();
}

#[test]
fn a_migration_that_finds_no_space_changes_nothing_and_names_the_next_step() {
    let home = TestHome::new();
    let mut failures = BTreeSet::new();
    // How much space is taken at the moment of the migration differs a little each time.
    for _ in 0..10 {
        let Some(small) = Small::mount(home.path("small"), "2m") else { return };
        migrate_with_little_space(&home, &small.0, &mut failures);
        if failures.len() == 2 {
            break;
        }
    }
    assert_eq!(failures, ["error: cannot copy", "error: cannot migrate"].map(str::to_owned).into());
}

/// Migrates a database with more and more space until it succeeds; adds how the messages before that begin.
fn migrate_with_little_space(home: &TestHome, folder: &Path, failures: &mut BTreeSet<String>) {
    let (path, ballast) = (folder.join("backup.db"), folder.join("ballast"));
    make_old_database(&path);
    let version = |path: &Path| {
        let found = rusqlite::Connection::open(path).unwrap();
        found.query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0)).unwrap()
    };
    let newest = embedded::migrations::runner().get_migrations().iter().map(|m| m.version()).max().unwrap();
    let copy = folder.join(format!("backup.db.before-schema-{newest}"));
    // SQLite itself needs some space to open a database.
    for free in (64 << 10..2 << 20).step_by(4 << 10) {
        let mut file = fs::File::create(&ballast).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(free)).unwrap();
        let said = home.run(&["--db", "small/backup.db", "list"]);
        fs::remove_file(&ballast).unwrap();
        if said.code == 0 {
            break;
        }
        let failure = said.stderr.split(" the database").next().unwrap_or_default().to_owned();
        let said = said.fails(1, &["no space left", "next: free space on its file system, then run the same command"]);
        assert_eq!(version(&path), 4, "{said:?}");
        assert!(!copy.exists() || version(&copy) == 4, "{said:?}");
        failures.insert(failure);
    }
    assert_eq!((version(&path), version(&copy)), (newest, 4));
}

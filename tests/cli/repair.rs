//! `repair`, and segments to which nothing refers.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};

use crate::environment::TestHome;

/// A home with two archives that share most of their content.
fn home_with_archives() -> TestHome {
    let home = TestHome::with_sources(&["docs"]);
    fs::write(home.path("docs/first"), "one text").unwrap();
    for n in 0..30 {
        fs::write(home.path(&format!("docs/{n:02}")), vec![n; 50_000]).unwrap();
    }
    let _ = home.run(&["create", "docs;09:00;docs", "--compress", "none"]).ok();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    fs::write(home.path("docs/first"), "another text").unwrap();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    home
}

/// Flips the first byte of `bytes` in the archive of run 1.
fn damage(home: &TestHome, bytes: &[u8]) {
    let name = home.archive_files().into_iter().find(|name| name.contains("-1.tar")).unwrap();
    let path = home.path("backups/docs").join(name);
    let content = fs::read(&path).unwrap();
    let at = content.windows(bytes.len()).position(|window| window == bytes).expect("these bytes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(&[content[at] ^ 1], at as u64).unwrap();
}

#[test]
fn a_damaged_archive_is_repaired_from_another_one() {
    let home = home_with_archives();
    let said = home.run(&["repair"]).ok();
    assert!(said.stderr.contains("no archive is recorded as damaged"), "{said:?}");
    damage(&home, &[7; 600]);
    let verified = home.run(&["verify"]);
    assert_eq!(verified.code, 4, "{verified:?}");
    assert!(verified.stdout.contains("`backup-manager repair @1`"), "{verified:?}");
    assert!(home.run(&["status"]).stdout.contains("`repair docs`"));
    let said = home.run(&["repair", "docs", "-n"]).ok();
    assert!(said.stdout.contains("can be repaired: ") && said.stdout.contains("(1 damaged part)"), "{said:?}");
    assert_eq!(home.run(&["verify", "@1"]).code, 4);
    let said = home.run(&["repair", "@1"]).ok();
    assert!(said.stdout.starts_with("repaired: "), "{said:?}");
    let _ = home.run(&["verify"]).ok();
    let _ = home.run(&["repair", "@9"]).fails(10, &["no archive @9"]);
    let _ = home.run(&["repair", "photos"]).fails(10, &["photos"]);
}

#[test]
fn what_cannot_be_repaired_is_named_with_the_next_step() {
    let home = home_with_archives();
    damage(&home, b"one text");
    assert_eq!(home.run(&["verify", "-q"]).code, 4);
    let said = home.run(&["repair"]);
    assert_eq!(said.code, 4, "{said:?}");
    for expected in ["equal bytes for 0 of 1 damaged parts", "damaged member: docs/first", "`backup-manager run docs`"]
    {
        assert!(said.stdout.contains(expected), "{said:?}");
    }
    let said = home.run(&["--json", "repair"]);
    assert_eq!(said.code, 4, "{said:?}");
    let document = &said.json()[0];
    assert_eq!((&document["run"], &document["repaired"]), (&1.into(), &false.into()), "{document}");
    assert_eq!(document["damaged_members"][0]["path"], "docs/first", "{document}");
    assert_eq!((&document["damaged_parts"], &document["repairable_parts"]), (&1.into(), &0.into()), "{document}");
}

#[test]
fn orphaned_segments_are_listed_by_verify_and_rescan_and_removed_on_request() {
    let home = home_with_archives();
    let orphan = home.path("backups/docs/docs-20260101T000000Z-77.tar.1.segment");
    fs::write(&orphan, "of no archive").unwrap();
    let name = orphan.to_str().unwrap();
    let said = home.run(&["verify"]).ok();
    assert!(said.stdout.contains(&format!("orphaned segment, to which no archive refers: {name}")), "{said:?}");
    assert!(said.stderr.contains("rescan --remove-orphans"), "{said:?}");
    let verified = home.run(&["--json", "verify"]).ok().json();
    let last = verified.as_array().unwrap().last().unwrap();
    assert_eq!((&last["path"], &last["orphaned"], &last["bytes"]), (&name.into(), &true.into(), &13.into()));
    let said = home.run(&["rescan"]).ok();
    assert!(said.stdout.contains(name) && said.stderr.contains("--remove-orphans"), "{said:?}");
    let unreadable = home.path("backups/docs/docs-20260101T000000Z-78.tar.index");
    fs::write(&unreadable, "# backup-manager index 1\n").unwrap();
    let said = home.run(&["rescan", "--remove-orphans"]);
    assert!(orphan.exists() && said.stderr.contains("docs-20260101T000000Z-78.tar.index"), "{said:?}");
    fs::remove_file(unreadable).unwrap();
    let said = home.run(&["rescan", "--remove-orphans"]).ok();
    assert!(said.stdout.contains(&format!("removed an orphaned segment: {name} (13 B)")), "{said:?}");
    assert!(!orphan.exists());
    assert_eq!(home.run(&["--json", "rescan"]).ok().json()["orphans"], serde_json::json!([]));
}

#[test]
fn a_database_from_before_a_compaction_condemns_nothing_and_follows_the_indexes() {
    let home = TestHome::with_sources(&["docs"]);
    let write = |round: u8, files: std::ops::Range<u8>| {
        for n in files {
            fs::write(home.path(&format!("docs/{n:02}")), vec![round * 40 + n; 50_000]).unwrap();
        }
    };
    write(0, 0..30);
    let _ = home.run(&["create", "docs;09:00;docs", "--compress", "none", "--layout", "segmented"]).ok();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    write(1, 0..20);
    let _ = home.run(&["run", "docs", "-q"]).ok();
    write(2, 0..1);
    let _ = home.run(&["run", "docs", "-q"]).ok();
    fs::copy(home.path("backup.db"), home.path("older.db")).unwrap();
    let _ = home.run(&["forget", "@1"]).ok();
    let _ = home.run(&["prune"]).ok();
    let mut names = fs::read_dir(home.path("backups/docs")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.all(|name| !name.to_string_lossy().ends_with("-1.tar.1.segment")), "it was compacted");
    let _ = home.run(&["verify"]).ok();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(home.path(&format!("backup.db{suffix}")));
    }
    fs::rename(home.path("older.db"), home.path("backup.db")).unwrap();
    let status = home.run(&["status"]);
    assert!(status.stdout.contains("lists other bytes than the database has"), "{status:?}");
    let _ = home.run(&["edit", "docs", "--keep-last", "1"]).ok();
    let _ = home.run(&["prune", "--yes"]).fails(1, &["lists other bytes", "rescan"]);
    for run in ["@2", "@3"] {
        let verified = home.run(&["verify", run]);
        assert_eq!(verified.code, 4, "{verified:?}");
        assert!(verified.stdout.starts_with("unproven: ") && verified.stdout.contains("rescan`"), "{verified:?}");
        let shown = home.run(&["--json", "backups"]).ok().json();
        let archive = shown.as_array().unwrap().iter().find(|archive| format!("@{}", archive["run"]) == run).unwrap();
        assert_eq!(archive["health"], "unproven", "{shown}");
    }
    let said = home.run(&["rescan"]);
    assert!(said.stdout.contains("updated docs/"), "{said:?}");
    let _ = home.run(&["verify", "@2", "@3"]).ok();
    assert!(!home.run(&["status"]).stdout.contains("other bytes"));
    let _ = home.run(&["restore", "@2", "--to", "out"]).ok();
    assert_eq!(fs::read(home.path("out/docs/29")).unwrap(), vec![29; 50_000]);
    assert_eq!(fs::read(home.path("out/docs/19")).unwrap(), vec![59; 50_000]);
}

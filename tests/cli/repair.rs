//! `repair`, and segments to which nothing refers.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};

use crate::environment::TestHome;

/// A home with two archives that share most of their content.
fn home_with_archives(codec: &str) -> TestHome {
    let home = TestHome::with_sources(&["docs"]);
    fs::write(home.path("docs/first"), "one text").unwrap();
    for n in 0..30 {
        fs::write(home.path(&format!("docs/{n:02}")), vec![n; 50_000]).unwrap();
    }
    let _ = home.run(&["create", "docs;09:00;docs", "--compress", codec]).ok();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    fs::write(home.path("docs/first"), "another text").unwrap();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    home
}

fn files_in_source(home: &TestHome) -> usize {
    fs::read_dir(home.path("docs")).unwrap().count()
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
    let home = home_with_archives("none");
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
    let home = home_with_archives("none");
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

/// The first bytes also tell which codec a file is of, but of an archive of this program its end does.
#[test]
fn a_wrong_first_byte_costs_the_first_chunk_and_nothing_else() {
    for (codec, extension) in [("none", "tar"), ("gzip", "tar.gz"), ("zstd", "tar.zst")] {
        let home = home_with_archives(codec);
        let path = home.path("backups/docs").join(home.archive_files().pop().unwrap());
        assert!(path.to_str().unwrap().ends_with(&format!("-2.{extension}")), "{path:?}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let whole = fs::read(&path).unwrap();
        for (case, damaged) in [vec![0], vec![0, 1, 2, 3]].into_iter().enumerate() {
            let mut bytes = whole.clone();
            damaged.iter().for_each(|at| bytes[*at] ^= 0x5A);
            fs::write(&path, &bytes).unwrap();
            let said = home.run(&["verify", "@2"]);
            assert_eq!(said.code, 4, "{codec} {said:?}");
            assert!(said.stdout.contains("its global header: "), "{codec} {said:?}");
            assert!(!said.stdout.contains("damaged member"), "no member is in the first chunk: {codec} {said:?}");
            // Without the database it is opened by a path, which may be that of a copy with any name.
            let copy = home.path("copy of it");
            fs::write(&copy, &bytes).unwrap();
            let to = |by: &str| home.path(&format!("{by} {case}")).to_str().unwrap().to_owned();
            let elsewhere = TestHome::new();
            // Only the catalog knows that no member lies in the first chunk.
            for (by, archive, to, code) in [
                (&home, "@2", to("number"), 0),
                (&elsewhere, path.to_str().unwrap(), to("path"), 4),
                (&elsewhere, copy.to_str().unwrap(), to("copy"), 4),
            ] {
                let said = by.run(&["restore", archive, "--to", &to]);
                assert_eq!(said.code, code, "{codec} {archive} {said:?}");
                let named = said.stderr.contains(&format!("{archive}: ")) && said.stderr.contains("at its beginning");
                assert_eq!(named, code == 4, "{codec} {archive} {said:?}");
                let restored = std::path::Path::new(&to).join("docs");
                assert_eq!(fs::read_to_string(restored.join("first")).unwrap(), "another text", "{said:?}");
                assert_eq!(fs::read_dir(&restored).unwrap().count(), files_in_source(&home), "{said:?}");
            }
        }
        // If its end is damaged, too, the codec follows from the name of the archive.
        let mut bytes = whole.clone();
        bytes[0] ^= 0x5A;
        let end = bytes.len() - 40;
        bytes[end..].fill(0x33);
        fs::write(&path, &bytes).unwrap();
        let said = home.run(&["restore", "@2", "--to", home.path("no end").to_str().unwrap()]);
        assert_eq!(fs::read_dir(home.path("no end/docs")).unwrap().count(), files_in_source(&home), "{codec} {said:?}");
    }
}

#[test]
fn a_file_is_opened_by_what_it_holds_whatever_its_name() {
    for (codec, name) in [
        ("none", "docs-20260101T000000Z-7.tar.gz"),
        ("gzip", "docs-20260101T000000Z-7.tar"),
        ("zstd", "docs-20260101T000000Z-7.tar.gz"),
        ("none", "x.tar.zst"),
        ("zstd", "x.tar"),
    ] {
        let home = home_with_archives(codec);
        let path = home.path("backups/docs").join(home.archive_files().pop().unwrap());
        let (ours, foreign) = (home.path(&format!("ours/{name}")), home.path(&format!("foreign/{name}")));
        fs::create_dir(home.path("ours")).unwrap();
        fs::create_dir(home.path("foreign")).unwrap();
        fs::copy(&path, &ours).unwrap();
        let options = match codec {
            "gzip" => "-czf",
            "zstd" => "--zstd -cf",
            _ => "-cf",
        };
        let mut tar = std::process::Command::new("tar");
        tar.args(options.split(' ')).arg(&foreign).arg("-C").arg(home.path("")).arg("docs");
        assert!(tar.status().unwrap().success(), "{tar:?}");
        for file in [&ours, &foreign] {
            let to = home.path("out").join(file.parent().unwrap().file_name().unwrap());
            let _ = home.run(&["restore", file.to_str().unwrap(), "--to", to.to_str().unwrap()]).ok();
            assert_eq!(fs::read_dir(to.join("docs")).unwrap().count(), files_in_source(&home), "{codec} {name}");
        }
    }
}

#[test]
fn a_whole_archive_is_removed_only_while_no_other_process_changes_files() {
    let home = home_with_archives("none");
    let changing = home.path("backup.db.locks/docs.changes");
    fs::create_dir_all(changing.parent().unwrap()).unwrap();
    let lock = File::options().create(true).append(true).open(&changing).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let before = home.archive_files();
    let said = home.run(&["--json", "forget", "@1"]).ok();
    assert!(said.stderr.contains("docs: 1 archive will be removed by the service"), "{said:?}");
    assert_eq!((&said.json()[0]["removed"], home.archive_files()), (&false.into(), before));
    let said = home.run(&["--json", "delete", "docs", "--with-archives", "--yes"]).ok();
    assert_eq!(said.json()[0]["bytes_deleted"], 0, "{said:?}");
    drop(lock);
    let _ = home.run(&["prune"]).ok();
    assert!(home.archive_files().is_empty());
}

#[test]
fn a_missing_file_has_a_next_step_that_helps_and_an_index_is_called_replaced() {
    let home = home_with_archives("none");
    let first = |home: &TestHome| {
        let is_first = |name: &String| name.contains("-1.tar") && !name.ends_with(".segment");
        let name = home.archive_files().into_iter().find(is_first).unwrap();
        home.path("backups/docs").join(name)
    };
    fs::remove_file(first(&home)).unwrap();
    assert_eq!(home.run(&["verify", "-q"]).code, 4);
    let said = home.run(&["repair"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.stdout.contains("its file is gone") && said.stdout.contains("`backup-manager forget @1`"), "{said:?}");
    assert!(!said.stdout.contains("repair again"), "{said:?}");
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;09:00;docs", "--layout", "segmented", "--now"]).ok();
    let index = first(&home);
    fs::remove_file(&index).unwrap();
    assert_eq!(home.run(&["verify", "-q"]).code, 4);
    let said = home.run(&["repair", "-n"]).ok();
    assert!(said.stdout.starts_with("index can be replaced: "), "{said:?}");
    let said = home.run(&["repair"]).ok();
    assert!(said.stdout.starts_with("index replaced: ") && index.exists(), "{said:?}");
    let _ = home.run(&["verify"]).ok();
}

#[test]
fn orphaned_segments_are_listed_by_verify_and_rescan_and_removed_on_request() {
    let home = home_with_archives("none");
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

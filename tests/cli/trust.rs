//! `verify`, `drill`, `rescan`: archives that can be relied on, and a database that can be
//! lost.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::catalog;
use crate::environment::{Running, Said, TestHome, tar_lists};

pub fn archives(home: &TestHome) -> Vec<serde_json::Value> {
    home.run(&["--json", "backups", "--all"]).ok().json().as_array().unwrap().clone()
}

fn path_of(archive: &serde_json::Value) -> PathBuf {
    PathBuf::from(archive["path"].as_str().unwrap())
}

fn writable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn flip_in(path: &Path, text: &[u8]) {
    writable(path);
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text).expect("the archive contains the text");
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Two schedules in different formats, with a few archives each.
pub fn home_with_history() -> TestHome {
    let home = TestHome::with_sources(&["docs", "photos"]);
    let _ = home.run(&["create", "docs;09:00;docs", "--exclude", "*.tmp", "--keep-last", "9"]).ok();
    let _ = home.run(&["create", "photos", "--name", "photos", "--cron", "5 4 * * 1", "--compress", "zstd"]).ok();
    for content in ["one", "two"] {
        for name in ["docs", "photos"] {
            fs::write(home.path(name).join("file.txt"), format!("content {content} of {name}")).unwrap();
        }
        let _ = home.run(&["run", "--all", "-q"]).ok();
    }
    home
}

#[test]
fn verify_names_the_damaged_member_and_exits_4() {
    let home = home_with_history();
    let said = home.run(&["verify"]).ok();
    assert_eq!(said.stdout.lines().filter(|line| line.starts_with("good: ")).count(), 4, "{said:?}");
    let _ = home.run(&["check", "docs"]).ok();
    let newest = path_of(&archives(&home).into_iter().find(|a| a["name"] == "docs").unwrap());
    flip_in(&newest, b"content two");
    let said = home.run(&["verify", "docs"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.stdout.contains("damaged member: docs/file.txt"), "{said:?}");
    assert!(!said.stdout.contains("damaged member: docs\n"), "the folder before it is whole: {said:?}");
    let status = home.run(&["status"]);
    assert!(status.stdout.contains("1 archive damaged or missing"), "{status:?}");
    let link = fs::read_link(home.path("backups/docs.tar")).unwrap();
    assert_ne!(newest.file_name(), link.file_name(), "the stable name leads to the one before");
    // With no database at all, and through a plain path.
    let elsewhere = TestHome::new();
    fs::copy(&newest, elsewhere.path("a.tar")).unwrap();
    let said = elsewhere.run(&["verify", "a.tar"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.stdout.contains("docs/file.txt"), "{said:?}");
    assert!(!elsewhere.path("backup.db").exists());
    let _ = elsewhere.run(&["verify", "missing.tar"]).fails(10, &["missing.tar"]);
    // An archive of another program, read to its end.
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(home.dir.path()).arg("-cf").arg(elsewhere.path("gnu.tar")).arg("docs");
    assert!(tar.status().unwrap().success());
    let _ = elsewhere.run(&["verify", "gnu.tar"]).ok();
}

/// What must be the same before and after a rescan.
fn facts(home: &TestHome) -> Vec<(String, i64, String, u64)> {
    archives(home)
        .iter()
        .map(|archive| {
            let text = |key: &str| archive[key].as_str().unwrap().to_owned();
            (text("path"), archive["run"].as_i64().unwrap(), text("created"), archive["members"].as_u64().unwrap())
        })
        .collect()
}

fn member_rows(home: &TestHome) -> Vec<Vec<rusqlite::types::Value>> {
    home.query(&format!(
        "SELECT run_id, sequence, stored_offset, stored_length, stored_digest, content_length, chunk.content_digest, \
             ordinal, path, kind, size, mode, modified_s, modified_ns, link_target, member.content_digest, \
             xattr_digest, content_offset FROM archive JOIN {} AS chunk USING (archive_file_id) \
         LEFT JOIN {} AS member USING (chunk_id) ORDER BY run_id, sequence, ordinal",
        catalog::chunks("main"),
        catalog::members("main"),
    ))
}

fn lose_database(home: &TestHome) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(home.path(&format!("backup.db{suffix}")));
    }
}

#[test]
fn a_lost_database_is_rebuilt_from_the_archives() {
    let home = home_with_history();
    fs::create_dir(home.path("docs/deep")).unwrap();
    std::os::unix::fs::symlink("../file.txt", home.path("docs/deep/link")).unwrap();
    fs::hard_link(home.path("docs/file.txt"), home.path("docs/second")).unwrap();
    fs::write(home.path("photos/large"), vec![b'x'; 9 << 20]).unwrap();
    let _ = home.run(&["run", "--all", "-q"]).ok();
    // A further name of the newest archive, as an unchanged run makes one.
    let newest = path_of(&archives(&home).into_iter().find(|a| a["name"] == "docs").unwrap());
    let linked = home.path("backups/docs/docs-20270101T000000Z-99.tar");
    fs::hard_link(&newest, &linked).unwrap();
    fs::write(home.path("backups/docs/notes.txt"), "mine").unwrap();
    fs::write(home.path("backups/photos/photos-20260101T000000Z-3.tar.zst"), "cut off").unwrap();
    let (before, rows) = (facts(&home), member_rows(&home));
    lose_database(&home);

    let _ = home.run(&["create", "docs;09:00;other"]).ok();
    let status = home.run(&["status"]);
    assert_eq!(status.code, 1);
    let words = ["belongs to another database", "rescan --adopt"];
    assert!(words.iter().all(|word| status.stdout.contains(word)), "{status:?}");
    let _ = home.run(&["run", "other"]).fails(1, &["belongs to another database", "rescan"]);
    lose_database(&home);

    let said = home.run(&["rescan"]);
    assert_eq!(said.code, 4, "a file cut off: {said:?}");
    assert!(said.stdout.contains("left unchanged") && said.stdout.contains("notes.txt"), "{said:?}");
    let linked_now = facts(&home).into_iter().find(|fact| fact.1 == 99).expect("the further name has its number");
    assert!(linked_now.0.ends_with("docs-20270101T000000Z-99.tar"));
    assert_eq!(home.number("SELECT count(DISTINCT archive_file_id) FROM archive"), before.len() as i64);
    let after: Vec<_> = facts(&home).into_iter().filter(|fact| fact.1 != 99).collect();
    assert_eq!(after, before);
    let rows_now = member_rows(&home);
    let ours = |row: &&Vec<rusqlite::types::Value>| row[0] != rusqlite::types::Value::Integer(99);
    assert_eq!(rows_now.iter().filter(ours).cloned().collect::<Vec<_>>(), rows, "chunk by chunk, member by member");

    let listed = home.run(&["--plain", "list"]).ok();
    assert!(listed.stdout.contains("docs;09:00;docs (paused)"), "{listed:?}");
    let photos = home.run(&["--json", "show", "photos"]).ok().json();
    assert_eq!((&photos["cron"], &photos["compress"]), (&"5 4 * * 1".into(), &"zstd:3".into()));
    assert_eq!(tar_lists(&home.path("backups/docs.tar")).len(), 5);

    let dump = home.query("SELECT * FROM archive ORDER BY run_id");
    let again = home.run(&["--json", "rescan"]);
    assert_eq!(again.json()["added"].as_array().unwrap().len(), 0, "{again:?}");
    assert_eq!(home.query("SELECT * FROM archive ORDER BY run_id"), dump, "a second rescan changes nothing");
    assert_eq!(member_rows(&home), rows_now);
    // Backups continue.
    let _ = home.run(&["resume", "docs"]).ok();
    let run = home.run(&["--json", "run", "docs"]).ok();
    assert!(run.stdout.contains("\"run\": 100") || run.stdout.contains("\"id\": 100"), "{run:?}");
    let _ = home.run(&["verify", "docs"]).ok();
}

#[test]
fn an_older_database_learns_of_newer_and_of_removed_archives() {
    let home = home_with_history();
    for suffix in ["", "-wal", "-shm"] {
        let from = home.path(&format!("backup.db{suffix}"));
        if from.exists() {
            fs::copy(&from, home.path(&format!("older.db{suffix}"))).unwrap();
        }
    }
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let _ = home.run(&["forget", "@1"]).ok();
    let before = facts(&home);
    lose_database(&home);
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::rename(home.path(&format!("older.db{suffix}")), home.path(&format!("backup.db{suffix}")));
    }
    let said = home.run(&["--json", "rescan"]).ok().json();
    assert_eq!(said["added"].as_array().unwrap().len(), 1, "{said}");
    assert_eq!(said["missing"].as_array().unwrap().len(), 1, "{said}");
    let after: Vec<_> = facts(&home).into_iter().filter(|fact| fact.1 != 1).collect();
    assert_eq!(after, before);
}

#[test]
fn a_folder_of_another_database_is_adopted_only_on_request() {
    let home = home_with_history();
    let identity = home.path("backups/.backup-manager");
    fs::remove_file(&identity).unwrap();
    let _ = home.run(&["rescan"]).fails(1, &["--adopt"]);
    let _ = home.run(&["verify"]).fails(1, &["has lost its identity", "--adopt"]);
    let _ = home.run(&["rescan", "--adopt"]).ok();
    fs::write(&identity, r#"{"database":"5d3f1a52-6b1f-4b0a-9f3a-0c7f4b3a9e11"}"#).unwrap();
    let _ = home.run(&["run", "docs"]).fails(1, &["belongs to another database", "--adopt"]);
    let _ = home.run(&["rescan", "--adopt"]).ok();
    let _ = home.run(&["run", "docs"]).ok();
}

/// Serves until the first copy of the database is there.
fn make_copy(home: &TestHome) -> PathBuf {
    let _ = home.run(&["start"]).ok();
    let copies = || -> Vec<PathBuf> {
        fs::read_dir(home.path("backups/.database")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let is_whole = |path: &PathBuf| path.to_string_lossy().ends_with("Z.db.zst");
    home.wait_until("copy of the database", 20, || copies().iter().any(is_whole));
    let _ = home.run(&["stop"]).ok();
    copies().into_iter().find(is_whole).unwrap()
}

fn damage_database(home: &TestHome) -> Vec<u8> {
    let mut bytes = fs::read(home.path("backup.db")).unwrap();
    bytes[100..].fill(0xA5);
    fs::write(home.path("backup.db"), &bytes).unwrap();
    bytes
}

#[test]
fn a_damaged_database_names_its_remedy_and_a_copy_repairs_it() {
    let home = home_with_history();
    let copy = make_copy(&home);
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let before = facts(&home);
    // Its first page gone, it does not even look like a database.
    let whole = fs::read(home.path("backup.db")).unwrap();
    fs::write(home.path("backup.db"), vec![0; 8192]).unwrap();
    let _ = home.run(&["list"]).fails(4, &["no longer a database of backup-manager", "rescan --from-copy"]);
    fs::write(home.path("backup.db"), whole).unwrap();
    let damaged = damage_database(&home);
    let said = home.run(&["list"]).fails(4, &["is damaged", "`backup-manager rescan --from-copy`"]);
    assert!(!said.stderr.contains("`backup-manager rescan`"), "one way out: {said:?}");
    let _ = home.run(&["start"]).fails(4, &["is damaged"]);

    // A service in the foreground waits and does not end again and again.
    let log = fs::File::create(home.path("serve.txt")).unwrap();
    let mut service = Running(home.command(&["serve"]).stderr(log).spawn().unwrap());
    let said = || fs::read_to_string(home.path("serve.txt")).unwrap();
    home.wait_until("message", 20, || said().contains("waiting for the database to be repaired"));
    assert!(service.0.try_wait().unwrap().is_none(), "{}", said());
    drop(service);

    fs::write(home.path("nonsense.db"), "no database").unwrap();
    let said = home.run(&["rescan", "--from-copy", "nonsense.db"]);
    let _ = said.fails(4, &["nonsense.db", "`backup-manager rescan --from-copy`"]);
    assert_eq!(fs::read(home.path("backup.db")).unwrap(), damaged, "nothing was changed");
    let _ = home.run(&["rescan", "--from-copy"]).ok();
    assert_eq!(facts(&home), before, "with what was made since the copy");
    let aside = fs::read_dir(home.dir.path()).unwrap().flatten().any(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name.starts_with("backup.db.aside-") && fs::read(entry.path()).unwrap() == damaged
    });
    assert!(aside, "the damaged one is still there");
    // Once more at once: the names of what is moved aside must not meet.
    let _ = home.run(&["rescan", "--from-copy"]).ok();
    assert_eq!(facts(&home), before);
    let _ = home.run(&["verify"]).ok();
}

#[test]
fn without_a_copy_a_damaged_or_lost_database_is_rebuilt_from_the_archives() {
    let home = home_with_history();
    let before = facts(&home);
    damage_database(&home);
    let database = home.path("backup.db").display().to_string();
    let said = home.run(&["list"]).fails(4, &["is damaged", &format!("move {database}, "), "`backup-manager rescan`"]);
    assert!(!said.stderr.contains("--from-copy"), "there is no copy: {said:?}");
    let _ = home.run(&["rescan", "--from-copy"]).fails(10, &["there is no copy", &format!("move {database}, ")]);
    // As it was advised.
    lose_database(&home);
    let said = home.run(&["list"]).fails(10, &["there is no database", "rebuild it from the archives"]);
    assert!(said.stderr.contains("`backup-manager rescan`") && !said.stderr.contains("create"), "{said:?}");
    let _ = home.run(&["rescan"]).ok();
    assert_eq!(facts(&home), before);
    // Now there is a copy, which is newer than nothing, and it is advised as long as it is intact.
    lose_database(&home);
    let _ = home.run(&["list"]).fails(10, &["`backup-manager rescan --from-copy`"]);
    let copies = fs::read_dir(home.path("backups/.database")).unwrap().flatten();
    copies.for_each(|copy| fs::write(copy.path(), "damaged").unwrap());
    let said = home.run(&["rescan", "--from-copy"]).fails(4, &["is damaged", "`backup-manager rescan`"]);
    assert!(!said.stderr.contains("--from-copy"), "no copy is intact: {said:?}");
    // A folder in which there never was a database.
    let _ = TestHome::new().run(&["list"]).fails(10, &["create one with `backup-manager create`"]);
}

#[test]
fn a_restore_test_compares_and_removes_what_it_restored() {
    let home = home_with_history();
    let said = home.run(&["--json", "drill"]).ok().json();
    assert_eq!(said.as_array().unwrap().len(), 2, "{said}");
    assert!(said.as_array().unwrap().iter().all(|drill| drill["passed"] == true), "{said}");
    assert_eq!(fs::read_dir(home.path("backups/.scratch")).unwrap().count(), 0);
    let shown = home.run(&["show", "docs"]).ok();
    assert!(shown.stdout.contains("restore test  passed"), "{shown:?}");
    let status: Said = home.run(&["--json", "status"]);
    assert_eq!(status.json()["schedules"][0]["last_drill"]["passed"], true, "{status:?}");
    let newest = path_of(&archives(&home).into_iter().find(|a| a["name"] == "docs").unwrap());
    flip_in(&newest, b"content two");
    let scratch = home.path("elsewhere");
    let failed = home.run(&["drill", "docs", "--scratch", scratch.to_str().unwrap()]).fails(4, &["docs/file.txt"]);
    assert!(failed.stderr.contains("is not restored as it was archived"), "{failed:?}");
    assert_eq!(failed.stderr.matches("docs/file.txt").count(), 1, "each member once: {failed:?}");
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    assert_eq!(archives(&home).iter().filter(|archive| archive["health"] == "damaged").count(), 1);
    let _ = home.run(&["drill", "docs"]).ok();
    let shown = home.run(&["show", "docs"]).ok();
    assert!(shown.stdout.contains("restore test  passed"), "the one before is whole: {shown:?}");
}

/// Makes a home of the user nobody, with one schedule; `None` without root.
pub fn home_of_nobody() -> Option<TestHome> {
    if !rustix::process::geteuid().is_root() {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: needs root\n");
        return None;
    }
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run_unprivileged(&["create", "a;09:00;docs"]).ok();
    Some(home)
}

fn owned_by_root(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let stat = fs::symlink_metadata(entry.path()).unwrap();
        if stat.is_dir() {
            found.extend(owned_by_root(&entry.path()));
        }
        if stat.uid() == 0 && !stat.is_symlink() {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn what_root_makes_in_the_home_of_another_user_belongs_to_that_user() {
    let Some(home) = home_of_nobody() else { return };
    for verb in [
        &["run", "docs"][..],
        &["list"],
        &["create", "a;10:00;more", "--now"],
        &["verify"],
        &["drill", "docs"],
        &["prune"],
        &["rescan"],
        &["export", "schedules.txt"],
        &["start"],
    ] {
        for folder in ["logs", "backup.db.workers", "backups"] {
            if verb[0] == "run" {
                let _ = fs::remove_dir_all(home.path(folder));
            }
        }
        if verb[0] == "run" {
            fs::remove_file(home.path("backup.db.lock")).unwrap();
        }
        let _ = home.run(verb).ok();
        assert_eq!(owned_by_root(home.dir.path()), Vec::<PathBuf>::new(), "{verb:?}");
    }
    home.wait_until("copy of the database", 10, || home.path("backups/.database").exists());
    let _ = home.run(&["stop"]).ok();
    for name in ["backup.db", "backup.db-wal", "backup.db-shm"] {
        let _ = fs::remove_file(home.path(name));
    }
    let _ = home.run(&["rescan", "--from-copy"]).ok();
    assert_eq!(owned_by_root(home.dir.path()), Vec::<PathBuf>::new());
    for verb in [&["run", "docs"][..], &["verify"], &["start"], &["stop"]] {
        let said = home.run_unprivileged(verb).ok();
        assert!(!said.stderr.contains("warning"), "{said:?}");
    }
}

#[test]
fn root_follows_no_link_in_the_log_folder_of_another_user_and_gives_no_existing_file_away() {
    let Some(home) = home_of_nobody() else { return };
    let secret = tempfile::tempdir().unwrap();
    let victim = secret.path().join("victim");
    fs::write(&victim, "secret\n").unwrap();
    let log = home.path("logs/backup_manager.log");
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(&victim, &log).unwrap();
    let said = home.run(&["run", "docs"]).ok();
    assert!(said.stderr.contains("is a symbolic link") && said.stderr.contains("root follows no link"), "{said:?}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "secret\n");
    assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
    // A pipe that nobody reads does not hold the command.
    fs::remove_file(&log).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&log).status().unwrap().success());
    let _ = home.run(&["run", "docs"]).ok();
    // A log that root created before is written, and stays root's.
    fs::remove_file(&log).unwrap();
    fs::write(&log, "").unwrap();
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(fs::metadata(&log).unwrap().uid(), 0);
    assert!(fs::read_to_string(&log).unwrap().contains("run"));
    // In a folder of root's own, links are followed as before.
    let own = TestHome::with_sources(&["a"]);
    fs::create_dir(own.path("logs")).unwrap();
    std::os::unix::fs::symlink(secret.path().join("mine"), own.path("logs/backup_manager.log")).unwrap();
    let _ = own.run(&["create", "a;09:00;docs"]).ok();
    assert!(fs::read_to_string(secret.path().join("mine")).unwrap().contains("create"));
}

#[test]
fn what_root_makes_in_a_folder_of_its_own_stays_with_root() {
    let Some(home) = home_of_nobody() else { return };
    let own = tempfile::tempdir().unwrap();
    let path = |name: &str| own.path().join(name).display().to_string();
    let _ = home.run(&["export", &path("schedules.txt"), "--logs", &path("logs")]).ok();
    for name in ["schedules.txt", "logs", "logs/backup_manager.log"] {
        assert_eq!(fs::metadata(own.path().join(name)).unwrap().uid(), 0, "{name}");
    }
}

#[test]
fn root_removes_no_file_behind_a_link_in_the_archive_folder_of_another_user() {
    let Some(home) = home_of_nobody() else { return };
    let _ = home.run_unprivileged(&["run", "docs"]).ok();
    let name = home.archive_files().remove(0);
    let victim = tempfile::tempdir().unwrap();
    fs::write(victim.path().join(&name), "of somebody else").unwrap();
    fs::rename(home.path("backups/docs"), home.path("backups/moved")).unwrap();
    std::os::unix::fs::symlink(victim.path(), home.path("backups/docs")).unwrap();
    let run = home.run(&["--json", "backups"]).ok().json()[0]["run"].as_i64().unwrap();
    let said = home.run(&["forget", &format!("@{run}"), "--force"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(victim.path().join(&name).exists(), "{said:?}");
}

#[test]
fn an_empty_database_is_damaged_for_every_verb_and_left_alone() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    let _ = home.run(&["start"]).ok();
    home.wait_until("copy of the database", 10, || home.path("backups/.database").exists());
    let _ = home.run(&["stop"]).ok();
    let database = home.path("backup.db");
    fs::write(&database, "").unwrap();
    fs::write(home.path("backup.db-wal"), "what was not checkpointed").unwrap();
    for verb in [
        &["list"][..],
        &["status"],
        &["create", "a;10:00;more"],
        &["run", "docs"],
        &["start"],
        &["stop"],
        &["export"],
        &["rescan"],
        &["config"],
        &["restore", "docs", "--to", "out"],
    ] {
        let _ = home.run(verb).fails(4, &["is empty: its content was lost", "rescan --from-copy"]);
        assert_eq!(fs::metadata(&database).unwrap().len(), 0, "{verb:?}");
        assert_eq!(fs::read(home.path("backup.db-wal")).unwrap(), b"what was not checkpointed", "{verb:?}");
    }
    let _ = home.run(&["rescan", "--from-copy"]).ok();
    assert!(home.run(&["list"]).ok().stdout.contains("docs"));
    let _ = home.run(&["verify"]).ok();
}

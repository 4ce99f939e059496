//! Reuse by the whole program: images whose times show no change, attributes that were lost, and what is printed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::environment::TestHome;

/// A read-only image at a mount point, unmounted at the end.
struct Image(PathBuf);

impl Image {
    /// Makes an image of `content` in which all times are the same, and mounts it at `at`.
    fn mount(home: &TestHome, content: &Path, at: &str) -> Option<Image> {
        let (image, at) = (home.path(".image"), home.path(at));
        let _ = fs::remove_file(&image);
        fs::create_dir_all(&at).unwrap();
        let mut make = Command::new("mksquashfs");
        make.arg(content).arg(&image).args(["-quiet", "-all-time", "1700000000", "-mkfs-time", "1700000000"]);
        let is_made = make.output().is_ok_and(|output| output.status.success());
        let mounted = Command::new("mount").args(["-t", "squashfs", "-o", "loop"]).arg(&image).arg(&at).output();
        if is_made && mounted.is_ok_and(|output| output.status.success()) {
            return Some(Image(at));
        }
        eprintln!("skipped: mounting a squashfs image needs root and mksquashfs");
        None
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn archived(home: &TestHome, path: &str) -> String {
    home.run(&["cat", "docs", path]).ok().stdout
}

#[test]
fn another_image_with_the_same_times_is_read_and_the_file_system_is_named() {
    let home = TestHome::new();
    let content = home.path(".content");
    fs::create_dir(&content).unwrap();
    for version in ["version 1", "version 2"] {
        fs::write(content.join("file"), version).unwrap();
        let Some(_image) = Image::mount(&home, &content, "docs") else { return };
        match version {
            "version 1" => drop(home.run(&["create", "docs;09:00;docs", "--now"]).ok()),
            _ => drop(home.run(&["run", "docs"]).ok()),
        }
        assert_eq!(archived(&home, "docs/file"), version);
    }
    let shown = home.run(&["history", "@2"]).ok().stdout;
    assert!(shown.contains("reuse off: squashfs"), "{shown}");
    assert!(shown.contains("taken from @1; read: 1 file system, 1 same chunk"), "{shown}");
    // With that option the times are taken for what they are here: the same.
    fs::write(content.join("file"), "version 3").unwrap();
    let Some(_image) = Image::mount(&home, &content, "docs") else { return };
    let _ = home.run(&["edit", "docs", "--trust-times"]).ok();
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(archived(&home, "docs/file"), "version 2");
    let _ = home.run(&["run", "docs", "--reread"]).fails(3, &["changed without its times"]);
    assert_eq!(archived(&home, "docs/file"), "version 3");
    assert!(home.run(&["show", "docs"]).ok().stdout.contains("accept docs"));
}

/// Runs `docs` with injected errors; returns false and prints why if there is no `strace`.
fn run_with_errors(home: &TestHome, options: &[&str]) -> bool {
    let trace = home.path(".trace");
    let strace = ["strace", "-f", "-o", trace.to_str().unwrap()];
    let through = [&strace[..], options, &[env!("CARGO_BIN_EXE_backup-manager")]].concat();
    let is_done = home.command_through(&through, &["run", "docs"]).output().is_ok();
    if !is_done {
        eprintln!("skipped: strace is not installed");
    }
    is_done
}

/// What the next run finds did not change just before the last one.
fn as_if_later(home: &TestHome) {
    let later = "UPDATE chunk SET read_started_at_ms = read_started_at_ms + 10000";
    assert!(rusqlite::Connection::open(home.path("backup.db")).unwrap().execute(later, []).unwrap() > 0);
}

/// Returns why the last run read members, with the number of members.
fn read_reasons(home: &TestHome, run: &str) -> serde_json::Value {
    home.run(&["--json", "history", run]).ok().json()["read_reasons"].take()
}

#[test]
fn a_file_that_could_not_be_read_to_its_end_is_read_again_by_the_next_run() {
    let home = TestHome::with_sources(&["docs"]);
    let path = home.path("docs/file.txt");
    let file = fs::File::create(&path).unwrap();
    // The spans of data of a sparse file are read one by one: the first one is.
    file.write_all_at(&[1; 8_192], 0).unwrap();
    file.write_all_at(&[2; 8_192], 1 << 20).unwrap();
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    if !run_with_errors(&home, &["-P", path.to_str().unwrap(), "-e", "inject=pread64:error=EIO:when=2"]) {
        return;
    }
    let outcome = home.run(&["--json", "history", "@1"]).ok().json();
    assert_eq!(outcome["state"], "incomplete", "{outcome}");
    as_if_later(&home);
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(read_reasons(&home, "@2"), serde_json::json!({"doubtful": 1, "same chunk": 1}));
    assert_eq!(archived(&home, "docs/file.txt").len(), (1 << 20) + 8_192);
    as_if_later(&home);
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(read_reasons(&home, "@3"), serde_json::json!({}));
}

#[test]
fn files_of_a_file_system_that_could_not_be_synced_are_read_again_by_the_next_run() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    if !run_with_errors(&home, &["-e", "inject=syncfs:error=EIO"]) {
        return;
    }
    for (run, expected) in [("@2", serde_json::json!({"doubtful": 1, "same chunk": 1})), ("@3", serde_json::json!({}))]
    {
        as_if_later(&home);
        let _ = home.run(&["run", "docs"]).ok();
        assert_eq!(read_reasons(&home, run), expected);
    }
}

#[test]
fn a_file_whose_attributes_were_lost_is_read_again_by_the_next_run() {
    let home = TestHome::new();
    let content = home.path(".content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("file"), "content").unwrap();
    // One of several pieces, too, which are read at once.
    fs::write(content.join("large"), vec![7; 20 << 20]).unwrap();
    for name in ["file", "large"] {
        xattr::set(content.join(name), "user.test", b"value").unwrap();
    }
    let Some(_image) = Image::mount(&home, &content, "docs") else { return };
    let _ = home.run(&["create", "docs;09:00;docs", "--trust-times"]).ok();
    if !run_with_errors(&home, &["-e", "inject=flistxattr,listxattr,llistxattr:error=EACCES"]) {
        return;
    }
    let outcome = home.run(&["--json", "history", "@1"]).ok().json();
    assert_eq!(outcome["state"], "incomplete", "{outcome}");
    assert_eq!(home.number("SELECT count(*) FROM member WHERE is_reusable = 1"), 0);
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(home.number("SELECT count(*) FROM member WHERE xattr_digest IS NOT NULL AND is_reusable = 1"), 2);
    let reasons = home.run(&["--json", "history", "@2"]).ok().json();
    assert_eq!((&reasons["read_reasons"]["doubtful"], &reasons["base"]), (&3.into(), &1.into()), "{reasons}");
    // And from then on nothing is read.
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(home.run(&["--json", "history", "@3"]).ok().json()["read_reasons"], serde_json::json!({}));
}

#[test]
fn a_name_that_became_a_file_of_its_own_is_verified_by_itself() {
    for by_path in [false, true] {
        let home = TestHome::with_sources(&["docs"]);
        let _ = home.run(&["create", "docs;09:00;docs", "--now"]).ok();
        let _ = home.run(&["run", "docs"]).ok();
        let archives = home.run(&["--json", "backups", "docs"]).ok().json();
        assert!(archives[0]["shared_bytes"].as_u64() > Some(0), "{archives}");
        // As a copy of the archive folder without its hard links has it.
        let path = PathBuf::from(archives[0]["path"].as_str().unwrap());
        let mut bytes = fs::read(&path).unwrap();
        let text = b"content of docs";
        let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
        bytes[at] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let words: &[&str] = if by_path { &["verify", path.to_str().unwrap()] } else { &["verify"] };
        let said = home.run(words);
        assert_eq!(said.code, 4, "{said:?}");
        assert!(said.stdout.contains("damaged member: docs/file.txt"), "{said:?}");
        let health = home.run(&["--json", "backups", "docs"]).ok().json();
        assert_eq!((&health[0]["health"], &health[1]["health"]), (&"damaged".into(), &"good".into()), "{health}");
    }
}

#[test]
fn inode_and_ctime_are_never_ignored_both() {
    let home = TestHome::with_sources(&["docs"]);
    let both = ["create", "docs;09:00;docs", "--ignore-inode", "--ignore-ctime"];
    let _ = home.run(&both).fails(2, &["inode and ctime", "--ignore-inode"]);
    let _ = home.run(&["create", "docs;09:00;docs", "--ignore-inode"]).ok();
    let _ = home.run(&["edit", "docs", "--ignore-ctime"]).fails(2, &["inode and ctime"]);
    assert!(home.run(&["show", "docs"]).ok().stdout.contains("inode numbers are ignored"));
    let _ = home.run(&["edit", "docs", "--ignore-ctime", "--ignore-inode=false"]).ok();
    let shown = home.run(&["show", "docs"]).ok().stdout;
    assert!(shown.contains("ctime is ignored") && !shown.contains("inode numbers"), "{shown}");
}

/// Returns run, shared bytes and freed bytes of each archive, in parts of the size of its file, newest first.
fn space(home: &TestHome) -> Vec<(i64, u64, u64)> {
    let archives = home.run(&["--json", "backups", "docs"]).ok().json();
    let part = |archive: &serde_json::Value, field: &str| {
        let (bytes, size) = (archive[field].as_u64().unwrap(), archive["size"].as_u64().unwrap());
        assert_eq!(bytes % size, 0, "{archive}");
        bytes / size
    };
    let of = |archive: &serde_json::Value| {
        (archive["run"].as_i64().unwrap(), part(archive, "shared_bytes"), part(archive, "freed_bytes"))
    };
    archives.as_array().unwrap().iter().map(of).collect()
}

#[test]
fn names_of_one_file_share_all_of_it_and_the_last_one_frees_it() {
    let home = TestHome::with_sources(&["docs"]);
    let on_terminal = |verb: &str| {
        let line = format!("stty cols 80; {} {verb}", env!("CARGO_BIN_EXE_backup-manager"));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("TZ", "UTC").current_dir(home.dir.path()).stdin(Stdio::null());
        String::from_utf8(script.output().unwrap().stdout).unwrap()
    };
    let _ = home.run(&["create", "docs;09:00;docs", "--now"]).ok();
    let printed = on_terminal("backups --all");
    assert!(printed.contains("1 archive of ") && !printed.contains("FREES"), "{printed}");
    let _ = home.run(&["run", "docs"]).ok();
    fs::write(home.path("docs/new.txt"), "new").unwrap();
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(space(&home), [(3, 0, 1), (2, 1, 0), (1, 1, 0)]);
    let shown = home.run(&["--json", "show", "docs"]).ok().json();
    let bytes = |run| {
        home.number(&format!(
            "SELECT size FROM archive_file, archive WHERE archive_file.id = archive_file_id AND run_id = {run}"
        ))
    };
    let expected = serde_json::json!({
        "count": 3, "bytes": bytes(1) + bytes(2) + bytes(3), "disk_bytes": bytes(2) + bytes(3)
    });
    assert_eq!(shown["archives"], expected);
    let printed = on_terminal("backups --all");
    assert!(
        printed.contains("FREES") && printed.contains("3 archives of ") && printed.contains(" on disk"),
        "{printed}"
    );
    assert!(home.run(&["show", "docs"]).ok().stdout.contains("3 archives of "));
    assert!(home.run(&["history", "@2"]).ok().stdout.contains("one file with 1 other archive"));
    let _ = home.run(&["forget", "@1"]).ok();
    assert_eq!(space(&home), [(3, 0, 1), (2, 0, 1)]);
    // A file that does not exist frees nothing.
    let name = home.query("SELECT file_name FROM archive WHERE run_id = 2").remove(0).remove(0);
    let rusqlite::types::Value::Text(name) = name else { panic!("{name:?}") };
    fs::remove_file(home.path("backups").join(name)).unwrap();
    assert!(home.run(&["verify", "@2"]).stdout.contains("its file is gone"));
    assert_eq!(space(&home), [(3, 0, 1), (2, 0, 0)]);
}

#[test]
fn an_owner_who_was_renamed_has_the_new_name_in_the_next_archive() {
    let home = TestHome::with_sources(&["docs"]);
    let users = |name: &str| {
        let known = fs::read_to_string("/etc/passwd").unwrap();
        fs::write(home.path(".passwd"), format!("{known}{name}:x:54321:0::/:/bin/sh\n")).unwrap();
    };
    // Only this command sees the other users.
    let run = || {
        let line =
            format!("mount --bind .passwd /etc/passwd && exec {} run docs", env!("CARGO_BIN_EXE_backup-manager"));
        home.command_through(&["unshare", "-m", "sh", "-c", &line], &[]).output()
    };
    let can_give_away = std::os::unix::fs::chown(home.path("docs/file.txt"), Some(54_321), None).is_ok();
    let _ = home.run(&["create", "docs;09:00;docs", "--trust-times"]).ok();
    users("before");
    if !can_give_away || !run().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: another list of users needs root and unshare");
        return;
    }
    as_if_later(&home);
    users("after");
    assert!(run().unwrap().status.success());
    let shown = home.run(&["--json", "history", "@2"]).ok().json();
    assert_eq!((&shown["base"], &shown["read_reasons"]["owner"]), (&1.into(), &1.into()), "{shown}");
    let name = "SELECT count(*) FROM member WHERE user_name = CAST('after' AS BLOB)";
    assert_eq!(home.number(name), 1);
}

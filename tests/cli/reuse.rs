//! Reuse by the whole program: images whose times show no change, attributes that were lost, and what is printed.

use std::fs;
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

#[test]
fn a_file_whose_attributes_were_lost_is_read_again_by_the_next_run() {
    let home = TestHome::new();
    let content = home.path(".content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("file"), "content").unwrap();
    xattr::set(content.join("file"), "user.test", b"value").unwrap();
    let Some(_image) = Image::mount(&home, &content, "docs") else { return };
    let _ = home.run(&["create", "docs;09:00;docs", "--trust-times"]).ok();
    let traced = home.path(".trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-o"]).arg(&traced).args(["-e", "trace=flistxattr,listxattr,llistxattr"]);
    command.args(["-e", "inject=flistxattr,listxattr,llistxattr:error=EACCES", env!("CARGO_BIN_EXE_backup-manager")]);
    command.args(["run", "docs"]).env_clear().env("TZ", "UTC").current_dir(home.dir.path());
    if command.output().is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let outcome = home.run(&["--json", "history", "@1"]).ok().json();
    assert_eq!(outcome["state"], "incomplete", "{outcome}");
    assert_eq!(home.number("SELECT count(*) FROM member WHERE is_reusable = 1"), 0);
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(home.number("SELECT count(*) FROM member WHERE xattr_digest IS NOT NULL AND is_reusable = 1"), 1);
    let reasons = home.run(&["--json", "history", "@2"]).ok().json();
    assert_eq!((&reasons["read_reasons"]["doubtful"], &reasons["base"]), (&2.into(), &1.into()), "{reasons}");
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

//! `restore`, `ls`, `cat`, `find`, `diff`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;

use crate::environment::{TestHome, said};

/// A home with three archives of `docs` and one of `other`; the middle one of `docs` is the only one with `gone.txt`.
fn home_with_archives() -> TestHome {
    let home = TestHome::with_sources(&["docs", "other"]);
    fs::create_dir(home.path("docs/sub")).unwrap();
    fs::write(home.path("docs/sub/letter.txt"), "first").unwrap();
    let _ = home.run(&["create", "docs;02:00;docs", "other;03:00;other", "--compress", "zstd", "--now"]).ok();
    fs::write(home.path("docs/sub/letter.txt"), "second").unwrap();
    fs::write(home.path("docs/gone.txt"), "gone").unwrap();
    let _ = home.run(&["run", "docs"]).ok();
    fs::remove_file(home.path("docs/gone.txt")).unwrap();
    let _ = home.run(&["run", "docs"]).ok();
    home
}

fn docs_archives(home: &TestHome) -> Vec<i64> {
    let json = home.run(&["--json", "backups", "docs"]).ok().json();
    let mut runs: Vec<i64> = json.as_array().unwrap().iter().map(|archive| archive["run"].as_i64().unwrap()).collect();
    runs.sort_unstable();
    runs
}

#[test]
fn a_file_is_restored_by_name_by_original_path_and_in_place() {
    let home = home_with_archives();
    let said = home.run(&["restore", "docs", "docs/sub/letter.txt", "--to", "out"]).ok();
    assert!(said.stderr.contains("restored 1 member"), "{said:?}");
    assert_eq!(fs::read_to_string(home.path("out/docs/sub/letter.txt")).unwrap(), "second");
    let original = home.path("docs/sub").to_str().unwrap().to_owned();
    let _ = home.run(&["extract", "docs", &original, "--target", "out2", "--strip", "1"]).ok();
    assert_eq!(fs::read_to_string(home.path("out2/sub/letter.txt")).unwrap(), "second");
    fs::write(home.path("docs/sub/letter.txt"), "spoilt").unwrap();
    let _ = home.run(&["restore", "docs", "--in-place"]).fails(3, &["docs/sub/letter.txt", "--overwrite always"]);
    let _ = home.run(&["restore", "docs", "--in-place", "--overwrite", "always"]).ok();
    assert_eq!(fs::read_to_string(home.path("docs/sub/letter.txt")).unwrap(), "second");
}

#[test]
fn archives_are_chosen_by_number_time_and_file() {
    let home = home_with_archives();
    let runs = docs_archives(&home);
    let first = format!("@{}", runs[0]);
    assert_eq!(home.run(&["cat", &first, "docs/sub/letter.txt"]).ok().stdout, "first");
    assert_eq!(home.run(&["cat", "docs", "docs/sub/letter.txt", "--archive", &first]).ok().stdout, "first");
    assert_eq!(home.run(&["dump", "docs", "docs/sub/letter.txt"]).ok().stdout, "second");
    assert_eq!(home.run(&["cat", "backups/docs.tar.zst", "docs/sub/letter.txt"]).ok().stdout, "second");
    let _ = home.run(&["restore", "docs", "--at", "2001-01-01", "--to", "o"]).fails(10, &["2001-01-01", "oldest"]);
    let _ = home.run(&["restore", "docs", "--at", "0s", "--to", "o"]).ok();
    let _ = home.run(&["restore", "dosc", "--to", "o"]).fails(10, &["did you mean docs"]);
    let _ = home.run(&["restore", "@999", "--to", "o"]).fails(10, &["@999", "nearest"]);
    let _ = home.run(&["ls", "other", "--archive", &first]).fails(10, &["of docs, not of other"]);
    let _ = home.run(&["restore", "missing.tar", "--to", "o"]).fails(10, &["missing.tar"]);
    for inside in ["backups", "backups/docs", "backups/docs/new/folder", "backups/../backups/x"] {
        let _ = home.run(&["restore", "docs", "--to", inside]).fails(2, &["lies in the archive folder", "--to"]);
        assert_eq!(home.path(inside).exists(), inside.ends_with("docs") || inside == "backups", "{inside}");
    }
    let _ = home.run(&["restore", "docs", "--to", "backups2"]).ok();
    let _ = home
        .run(&["restore", "docs", "docs/sub/leter.txt", "--to", "o"])
        .fails(10, &["did you mean docs/sub/letter.txt"]);
    let _ = home.run(&["cat", "docs", "docs/sub"]).fails(2, &["not a file"]);
    let _ = home.run(&["restore", "docs", "--to", "o", "--strip", "x"]).fails(2, &[]);
    let _ = home.run(&["restore", "docs"]).fails(2, &["--to", "--in-place"]);
}

#[test]
fn missing_members_are_reported_and_the_rest_is_restored() {
    let home = TestHome::with_sources(&["docs"]);
    fs::create_dir(home.path("docs/shut")).unwrap();
    fs::hard_link(home.path("docs/file.txt"), home.path("docs/shut/second name")).unwrap();
    fs::set_permissions(home.path("docs/shut"), fs::Permissions::from_mode(0o500)).unwrap();
    let _ = home.run(&["create", "docs;02:00;docs", "--now"]).ok();
    // The first name, which has the content, comes before the second; only that is asked for.
    let wanted = ["docs/shut", "docs/file.text", "docs/none"];
    let said = home.run(&[&["restore", "docs", "--to", "out"][..], &wanted].concat());
    let said = said.fails(10, &["docs/file.text", "docs/none", "did you mean docs/file.txt", "restored 2 members"]);
    assert_eq!(fs::read_to_string(home.path("out/docs/shut/second name")).unwrap(), "content of docs\n", "{said:?}");
    assert_eq!(home.path("out/docs/shut").metadata().unwrap().mode() & 0o7777, 0o500);
    let _ = home.run(&["restore", "docs", "--to", "out", "--include", "*.odt"]).fails(10, &["nothing in", "ls docs"]);
    let said = home.run(&["restore", "docs", "--to", "flat", "--strip", "2"]).ok();
    assert!(said.stderr.contains("1 member not restored: --strip 2 removes the whole name"), "{said:?}");
    let said = home.run(&["restore", "docs", "--to", "out", "--overwrite", "if-changed", "docs/shut"]).ok();
    assert!(said.stderr.contains("restored 0 members, 0 B, 2 unchanged"), "{said:?}");
}

#[test]
fn everything_that_takes_a_file_works_without_the_database() {
    let home = home_with_archives();
    let file =
        format!("backups/docs/{}", home.archive_files().into_iter().find(|name| name.starts_with("docs-")).unwrap());
    for name in ["backup.db", "backup.db-wal", "backup.db-shm", "backup.db.lock"] {
        let _ = fs::remove_file(home.path(name));
    }
    assert_eq!(home.run(&["ls", &file]).ok().stdout, "docs/\ndocs/file.txt\ndocs/sub/\ndocs/sub/letter.txt\n");
    assert_eq!(home.run(&["ls", &file, "docs/sub"]).ok().stdout, "docs/sub/\ndocs/sub/letter.txt\n");
    let long = home.run(&["ls", "-l", &file, "docs/file.txt"]).ok().stdout;
    assert!(long.starts_with("-rw-r--r-- ") && long.contains(" 16 "), "{long}");
    let json = home.run(&["--json", "ls", &file]).ok().json();
    assert_eq!((json[1]["path"].as_str(), json[1]["size"].as_u64()), (Some("docs/file.txt"), Some(16)));
    assert_eq!(home.run(&["cat", &file, "docs/sub/letter.txt"]).ok().stdout, "first");
    let original = home.path("docs/file.txt").to_str().unwrap().to_owned();
    assert_eq!(home.run(&["cat", &file, &original]).ok().stdout, "content of docs\n");
    let _ = home.run(&["restore", &file, "--to", "out"]).ok();
    assert_eq!(fs::read_to_string(home.path("out/docs/sub/letter.txt")).unwrap(), "first");
    let report = home.run(&["--json", "restore", &file, "--to", "out"]).ok().json();
    assert_eq!((report["members"].as_u64(), report["unchanged"].as_u64()), (Some(0), Some(4)));
    assert_eq!(home.run(&["diff", &file, &file]).ok().stdout, "");
    assert!(!home.path("backup.db").exists(), "nothing was made");
    let _ = home.run(&["restore", "docs", "--to", "out"]).fails(10, &["there is no database", "rescan"]);
}

#[test]
fn find_looks_in_all_archives_and_versions_groups_by_content() {
    let home = home_with_archives();
    let runs = docs_archives(&home);
    let lines = home.run(&["find", "*.txt"]).ok().stdout;
    assert_eq!(lines.lines().count(), 8, "{lines}");
    let newest: Vec<&str> = lines.lines().next().unwrap().split('\t').collect();
    assert_eq!((newest[0], newest[1], newest[4]), (format!("@{}", runs[2]).as_str(), "docs", "docs/file.txt"));
    let gone = home.run(&["--json", "find", "gone.txt"]).ok().json();
    assert_eq!((gone.as_array().unwrap().len(), gone[0]["run"].as_i64()), (1, Some(runs[1])));
    assert_eq!(home.run(&["find", "docs/*/*.txt", "--schedule", "docs"]).ok().stdout.lines().count(), 3);
    let _ = home.run(&["find", "nothing-like-it"]).fails(10, &["nothing-like-it"]);
    let original = home.path("docs/sub/letter.txt").to_str().unwrap().to_owned();
    for args in [&["find", "--versions", "docs/sub/letter.txt"][..], &["--home", ".", "versions", &original]] {
        let versions = home.run(&[&["--json"][..], args].concat()).ok().json();
        assert_eq!(versions.as_array().unwrap().len(), 2, "{versions}");
        assert_eq!((versions[0]["archives"].as_u64(), versions[0]["oldest_run"].as_i64()), (Some(2), Some(runs[1])));
        assert_eq!((versions[1]["archives"].as_u64(), versions[1]["run"].as_i64()), (Some(1), Some(runs[0])));
    }
    // Paths are removed with the last archive that holds them.
    let _ = home.run(&["delete", "other", "--with-archives", "--yes"]).ok();
    assert_eq!(home.number("SELECT count(*) FROM member WHERE CAST(path AS TEXT) LIKE 'other%'"), 0);
    assert_eq!(home.number("SELECT count(DISTINCT path) FROM member"), 5);
}

#[test]
fn several_files_that_lie_apart_are_restored_by_their_names() {
    let home = TestHome::with_sources(&["docs"]);
    for name in 0..6 {
        fs::write(home.path("docs").join(name.to_string()), vec![name; 1 << 20]).unwrap();
    }
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let _ = home.run(&["restore", "docs", "docs/0", "docs/2", "docs/5", "--to", "out"]).ok();
    let names = |folder: &str| fs::read_dir(home.path(folder)).unwrap().count();
    assert_eq!(names("out/docs"), 3);
    assert_eq!(fs::read(home.path("out/docs/5")).unwrap(), vec![5; 1 << 20]);
}

#[test]
fn diff_lists_added_removed_and_changed_members() {
    let home = home_with_archives();
    let runs = docs_archives(&home);
    let (first, second) = (format!("@{}", runs[0]), format!("@{}", runs[1]));
    let said = home.run(&["diff", &first, &second]).ok();
    assert_eq!(said.stderr, "");
    let log = fs::read_to_string(home.path("logs/backup_manager.log")).unwrap();
    assert!(log.ends_with("Info --> Instruction diff\n"), "as it was asked for, and once: {log}");
    assert_eq!(said.stdout, "added\tdocs/gone.txt\nchanged\tdocs/sub/letter.txt\tcontent,time\n");
    assert_eq!(home.run(&["diff", &second, "docs"]).ok().stdout, "removed\tdocs/gone.txt\n");
    assert_eq!(home.run(&["diff", "docs"]).ok().stdout, "");
    fs::write(home.path("docs/sub/new"), "n").unwrap();
    fs::set_permissions(home.path("docs/file.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(home.path("docs/sub/letter.txt")).unwrap();
    let said = home.run(&["diff", "docs"]).ok().stdout;
    assert_eq!(said, "changed\tdocs/file.txt\tmode\nremoved\tdocs/sub/letter.txt\nadded\tdocs/sub/new\n");
    let json = home.run(&["--json", "diff", "docs"]).ok().json();
    assert_eq!(json["changed"][0]["what"][0], "mode");
}

#[test]
fn a_dry_run_says_what_would_happen_and_does_nothing() {
    let home = home_with_archives();
    let said = home.run(&["restore", "docs", "-n", "--to", "out"]).ok();
    assert_eq!(said.stdout.lines().filter(|line| line.starts_with("create\t")).count(), 4, "{said:?}");
    assert!(!home.path("out").exists());
    let _ = home.run(&["restore", "docs", "--to", "out"]).ok();
    fs::write(home.path("out/docs/file.txt"), "mine").unwrap();
    let plan = home.run(&["restore", "docs", "-n", "--to", "out", "--overwrite", "if-changed"]).ok().stdout;
    assert!(plan.contains("replace\tdocs/file.txt\n") && plan.contains("same\tdocs/sub/letter.txt\n"), "{plan}");
    let report = home.run(&["--json", "restore", "docs", "-n", "--to", "out"]).fails(3, &[]).json();
    assert_eq!((report["conflicts"]["count"].as_u64(), report["plan"].as_array().unwrap().len()), (Some(1), 4));
}

#[test]
fn a_damaged_archive_gives_back_the_rest_and_names_what_it_lost() {
    let home = TestHome::with_sources(&["docs"]);
    for i in 0..20 {
        fs::write(home.path(&format!("docs/{i:02}")), vec![i; 200_000]).unwrap();
        fs::hard_link(home.path(&format!("docs/{i:02}")), home.path(&format!("docs/{i:02}-link"))).unwrap();
    }
    let _ = home.run(&["create", "docs;02:00;docs", "--now"]).ok();
    let file = home.path(&format!("backups/docs/{}", home.archive_files()[0]));
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&file).unwrap();
    fs::write(&file, &bytes).unwrap();
    let said = home.run(&["restore", "docs", "--to", "out"]).fails(4, &["damaged: ", "docs/"]);
    let back = fs::read_dir(home.path("out/docs")).unwrap().count();
    assert!((30..41).contains(&back), "{back} {said:?}");
    // The archive is read again for the links to lost files: each of those is still reported once.
    let report = home.run(&["--json", "restore", "docs", "--to", "other"]).fails(4, &[]).json();
    let damaged = report["damaged"]["list"].as_array().unwrap();
    let mut paths: Vec<&str> = damaged.iter().map(|one| one["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    paths.dedup();
    assert!(paths.iter().any(|path| !path.ends_with("link")), "{report}");
    assert_eq!(paths.len(), damaged.len(), "{report}");
    assert_eq!(report["damaged"]["count"].as_u64(), Some(paths.len() as u64));
}

#[test]
fn an_unprivileged_user_gets_content_and_a_warning_about_owners() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let home = TestHome::with_sources(&["docs"]);
    fs::create_dir(home.path("docs/sub")).unwrap();
    fs::write(home.path("docs/sub/mine"), "m").unwrap();
    fs::set_permissions(home.path("docs/sub"), fs::Permissions::from_mode(0o500)).unwrap();
    for path in ["docs", "docs/sub", "docs/sub/mine"] {
        std::os::unix::fs::chown(home.path(path), Some(65_534), Some(65_534)).unwrap();
    }
    let _ = home.run(&["create", "docs;02:00;docs", "--compress", "gzip", "--now"]).ok();
    let archive = home.dir.path().join("archive.tar.gz");
    fs::copy(home.path(&format!("backups/docs/{}", home.archive_files()[0])), &archive).unwrap();
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(home.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(home.path("user")).unwrap();
    std::os::unix::fs::chown(home.path("user"), Some(65_534), Some(65_534)).unwrap();
    let as_user = |args: &[&str]| {
        let mut command = home.command(args);
        said(command.uid(65_534).gid(65_534))
    };
    let file = archive.to_str().unwrap();
    let _ = as_user(&["restore", file, "docs/sub", "--to", "user/own"]).ok();
    assert_eq!(fs::read_to_string(home.path("user/own/docs/sub/mine")).unwrap(), "m");
    assert_eq!(home.path("user/own/docs/sub").metadata().unwrap().mode() & 0o7777, 0o500);
    // The file that belongs to root comes back as the user's own.
    let _ = as_user(&["restore", file, "--to", "user/all"]).fails(3, &["1 member: the owner could not be set"]);
    assert_eq!(fs::read_to_string(home.path("user/all/docs/file.txt")).unwrap(), "content of docs\n");
    // A folder without write permission does not keep a second run from finishing.
    let _ = as_user(&["restore", file, "--to", "user/all"]).ok();
    let _ = as_user(&["restore", file, "--to", "/proc/none"]).fails(1, &["/proc/none"]);
    fs::create_dir(home.path("rooted")).unwrap();
    let _ = as_user(&["restore", file, "--to", "rooted"]).fails(1, &["rooted is not writable"]);
}

#[test]
fn diff_opens_no_fifo_and_no_device_that_took_the_place_of_a_file() {
    let home = TestHome::with_sources(&["docs"]);
    for name in ["fifo", "zero", "file"] {
        fs::write(home.path("docs").join(name), "").unwrap();
    }
    let _ = home.run(&["create", "docs;02:00;docs", "--now"]).ok();
    for name in ["fifo", "zero"] {
        fs::remove_file(home.path("docs").join(name)).unwrap();
    }
    let made = std::process::Command::new("mkfifo").arg(home.path("docs/fifo")).status().unwrap();
    assert!(made.success());
    std::os::unix::fs::symlink("/dev/zero", home.path("docs/zero")).unwrap();
    let stdout = home.run(&["diff", "docs"]).ok().stdout;
    for changed in ["changed\tdocs/fifo\tkind", "changed\tdocs/zero\tkind"] {
        assert!(stdout.contains(changed), "{stdout}");
    }
    assert!(!stdout.contains("docs/file"), "{stdout}");
}

#[test]
fn restore_compares_contents_by_digest_if_requested() {
    let home = TestHome::with_sources(&["docs"]);
    let file = home.path("docs/file");
    fs::write(&file, "right").unwrap();
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    let _ = home.run(&["create", "docs;02:00;docs", "--now"]).ok();
    fs::write(&file, "wrong").unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    let restore = ["restore", "docs", "--in-place"];
    let _ = home.run(&restore).ok();
    let content = [&restore[..], &["--compare", "content"]].concat();
    let _ = home.run(&content).fails(3, &["docs/file", "--overwrite always"]);
    let replace = [&content[..], &["--overwrite", "if-changed"]].concat();
    let planned = home.run(&[&replace[..], &["-n"]].concat()).ok().stdout;
    assert!(planned.contains("replace\tdocs/file"), "{planned}");
    let _ = home.run(&replace).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), "right");
    let _ = home.run(&content).ok();
    // Without the catalog there is nothing to compare with: that is said, not passed over.
    fs::copy(home.path("backups/docs.tar.zst"), home.path("other.tar.zst"))
        .or_else(|_| {
            let link = fs::read_dir(home.path("backups")).unwrap().map(|e| e.unwrap().path());
            let link = link.into_iter().find(|path| path.is_file()).unwrap();
            fs::copy(link, home.path("other.tar.zst"))
        })
        .unwrap();
    let _ = home.run(&["restore", "./other.tar.zst", "--to", "out", "--compare", "content"]).fails(2, &["no digests"]);
}

#[test]
fn a_thread_that_cannot_be_started_is_an_error_with_the_way_out() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    // A user without other processes, which would count.
    const USER: u32 = 61_234;
    let home = home_with_archives();
    fs::copy(home.path(&format!("backups/docs/{}", home.archive_files()[0])), home.path("a.tar.zst")).unwrap();
    fs::create_dir(home.path("user")).unwrap();
    std::os::unix::fs::chown(home.path("user"), Some(USER), Some(USER)).unwrap();
    for (path, mode) in [(home.path("a.tar.zst"), 0o444), (home.dir.path().to_owned(), 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = std::process::Command::new("prlimit");
    // The main thread, and the one that waits for signals.
    command.args(["--nproc=2:2", env!("CARGO_BIN_EXE_backup-manager"), "restore", "./a.tar.zst", "--to", "user/out"]);
    command.env_clear().env("TZ", "UTC").current_dir(home.dir.path()).uid(USER).gid(USER);
    let _ = said(&mut command).fails(1, &["cannot start a thread", "limit of processes"]);
}

#[test]
fn a_restore_of_what_does_not_exist_creates_no_target_and_reports_no_success() {
    let home = home_with_archives();
    for words in
        [&["nothing-such"][..], &["nothing-such", "-n"], &["--include", "*.odt"], &["--include", "*.odt", "-n"]]
    {
        let said = home.run(&[&["restore", "docs", "--to", "new/out"][..], words].concat());
        assert_eq!(said.code, 10, "{said:?}");
        assert!(!said.stderr.contains("restored") && !said.stderr.contains("would restore"), "{said:?}");
        assert!(!home.path("new").exists(), "{said:?}");
    }
    let error = home.run(&["--json", "restore", "docs", "nothing-such", "--to", "new"]).fails(10, &[]).json();
    assert_eq!(error.as_object().unwrap().keys().collect::<Vec<_>>(), ["error"], "{error}");
    assert!(!home.path("new").exists());
    let _ = home.run(&["restore", "docs", "docs/file.txt", "--to", "new/out"]).ok();
    assert!(home.path("new/out/docs/file.txt").exists());
}

#[test]
fn what_is_typed_wrong_is_an_error_with_the_way_out() {
    let home = home_with_archives();
    fs::write(home.path("file"), "x").unwrap();
    std::os::unix::fs::symlink("nowhere", home.path("dangling")).unwrap();
    std::os::unix::fs::symlink("ring", home.path("ring")).unwrap();
    let restore = |more: &[&str]| home.run(&[&["restore", "docs"][..], more].concat());
    let _ = restore(&["--to", "file"]).fails(1, &["file is not a folder", "another with --to"]);
    let _ = restore(&["--to", "file/new"]).fails(1, &["Not a directory", "another with --to"]);
    let _ =
        restore(&["--to", "dangling"]).fails(1, &["dangling: it is a link to a folder that does not exist", "next: "]);
    let _ = restore(&["--to", "ring"]).fails(1, &["symbolic links", "another folder with --to"]);
    let _ = restore(&["--to", "/proc/new"]).fails(1, &["/proc/new", "another folder with --to"]);
    for path in [&[][..], &["docs/sub"]] {
        let all = [&["--to", "out", "--strip", "9"][..], path].concat();
        let _ = restore(&all).fails(2, &["nothing is left to restore: --strip 9", "smaller --strip"]);
        let _ = restore(&[&all[..], &["-n"]].concat()).fails(2, &["nothing is left to restore"]);
    }
    let _ = restore(&["*.txt", "--to", "out"]).fails(10, &["there is no \"*.txt\"", "--include"]);
    let _ = restore(&["../docs", "--to", "out"]).fails(2, &["is not a path in an archive", "next: "]);
    assert!(!home.path("out").exists(), "nothing was restored");
}

#[test]
fn a_folder_of_another_user_stays_as_it_is_and_is_no_conflict() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let home = home_with_archives();
    fs::copy(home.path(&format!("backups/docs/{}", home.archive_files()[0])), home.path("a.tar.zst")).unwrap();
    fs::create_dir_all(home.path("shared/docs/sub")).unwrap();
    let file = home.path("shared/docs/file.txt");
    fs::copy(home.path("docs/file.txt"), &file).unwrap();
    let modified = home.path("docs/file.txt").metadata().unwrap().modified().unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    let folders = ["shared", "shared/docs", "shared/docs/sub"].map(|name| (home.path(name), 0o777));
    let files = [(home.path("a.tar.zst"), 0o444), (home.dir.path().to_owned(), 0o755), (file.clone(), 0o640)];
    for (path, mode) in folders.into_iter().chain(files) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let restore = |overwrite: &str| {
        let mut command = home.command(&["restore", "./a.tar.zst", "--to", "shared", "--overwrite", overwrite]);
        said(command.uid(65_534).gid(65_534))
    };
    let kept = ["docs/sub: its mode differs from the archive and cannot be set", "kept with another owner"];
    // A file can be replaced, so its mode is a difference; that of a folder cannot be changed.
    let _ = restore("never").fails(3, &["docs/file.txt: it has mode 0640 instead of 0644", kept[0]]);
    let _ = restore("if-changed").fails(3, &["1 member: the owner could not be set", kept[0]]);
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o644);
    for overwrite in ["never", "if-changed"] {
        let said = restore(overwrite).ok();
        assert!(kept.iter().all(|line| said.stderr.contains(line)) && !said.stderr.contains("conflicts"), "{said:?}");
    }
    let sub = home.path("shared/docs/sub").metadata().unwrap();
    assert_eq!((sub.mode() & 0o7777, sub.uid()), (0o777, 0));
}

//! `import` and `export`, and the text file that a service follows.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::environment::{Running, TestHome};

#[test]
fn export_after_import_gives_an_equal_file_and_importing_that_changes_nothing() {
    let home = TestHome::with_sources(&["documents"]);
    let text = "\u{feff}# the old file\r\ndocuments;9:00;docs\r\n\r\ndocuments;18:30;docs\r\n/srv/a;b;23:59;semi\r\n";
    fs::write(home.path("backup_schedules.txt"), text).unwrap();
    let said = home.run(&["import"]).ok();
    assert!(said.stderr.contains("2 schedules, 2 new"), "{said:?}");
    assert_eq!(home.run(&["list"]).ok().stdout, "0: documents;09:00,18:30;docs\n1: /srv/a;b;23:59;semi\n");
    let exported = home.run(&["export"]).ok().stdout;
    assert_eq!(exported, "documents;09:00;docs\ndocuments;18:30;docs\n/srv/a;b;23:59;semi\n");
    fs::write(home.path("again.txt"), &exported).unwrap();
    let said = home.run(&["import", "again.txt"]).ok();
    assert!(said.stderr.contains("0 new, 0 changed, 0 deleted, 2 unchanged"), "{said:?}");
    assert_eq!(home.run(&["export"]).ok().stdout, exported);
}

#[test]
fn windows_1252_accents_become_utf_8() {
    let home = TestHome::new();
    fs::write(home.path("backup_schedules.txt"), b"/srv/r\xe9sum\xe9s;08:00;caf\xe9\n").unwrap();
    let _ = home.run(&["import"]).ok();
    assert_eq!(home.run(&["export"]).ok().stdout, "/srv/résumés;08:00;café\n");
}

#[test]
fn empty_standard_input_deletes_no_schedule() {
    let home = TestHome::with_sources(&["documents"]);
    let _ = home.run(&["create", "documents;09:00;docs"]).ok();
    for format in ["text", "json"] {
        let said = home.run(&["import", "-", "--replace", "--format", format]);
        let _ = said.fails(2, &["standard input is empty", "delete NAME"]);
    }
    assert_eq!(home.run(&["list"]).ok().stdout, "0: documents;09:00;docs\n");
}

#[test]
fn all_bad_lines_are_reported_and_nothing_is_imported() {
    let home = TestHome::new();
    fs::write(
        home.path("backup_schedules.txt"),
        "/a;09:00;good\n/b;25:00;hour\n/c;09:00\n/d;09:61;minute\n/e;10:00;good\n",
    )
    .unwrap();
    let _ = home.run(&["import"]).fails(2, &["4 bad lines", "line 2", "line 3", "line 4"]);
    assert!(!home.path("backup.db").exists());
    fs::write(home.path("backup_schedules.txt"), "/a;09:00;good\n/e;10:00;good\n").unwrap();
    let _ = home.run(&["import"]).fails(2, &["line 2", "/a", "another path"]);
    let _ = home.run(&["import", "missing.txt"]).fails(10, &["missing.txt"]);
    let _ = home.run(&["import", "."]).fails(2, &["folder"]);
}

#[test]
fn import_from_standard_input_with_replace_and_export_with_force_and_json() {
    let home = TestHome::new();
    let import = |args: &[&str], text: &str| {
        let mut child = home.command(&[&["import", "-"], args].concat());
        let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    import(&[], "/a;09:00;one\n/b;10:00;two\n");
    import(&["--replace"], "/b;11:00;two\n/c;12:00;three\n");
    assert_eq!(home.run(&["export"]).ok().stdout, "/b;11:00;two\n/c;12:00;three\n");
    let _ = home.run(&["edit", "two", "--exclude", "*.iso", "--timezone", "Asia/Tokyo"]).ok();
    let _ = home.run(&["create", "/d", "--name", "often", "--cron", "*/5 * * * *"]).ok();
    let said = home.run(&["export", "out.txt"]).fails(3, &["often", "cron"]);
    assert!(said.stdout.is_empty());
    let _ = home.run(&["export", "out.txt"]).fails(2, &["out.txt", "--force"]);
    let orphaned_temporary_file = home.path(".backup-manager-0123456789abcdef.part");
    fs::write(&orphaned_temporary_file, "half").unwrap();
    let _ = home.run(&["export", "out.json", "--format", "json"]).ok();
    assert!(!orphaned_temporary_file.exists());
    let other = TestHome::new();
    fs::copy(home.path("out.json"), other.path("in.json")).unwrap();
    let _ = other.run(&["import", "in.json", "--format", "json"]).ok();
    assert_eq!(
        other.run(&["export", "--format", "json"]).ok().stdout,
        home.run(&["export", "--format", "json"]).ok().stdout
    );
}

#[test]
fn text_export_names_every_option_that_it_loses() {
    let home = TestHome::new();
    for (index, (option, lost)) in [
        (&["--timezone", "Asia/Tokyo"][..], "time zone"),
        (&["--exclude", "*.iso"], "excludes"),
        (&["-x"], "excludes"),
        (&["--compress", "zstd"], "compression"),
        (&["--keep-last", "3"], "keep rules"),
        (&["--catch-up", "skip"], "catch-up"),
        (&["--no-verify"], "--no-verify"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("s{index}");
        let _ = home.run(&[&["create", &format!("/a;09:00;{name}")][..], option].concat()).ok();
        let said = home.run(&["export"]).fails(3, &[&format!("{name} is in the text file without: {lost} ")]);
        assert!(said.stdout.ends_with(&format!("/a;09:00;{name}\n")), "{said:?}");
    }
    let plain = TestHome::new();
    let _ = plain.run(&["create", "/a;09:00;plain"]).ok();
    let _ = plain.run(&["export"]).ok();
    let _ = plain.run(&["pause", "plain"]).ok();
    let _ = plain.run(&["export"]).fails(3, &["plain is in the text file without: pause "]);
    let _ = plain.run(&["export", "--format", "json"]).ok();
}

#[test]
fn a_service_follows_the_file_and_an_unchanged_line_reverts_no_edit() {
    let home = TestHome::with_sources(&["a", "b"]);
    fs::write(home.path("backup_schedules.txt"), "a;03:00;one\nb;04:00;two\n").unwrap();
    let serve = || {
        let mut command = home.command(&["serve", "--import", "backup_schedules.txt"]);
        Running(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    };
    let list = || home.run(&["list"]).stdout;
    let mut service = serve();
    home.wait_until("import at the start", 10, || list() == "0: a;03:00;one\n1: b;04:00;two\n");
    let _ = home.run(&["edit", "one", "--at", "05:00"]).ok();
    let _ = home.run(&["delete", "two"]).ok();
    let _ = home.run(&["stop"]).ok();
    let _ = service.0.wait();

    let _service = serve();
    home.wait_until("service", 10, || home.run(&["status", "--service"]).code == 0);
    assert_eq!(list(), "0: a;05:00;one\n", "edit and deletion by command survive a restart");
    fs::write(home.path("new.txt"), "a;03:00;one\nb;04:00;two\nb;06:00;three\n").unwrap();
    fs::rename(home.path("new.txt"), home.path("backup_schedules.txt")).unwrap();
    home.wait_until("new line", 40, || list() == "0: a;05:00;one\n1: b;06:00;three\n");
    fs::write(home.path("backup_schedules.txt"), "a;03:00;one\nb;04:99;two\n").unwrap();
    home.wait_until("bad line in status", 40, || home.run(&["status"]).stdout.contains("line 2"));
    assert_eq!(list(), "0: a;05:00;one\n1: b;06:00;three\n", "the schedules stay as they were");
}

#[test]
fn a_schedule_that_comes_back_paused_is_reported_as_paused() {
    let home = TestHome::with_sources(&["a"]);
    fs::write(home.path("list.txt"), "a;09:00;docs\n").unwrap();
    let _ = home.run(&["import", "list.txt"]).ok();
    let _ = home.run(&["pause", "docs"]).ok();
    let _ = home.run(&["delete", "docs"]).ok();
    let said = home.run(&["import", "list.txt"]).ok();
    assert!(said.stderr.contains("docs is paused, as it was"), "{said:?}");
    assert!(said.stderr.contains("`backup-manager resume docs`"), "{said:?}");
    let _ = home.run(&["delete", "docs"]).ok();
    assert_eq!(home.run(&["--json", "import", "list.txt"]).ok().json()["paused"][0], "docs");
}

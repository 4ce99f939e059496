//! Runs that the service, or another user, executes for a command.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use crate::environment::{Running, TestHome, tar_lists};
use crate::service::{home_with_large, is_half_written, large_source, send, start_writing};
use crate::trust::home_of_nobody;

const NOBODY: u32 = 65_534;

/// A file that only root may read, in the source `a`.
fn add_secret(home: &TestHome) {
    let secret = home.path("a/secret");
    fs::write(&secret, "for root\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Checks that every archive belongs to nobody and lacks the file of root.
#[track_caller]
fn assert_without_secret(home: &TestHome) {
    for name in home.archive_files() {
        let path = home.path("backups/docs").join(name);
        assert_eq!(fs::metadata(&path).unwrap().uid(), NOBODY, "{path:?}");
        assert_eq!(tar_lists(&path), ["a/", "a/file.txt"], "{path:?}");
    }
}

/// Process of the last attempt at a run.
fn pid_of(home: &TestHome, run: i64) -> i64 {
    home.number(&format!("SELECT pid FROM attempt WHERE run_id = {run} ORDER BY attempt DESC LIMIT 1"))
}

#[test]
fn a_run_by_root_is_executed_with_the_rights_of_the_service_of_another_user() {
    let Some(home) = home_of_nobody() else { return };
    add_secret(&home);
    let _ = home.run_unprivileged(&["start"]).ok();
    let service = home.number("SELECT pid FROM worker WHERE role = 'service'");
    let said = home.run(&["run", "docs"]).fails(3, &["run @1 of docs is queued for the service"]);
    assert!(said.stdout.contains("docs: run @1 incomplete"), "{said:?}");
    assert_eq!(pid_of(&home, 1), service);
    let _ = home.run(&["run", "docs", "--no-verify"]).fails(3, &[]);
    assert_eq!(home.number("SELECT verify FROM run WHERE id = 2"), 0, "options of the run reach the service");
    assert_eq!(home.archive_files().len(), 2);
    assert_without_secret(&home);
    let _ = home.run(&["stop"]).ok();
}

#[test]
fn a_run_by_root_without_a_service_is_executed_with_the_rights_of_the_owner_of_the_schedules() {
    let Some(home) = home_of_nobody() else { return };
    add_secret(&home);
    let _ = home.run(&["run", "docs", "-q"]).fails(3, &["a/secret", "Permission denied"]);
    let json = home.run(&["--json", "run", "docs", "--no-verify"]);
    assert_eq!((json.code, json.json()[0]["state"].as_str()), (3, Some("incomplete")), "{json:?}");
    let now = home.run(&["create", "a;10:00;more", "--now"]).fails(3, &["running as uid 65534"]);
    assert!(now.stdout.contains("more: run @3 incomplete"), "{now:?}");
    let more = fs::read_dir(home.path("backups/more")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&more).unwrap();
    assert_without_secret(&home);
}

#[test]
fn root_that_became_the_owner_of_the_schedules_cannot_be_traced_by_that_owner() {
    let Some(home) = home_of_nobody() else { return };
    large_source(&home, 24);
    let _ = home.run_unprivileged(&["create", "large;09:00;large", "--compress", "zstd:19"]).ok();
    let with_group = ["setpriv", "--groups=4", env!("CARGO_BIN_EXE_backup-manager")];
    let running = start_writing(&home, &mut home.command_through(&with_group, &["run", "large", "-q"]));
    let proc = format!("/proc/{}", running.0.id());
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    let values = |name: &str| -> Vec<&str> {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().collect()
    };
    assert_eq!((values("Uid:"), values("Gid:")), (vec!["65534"; 4], vec!["65534"; 4]));
    assert_eq!(values("Groups:"), ["65534"], "no group of root is left");
    assert_eq!(values("CapEff:"), ["0000000000000000"]);
    // The kernel gives these files to root if the process may not be traced.
    assert_eq!(fs::metadata(format!("{proc}/environ")).unwrap().uid(), 0);
    send(running.0.id().into(), rustix::process::Signal::TERM);
}

#[test]
fn root_executes_no_run_itself_whatever_a_heartbeat_in_the_home_of_another_user_says() {
    let Some(home) = home_of_nobody() else { return };
    let uuid = "00000000-0000-4000-8000-000000000001";
    let row = format!("INSERT INTO worker VALUES ('{uuid}', 'service', 1, 'host', 1000, NULL)");
    let _ = rusqlite::Connection::open(home.path("backup.db")).unwrap().execute(&row, []).unwrap();
    fs::create_dir_all(home.path("backup.db.workers")).unwrap();
    let heartbeat = home.path("backup.db.workers").join(uuid);
    for uid in ["0", "null"] {
        fs::write(&heartbeat, format!(r#"{{"pid":2,"uid":{uid},"ticked_at_ms":1000,"trouble":null,"runs":[]}}"#))
            .unwrap();
        let locked = fs::File::open(&heartbeat).unwrap();
        rustix::fs::flock(&locked, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let _ = home.run(&["run", "docs", "--no-wait"]).ok();
        assert_eq!(home.archive_files(), [""; 0], "uid {uid}");
    }
}

#[test]
fn an_archive_that_a_service_of_root_makes_stays_with_root() {
    let Some(home) = home_of_nobody() else { return };
    add_secret(&home);
    let _ = home.run(&["start"]).ok();
    let _ = home.run_unprivileged(&["run", "docs"]).ok();
    let archive = home.path("backups/docs").join(&home.archive_files()[0]);
    assert_eq!(tar_lists(&archive), ["a/", "a/file.txt", "a/secret"]);
    let stat = fs::metadata(&archive).unwrap();
    assert_eq!((stat.uid(), stat.mode() & 0o777), (0, 0o400));
    let _ = home.run(&["stop"]).ok();
}

#[test]
fn what_a_restore_test_by_root_restores_stays_with_root() {
    let Some(home) = home_of_nobody() else { return };
    large_source(&home, 24);
    let _ = home.run_unprivileged(&["create", "large;09:00;large", "--compress", "zstd:1"]).ok();
    let _ = home.run(&["start"]).ok();
    let _ = home.run(&["run", "large"]).ok();
    let _ = home.run(&["stop"]).ok();
    let mut testing = Running(home.command(&["drill", "large"]).stderr(Stdio::null()).spawn().unwrap());
    let target = home.path("backups/.scratch/backup-manager-drill");
    home.wait_until("restored folder", 20, || target.join("large").exists());
    let stat = fs::metadata(&target).unwrap();
    assert_eq!((stat.uid(), stat.mode() & 0o777), (0, 0o700));
    assert!(testing.0.wait().unwrap().success());
}

#[test]
fn a_queued_run_returns_the_result_of_the_service() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "nowhere;10:00;lost"]);
    let _ = home.run(&["run", "docs", "--queue"]).fails(1, &["no service is running", "start"]);
    assert_eq!(home.number("SELECT count(*) FROM run"), 0, "nothing is queued without a service");
    let _ = home.run(&["start"]).ok();
    let service = home.number("SELECT pid FROM worker WHERE role = 'service'");
    let said = home.run(&["run", "docs", "--queue"]).ok();
    assert!(said.stdout.contains("docs: run @1 succeeded") && said.stdout.contains("next run: "), "{said:?}");
    assert_eq!(pid_of(&home, 1), service);
    let _ = home.run(&["run", "lost", "--queue"]).fails(1, &["nowhere cannot be opened"]);
    let queued = home.run(&["--json", "run", "docs", "--queue", "--no-wait"]).ok().json();
    assert_eq!(queued[0]["state"], "queued", "{queued}");
    home.wait_until("end of the run", 20, || home.number("SELECT count(*) FROM run WHERE state = 'succeeded'") == 2);
    let _ = home.run(&["run", "docs"]).ok();
    assert_ne!(pid_of(&home, 4), service, "a command of the same user executes its runs itself");
    let _ = home.run(&["stop"]).ok();
}

#[test]
fn a_run_that_is_queued_gets_a_number_that_no_archive_has() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    fs::copy(home.path("backup.db"), home.path("older.db")).unwrap();
    for _ in 0..2 {
        let _ = home.run(&["run", "docs", "-q"]).ok();
    }
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(home.path(&format!("backup.db{suffix}")));
    }
    fs::rename(home.path("older.db"), home.path("backup.db")).unwrap();
    // The disk of the archives is mounted after the start of the service.
    fs::rename(home.path("backups"), home.path("away")).unwrap();
    let _ = home.run(&["start"]).ok();
    fs::rename(home.path("away"), home.path("backups")).unwrap();
    let queued = home.run(&["--json", "run", "docs", "--queue"]).ok().json();
    assert_eq!(queued[0]["run"], 4, "{queued}");
    let _ = home.run(&["stop"]).ok();
}

#[test]
fn a_command_that_no_longer_waits_for_a_queued_run_says_how_to_cancel_it() {
    let home = home_with_large();
    let _ = home.run(&["start", "--threads", "1", "--nice", "0"]).ok();
    let service = u64::try_from(home.number("SELECT pid FROM worker WHERE role = 'service'")).unwrap();
    let wait = || {
        let mut command = home.command(&["run", "large", "--queue"]);
        let waiting = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        home.wait_until("half-written archive", 20, || is_half_written(&home));
        waiting
    };
    let waiting = wait();
    send(waiting.id().into(), rustix::process::Signal::INT);
    let output = waiting.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("run @1, which continues") && text.contains("`backup-manager cancel @1`"), "{text}");
    assert_eq!(home.number("SELECT count(*) FROM run WHERE state = 'running'"), 1);
    let _ = home.run(&["run", "large", "--queue", "--no-wait"]).fails(11, &["run @1 of large is running"]);
    // Another command waits for the same run, and it is cancelled.
    let mut waiting = Running(wait());
    let _ = home.run(&["cancel", "@1"]).ok();
    assert_eq!(waiting.0.wait().unwrap().code(), Some(130));
    // A service that dies is no reason to wait for ever.
    let waiting = wait();
    send(service, rustix::process::Signal::KILL);
    let output = waiting.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the service ended during run @2 of large") && text.contains("start"), "{text}");
}

#[test]
fn a_queued_run_that_will_be_tried_again_is_reported_as_failed_for_now() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let insert = "INSERT INTO run (schedule_id, trigger, scheduled_for_ms, state, attempt, tries, not_before_ms, \
                  queued_at_ms, error) VALUES (1, 'schedule', 1000, 'queued', 1, 1, \
                  CAST(unixepoch('subsec') * 1000 AS INTEGER) + 240000, 1000, 'the disk is full')";
    let _ = rusqlite::Connection::open(home.path("backup.db")).unwrap().execute(insert, []).unwrap();
    let _ = home.run(&["start"]).ok();
    // The folder of the schedule cannot be made, which another try may repair.
    fs::create_dir_all(home.path("backups")).unwrap();
    fs::write(home.path("backups/docs"), "in the way").unwrap();
    let said =
        home.run(&["run", "docs", "--queue"]).fails(1, &["run @1 of docs failed, and will be tried again at 20"]);
    assert!(said.stderr.contains("is not a folder"), "{said:?}");
    fs::remove_file(home.path("backups/docs")).unwrap();
    let _ = home.run(&["run", "docs", "--queue"]).ok();
    let runs = "SELECT count(*) FROM run WHERE state = 'succeeded' AND trigger = 'schedule'";
    assert_eq!(home.number(runs), 1, "the queued run was adopted each time");
    let _ = home.run(&["stop"]).ok();
}

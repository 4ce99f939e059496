//! `start`, `stop`, `serve`, `status`: the service as a process.

use std::fs;
use std::process::{Command, Stdio};

use crate::environment::{Running, TestHome};

/// Content that takes a while to pack at the highest level.
pub fn large_source(home: &TestHome, megabytes: usize) {
    fs::create_dir_all(home.path("large")).unwrap();
    let mut seed = 1_u64;
    for file in 0..megabytes {
        let mut bytes = Vec::with_capacity(1 << 20);
        while bytes.len() < 1 << 20 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(format!("{:x} some words to pack {}\n", seed >> 40, seed % 100).as_bytes());
        }
        fs::write(home.path("large").join(format!("{file:04}")), bytes).unwrap();
    }
}

/// Whether the archive of `large` is being written: the identity of the folder has a temporary file too.
pub fn is_half_written(home: &TestHome) -> bool {
    home.archive_files().iter().any(|name| name.starts_with(".large-") && name.contains(".part"))
}

/// A home with a schedule for such a source.
pub fn home_with_large() -> TestHome {
    let home = TestHome::new();
    large_source(&home, 24);
    let _ = home.run(&["create", "large;09:00;large", "--compress", "zstd:19"]).ok();
    home
}

/// Starts a command, and waits until an archive of `large` is being written.
pub fn start_writing(home: &TestHome, command: &mut Command) -> Running {
    let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    home.wait_until("half-written archive", 20, || is_half_written(home));
    running
}

#[test]
fn start_serves_in_the_background_and_stop_ends_it() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a", "--name", "often", "--cron", "* * * * * *"]).ok();
    let started = home.run(&["--json", "start"]).ok().json();
    let pid = started["pid"].as_u64().unwrap();
    let again = home.run(&["start"]).ok();
    assert!(again.stdout.contains(&format!("already runs as process {pid}")), "{again:?}");
    let _ = home.run(&["serve"]).fails(11, &[&pid.to_string(), "--join"]);
    home.wait_until("run", 10, || {
        home.run(&["--json", "history"]).json().as_array().unwrap().iter().any(|run| run["state"] == "succeeded")
    });
    let _ = home.run(&["status"]).ok();
    let _ = home.run(&["status", "--service"]).ok();
    let _ = home.run(&["stop"]).ok();
    // Where nobody reaps orphans, a zombie is left of it.
    let gone = fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    assert!(gone, "the process is gone");
    assert_eq!(fs::read_dir(home.path("backup.db.workers")).unwrap().count(), 0, "no heartbeat file is left");
    let stopped = home.run(&["stop"]).ok();
    assert!(stopped.stdout.contains("not running"), "{stopped:?}");
    assert_eq!(home.run(&["status", "--service"]).code, 1);
    let log = home.log("backup_service.log");
    assert!(log.contains("Info --> Instruction serve") && log.contains("Info stopped"), "{log}");
}

#[test]
fn start_warns_when_nothing_is_scheduled() {
    let home = TestHome::new();
    let started = home.run(&["start"]).ok();
    assert!(started.stderr.contains("nothing is scheduled"), "{started:?}");
    let _ = home.run(&["stop"]).ok();
}

#[test]
fn a_stop_request_lets_running_work_finish_and_now_cancels_it() {
    let home = TestHome::new();
    large_source(&home, 24);
    let create = ["create", "large", "--name", "large", "--cron", "* * * * * *", "--compress", "zstd:19"];
    let _ = home.run(&create).ok();
    let running = || home.number("SELECT count(*) FROM run WHERE state = 'running'") == 1;
    let _ = home.run(&["start", "--threads", "1", "--nice", "0"]).ok();
    home.wait_until("running run", 10, running);
    let _ = home.run(&["stop", "--now"]).ok();
    assert!(home.archive_files().is_empty(), "{:?}", home.archive_files());
    let waiting = home.query("SELECT tries, attempt FROM run WHERE state = 'queued'");
    assert_eq!(waiting.len(), 1, "it waits again");
    assert_eq!(format!("{:?}", waiting[0][0]), "Integer(0)", "and the try does not count");
    // Once more, and now it may finish.
    let _ = home.run(&["edit", "large", "--compress", "none"]).ok();
    let _ = home.run(&["start"]).ok();
    home.wait_until("finished run", 30, || home.number("SELECT count(*) FROM run WHERE state = 'succeeded'") > 0);
    let _ = home.run(&["stop"]).ok();
    assert_eq!(home.number("SELECT count(*) FROM run WHERE state = 'running'"), 0);
}

#[test]
fn a_service_killed_in_the_middle_is_recovered_at_the_next_start() {
    let home = TestHome::new();
    large_source(&home, 24);
    let _ = home.run(&["create", "large", "--name", "large", "--cron", "* * * * * *", "--compress", "zstd:19"]).ok();
    let mut service = start_writing(&home, &mut home.command(&["serve", "--threads", "1", "--nice", "0"]));
    service.0.kill().unwrap();
    service.0.wait().unwrap();
    assert!(home.archive_files().iter().any(|name| name.ends_with(".part")), "killed in the middle");
    let _ = home.run(&["edit", "large", "--compress", "none"]).ok();
    let _ = home.run(&["start"]).ok();
    let interrupted = "SELECT count(*) FROM attempt WHERE outcome = 'interrupted'";
    home.wait_until("interrupted attempt", 30, || home.number(interrupted) > 0);
    home.wait_until("success", 30, || home.number("SELECT count(*) FROM run WHERE state = 'succeeded'") > 0);
    let _ = home.run(&["stop"]).ok();
    assert!(!home.archive_files().iter().any(|name| name.ends_with(".part")), "{:?}", home.archive_files());
}

#[test]
fn a_second_signal_cancels_the_work_that_a_service_lets_finish_after_the_first() {
    let home = home_with_large();
    let _ = home.run(&["edit", "large", "--cron", "* * * * * *"]).ok();
    let serve = ["serve", "--threads", "1", "--nice", "0", "--grace", "3600"];
    let mut service = start_writing(&home, &mut home.command(&serve));
    send(service.0.id().into(), rustix::process::Signal::TERM);
    home.wait_until("drain", 10, || home.log("backup_service.log").contains("stopping: 1 run under way"));
    assert!(is_half_written(&home));
    send(service.0.id().into(), rustix::process::Signal::TERM);
    assert_eq!(service.0.wait().unwrap().code(), Some(0));
    assert!(home.archive_files().is_empty(), "{:?}", home.archive_files());
    assert_eq!(home.number("SELECT count(*) FROM run WHERE state = 'queued' AND tries = 0"), 1);
}

#[test]
fn a_service_whose_database_is_removed_ends_and_another_may_start() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs", "--name", "docs", "--cron", "* * * * * *"]).ok();
    let mut service = Running(home.command(&["serve", "-q"]).stderr(Stdio::null()).spawn().unwrap());
    home.wait_until("service", 10, || home.run(&["status", "--service"]).code == 0);
    for name in ["backup.db", "backup.db-wal", "backup.db-shm"] {
        fs::remove_file(home.path(name)).unwrap();
    }
    home.wait_until("end", 20, || service.0.try_wait().unwrap().is_some());
    let log = home.log("backup_service.log");
    assert!(log.contains("was removed or replaced"), "{log}");
    assert!(!home.archive_files().iter().any(|name| name.ends_with(".part")), "{:?}", home.archive_files());
    let _ = home.run(&["rescan"]).ok();
    let _ = home.run(&["verify"]).ok();
}

#[test]
fn a_run_of_a_dead_process_is_reported_and_blocks_no_command() {
    let home = home_with_large();
    let die = || {
        let mut run = start_writing(&home, &mut home.command(&["run", "large", "-q"]));
        run.0.kill().unwrap();
        run.0.wait().unwrap();
    };
    die();
    assert!(home.run(&["status"]).stdout.contains("interrupted, its process died"));
    assert_eq!(home.run(&["--json", "status"]).json()["schedules"][0]["running"]["cut_off"], true);
    let said = home.run(&["cancel", "large"]).ok();
    assert!(said.stderr.contains("no run of large is running or queued"), "{said:?}");
    assert!(!home.run(&["status"]).stdout.contains("running: large") && home.archive_files().is_empty());
    die();
    let _ = home.run(&["delete", "large", "--with-archives", "--yes"]).ok();
    assert!(home.archive_files().is_empty());
}

#[test]
fn several_services_and_commands_share_the_work_exactly_once() {
    let home = TestHome::with_sources(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        let _ = home.run(&["create", name, "--name", name, "--cron", "* * * * * *", "--no-verify"]).ok();
    }
    let serve = |join: bool| {
        let args: &[&str] = if join { &["serve", "--join", "-q"] } else { &["serve", "-q"] };
        Running(home.command(args).stderr(Stdio::null()).spawn().unwrap())
    };
    let mut services = vec![serve(false)];
    home.wait_until("service", 10, || home.run(&["status", "--service"]).code == 0);
    services.extend([serve(true), serve(true)]);
    let seconds: u64 = std::env::var("BACKUP_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while std::time::Instant::now() < until {
        let commands: Vec<_> = ["a", "b", "c", "a"]
            .iter()
            .map(|name| home.command(&["run", name, "-q"]).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        for command in commands {
            let output = command.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let _ = home.run(&["stop"]).ok();
    drop(services);
    // Every second of each schedule up to its watermark is one run or counted in exactly one.
    let rows = home.query(
        "SELECT name, (handled_until_ms - (SELECT min(scheduled_for_ms) FROM run WHERE schedule_id = schedule.id \
             AND coalesced = 0)) / 1000 AS span, \
         (SELECT sum(1 + coalesced) FROM run WHERE schedule_id = schedule.id AND trigger = 'schedule' \
             AND superseded_by IS NULL) AS counted, \
         (handled_until_ms / 1000) - (created_at_ms / 1000) AS expected FROM schedule",
    );
    for row in &rows {
        assert_eq!(row[2], row[3], "{row:?}: every second since it was made, once");
    }
    assert_eq!(home.number("SELECT count(*) FROM run WHERE state IN ('running', 'failed')"), 0);
    let twice = "SELECT count(*) FROM (SELECT 1 FROM run WHERE trigger = 'schedule' \
                 GROUP BY schedule_id, scheduled_for_ms HAVING count(*) > 1)";
    assert_eq!(home.number(twice), 0);
    assert!(!home.archive_files().iter().any(|name| name.ends_with(".part")));
}

#[test]
fn a_service_manager_is_notified_of_start_ticks_and_stop() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let socket = std::os::unix::net::UnixDatagram::bind(home.path("notify")).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let heard = || {
        let mut bytes = [0; 200];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let mut command = home.command(&["serve", "-q"]);
    let service = Running(command.env("NOTIFY_SOCKET", home.path("notify")).spawn().unwrap());
    assert!(heard().starts_with("READY=1\n"));
    assert_eq!(heard(), "WATCHDOG=1\n");
    let _ = home.run(&["stop"]).ok();
    let state = std::iter::repeat_with(heard).find(|state| state != "WATCHDOG=1\n").unwrap();
    assert!(state.starts_with("STOPPING=1\n"), "{state}");
    drop(service);
}

#[test]
fn a_setting_in_a_file_is_used_like_one_in_the_environment() {
    let home = TestHome::with_sources(&["a"]);
    fs::write(home.path("compress"), "gzip:3\n").unwrap();
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let file = home.path("compress");
    let shown = home.run_with(("BACKUP_COMPRESS_FILE", file.to_str().unwrap()), &["config", "compress"]).ok();
    assert!(shown.stdout.contains("gzip:3"), "{shown:?}");
    let _ = home.run_with(("BACKUP_COMPRESS_FILE", "/nowhere/x"), &["list"]).fails(2, &["/nowhere/x", "next:"]);
}

#[test]
fn a_foreign_archive_folder_makes_the_service_unhealthy() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    for beside in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(home.path(&format!("backup.db{beside}")));
    }
    let _ = home.run(&["start"]).ok();
    let status = home.run(&["status", "--service"]);
    assert_eq!(status.code, 1, "{status:?}");
    assert!(status.stdout.contains("another database"), "{status:?}");
    assert!(home.log("backup_service.log").contains("Error the archive folder"));
}

pub fn send(pid: u64, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn signals_do_not_end_the_background_service_and_hangup_reopens_its_log() {
    use rustix::process::Signal;
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let pid = home.run(&["--json", "start"]).ok().json()["pid"].as_u64().unwrap();
    for (signal, name) in [
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::VTALARM, "SIGVTALRM"),
        (Signal::PROF, "SIGPROF"),
        (Signal::IO, "SIGIO"),
    ] {
        send(pid, signal);
        home.wait_until(name, 10, || home.log("backup_service.log").contains(&format!("{name} is ignored")));
    }
    fs::rename(home.path("logs/backup_service.log"), home.path("logs/rotated")).unwrap();
    send(pid, Signal::HUP);
    home.wait_until("new log", 10, || home.log("backup_service.log").contains("SIGHUP: the log is open again"));
    assert_eq!(home.run(&["status", "--service"]).code, 0);
    let _ = home.run(&["stop"]).ok();
}

#[test]
fn hangup_drains_a_service_in_the_foreground_unless_it_was_ignored_before() {
    use rustix::process::Signal;
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let serves = || home.run(&["status", "--service"]).code == 0;
    for signal in [Signal::HUP, Signal::QUIT] {
        let mut service = Running(home.command_with_default_hangup(&["serve", "-q"]).spawn().unwrap());
        home.wait_until("service", 10, serves);
        send(service.0.id().into(), signal);
        assert_eq!(service.0.wait().unwrap().code(), Some(0), "{signal:?}: it drained");
    }
    let mut command = home.command_through(&["nohup", env!("CARGO_BIN_EXE_backup-manager")], &["serve", "-q"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut service = Running(command.spawn().unwrap());
    home.wait_until("service", 10, serves);
    send(service.0.id().into(), Signal::HUP);
    send(service.0.id().into(), Signal::USR1);
    home.wait_until("USR1", 10, || home.log("backup_service.log").contains("SIGUSR1 is ignored"));
    assert!(service.0.try_wait().unwrap().is_none() && serves());
    let _ = home.run(&["stop"]).ok();
    let _ = service.0.wait();
}

#[test]
fn hangup_cancels_a_run_which_leaves_no_file() {
    let home = home_with_large();
    let mut run = start_writing(&home, &mut home.command_with_default_hangup(&["run", "large", "-q"]));
    // A terminal that closes sends it twice: by the kernel and by the shell.
    send(run.0.id().into(), rustix::process::Signal::HUP);
    send(run.0.id().into(), rustix::process::Signal::HUP);
    assert_eq!(run.0.wait().unwrap().code(), Some(143));
    assert!(home.archive_files().is_empty(), "{:?}", home.archive_files());
    assert_eq!(home.number("SELECT count(*) FROM run WHERE state = 'cancelled'"), 1);
}

#[test]
fn a_run_that_cannot_be_recovered_is_an_error_and_not_a_wait() {
    let home = home_with_large();
    let mut run = start_writing(&home, &mut home.command(&["run", "large", "-q"]));
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    let _ = home.run(&["edit", "large", "--compress", "none"]).ok();
    let identity = home.path("backups/.backup-manager");
    let ours = fs::read(&identity).unwrap();
    fs::write(&identity, r#"{"database":"00000000-0000-4000-8000-000000000000"}"#).unwrap();
    for args in [&["run", "large"][..], &["run", "large", "--no-wait"], &["run", "--all"]] {
        let mut run = Running(home.command(args).stderr(Stdio::piped()).spawn().unwrap());
        home.wait_until("end of the run", 20, || run.0.try_wait().unwrap().is_some());
        let mut text = String::new();
        std::io::Read::read_to_string(run.0.stderr.as_mut().unwrap(), &mut text).unwrap();
        assert_eq!(run.0.wait().unwrap().code(), Some(1), "{text}");
        for word in ["run @1 of large was interrupted and cannot be recovered", "belongs to another database", "next:"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
    fs::write(&identity, ours).unwrap();
    let _ = home.run(&["run", "large"]).ok();
    assert_eq!(home.number("SELECT count(*) FROM run WHERE state = 'running'"), 0);
}

#[test]
fn a_background_service_inherits_no_pipe() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    // The shell passes its standard output on as descriptors 3 and 9, which no program marks as its own.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("exec 3>&1 9>&1; \"$0\" start >/dev/null 2>&1").arg(env!("CARGO_BIN_EXE_backup-manager"));
    shell.env_clear().env("TZ", "UTC").current_dir(home.dir.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut shell = Running(shell.spawn().unwrap());
    let mut pipe = shell.0.stdout.take().unwrap();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(std::io::Read::read_to_end(&mut pipe, &mut Vec::new()));
    });
    assert_eq!(shell.0.wait().unwrap().code(), Some(0));
    assert_eq!(home.run(&["status", "--service"]).code, 0, "the service runs");
    let end = ended.recv_timeout(std::time::Duration::from_secs(10));
    assert!(end.is_ok(), "the pipe has no end while the service runs");
    let _ = home.run(&["stop"]).ok();
}

#[test]
fn stop_goes_by_the_grace_period_of_the_running_service() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let _ = home.run(&["start", "--grace", "7200"]).ok();
    let worker = fs::read_dir(home.path("backup.db.workers")).unwrap().next().unwrap().unwrap().path();
    let heartbeat: serde_json::Value = serde_json::from_slice(&fs::read(worker).unwrap()).unwrap();
    assert_eq!(heartbeat["grace_ms"], 7_200_000);
    // The setting in the environment of the caller, even an invalid one, does not matter.
    let _ = home.run_with(("BACKUP_GRACE", "x"), &["stop"]).ok();
}

#[test]
fn a_schedule_deleted_while_it_runs_is_reported_and_its_run_can_be_cancelled() {
    let home = home_with_large();
    let mut run = start_writing(&home, &mut home.command(&["run", "large", "-q"]));
    let deleted = home.run(&["delete", "large"]).ok();
    assert!(deleted.stderr.contains("run @1 of large is still running"), "{deleted:?}");
    assert!(deleted.stderr.contains("backup-manager cancel @1"), "{deleted:?}");
    let status = home.run(&["status"]);
    assert!(status.stdout.contains("running: large @1 (schedule deleted): writing"), "{status:?}");
    let json = home.run(&["--json", "status"]).json();
    assert_eq!((json["running"][0]["run"].as_u64(), json["running"][0]["deleted"].as_bool()), (Some(1), Some(true)));
    let said = home.run(&["cancel", "@1"]).ok();
    assert!(said.stderr.contains("cancelling run @1 of large"), "{said:?}");
    assert_eq!(run.0.wait().unwrap().code(), Some(130));
    assert!(home.archive_files().is_empty(), "{:?}", home.archive_files());
    let again = home.run(&["cancel", "@1"]).ok();
    assert!(again.stderr.contains("run @1 of large has ended already: cancelled"), "{again:?}");
    let _ = home.run(&["cancel", "@9"]).fails(10, &["there is no run @9"]);
}

#[test]
fn status_names_a_run_that_waits_for_another_try() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    let at = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";
    let insert = format!(
        "INSERT INTO run (schedule_id, trigger, scheduled_for_ms, state, attempt, tries, not_before_ms, queued_at_ms, \
         error) VALUES (1, 'schedule', 1000, 'queued', 1, 1, {at} + 240000, 1000, 'the disk is full')"
    );
    let _ = rusqlite::Connection::open(home.path("backup.db")).unwrap().execute(&insert, []).unwrap();
    let status = home.run(&["status"]);
    assert!(status.stdout.contains("queued: docs @1 will be tried again at 20"), "{status:?}");
    assert!(status.stdout.contains(": the disk is full\n"), "{status:?}");
    let json = home.run(&["--json", "status"]).json();
    assert_eq!((json["queued"][0]["run"].as_u64(), json["queued"][0]["schedule"].as_str()), (Some(1), Some("docs")));
    assert_eq!(json["queued"][0]["error"], "the disk is full");
    let said = home.run(&["cancel", "@1"]).ok();
    assert!(said.stderr.contains("cancelled run @1 of docs, which was queued"), "{said:?}");
    assert_eq!(home.number("SELECT count(*) FROM run WHERE state = 'cancelled'"), 1);
}

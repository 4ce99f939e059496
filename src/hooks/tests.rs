//! Commands with the real shell.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities};

use super::*;
use crate::cancel::CancelToken;
use crate::clock::SystemClock;
use crate::home::HomeOptions;
use crate::hooks::{HookState, OUTPUT_LIMIT, RunFacts};
use crate::liveness::Worker;

const LONG: Duration = Duration::from_secs(60);

struct Place {
    dir: tempfile::TempDir,
    home: Home,
    clock: SystemClock,
    starter: Starter,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let options = HomeOptions { home: Some(dir.path().to_owned()), ..HomeOptions::default() };
        let home = Home::locate(&options, dir.path()).unwrap();
        fs::create_dir(home.workers()).unwrap();
        Place { dir, home, clock: SystemClock::new(), starter: Starter::new().unwrap() }
    }

    fn children(&self) -> Children<'_> {
        Children { home: &self.home, clock: &self.clock, starter: &self.starter, worker: Uuid::nil() }
    }

    fn command<'a>(&'a self, text: &'a str, time_limit: Duration) -> ChildCommand<'a> {
        let facts = RunFacts {
            schedule: "docs",
            run: 17,
            attempt: 2,
            is_again: false,
            source: self.dir.path(),
            archive: None,
            state: HookState::Starting,
            problems: 0,
            error: "",
        };
        let variables = facts.variables(&self.home);
        ChildCommand { what: "--before", text, run: 17, attempt: 2, variables, time_limit, keeps_capabilities: false }
    }

    fn run(&self, text: &str, time_limit: Duration) -> Outcome {
        self.children().run(&self.command(text, time_limit), Sink::Keep, &|| false).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.workers()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn number_in(&self, name: &str) -> i32 {
        let path = self.dir.path().join(name);
        loop {
            if let Some(number) = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
                return number;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn is_alive(pid: i32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.rsplit_once(')').unwrap().1.starts_with(" Z")
}

#[test]
fn the_exit_code_and_the_output_of_a_command_are_returned() {
    let place = Place::new();
    let outcome = place.run("echo out; echo no such table >&2; exit 3", LONG);
    assert_eq!(outcome.ended, Ended::Code(3));
    assert_eq!(String::from_utf8(outcome.output.clone()).unwrap().lines().count(), 2);
    assert_eq!(outcome.problem("--before").unwrap(), "--before ended with exit code 3: no such table");
    assert!(outcome.is_output_complete);
    assert_eq!(place.run("true", LONG).problem("--before"), None);
    assert_eq!(place.files(), [""; 0], "the files of a command that has ended are removed");
}

#[test]
fn a_command_that_hangs_is_ended_at_its_time_limit_with_its_whole_group() {
    let place = Place::new();
    let began = place.clock.monotonic();
    let outcome = place.run("sleep 1000 & echo $! >job; echo waiting; sleep 1000", Duration::from_millis(300));
    assert_eq!(outcome.ended, Ended::TimeLimit(Duration::from_millis(300)));
    assert_eq!(outcome.output, b"waiting\n");
    assert!(place.clock.monotonic() - began < Duration::from_secs(8), "SIGTERM was enough");
    assert!(!is_alive(place.number_in("job")));
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_ten_seconds_later() {
    let place = Place::new();
    let began = place.clock.monotonic();
    let outcome = place.run("trap '' TERM; echo $$ >pid; while :; do sleep 1; done", Duration::from_millis(100));
    assert!(matches!(outcome.ended, Ended::TimeLimit(_)));
    let took = place.clock.monotonic() - began;
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(15), "{took:?}");
    assert!(!is_alive(place.number_in("pid")));
}

#[test]
fn a_cancelled_run_ends_its_command() {
    let place = Place::new();
    let cancel = CancelToken::new();
    let outcome = std::thread::scope(|scope| {
        let command = place.command("echo $$ >pid; sleep 1000", LONG);
        let children = place.children();
        let cancel = &cancel;
        let run = scope.spawn(move || children.run(&command, Sink::Keep, &|| cancel.is_cancelled()).unwrap());
        place.number_in("pid");
        cancel.cancel_and_requeue();
        run.join().unwrap()
    });
    assert_eq!(outcome.ended, Ended::Cancelled);
    assert!(!is_alive(place.number_in("pid")));
}

#[test]
fn a_daemon_that_holds_the_output_open_is_not_waited_for_and_lives() {
    let place = Place::new();
    let began = place.clock.monotonic();
    let outcome = place.run("sleep 60 & echo $! >daemon; echo done", LONG);
    assert!(place.clock.monotonic() - began < Duration::from_secs(10));
    assert_eq!((outcome.ended, &*outcome.output), (Ended::Code(0), &b"done\n"[..]));
    assert!(!outcome.is_output_complete);
    let daemon = place.number_in("daemon");
    assert!(is_alive(daemon));
    rustix::process::kill_process(rustix::process::Pid::from_raw(daemon).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
}

#[test]
fn a_gigabyte_of_output_takes_no_memory_and_its_end_is_kept() {
    let place = Place::new();
    let before = peak_memory();
    let outcome = place.run("head -c 1000000000 /dev/zero | tr '\\0' x; echo end", LONG);
    assert_eq!(outcome.ended, Ended::Code(0));
    assert_eq!(outcome.output.len(), OUTPUT_LIMIT);
    assert!(outcome.output.ends_with(b"xxxend\n"));
    let grown = peak_memory() - before;
    assert!(grown < 16 << 20, "{grown} bytes more");
}

/// Returns the most memory that this process ever had, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_missing_shell_is_named_and_leaves_nothing() {
    let place = Place::new();
    let command = place.command("true", LONG);
    let error = place.children().run_by("/no/such/sh", &command, Sink::Keep, &|| false).unwrap_err();
    assert!(error.to_string().starts_with("--before cannot be started by /no/such/sh: No such file"), "{error}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_command_that_a_signal_ends_is_named_by_the_signal() {
    let place = Place::new();
    let outcome = place.run("echo half >&2; kill -SEGV $$", LONG);
    assert_eq!(outcome.problem("--before").unwrap(), "--before was ended by SIGSEGV: half");
}

#[test]
fn a_command_has_an_environment_of_its_own_and_no_input_and_no_descriptors() {
    let place = Place::new();
    // Cargo sets these for each test; they stand for the secrets of a service.
    assert!(std::env::var_os("CARGO_PKG_NAME").is_some() && std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    let held = fs::File::open("/dev/null").unwrap();
    let outcome = place.run("cat; cat /proc/self/environ | tr '\\0' '\\n'; echo; ls /proc/self/fd; pwd", LONG);
    drop(held);
    let text = String::from_utf8(outcome.output).unwrap();
    let allowed = ["PATH", "HOME", "LANG", "TZ", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "BACKUP_HOME", "BACKUP_DB"];
    for (name, _) in text.lines().filter_map(|line| line.split_once('=')) {
        assert!(allowed.contains(&name) || crate::hooks::VARIABLES.contains(&name), "{name} is inherited");
    }
    for line in ["BACKUP_SCHEDULE=docs", "BACKUP_RUN=17", "BACKUP_ATTEMPT=2", "BACKUP_AGAIN=", "BACKUP_STATE=starting"]
    {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    // The fourth is the folder that `ls` reads.
    let numbers: Vec<&str> = text.lines().filter(|line| line.parse::<u32>().is_ok()).collect();
    assert_eq!(numbers, ["0", "1", "2", "3"]);
    assert_eq!(text.lines().last().unwrap(), place.home.root().to_str().unwrap());
}

#[test]
fn a_command_has_neither_the_priority_nor_the_ambient_capabilities_nor_the_signals_of_this_process() {
    let place = Place::new();
    // The thread of this test is that of a service that has lowered itself; the starter is older.
    rustix::process::setpriority_process(None, 7).unwrap();
    let outcome = place.run("grep -E '^(CapAmb|SigBlk):' /proc/self/status; cut -d' ' -f19 /proc/self/stat", LONG);
    let text = String::from_utf8(outcome.output).unwrap();
    assert_eq!(text, "SigBlk:\t0000000000000000\nCapAmb:\t0000000000000000\n0\n");
}

/// Gives this thread an ambient capability; returns false if it has not the right to do that.
fn raise_ambient_capability() -> bool {
    let Ok(mut sets) = capabilities(None) else { return false };
    sets.inheritable |= CapabilitySet::DAC_READ_SEARCH;
    set_capabilities(None, sets)
        .and_then(|()| configure_capability_in_ambient_set(CapabilitySet::DAC_READ_SEARCH, true))
        .is_ok()
}

#[test]
fn ambient_capabilities_are_kept_from_commands_unless_that_is_asked_for() {
    if !raise_ambient_capability() {
        eprintln!("skipped: this process may not have ambient capabilities");
        return;
    }
    let place = Place::new();
    let text = "grep ^CapAmb /proc/self/status";
    for (keeps_capabilities, expected) in [(false, 0), (true, CapabilitySet::DAC_READ_SEARCH.bits())] {
        let command = ChildCommand { keeps_capabilities, ..place.command(text, LONG) };
        let outcome = place.children().run(&command, Sink::Keep, &|| false).unwrap();
        assert_eq!(String::from_utf8(outcome.output).unwrap(), format!("CapAmb:\t{expected:016x}\n"));
    }
}

#[test]
fn an_error_of_the_sink_ends_the_command() {
    let place = Place::new();
    let mut pieces = 0;
    let mut sink = |_: &[u8]| {
        pieces += 1;
        if pieces > 3 { Err(Error::new(ErrorKind::DiskFull, "the disk is full")) } else { Ok(()) }
    };
    let command = place.command("exec yes", LONG);
    let error = place.children().run(&command, Sink::To(&mut sink), &|| false).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::DiskFull, "--before: the disk is full"));
}

/// Starts a command of the run 17 as a program does that is killed at once: nobody waits for it.
fn leave_behind(place: &Place, text: &str, is_recorded: bool) {
    let file = HookFile::create(&place.home, 17, 1, Uuid::nil()).unwrap();
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(text).env("BACKUP_RUN", "17").current_dir(place.dir.path()).process_group(0);
    command.stdin(file.input().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    if is_recorded {
        file.record(child.id() as i32).unwrap();
    }
    // As the init process does.
    std::thread::spawn(move || drop({ child }.wait()));
}

#[test]
fn what_a_killed_program_left_is_ended_before_the_next_command_starts() {
    for is_recorded in [true, false] {
        let place = Place::new();
        leave_behind(&place, "echo $$ >pid; sleep 1000", is_recorded);
        let left = place.number_in("pid");
        assert!(is_alive(left));
        let outcome = place.run(&format!("kill -0 {left} 2>/dev/null && echo two are alive; echo next"), LONG);
        assert_eq!(String::from_utf8(outcome.output).unwrap(), "next\n", "recorded: {is_recorded}");
        assert_eq!(place.files(), [""; 0]);
    }
}

#[test]
fn a_command_that_a_live_worker_executes_is_left_alone() {
    let place = Place::new();
    leave_behind(&place, "echo $$ >pid; sleep 1000", true);
    let (left, record) = (place.number_in("pid"), place.home.workers().join("hook-17-1.group"));
    let alive = Worker::register(&place.home.workers(), 0o700, place.clock.now()).unwrap();
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace(&Uuid::nil().to_string(), &alive.uuid().to_string())).unwrap();
    let error = end_orphans(&place.home, 17, &place.clock).unwrap_err();
    assert!(error.kind() == crate::error::ErrorKind::Busy && is_alive(left), "{error}");
    drop(alive);
    end_orphans(&place.home, 17, &place.clock).unwrap();
    assert!(!is_alive(left));
}

#[test]
fn a_background_job_of_a_killed_program_is_found_by_its_group() {
    let place = Place::new();
    // The shell ends, and the job has not the locked file as its input.
    leave_behind(&place, "sleep 1000 & echo $! >pid", true);
    let left = place.number_in("pid");
    end_orphans(&place.home, 17, &place.clock).unwrap();
    assert!(!is_alive(left));
}

#[test]
fn a_process_that_got_the_number_of_the_group_later_is_left_alone() {
    let place = Place::new();
    let is_stopped = AtomicBool::new(false);
    let mut other = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let record =
        format!(r#"{{"boot":{},"group":{},"started":1}}"#, serde_json::json!(crate::source::boot_id()), other.id());
    fs::write(place.home.workers().join("hook-17-1.group"), record).unwrap();
    end_orphans(&place.home, 17, &place.clock).unwrap();
    is_stopped.store(other.try_wait().unwrap().is_some(), Ordering::SeqCst);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(!is_stopped.load(Ordering::SeqCst));
}

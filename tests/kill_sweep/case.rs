//! A command in a home with a fault at one of its calls, and what must be true afterwards.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use backup_manager::backup::{RecoveryReport, RunContext, Runner, recover};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::{Clock, SystemClock};
use backup_manager::home::{Home, HomeOptions};
use backup_manager::hooks::Starter;
use backup_manager::liveness::Worker;
use backup_manager::progress::{Observer, Problem, Progress};
use backup_manager::store::{Access, Bootstrap, Role, Store, WorkerRow};
use rustix::process::Signal;

use crate::beside::run_beside;
use crate::fault::{Fault, Outcome, calls, copy, program, run_with_fault, words};
use crate::state::{self, Describe};
use crate::stress::fast_folder;
use crate::stress::promises::{Promises, When, difference, snapshot};

/// A command in a home, and its result without a fault.
pub struct Scenario {
    pub kind: &'static str,
    name: String,
    template: PathBuf,
    command: Vec<String>,
    /// A command that has to succeed after it.
    then: Option<Vec<String>>,
    /// A command that may run while it is stopped.
    pub beside: Option<&'static str>,
    describe: Describe,
    /// The description of the home after the command.
    expected: String,
    /// Archives that existed before and after.
    kept: Vec<String>,
    /// The calls that the command makes, and how often.
    pub calls: Vec<(String, usize)>,
}

/// A scenario and a fault: at the Nth call of that name.
pub struct Case<'a> {
    pub scenario: &'a Scenario,
    pub call: String,
    pub n: usize,
    pub fault: Fault,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { kind, name, command, .. } = self.scenario;
        write!(f, "{kind}, {name}: {}: {} number {}, {:?}", command.join(" "), self.call, self.n, self.fault)
    }
}

impl Scenario {
    /// Runs the command once without a fault, and records the result.
    pub fn new(kind: &'static str, name: &str, template: PathBuf, command: &str, describe: Describe) -> Scenario {
        let folder = fast_folder();
        let home = folder.path().join("home");
        copy(&template, &home);
        let before = state::complete(&home);
        let command = words(command);
        let calls = calls(&home, &command);
        let expected = describe(&home).unwrap_or_else(|why| panic!("{kind}, {name}, without a fault: {why}"));
        let after = state::complete(&home);
        let kept = before.into_iter().filter(|file| after.contains(file)).collect();
        Scenario {
            kind,
            name: name.to_owned(),
            template,
            command,
            then: None,
            beside: None,
            describe,
            expected,
            kept,
            calls,
        }
    }

    /// Also requires that `command` succeeds in the end.
    pub fn then(self, command: &str) -> Scenario {
        Scenario { then: Some(words(command)), ..self }
    }

    /// Also runs `command` in another process while this one is stopped; it may remove archives with such names.
    pub fn beside(mut self, command: &'static str, removes: &str) -> Scenario {
        self.kept.retain(|file| !file.contains(removes));
        Scenario { beside: Some(command), ..self }
    }
}

impl Case<'_> {
    /// Plays the case; returns whether the fault happened, or what was violated.
    pub fn play(&self) -> Result<bool, String> {
        let folder = fast_folder();
        let home = folder.path().join("home");
        copy(&self.scenario.template, &home);
        if matches!(self.fault, Fault::Stop | Fault::StopAndKill) {
            return self.play_beside(&home);
        }
        let Outcome { output, is_injected, failed_on } =
            run_with_fault(&home, &self.scenario.command, &self.call, self.n, self.fault);
        let is_hit = output.as_ref().is_none_or(|output| !output.status.success());
        if let Some(output) = &output {
            self.check_message(output)?;
            if !is_hit
                && self.call == "fsync"
                && let Some(path) = failed_on.iter().find(|path| is_of_an_archive(&home, path))
                && !state::has_pending_deletion(&home)
            {
                return Err(format!("it succeeds although {path} was not synced"));
            }
            // A rescan starts with files that have no rows.
            if self.scenario.kind != "rescan" && home.join("backup.db").exists() && has_schema(&home) {
                assert_none(Promises::default().violations(&home, When::Always), "right after the fault")?;
            }
        }
        let message = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        let message = message.as_deref().unwrap_or("nothing, it waited");
        self.run_again(&home, message).map_err(|why| format!("{why}\n  (first output: {})", message.trim()))?;
        Ok(is_hit || is_injected)
    }

    /// Plays a case in which another command runs while the command is stopped.
    fn play_beside(&self, home: &Path) -> Result<bool, String> {
        let Some(beside) = self.scenario.beside else { return Ok(false) };
        let then = if matches!(self.fault, Fault::Stop) { Signal::CONT } else { Signal::KILL };
        let both = run_beside(home, &self.scenario.command, (&self.call, self.n), beside, then)?;
        let Some(other) = both.beside else { return Ok(false) };
        self.check_message(&both.stopped)?;
        self.check_message(&other)?;
        let message = String::from_utf8_lossy(&other.stderr);
        // What is the base of a running run is not removed.
        if !other.status.success() && other.status.code() != Some(11) {
            return Err(format!("{beside} beside it: {}: {message}", other.status));
        }
        assert_none(Promises::default().violations(home, When::Always), "after both")?;
        if then == Signal::CONT {
            let message = String::from_utf8_lossy(&both.stopped.stderr);
            if !both.stopped.status.success() {
                return Err(format!("it fails beside {beside}: {}: {message}", both.stopped.status));
            }
            self.check_described(home)?;
            assert_none(Promises::default().violations(home, When::Settled), "after both")?;
        }
        self.run_again(home, &message).map_err(|why| format!("{why}\n  ({beside} printed: {})", message.trim()))?;
        Ok(true)
    }

    /// Compares the home with that after the command without a fault. A base that another command removed before the
    /// run held it is none.
    fn check_described(&self, home: &Path) -> Result<(), String> {
        let (found, expected) = ((self.scenario.describe)(home)?, &self.scenario.expected);
        let is_beside = matches!(self.fault, Fault::Stop | Fault::StopAndKill);
        if found == *expected || is_beside && found.replace("base 0", "base 1") == *expected {
            return Ok(());
        }
        Err(format!("differs from a run without a fault: {}", difference(expected, &found).join("; ")))
    }

    /// A command that fails prints why, unless it was killed or cannot write; it never panics.
    fn check_message(&self, output: &Output) -> Result<(), String> {
        let message = String::from_utf8_lossy(&output.stderr);
        // 101 is a panic, printed or not.
        if message.contains("panicked") || output.status.code() == Some(101) {
            return Err(format!("it panics: {message}"));
        }
        let killed = output.status.signal().is_some();
        let is_mute = self.call == "write" && matches!(self.fault, Fault::Always(_));
        if !output.status.success() && !killed && !is_mute && message.trim().is_empty() {
            return Err(format!("{} without a message", output.status));
        }
        Ok(())
    }

    /// Runs the same command again without a fault, with the option that its first `message` asks for: it must succeed
    /// without any repair by hand.
    fn run_again(&self, home: &Path, message: &str) -> Result<(), String> {
        let Scenario { command, kept, then, .. } = self.scenario;
        // A restore that left something different from the archive reports it, and that this option replaces it.
        let replacing = [&command[..], &words("--overwrite always")].concat();
        match succeed(home, command) {
            Ok(()) if message.contains("attributes: ") => succeed(home, &replacing)?,
            Err(why)
                if (message.contains("failed: ") || message.contains("attributes: "))
                    && why.contains("conflicts: ") =>
            {
                succeed(home, &replacing)?;
            }
            result => result?,
        }
        self.check_described(home)?;
        let complete = state::complete(home);
        if let Some(lost) = kept.iter().find(|file| !complete.contains(file)) {
            return Err(format!("the archive {lost} is lost"));
        }
        if let Some(then) = then {
            succeed(home, then)?;
        }
        assert_none(state::leftovers(home), "after the next command")?;
        assert_none(Promises::default().violations(home, When::Settled), "after the next command")?;
        recover_again(home)
    }
}

/// Returns whether a path is that of an archive under its temporary name, or of the folder of a schedule's archives. A
/// copy of the database that fails is a warning: what the command did is in the database.
fn is_of_an_archive(home: &Path, path: &str) -> bool {
    let below = Path::new(path).strip_prefix(home.join("backups")).unwrap_or(Path::new(""));
    let is_copy = below.starts_with(".database");
    path.ends_with(".part") && below.components().count() == 2 && !is_copy || below == Path::new("docs")
}

fn succeed(home: &Path, command: &[String]) -> Result<(), String> {
    let output = program(home, command).output().expect("the program");
    let message = String::from_utf8_lossy(&output.stderr);
    let is_done_already = match command[0].as_str() {
        "create" => output.status.code() == Some(2) && message.contains("already used"),
        "forget" | "delete" => output.status.code() == Some(10),
        _ => false,
    };
    if output.status.success() || is_done_already {
        return Ok(());
    }
    Err(format!("{} after it: {}: {message}", command.join(" "), output.status))
}

fn has_schema(home: &Path) -> bool {
    rusqlite::Connection::open(home.join("backup.db"))
        .and_then(|c| {
            c.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'drill_of_schedule'", [], |r| r.get(0))
        })
        .is_ok_and(|found: i64| found == 1)
}

fn assert_none(violations: Vec<String>, when: &str) -> Result<(), String> {
    if violations.is_empty() { Ok(()) } else { Err(format!("{when}: {}", violations.join("; "))) }
}

struct Silent;

impl Observer for Silent {
    fn progress(&self, _: &Progress) {}
    fn problem(&self, _: &Problem) {}
    fn note(&self, _: &str) {}
}

/// Opens a home in this process.
pub fn home_and_store(folder: &Path) -> backup_manager::error::Result<(Home, Store)> {
    let places = HomeOptions { home: Some(folder.to_owned()), ..HomeOptions::default() };
    let home = Home::locate(&places, folder)?;
    let bootstrap = Bootstrap { access: Access::Existing, file_mode: 0o600, folder_mode: 0o700, notice: |_| () };
    let store = Store::open(home.db(), &bootstrap)?;
    Ok((home, store))
}

/// Runs recovery where nothing is left to recover: it must change nothing.
fn recover_again(folder: &Path) -> Result<(), String> {
    let (home, store) = home_and_store(folder).map_err(|e| e.to_string())?;
    let home = Arc::new(home);
    let clock = Arc::new(SystemClock::new());
    let now = clock.now();
    let worker = Worker::register(&home.workers(), 0o700, now).map_err(|e| e.to_string())?;
    let (uuid, host) = (worker.uuid(), "here".to_owned());
    let row = WorkerRow { uuid, role: Role::Command, pid: 1, host, started_at: now, stop_requested: None };
    let runner = Runner {
        home,
        store,
        clock,
        worker: Arc::new(worker),
        row: Arc::new(row),
        threads: 1,
        children: Starter::new().expect("threads"),
    };
    let before = snapshot(folder);
    let context = RunContext { cancel: &CancelToken::default(), observer: &Silent, is_foreground: false };
    let found = recover(&runner, &context).map_err(|e| e.to_string())?;
    let changed = difference(&before, &snapshot(folder));
    if found == RecoveryReport::default() && changed.is_empty() {
        return Ok(());
    }
    Err(format!("a second recovery changes something: {found:?}; {}", changed.join("; ")))
}

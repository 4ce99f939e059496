//! A command in a home, struck at one of its calls, and what must be true after.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use backup_manager::backup::{RecoveryReport, RunContext, Runner, recover};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::{Clock, SystemClock};
use backup_manager::home::{Home, Places};
use backup_manager::liveness::Worker;
use backup_manager::progress::{Observer, Problem, Progress};
use backup_manager::store::{Access, Bootstrap, Role, Store, WorkerRow};

use crate::looks::{self, Look};
use crate::prove::fast_folder;
use crate::prove::promises::{Promises, When, difference, picture};
use crate::strike::{Inject, Struck, calls, copy, program, strike, words};

/// A command in a home, and what an undisturbed course of it makes.
pub struct Scenario {
    pub kind: &'static str,
    name: String,
    template: PathBuf,
    command: Vec<String>,
    /// What has to succeed after it, too.
    then: Option<Vec<String>>,
    look: Look,
    /// How the home looks in the end.
    wanted: String,
    /// Archives that were there and stay.
    kept: Vec<String>,
    /// Where it can be struck: calls, and how often they are made.
    pub calls: Vec<(String, usize)>,
}

/// A scenario, and where it is struck.
pub struct Case<'a> {
    pub scenario: &'a Scenario,
    pub call: String,
    pub n: usize,
    pub inject: Inject,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { kind, name, command, .. } = self.scenario;
        write!(f, "{kind}, {name}: {}: {} number {}, {:?}", command.join(" "), self.call, self.n, self.inject)
    }
}

impl Scenario {
    /// Goes through it once, undisturbed.
    pub fn new(kind: &'static str, name: &str, template: PathBuf, command: &str, look: Look) -> Scenario {
        let folder = fast_folder();
        let home = folder.path().join("home");
        copy(&template, &home);
        let before = looks::complete(&home);
        let command = words(command);
        let calls = calls(&home, &command);
        let wanted = look(&home).unwrap_or_else(|why| panic!("{kind}, {name}, undisturbed: {why}"));
        let after = looks::complete(&home);
        let kept = before.into_iter().filter(|file| after.contains(file)).collect();
        Scenario { kind, name: name.to_owned(), template, command, then: None, look, wanted, kept, calls }
    }

    /// Also asks that `command` succeeds in the end.
    pub fn then(self, command: &str) -> Scenario {
        Scenario { then: Some(words(command)), ..self }
    }
}

impl Case<'_> {
    /// Plays the case; says whether the command was struck at all, or what does not hold.
    pub fn play(&self) -> Result<bool, String> {
        let folder = fast_folder();
        let home = folder.path().join("home");
        copy(&self.scenario.template, &home);
        let Struck { output, on } = strike(&home, &self.scenario.command, &self.call, self.n, self.inject);
        let struck = output.as_ref().is_none_or(|output| !output.status.success());
        if let Some(output) = &output {
            self.has_a_word(output)?;
            if !struck
                && self.call == "fsync"
                && let Some(path) = on.iter().find(|path| is_of_an_archive(&home, path))
                && !looks::owes_deletion(&home)
            {
                return Err(format!("it succeeds although {path} was not synced"));
            }
            // A rescan begins with files that have no rows.
            if self.scenario.kind != "rescan" && home.join("backup.db").exists() && has_schema(&home) {
                none_broken(Promises::default().broken(&home, When::Always), "at once")?;
            }
        }
        let said = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        let said = said.as_deref().unwrap_or("nothing, it waited");
        self.go_on(&home, said).map_err(|why| format!("{why}\n  (it had said: {})", said.trim()))?;
        Ok(struck)
    }

    /// Whatever ends a command but death, it says why, and never by a panic.
    fn has_a_word(&self, output: &Output) -> Result<(), String> {
        let said = String::from_utf8_lossy(&output.stderr);
        // 101 is a panic, said or not.
        if said.contains("panicked") || output.status.code() == Some(101) {
            return Err(format!("it panics: {said}"));
        }
        let killed = output.status.signal().is_some();
        let mute = self.call == "write" && matches!(self.inject, Inject::ForGood(_));
        if !output.status.success() && !killed && !mute && said.trim().is_empty() {
            return Err(format!("{} without a word", output.status));
        }
        Ok(())
    }

    /// The same command again, undisturbed, with what it `said` that it needs for that: it must succeed, with nothing
    /// put right by hand.
    fn go_on(&self, home: &Path, said: &str) -> Result<(), String> {
        let Scenario { command, look, wanted, kept, then, .. } = self.scenario;
        // A restore that left something otherwise than the archive has it says so, and that this replaces it.
        let replacing = [&command[..], &words("--overwrite always")].concat();
        match succeed(home, command) {
            Ok(()) if said.contains("attributes: ") => succeed(home, &replacing)?,
            Err(why) if said.contains("failed: ") && why.contains("conflicts: ") => succeed(home, &replacing)?,
            result => result?,
        }
        let found = look(home)?;
        if found != *wanted {
            return Err(format!("not as after an undisturbed course: {}", difference(wanted, &found).join("; ")));
        }
        let there = looks::complete(home);
        if let Some(gone) = kept.iter().find(|file| !there.contains(file)) {
            return Err(format!("the archive {gone} is gone"));
        }
        if let Some(then) = then {
            succeed(home, then)?;
        }
        none_broken(looks::left_over(home), "after the next command")?;
        none_broken(Promises::default().broken(home, When::Settled), "after the next command")?;
        recover_again(home)
    }
}

/// Says whether a path is that of an archive that gets its name later, or of the folder of a schedule's archives.
fn is_of_an_archive(home: &Path, path: &str) -> bool {
    let below = Path::new(path).strip_prefix(home.join("backups")).unwrap_or(Path::new(""));
    path.ends_with(".part") && below.components().count() == 2 || below == Path::new("docs")
}

fn succeed(home: &Path, command: &[String]) -> Result<(), String> {
    let output = program(home, command).output().expect("the program");
    let said = String::from_utf8_lossy(&output.stderr);
    let done_before = match command[0].as_str() {
        "create" => output.status.code() == Some(2) && said.contains("already used"),
        "forget" | "delete" => output.status.code() == Some(10),
        _ => false,
    };
    if output.status.success() || done_before {
        return Ok(());
    }
    Err(format!("{} after it: {}: {said}", command.join(" "), output.status))
}

fn has_schema(home: &Path) -> bool {
    rusqlite::Connection::open(home.join("backup.db"))
        .and_then(|c| {
            c.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'drill_of_schedule'", [], |r| r.get(0))
        })
        .is_ok_and(|found: i64| found == 1)
}

fn none_broken(broken: Vec<String>, when: &str) -> Result<(), String> {
    if broken.is_empty() { Ok(()) } else { Err(format!("{when}: {}", broken.join("; "))) }
}

struct Silent;

impl Observer for Silent {
    fn progress(&self, _: &Progress) {}
    fn problem(&self, _: &Problem) {}
    fn note(&self, _: &str) {}
}

/// Opens a home in this process.
pub fn home_and_store(folder: &Path) -> backup_manager::error::Result<(Home, Store)> {
    let places = Places { home: Some(folder.to_owned()), ..Places::default() };
    let home = Home::locate(&places, folder)?;
    let bootstrap = Bootstrap { access: Access::Existing, file_mode: 0o600, folder_mode: 0o700 };
    let store = Store::open(home.db(), &bootstrap)?;
    Ok((home, store))
}

/// Recovery where there is nothing left to recover: it must change nothing.
fn recover_again(folder: &Path) -> Result<(), String> {
    let (home, store) = home_and_store(folder).map_err(|e| e.to_string())?;
    let home = Arc::new(home);
    let clock = Arc::new(SystemClock::new());
    let now = clock.now();
    let worker = Worker::register(&home.workers(), 0o700, now).map_err(|e| e.to_string())?;
    let (uuid, host) = (worker.uuid(), "here".to_owned());
    let row = WorkerRow { uuid, role: Role::Command, pid: 1, host, started_at: now, stop_requested: None };
    let runner = Runner { home, store, clock, worker: Arc::new(worker), row: Arc::new(row), threads: 1 };
    let before = picture(folder);
    let context = RunContext { cancel: &CancelToken::default(), observer: &Silent, is_foreground: false };
    let found = recover(&runner, &context).map_err(|e| e.to_string())?;
    let changed = difference(&before, &picture(folder));
    if found == RecoveryReport::default() && changed.is_empty() {
        return Ok(());
    }
    Err(format!("a second recovery changes something: {found:?}; {}", changed.join("; ")))
}

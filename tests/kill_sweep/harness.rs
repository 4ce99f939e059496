//! Homes to begin from, commands to strike at, and what must be true after.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_manager::clock::{Clock, SystemClock};
use backup_manager::home::{Home, Places};
use backup_manager::report::{Observer, Problem, Progress};
use backup_manager::runner::{Cancel, Conduct, Recovered, Runner, recover};
use backup_manager::store::{Access, Bootstrap, Role, Store, WorkerRow};
use backup_manager::worker::Worker;

use crate::prove::fast_folder;
use crate::prove::promises::{Promises, When, column, difference, picture};

/// The calls that change what others see, and opening.
const CALLS: &str = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,openat,\
                     mkdir,ftruncate,symlink,symlinkat,fchmod";
/// After that a command is taken to wait for better times, as it does where the database cannot be written.
const PATIENCE: Duration = Duration::from_secs(3);

/// Returns why nothing can be injected here, if so.
pub fn cannot() -> Option<String> {
    let tried = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO:when=1", "true"])
        .stderr(Stdio::null())
        .status();
    match tried {
        Ok(status) if status.success() => None,
        Ok(_) => Some("strace may not trace here".to_owned()),
        Err(error) => Some(format!("strace: {error}")),
    }
}

/// What happens at a call.
#[derive(Clone, Copy, Debug)]
pub enum Inject {
    Kill,
    Once(&'static str),
    ForGood(&'static str),
}

/// Homes in states to begin from.
pub struct Templates {
    folder: tempfile::TempDir,
    left_behind: Vec<String>,
}

/// A command in one of these homes.
pub struct Scenario {
    pub name: String,
    template: PathBuf,
    command: Vec<String>,
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
        write!(f, "{}, {} number {}, {:?}", self.scenario.name, self.call, self.n, self.inject)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn program(home: &Path, command: &[String]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    program.args(command);
    clean(&mut program, home);
    program
}

fn clean(command: &mut Command, home: &Path) {
    command.env_clear().env("TZ", "UTC").env("PATH", "/usr/bin:/bin").current_dir(home).stdin(Stdio::null());
}

fn traced(home: &Path, command: &[String], options: &[&str]) -> Command {
    let mut strace = Command::new("/usr/bin/strace");
    strace.args(["-f", "-qq"]).args(options).arg(env!("CARGO_BIN_EXE_backup-manager")).args(command);
    clean(&mut strace, home);
    strace
}

fn must(home: &Path, command: &str) {
    let output = program(home, &words(command)).output().expect("the program");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(copied.success());
}

impl Templates {
    pub fn make() -> Templates {
        let folder = fast_folder();
        let mut templates = Templates { folder, left_behind: Vec::new() };
        let empty = templates.path("empty");
        fs::create_dir_all(empty.join("docs/below")).unwrap();
        for file in 0..5 {
            fs::write(empty.join(format!("docs/below/file {file}")), vec![file; 3_000]).unwrap();
        }
        fs::write(empty.join("backup_schedules.txt"), "docs;09:00;one\ndocs;10:00;two\n").unwrap();
        for format in ["none", "gzip", "zstd"] {
            let (first, second) =
                (templates.path(&format!("first-{format}")), templates.path(&format!("second-{format}")));
            copy(&empty, &first);
            must(&first, &format!("create docs --name docs --at 9:00 --compress {format}"));
            copy(&first, &second);
            must(&second, "run docs");
            fs::write(second.join("docs/below/file 1"), "another").unwrap();
        }
        templates.leave_behind();
        templates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Kills a first backup here and there, and keeps each state that differs in what recovery has to do.
    fn leave_behind(&mut self) {
        let mut kinds = BTreeMap::new();
        let scenario = Scenario { name: String::new(), template: self.path("first-zstd"), command: words("run docs") };
        for (call, most) in scenario.calls() {
            if !["fsync", "renameat2", "pwrite64", "symlink", "symlinkat"].contains(&call.as_str()) {
                continue;
            }
            for n in (1..=most).step_by(if call == "pwrite64" { 7 } else { 1 }) {
                let home = self.path(&format!("left-{call}-{n}"));
                copy(&scenario.template, &home);
                strike(&home, &scenario.command, &call, n, Inject::Kill);
                match state(&home) {
                    Some(state) if !kinds.contains_key(&state) => drop(kinds.insert(state, home)),
                    _ => fs::remove_dir_all(&home).unwrap(),
                }
            }
        }
        self.left_behind = kinds.into_values().map(|home| home.display().to_string()).collect();
    }

    pub fn scenarios(&self) -> Vec<Scenario> {
        let mut scenarios = Vec::new();
        for format in ["none", "gzip", "zstd"] {
            for which in ["first", "second"] {
                let name = format!("{which}-{format}");
                let template = self.path(&name);
                scenarios.push(Scenario {
                    name: format!("{which} backup, {format}"),
                    template,
                    command: words("run docs"),
                });
            }
        }
        for command in ["import", "create docs --name one --at 9:00"] {
            let (name, template) = (command.to_owned(), self.path("empty"));
            scenarios.push(Scenario { name, template, command: words(command) });
        }
        for left in &self.left_behind {
            let name = format!("recovery of {}", left.rsplit('/').next().unwrap_or(left));
            scenarios.push(Scenario { name, template: left.into(), command: words("run docs") });
        }
        scenarios
    }
}

/// Says in a word what a killed backup left; `None` if nothing.
fn state(home: &Path) -> Option<String> {
    let connection = rusqlite::Connection::open(home.join("backup.db")).ok()?;
    let question = "SELECT state || '|' || file_name || '|' || coalesce(temporary_name, '') FROM archive";
    let row = column(&connection, question).pop()?;
    let parts: Vec<&str> = row.split('|').collect();
    let there = |name: &str| !name.is_empty() && home.join("backups").join(name).exists();
    let link = home.join("backups/docs.tar.zst").is_symlink();
    let chunks = !column(&connection, "SELECT id FROM chunk").is_empty();
    Some(format!("{} {} {} {link} {chunks}", parts[0], there(parts[1]), there(parts[2])))
}

/// Runs a command with something happening at its Nth call. `None`: it went on waiting, and was killed.
fn strike(home: &Path, command: &[String], call: &str, n: usize, inject: Inject) -> Option<Output> {
    let what = match inject {
        Inject::Kill => format!("inject={call}:signal=SIGKILL:when={n}"),
        Inject::Once(error) => format!("inject={call}:error={error}:when={n}"),
        Inject::ForGood(error) => format!("inject={call}:error={error}:when={n}+"),
    };
    let trace = format!("trace={call}");
    let mut strace = traced(home, command, &["-o", "/dev/null", "-e", &trace, "-e", &what]);
    // Files, not pipes: nobody reads while it runs.
    let (out, err) = (home.join("out"), home.join("err"));
    strace.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap()).process_group(0);
    let mut child = strace.spawn().expect("strace");
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break Some(status);
        }
        if started.elapsed() > PATIENCE {
            let group = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = child.wait();
            // The tracer is gone; what it traced may need an instant longer.
            while rustix::process::test_kill_process_group(group).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (stdout, stderr) = (fs::read(&out).unwrap_or_default(), fs::read(&err).unwrap_or_default());
    let _ = (fs::remove_file(out), fs::remove_file(err));
    status.map(|status| Output { status, stdout, stderr })
}

impl Scenario {
    /// Which calls an undisturbed course makes, and how many of each the busiest thread makes: strace counts by thread.
    pub fn calls(&self) -> Vec<(String, usize)> {
        let folder = fast_folder();
        let (home, log) = (folder.path().join("home"), folder.path().join("log"));
        copy(&self.template, &home);
        let trace = format!("trace={}", CALLS.replace(' ', ""));
        let output = traced(&home, &self.command, &["-o", &log.display().to_string(), "-e", &trace]).output().unwrap();
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
        for line in fs::read_to_string(&log).unwrap().lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
            if call.bytes().all(|b| b.is_ascii_alphanumeric()) {
                *counts.entry((call.to_owned(), thread.to_owned())).or_default() += 1;
            }
        }
        let mut most: BTreeMap<String, usize> = BTreeMap::new();
        for ((call, _), count) in counts {
            let entry = most.entry(call).or_default();
            *entry = count.max(*entry);
        }
        most.into_iter().collect()
    }
}

impl Case<'_> {
    /// Plays the case; says whether the command was struck at all, or what does not hold.
    pub fn play(&self) -> Result<bool, String> {
        let folder = fast_folder();
        let home = folder.path().join("home");
        copy(&self.scenario.template, &home);
        let output = strike(&home, &self.scenario.command, &self.call, self.n, self.inject);
        let mut promises = Promises::default();
        let mut struck = true;
        if let Some(output) = &output {
            let said = String::from_utf8_lossy(&output.stderr);
            // 101 is a panic, said or not.
            if said.contains("panicked") || output.status.code() == Some(101) {
                return Err(format!("it panics: {said}"));
            }
            struck = !output.status.success();
            let killed = output.status.signal().is_some();
            let mute = self.call == "write" && matches!(self.inject, Inject::ForGood(_));
            if struck && !killed && !mute && said.trim().is_empty() {
                return Err(format!("{} without a word", output.status));
            }
            if home.join("backup.db").exists() && has_schema(&home) {
                none_broken(promises.broken(&home, When::Always), "at once")?;
            }
        }
        self.go_on(&home)?;
        none_broken(promises.broken(&home, When::Settled), "after the next command")?;
        recover_again(&home)?;
        Ok(struck)
    }

    /// The next command, undisturbed: it must succeed, with nothing put right by hand.
    fn go_on(&self, home: &Path) -> Result<(), String> {
        let again = |command: &[String]| {
            let output = program(home, command).output().expect("the program");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), said, String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (code, said, _) = again(&self.scenario.command);
        let done_before = self.scenario.command[0] == "create" && code == Some(2) && said.contains("already used");
        if code != Some(0) && !done_before {
            return Err(format!("the same command again: {code:?}: {said}"));
        }
        if self.scenario.command[0] != "run" {
            let wanted = if self.scenario.command[0] == "import" { 2 } else { 1 };
            let (_, said, listed) = again(&words("list --plain"));
            if listed.lines().count() != wanted {
                return Err(format!("{wanted} schedules wanted: {listed} {said}"));
            }
            let (code, said, _) = again(&words("run one"));
            if code != Some(0) {
                return Err(format!("a run after it: {code:?}: {said}"));
            }
        }
        Ok(())
    }
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

/// Recovery where there is nothing left to recover: it must change nothing.
fn recover_again(folder: &Path) -> Result<(), String> {
    let places = Places { home: Some(folder.to_owned()), ..Places::default() };
    let home = Arc::new(Home::locate(&places, folder).map_err(|e| e.to_string())?);
    let bootstrap = Bootstrap { access: Access::Create, file_mode: 0o600, folder_mode: 0o700 };
    let store = Store::open(home.db(), &bootstrap).map_err(|e| e.to_string())?;
    let clock = Arc::new(SystemClock::new());
    let now = clock.now();
    let worker = Worker::register(&home.workers(), 0o700, now).map_err(|e| e.to_string())?;
    let (uuid, host) = (worker.uuid(), "here".to_owned());
    let row = WorkerRow { uuid, role: Role::Command, pid: 1, host, started_at: now, stop_requested: None };
    let runner = Runner { home, store, clock, worker: Arc::new(worker), row: Arc::new(row), threads: 1 };
    let before = picture(folder);
    let conduct = Conduct { cancel: &Cancel::default(), observer: &Silent, foreground: false };
    let found = recover(&runner, &conduct).map_err(|e| e.to_string())?;
    let changed = difference(&before, &picture(folder));
    if found == Recovered::default() && changed.is_empty() {
        return Ok(());
    }
    Err(format!("a second recovery changes something: {found:?}; {}", changed.join("; ")))
}

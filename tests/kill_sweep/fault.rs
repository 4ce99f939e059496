//! Runs the program, counts its system calls, and injects a fault at one of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The calls that change what other processes see, and the calls that open files.
const CALLS: &str = "write,pwrite64,fsync,fdatasync,syncfs,rename,renameat,renameat2,link,linkat,unlink,unlinkat,\
                     open,openat,openat2,mkdir,mkdirat,mknodat,ftruncate,symlink,symlinkat,chmod,fchmod,fchmodat,\
                     fchown,fchownat,utimensat,fsetxattr,copy_file_range,ioctl";
/// After this time a command is taken to wait, as it does while the database cannot be written.
const MAX_WAIT: Duration = Duration::from_millis(300);
/// How often the command is polled.
pub const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// What happens at a call: the process is killed or stopped, or the call fails once, or from then on.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Kill,
    /// It is stopped, and another command runs meanwhile; then it continues.
    Stop,
    /// The same, but then it is killed.
    StopAndKill,
    Once(&'static str),
    Always(&'static str),
}

/// Returns why no fault can be injected here, or `None` if it can.
pub fn why_unsupported() -> Option<String> {
    let trial = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO:when=1", "true"])
        .stderr(Stdio::null())
        .status();
    match trial {
        Ok(status) if status.success() => None,
        Ok(_) => Some("strace is not permitted to trace".to_owned()),
        Err(error) => Some(format!("strace: {error}")),
    }
}

pub fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

pub fn program(home: &Path, command: &[String]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    program.args(command);
    set_environment(&mut program, home);
    program
}

fn set_environment(command: &mut Command, home: &Path) {
    command.env_clear().env("TZ", "UTC").env("PATH", "/usr/bin:/bin").current_dir(home).stdin(Stdio::null());
}

pub fn traced(home: &Path, command: &[String], options: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq"]).args(options).arg(env!("CARGO_BIN_EXE_backup-manager")).args(command);
    set_environment(&mut strace, home);
    strace
}

/// Runs a command that has to succeed.
pub fn run(home: &Path, command: &str) {
    let output = program(home, &words(command)).output().expect("the program");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(copied.success());
}

/// Runs a command without a fault, and returns which calls it makes and how many of each its busiest thread makes:
/// strace counts by thread.
pub fn calls(home: &Path, command: &[String]) -> Vec<(String, usize)> {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let trace = format!("trace={}", CALLS.replace(' ', ""));
    let options = ["-o", &log.path().display().to_string(), "-e", &trace];
    let output = traced(home, command, &options).output().expect("strace");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log.path()).expect("a trace").lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if call.bytes().all(|b| b.is_ascii_alphanumeric()) {
            *counts.entry((call.to_owned(), thread.to_owned())).or_default() += 1;
        }
    }
    let mut max_by_call: BTreeMap<String, usize> = BTreeMap::new();
    for ((call, _), count) in counts {
        let entry = max_by_call.entry(call).or_default();
        *entry = count.max(*entry);
    }
    max_by_call.into_iter().collect()
}

/// The outcome of a command with a fault.
pub struct Outcome {
    /// `None` if it kept waiting and was killed.
    pub output: Option<Output>,
    /// A call failed.
    pub is_injected: bool,
    /// The paths of the open files on which the failed calls were made.
    pub failed_on: Vec<String>,
}

/// Runs a command with a fault at its Nth call.
pub fn run_with_fault(home: &Path, command: &[String], call: &str, n: usize, fault: Fault) -> Outcome {
    // With `--seccomp-bpf` the other calls run at full speed; strace 6.1 then injects errors, but no signals.
    let (speed, what) = match fault {
        Fault::Kill | Fault::Stop | Fault::StopAndKill => ("-qq", format!("inject={call}:signal=SIGKILL:when={n}")),
        Fault::Once(error) => ("--seccomp-bpf", format!("inject={call}:error={error}:when={n}")),
        Fault::Always(error) => ("--seccomp-bpf", format!("inject={call}:error={error}:when={n}+")),
    };
    let trace = format!("trace={call}");
    // Files, not pipes: nothing reads the output while it runs.
    let (out, err, log) = (home.join("out"), home.join("err"), home.join("log"));
    let options = [speed, "-y", "-o", &log.display().to_string(), "-e", &trace, "-e", &what];
    let mut strace = traced(home, command, &options);
    strace.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
    let mut child = strace.spawn().expect("strace");
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break Some(status);
        }
        if started.elapsed() > MAX_WAIT {
            // On a busy machine it may not have been started yet, or the tracer may still have a child of its own.
            while child.try_wait().expect("a child").is_none() {
                signal_tracee(&child, Signal::KILL);
                std::thread::sleep(POLL_INTERVAL);
            }
            break None;
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    let (stdout, stderr) = (fs::read(&out).unwrap_or_default(), fs::read(&err).unwrap_or_default());
    let traced = fs::read(&log).unwrap_or_default();
    let traced = String::from_utf8_lossy(&traced);
    let failed = traced.lines().filter(|line| line.ends_with("(INJECTED)"));
    let is_injected = failed.clone().next().is_some();
    let failed_on = failed.filter_map(|line| Some(line.split_once('<')?.1.split_once('>')?.0.to_owned())).collect();
    [out, err, log].into_iter().for_each(|file| drop(fs::remove_file(file)));
    Outcome { output: status.map(|status| Output { status, stdout, stderr }), is_injected, failed_on }
}

/// Sends a signal to the traced process, not to the tracer, which ends with it; if the tracer were killed first, the
/// tracee would not be waited for.
pub fn signal_tracee(strace: &Child, signal: Signal) {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", strace.id())).unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
        let _ = kill_process(pid, signal);
    }
}

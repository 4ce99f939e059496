//! Stops the program at its Nth call, lets another command work meanwhile, and continues or kills it.

use std::fs;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::fault::{POLL_INTERVAL, program, signal_tracee, traced, words};

/// How long a stopped command is waited on: one that writes to the database just then keeps the other one waiting.
const MAX_STOPPED: Duration = Duration::from_millis(400);
/// After this time something waits for ever.
const MAX_TOTAL: Duration = Duration::from_secs(60);

/// Two commands, of which the first was stopped while the other one worked.
pub struct Both {
    pub stopped: Output,
    /// `None` if the first one was never stopped, because it made fewer calls.
    pub beside: Option<Output>,
}

/// What is written to and read from while both run.
struct Files<'a> {
    home: &'a Path,
}

impl Files<'_> {
    fn open(&self, name: &str) -> Stdio {
        fs::File::create(self.home.join(name)).expect("a file").into()
    }

    /// Returns the output of a process that ended, or an error if it did not.
    fn output(&self, mut child: Child, names: [&str; 2], started: Instant) -> Result<Output, String> {
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                break status;
            }
            if started.elapsed() > MAX_TOTAL {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} never ends", names[0]));
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let [stdout, stderr] = names.map(|name| {
            let path = self.home.join(name);
            let bytes = fs::read(&path).unwrap_or_default();
            let _ = fs::remove_file(path);
            bytes
        });
        Ok(Output { status, stdout, stderr })
    }
}

/// Runs `command` and stops it after its Nth call; meanwhile runs `beside`; then continues it, or kills it.
pub fn run_beside(
    home: &Path,
    command: &[String],
    (call, n): (&str, usize),
    beside: &str,
    then: Signal,
) -> Result<Both, String> {
    let (files, log) = (Files { home }, home.join("log"));
    let (trace, what) = (format!("trace={call}"), format!("inject={call}:signal=SIGSTOP:when={n}"));
    let options = ["-o", &log.display().to_string(), "-e", &trace, "-e", &what];
    let mut strace = traced(home, command, &options);
    let mut child = strace.stdout(files.open("out")).stderr(files.open("err")).spawn().expect("strace");
    let (started, mut seen, mut other) = (Instant::now(), 0, None);
    while child.try_wait().expect("a child").is_none() && started.elapsed() < MAX_TOTAL {
        // Each thread that makes so many calls stops all of them.
        let stops = fs::read_to_string(&log).unwrap_or_default().matches("stopped by SIGSTOP").count();
        if stops > seen {
            seen = stops;
            let other = other.get_or_insert_with(|| start_beside(&files, home, beside));
            let stopped = Instant::now();
            while other.try_wait().expect("a child").is_none() && stopped.elapsed() < MAX_STOPPED {
                std::thread::sleep(POLL_INTERVAL);
            }
            signal_tracee(&child, then);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    if child.try_wait().expect("a child").is_none() {
        signal_tracee(&child, Signal::KILL);
    }
    let stopped = files.output(child, ["out", "err"], Instant::now())?;
    let beside = other.map(|other| files.output(other, ["beside-out", "beside-err"], Instant::now())).transpose()?;
    let _ = fs::remove_file(log);
    if started.elapsed() > MAX_TOTAL {
        return Err("the stopped command never ends".to_owned());
    }
    Ok(Both { stopped, beside })
}

fn start_beside(files: &Files<'_>, home: &Path, command: &str) -> Child {
    let mut beside = program(home, &words(command));
    beside.stdout(files.open("beside-out")).stderr(files.open("beside-err"));
    beside.spawn().expect("the program")
}

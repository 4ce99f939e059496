//! The processes of this machine as `/proc` lists them: which belong to a group, and since when.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

/// A process group by which the processes of a command are found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessGroup(Pid);

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    is_zombie: bool,
    group: i32,
    /// When it was started, in clock ticks since the boot.
    started: u64,
}

impl ProcessGroup {
    /// Returns the group with this number; `None` for what is no number of a group that may be signalled.
    pub(super) fn new(number: i32) -> Option<ProcessGroup> {
        let own = rustix::process::getpgrp();
        // 1 is the first process, and to signal the group -1 would be to signal all processes.
        (number > 1).then(|| Pid::from_raw(number)).flatten().filter(|pid| *pid != own).map(ProcessGroup)
    }

    pub(super) fn number(self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    /// Sends a signal to all processes of the group; that there are none is no error.
    pub(super) fn signal(self, signal: Signal) {
        let _ = kill_process_group(self.0, signal);
    }

    /// Returns whether a process of the group is alive. What has ended and was not waited for is not: in a container
    /// there may be no process that does so.
    pub(super) fn is_alive(self) -> bool {
        if test_kill_process_group(self.0) == Err(rustix::io::Errno::SRCH) {
            return false;
        }
        // Without a list of processes, the answer of the system holds.
        processes().map_or(true, |all| all.iter().any(|(_, stat)| stat.group == self.number() && !stat.is_zombie))
    }

    /// Returns whether this is the group whose first process was started at `started`, and a process of it is alive.
    ///
    /// Its number belongs to no other process or group as long as a process of it is left. If the first process has
    /// ended, the others are of the same command if `is_ours` is true for the environment of one.
    pub(super) fn is_alive_since(self, started: u64, is_ours: impl Fn(&[u8]) -> bool) -> bool {
        if !self.is_alive() {
            return false;
        }
        match stat(self.number()) {
            Some(first) => first.started == started && first.group == self.number(),
            None => members(self).any(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| is_ours(&all))),
        }
    }
}

/// Returns when a process was started, in clock ticks since the boot; `None` if it is not alive.
pub(super) fn started(pid: i32) -> Option<u64> {
    stat(pid).map(|stat| stat.started)
}

/// Returns the groups of the processes whose standard input is the file.
pub(super) fn groups_reading(file: &fs::Metadata) -> Vec<ProcessGroup> {
    let is_input = |pid: i32| {
        let found = fs::metadata(format!("/proc/{pid}/fd/0"));
        found.is_ok_and(|found| (found.dev(), found.ino()) == (file.dev(), file.ino()))
    };
    let all = processes().unwrap_or_default();
    let mut groups: Vec<_> =
        all.iter().filter(|(pid, _)| is_input(*pid)).filter_map(|(_, stat)| ProcessGroup::new(stat.group)).collect();
    groups.dedup();
    groups
}

fn members(group: ProcessGroup) -> impl Iterator<Item = i32> {
    let all = processes().unwrap_or_default();
    all.into_iter().filter(move |(_, stat)| stat.group == group.number()).map(|(pid, _)| pid)
}

fn processes() -> io::Result<Vec<(i32, Stat)>> {
    let entries = fs::read_dir("/proc")?.flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.filter_map(|pid| Some((pid, stat(pid)?))).collect())
}

fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses `/proc/PID/stat`. The name of the program, in parentheses, may contain anything.
fn parse(line: &str) -> Option<Stat> {
    let (_, after_name) = line.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    Some(Stat {
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_whose_name_looks_like_fields_is_parsed() {
        let line = "42 (a) Z 1 (b) S 7 42 40 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 2 3";
        assert_eq!(parse(line), Some(Stat { is_zombie: false, group: 42, started: 98_765 }));
        assert_eq!(parse("42 (a"), None);
    }

    #[test]
    fn our_own_group_is_never_signalled() {
        assert_eq!(ProcessGroup::new(rustix::process::getpgrp().as_raw_nonzero().get()), None);
        assert_eq!([0, 1, -5].map(ProcessGroup::new), [None; 3]);
    }
}

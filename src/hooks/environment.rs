//! The environment of a command: nothing of ours but what every program needs, and what the run is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::home::Home;

/// Variables that commands inherit if they are set.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];
/// The search path where this process has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables that commands get from the run, besides the settings `BACKUP_HOME` and `BACKUP_DB`. A command that
/// calls this program passes them on.
pub const VARIABLES: [&str; 9] = [
    "BACKUP_SCHEDULE",
    "BACKUP_RUN",
    "BACKUP_ATTEMPT",
    "BACKUP_AGAIN",
    "BACKUP_SOURCE",
    "BACKUP_ARCHIVE",
    "BACKUP_STATE",
    "BACKUP_PROBLEMS",
    "BACKUP_ERROR",
];

/// What a run has come to when a command of it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookState {
    /// Nothing was read yet.
    Starting,
    /// The source was read.
    Read,
    /// The run ended with an archive of everything.
    Succeeded,
    /// The run ended with an archive from which something is missing.
    Incomplete,
    /// The run made no good archive.
    Failed,
    /// `--before` decided that there is nothing to do.
    Skipped,
}

impl HookState {
    /// Returns the value of `BACKUP_STATE`.
    pub fn as_str(self) -> &'static str {
        match self {
            HookState::Starting => "starting",
            HookState::Read => "read",
            HookState::Succeeded => "succeeded",
            HookState::Incomplete => "incomplete",
            HookState::Failed => "failed",
            HookState::Skipped => "skipped",
        }
    }
}

/// What a command learns about its run.
#[derive(Clone, Debug)]
pub struct RunFacts<'a> {
    /// Name of the schedule.
    pub schedule: &'a str,
    /// Number of the run.
    pub run: i64,
    /// Number of the attempt.
    pub attempt: i64,
    /// The command was started before for this attempt, and the program died during it.
    pub is_again: bool,
    /// Absolute path of the source.
    pub source: &'a Path,
    /// Absolute path of the archive file, once it exists.
    pub archive: Option<&'a Path>,
    /// What the run has come to.
    pub state: HookState,
    /// Paths with problems.
    pub problems: u64,
    /// Why the run failed; empty if it did not.
    pub error: &'a str,
}

impl RunFacts<'_> {
    /// Returns all variables of a command.
    pub fn variables(&self, home: &Home) -> Vec<(&'static str, OsString)> {
        let values: [OsString; 9] = [
            self.schedule.into(),
            self.run.to_string().into(),
            self.attempt.to_string().into(),
            if self.is_again { "1".into() } else { OsString::new() },
            self.source.into(),
            self.archive.map(Into::into).unwrap_or_default(),
            self.state.as_str().into(),
            self.problems.to_string().into(),
            self.error.into(),
        ];
        let mut variables: Vec<_> = VARIABLES.into_iter().zip(values).collect();
        // The system takes no zero byte in the environment.
        variables.iter_mut().for_each(|(_, value)| *value = without_zero_bytes(value));
        variables.push(("BACKUP_HOME", home.root().into()));
        variables.push(("BACKUP_DB", home.db().into()));
        variables.extend(inherited(&|name| std::env::var_os(name)));
        variables
    }
}

fn without_zero_bytes(value: &OsStr) -> OsString {
    let bytes: Vec<u8> = value.as_bytes().iter().copied().filter(|byte| *byte != 0).collect();
    OsStr::from_bytes(&bytes).to_owned()
}

fn inherited(ours: &dyn Fn(&str) -> Option<OsString>) -> Vec<(&'static str, OsString)> {
    let mut found: Vec<_> = INHERITED.into_iter().filter_map(|name| ours(name).map(|value| (name, value))).collect();
    if !found.iter().any(|(name, _)| *name == "PATH") {
        found.push(("PATH", DEFAULT_PATH.into()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_always_has_a_search_path() {
        assert_eq!(inherited(&|_| None), [("PATH", OsString::from(DEFAULT_PATH))]);
        let ours = |name: &str| (name == "PATH" || name == "LD_PRELOAD").then(|| OsString::from("/x"));
        assert_eq!(inherited(&ours), [("PATH", OsString::from("/x"))]);
    }
}

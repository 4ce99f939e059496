//! What surrounds the runs of a schedule, as values: commands, their options, and what is done with containers. It is
//! no part of [`Schedule`](super::Schedule), whose JSON form is in the header of every archive: whoever can write an
//! archive must not be able to have a command executed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::when::{format_age, parse_duration};
use crate::error::{Error, Result};

/// Longest command in bytes. The kernel takes one argument of less than 128 KiB.
const MAX_COMMAND_BYTES: usize = 64 << 10;
/// How long a command may take unless the schedule says otherwise.
const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(3600);
/// Shorter than this, a command could not begin.
const MIN_DURATION: Duration = Duration::from_secs(1);

/// When a command of a schedule is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandKind {
    /// Before the source is read.
    Before,
    /// After the source was read, whenever the command before was started.
    After,
    /// After a run that made an archive of everything.
    OnSuccess,
    /// After a run that did not.
    OnFailure,
    /// In place of reading a source: what it prints is the content of the one file of the archive.
    Source,
}

impl CommandKind {
    /// All kinds, in the order in which they are executed.
    pub const ALL: [CommandKind; 5] =
        [CommandKind::Before, CommandKind::Source, CommandKind::After, CommandKind::OnSuccess, CommandKind::OnFailure];

    /// Returns the word used in the database and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            CommandKind::Before => "before",
            CommandKind::After => "after",
            CommandKind::OnSuccess => "on-success",
            CommandKind::OnFailure => "on-failure",
            CommandKind::Source => "source",
        }
    }

    /// Returns the option of `create` and `edit` that sets it.
    pub fn option(self) -> &'static str {
        match self {
            CommandKind::Before => "--before",
            CommandKind::After => "--after",
            CommandKind::OnSuccess => "--on-success",
            CommandKind::OnFailure => "--on-failure",
            CommandKind::Source => "--source-command",
        }
    }
}

impl fmt::Display for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CommandKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        CommandKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| Error::usage(format!("\"{}\" is not a kind of command", text.escape_debug())))
    }
}

/// Options of the commands of a schedule and of the containers around its runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HookOptions {
    /// How long each command may take.
    #[serde(with = "duration_text")]
    pub time_limit: Duration,
    /// Commands keep the ambient capabilities of this process.
    pub keep_capabilities: bool,
    /// The command of the source may print nothing.
    pub allow_empty: bool,
    /// The container in which the command of the source is executed; `None` for this machine.
    pub source_container: Option<String>,
    /// Labelled containers are stopped while the source is read, and their commands executed.
    pub containers: bool,
    /// Containers are started again at the latest after this time, even if the source is not read yet.
    #[serde(with = "optional_duration_text")]
    pub max_downtime: Option<Duration>,
    /// The value of the label by which containers are stopped; `None` for `true`.
    pub stop_label: Option<String>,
}

impl Default for HookOptions {
    fn default() -> Self {
        HookOptions {
            time_limit: DEFAULT_TIME_LIMIT,
            keep_capabilities: false,
            allow_empty: false,
            source_container: None,
            containers: false,
            max_downtime: None,
            stop_label: None,
        }
    }
}

/// What surrounds the runs of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// Commands for `/bin/sh -c`; the one of the source is executed in a container if there is one for it.
    pub commands: BTreeMap<CommandKind, String>,
    /// Their options.
    pub options: HookOptions,
}

impl Hooks {
    /// Returns whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Hooks::default()
    }

    /// Returns the command that prints the content of the source, if the source of the schedule is one. The path of the
    /// schedule then is the name of the one file of the archive.
    pub fn source_command(&self) -> Option<&str> {
        self.commands.get(&CommandKind::Source).map(String::as_str)
    }

    /// Checks what a user, a file or a document gave. `source` is the path of the schedule.
    ///
    /// Errors: `Usage` naming the option.
    pub fn check(&self, source: &[u8]) -> Result<()> {
        for (kind, command) in &self.commands {
            let refuse = |why: &str| Error::usage(format!("{}: the command {why}", kind.option()));
            if command.trim().is_empty() {
                return Err(refuse("is empty"));
            }
            if command.contains('\0') {
                return Err(refuse("has a NUL byte"));
            }
            if command.len() > MAX_COMMAND_BYTES {
                return Err(refuse(&format!(
                    "has {} bytes, and at most {MAX_COMMAND_BYTES} are possible",
                    command.len()
                ))
                .hint("put it into a script, and give the path of that"));
            }
        }
        self.check_source(source)?;
        self.options.check()
    }

    fn check_source(&self, source: &[u8]) -> Result<()> {
        let options = &self.options;
        if self.source_command().is_some() {
            return check_source_name(source);
        }
        match (options.allow_empty, &options.source_container) {
            (true, _) => Err(Error::usage("--allow-empty is about the output of --source-command, which is not given")),
            (_, Some(_)) => Err(Error::usage("--source-container is where --source-command, which is not given, runs")),
            _ => Ok(()),
        }
    }
}

impl HookOptions {
    fn check(&self) -> Result<()> {
        let durations = [("--hook-time-limit", Some(self.time_limit)), ("--max-downtime", self.max_downtime)];
        for (option, duration) in durations {
            if duration.is_some_and(|duration| duration < MIN_DURATION) {
                return Err(Error::usage(format!("{option}: 0 s is too short")).hint("give at least 1s"));
            }
        }
        for (option, text) in [("--source-container", &self.source_container), ("--stop-label", &self.stop_label)] {
            if text.as_ref().is_some_and(|text| text.is_empty() || text.contains(char::is_control)) {
                return Err(Error::usage(format!("{option}: the value is empty or has control characters")));
            }
        }
        Ok(())
    }
}

/// Checks the name of the file that a command prints: one component of a path.
fn check_source_name(name: &[u8]) -> Result<()> {
    let is_name = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0);
    if is_name && name.len() <= 255 {
        return Ok(());
    }
    Err(Error::usage(format!(
        "\"{}\" is not a name for the file that --source-command prints",
        String::from_utf8_lossy(name).escape_debug()
    ))
    .hint("give a name without a slash: --source-name app.dump"))
}

/// Durations as text: `1h`, `90s`.
mod duration_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_age(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map_err(serde::de::Error::custom)
    }
}

/// The same for durations that may be absent.
mod optional_duration_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        duration.map(format_age).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| parse_duration(&text)).transpose().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(kind: CommandKind, command: &str) -> Hooks {
        Hooks { commands: BTreeMap::from([(kind, command.to_owned())]), ..Hooks::default() }
    }

    #[test]
    fn hooks_survive_a_round_trip_through_json() {
        let options = HookOptions {
            time_limit: Duration::from_secs(5_400),
            source_container: Some("postgres".to_owned()),
            max_downtime: Some(Duration::from_secs(1_200)),
            ..HookOptions::default()
        };
        let full = Hooks { options, ..with(CommandKind::Source, "pg_dump -Fc app") };
        for hooks in [Hooks::default(), full] {
            let json = serde_json::to_string(&hooks).unwrap();
            assert_eq!(serde_json::from_str::<Hooks>(&json).unwrap(), hooks, "{json}");
        }
        for bad in [r#"{"commands":{"exec":"x"}}"#, r#"{"surprise":1}"#, r#"{"options":{"time_limit":"soon"}}"#] {
            assert!(serde_json::from_str::<Hooks>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unusable_hooks_are_refused_by_name() {
        let options = |change: fn(&mut HookOptions)| {
            let mut hooks = Hooks::default();
            change(&mut hooks.options);
            hooks
        };
        let cases = [
            (with(CommandKind::Before, " "), "--before"),
            (with(CommandKind::After, "a\0b"), "--after"),
            (with(CommandKind::OnSuccess, &"x".repeat(MAX_COMMAND_BYTES + 1)), "--on-success"),
            (with(CommandKind::Source, "pg_dump"), "--source-command"),
            (options(|o| o.allow_empty = true), "--allow-empty"),
            (options(|o| o.source_container = Some("db".to_owned())), "--source-container"),
            (options(|o| o.time_limit = Duration::ZERO), "--hook-time-limit"),
            (options(|o| o.max_downtime = Some(Duration::ZERO)), "--max-downtime"),
            (options(|o| o.stop_label = Some(String::new())), "--stop-label"),
        ];
        for (hooks, option) in cases {
            let error = hooks.check(b"/srv/data").unwrap_err();
            assert!(error.to_string().contains(option), "{option}: {error}");
        }
        with(CommandKind::Source, "pg_dump").check(b"app.dump").unwrap();
        with(CommandKind::Before, "true").check(b"/srv/data").unwrap();
    }
}

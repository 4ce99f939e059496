//! Reading the settings file: all that is wrong with it is reported at once, by line.

use std::fmt::Display;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::keys::{Draft, KEYS, is_keep};
use crate::error::{Error, Result};
use crate::schedule::{Hooks, Schedule, ScheduleName};
use crate::words;

/// Tables of the file.
const TABLES: [&str; 2] = ["defaults", "schedule"];
/// Keys that only a schedule has.
const NOT_IN_DEFAULTS: [&str; 6] =
    ["source", "source_b64", "source_command", "source_name", "source_container", "allow_empty"];
/// Keys of which a table has at most one.
const EXCLUSIVE: [[&str; 2]; 2] = [["at", "cron"], ["source", "source_b64"]];
/// How alike a known name must be to be proposed for an unknown one.
const LIKENESS: f64 = 0.7;

/// A schedule of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Line of its table, from 1.
    pub line: u32,
    /// The schedule; it is enabled unless the file pauses it.
    pub schedule: Schedule,
    /// What surrounds its runs.
    pub hooks: Hooks,
}

/// A key with its value, in the order of the file.
type Pair<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

/// Parses a settings file; `name` is its name in errors. The schedules are in the order of the file.
///
/// Errors: `Usage` with all that is wrong, each with its line.
pub fn parse_settings(bytes: &[u8], name: &str) -> Result<Vec<Entry>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = line_of(bytes, error.valid_up_to());
        Problems { found: vec![(line, "it is not UTF-8".to_owned())] }.into_error(name)
    })?;
    let document = DeTable::parse(text).map_err(|error| {
        let span = error.span().unwrap_or_default();
        let line = line_of(bytes, span.start);
        // Other errors do not show what they are about: a value may be a secret.
        let key = text.get(span).filter(|_| error.message() == "duplicate key");
        let key = key.map_or_else(String::new, |key| format!(" {key}"));
        Problems { found: vec![(line, format!("{}{key}", error.message()))] }.into_error(name)
    })?;
    let mut reader = Reader { bytes, problems: Problems::default() };
    let entries = reader.read(document.get_ref());
    if reader.problems.found.is_empty() { Ok(entries) } else { Err(reader.problems.into_error(name)) }
}

fn line_of(bytes: &[u8], at: usize) -> u32 {
    let before = bytes[..at.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count();
    u32::try_from(before + 1).unwrap_or(u32::MAX)
}

/// What is wrong with a settings file, each with its line.
#[derive(Default)]
pub(super) struct Problems {
    pub(super) found: Vec<(u32, String)>,
}

impl Problems {
    pub(super) fn add(&mut self, line: u32, problem: impl Display) {
        self.found.push((line, problem.to_string()));
    }

    /// Returns the error that lists them, for the file `name`.
    pub(super) fn into_error(mut self, name: &str) -> Error {
        self.found.sort_by_key(|(line, _)| *line);
        let lines: String = self.found.iter().map(|(line, problem)| format!("\n  line {line}: {problem}")).collect();
        let count = words::count(self.found.len() as u64, "error");
        Error::usage(format!("the settings file {name} has {count}, and nothing of it was applied:{lines}"))
            .hint("correct it; all keys are in docs/settings.md")
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    problems: Problems,
}

impl Reader<'_> {
    fn read(&mut self, document: &DeTable<'_>) -> Vec<Entry> {
        let mut defaults = Draft::default();
        let tables = in_order(document);
        for (key, value) in &tables {
            match key.get_ref().as_ref() {
                "defaults" => {
                    let pairs = self.table("defaults", key, value);
                    self.read_keys("defaults", pairs, &mut defaults);
                }
                "schedule" => {}
                unknown => self.problems.add(self.line(key), unknown_name("table", unknown, &TABLES)),
            }
        }
        let schedules = tables.iter().filter(|(key, _)| key.get_ref() == "schedule");
        let mut entries = Vec::new();
        for (key, value) in schedules {
            let pairs = self.table("schedule", key, value);
            entries.extend(pairs.into_iter().filter_map(|(name, value)| self.schedule(name, value, defaults.clone())));
        }
        entries
    }

    fn schedule(
        &mut self,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        mut draft: Draft,
    ) -> Option<Entry> {
        let line = self.line(name);
        let table = format!("schedule.{}", name.get_ref());
        let before = self.problems.found.len();
        let pairs = self.table(&table, name, value);
        if pairs.iter().any(|(key, _)| is_keep(key.get_ref())) {
            draft.forget_keep();
        }
        self.read_keys(&table, pairs, &mut draft);
        let schedule = ScheduleName::parse(name.get_ref()).and_then(|name| draft.into_schedule(name));
        match schedule {
            // A key that is wrong may be the one that is missing.
            _ if self.problems.found.len() > before => None,
            Ok((schedule, hooks)) => Some(Entry { line, schedule, hooks }),
            Err(error) => {
                self.problems.add(line, format!("{table}: {}", with_advice(&error)));
                None
            }
        }
    }

    /// Returns the keys of a table, in the order of the file.
    fn table<'a, 'i>(
        &mut self,
        name: &str,
        key: &Spanned<DeString<'_>>,
        value: &'a Spanned<DeValue<'i>>,
    ) -> Vec<Pair<'a, 'i>> {
        match value.get_ref().as_table() {
            Some(table) => in_order(table),
            None => {
                self.problems.add(self.line(key), format!("{name} is not a table: write [{name}] above its keys"));
                Vec::new()
            }
        }
    }

    fn read_keys(&mut self, table: &str, pairs: Vec<Pair<'_, '_>>, draft: &mut Draft) {
        let is_defaults = table == "defaults";
        for [first, second] in EXCLUSIVE {
            let both = [first, second].map(|name| pairs.iter().find(|(key, _)| key.get_ref() == name));
            if let [Some(_), Some((key, _))] = both {
                self.problems.add(self.line(key), format!("{table}: {first} and {second} exclude each other"));
            }
        }
        for (key, value) in pairs {
            let name = key.get_ref().as_ref();
            let known = KEYS.iter().find(|known| known.name == name);
            let result = match known {
                None => Err(Error::usage(unknown_name("key", name, &KEYS.each_ref().map(|key| key.name)))),
                Some(_) if is_defaults && NOT_IN_DEFAULTS.contains(&name) => {
                    Err(Error::usage("each schedule has its own, so it is not in [defaults]"))
                }
                Some(known) => (known.set)(draft, value.get_ref()),
            };
            if let Err(error) = result {
                self.problems.add(self.line(key), format!("{table}.{name}: {}", with_advice(&error)));
            }
        }
    }

    fn line(&self, key: &Spanned<DeString<'_>>) -> u32 {
        line_of(self.bytes, key.span().start)
    }
}

/// Returns the keys of a table in the order of the file: the parser sorts them.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Pair<'a, 'i>> {
    let mut pairs: Vec<Pair<'a, 'i>> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    pairs
}

fn unknown_name(thing: &str, name: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|known| (strsim::jaro_winkler(name, known), known));
    let nearest = nearest.filter(|(likeness, _)| *likeness > LIKENESS).max_by(|a, b| a.0.total_cmp(&b.0));
    let advice = nearest.map_or_else(String::new, |(_, known)| format!("; did you mean {known}?"));
    format!("there is no {thing} \"{}\"{advice}", name.escape_debug())
}

/// Returns an error with the advice on how to write it, on one line.
fn with_advice(error: &Error) -> String {
    error.next_step().map_or_else(|| error.to_string(), |advice| format!("{error}; {advice}"))
}

//! The keys of a schedule: how each is read, and what it is in a schedule.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono_tz::Tz;
use toml::Value;
use toml::de::DeValue;

use crate::error::{Error, Result};
use crate::schedule::{
    Cadence, CatchUp, CommandKind, Compression, Excludes, Hooks, Layout, Retention, Reuse, Schedule, ScheduleName,
    format_age, parse_age, parse_duration, parse_zone, source_problem,
};
use crate::source;

/// What the keys of one table, or of `[defaults]` and one table, have set so far.
#[derive(Clone, Default)]
pub(super) struct Draft {
    source: Option<Vec<u8>>,
    cadence: Option<Cadence>,
    zone: Option<Tz>,
    catch_up: CatchUp,
    compression: Compression,
    layout: Layout,
    excludes: Excludes,
    keep: Option<Retention>,
    reuse: Reuse,
    verify: Option<bool>,
    enabled: Option<bool>,
    hooks: Hooks,
    /// The name of what the command of the source prints.
    source_name: Option<Vec<u8>>,
}

impl Draft {
    /// Forgets the rules of retention: those of a table replace those of `[defaults]` as a whole, as the options of
    /// `edit` replace those of the schedule.
    pub(super) fn forget_keep(&mut self) {
        self.keep = None;
    }

    /// Returns the schedule, which is enabled unless the file pauses it, and what surrounds its runs.
    ///
    /// Errors: `Usage` for a key that is missing, and for values that exclude each other.
    pub(super) fn into_schedule(mut self, name: ScheduleName) -> Result<(Schedule, Hooks)> {
        let refuse = |why: &str| Err(Error::usage(why));
        let source = match (self.source.take(), self.source_name.take(), self.hooks.source_command()) {
            (Some(source), None, None) => source,
            (None, Some(name), Some(_)) => name,
            (None, None, None) => return refuse("it has no source"),
            (None, None, Some(_)) => return refuse("what source_command prints needs a name: source_name"),
            (Some(_), _, Some(_)) => return refuse("source and source_command exclude each other"),
            (_, Some(_), None) => return refuse("source_name is that of source_command, which it lacks"),
        };
        if self.cadence.is_none() && self.enabled != Some(false) {
            return refuse("it has no time: neither at nor cron");
        }
        let hooks = std::mem::take(&mut self.hooks);
        hooks.check(&source)?;
        Ok((self.with_source(name, source)?, hooks))
    }

    /// Returns the schedule of a name and a source. It may have no times.
    ///
    /// Errors: `Usage` for values that exclude each other.
    pub(super) fn with_source(self, name: ScheduleName, source: Vec<u8>) -> Result<Schedule> {
        Ok(Schedule {
            name,
            source,
            cadence: self.cadence,
            zone: self.zone,
            compression: self.compression,
            layout: self.layout,
            excludes: self.excludes,
            retention: self.keep.map_or(Ok(Retention::default()), Retention::from_options)?,
            reuse: self.reuse.check().map_err(|error| Error::usage(error.to_string()))?,
            catch_up: self.catch_up,
            verify: self.verify.unwrap_or(true),
            enabled: self.enabled.unwrap_or(true),
        })
    }

    fn keep(&mut self) -> &mut Retention {
        self.keep.get_or_insert(Retention::EMPTY)
    }
}

/// A key of a schedule.
pub(super) struct Key {
    /// The option of `create` with `_` for `-`.
    pub(super) name: &'static str,
    /// Sets its value.
    pub(super) set: fn(&mut Draft, &DeValue<'_>) -> Result<()>,
    /// Its value in a schedule; `None` if there is none.
    pub(super) get: fn(&Schedule, &Hooks) -> Option<Value>,
}

const fn key(
    name: &'static str,
    set: fn(&mut Draft, &DeValue<'_>) -> Result<()>,
    get: fn(&Schedule, &Hooks) -> Option<Value>,
) -> Key {
    Key { name, set, get }
}

/// All keys of a schedule, in the order in which they are written.
pub(super) const KEYS: [Key; 40] = [
    key(
        "source",
        |draft, value| set_source(draft, text(value)?.as_bytes().to_owned()),
        |schedule, hooks| {
            let source = std::str::from_utf8(&schedule.source).ok().filter(|_| hooks.source_command().is_none());
            source.map(Value::from)
        },
    ),
    key(
        "source_b64",
        |draft, value| set_source(draft, decoded(text(value)?)?),
        |schedule, hooks| {
            let is_other = hooks.source_command().is_none() && std::str::from_utf8(&schedule.source).is_err();
            is_other.then(|| Value::from(STANDARD.encode(&schedule.source)))
        },
    ),
    key(
        "source_command",
        |draft, value| set_command(draft, CommandKind::Source, value),
        |_, hooks| command(hooks, CommandKind::Source),
    ),
    key(
        "source_name",
        |draft, value| set(&mut draft.source_name, Some(text(value)?.as_bytes().to_owned())),
        |schedule, hooks| {
            hooks.source_command()?;
            std::str::from_utf8(&schedule.source).ok().map(Value::from)
        },
    ),
    key(
        "source_container",
        |draft, value| set(&mut draft.hooks.options.source_container, Some(text(value)?.to_owned())),
        |_, hooks| hooks.options.source_container.clone().map(Value::from),
    ),
    key(
        "allow_empty",
        |draft, value| set(&mut draft.hooks.options.allow_empty, flag(value)?),
        |_, hooks| Some(Value::from(hooks.options.allow_empty)),
    ),
    key(
        "at",
        |draft, value| set(&mut draft.cadence, Some(Cadence::parse_daily(text(value)?)?)),
        |schedule, _| match &schedule.cadence {
            Some(Cadence::Daily(times)) => Some(Value::from(times.to_string())),
            _ => None,
        },
    ),
    key(
        "cron",
        |draft, value| set(&mut draft.cadence, Some(Cadence::parse_cron(text(value)?)?)),
        |schedule, _| match &schedule.cadence {
            Some(Cadence::Cron(cron)) => Some(Value::from(cron.as_str())),
            _ => None,
        },
    ),
    key(
        "timezone",
        |draft, value| set(&mut draft.zone, zone(text(value)?)?),
        |schedule, _| schedule.zone.map(|zone| Value::from(zone.name())),
    ),
    key(
        "catch_up",
        |draft, value| set(&mut draft.catch_up, text(value)?.parse()?),
        |schedule, _| Some(Value::from(schedule.catch_up.as_str())),
    ),
    key(
        "enabled",
        |draft, value| set(&mut draft.enabled, Some(flag(value)?)),
        |schedule, _| Some(Value::from(schedule.enabled)),
    ),
    key(
        "compress",
        |draft, value| set(&mut draft.compression, text(value)?.parse()?),
        |schedule, _| Some(Value::from(schedule.compression.to_string())),
    ),
    key(
        "layout",
        |draft, value| set(&mut draft.layout, text(value)?.parse()?),
        |schedule, _| Some(Value::from(schedule.layout.as_str())),
    ),
    key("exclude", |draft, value| set_globs(draft, words(value)?), |schedule, _| list(&schedule.excludes.globs)),
    key(
        "exclude_file",
        |draft, value| set(&mut draft.excludes.files, words(value)?),
        |schedule, _| list(&schedule.excludes.files),
    ),
    key(
        "exclude_caches",
        |draft, value| set(&mut draft.excludes.caches, flag(value)?),
        |schedule, _| Some(Value::from(schedule.excludes.caches)),
    ),
    key(
        "exclude_if_present",
        |draft, value| set_marker_names(draft, words(value)?),
        |schedule, _| list(&schedule.excludes.if_present),
    ),
    key(
        "one_file_system",
        |draft, value| set(&mut draft.excludes.one_file_system, flag(value)?),
        |schedule, _| Some(Value::from(schedule.excludes.one_file_system)),
    ),
    key(
        "verify",
        |draft, value| set(&mut draft.verify, Some(flag(value)?)),
        |schedule, _| Some(Value::from(schedule.verify)),
    ),
    key(
        "ignore_inode",
        |draft, value| set(&mut draft.reuse.ignore_inode, flag(value)?),
        |schedule, _| Some(Value::from(schedule.reuse.ignore_inode)),
    ),
    key(
        "ignore_ctime",
        |draft, value| set(&mut draft.reuse.ignore_ctime, flag(value)?),
        |schedule, _| Some(Value::from(schedule.reuse.ignore_ctime)),
    ),
    key(
        "trust_times",
        |draft, value| set(&mut draft.reuse.trust_times, flag(value)?),
        |schedule, _| Some(Value::from(schedule.reuse.trust_times)),
    ),
    key(
        "keep_last",
        |draft, value| set(&mut draft.keep().last, Some(count(value)?)),
        |schedule, _| schedule.retention.last.map(Value::from),
    ),
    key(
        "keep_hourly",
        |draft, value| set(&mut draft.keep().hourly, Some(count(value)?)),
        |schedule, _| schedule.retention.hourly.map(Value::from),
    ),
    key(
        "keep_daily",
        |draft, value| set(&mut draft.keep().daily, Some(count(value)?)),
        |schedule, _| schedule.retention.daily.map(Value::from),
    ),
    key(
        "keep_weekly",
        |draft, value| set(&mut draft.keep().weekly, Some(count(value)?)),
        |schedule, _| schedule.retention.weekly.map(Value::from),
    ),
    key(
        "keep_monthly",
        |draft, value| set(&mut draft.keep().monthly, Some(count(value)?)),
        |schedule, _| schedule.retention.monthly.map(Value::from),
    ),
    key(
        "keep_yearly",
        |draft, value| set(&mut draft.keep().yearly, Some(count(value)?)),
        |schedule, _| schedule.retention.yearly.map(Value::from),
    ),
    key(
        "keep_within",
        |draft, value| set(&mut draft.keep().within, Some(age(value)?)),
        |schedule, _| schedule.retention.within.map(|age| Value::from(format_age(age))),
    ),
    key(
        "keep_all",
        |draft, value| set(&mut draft.keep().all, flag(value)?),
        |schedule, _| Some(Value::from(schedule.retention.all)),
    ),
    key(
        "keep_manual",
        |draft, value| set(&mut draft.keep().manual, Some(age(value)?)),
        |schedule, _| schedule.retention.manual.map(|age| Value::from(format_age(age))),
    ),
    key(
        "before",
        |draft, value| set_command(draft, CommandKind::Before, value),
        |_, hooks| command(hooks, CommandKind::Before),
    ),
    key(
        "after",
        |draft, value| set_command(draft, CommandKind::After, value),
        |_, hooks| command(hooks, CommandKind::After),
    ),
    key(
        "on_success",
        |draft, value| set_command(draft, CommandKind::OnSuccess, value),
        |_, hooks| command(hooks, CommandKind::OnSuccess),
    ),
    key(
        "on_failure",
        |draft, value| set_command(draft, CommandKind::OnFailure, value),
        |_, hooks| command(hooks, CommandKind::OnFailure),
    ),
    key(
        "hook_time_limit",
        |draft, value| set(&mut draft.hooks.options.time_limit, parse_duration(text(value)?)?),
        |_, hooks| Some(Value::from(format_age(hooks.options.time_limit))),
    ),
    key(
        "hook_caps",
        |draft, value| set(&mut draft.hooks.options.keep_capabilities, flag(value)?),
        |_, hooks| Some(Value::from(hooks.options.keep_capabilities)),
    ),
    key(
        "containers",
        |draft, value| set(&mut draft.hooks.options.containers, flag(value)?),
        |_, hooks| Some(Value::from(hooks.options.containers)),
    ),
    key(
        "max_downtime",
        |draft, value| set(&mut draft.hooks.options.max_downtime, Some(parse_duration(text(value)?)?)),
        |_, hooks| hooks.options.max_downtime.map(|limit| Value::from(format_age(limit))),
    ),
    key(
        "stop_label",
        |draft, value| set(&mut draft.hooks.options.stop_label, Some(text(value)?.to_owned())),
        |_, hooks| hooks.options.stop_label.clone().map(Value::from),
    ),
];

/// Returns the names of all keys of a schedule, in the order in which they are written.
pub fn schedule_keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}

/// Returns whether a key is a rule of retention: all that are not given together with one are off.
pub(super) fn is_keep(name: &str) -> bool {
    name.starts_with("keep_")
}

fn set<T>(place: &mut T, value: T) -> Result<()> {
    *place = value;
    Ok(())
}

fn set_source(draft: &mut Draft, source: Vec<u8>) -> Result<()> {
    match source_problem(&source) {
        Some(problem) => Err(Error::usage(problem)),
        None => set(&mut draft.source, Some(source)),
    }
}

fn set_globs(draft: &mut Draft, globs: Vec<String>) -> Result<()> {
    source::check_patterns(&globs)?;
    set(&mut draft.excludes.globs, globs)
}

fn set_marker_names(draft: &mut Draft, names: Vec<String>) -> Result<()> {
    source::check_marker_names(&names)?;
    set(&mut draft.excludes.if_present, names)
}

/// Sets a command; an empty one removes that of `[defaults]`.
fn set_command(draft: &mut Draft, kind: CommandKind, value: &DeValue<'_>) -> Result<()> {
    let commands = &mut draft.hooks.commands;
    match text(value)? {
        "" => drop(commands.remove(&kind)),
        command => drop(commands.insert(kind, command.to_owned())),
    }
    Ok(())
}

fn command(hooks: &Hooks, kind: CommandKind) -> Option<Value> {
    hooks.commands.get(&kind).map(|command| Value::from(command.as_str()))
}

/// Returns the zone of a name; `service`, as in `edit`, is that of the service.
fn zone(name: &str) -> Result<Option<Tz>> {
    if name == "service" { Ok(None) } else { parse_zone(name).map(Some) }
}

fn decoded(base64: &str) -> Result<Vec<u8>> {
    STANDARD.decode(base64).map_err(|error| Error::usage("it is not base64").because(error))
}

fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str> {
    value.as_str().ok_or_else(|| Error::usage(format!("it takes a text in quotes, and this is {}", kind(value))))
}

fn age(value: &DeValue<'_>) -> Result<Duration> {
    parse_age(text(value)?)
}

fn flag(value: &DeValue<'_>) -> Result<bool> {
    value.as_bool().ok_or_else(|| Error::usage(format!("it takes true or false, and this is {}", kind(value))))
}

fn count(value: &DeValue<'_>) -> Result<u32> {
    let number = value.as_integer().and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
    number.ok_or_else(|| Error::usage("it takes a whole number, which is not negative"))
}

/// Returns the words of an array; empty ones would match nothing.
fn words(value: &DeValue<'_>) -> Result<Vec<String>> {
    let invalid = || Error::usage(format!("it takes texts in brackets, [\"a\", \"b\"], and this is {}", kind(value)));
    let values = value.as_array().ok_or_else(invalid)?;
    values
        .iter()
        .map(|word| match word.get_ref().as_str() {
            None => Err(Error::usage(format!("it takes texts only, and one of them is {}", kind(word.get_ref())))),
            Some("") => Err(Error::usage("one of its texts is empty")),
            Some(word) => Ok(word.to_owned()),
        })
        .collect()
}

/// Returns what a value is, in words.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time without quotes",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

fn list(words: &[String]) -> Option<Value> {
    Some(Value::from(words.to_vec()))
}

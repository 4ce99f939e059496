//! `config`: service settings stored in the database. Options and the environment override them.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::Context;
use super::render::{self, Format};
use crate::error::{Error, Result};
use crate::schedule::Compression;
use crate::store::Store;

/// A setting of the service.
struct Setting {
    name: &'static str,
    /// The environment variable that overrides it.
    variable: &'static str,
    /// The default, as it is printed.
    default: &'static str,
    /// What it does. JSON documents hold this text, so it is part of the stable output.
    about: &'static str,
    /// Fails for a value that is not valid.
    check: fn(&str) -> Result<()>,
}

const SETTINGS: [Setting; 8] = [
    Setting {
        name: "workers",
        variable: "BACKUP_WORKERS",
        default: "1",
        about: "runs at once",
        check: |value| number(value, 1, 256).map(drop),
    },
    Setting {
        name: "threads",
        variable: "BACKUP_THREADS",
        default: "cores",
        about: "encoders a run",
        check: |value| number(value, 1, 256).map(drop),
    },
    Setting {
        name: "grace",
        variable: "BACKUP_GRACE",
        default: "30",
        about: "seconds that running work may take to finish after a stop",
        check: |value| number(value, 0, 86_400).map(drop),
    },
    Setting {
        name: "nice",
        variable: "BACKUP_NICE",
        default: "10",
        about: "niceness of the service; above 0 the idle I/O class, too",
        check: |value| number(value, 0, 19).map(drop),
    },
    Setting {
        name: "compress",
        variable: "BACKUP_COMPRESS",
        default: "none",
        about: "compression of schedules made without --compress",
        check: |value| value.parse::<Compression>().map(drop),
    },
    Setting {
        name: "reverify_days",
        variable: "BACKUP_REVERIFY_DAYS",
        default: "30",
        about: "days in which every archive is read back at least once; 0 = never",
        check: |value| number(value, 0, 3650).map(drop),
    },
    Setting {
        name: "drill_days",
        variable: "BACKUP_DRILL_DAYS",
        default: "7",
        about: "days between two restore drills of a schedule; 0 = none",
        check: |value| number(value, 0, 3650).map(drop),
    },
    Setting {
        name: "history_days",
        variable: "BACKUP_HISTORY_DAYS",
        default: "400",
        about: "days that runs without an archive stay in the history; 0 = for ever",
        check: |value| number(value, 0, 36_500).map(drop),
    },
];

#[derive(Args)]
pub struct ConfigArgs {
    /// Setting
    name: Option<String>,
    /// New value
    #[arg(conflicts_with = "unset")]
    value: Option<String>,
    /// Restore the default
    #[arg(long, requires = "name")]
    unset: bool,
}

/// What `config --json` prints of each setting.
#[derive(Serialize)]
struct SettingDocument {
    name: &'static str,
    value: String,
    /// `default`, `config`, or the name of the environment variable.
    origin: String,
    /// What the setting means.
    about: &'static str,
}

pub fn cmd_config(context: &Context, args: &ConfigArgs) -> Result<u8> {
    let wanted = args.name.as_deref().map(find).transpose()?;
    let store = context.open()?;
    if let Some(setting) = wanted
        && (args.unset || args.value.is_some())
    {
        if let Some(value) = &args.value {
            (setting.check)(value)?;
        }
        store.set_setting(setting.name, args.value.as_deref())?;
        context.print_info(&match &args.value {
            Some(value) => format!("{} is {value} from the next start of the service", setting.name),
            None => format!("{} is {} again, from the next start of the service", setting.name, setting.default),
        });
        if context.format != Format::Json {
            return Ok(0);
        }
    }
    let shown: Vec<&Setting> = wanted.map_or_else(|| SETTINGS.iter().collect(), |setting| vec![setting]);
    let mut rows = Vec::new();
    for setting in shown {
        let (value, origin) = current(&store, setting)?;
        rows.push(SettingDocument { name: setting.name, value, origin, about: setting.about });
    }
    match context.format {
        Format::Json => render::print_json(&rows)?,
        Format::Plain => {
            render::print(&rows.iter().map(|row| format!("{}={}\n", row.name, row.value)).collect::<String>())?;
        }
        Format::Table => {
            let rows =
                rows.into_iter().map(|row| vec![row.name.to_owned(), row.value, row.origin, row.about.to_owned()]);
            let headings = ["SETTING", "VALUE", "FROM", "MEANING"];
            render::print_table(&headings, rows.collect(), context.colour, "No settings.")?;
        }
    }
    Ok(0)
}

fn find(name: &str) -> Result<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name).ok_or_else(|| {
        let names: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
        Error::usage(format!("there is no setting \"{name}\"")).hint(format!("choose from {}", names.join(", ")))
    })
}

/// Returns the effective value and its origin: the environment, the database, or the default.
fn current(store: &Store, setting: &Setting) -> Result<(String, String)> {
    if let Ok(value) = std::env::var(setting.variable)
        && !value.is_empty()
    {
        (setting.check)(&value)
            .map_err(|e| Error::usage(format!("{} in the environment", setting.variable)).because(e))?;
        return Ok((value, setting.variable.to_owned()));
    }
    match store.settings()?.into_iter().find(|(name, _)| name == setting.name) {
        Some((_, value)) => Ok((value, "config".to_owned())),
        None => Ok((setting.default.to_owned(), "default".to_owned())),
    }
}

fn value(store: &Store, name: &str) -> Result<String> {
    current(store, find(name)?).map(|(value, _)| value)
}

fn number(text: &str, min: u64, max: u64) -> Result<u64> {
    text.parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| Error::usage(format!("\"{text}\" is not a number from {min} to {max}")))
}

/// Parses the number of threads of an option.
pub fn parse_threads(text: &str) -> Result<usize> {
    number(text, 1, 256).map(|n| n as usize)
}

/// Returns the maximum number of runs at once: the flag, else the setting.
pub fn workers(store: &Store, flag: Option<usize>) -> Result<usize> {
    match flag {
        Some(number) => Ok(number),
        None => number(&value(store, "workers")?, 1, 256).map(|n| n as usize),
    }
}

/// Returns the number of encoder threads of a run: the flag, else the setting.
pub fn threads(store: &Store, flag: Option<usize>) -> Result<usize> {
    match (flag, value(store, "threads")?.as_str()) {
        (Some(number), _) => Ok(number),
        (None, "cores") => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        (None, text) => number(text, 1, 256).map(|n| n as usize),
    }
}

/// Returns how long running work may go on after a request to stop: the flag, else the setting.
pub fn grace(store: &Store, flag: Option<u64>) -> Result<Duration> {
    match flag {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => number(&value(store, "grace")?, 0, 86_400).map(Duration::from_secs),
    }
}

/// Returns a number of days: the flag, else the setting `name`.
pub fn days(store: &Store, name: &str, flag: Option<u32>) -> Result<u32> {
    match flag {
        Some(days) => Ok(days),
        None => number(&value(store, name)?, 0, 36_500).map(|days| days as u32),
    }
}

/// Returns the niceness of the service: the flag, else the setting.
pub fn nice(store: &Store, flag: Option<u8>) -> Result<u8> {
    match flag {
        Some(nice) => Ok(nice),
        None => number(&value(store, "nice")?, 0, 19).map(|n| n as u8),
    }
}

/// Returns the compression of schedules that are created without one.
pub fn default_compression(store: &Store) -> Result<Compression> {
    value(store, "compress")?.parse()
}

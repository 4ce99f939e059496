//! The command line: parses arguments, prints text or JSON, returns exit codes. One file for each verb or family of
//! verbs.

mod accept;
mod active_runs;
mod apply;
mod archives;
mod become_user;
mod cancel;
mod cat;
mod config;
mod create;
mod delete;
mod diff;
mod documents;
mod drill;
mod edit;
mod environment;
mod export;
mod find;
mod handover;
mod help;
mod history;
mod hook_options;
mod hooks;
mod io_class;
mod list;
mod logging;
mod ls;
mod next;
mod optional_bool;
mod prune;
mod render;
mod repair;
mod rescan;
mod restore;
mod results;
mod run;
mod schedule_options;
mod select;
mod serve;
mod signals;
mod start;
mod status;
mod system_zone;
mod terminal;
mod text_file;
mod verbs;
mod verify;
mod wait;
mod worker;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Once};

use chrono_tz::Tz;
use clap::{Args, CommandFactory, FromArgMatches, Parser};

use crate::archive_folder;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::health::live_services;
use crate::home::{Home, HomeOptions, with_suffix};
use crate::maintenance;
use crate::owner;
use crate::schedule::{self, ServiceZone, ZoneOrigin};
use crate::store::{Access, Bootstrap, ScheduleRow, Store};
use logging::Log;
use render::Format;
use verbs::{Verb, run_verb};

const AFTER_HELP: &str = "\
Exit codes:
  0 done               1 failed             2 usage
  3 done, incomplete   4 damage found       10 no such database, schedule, run, archive or member
  11 busy              130/143 interrupted  any other: failed

The home is the first of: --home, BACKUP_HOME, the current folder if it holds a database,
the path in /etc/backup-manager/home, the current folder.";

/// Scheduled backups into plain tar archives, verified, with a history in SQLite.
#[derive(Parser)]
#[command(name = "backup-manager", version, after_help = AFTER_HELP, max_term_width = 110)]
#[command(disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Args)]
struct Global {
    /// Folder of the database, the archives and the logs
    #[arg(long, global = true, env = "BACKUP_HOME", value_name = "DIR", help_heading = "Places")]
    home: Option<PathBuf>,
    /// Database [default: HOME/backup.db]
    #[arg(long, global = true, env = "BACKUP_DB", value_name = "FILE", help_heading = "Places")]
    db: Option<PathBuf>,
    /// Archive folder [default: HOME/backups]
    #[arg(long, global = true, env = "BACKUP_DIR", value_name = "DIR", help_heading = "Places")]
    backups: Option<PathBuf>,
    /// Log folder [default: HOME/logs]
    #[arg(long, global = true, env = "BACKUP_LOGS", value_name = "DIR", help_heading = "Places")]
    logs: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    /// Print stable lines, as when stdout is a pipe
    #[arg(long, global = true, conflicts_with = "json", help_heading = "Output")]
    plain: bool,
    /// Use no colour (also: NO_COLOR)
    #[arg(long, global = true, help_heading = "Output")]
    no_color: bool,
    /// Print only errors and warnings
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    quiet: bool,
    /// Print and log more
    #[arg(short, long, global = true, help_heading = "Output")]
    verbose: bool,
}

impl Global {
    /// Fails for options that exclude each other: clap does not see that if one is before the verb and one behind it.
    fn check(&self) -> Result<()> {
        let pair = match self {
            Global { json: true, plain: true, .. } => "--json and --plain",
            Global { quiet: true, verbose: true, .. } => "--quiet and --verbose",
            _ => return Ok(()),
        };
        Err(Error::usage(format!("{pair} cannot be used with each other")).hint("leave out one of them"))
    }
}

/// The environment of a command: global options, places, clock and zone.
pub(crate) struct Context {
    /// The verb, for the log.
    verb: String,
    start_logging: Once,
    pub home: Home,
    pub places: HomeOptions,
    pub format: Format,
    pub quiet: bool,
    pub verbose: bool,
    pub colour: bool,
    pub clock: Arc<dyn Clock>,
    /// The zone of this process, in which it shows times.
    pub zone: Tz,
    pub zone_origin: ZoneOrigin,
    /// Whether `zone` is UTC because the zone that is set is unknown.
    is_zone_unknown: bool,
}

impl Context {
    fn new(verb: &str, global: &Global) -> Result<Context> {
        global.check()?;
        let places = HomeOptions {
            home: global.home.clone(),
            db: global.db.clone(),
            backups: global.backups.clone(),
            logs: global.logs.clone(),
            group_read: std::env::var_os("BACKUP_GROUP_READ").is_some_and(|value| value == "1"),
        };
        let current = std::env::current_dir()
            .map_err(|e| Error::failed("the current folder does not exist").because(e).hint("cd to one that exists"))?;
        let (service_zone, is_zone_unknown) = match system_zone::service_zone() {
            Ok(zone) => (zone, false),
            Err(error) => {
                let hint = error.next_step().unwrap_or_default();
                render::print_stderr(&format!("warning: {error}; times are read and shown in UTC\n  next: {hint}"));
                (ServiceZone { zone: Tz::UTC, origin: ZoneOrigin::Unset }, true)
            }
        };
        let home = Home::locate(&places, &current)?;
        owner::determine([home.db(), &with_suffix(home.db(), ".lock"), &home.workers()]);
        Ok(Context {
            verb: verb.to_owned(),
            start_logging: Once::new(),
            home,
            places,
            format: render::format(global.json, global.plain),
            quiet: global.quiet,
            verbose: global.verbose,
            colour: !global.no_color && std::env::var_os("NO_COLOR").is_none() && io::stdout().is_terminal(),
            clock: Arc::new(SystemClock::new()),
            zone: service_zone.zone,
            zone_origin: service_zone.origin,
            is_zone_unknown,
        })
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Opens the database, which must exist, and logs the verb, unless a monitor calls it.
    pub fn open(&self) -> Result<Store> {
        let store = self.open_store(Access::Existing)?;
        if !self.is_monitoring() {
            self.log_verb();
        }
        Ok(store)
    }

    /// Returns whether the command is one that monitors call again and again: `status`, or what only reads and prints
    /// JSON. Its lines would fill the log.
    fn is_monitoring(&self) -> bool {
        const READING: [&str; 5] = ["list", "show", "next", "history", "backups"];
        self.verb == "status" || self.format == Format::Json && READING.contains(&self.verb.as_str())
    }

    /// Opens the database, which is created and reported if it does not exist, and logs the verb.
    pub fn open_or_create(&self) -> Result<Store> {
        let is_new = !self.home.db().exists();
        let store = self.open_store(Access::Create)?;
        self.log_verb();
        if is_new {
            self.print_info(&format!("created the database {}", self.home.db().display()));
        }
        Ok(store)
    }

    /// Opens the database without logging the verb.
    pub fn open_store(&self, access: Access) -> Result<Store> {
        if self.home.db().is_dir() {
            return Err(Error::usage(format!("the database {} is a folder", self.home.db().display()))
                .hint("name a file with --db, or the folder of the database with --home"));
        }
        let (file_mode, folder_mode) = (self.home.file_mode(), self.home.folder_mode());
        let bootstrap = Bootstrap { access, file_mode, folder_mode, notice: render::print_stderr };
        Store::open(self.home.db(), &bootstrap).map_err(|error| {
            let is_lost = error.kind() == ErrorKind::NotFound && archive_folder::belongs_to_lost_database(&self.home);
            if is_lost { error.hint(maintenance::recovery_step(&self.home)) } else { error }
        })
    }

    /// Adds the way out to the error of a damaged or lost database, unless it has one.
    pub fn with_recovery_step(&self, error: Error) -> Error {
        let is_in_need = match error.kind() {
            ErrorKind::DatabaseDamage => true,
            ErrorKind::NotFound => archive_folder::belongs_to_lost_database(&self.home),
            _ => false,
        };
        match error.next_step() {
            None if is_in_need => error.hint(maintenance::recovery_step(&self.home)),
            _ => error,
        }
    }

    fn log_verb(&self) {
        self.start_logging.call_once(|| {
            match logging::start(Log::Manager, &self.home, self.zone, Arc::clone(&self.clock), self.verbose) {
                Ok(()) => log::info!("--> Instruction {}", self.verb),
                // A command works without its log, as in a home that belongs to another user.
                Err(error) => self.warn(&error.to_string()),
            }
        });
    }

    /// Refreshes the stable links of schedules, and prints the notes on them.
    pub fn refresh_stable_links(&self, store: &Store, rows: &[ScheduleRow]) -> Result<()> {
        let notes = archive_folder::refresh_stable_links(&self.home, store, rows, self.now())?;
        notes.iter().for_each(|note| self.print_info(note));
        Ok(())
    }

    /// Logs a line and prints it to stderr unless `--quiet`.
    pub fn print_info(&self, text: &str) {
        log::info!("{text}");
        if !self.quiet {
            render::print_stderr(text);
        }
    }

    /// Logs a warning and prints it to stderr.
    pub fn warn(&self, text: &str) {
        log::warn!("{text}");
        render::print_stderr(&format!("warning: {text}"));
    }

    /// Warns of each index that cannot be read because of which segments that nothing uses any more are kept.
    pub fn warn_of_kept_segments(&self, store: &Store) -> Result<()> {
        for index in archive_folder::remove_unused_segments(&self.home, store)? {
            let error = index.into_error(&self.home);
            let next = error.next_step().map(|next| format!("\n  next: {next}"));
            // It is logged where the segments were to be removed.
            render::print_stderr(&format!("warning: {error}{}", next.unwrap_or_default()));
        }
        Ok(())
    }

    /// Returns the zone of this process, which a service started from it would use.
    ///
    /// Errors: `Usage` if the zone that is set is unknown.
    pub fn own_zone(&self) -> Result<Tz> {
        if self.is_zone_unknown { system_zone::service_zone().map(|found| found.zone) } else { Ok(self.zone) }
    }

    /// Returns the zone of schedules without one, to compute when they are due: that of the running service, else that
    /// of this process.
    ///
    /// Errors: those of [`Context::own_zone`].
    pub fn default_zone(&self, store: &Store) -> Result<Tz> {
        self.live_service_zone(store)?.map_or_else(|| self.own_zone(), Ok)
    }

    /// Same as [`Context::default_zone`], to show times: UTC if the zone is unknown.
    pub fn shown_zone(&self, store: &Store) -> Result<Tz> {
        Ok(self.live_service_zone(store)?.unwrap_or(self.zone))
    }

    fn live_service_zone(&self, store: &Store) -> Result<Option<Tz>> {
        if live_services(&self.home, store)?.is_empty() {
            return Ok(None);
        }
        store.service_zone()?.map(|name| schedule::parse_zone(&name)).transpose()
    }
}

/// Runs the command line of this process, prints errors, and returns the exit code.
pub fn main() -> ExitCode {
    signals::report_size_limit_as_error();
    // Looked up here, because wrong arguments are reported in JSON, too.
    let is_json = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    if is_json {
        // Without a handler an interruption has no document; the verb works all the same.
        let _ = signals::end_with_document();
    }
    match environment::load_setting_files().and_then(|()| run_command_line(is_json)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&error);
            if is_json {
                render::print_json_error(&error);
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn run_command_line(is_json: bool) -> Result<u8> {
    let parsed = help::grouped(Cli::command()).try_get_matches().and_then(|matches| {
        Ok((Cli::from_arg_matches(&matches)?, matches.subcommand_name().unwrap_or_default().to_owned()))
    });
    match parsed {
        Ok((cli, verb)) => Context::new(&verb, &cli.global)
            .and_then(|context| run_verb(&context, cli.command).map_err(|error| context.with_recovery_step(error))),
        Err(error) => {
            // Help is printed to stdout with exit code 0. A closed pipe is no error.
            let _ = error.print();
            if is_json && error.use_stderr() {
                render::print_json_error(&usage_error(&error));
            }
            Ok(u8::try_from(error.exit_code()).unwrap_or(ErrorKind::Usage.exit_code()))
        }
    }
}

/// Returns what clap found wrong, without the usage that it prints below.
fn usage_error(error: &clap::Error) -> Error {
    let text = error.to_string();
    let mut paragraphs = text.trim_start_matches("error: ").split("\n\n");
    let message = paragraphs.next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let tip = paragraphs.find_map(|paragraph| paragraph.trim().strip_prefix("tip: "));
    Error::usage(message).hint(tip.unwrap_or("see `backup-manager VERB --help`"))
}

/// Logs and prints an error: what failed, on what and why; on the next line the command to run next.
pub(crate) fn report(error: &Error) {
    if error.kind() == ErrorKind::Interrupted && error.next_step().is_none() {
        log::warn!("{error}");
    } else {
        log::error!("{error}");
    }
    let mut text = format!("error: {error}");
    if let Some(hint) = error.next_step() {
        text += &format!("\n  next: {hint}");
    }
    render::print_stderr(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_takes_json() {
        let mut command = Cli::command();
        command.build();
        for verb in command.get_subcommands() {
            assert!(verb.get_arguments().any(|option| option.get_long() == Some("json")), "{}", verb.get_name());
        }
    }
}

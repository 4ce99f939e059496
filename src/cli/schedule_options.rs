//! Options of a schedule that `create` and `edit` share.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use clap::Args;

use super::Context;
use super::hook_options::HookArgs;
use super::optional_bool::{BOOL, with_optional_bool};
use crate::error::{Error, Result};
use crate::schedule::{Cadence, CatchUp, Compression, Layout, Retention, Reuse, Schedule, parse_zone, source_problem};
use crate::source;

/// Options of a schedule.
#[derive(Args, Debug, Default)]
#[command(mut_args = with_optional_bool)]
pub struct ScheduleOptions {
    /// Times of day: 09:00 or 09:00,18:30
    #[arg(long, value_name = "HH:MM[,HH:MM]", conflicts_with = "cron", help_heading = "When")]
    pub at: Option<String>,
    /// Cron expression: five fields, or six with seconds
    #[arg(long, value_name = "EXPR", help_heading = "When")]
    pub cron: Option<String>,
    /// Time zone, such as Europe/Paris [default: that of the service]
    #[arg(long, value_name = "ZONE", help_heading = "When")]
    pub timezone: Option<String>,
    /// Runs to catch up after missed times: one for the latest, or none
    #[arg(long, value_name = "latest|skip", help_heading = "When")]
    pub catch_up: Option<CatchUp>,
    /// none, gzip[:LEVEL] or zstd[:LEVEL] [default: none]
    #[arg(long, value_name = "CODEC", help_heading = "Archive")]
    pub compress: Option<Compression>,
    /// How archives are stored: each as one tar file, or in segments, which they share [default: whole]
    #[arg(long, value_name = "whole|segmented", help_heading = "Archive")]
    pub layout: Option<Layout>,
    /// Exclude what matches (repeatable; syntax of .gitignore)
    #[arg(long, value_name = "GLOB", help_heading = "Archive")]
    pub exclude: Vec<String>,
    /// Exclude what matches a line of this file, which each run reads again (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "Archive")]
    pub exclude_file: Vec<String>,
    /// Exclude the content of folders with a CACHEDIR.TAG
    #[arg(long, value_name = BOOL, help_heading = "Archive")]
    pub exclude_caches: Option<bool>,
    /// Exclude the content of folders that hold a file of this name (repeatable)
    #[arg(long, value_name = "NAME", help_heading = "Archive")]
    pub exclude_if_present: Vec<String>,
    /// Do not descend into other file systems
    #[arg(short = 'x', long, value_name = BOOL, help_heading = "Archive")]
    pub one_file_system: Option<bool>,
    /// Do not verify archives after writing them
    #[arg(long, value_name = BOOL, help_heading = "Archive")]
    pub no_verify: Option<bool>,
    /// Do not compare inode numbers to find unchanged files
    #[arg(long, value_name = BOOL, help_heading = "Archive")]
    pub ignore_inode: Option<bool>,
    /// Do not read files again of which only ctime changed
    #[arg(long, value_name = BOOL, help_heading = "Archive")]
    pub ignore_ctime: Option<bool>,
    /// Find unchanged files by their times also on tmpfs, FUSE, SMB and others that may not show every change
    #[arg(long, value_name = BOOL, help_heading = "Archive")]
    pub trust_times: Option<bool>,
    #[command(flatten)]
    pub keep: KeepOptions,
    #[command(flatten)]
    pub hooks: HookArgs,
}

/// The retention policy. Any of these options replaces the whole default.
#[derive(Args, Debug, Default)]
pub struct KeepOptions {
    /// Keep the newest N
    #[arg(long, value_name = "N", help_heading = "Retention")]
    pub keep_last: Option<u32>,
    /// Keep one of each of the last N hours
    #[arg(long, value_name = "N", help_heading = "Retention")]
    pub keep_hourly: Option<u32>,
    /// Keep one of each of the last N days
    #[arg(long, value_name = "N", help_heading = "Retention")]
    pub keep_daily: Option<u32>,
    /// Keep one of each of the last N weeks
    #[arg(long, value_name = "N", help_heading = "Retention")]
    pub keep_weekly: Option<u32>,
    /// Keep one of each of the last N months
    #[arg(long, value_name = "N", help_heading = "Retention")]
    pub keep_monthly: Option<u32>,
    /// Keep one of each of the last N years
    #[arg(long, value_name = "N", help_heading = "Retention")]
    pub keep_yearly: Option<u32>,
    /// Keep all within AGE of the newest good one: 3d, 12h, 2w
    #[arg(long, value_name = "AGE", help_heading = "Retention")]
    pub keep_within: Option<String>,
    /// Keep all
    #[arg(long, help_heading = "Retention")]
    pub keep_all: bool,
    /// Keep archives of manual runs for this long: 14d
    #[arg(long, value_name = "AGE", help_heading = "Retention")]
    pub keep_manual: Option<String>,
}

/// Returns the bytes of a path on the command line.
///
/// Errors: `Usage` for an empty path, which would mean the home: it comes from a variable that is not set.
pub fn source_path(path: &OsStr) -> Result<Vec<u8>> {
    match source_problem(path.as_bytes()) {
        None => Ok(path.as_bytes().to_owned()),
        Some(problem) => Err(Error::usage(format!("no source: {problem}")).hint("name a folder or a file")),
    }
}

impl ScheduleOptions {
    /// Returns the cadence that `--at` or `--cron` gives.
    pub fn cadence(&self) -> Result<Option<Cadence>> {
        match (&self.at, &self.cron) {
            (Some(at), _) => Cadence::parse_daily(at).map(Some),
            (_, Some(cron)) => Cadence::parse_cron(cron).map(Some),
            _ => Ok(None),
        }
    }

    /// Warns about exclude patterns that can match nothing.
    pub fn warn_of_patterns(&self, context: &Context) {
        for problem in
            self.exclude.iter().filter(|glob| !glob.is_empty()).filter_map(|glob| source::pattern_problem(glob))
        {
            context.warn(&problem);
        }
    }

    /// Sets in `schedule` what was given; the rest is unchanged.
    pub fn apply(&self, schedule: &mut Schedule) -> Result<()> {
        if let Some(cadence) = self.cadence()? {
            schedule.cadence = Some(cadence);
        }
        match self.timezone.as_deref() {
            Some("service") => schedule.zone = None,
            Some(zone) => schedule.zone = Some(parse_zone(zone)?),
            None => {}
        }
        if let Some(catch_up) = self.catch_up {
            schedule.catch_up = catch_up;
        }
        if let Some(compression) = self.compress {
            schedule.compression = compression;
        }
        if let Some(layout) = self.layout {
            schedule.layout = layout;
        }
        if let Some(no_verify) = self.no_verify {
            schedule.verify = !no_verify;
        }
        let reuse = schedule.reuse;
        schedule.reuse = Reuse {
            ignore_inode: self.ignore_inode.unwrap_or(reuse.ignore_inode),
            ignore_ctime: self.ignore_ctime.unwrap_or(reuse.ignore_ctime),
            trust_times: self.trust_times.unwrap_or(reuse.trust_times),
        }
        .check()?;
        self.apply_excludes(schedule)?;
        if let Some(retention) = self.keep.retention()? {
            schedule.retention = retention;
        }
        Ok(())
    }

    fn apply_excludes(&self, schedule: &mut Schedule) -> Result<()> {
        let excludes = &mut schedule.excludes;
        let replace = |list: &mut Vec<String>, given: &[String]| {
            // One empty word clears the list.
            if !given.is_empty() {
                *list = given.iter().filter(|word| !word.is_empty()).cloned().collect();
            }
        };
        replace(&mut excludes.globs, &self.exclude);
        replace(&mut excludes.files, &self.exclude_file);
        replace(&mut excludes.if_present, &self.exclude_if_present);
        source::check_marker_names(&excludes.if_present)?;
        source::check_patterns(&excludes.globs)?;
        excludes.caches = self.exclude_caches.unwrap_or(excludes.caches);
        excludes.one_file_system = self.one_file_system.unwrap_or(excludes.one_file_system);
        Ok(())
    }
}

impl KeepOptions {
    fn retention(&self) -> Result<Option<Retention>> {
        let retention = Retention {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within.as_deref().map(crate::schedule::parse_age).transpose()?,
            all: self.keep_all,
            manual: self.keep_manual.as_deref().map(crate::schedule::parse_age).transpose()?,
        };
        if retention == Retention::EMPTY {
            return Ok(None);
        }
        Retention::from_options(retention).map(Some)
    }
}

//! Exports: the schedules of the database as a text file or as JSON.

use std::collections::BTreeMap;

use super::{DOCUMENT_VERSION, Document};
use crate::error::{Error, Result};
use crate::schedule::text_file::{self, Entry};
use crate::schedule::{Cadence, CatchUp, Compression, HookOptions, Hooks, Retention, Schedule};
use crate::store::{ScheduleRow, Store};

/// Schedules as a text file, and what it cannot hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportedText {
    /// The file's bytes.
    pub text: Vec<u8>,
    /// The names of schedules that are not in it, each with the reason.
    pub left_out: Vec<(String, String)>,
    /// The names of schedules that are in it, each with the options that are not.
    pub without_options: Vec<(String, Vec<&'static str>)>,
}

/// Formats the schedules as a text file.
pub fn export_text(store: &Store, rows: &[ScheduleRow]) -> Result<ExportedText> {
    let mut entries = Vec::new();
    let mut exported = ExportedText::default();
    let hooks = hooks_of(store, rows)?;
    for (row, hooks) in rows.iter().zip(&hooks) {
        let schedule = &row.schedule;
        let name = schedule.name.to_string();
        if hooks.source_command().is_some() {
            exported.left_out.push((name, "its source is what a command prints".to_owned()));
            continue;
        }
        match &schedule.cadence {
            Some(Cadence::Daily(times)) => entries.push(Entry {
                name: schedule.name.clone(),
                source: schedule.source.clone(),
                times: times.clone(),
            }),
            Some(Cadence::Cron(_)) => {
                exported.left_out.push((name, "a cron schedule has no place in it".to_owned()));
            }
            None => exported.left_out.push((name, "it has no times".to_owned())),
        }
    }
    let written = text_file::format(&entries);
    exported.text = written.text;
    exported.left_out.extend(written.left_out.into_iter().map(|(name, reason)| (name.to_string(), reason.to_owned())));
    for (row, hooks) in rows.iter().zip(&hooks) {
        if exported.left_out.iter().any(|(name, _)| *name == row.schedule.name.as_str()) {
            continue;
        }
        let options = options_not_in_text(&row.schedule, hooks);
        if !options.is_empty() {
            exported.without_options.push((row.schedule.name.to_string(), options));
        }
    }
    Ok(exported)
}

/// Returns what surrounds the runs of each schedule.
fn hooks_of(store: &Store, rows: &[ScheduleRow]) -> Result<Vec<Hooks>> {
    rows.iter().map(|row| store.hooks(row.id).map(|found| found.hooks)).collect()
}

/// Returns the options of a schedule that differ from those of a schedule imported from a text file.
fn options_not_in_text(schedule: &Schedule, hooks: &Hooks) -> Vec<&'static str> {
    let Schedule {
        name: _,
        source: _,
        cadence: _,
        zone,
        compression,
        layout,
        excludes,
        retention,
        reuse,
        catch_up,
        verify,
        enabled,
    } = schedule;
    let options = [
        (zone.is_some(), "time zone"),
        (*compression != Compression::default(), "compression"),
        (!layout.is_default(), "layout"),
        (!excludes.is_empty(), "excludes"),
        (*retention != Retention::default(), "keep rules"),
        (!reuse.is_default(), "rules for unchanged files"),
        (*catch_up != CatchUp::default(), "catch-up"),
        (!verify, "--no-verify"),
        (!enabled, "pause"),
        (!hooks.commands.is_empty(), "commands"),
        (hooks.options != HookOptions::default(), "options of commands and containers"),
    ];
    options.into_iter().filter_map(|(is_lost, option)| is_lost.then_some(option)).collect()
}

/// Formats the schedules with all their options as a JSON document.
pub fn export_json(store: &Store, rows: &[ScheduleRow]) -> Result<Vec<u8>> {
    let schedules = rows.iter().map(|row| row.schedule.clone()).collect();
    let named = rows.iter().map(|row| row.schedule.name.to_string()).zip(hooks_of(store, rows)?);
    let hooks = Some(named.filter(|(_, hooks)| !hooks.is_default()).collect::<BTreeMap<_, _>>());
    let hooks = hooks.filter(|hooks| !hooks.is_empty());
    let mut text = serde_json::to_vec_pretty(&Document { version: DOCUMENT_VERSION, schedules, hooks })
        .map_err(|e| Error::failed("cannot write the schedules as JSON").because(e))?;
    text.push(b'\n');
    Ok(text)
}

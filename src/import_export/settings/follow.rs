//! The settings file that a service follows.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use chrono_tz::Tz;

use super::{Entry, Present, Removed, SettingsPlan, parse_settings};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::import_export::followed_file::{Settled, read_settled};
use crate::import_export::import::parse_text;
use crate::schedule::ScheduleName;
use crate::store::Store;
use crate::words::shell_word;

/// Returns the absolute path by which a settings file marks what it manages. Links in it stay: some systems replace a
/// file by changing where a link leads.
///
/// Errors: `Usage` for a path that is not UTF-8.
pub fn settings_path(file: &Path) -> Result<String> {
    let absolute = std::path::absolute(file).map_err(Error::io("find", file))?;
    absolute.into_os_string().into_string().map_err(|path| {
        Error::usage(format!("the path of the settings file is not UTF-8: {}", path.to_string_lossy()))
            .hint("give it another name")
    })
}

/// Returns the names in the text that `serve --import` applied last.
pub fn names_in_text_file(store: &Store) -> Result<BTreeSet<ScheduleName>> {
    let text = store.imported()?.text.unwrap_or_default();
    // Text that was applied once is valid.
    let entries = parse_text(&text, "the text file").unwrap_or_default();
    Ok(entries.into_iter().map(|entry| entry.name).collect())
}

/// Fails if the file has commands and others than root and the owner of the database may have written them: they are
/// executed with the rights of that owner. `found` is what was read. Whoever may write the folder of the file, or of
/// what a link leads to, may replace it.
pub fn check_owner(home: &Home, file: &str, found: &fs::Metadata, entries: &[Entry]) -> Result<()> {
    if entries.iter().all(|entry| entry.hooks.commands.is_empty()) {
        return Ok(());
    }
    let uid = fs::metadata(home.db()).map_or_else(|_| rustix::process::geteuid().as_raw(), |database| database.uid());
    let check = |path: &Path, found: &fs::Metadata| {
        let (what, writers) = match found.is_dir() {
            true => (format!("its folder {}", path.display()), found.mode() & 0o1022),
            false => ("it".to_owned(), found.mode() & 0o022),
        };
        let refuse = |why: String, command: String| {
            let message = format!("the settings file {file} has commands, and nothing of it was applied: {why}");
            Err(Error::usage(message).hint(format!("{command} {}", shell_word(&path.to_string_lossy()))))
        };
        if ![0, uid].contains(&found.uid()) {
            let why = format!("{what} belongs to uid {}, and the database to uid {uid}", found.uid());
            return refuse(why, format!("chown {uid}"));
        }
        // In a sticky folder nobody replaces what belongs to another.
        if writers != 0 && writers & 0o1000 == 0 {
            return refuse(format!("others than its owner may write {what}"), "chmod go-w".to_owned());
        }
        Ok(())
    };
    check(Path::new(file), found)?;
    let real = fs::canonicalize(file).map_err(Error::io("find", file))?;
    for folder in [Path::new(file), &real].into_iter().filter_map(Path::parent) {
        check(folder, &fs::metadata(folder).map_err(Error::io("inspect", folder))?)?;
    }
    Ok(())
}

/// Makes the schedules that the file manages equal to it. Nothing is applied if the file is bad, lacks over a third of
/// what it managed, or may be cut off inside its last line.
pub(in crate::import_export) fn apply_followed_settings(
    settled: &Settled<'_>,
    beside_text_file: bool,
    home: &Home,
    store: &Store,
    zone: Tz,
    now: Timestamp,
) -> Result<()> {
    let (bytes, found) = read_settled(settled)?;
    let file = settings_path(settled.path())?;
    let entries = parse_settings(&bytes, &file)?;
    check_owner(home, &file, &found, &entries)?;
    let in_text_file = if beside_text_file { names_in_text_file(store)? } else { BTreeSet::new() };
    let present = Present { home, store: Some(store), in_text_file: &in_text_file, zone, now };
    let mut plan = SettingsPlan::new(&file, entries, Removed::Pause, &present)?;
    let is_unfinished = bytes.last().is_some_and(|last| *last != b'\n');
    if is_unfinished && plan.loses() {
        return Err(Error::usage(format!(
            "the settings file {file} may be cut off: its last line has no newline at its end, and with it less would \
             be backed up or kept. Nothing of it was applied. If it is whole, run `backup-manager apply {}`",
            shell_word(&file)
        )));
    }
    if is_unfinished && !plan.is_empty() && !settled.is_finished() {
        return Err(Error::usage(format!(
            "the settings file {file} may be cut off: its last line has no newline at its end. It is applied once it \
             has not changed for a minute"
        )));
    }
    plan.check_removals(&file, "pause them, run `backup-manager apply")?;
    plan.hold_prunes();
    plan.apply(home, store, now)?;
    plan.notes().iter().for_each(|note| log::info!("{note}"));
    if store.config_error()?.is_some() { store.set_config_error(None) } else { Ok(()) }
}

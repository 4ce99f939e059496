//! Following the text file and the settings file: each change is applied once the file rests.

use std::time::Duration;

use chrono_tz::Tz;

use super::change_plan::ChangePlan;
use super::followed_file::{FollowedFile, FollowedKind, Settled, read_settled};
use super::import::parse_text;
use super::settings::apply_followed_settings;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::schedule::text_file;
use crate::store::Store;

/// Applies what has changed in the file, once it rests. Any trouble with it is logged and recorded as the error that
/// `status` reports; then nothing is applied, and each later call tries again.
///
/// Returns how long the file must stay unchanged until it is applied; `None` if no change is pending. Errors: only
/// those of the database.
pub fn follow_file(
    file: &mut FollowedFile,
    home: &Home,
    store: &Store,
    zone: Tz,
    now: Timestamp,
    monotonic: Duration,
) -> Result<Option<Duration>> {
    file.follow(store, monotonic, |settled| match settled.kind() {
        FollowedKind::Text => apply_text_file(settled, store, zone, now),
        FollowedKind::Settings { beside_text_file } => {
            apply_followed_settings(settled, beside_text_file, home, store, zone, now)
        }
    })
}

fn apply_text_file(settled: &Settled<'_>, store: &Store, zone: Tz, now: Timestamp) -> Result<()> {
    let name = settled.name();
    let last = store.imported()?;
    if settled.is_no_file() && last.text.is_none() {
        log::warn!("{name} is not a file; it has never been imported, and the schedules are not changed");
        return store.set_import_error(None);
    }
    let (bytes, _) = read_settled(settled)?;
    let entries = parse_text(&bytes, &name)?;
    if !settled.is_finished()
        && let Some(line) = text_file::unfinished_line(&bytes, last.text.as_deref().unwrap_or_default())
    {
        return Err(Error::usage(format!(
            "the text file {name} may be cut off: its last line, \"{line}\", has no newline at its end. It is applied \
             once it has not changed for a minute"
        )));
    }
    // Text that was applied once is valid. If it were not, every line would count as new.
    let before = last.text.as_deref().and_then(|text| parse_text(text, &name).ok()).unwrap_or_default();
    let rows = store.schedules()?;
    let plan = ChangePlan::new(store, &rows, &text_file::changes(&before, &entries), zone, now)?;
    let made = before.iter().filter(|entry| rows.iter().any(|row| row.schedule.name == entry.name)).count();
    plan.check_deletions(&name, made, entries.is_empty())?;
    plan.apply(store, now)?;
    if last.text.as_deref() != Some(&bytes[..]) || last.error.is_some() {
        store.set_imported(&bytes, now)?;
    }
    Ok(())
}

//! How schedules, runs and times are named on the command line.

use crate::error::{Error, Result};
use crate::store::{ScheduleRow, Store};

/// Returns the schedule that `word` names: an index in `list` if it is all digits, else a name.
///
/// Errors: `NotFound`, with the nearest names.
pub fn schedule(store: &Store, word: &str) -> Result<ScheduleRow> {
    let rows = store.schedules()?;
    if !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) {
        let count = rows.len();
        let found = word.parse::<usize>().ok().and_then(|index| rows.into_iter().nth(index));
        return found.ok_or_else(|| {
            let there_are = match count {
                0 => "there are no schedules".to_owned(),
                1 => "the only index is 0".to_owned(),
                _ => format!("indexes go from 0 to {}", count - 1),
            };
            Error::not_found(format!("there is no schedule with index {word}: {there_are}"))
                .hint("see `backup-manager list`")
        });
    }
    let names: Vec<&str> = rows.iter().map(|row| row.schedule.name.as_str()).collect();
    let unknown = unknown_name("schedule", word, &names);
    rows.into_iter().find(|row| row.schedule.name.as_str() == word).ok_or(unknown)
}

/// Returns the schedules that `words` name, in that order, each once.
pub fn schedules(store: &Store, words: &[String]) -> Result<Vec<ScheduleRow>> {
    let mut found: Vec<ScheduleRow> = Vec::new();
    for word in words {
        let row = schedule(store, word)?;
        if found.iter().all(|other| other.id != row.id) {
            found.push(row);
        }
    }
    Ok(found)
}

/// Returns a schedule that may be deleted, for history and archives.
pub fn schedule_or_history(store: &Store, word: &str) -> Result<ScheduleRow> {
    match store.schedule_named(word)? {
        Some(row) => Ok(row),
        None => schedule(store, word),
    }
}

/// Returns the number in `@17`.
pub fn run_number(word: &str) -> Option<i64> {
    word.strip_prefix('@')?.parse().ok()
}

fn unknown_name(thing: &str, word: &str, names: &[&str]) -> Error {
    let mut near: Vec<(f64, &str)> = names
        .iter()
        .map(|name| (strsim::jaro_winkler(&word.to_lowercase(), &name.to_lowercase()), *name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let error = Error::not_found(format!("there is no {thing} \"{word}\""));
    match near.iter().take(3).map(|(_, name)| *name).collect::<Vec<_>>() {
        nearest if nearest.is_empty() => error.hint("see `backup-manager list`"),
        nearest => error.hint(format!("did you mean {}?", nearest.join(" or "))),
    }
}

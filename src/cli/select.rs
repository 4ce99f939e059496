//! Finds the schedules and archives that words on the command line name.

use std::ffi::OsStr;
use std::path::Path;

use super::Context;
use crate::browse::OpenArchive;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::maintenance::prune::no_archive;
use crate::store::{Archive, ScheduleRow, Store};
use crate::words::shell_word;

/// Returns the schedule that `word` names: an index in `list` if it is all digits, else a name.
///
/// Errors: `NotFound`, with the nearest names.
pub fn schedule(store: &Store, word: &str) -> Result<ScheduleRow> {
    let rows = store.schedules()?;
    if !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) {
        let count = rows.len();
        let found = word.parse::<usize>().ok().and_then(|index| rows.into_iter().nth(index));
        return found.ok_or_else(|| {
            let known = match count {
                0 => "there are no schedules".to_owned(),
                1 => "the only index is 0".to_owned(),
                _ => format!("indexes go from 0 to {}", count - 1),
            };
            Error::not_found(format!("there is no schedule with index {word}: {known}"))
                .hint("see `backup-manager list`")
        });
    }
    let names: Vec<&str> = rows.iter().map(|row| row.schedule.name.as_str()).collect();
    let unknown = unknown_name("schedule", word, &names);
    rows.into_iter().find(|row| row.schedule.name.as_str() == word).ok_or(unknown)
}

/// Returns the archives that `words` name: those of a schedule, or one as in `@17`; all without words.
///
/// Errors: `NotFound`.
pub fn archives(store: &Store, words: &[impl AsRef<str>]) -> Result<Vec<Archive>> {
    let mut archives = Vec::new();
    for word in words.iter().map(AsRef::as_ref) {
        match run_number(word) {
            Some(run) => archives.push(store.archive(run)?.ok_or_else(|| no_archive(run))?),
            None => archives.extend(store.archives(Some(schedule_or_history(store, word)?.id))?),
        }
    }
    if words.is_empty() { store.archives(None) } else { Ok(archives) }
}

/// Returns the schedules that `words` name, in that order, without duplicates.
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

/// Returns the schedule that `word` names, even a deleted one, which still has history and archives.
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

/// Opens the archive that `what` names: a run (`@17`, `docs@17`), the path of a file, or a schedule. Of a schedule it
/// is the one that `archive` names, else the newest made by `at`, else the newest good one.
///
/// Errors: `NotFound`, with the nearest names or times.
pub fn archive(context: &Context, what: &OsStr, archive: Option<&str>, at: Option<Timestamp>) -> Result<OpenArchive> {
    let chosen = archive.is_some() || at.is_some();
    if names_a_file(context, what) {
        if chosen {
            return Err(Error::usage("--archive and --at choose among the archives of a schedule; a file was named"));
        }
        let opened = OpenArchive::from_file(Path::new(what))?;
        if let Some(note) = opened.note() {
            context.warn(note);
        }
        return Ok(opened);
    }
    let store = context.open()?;
    let what = &*what.to_string_lossy();
    let found = match run_number(what) {
        Some(_) if chosen => {
            return Err(Error::usage(format!("{what} names one archive; --archive and --at do not apply")));
        }
        Some(run) => archive_of_run(&store, run)?,
        None => {
            let (name, run) = name_and_run(&store, what).filter(|_| !chosen).unzip();
            let row = schedule_or_history(&store, name.unwrap_or(what))?;
            match (archive.or(run), at) {
                (Some(word), _) => archive_named(&store, &row, word)?,
                (None, Some(at)) => archive_by(context, &store, &row, at)?,
                (None, None) => newest_archive(context, &store, &row)?,
            }
        }
    };
    OpenArchive::from_catalog(&context.home, &store, found)
}

/// Splits `docs@17` into its name and `@17`, unless it is the name of a schedule itself.
fn name_and_run<'w>(store: &Store, word: &'w str) -> Option<(&'w str, &'w str)> {
    let (name, run) = word.split_at(word.rfind('@')?);
    let is_both = !name.is_empty() && run_number(run).is_some();
    (is_both && schedule_or_history(store, word).is_err()).then_some((name, run))
}

/// Returns whether a word means a file rather than a schedule or a run: it has a `/`, or it looks like the name of an
/// archive or is a file, and no schedule has that name. `./docs.gz` is always the file.
pub fn names_a_file(context: &Context, what: &OsStr) -> bool {
    // The name of a schedule is UTF-8.
    let Some(what) = what.to_str() else { return true };
    if run_number(what).is_some() {
        return false;
    }
    if what.contains('/') {
        return true;
    }
    let looks_like_one = what.contains(".tar") || [".gz", ".zst", ".tgz"].iter().any(|end| what.ends_with(end));
    let is_schedule = || {
        let store = context.home.db().exists().then(|| context.open_store(crate::store::Access::Existing).ok());
        store.flatten().is_some_and(|store| schedule_or_history(&store, what).is_ok())
    };
    (looks_like_one || Path::new(what).is_file()) && !is_schedule()
}

fn archive_of_run(store: &Store, run: i64) -> Result<Archive> {
    if let Some(archive) = store.archive(run)? {
        return Ok(archive);
    }
    let mut runs: Vec<i64> = store.archives(None)?.iter().map(|archive| archive.run).collect();
    runs.sort_by_key(|other| other.abs_diff(run));
    let near: Vec<String> = runs.iter().take(3).map(|run| format!("@{run}")).collect();
    let error = Error::not_found(format!("archive @{run} does not exist"));
    Err(if near.is_empty() {
        error.hint("no archives exist yet: make one with `backup-manager run NAME`")
    } else {
        error.hint(format!("the nearest are {}; see `backup-manager backups --all`", near.join(", ")))
    })
}

fn archive_named(store: &Store, row: &ScheduleRow, word: &str) -> Result<Archive> {
    let number = run_number(word).or_else(|| word.parse().ok());
    let run = number.ok_or_else(|| {
        Error::usage(format!("\"{word}\" is not the number of an archive"))
            .hint("write @ and the number in its file name: @17")
    })?;
    let archive = archive_of_run(store, run)?;
    if archive.schedule_id != row.id {
        let name = &row.schedule.name;
        return Err(Error::not_found(format!("@{run} is an archive of {}, not of {name}", archive.schedule_name))
            .hint(format!("see `backup-manager backups {}`", shell_word(name.as_str()))));
    }
    Ok(archive)
}

fn archive_by(context: &Context, store: &Store, row: &ScheduleRow, at: Timestamp) -> Result<Archive> {
    let archives = store.archives(Some(row.id))?;
    let zone = &context.zone;
    let oldest = archives.iter().min_by_key(|archive| archive.created_at).map(|archive| archive.created_at);
    let by_then = |good: bool| {
        let made = archives.iter().filter(move |archive| archive.created_at <= at && (archive.good || !good));
        made.max_by_key(|archive| (archive.created_at, archive.run)).cloned()
    };
    if let Some(archive) = by_then(true) {
        return Ok(archive);
    }
    let name = &row.schedule.name;
    if let Some(archive) = by_then(false) {
        context.warn(&format!("@{} is the newest archive of {name} made by then, but it is not good", archive.run));
        return Ok(archive);
    }
    let error = Error::not_found(format!("{name} has no archive made by {}", at.rfc3339(zone)));
    Err(match oldest {
        Some(oldest) => error.hint(format!("its oldest was made at {}", oldest.rfc3339(zone))),
        None => error.hint(format!("it has no archives: make one with {}", run_command(name.as_str()))),
    })
}

/// Returns the newest good archive of a schedule; if none is good, the newest, with a warning.
pub fn newest_archive(context: &Context, store: &Store, row: &ScheduleRow) -> Result<Archive> {
    if let Some(archive) = store.newest_good(row.id)? {
        return Ok(archive);
    }
    let name = &row.schedule.name;
    match store.archives(Some(row.id))?.pop() {
        Some(archive) => {
            context.warn(&format!("{name} has no good archive; using the newest, @{}", archive.run));
            Ok(archive)
        }
        None => Err(Error::new(ErrorKind::NotFound, format!("{name} has no archives"))
            .hint(format!("make one with {}", run_command(name.as_str())))),
    }
}

/// Returns the command that runs a schedule.
fn run_command(name: &str) -> String {
    format!("`backup-manager run {}`", shell_word(name))
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

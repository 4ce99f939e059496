//! The text file of schedules that the old system used: one `path;hh:mm;name` a line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};

use super::cadence::{DailyTimes, TimeOfDay};
use super::name::ScheduleName;
use super::source_problem;
use super::spec::{Spec, printable};

/// One time of day of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Line number, from 1.
    pub number: usize,
    /// The path, as UTF-8.
    pub source: Vec<u8>,
    /// The time of day.
    pub time: TimeOfDay,
    /// The name.
    pub name: ScheduleName,
}

/// An invalid line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Line number, from 1.
    pub number: usize,
    /// The line, escaped for a message.
    pub text: String,
    /// Why it is invalid.
    pub reason: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: \"{}\": {}", self.number, self.text, self.reason)
    }
}

/// A schedule in the file: all lines with its name together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: ScheduleName,
    /// The path, without the `./` that the file needs before some paths.
    pub source: Vec<u8>,
    /// The times of its lines.
    pub times: DailyTimes,
}

/// Characters ignored at the start of a line. A path that begins with one of them, or with `#`, is written after `./`.
const BLANKS: [char; 3] = [' ', '\t', '\u{feff}'];

/// Parses the whole file, or returns all invalid lines.
///
/// The file is UTF-8, with or without a byte order mark, or UTF-16 with one. If it is neither, all of it is read as
/// Windows-1252, and its paths become UTF-8. Lines end in LF or CRLF. Blank lines and those that begin with `#` are
/// ignored.
pub fn parse(bytes: &[u8]) -> Result<Vec<Line>, Vec<BadLine>> {
    let (lines, bad) = read_lines(bytes)?;
    if bad.is_empty() { Ok(lines) } else { Err(bad) }
}

/// Parses and merges the whole file, or returns all lines that are invalid for [`parse`] or [`merge`], in their order.
pub fn read(bytes: &[u8]) -> Result<Vec<Entry>, Vec<BadLine>> {
    let (lines, mut bad) = read_lines(bytes)?;
    match merge(&lines) {
        Ok(entries) if bad.is_empty() => return Ok(entries),
        Ok(_) => {}
        Err(more) => bad.extend(more),
    }
    bad.sort_by_key(|line| line.number);
    Err(bad)
}

fn read_lines(bytes: &[u8]) -> Result<(Vec<Line>, Vec<BadLine>), Vec<BadLine>> {
    let (mut lines, mut bad) = (Vec::new(), Vec::new());
    for (index, text) in decode(bytes)?.split('\n').enumerate() {
        let number = index + 1;
        let text = trimmed(text);
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        match Spec::parse_or_reason(text.as_bytes()) {
            Err(reason) => bad.push(BadLine { number, text: printable(text.as_bytes()), reason }),
            Ok(spec) => lines.extend(spec.times.as_slice().iter().map(|&time| Line {
                number,
                source: without_prefix(&spec.source).to_vec(),
                time,
                name: spec.name.clone(),
            })),
        }
    }
    Ok((lines, bad))
}

fn trimmed(line: &str) -> &str {
    line.trim_end_matches(['\r', ' ', '\t']).trim_start_matches(BLANKS)
}

/// Returns the last line, escaped for a message, if it has no line end and is neither blank, a comment nor a line of
/// `before`: the rest of it may be missing, and a part of a name is a valid name, too.
pub fn unfinished_line(bytes: &[u8], before: &[u8]) -> Option<String> {
    let (text, before) = (decode(bytes).ok()?, decode(before).unwrap_or_default());
    let last = trimmed(text.rsplit('\n').next()?);
    let is_known = last.is_empty() || last.starts_with('#') || before.split('\n').any(|line| trimmed(line) == last);
    (!is_known).then(|| printable(last.as_bytes()))
}

fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, Vec<BadLine>> {
    let bytes = match Encoding::for_bom(bytes) {
        None => bytes,
        Some((encoding, mark)) if encoding == UTF_8 => &bytes[mark..],
        Some((encoding, mark)) => {
            let reason = format!("the file begins as {} and continues in another encoding", encoding.name());
            let whole = encoding.decode_without_bom_handling_and_without_replacement(&bytes[mark..]);
            return whole.ok_or_else(|| vec![BadLine { number: 1, text: String::new(), reason }]);
        }
    };
    Ok(match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => WINDOWS_1252.decode_without_bom_handling(bytes).0,
    })
}

/// Merges the lines with the same name and path, in the order in which the names first occur. A line with a known name
/// and another path is invalid.
pub fn merge(lines: &[Line]) -> Result<Vec<Entry>, Vec<BadLine>> {
    let mut position: BTreeMap<&ScheduleName, usize> = BTreeMap::new();
    let mut found: Vec<(&Line, Vec<TimeOfDay>)> = Vec::new();
    let mut bad = Vec::new();
    for line in lines {
        let at = *position.entry(&line.name).or_insert(found.len());
        match found.get_mut(at) {
            None => found.push((line, vec![line.time])),
            Some((first, times)) if first.source == line.source => times.push(line.time),
            Some((first, _)) => bad.push(BadLine {
                number: line.number,
                text: printable(&format_line(&line.source, line.time, &line.name)),
                reason: format!(
                    "\"{}\" is in line {} with another path, \"{}\"",
                    line.name,
                    first.number,
                    printable(&first.source)
                ),
            }),
        }
    }
    if !bad.is_empty() {
        return Err(bad);
    }
    let entries = found.into_iter().filter_map(|(line, times)| {
        Some(Entry { name: line.name.clone(), source: line.source.clone(), times: DailyTimes::new(times)? })
    });
    Ok(entries.collect())
}

/// A formatted file, and the schedules that it cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file's bytes.
    pub text: Vec<u8>,
    /// The schedules that are not in it, each with the reason.
    pub left_out: Vec<(ScheduleName, &'static str)>,
}

/// Formats entries in their order, one line for each time, so that [`parse`] and [`merge`] return the same entries.
pub fn format(entries: &[Entry]) -> Written {
    let (mut text, mut left_out) = (Vec::new(), Vec::new());
    for entry in entries {
        if let Some(reason) = unwritable(&entry.source) {
            left_out.push((entry.name.clone(), reason));
            continue;
        }
        for &time in entry.times.as_slice() {
            text.extend_from_slice(&format_line(&entry.source, time, &entry.name));
            text.push(b'\n');
        }
    }
    Written { text, left_out }
}

/// Returns the reason why the file cannot hold a path; `None` if it can.
fn unwritable(source: &[u8]) -> Option<&'static str> {
    if std::str::from_utf8(source).is_err() {
        return Some("its path is not UTF-8");
    }
    if source.contains(&b'\n') {
        return Some("its path has a line break");
    }
    source_problem(source)
}

fn format_line(source: &[u8], time: TimeOfDay, name: &ScheduleName) -> Vec<u8> {
    let prefix: &[u8] = if needs_prefix(source) { b"./" } else { b"" };
    [prefix, source, format!(";{time};{name}").as_bytes()].concat()
}

/// Returns whether a path needs a `./` before it, without which it would be parsed as a comment or lose its first
/// character. A path that already looks as if it had such a prefix needs one more, so that every path has a form of its
/// own.
fn needs_prefix(source: &[u8]) -> bool {
    let mut rest = source;
    while let Some(shorter) = rest.strip_prefix(b"./") {
        rest = shorter;
    }
    rest.starts_with(b"#") || BLANKS.iter().any(|blank| rest.starts_with(blank.encode_utf8(&mut [0; 4]).as_bytes()))
}

fn without_prefix(source: &[u8]) -> &[u8] {
    match source.strip_prefix(b"./") {
        Some(rest) if needs_prefix(rest) => rest,
        _ => source,
    }
}

/// The difference between the file last imported and the file now, for one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The name.
    pub name: ScheduleName,
    /// The path in the new lines; `None` if there are no new lines.
    pub source: Option<Vec<u8>>,
    /// The times of the new lines.
    pub added: Vec<TimeOfDay>,
    /// The times of the removed lines.
    pub removed: Vec<TimeOfDay>,
}

impl Change {
    /// Applies the change to a schedule with the times `present`, and returns its new times; `None` if none are left
    /// and the schedule is to be deleted.
    pub fn apply(&self, present: &[TimeOfDay]) -> Option<DailyTimes> {
        let kept = present.iter().filter(|time| !self.removed.contains(time));
        DailyTimes::new(kept.chain(&self.added).copied().collect())
    }
}

/// Compares two states of the file line by line. A line that is in both, with the same path, time and name, is in no
/// change, so that applying the changes never undoes what a command did to its schedule. Returns the changes in the
/// order of the file now, then those of names that are no longer in it.
pub fn changes(last: &[Entry], now: &[Entry]) -> Vec<Change> {
    let by_name = |entries: &'_ [Entry]| -> BTreeMap<ScheduleName, Entry> {
        entries.iter().map(|entry| (entry.name.clone(), entry.clone())).collect()
    };
    let (before, after) = (by_name(last), by_name(now));
    let removed_entries = last.iter().filter(|entry| !after.contains_key(&entry.name));
    let mut found = Vec::new();
    for entry in now.iter().chain(removed_entries) {
        let (old, new) = (before.get(&entry.name), after.get(&entry.name));
        // If the path has changed, every line is a new line.
        let same_path = old.zip(new).is_some_and(|(old, new)| old.source == new.source);
        let times = |entry: Option<&Entry>| entry.map_or(Vec::new(), |entry| entry.times.as_slice().to_vec());
        let (old_times, new_times) = (times(old), times(new));
        let added: Vec<_> = new_times.iter().filter(|t| !(same_path && old_times.contains(t))).copied().collect();
        let removed: Vec<_> = old_times.iter().filter(|t| !new_times.contains(t)).copied().collect();
        if !added.is_empty() || !removed.is_empty() {
            let source = new.filter(|_| !added.is_empty()).map(|new| new.source.clone());
            found.push(Change { name: entry.name.clone(), source, added, removed });
        }
    }
    found
}

//! The old text file of schedules: `path;hh:mm;name` a line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};

use super::cadence::{DailyTimes, TimeOfDay};
use super::name::ScheduleName;
use super::spec::{Spec, printable};

/// One time of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counts from 1.
    pub number: usize,
    /// The path, as UTF-8.
    pub source: Vec<u8>,
    /// The time of day.
    pub time: TimeOfDay,
    /// The name.
    pub name: ScheduleName,
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Counts from 1.
    pub number: usize,
    /// What stands there, fit for a message.
    pub text: String,
    /// Why it cannot be used.
    pub reason: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: \"{}\": {}", self.number, self.text, self.reason)
    }
}

/// A schedule as the file can hold it: all its lines together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: ScheduleName,
    /// The path, as it is without the marks that the file needs for some.
    pub source: Vec<u8>,
    /// The times of its lines.
    pub times: DailyTimes,
}

/// What is dropped at the start of a line. A path that begins with one of them, or with `#`, stands behind `./`.
const BLANKS: [char; 3] = [' ', '\t', '\u{feff}'];

/// Parses the whole file, or else tells every bad line.
///
/// The file is UTF-8, with or without a byte order mark, or UTF-16 with one; if it is not, all of it is read as
/// Windows-1252, and its paths become UTF-8. Lines end in LF or CRLF; blank ones and those that begin with `#` are
/// passed over.
pub fn parse(bytes: &[u8]) -> Result<Vec<Line>, Vec<BadLine>> {
    let (lines, bad) = read_lines(bytes)?;
    if bad.is_empty() { Ok(lines) } else { Err(bad) }
}

/// Parses and merges the whole file, or else tells every line that one or the other refuses, in their order.
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
        let text = text.trim_end_matches(['\r', ' ', '\t']).trim_start_matches(BLANKS);
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        match Spec::parse_or_reason(text.as_bytes()) {
            Err(reason) => bad.push(BadLine { number, text: printable(text.as_bytes()), reason }),
            Ok(spec) => lines.extend(spec.times.as_slice().iter().map(|&time| Line {
                number,
                source: unmarked(&spec.source).to_vec(),
                time,
                name: spec.name.clone(),
            })),
        }
    }
    Ok((lines, bad))
}

fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, Vec<BadLine>> {
    let bytes = match Encoding::for_bom(bytes) {
        None => bytes,
        Some((encoding, mark)) if encoding == UTF_8 => &bytes[mark..],
        Some((encoding, mark)) => {
            let reason = format!("the file begins as {} and goes on as something else", encoding.name());
            let whole = encoding.decode_without_bom_handling_and_without_replacement(&bytes[mark..]);
            return whole.ok_or_else(|| vec![BadLine { number: 1, text: String::new(), reason }]);
        }
    };
    Ok(match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => WINDOWS_1252.decode_without_bom_handling(bytes).0,
    })
}

/// Puts lines of one name and path together, in the order in which the names first stand; the same name with another
/// path is a bad line.
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
                text: printable(&written(&line.source, line.time, &line.name)),
                reason: format!(
                    "\"{}\" stands in line {} with another path, \"{}\"",
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

/// A file as it is written, and what it could not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file's bytes.
    pub text: Vec<u8>,
    /// The schedules that are not in it, each with the reason.
    pub left_out: Vec<(ScheduleName, &'static str)>,
}

/// Writes entries in their order, a line for each time, such that [`parse`] and [`merge`] give them back.
pub fn format(entries: &[Entry]) -> Written {
    let (mut text, mut left_out) = (Vec::new(), Vec::new());
    for entry in entries {
        if let Some(reason) = unwritable(&entry.source) {
            left_out.push((entry.name.clone(), reason));
            continue;
        }
        for &time in entry.times.as_slice() {
            text.extend_from_slice(&written(&entry.source, time, &entry.name));
            text.push(b'\n');
        }
    }
    Written { text, left_out }
}

/// Says why the file cannot hold a path, if it cannot.
fn unwritable(source: &[u8]) -> Option<&'static str> {
    if std::str::from_utf8(source).is_err() {
        return Some("its path is not UTF-8");
    }
    if source.contains(&b'\n') {
        return Some("its path has a line break");
    }
    (source.is_empty() || source.contains(&0)).then_some("it has no usable path")
}

fn written(source: &[u8], time: TimeOfDay, name: &ScheduleName) -> Vec<u8> {
    let mark: &[u8] = if needs_mark(source) { b"./" } else { b"" };
    [mark, source, format!(";{time};{name}").as_bytes()].concat()
}

/// Says whether a path could be taken for a comment or lose its first character, were it not for a `./` before it. So
/// that every path has a form of its own, this holds also for one that looks as if it had such a mark already.
fn needs_mark(source: &[u8]) -> bool {
    let mut rest = source;
    while let Some(shorter) = rest.strip_prefix(b"./") {
        rest = shorter;
    }
    rest.starts_with(b"#") || BLANKS.iter().any(|blank| rest.starts_with(blank.encode_utf8(&mut [0; 4]).as_bytes()))
}

fn unmarked(source: &[u8]) -> &[u8] {
    match source.strip_prefix(b"./") {
        Some(rest) if needs_mark(rest) => rest,
        _ => source,
    }
}

/// What differs between the file last imported and the file now, for one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The name.
    pub name: ScheduleName,
    /// The path in the new lines; `None` if there are no new lines.
    pub source: Option<Vec<u8>>,
    /// The times of the new lines.
    pub added: Vec<TimeOfDay>,
    /// The times of the lines that are gone.
    pub removed: Vec<TimeOfDay>,
}

impl Change {
    /// Returns the times of a schedule that has `present` ones, once this is applied; `None` if it has none left, and
    /// is to go.
    pub fn apply(&self, present: &[TimeOfDay]) -> Option<DailyTimes> {
        let staying = present.iter().filter(|time| !self.removed.contains(time));
        DailyTimes::new(staying.chain(&self.added).copied().collect())
    }
}

/// Compares two states of the file line by line. A line that stands in both, with the same path, time and name, is in
/// no change, so that applying the changes never undoes what was done to its schedule by command. In the order of the
/// file now, then what is gone.
pub fn changes(last: &[Entry], now: &[Entry]) -> Vec<Change> {
    let by_name = |entries: &'_ [Entry]| -> BTreeMap<ScheduleName, Entry> {
        entries.iter().map(|entry| (entry.name.clone(), entry.clone())).collect()
    };
    let (before, after) = (by_name(last), by_name(now));
    let gone = last.iter().filter(|entry| !after.contains_key(&entry.name));
    let mut found = Vec::new();
    for entry in now.iter().chain(gone) {
        let (old, new) = (before.get(&entry.name), after.get(&entry.name));
        // With another path every line is another line.
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

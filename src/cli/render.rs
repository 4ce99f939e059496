//! Standard output and standard error: aligned tables on a terminal, stable lines in a pipe, one JSON document on
//! request.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use chrono_tz::Tz;
use comfy_table::{Attribute, Cell, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;

use super::documents::FailureDocument;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
pub use crate::words::{bytes, count};

/// A terminal with fewer columns gets tables of full width: fitted ones would be unreadable.
const MIN_FITTED_COLUMNS: u16 = 40;

/// Blanks between columns.
const GAP: u16 = 2;
/// The last column of a table may become as narrow as this.
const MIN_LAST_COLUMN: u16 = 10;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: aligned, with headings.
    Table,
    /// For pipes: stable lines.
    Plain,
    /// One document.
    Json,
}

/// Returns the format that the flags ask for; without one, a table on a terminal and lines otherwise.
pub fn format(json: bool, plain: bool) -> Format {
    match (json, plain || !io::stdout().is_terminal()) {
        (true, _) => Format::Json,
        (false, true) => Format::Plain,
        (false, false) => Format::Table,
    }
}

/// Prints to stdout. A reader that has closed the pipe is no error.
pub fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints text for people to stdout, with control characters escaped.
pub fn print_text(text: &str) -> Result<()> {
    print(&escape_control(text))
}

/// Prints bytes to stdout. A reader that has closed the pipe is no error.
pub fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unwritable(error)),
        _ => Ok(()),
    }
}

/// Returns the error for standard output that cannot be written.
pub fn unwritable(cause: io::Error) -> Error {
    Error::failed("cannot write to standard output").because(cause)
}

/// Prints a line to stdout and flushes it.
pub fn print_line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// Whether this process has printed its JSON document; locked while it prints it.
static IS_DOCUMENT_PRINTED: Mutex<bool> = Mutex::new(false);

/// Prints the JSON document of this process, its keys in alphabetical order.
pub fn print_json(document: &impl Serialize) -> Result<()> {
    let failed = |e| Error::failed("cannot write JSON").because(e);
    let sorted = serde_json::to_value(document).map_err(failed)?;
    let text = serde_json::to_string_pretty(&sorted).map_err(failed)?;
    let mut is_printed = IS_DOCUMENT_PRINTED.lock().unwrap_or_else(PoisonError::into_inner);
    *is_printed = true;
    print_line(&text)
}

/// Reserves stdout for the output of this process: no document of an error is printed behind it.
pub fn reserve_stdout() {
    *IS_DOCUMENT_PRINTED.lock().unwrap_or_else(PoisonError::into_inner) = true;
}

/// Prints the document of an error, unless another document is or is being printed: stdout holds one.
pub fn print_json_error(error: &Error) {
    let Ok(mut is_printed) = IS_DOCUMENT_PRINTED.try_lock() else { return };
    if std::mem::replace(&mut *is_printed, true) {
        return;
    }
    let text =
        serde_json::to_value(FailureDocument::from(error)).and_then(|sorted| serde_json::to_string_pretty(&sorted));
    // If stdout cannot be written, stderr and the exit code still report the error.
    let _ = text.map(|text| print_line(&text));
}

/// Prints a table with headings, or only the line `empty` if there are no rows. `colour` makes the headings bold.
pub fn print_table(headings: &[&str], rows: Vec<Vec<String>>, colour: bool, empty: &str) -> Result<()> {
    if rows.is_empty() {
        return print_line(empty);
    }
    let table = table(headings, rows, colour, Table::new().width());
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    print_line(&lines.join("\n"))
}

/// Lays out a table for a terminal of `width` columns, `None` where there is none.
fn table(headings: &[&str], rows: Vec<Vec<String>>, colour: bool, width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|heading| {
        let cell = Cell::new(heading);
        if colour { cell.add_attribute(Attribute::Bold) } else { cell }
    }));
    let longest_words: Vec<u16> = (0..headings.len()).map(|column| longest_word(headings, &rows, column)).collect();
    table.add_rows(rows);
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if number + 1 < headings.len() { GAP } else { 0 }));
    }
    let natural: u32 = table.column_max_content_widths().into_iter().map(|column| u32::from(column + GAP)).sum();
    // A terminal that does not know its width reports 0. One that has room for all breaks no name with a space.
    if let Some(width) = width.filter(|width| *width >= MIN_FITTED_COLUMNS && natural > u32::from(width + GAP)) {
        table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
        keep_words_whole(&mut table, &longest_words, width);
    }
    table
}

/// Returns the columns that the longest word of a column of the table needs.
fn longest_word(headings: &[&str], rows: &[Vec<String>], column: usize) -> u16 {
    let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
    let words = cells.chain([headings[column]]).flat_map(str::split_whitespace);
    words.map(|word| word.chars().count() as u16).max().unwrap_or_default()
}

/// Lets only the last column, which holds paths and reasons, break words, if there is room for that.
fn keep_words_whole(table: &mut Table, longest_words: &[u16], width: u16) {
    let with_gap = |word: &u16| word.saturating_add(GAP);
    let (last, others) = longest_words.split_last().unwrap_or((&0, &[]));
    let needed: u32 = others.iter().map(|word| u32::from(with_gap(word))).sum();
    if needed + u32::from(*last.min(&MIN_LAST_COLUMN)) > u32::from(width) {
        return;
    }
    for (column, word) in table.column_iter_mut().zip(others) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(with_gap(word))));
    }
}

/// Returns the bytes of a name with control characters and backslashes escaped as `tar -t` escapes them, so that a
/// terminal obeys none of them.
pub fn printable_bytes(name: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'\n' => text.extend(b"\\n"),
            b'\t' => text.extend(b"\\t"),
            b'\r' => text.extend(b"\\r"),
            b'\\' => text.extend(b"\\\\"),
            0..0x20 | 0x7f => text.extend(format!("\\{byte:03o}").bytes()),
            _ => text.push(byte),
        }
    }
    text
}

/// Returns a name as text that is safe to print.
pub fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(&printable_bytes(name)).into_owned()
}

/// Returns text with control characters escaped, so that a terminal obeys none of them; newlines stay.
pub fn escape_control(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| c.is_control() && c != '\n';
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|c| if is_control(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Writes a line to stderr with control characters escaped. A failure is ignored, for there is nowhere to report it.
pub fn print_stderr(text: &str) {
    let _ = io::stderr().write_all(format!("{}\n", escape_control(text)).as_bytes());
}

/// Returns a time for people: `2026-11-23 02:30`.
pub fn short_time(at: Timestamp, zone: &Tz) -> String {
    at.utc().with_timezone(zone).format("%Y-%m-%d %H:%M").to_string()
}

/// Returns a time for people, or a dash.
pub fn short_time_or_dash(at: Option<Timestamp>, zone: &Tz) -> String {
    at.map_or_else(|| "-".to_owned(), |at| short_time(at, zone))
}

/// Returns a duration for people, in its largest unit that is at least 2.
pub fn age(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_fits_breaks_no_name_and_one_that_does_not_is_fitted() {
        let headings = ["NEWEST", "RUN", "AGE", "SIZE", "MEMBERS", "VERIFIED", "ARCHIVES"];
        let row = ["Büro 2.tar.zst.index", "@4", "0 s", "1.60 KiB", "31", "2026-11-27 23:00", "2"];
        let lines = |width: Option<u16>| -> Vec<String> {
            let rows = vec![row.map(str::to_owned).to_vec()];
            table(&headings, rows, false, width).lines().map(|line| line.trim_end().to_owned()).collect()
        };
        assert_eq!(lines(None), lines(Some(80)));
        assert!(lines(Some(80))[1].starts_with("Büro 2.tar.zst.index  @4"), "{:?}", lines(Some(80)));
        let narrow = lines(Some(70));
        assert!(narrow.len() > 2 && narrow.iter().all(|line| line.chars().count() <= 70), "{narrow:?}");
    }

    #[test]
    fn control_characters_are_escaped_and_newlines_stay() {
        assert_eq!(escape_control("a\u{1b}[2Jb\u{9b}\tc\n d\u{fffd}é"), "a\\u{1b}[2Jb\\u{9b}\\tc\n d\u{fffd}é");
    }
}

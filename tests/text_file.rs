//! The text file of schedules: formatted entries are parsed back whatever their paths, and any bytes are parsed or
//! refused.

use backup_manager::schedule::text_file::{self, Change, Entry, Line};
use backup_manager::schedule::{DailyTimes, ScheduleName, TimeOfDay};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn lines(bytes: &[u8]) -> Vec<Line> {
    text_file::parse(bytes).unwrap_or_else(|bad| panic!("{bad:?}"))
}

fn entries(bytes: &[u8]) -> Vec<Entry> {
    text_file::merge(&lines(bytes)).unwrap_or_else(|bad| panic!("{bad:?}"))
}

/// Returns entries as `NAME=PATH@TIMES`.
fn brief(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|e| format!("{}={}@{}", e.name, String::from_utf8_lossy(&e.source), e.times)).collect()
}

fn time(text: &str) -> TimeOfDay {
    TimeOfDay::parse(text).unwrap()
}

#[test]
fn a_file_of_the_old_system_is_parsed() {
    let old = b"# my backups\r\n\r\n/home/u/documents;9:00;docs_morning\r\n  \t\r\nphotos;23:59;photos\r\n\
                /home/u/documents;18:30;docs_morning\r\na;b;c;00:00;semicolons";
    let found = lines(old);
    assert_eq!(found.iter().map(|line| line.number).collect::<Vec<_>>(), [3, 5, 6, 7]);
    assert_eq!(
        brief(&entries(old)),
        ["docs_morning=/home/u/documents@09:00,18:30", "photos=photos@23:59", "semicolons=a;b;c@00:00"]
    );
    assert_eq!(entries(b""), []);
}

#[test]
fn a_last_line_without_a_line_end_is_unfinished_unless_it_is_known_blank_or_a_comment() {
    let unfinished = |text: &str, before: &str| text_file::unfinished_line(text.as_bytes(), before.as_bytes());
    assert_eq!(unfinished("/a;09:00;one\n/b;10:00;tw", "").as_deref(), Some("/b;10:00;tw"));
    assert_eq!(unfinished("/a;09:00;o", "/a;09:00;one\n").as_deref(), Some("/a;09:00;o"));
    for (text, before) in [
        ("", ""),
        ("/a;09:00;one\n", ""),
        ("/a;09:00;one\r\n", ""),
        ("/a;09:00;one\n  \t", ""),
        ("/a;09:00;one\n# not fini", ""),
        ("# new\n/a;09:00;one", "/a;09:00;one\r\n/b;10:00;two\r\n"),
        ("/a;09:00;one \r", "/a;09:00;one"),
    ] {
        assert_eq!(unfinished(text, before), None, "{text:?} after {before:?}");
    }
    let utf16: Vec<u8> = "\u{feff}/a;09:00;one\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(text_file::unfinished_line(&utf16, b""), None);
    assert!(text_file::unfinished_line(&utf16[..utf16.len() - 4], b"").is_some());
}

#[test]
fn the_encoding_is_detected() {
    let expected = ["büro=/é/€@09:00"];
    let text = "/é/€;09:00;büro\r\n";
    let utf16 = |mark: u16, swap: fn(u16) -> [u8; 2]| -> Vec<u8> {
        std::iter::once(mark).chain(text.encode_utf16()).flat_map(swap).collect()
    };
    assert_eq!(brief(&entries(text.as_bytes())), expected);
    assert_eq!(brief(&entries(format!("\u{feff}{text}").as_bytes())), expected);
    assert_eq!(brief(&entries(&utf16(0xfeff, u16::to_le_bytes))), expected);
    assert_eq!(brief(&entries(&utf16(0xfeff, u16::to_be_bytes))), expected);
    assert_eq!(brief(&entries(b"/\xe9/\x80;09:00;b\xfcro\r\n")), expected);
    assert_eq!(brief(&entries(b"\xef\xbb\xbf/\xe9/\x80;09:00;b\xfcro\r\n")), expected);
    assert!(text_file::parse(b"\xff\xfea\x00;").is_err(), "an incomplete UTF-16 character");
}

#[test]
fn every_bad_line_is_reported_with_its_number_and_reason() {
    let bad = text_file::parse(b"good;09:00;good\nbad\n# no\n;1:00;x\nbad;24:00;x\nbad;1:00;17\n").unwrap_err();
    let reported: Vec<String> = bad.iter().map(ToString::to_string).collect();
    for (line, (number, reason)) in reported.iter().zip([(2, "no \";\""), (4, "path"), (5, "0 to 23"), (6, "digits")]) {
        assert!(line.starts_with(&format!("line {number}: ")) && line.contains(reason), "{line}");
    }
    assert_eq!(reported.len(), 4);
    let twice = text_file::merge(&lines(b"a;1:00;x\nb;1:00;y\nb;2:00;x\na;3:00;x\n")).unwrap_err();
    assert_eq!(twice.len(), 1);
    assert_eq!(twice[0].number, 3);
    assert_eq!(twice[0].text, "b;02:00;x");
    assert!(twice[0].reason.contains("line 1") && twice[0].reason.contains("\"a\""), "{}", twice[0]);
}

#[test]
fn an_imported_file_is_exported_byte_for_byte() {
    let text = b"/home/u/documents;09:00;docs\n/home/u/documents;18:30;docs\n./#notes;00:05;notes\n";
    let read = entries(text);
    assert_eq!(read[1].source, b"#notes");
    let written = text_file::format(&read);
    assert_eq!(written.text, text);
    assert_eq!(written.left_out, []);
}

#[test]
fn paths_that_the_file_cannot_hold_are_left_out_with_a_reason() {
    let entry = |source: &[u8]| Entry {
        name: ScheduleName::parse("docs").unwrap(),
        source: source.to_vec(),
        times: DailyTimes::parse("09:00").unwrap(),
    };
    for (source, reason) in [(&b"a\nb"[..], "line break"), (b"caf\xe9", "UTF-8")] {
        let written = text_file::format(&[entry(source)]);
        assert_eq!(written.text, b"");
        assert!(written.left_out[0].1.contains(reason));
    }
}

#[test]
fn only_lines_that_differ_are_changes() {
    let last = entries(b"d;09:00;docs\nd;18:00;docs\np;01:00;photos\nm;02:00;mail\ng;05:00;gone\n");
    let now = entries(b"n;04:00;new\nd;09:00;docs\nd;19:00;docs\nq;01:00;photos\nm;02:00;mail\n");
    let brief: Vec<String> = text_file::changes(&last, &now)
        .iter()
        .map(|Change { name, source, added, removed }| {
            let source = source.as_ref().map(|source| String::from_utf8_lossy(source).into_owned());
            format!("{name} {source:?} +{} -{}", added.len(), removed.len())
        })
        .collect();
    assert_eq!(
        brief,
        ["new Some(\"n\") +1 -0", "docs Some(\"d\") +1 -1", "photos Some(\"q\") +1 -0", "gone None +0 -1"]
    );
    assert_eq!(text_file::changes(&now, &now), []);
}

#[test]
fn an_unchanged_line_does_not_undo_an_edit() {
    let last = entries(b"d;09:00;docs\nd;18:00;docs\n");
    let now = entries(b"d;09:00;docs\nd;19:00;docs\n");
    let change = &text_file::changes(&last, &now)[0];
    // A command changed 09:00 to 07:00. The line for 09:00 is still in the file, and does not bring it back.
    let times = |present: &[TimeOfDay]| change.apply(present).map(|times| times.to_string());
    assert_eq!(times(&[time("07:00"), time("18:00")]).as_deref(), Some("07:00,19:00"));
    assert_eq!(times(&[]).as_deref(), Some("19:00"));
    let gone = &text_file::changes(&last, &[])[0];
    assert_eq!(gone.apply(&[time("09:00"), time("18:00")]), None);
    assert_eq!(gone.apply(&[time("07:00"), time("18:00")]).map(|t| t.to_string()).as_deref(), Some("07:00"));
}

prop_compose! {
    fn any_times()(times in vec((0u8..24, 0u8..60), 1..4)) -> DailyTimes {
        let text: Vec<String> = times.iter().map(|(hour, minute)| format!("{hour}:{minute:02}")).collect();
        DailyTimes::parse(&text.join(",")).expect("a valid text")
    }
}

/// Generates paths full of characters that could be misinterpreted.
fn any_source() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z0-9]{1,4}",
        3 => "[#;. /\\\\\t\r\u{feff}\u{a0}é]",
        2 => Just("./".to_owned()),
        1 => "\\PC",
    ];
    vec(piece, 1..8).prop_map(|pieces| pieces.concat())
}

fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
    let name = "[a-zA-Zé#@][a-zA-Z0-9é#@ _.]{0,12}[a-z]";
    btree_map(name, (any_source(), any_times()), 0..6).prop_map(|entries| {
        let entries = entries.into_iter().filter_map(|(name, (source, times))| {
            Some(Entry { name: ScheduleName::parse(&name).ok()?, source: source.into_bytes(), times })
        });
        entries.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn formatted_entries_are_parsed_back(entries_before in any_entries(), crlf in any::<bool>()) {
        let written = text_file::format(&entries_before);
        prop_assert_eq!(&written.left_out, &[]);
        let text = String::from_utf8(written.text.clone()).expect("it is UTF-8");
        let read = if crlf { entries(text.replace('\n', "\r\n").as_bytes()) } else { entries(text.as_bytes()) };
        prop_assert_eq!(&read, &entries_before);
        prop_assert_eq!(text_file::changes(&entries_before, &read), vec![]);
        prop_assert_eq!(text_file::format(&read).text, written.text);
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = text_file::parse(&bytes);
    }

    #[test]
    fn any_text_similar_to_the_format_is_parsed_or_refused(
        pieces in vec(prop_oneof!["[;:#\r\n\t .0-9a-z\u{feff}]{0,6}", Just("\na;1:00;b".to_owned())], 0..20),
    ) {
        let text = pieces.concat();
        if let Ok(lines) = text_file::parse(text.as_bytes())
            && let Ok(entries_read) = text_file::merge(&lines)
        {
            prop_assert_eq!(entries(&text_file::format(&entries_read).text), entries_read);
        }
    }

    #[test]
    fn applying_the_changes_gives_the_new_file(before in any_entries(), after in any_entries()) {
        for change in text_file::changes(&before, &after) {
            let times = |entries: &[Entry]| {
                entries.iter().find(|e| e.name == change.name).map_or(vec![], |e| e.times.as_slice().to_vec())
            };
            let applied = change.apply(&times(&before)).map_or(vec![], |times| times.as_slice().to_vec());
            prop_assert_eq!(applied, times(&after));
        }
    }
}

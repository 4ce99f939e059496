//! The text file of schedules: nothing in it panics, and what is read is written in a form that is read back.
#![no_main]

use backup_manager::schedule::text_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(entries) = text_file::read(bytes) else { return };
    let lines = text_file::parse(bytes).expect("what is read is parsed");
    assert_eq!(text_file::merge(&lines).as_ref(), Ok(&entries));
    let written = text_file::format(&entries);
    let read_back = text_file::read(&written.text).expect("what is written is read back");
    let is_written = |entry: &&text_file::Entry| written.left_out.iter().all(|(name, _)| *name != entry.name);
    let expected: Vec<_> = entries.iter().filter(is_written).cloned().collect();
    assert_eq!(read_back, expected);
    for change in text_file::changes(&entries, &read_back) {
        assert!(written.left_out.iter().any(|(name, _)| *name == change.name), "{change:?}");
    }
});

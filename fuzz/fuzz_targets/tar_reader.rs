//! The reader of members: no tar, gzip or zstd file panics, fills the memory or is read without end; each member has a
//! name below the target, and exactly the data that it announces unless that is reported.
#![no_main]

mod memory_file;

use backup_manager::archive::foreign;
use backup_manager::archive::members::{Entry, Event, Members};
use backup_manager::archive::reader::ArchiveReader;
use backup_manager::browse::{OpenArchive, Selection};
use backup_manager::cancel::CancelToken;
use libfuzzer_sys::fuzz_target;
use memory_file::memory_file;

/// Reads the data of a member. Returns whether it is whole.
fn read_data(members: &mut Members, entry: &Entry) -> bool {
    let mut buffer = [0; 4096];
    let mut read = 0;
    loop {
        match members.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => read += count as u64,
            Err(_) => return false,
        }
    }
    assert_eq!(read, entry.stored, "{}", entry.member.path);
    true
}

fn check_entry(entry: &Entry) {
    let path = entry.member.path.as_bytes();
    assert!(!path.starts_with(b"/") && path.split(|&byte| byte == b'/').all(|part| part != b".." && part != b""));
    assert!(entry.member.mode <= 0o7777);
    let mut end = 0;
    for span in entry.spans.iter().flatten() {
        assert!(span.offset >= end && span.end() <= entry.member.size, "{span:?} in {}", entry.member.path);
        end = span.end();
    }
    let in_spans: u64 = entry.spans.iter().flatten().map(|span| span.length).sum();
    assert!(entry.spans.is_none() || in_spans == entry.stored);
}

fuzz_target!(|bytes: &[u8]| {
    let (_file, path) = memory_file(&[bytes]);
    let Ok(archive) = OpenArchive::from_file(&path) else { return };
    let selection = Selection::everything().expect("a selection of everything");
    let mut members = archive.members(&selection, 1).expect("a reader");
    let (mut count, mut broken) = (0_u64, false);
    let is_tar = loop {
        match members.next() {
            Ok(Some(Event::Member(entry))) => {
                check_entry(&entry);
                count += 1;
                broken |= !read_data(&mut members, &entry);
            }
            Ok(Some(Event::Refused { .. })) => count += 1,
            Ok(Some(Event::Damaged { .. } | Event::Undecodable { .. })) => broken = true,
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    if archive.is_ours() {
        return;
    }
    let again = ArchiveReader::open(&path).expect("a file that was opened before");
    let verified = foreign::examine(again, &CancelToken::new());
    assert_eq!(verified.is_ok(), is_tar);
    if let Ok(verified) = verified {
        assert_eq!(verified.extent.members, count);
        assert_eq!(verified.damage.is_empty() && verified.damaged_members.is_empty(), !broken, "{verified:?}");
    }
});

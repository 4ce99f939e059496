//! The index of an archive in segments: no text panics, fills the memory or is read in more than one form. The digest in
//! the last line is made right, so that what it protects is reached.
#![no_main]

use std::path::Path;

use backup_manager::archive::index::Index;
use backup_manager::archive_name::SegmentName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let digest = blake3::hash(bytes).to_hex();
    let text = [bytes, format!("# blake3 {digest}\n").as_bytes()].concat();
    let _ = Index::read(Path::new("x"), bytes);
    let Ok(index) = Index::read(Path::new("x"), text.as_slice()) else { return };
    let mut again = Vec::new();
    index.write(&mut again).expect("ranges that sum up to the size");
    assert_eq!(again, text, "there is one form of each index");
    assert_eq!(index.ranges().map(|range| range.length).sum::<u64>(), index.bytes());
    let schedule = index.archive_name().schedule;
    for range in index.ranges() {
        assert!(SegmentName::parse(range.segment, schedule).is_some() && !range.segment.contains('/'));
        assert!(range.length > 0 && range.offset.checked_add(range.length).is_some());
    }
});

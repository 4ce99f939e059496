//! Moving very many spans to a segment with copies, and splitting them.

use backup_manager::chunk::{CatalogChunk, Chunk, ChunkRecord, Place};
use backup_manager::schedule::{Cadence, Layout, Schedule, ScheduleName};
use backup_manager::store::{
    CopiedRange, FoundArchive, FoundTrailer, Moved, SegmentIntent, Store, StoredBytes, StoredRange, Watermark,
};
use chrono_tz::Tz;
use rusqlite::Connection;

use crate::support::{self, NOW, found};
use crate::transactions;

/// Bytes of each chunk.
const CHUNK: u64 = 2;

/// Adds an archive of that many chunks in one segment, with `gap` bytes between them; returns the schedule, the run and
/// the segment.
fn add(store: &Store, chunks: u64, gap: u64) -> (i64, i64, i64) {
    let name = ScheduleName::parse("docs").unwrap();
    let schedule = Schedule::new(name, b"docs".to_vec(), Cadence::parse_daily("01:00").unwrap());
    let watermark = Watermark::starting(&schedule, Tz::UTC, NOW);
    let schedule = store.create_schedules(&[(schedule, watermark)], NOW).unwrap()[0].0;
    let size = chunks * (CHUNK + gap) + 1;
    let stored = StoredBytes { size, device: 1, inode: 2, modified_ns: Some(0) };
    let segment = store.add_found_segment("docs/old", 1, Some(&stored)).unwrap();
    let file_name = "docs/docs-20261123T000000Z-1.tar.index".to_owned();
    let archive =
        FoundArchive { layout: Layout::Segmented, size: chunks * CHUNK + 1, ..found(schedule, 1, file_name, 3) };
    let run = store.begin_adding_archive(&archive, NOW).unwrap();
    let chunk = |sequence: u64| CatalogChunk {
        chunk: Chunk {
            sequence,
            offset: sequence * CHUNK,
            stored_length: CHUNK,
            stored_digest: [1; 32],
            content_length: 1,
            content_digest: Some([1; 32]),
        },
        place: Some(Place { segment, offset: sequence * (CHUNK + gap), crc: 0 }),
        read_started: NOW,
        record: ChunkRecord::New { members: Vec::new() },
    };
    let all: Vec<CatalogChunk> = (0..chunks).map(chunk).collect();
    all.chunks(2_000).for_each(|batch| store.add_chunks_of_archive(run, batch).unwrap());
    let trailer = FoundTrailer { segment, offset: size - 1, crc: 0 };
    store.finish_adding_archive(run, Some(&trailer), NOW).unwrap();
    (schedule, run, segment)
}

/// Moves what is copied, and returns the new segment and how many rows the largest transaction wrote.
fn move_copied(store: &Store, schedule: i64, run: i64, copied: &[CopiedRange]) -> (i64, i64) {
    let names = SegmentIntent { segment_name: "docs/new".to_owned(), temporary_name: "docs/.new".to_owned() };
    let segment = store.add_copying_segment(run, &names).unwrap();
    let most = transactions::rows_of_largest(|| {
        // Of this thread, and on connections that it opens.
        let store = support::open_at(store.path());
        assert_eq!(store.move_spans(schedule, segment, copied, NOW).unwrap(), Moved::All);
    });
    (segment, most)
}

fn count(store: &Store, condition: &str) -> u64 {
    let connection = Connection::open(store.path()).unwrap();
    connection.query_row(&format!("SELECT count(*) FROM span WHERE {condition}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn very_many_spans_are_moved_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    let store = support::open(&dir);
    let (schedule, run, old) = add(&store, 12_000, 1);
    let all = StoredRange { stored_file: old, offset: 0, bytes: 12_000 * 3 + 1 };
    let (new, most) = move_copied(&store, schedule, run, &[CopiedRange { from: all, offset: 7 }]);
    assert!((1_000..=10_000).contains(&most), "{most}");
    assert_eq!(count(&store, &format!("stored_file_id = {old}")), 0);
    assert_eq!(count(&store, &format!("stored_file_id = {new} AND chunks = 1 AND file_offset % 3 = 1")), 12_000);
    assert_eq!(store.segments_being_deleted().unwrap()[0].id, old);
}

#[test]
fn spans_of_which_some_chunks_are_copied_are_split() {
    let dir = tempfile::tempdir().unwrap();
    let store = support::open(&dir);
    let (schedule, run, old) = add(&store, 10_000, 0);
    assert_eq!(count(&store, "chunks > 0"), 10_000_u64.div_ceil(256));
    let copied: Vec<CopiedRange> = (0..10_000_u64)
        .step_by(2)
        .map(|chunk| {
            let from = StoredRange { stored_file: old, offset: chunk * CHUNK, bytes: CHUNK };
            CopiedRange { from, offset: chunk / 2 * CHUNK }
        })
        .collect();
    let (new, most) = move_copied(&store, schedule, run, &copied);
    assert!((5_000..=10_000).contains(&most), "{most}");
    assert_eq!(count(&store, &format!("stored_file_id = {new} AND chunks = 1 AND file_offset = sequence")), 5_000);
    assert_eq!(count(&store, &format!("stored_file_id = {old} AND file_offset = archive_offset")), 5_001);
    assert!(store.segments_being_deleted().unwrap().is_empty());
    let connection = Connection::open(store.path()).unwrap();
    for (what, query) in crate::stored_files::NEVER.iter().take(2) {
        let found = connection.prepare(query).unwrap().exists([]).unwrap();
        assert!(!found, "{what}");
    }
}

#[test]
fn chunks_that_are_copied_in_another_order_are_found_each_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = support::open(&dir);
    let (schedule, run, old) = add(&store, 512, 0);
    let copy_of = |chunk: u64| CopiedRange {
        from: StoredRange { stored_file: old, offset: chunk * CHUNK, bytes: CHUNK },
        offset: (511 - chunk) * CHUNK,
    };
    let (new, _) = move_copied(&store, schedule, run, &(0..512).map(copy_of).collect::<Vec<_>>());
    let is_there = "file_offset = (511 - sequence) * 2 AND archive_offset = sequence * 2 AND bytes = 2";
    assert_eq!(count(&store, &format!("stored_file_id = {new} AND chunks = 1 AND {is_there}")), 512);
    assert_eq!(count(&store, "chunk_id = sequence + (SELECT min(id) FROM chunk)"), 512);
    // The trailer was not copied.
    assert_eq!(count(&store, &format!("stored_file_id = {old} AND chunk_id IS NULL")), 1);
    assert!(store.segments_being_deleted().unwrap().is_empty());
}

//! The calls about archives in segments.

use backup_manager::chunk::{CatalogChunk, Place};
use backup_manager::schedule::{Layout, Schedule};
use backup_manager::store::{
    ClaimNow, FoundArchive, FoundTrailer, Health, Sealed, SealedSegments, SegmentIntent, Store, StoredBytes,
    StoredRange, Watermark, WorkerRow,
};
use chrono_tz::Tz;

use crate::calls::{COMPLETED, REQUEST, chunk, new_schedule};
use crate::support::{NOW, found, sealed};

const STORED: StoredBytes = StoredBytes { size: 2, device: 1, inode: 9, modified_ns: Some(0) };

pub fn call(store: &Store, worker: &WorkerRow) {
    let id = new_schedule(store, "segments");
    let schedule = Schedule { layout: Layout::Segmented, ..store.schedule(id).unwrap().schedule };
    let watermark = Watermark::starting(&schedule, Tz::UTC, NOW);
    store.edit_schedules(&[(id, schedule, watermark)], NOW).unwrap();
    let run = write(store, id, worker);
    let archive = store.archive(run).unwrap().unwrap();
    let segment = store.parts(archive.archive_file).unwrap().remove(0).id;
    assert_eq!(store.ranges(run, 0, 10).unwrap().len(), 2);
    assert_eq!(store.archive_crc(run).unwrap(), Some((7, 2)));
    assert_eq!(store.end_of_chunks(archive.archive_file).unwrap(), 1);
    let range = StoredRange { stored_file: segment, offset: 0, bytes: 1 };
    assert_eq!(store.stored_ranges(archive.archive_file, std::slice::from_ref(&(0..1))).unwrap(), [range]);
    store.chunks_of_other_archives(segment, archive.archive_file).unwrap();
    assert_eq!(store.record_verified(&archive, segment, &[range], NOW).unwrap(), [run]);
    assert_eq!(store.archive(run).unwrap().unwrap().health, Health::Damaged);
    store.record_missing(&archive, segment).unwrap();
    assert_eq!(store.segment_names(run).unwrap(), ["segments/1"]);
    store.record_index_health(run, Health::Good, Some(NOW)).unwrap();
    assert_eq!(store.mark_deleting(&[run], &[]).unwrap(), 1);
    store.remove_deleted(run).unwrap();
    assert_eq!(store.segments_being_deleted().unwrap().len(), 1);
    store.remove_segment(segment).unwrap();
    add_found(store, id);
}

/// Makes a complete archive with one chunk and a trailer in one segment.
fn write(store: &Store, schedule: i64, worker: &WorkerRow) -> i64 {
    let ClaimNow::Claimed(claim) = store.claim_now(schedule, REQUEST, worker, NOW).unwrap().0 else { panic!() };
    let names = SegmentIntent { segment_name: "segments/1".to_owned(), temporary_name: "segments/.1".to_owned() };
    let segment = store.add_segment(&claim, &names).unwrap();
    let place = Some(Place { segment, offset: 0, crc: 5 });
    store.add_chunks(&claim, &[CatalogChunk { place, ..chunk("folder") }]).unwrap();
    store.record_segment(&claim, segment, &STORED).unwrap();
    let in_segments = Some(SealedSegments { crc: 7, trailer_segment: segment, trailer_offset: 1 });
    store.seal(&claim, &Sealed { size: 2, in_segments, ..sealed() }).unwrap();
    assert_eq!(store.segments_of_run(claim.run()).unwrap().len(), 1);
    assert!(store.inherited_ranges(claim.run()).unwrap().is_empty());
    let run = claim.run();
    store.complete(claim, &COMPLETED, NOW).unwrap();
    run
}

fn add_found(store: &Store, schedule: i64) {
    let found = FoundArchive {
        layout: Layout::Segmented,
        size: 2,
        ..found(schedule, 90, "segments/found-90.tar.index".to_owned(), 8)
    };
    let run = store.begin_adding_archive(&found, NOW).unwrap();
    let segment = store.add_found_segment("segments/2", 90, &STORED).unwrap();
    assert!(store.has_segment("segments/2").unwrap());
    let place = Some(Place { segment, offset: 0, crc: 5 });
    store.add_chunks_of_archive(run, &[CatalogChunk { place, ..chunk("folder") }]).unwrap();
    store.finish_adding_archive(run, Some(&FoundTrailer { segment, offset: 1, crc: 7 }), NOW).unwrap();
    assert_eq!(store.archive(run).unwrap().unwrap().health, Health::Good);
}

//! The calls about archives in segments.

use backup_manager::chunk::{CatalogChunk, Place};
use backup_manager::schedule::{Layout, Schedule};
use backup_manager::store::{
    Archive, ClaimNow, CopiedRange, FoundArchive, FoundRange, FoundTrailer, Health, Moved, Sealed, SealedSegments,
    SegmentIntent, Store, StoredBytes, StoredRange, Watermark, WorkerRow,
};
use chrono_tz::Tz;

use crate::calls::{COMPLETED, REQUEST, chunk, new_schedule};
use crate::support::{NOW, found, sealed};

const STORED: StoredBytes = StoredBytes { size: 3, device: 1, inode: 9, modified_ns: Some(0) };

pub fn call(store: &Store, worker: &WorkerRow) {
    let id = new_schedule(store, "segments");
    let schedule = Schedule { layout: Layout::Segmented, ..store.schedule(id).unwrap().schedule };
    let watermark = Watermark::starting(&schedule, Tz::UTC, NOW);
    store.edit_schedules(&[(id, schedule, watermark)], NOW).unwrap();
    let run = write(store, id, worker);
    let archive = store.archive(run).unwrap().unwrap();
    let segment = store.parts(archive.archive_file).unwrap().remove(0).id;
    assert_eq!(store.ranges(run, 0, 10).unwrap().len(), 2);
    assert_eq!(store.archive_crc(run).unwrap(), Some((7, 3)));
    assert_eq!(store.end_of_chunks(archive.archive_file).unwrap(), 2);
    let range = StoredRange { stored_file: segment, offset: 0, bytes: 1 };
    assert_eq!(store.stored_ranges(archive.archive_file, std::slice::from_ref(&(0..1))).unwrap(), [range]);
    store.chunks_of_other_archives(segment, archive.archive_file).unwrap();
    assert_eq!(store.record_verified(&archive, segment, &[range], NOW).unwrap(), [run]);
    assert_eq!(store.archive(run).unwrap().unwrap().health, Health::Damaged);
    assert!(store.index_file(run).unwrap().is_some());
    let first = store.chunk_digests(0, 1).unwrap()[0].id;
    assert!(store.chunk_digests(first, 10).unwrap().iter().all(|chunk| chunk.id > first));
    let whole = store.archives(None).unwrap().into_iter().find(|archive| archive.layout == Layout::Whole).unwrap();
    store.places_of_chunk(first).unwrap();
    store.is_base_of_running_run(whole.archive_file).unwrap();
    store.record_replaced_file(&whole, &STORED, NOW).unwrap();
    usage(store, id, &archive, segment);
    store.record_missing(&archive, segment).unwrap();
    assert_eq!(store.segment_names(run).unwrap(), ["segments/1"]);
    store.record_index_health(run, Health::Good, Some(NOW)).unwrap();
    let segment = move_to_another(store, id, run, segment);
    assert_eq!(store.mark_deleting(&[run], &[]).unwrap(), 1);
    store.remove_deleted(run).unwrap();
    assert_eq!(store.segments_being_deleted().unwrap().len(), 1);
    store.remove_segment(segment).unwrap();
    add_found(store, id);
}

/// Makes a complete archive with two chunks and a trailer in one segment.
fn write(store: &Store, schedule: i64, worker: &WorkerRow) -> i64 {
    let ClaimNow::Claimed(claim) = store.claim_now(schedule, REQUEST, worker, NOW).unwrap().0 else { panic!() };
    let names = SegmentIntent { segment_name: "segments/1".to_owned(), temporary_name: "segments/.1".to_owned() };
    let segment = store.add_segment(&claim, &names).unwrap();
    let place = Some(Place { segment, offset: 0, crc: 5 });
    let one = CatalogChunk { place, ..chunk("folder") };
    let mut two = CatalogChunk { place: Some(Place { segment, offset: 1, crc: 5 }), ..chunk("folder/file") };
    (two.chunk.sequence, two.chunk.offset) = (1, 1);
    store.add_chunks(&claim, &[one, two]).unwrap();
    store.record_segment(&claim, segment, &STORED).unwrap();
    let in_segments = Some(SealedSegments { crc: 7, trailer_segment: segment, trailer_offset: 2 });
    store.seal(&claim, &Sealed { size: 3, in_segments, ..sealed() }).unwrap();
    assert_eq!(store.segments_of_run(claim.run()).unwrap().len(), 1);
    assert!(store.inherited_ranges(claim.run()).unwrap().is_empty());
    let run = claim.run();
    store.complete(claim, &COMPLETED, NOW).unwrap();
    run
}

fn usage(store: &Store, schedule: i64, archive: &Archive, segment: i64) {
    assert_eq!(store.kept_segments(schedule).unwrap().len(), 1);
    assert_eq!(store.archive_files_with_part(segment).unwrap(), [archive.archive_file]);
    assert_eq!(store.archives_with_part(segment).unwrap(), [archive.run]);
    assert_eq!(store.ranges_in(segment, archive.archive_file).unwrap().len(), 2);
    store.record_damage(StoredRange { stored_file: segment, offset: 0, bytes: 1 }, NOW).unwrap();
    assert_eq!(store.damaged_ranges(segment).unwrap(), std::slice::from_ref(&(0..1)));
}

/// Moves the spans in a segment to another one, first that of one of its two chunks; returns the new one.
fn move_to_another(store: &Store, schedule: i64, run: i64, segment: i64) -> i64 {
    assert_eq!((store.chunks_in(segment).unwrap().len(), store.trailers_in(segment).unwrap().len()), (2, 1));
    let names = SegmentIntent { segment_name: "segments/7".to_owned(), temporary_name: "segments/.7".to_owned() };
    let unused = store.add_copying_segment(run, &names).unwrap();
    let left = store.copying_segments().unwrap();
    assert_eq!(left.iter().map(|segment| segment.id).collect::<Vec<_>>(), [unused]);
    store.abandon_segment(&left[0]).unwrap();
    store.remove_segment(unused).unwrap();
    let new = store.add_copying_segment(run, &names).unwrap();
    store.record_copying_segment(new, &STORED).unwrap();
    assert_eq!(store.segment_names(run).unwrap().len(), 2);
    let from = |offset, bytes| StoredRange { stored_file: segment, offset, bytes };
    for copied in [CopiedRange { from: from(0, 1), offset: 2 }, CopiedRange { from: from(1, 2), offset: 0 }] {
        assert_eq!(store.move_spans(schedule, new, &[copied], NOW).unwrap(), Moved::All);
    }
    assert_eq!(store.archives_moved_from(segment).unwrap(), [run]);
    store.record_replaced_index(run, &STORED).unwrap();
    store.remove_moved_parts(segment, &[run]).unwrap();
    assert!(!store.is_part(segment).unwrap());
    store.remove_segment(segment).unwrap();
    new
}

fn add_found(store: &Store, schedule: i64) {
    let found = FoundArchive {
        layout: Layout::Segmented,
        size: 2,
        ..found(schedule, 90, "segments/found-90.tar.index".to_owned(), 8)
    };
    let run = store.begin_adding_archive(&found, NOW).unwrap();
    let segment = store.add_found_segment("segments/2", 90, Some(&STORED)).unwrap();
    assert!(store.has_segment("segments/2").unwrap());
    let place = Some(Place { segment, offset: 0, crc: 5 });
    store.add_chunks_of_archive(run, &[CatalogChunk { place, ..chunk("folder") }]).unwrap();
    store.finish_adding_archive(run, Some(&FoundTrailer { segment, offset: 1, crc: 7 }), NOW).unwrap();
    assert_eq!(store.archive(run).unwrap().unwrap().health, Health::Good);
    add_ranges(store, &found);
}

/// Adds an archive by the ranges of its index, and then its chunks.
fn add_ranges(store: &Store, found: &FoundArchive) {
    let file_name = "segments/found-91.tar.index".to_owned();
    let found = FoundArchive { run: 91, file_name, digest: None, ..found.clone() };
    let run = store.begin_adding_archive(&found, NOW).unwrap();
    let segment = store.add_found_segment("segments/3", 91, None).unwrap();
    let range = FoundRange { archive_offset: 0, segment, offset: 0, bytes: 2 };
    store.add_ranges_of_archive(run, 0, &[range]).unwrap();
    store.finish_adding_ranges(run).unwrap();
    let archive = store.archive(run).unwrap().unwrap();
    assert_eq!((archive.health, archive.is_legacy()), (Health::Missing, false));
    assert_eq!(store.archives_with_part(segment).unwrap(), [run]);
    store.record_digest(archive.archive_file, &[1; 32]).unwrap();
    let file_name = format!("{}.adding", found.file_name);
    let added = store.begin_adding_archive(&FoundArchive { file_name, ..found }, NOW).unwrap();
    let place = Some(Place { segment, offset: 0, crc: 5 });
    store.add_chunks_of_archive(added, &[CatalogChunk { place, ..chunk("folder") }]).unwrap();
    store.finish_adding_chunks(added, run, &FoundTrailer { segment, offset: 1, crc: 7 }, NOW).unwrap();
    store.discard_partly_added_archives().unwrap();
}

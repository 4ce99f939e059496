//! Copies of bytes in new segments, and what follows them: spans, indexes, and the segments that nothing uses any more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_manager::archive::index::Index;
use backup_manager::archive_folder::{self, CopiedSegment, CopyingSegment};
use backup_manager::backup::Runner;
use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::liveness::SegmentLock;
use backup_manager::maintenance::compaction::{Compacted, CompactionContext, compact_segments, preview};
use backup_manager::schedule::{Compression, Layout};
use backup_manager::store::{
    Archive, ClaimNow, Health, Moved, RunRequest, RunState, ScheduleRow, StoredFile, StoredRange,
};

use crate::reuse::{run, verify};
use crate::segments::{check_by_shell, contents, delete, flip, folder, index_of, tree, world};
use crate::world::World;

fn compact(world: &World, row: &ScheduleRow) -> Compacted {
    let (home, store, now, cancel) = (&world.home, &world.store, world.clock.now(), &CancelToken::new());
    compact_segments(&CompactionContext { home, store, now, cancel, warn: &|what| eprintln!("{what}") }, row).unwrap()
}

/// Makes archives of a source of which most changes from day to day, and removes the first one; returns the others.
fn with_little_used(world: &World, runner: &Runner, row: &ScheduleRow) -> Vec<(Archive, BTreeMap<PathBuf, Vec<u8>>)> {
    let mut made = Vec::new();
    for day in 0..3 {
        if day > 0 {
            for file in 100..300 {
                fs::write(world.path(&format!("docs/{file:03}")), format!("{day} {file}").repeat(700)).unwrap();
            }
            fs::write(world.path("docs/large"), vec![day; 9 << 20]).unwrap();
        }
        made.push((run(world, runner, row), tree(&world.path("docs"))));
    }
    delete(world, &made[0].0);
    made.remove(0);
    made
}

fn sizes(world: &World) -> u64 {
    contents(world).values().map(|content| content.len() as u64).sum()
}

/// Checks that the archives are whole, by the database and by the shell.
fn check(world: &World, made: &[(Archive, BTreeMap<PathBuf, Vec<u8>>)]) {
    for (archive, expected) in made {
        check_by_shell(world, archive, expected);
        assert_eq!(verify(world, archive), Health::Good);
        assert_eq!(index_of(world, archive), archive_folder::expected_index(&world.store, archive).unwrap());
    }
}

/// Makes archives of a source in which another file changes each time.
fn archives(
    world: &World,
    runner: &Runner,
    row: &ScheduleRow,
    count: usize,
) -> Vec<(Archive, BTreeMap<PathBuf, Vec<u8>>)> {
    let archive = |at: usize| {
        if at > 0 {
            fs::write(world.path(&format!("docs/{:03}", at * 40)), format!("version {at}")).unwrap();
        }
        (run(world, runner, row), tree(&world.path("docs")))
    };
    (0..count).map(archive).collect()
}

fn path_of(world: &World, segment: &StoredFile) -> PathBuf {
    world.home.backups().join(segment.segment_name.as_ref().unwrap())
}

/// Returns the segment in which the archive begins.
fn first_segment(world: &World, archive: &Archive) -> StoredFile {
    let name = format!("docs/{}", index_of(world, archive).ranges().next().unwrap().segment);
    let parts = world.store.parts(archive.archive_file).unwrap();
    parts.into_iter().find(|part| part.segment_name.as_deref() == Some(&name)).unwrap()
}

/// Copies the chunks and trailers of a segment, bar those at `except`, to a new one that is named after `archive`.
fn copy(world: &World, archive: &Archive, segment: &StoredFile, except: &[u64]) -> CopiedSegment {
    let path = path_of(world, segment);
    let source = File::open(&path).unwrap();
    let now = world.clock.now();
    let mut copying = CopyingSegment::create(&world.home, &world.store, archive, &path, now).unwrap();
    let chunks = world.store.chunks_in(segment.id).unwrap();
    for chunk in chunks.iter().filter(|chunk| !except.contains(&chunk.offset)) {
        let range = StoredRange { stored_file: segment.id, offset: chunk.offset, bytes: chunk.length };
        assert!(copying.copy(&source, chunk.offset, range, &|digest| *digest == chunk.digest).unwrap());
    }
    for trailer in world.store.trailers_in(segment.id).unwrap() {
        let range = StoredRange { stored_file: segment.id, offset: trailer.offset, bytes: trailer.bytes };
        assert!(copying.copy(&source, trailer.offset, range, &|_| true).unwrap());
    }
    copying.finish().unwrap()
}

/// Makes three archives and removes the first two; of the segments of both less than half is used. Returns that of the
/// first, and the last archive.
fn with_two_little_used(world: &World, runner: &Runner, row: &ScheduleRow) -> (StoredFile, Archive) {
    let first = run(world, runner, row);
    let segment = first_segment(world, &first);
    let change = |from: usize, version: u8| {
        for file in from..300 {
            fs::write(world.path(&format!("docs/{file:03}")), format!("{version} {file}").repeat(700)).unwrap();
        }
        fs::write(world.path("docs/large"), vec![version; 9 << 20]).unwrap();
    };
    change(100, 1);
    let second = run(world, runner, row);
    change(150, 2);
    let third = run(world, runner, row);
    delete(world, &first);
    delete(world, &second);
    (segment, third)
}

#[test]
fn spans_and_indexes_follow_bytes_that_were_copied() {
    for compression in [Compression::None, Compression::Zstd(3)] {
        let (world, runner, row) = world(compression);
        let made = archives(&world, &runner, &row, 3);
        let (first, last) = (&made[0].0, &made[2].0);
        let segment = first_segment(&world, first);
        let before = contents(&world);
        let digests: Vec<_> = made.iter().map(|(archive, _)| archive.digest.clone()).collect();
        let lock = SegmentLock::try_to_change(&world.home, "docs").unwrap();
        let copied = copy(&world, last, &segment, &[]);
        assert!(copied.size <= segment.size.unwrap());
        assert_eq!(world.store.move_spans(row.id, copied.row, &copied.copied, world.clock.now()).unwrap(), Moved::All);
        assert_eq!(world.store.segments_being_deleted().unwrap()[0].id, segment.id);
        // Both copies are valid: the indexes on disk list the old one, the database the new one.
        let runs = world.store.archives_moved_from(segment.id).unwrap();
        assert_eq!(runs, made.iter().map(|(archive, _)| archive.run).collect::<Vec<_>>());
        made.iter().for_each(|(archive, _)| assert_eq!(verify(&world, archive), Health::Good));
        for (archive, _) in &made {
            assert!(archive_folder::replace_index(&world.home, &world.store, archive).unwrap());
            assert!(!archive_folder::replace_index(&world.home, &world.store, archive).unwrap());
        }
        world.store.remove_moved_parts(segment.id, &runs).unwrap();
        assert!(!world.store.is_part(segment.id).unwrap());
        drop(lock);
        archive_folder::remove_unused_segments(&world.home, &world.store).unwrap();
        assert!(!path_of(&world, &segment).exists());
        for ((archive, expected), digest) in made.iter().zip(digests) {
            check_by_shell(&world, archive, expected);
            assert_eq!(verify(&world, archive), Health::Good);
            assert_eq!(world.store.archive(archive.run).unwrap().unwrap().digest, digest);
        }
        for (name, content) in contents(&world) {
            let is_index = name.ends_with(".index");
            assert!(is_index || before.get(&name).is_none_or(|old| *old == content), "{name} changed");
        }
        // The next run refers to the copies.
        let next = run(&world, &runner, &row);
        check_by_shell(&world, &next, &made[2].1);
    }
}

#[test]
fn a_chunk_that_is_not_copied_stays_where_it_is() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let made = archives(&world, &runner, &row, 2);
    let segment = first_segment(&world, &made[0].0);
    let chunks = world.store.chunks_in(segment.id).unwrap();
    let middle = chunks[chunks.len() / 2];
    flip(&path_of(&world, &segment), middle.offset + 3);
    let copied = copy(&world, &made[1].0, &segment, &[middle.offset]);
    assert_eq!(world.store.move_spans(row.id, copied.row, &copied.copied, world.clock.now()).unwrap(), Moved::All);
    assert!(world.store.segments_being_deleted().unwrap().is_empty());
    for (archive, _) in &made {
        archive_folder::replace_index(&world.home, &world.store, archive).unwrap();
        let old = segment.segment_name.as_deref().unwrap().trim_start_matches("docs/").to_owned();
        let left: Vec<_> = index_of(&world, archive).ranges().filter(|r| r.segment == old).map(|r| r.length).collect();
        assert_eq!(left, [middle.length]);
        assert_eq!(verify(&world, archive), Health::Damaged);
    }
    flip(&path_of(&world, &segment), middle.offset + 3);
    for (archive, expected) in &made {
        assert_eq!(verify(&world, archive), Health::Good);
        check_by_shell(&world, archive, expected);
    }
}

#[test]
fn bytes_that_are_not_what_was_written_are_not_copied() {
    let (world, runner, row) = world(Compression::None);
    let archive = run(&world, &runner, &row);
    let segment = first_segment(&world, &archive);
    let path = path_of(&world, &segment);
    let mut copying = CopyingSegment::create(&world.home, &world.store, &archive, &path, world.clock.now()).unwrap();
    let range = StoredRange { stored_file: segment.id, offset: 0, bytes: 512 };
    assert!(!copying.copy(&File::open(&path).unwrap(), 0, range, &|_| false).unwrap());
    assert!(!copying.copy(&File::open(&path).unwrap(), u64::MAX / 4, range, &|_| true).unwrap());
    copying.append(b"right", StoredRange { bytes: 5, ..range }).unwrap();
    let copied = copying.finish().unwrap();
    let names = world.store.segment_names(archive.run).unwrap();
    assert_eq!(fs::read(world.home.backups().join(&names[1])).unwrap(), b"right");
    // Nothing refers to it, as after a kill: it is removed.
    assert_eq!(world.store.copying_segments().unwrap()[0].id, copied.row);
    archive_folder::remove_unused_segments(&world.home, &world.store).unwrap();
    assert_eq!(world.store.segment_names(archive.run).unwrap(), names[..1]);
    assert!(!world.home.backups().join(&names[1]).exists());
}

#[test]
fn copies_that_do_not_read_back_are_in_no_archive() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let archive = run(&world, &runner, &row);
    let segment = first_segment(&world, &archive);
    let path = path_of(&world, &segment);
    let mut copying = CopyingSegment::create(&world.home, &world.store, &archive, &path, world.clock.now()).unwrap();
    copying.append(b"right", StoredRange { stored_file: segment.id, offset: 0, bytes: 5 }).unwrap();
    let written: Vec<_> = fs::read_dir(folder(&world)).unwrap().map(|entry| entry.unwrap().path()).collect();
    let written = written.iter().find(|path| path.to_string_lossy().ends_with(".part")).unwrap();
    flip(written, 3);
    let error = copying.finish().unwrap_err();
    assert!(error.to_string().contains("does not hold what was written to it"), "{error}");
    archive_folder::remove_unused_segments(&world.home, &world.store).unwrap();
    assert_eq!(world.store.segment_names(archive.run).unwrap().len(), 1);
    assert_eq!(contents(&world).len(), 2, "the index and the segment of the run");
}

#[test]
fn an_index_is_not_replaced_by_one_whose_segments_are_missing() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let archive = run(&world, &runner, &row);
    let segment = first_segment(&world, &archive);
    let index = world.home.backups().join(&archive.file_name);
    let before = fs::read(&index).unwrap();
    let copied = copy(&world, &archive, &segment, &[]);
    world.store.move_spans(row.id, copied.row, &copied.copied, world.clock.now()).unwrap();
    let names = world.store.segment_names(archive.run).unwrap();
    let new = world.home.backups().join(&names[1]);
    fs::rename(&new, world.path("moved")).unwrap();
    let replace = || archive_folder::replace_index(&world.home, &world.store, &archive);
    let error = replace().unwrap_err();
    assert!(error.to_string().contains("is not replaced"), "{error}");
    assert_eq!(fs::read(&index).unwrap(), before);
    fs::rename(world.path("moved"), &new).unwrap();
    // An index of another archive is not ours to replace.
    let other = run(&world, &runner, &row);
    fs::copy(world.home.backups().join(&other.file_name), world.path("copy")).unwrap();
    fs::rename(world.path("copy"), &index).unwrap();
    assert!(replace().unwrap_err().to_string().contains("an archive that the database does not know"));
    // A damaged one is.
    fs::remove_file(&index).unwrap();
    fs::write(&index, &before[..before.len() / 2]).unwrap();
    assert!(replace().unwrap());
    assert_eq!(
        Index::open(Path::new(&index)).unwrap(),
        archive_folder::expected_index(&world.store, &archive).unwrap()
    );
}

#[test]
fn spans_do_not_move_while_a_run_may_refer_to_them() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let archive = run(&world, &runner, &row);
    let segment = first_segment(&world, &archive);
    let copied = copy(&world, &archive, &segment, &[]);
    let request = RunRequest { verify: true, reread: false };
    let (claimed, _) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    assert!(matches!(claimed, ClaimNow::Claimed(_)), "{claimed:?}");
    let moved = world.store.move_spans(row.id, copied.row, &copied.copied, world.clock.now()).unwrap();
    assert_eq!(moved, Moved::RunBegan);
    assert!(world.store.segments_being_deleted().unwrap().is_empty());
}

#[test]
fn compaction_frees_what_is_not_used_and_changes_no_archive() {
    for compression in [Compression::None, Compression::Gzip(6), Compression::Zstd(3)] {
        let (world, runner, row) = world(compression);
        let made = with_little_used(&world, &runner, &row);
        let (before, rows) = (contents(&world), made.iter().map(|(archive, _)| crate::reuse::rows(&world, archive)));
        let rows: Vec<_> = rows.collect();
        let planned = preview(&world.store, row.id, &[]).unwrap();
        let used = sizes(&world);
        let done = compact(&world, &row);
        assert_eq!((done.segments, planned.segments), (1, 1));
        assert_eq!(done, planned);
        let index_bytes = |files: &BTreeMap<String, Vec<u8>>| -> u64 {
            files.iter().filter(|(name, _)| name.ends_with(".index")).map(|(_, content)| content.len() as u64).sum()
        };
        let after = contents(&world);
        assert_eq!(sizes(&world) - index_bytes(&after), used - index_bytes(&before) - done.freed_bytes);
        check(&world, &made);
        for ((archive, _), rows) in made.iter().zip(rows) {
            assert_eq!(crate::reuse::rows(&world, archive), rows);
        }
        for (name, content) in before {
            assert!(name.ends_with(".index") || after.get(&name).is_none_or(|now| *now == content), "{name} changed");
        }
        assert_eq!(compact(&world, &row), Compacted::default(), "nothing is left to do");
        let next = run(&world, &runner, &row);
        check(&world, &[(next, tree(&world.path("docs")))]);
        for (archive, _) in &made {
            delete(&world, archive);
        }
    }
}

#[test]
fn compaction_waits_for_runs_readers_and_unknown_archives() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let made = with_little_used(&world, &runner, &row);
    let before = contents(&world);
    // Another compaction, or a repair.
    let changing = SegmentLock::try_to_change(&world.home, "docs").unwrap();
    let postponed = Compacted { is_postponed: true, ..Compacted::default() };
    assert_eq!(compact(&world, &row), postponed);
    // Nor is an index removed that it might replace.
    assert_eq!(world.store.mark_deleting(&[made[0].0.run], &[]).unwrap(), 1);
    assert_eq!(archive_folder::finish_deletions(&world.home, &world.store).unwrap(), 0);
    assert_eq!(contents(&world), before);
    drop(changing);
    assert_eq!(archive_folder::finish_deletions(&world.home, &world.store).unwrap(), 1);
    let before = contents(&world);
    let made = &made[1..];
    // An archive that the database does not know.
    let unknown = folder(&world).join("docs-20200101T000000Z-999.tar.zst.index");
    fs::copy(world.home.backups().join(&made[0].0.file_name), &unknown).unwrap();
    assert_eq!(compact(&world, &row), Compacted::default());
    fs::remove_file(&unknown).unwrap();
    assert_eq!(contents(&world), before);
    // A reader: the old segment is not removed yet.
    let reading = SegmentLock::to_read(&world.home, Layout::Segmented, &made[0].0.file_name).unwrap();
    assert_eq!(compact(&world, &row).segments, 1);
    let with_both = contents(&world);
    assert!(before.iter().all(|(name, content)| name.ends_with(".index") || with_both.get(name) == Some(content)));
    check(&world, made);
    drop(reading);
    archive_folder::remove_unused_segments(&world.home, &world.store).unwrap();
    assert_eq!(contents(&world).len(), with_both.len() - 1);
    check(&world, made);
}

#[test]
fn a_segment_of_which_a_used_chunk_is_damaged_is_not_compacted() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let made = with_little_used(&world, &runner, &row);
    let old = preview(&world.store, row.id, &[]).unwrap();
    assert_eq!(old.segments, 1);
    let parts = world.store.parts(made[1].0.archive_file).unwrap();
    let segment = parts.into_iter().min_by_key(|part| part.id).unwrap();
    let chunks = world.store.chunks_in(segment.id).unwrap();
    let (damaged, path) = (chunks[chunks.len() / 2], path_of(&world, &segment));
    flip(&path, damaged.offset + 5);
    let before = contents(&world);
    assert_eq!(compact(&world, &row), Compacted::default());
    let range = damaged.offset..damaged.offset + damaged.length;
    assert_eq!(world.store.damaged_ranges(segment.id).unwrap(), [range]);
    for (archive, _) in &made {
        assert_eq!(world.store.archive(archive.run).unwrap().unwrap().health, Health::Damaged);
    }
    // It could not be removed, so that copies would only take space.
    assert_eq!(contents(&world), before);
    assert_eq!(preview(&world.store, row.id, &[]).unwrap(), Compacted::default());
    assert_eq!(compact(&world, &row), Compacted::default());
    assert_eq!(contents(&world), before);
    flip(&path, damaged.offset + 5);
    made.iter().for_each(|(archive, _)| assert_eq!(verify(&world, archive), Health::Good));
    assert_eq!(compact(&world, &row).segments, 1);
    check(&world, &made);
}

#[test]
fn damage_of_one_segment_keeps_no_other_from_being_compacted() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let (first, third) = with_two_little_used(&world, &runner, &row);
    assert_eq!(preview(&world.store, row.id, &[]).unwrap().segments, 2);
    let chunk = world.store.chunks_in(first.id).unwrap()[1];
    flip(&path_of(&world, &first), chunk.offset + 5);
    assert_eq!(compact(&world, &row).segments, 1);
    assert!(path_of(&world, &first).exists());
    assert_eq!(world.store.archive(third.run).unwrap().unwrap().health, Health::Damaged);
    flip(&path_of(&world, &first), chunk.offset + 5);
    check(&world, &[(third, tree(&world.path("docs")))]);
    assert_eq!(compact(&world, &row).segments, 1);
    assert!(!path_of(&world, &first).exists());
}

#[test]
fn compaction_waits_for_a_run_that_goes_on() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let made = with_little_used(&world, &runner, &row);
    let before = contents(&world);
    let request = RunRequest { verify: true, reread: false };
    let (claimed, _) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    assert!(compact(&world, &row).is_postponed);
    assert_eq!(contents(&world), before);
    world.store.end_without_archive(claim, RunState::Cancelled, "", world.clock.now()).unwrap();
    assert_eq!(compact(&world, &row).segments, 1);
    check(&world, &made);
}

#[test]
fn compaction_leaves_out_what_it_cannot_read_and_goes_on() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let made = with_little_used(&world, &runner, &row);
    let before = contents(&world);
    let index = world.home.backups().join(&made[0].0.file_name);
    fs::rename(&index, world.path("moved")).unwrap();
    assert_eq!(compact(&world, &row), Compacted::default());
    fs::rename(world.path("moved"), &index).unwrap();
    let parts = world.store.parts(made[1].0.archive_file).unwrap();
    let segment = path_of(&world, &parts.into_iter().min_by_key(|part| part.id).unwrap());
    fs::rename(&segment, world.path("moved")).unwrap();
    assert_eq!(compact(&world, &row), Compacted::default());
    fs::rename(world.path("moved"), &segment).unwrap();
    assert_eq!(contents(&world), before);
    assert_eq!(compact(&world, &row).segments, 1);
    check(&world, &made);
}

#[test]
fn a_segment_stays_until_no_archive_has_a_part_of_it() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let made = archives(&world, &runner, &row, 2);
    let segment = first_segment(&world, &made[0].0);
    let copied = copy(&world, &made[1].0, &segment, &[]);
    world.store.move_spans(row.id, copied.row, &copied.copied, world.clock.now()).unwrap();
    // Its rows still list the old segment.
    assert_eq!(world.store.mark_deleting(&[made[0].0.run], &[]).unwrap(), 1);
    fs::remove_file(world.home.backups().join(&made[0].0.file_name)).unwrap();
    archive_folder::remove_unused_segments(&world.home, &world.store).unwrap();
    assert!(path_of(&world, &segment).exists());
    archive_folder::finish_deletions(&world.home, &world.store).unwrap();
    assert!(!path_of(&world, &segment).exists());
    check(&world, &made[1..]);
}

#[test]
fn bytes_of_several_owners_are_not_put_into_one_segment() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: this needs root");
        return;
    }
    let (world, runner, row) = world(Compression::Zstd(3));
    let (first, third) = with_two_little_used(&world, &runner, &row);
    std::os::unix::fs::chown(path_of(&world, &first), Some(12_345), Some(12_345)).unwrap();
    assert_eq!(compact(&world, &row).segments, 2);
    let owner = |name: &String| fs::metadata(folder(&world).join(name)).unwrap().uid();
    let mut owners: Vec<u32> = index_of(&world, &third).segments().iter().map(owner).collect();
    owners.sort_unstable();
    assert_eq!(owners, [0, 0, 12_345], "its own, and the copies of the two others");
    check(&world, &[(third, tree(&world.path("docs")))]);
}

#[test]
fn a_trailer_that_is_not_what_was_written_is_not_copied() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let (first, second) = (run(&world, &runner, &row), {
        for file in 100..300 {
            fs::write(world.path(&format!("docs/{file:03}")), format!("changed {file}").repeat(700)).unwrap();
        }
        fs::write(world.path("docs/large"), vec![9; 9 << 20]).unwrap();
        run(&world, &runner, &row)
    });
    let made = [(second, tree(&world.path("docs")))];
    let (old, own) = (first_segment(&world, &first), first_segment(&world, &made[0].0));
    // A segment with all of the first archive and the trailer of the second one.
    let now = world.clock.now();
    let mut copying =
        CopyingSegment::create(&world.home, &world.store, &made[0].0, &path_of(&world, &old), now).unwrap();
    let mut take = |segment: &StoredFile, offset: u64, bytes: u64| {
        let range = StoredRange { stored_file: segment.id, offset, bytes };
        assert!(copying.copy(&File::open(path_of(&world, segment)).unwrap(), offset, range, &|_| true).unwrap());
    };
    let trailer = |segment: &StoredFile| world.store.trailers_in(segment.id).unwrap()[0];
    world.store.chunks_in(old.id).unwrap().iter().for_each(|chunk| take(&old, chunk.offset, chunk.length));
    take(&old, trailer(&old).offset, trailer(&old).bytes);
    take(&own, trailer(&own).offset, trailer(&own).bytes);
    let copied = copying.finish().unwrap();
    world.store.move_spans(row.id, copied.row, &copied.copied, now).unwrap();
    archive_folder::replace_index(&world.home, &world.store, &made[0].0).unwrap();
    archive_folder::replace_index(&world.home, &world.store, &first).unwrap();
    delete(&world, &first);
    let parts = world.store.parts(made[0].0.archive_file).unwrap();
    let segment = parts.into_iter().find(|part| part.id == copied.row).unwrap();
    let moved = trailer(&segment);
    flip(&path_of(&world, &segment), moved.offset + moved.bytes / 2);
    assert_eq!(compact(&world, &row), Compacted::default());
    let range = moved.offset..moved.offset + moved.bytes;
    assert_eq!(world.store.damaged_ranges(segment.id).unwrap(), [range]);
    assert!(path_of(&world, &segment).exists());
    flip(&path_of(&world, &segment), moved.offset + moved.bytes / 2);
    assert_eq!(verify(&world, &made[0].0), Health::Good);
    assert_eq!(compact(&world, &row).segments, 1);
    check(&world, &made);
}

//! Segments to which nothing refers, and those that only a file on disk still refers to.

use std::fs;

use backup_manager::archive::index::Index;
use backup_manager::archive_folder::{find_orphans, remove_orphans};
use backup_manager::archive_name::{ArchiveName, SegmentName};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::maintenance::rescan::{RescanReport, rescan};
use backup_manager::schedule::Compression;
use backup_manager::store::{Archive, ClaimNow, RunRequest, SegmentIntent};

use crate::reuse::run;
use crate::runs::Recording;
use crate::segments::{contents, delete, folder, index_of, segments, world};
use crate::world::World;

fn rescanned(world: &World) -> RescanReport {
    let now = world.clock.now();
    rescan(&world.home, &world.store, 2, &Recording::default(), &CancelToken::new(), now).unwrap()
}

/// Returns the names, below the folder of the schedule, of orphaned segments.
fn orphans(world: &World) -> Vec<String> {
    let found = find_orphans(&world.home, &world.store).unwrap();
    let name = |file: &str| file.strip_prefix("docs/").unwrap().to_owned();
    found.segments.iter().map(|orphan| name(&orphan.file_name)).collect()
}

/// Copies the first segment under the name of another run; returns that name.
fn copy_segment(world: &World, run: i64) -> String {
    let first = segments(world).into_keys().next().unwrap();
    let name = SegmentName::parse(&first, "docs").unwrap();
    let other = SegmentName { archive: ArchiveName { run, ..name.archive }, ..name }.file_name();
    fs::copy(folder(world).join(&first), folder(world).join(&other)).unwrap();
    other
}

/// Writes an index that consists of the ranges of `of`, each in the segment that `rename` names.
fn write_index(world: &World, of: &Archive, name: &ArchiveName<'_>, rename: impl Fn(&str) -> String) {
    let old = index_of(world, of);
    let mut index = Index::new(name, old.members(), old.cksum());
    old.ranges().for_each(|range| index.push(&rename(range.segment), range.offset, range.length));
    let path = folder(world).join(name.index_name());
    let _ = fs::remove_file(&path);
    index.write(&mut fs::File::create(path).unwrap()).unwrap();
}

#[test]
fn an_orphaned_segment_is_listed_and_removed_on_request_only() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let first = run(&world, &runner, &row);
    let before = contents(&world);
    let orphan = copy_segment(&world, 999);
    assert_eq!(orphans(&world), std::slice::from_ref(&orphan));
    let found = rescanned(&world).orphans;
    assert_eq!((found.segments.len(), found.undecided.len()), (1, 0));
    assert_eq!(found.segments[0].bytes, segments(&world)[&orphan] as u64);
    assert_eq!(contents(&world).len(), before.len() + 1, "it is listed only");
    // An index that cannot be read may name it.
    let path = folder(&world).join("docs-20200101T000000Z-998.tar.gz.index");
    fs::write(&path, "# backup-manager index 1\n").unwrap();
    let undecided = find_orphans(&world.home, &world.store).unwrap();
    assert!(undecided.segments.is_empty() && undecided.undecided[0].contains("-998.tar.gz.index"), "{undecided:?}");
    assert!(remove_orphans(&world.home, &world.store, &found.segments).is_err());
    assert!(folder(&world).join(&orphan).exists());
    fs::remove_file(&path).unwrap();
    // Names of other forms and files elsewhere are none of ours.
    fs::write(folder(&world).join("mine.1.segment"), "x").unwrap();
    remove_orphans(&world.home, &world.store, &found.segments).unwrap();
    assert!(!folder(&world).join(&orphan).exists() && folder(&world).join("mine.1.segment").exists());
    assert_eq!(crate::reuse::verify(&world, &first), backup_manager::store::Health::Good);
}

#[test]
fn what_an_index_on_disk_or_a_row_names_is_no_orphan() {
    let (world, runner, row) = world(Compression::None);
    let first = run(&world, &runner, &row);
    // An index of the time that a lost database knew.
    let unknown = copy_segment(&world, 990);
    let old = index_of(&world, &first);
    write_index(&world, &first, &ArchiveName { run: 991, ..old.archive_name() }, |_| unknown.clone());
    assert!(orphans(&world).is_empty());
    // A known index that was replaced at that time.
    let moved = copy_segment(&world, 992);
    write_index(&world, &first, &old.archive_name(), |_| moved.clone());
    assert!(orphans(&world).is_empty());
    // A segment that a run has written and renamed, and whose index does not have its name yet.
    world.clock.advance(crate::world::HOUR);
    let request = RunRequest { verify: true, reread: false };
    let (claimed, _) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    let written = SegmentName { archive: ArchiveName { run: claim.run(), ..old.archive_name() }, number: 1 };
    let (segment_name, temporary_name) = (written.file_name(), written.temporary_name(1, 7));
    let names = SegmentIntent {
        segment_name: format!("docs/{segment_name}"),
        temporary_name: format!("docs/{temporary_name}"),
    };
    world.store.add_segment(&claim, &names).unwrap();
    fs::write(folder(&world).join(&temporary_name), "x").unwrap();
    fs::write(folder(&world).join(&segment_name), "x").unwrap();
    assert!(orphans(&world).is_empty());
}

#[test]
fn a_known_index_that_names_other_segments_than_its_rows_keeps_them() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let first = run(&world, &runner, &row);
    for file in fs::read_dir(world.path("docs")).unwrap() {
        fs::write(file.unwrap().path(), "another").unwrap();
    }
    fs::write(world.path("docs/large"), vec![8; 9 << 20]).unwrap();
    let second = run(&world, &runner, &row);
    let old = index_of(&world, &first);
    let name = index_of(&world, &second);
    // As an older database sees what a newer one made of the second archive.
    write_index(&world, &first, &name.archive_name(), str::to_owned);
    delete(&world, &first);
    for segment in old.segments() {
        assert!(folder(&world).join(segment).exists(), "{segment}");
    }
}

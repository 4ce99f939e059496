//! What a run without compression stores again in segments, and how many ranges its index has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use backup_manager::archive::buffer::Buffer;
use backup_manager::archive::index::Index;
use backup_manager::archive::reader::ArchiveReader;
use backup_manager::backup::Runner;
use backup_manager::member::CatalogMember;
use backup_manager::schedule::Compression;
use backup_manager::store::{Archive, Health, ScheduleRow};

use crate::reuse::{run, verify};
use crate::segments::{contents, delete, flip, folder, health, index_of, segments, tree, world};
use crate::world::World;

/// Restores an archive by GNU tar from a copy of all its bytes, and compares it with `expected`.
fn check_by_tar(world: &World, archive: &Archive, expected: &BTreeMap<PathBuf, Vec<u8>>) {
    let reader = ArchiveReader::open(&world.home.backups().join(&archive.file_name)).unwrap();
    let target = tempfile::tempdir().unwrap();
    let (mut bytes, mut copy) = (Buffer::new(), File::create(target.path().join("copy")).unwrap());
    for offset in (0..archive.size).step_by(1 << 20) {
        bytes.clear();
        reader.read_stored(offset, (archive.size - offset).min(1 << 20), &mut bytes).unwrap();
        copy.write_all(&bytes).unwrap();
    }
    let done = Command::new("tar").args(["-xf", "copy"]).current_dir(target.path()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(tree(&target.path().join("docs")), *expected);
}

#[test]
fn a_run_without_compression_stores_nothing_again_but_the_members_that_changed() {
    let (world, runner, row) = world(Compression::None);
    run(&world, &runner, &row);
    let changed = ["docs/050", "docs/150", "docs/250"];
    changed.iter().for_each(|name| fs::write(world.path(name), "changed").unwrap());
    let second = run(&world, &runner, &row);
    let rows = crate::reuse::rows(&world, &second);
    let is_changed = |row: &&CatalogMember| changed.iter().any(|name| row.member.path.as_bytes() == name.as_bytes());
    let entries: u64 = rows.iter().filter(is_changed).map(|row| row.entry_bytes).sum();
    let header = index_of(&world, &second).ranges().next().unwrap().length;
    let from_end_marks = 1024 + second.size - world.store.end_of_chunks(second.archive_file).unwrap();
    let added = segments(&world).into_values().last().unwrap() as u64;
    assert_eq!(added, header + entries + from_end_marks);
}

#[test]
fn the_ranges_of_an_index_are_limited_by_copying_short_ones() {
    let (world, runner, row) = world(Compression::None);
    for file in 0..10_400 {
        fs::write(world.path(&format!("docs/small-{file:05}")), "before").unwrap();
    }
    let first = run(&world, &runner, &row);
    for file in (0..10_400).step_by(2) {
        fs::write(world.path(&format!("docs/small-{file:05}")), "after!").unwrap();
    }
    let second = run(&world, &runner, &row);
    let ranges = index_of(&world, &second).ranges().count() as u64;
    let limit = Index::max_ranges(second.size);
    assert!((limit - 10..=limit).contains(&ranges), "{ranges} of {limit}");
    check_second_try(&world, &runner, &row, &second);
    // Near the limit, what lies beside new members is copied, so that the number does not rise.
    for file in (1..10_400).step_by(40) {
        fs::write(world.path(&format!("docs/small-{file:05}")), "again!").unwrap();
    }
    let third = run(&world, &runner, &row);
    let fewer = index_of(&world, &third).ranges().count() as u64;
    assert!(fewer < ranges, "{fewer}");
    let expected = tree(&world.path("docs"));
    assert_eq!(verify(&world, &second), Health::Good);
    delete(&world, &first);
    delete(&world, &second);
    assert_eq!(verify(&world, &third), Health::Good);
    check_by_tar(&world, &third, &expected);
}

/// Checks a run whose base, near the limit of ranges, is found damaged while short ranges of it are copied: it begins
/// again, and nothing is left of its first try. All is as before then.
fn check_second_try(world: &World, runner: &Runner, row: &ScheduleRow, base: &Archive) {
    let own = index_of(world, base).segments().iter().find(|name| name.contains("-2.tar.")).cloned();
    let own = folder(world).join(own.unwrap());
    // Neither the header nor the trailer, which are read before.
    let flip_members = || (1 << 20..4 << 20).step_by(700).for_each(|at| flip(&own, at));
    flip_members();
    for file in (1..10_400).step_by(40) {
        fs::write(world.path(&format!("docs/small-{file:05}")), "other!").unwrap();
    }
    let next = run(world, runner, row);
    assert_eq!(health(world, base), Health::Damaged);
    // The number is free: the row and the file of the first try are removed.
    let name = format!("-{}.tar.1.segment", next.run);
    assert!(index_of(world, &next).segments().iter().any(|segment| segment.ends_with(&name)));
    assert!(world.store.segments_being_deleted().unwrap().is_empty());
    assert!(!contents(world).keys().any(|name| name.ends_with(".part")));
    assert_eq!(verify(world, &next), Health::Good);
    delete(world, &next);
    flip_members();
    assert_eq!(verify(world, base), Health::Good);
}

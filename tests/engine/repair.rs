//! Repair: what is damaged in an archive is written anew from equal bytes of another one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use backup_manager::archive_folder;
use backup_manager::backup::Runner;
use backup_manager::cancel::CancelToken;
use backup_manager::chunk::Chunk;
use backup_manager::clock::Clock;
use backup_manager::error::{ErrorKind, Result};
use backup_manager::maintenance::prune::forget;
use backup_manager::maintenance::repair::{RepairContext, Repaired, repair};
use backup_manager::schedule::{Compression, Layout};
use backup_manager::store::{Archive, ClaimNow, Health, RunRequest, RunState, ScheduleRow, StoredBytes};

use crate::reuse::{file_of, run, verify};
use crate::segments::{
    CODECS, check_by_shell, contents, flip, folder, health, index_of, segments, tree, world, world_in,
};
use crate::world::{HOUR, World};

/// Three archives, of which the second is a name of the first one's file, and the third shares most chunks.
fn three(compression: Compression) -> (World, Runner, ScheduleRow, [Archive; 3]) {
    let (world, runner, row) = world_in(Layout::Whole, compression);
    let first = run(&world, &runner, &row);
    let second = run(&world, &runner, &row);
    assert_eq!(first.archive_file, second.archive_file, "{compression}");
    fs::write(world.path("docs/005"), "changed").unwrap();
    let third = run(&world, &runner, &row);
    (world, runner, row, [first, second, third])
}

pub fn repair_all(world: &World, dry_run: bool) -> Vec<(i64, Result<Repaired>)> {
    try_to_repair(world, dry_run).unwrap()
}

/// The same, if the database may be used for it.
pub fn try_to_repair(world: &World, dry_run: bool) -> Result<Vec<(i64, Result<Repaired>)>> {
    let mut repaired = Vec::new();
    repair_with(world, dry_run, &mut |archive, result| {
        repaired.push((archive.run, result));
        Ok(())
    })?;
    Ok(repaired)
}

fn repair_with(
    world: &World,
    dry_run: bool,
    on_repaired: &mut dyn FnMut(&Archive, Result<Repaired>) -> Result<()>,
) -> Result<()> {
    let cancel = CancelToken::new();
    let context = RepairContext {
        home: &world.home,
        store: &world.store,
        now: world.clock.now(),
        threads: 2,
        cancel: &cancel,
        dry_run,
    };
    let archives = world.store.archives(None).unwrap();
    repair(&context, &archives, on_repaired)
}

/// Returns the chunks of an archive.
pub fn chunks(world: &World, archive: &Archive) -> Vec<Chunk> {
    world.store.archive_chunks(archive.run).map(|chunk| chunk.unwrap()).collect()
}

/// Returns the offset of a byte of `archive` in a chunk that is, or is not, a chunk of `other`, too.
fn byte_of(world: &World, archive: &Archive, other: &Archive, is_shared: bool) -> u64 {
    let others = chunks(world, other);
    let is_in = |chunk: &&Chunk| others.iter().any(|other| other.stored_digest == chunk.stored_digest);
    let own = chunks(world, archive);
    let chunk = own[1..own.len() - 1].iter().find(|chunk| is_in(chunk) == is_shared).expect("such a chunk");
    chunk.offset + chunk.stored_length / 2
}

#[test]
fn a_damaged_file_is_replaced_as_a_whole_under_all_of_its_names() {
    for compression in CODECS {
        let (world, _runner, _row, [first, second, third]) = three(compression);
        let written = fs::read(file_of(&world, &first)).unwrap();
        flip(&file_of(&world, &first), byte_of(&world, &first, &third, true));
        fs::set_permissions(file_of(&world, &first), fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(verify(&world, &first), Health::Damaged);
        let before = contents(&world);
        let mut damaged = File::open(file_of(&world, &first)).unwrap();
        let dry = repair_all(&world, true);
        assert!(matches!(&dry[..], [(_, Ok(found))] if found.is_whole() && !found.findings.is_good()), "{dry:?}");
        assert_eq!(contents(&world), before);
        let repaired = repair_all(&world, false);
        assert!(matches!(&repaired[..], [(_, Ok(found))] if found.findings.is_good()), "{repaired:?}");
        let stat = |archive: &Archive| fs::metadata(file_of(&world, archive)).unwrap();
        assert_eq!((stat(&first).ino(), stat(&first).nlink()), (stat(&second).ino(), 2));
        assert_eq!(stat(&first).mode() & 0o7777, 0o400);
        assert!(fs::read(file_of(&world, &second)).unwrap() == written);
        for archive in [&first, &second, &third] {
            assert_eq!(health(&world, archive), Health::Good);
            assert_eq!(verify(&world, archive), Health::Good);
        }
        assert_eq!(world.store.archive(first.run).unwrap().unwrap().names, 2);
        // Who reads the old file reads the old bytes.
        let mut old = Vec::new();
        damaged.read_to_end(&mut old).unwrap();
        assert!(old == before[first.file_name.strip_prefix("docs/").unwrap()]);
        assert_eq!(contents(&world).len(), before.len(), "no temporary file is left");
        assert!(repair_all(&world, false).is_empty());
    }
}

/// A run that shares the damaged bytes of its base must not find it undamaged when it ends.
#[test]
fn a_file_is_not_replaced_while_a_run_may_share_its_bytes() {
    let (world, runner, row, [first, _, third]) = three(Compression::None);
    world.clock.advance(HOUR);
    let request = RunRequest { verify: true, reread: false };
    let (claimed, _) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    // By its other name.
    assert!(world.store.hold_base(&claim, first.run + 1).unwrap());
    flip(&file_of(&world, &first), byte_of(&world, &first, &third, true));
    assert_eq!(verify(&world, &first), Health::Damaged);
    let before = contents(&world);
    assert!(matches!(&repair_all(&world, true)[..], [(_, Ok(found))] if found.is_whole()));
    let repaired = repair_all(&world, false);
    assert!(matches!(&repaired[..], [(_, Err(error))] if error.kind() == ErrorKind::Busy), "{repaired:?}");
    assert_eq!((health(&world, &first), contents(&world)), (Health::Damaged, before));
    world.store.end_without_archive(claim, RunState::Failed, "the end", world.clock.now()).unwrap();
    let repaired = repair_all(&world, false);
    assert!(matches!(&repaired[..], [(_, Ok(found))] if found.is_whole()), "{repaired:?}");
}

#[test]
fn what_no_other_archive_has_stays_damaged_and_is_named() {
    for compression in CODECS {
        let (world, runner, row, [first, _, third]) = three(compression);
        // The chunk of the changed file and one that the first has, too.
        flip(&file_of(&world, &third), byte_of(&world, &third, &first, false));
        flip(&file_of(&world, &third), byte_of(&world, &third, &first, true));
        assert_eq!(verify(&world, &third), Health::Damaged);
        let before = contents(&world);
        let repaired = repair_all(&world, false);
        let [(run_number, Ok(found))] = &repaired[..] else { panic!("{repaired:?}") };
        assert_eq!((*run_number, found.damaged_parts, found.repairable_parts), (third.run, 2, 1));
        assert!(!found.is_whole() && !found.findings.damaged_members.is_empty());
        assert_eq!(contents(&world), before);
        assert_eq!(health(&world, &third), Health::Damaged);
        // The next run reads what the source still has, and its chunks repair the older archive.
        let fourth = run(&world, &runner, &row);
        assert_eq!(fourth.health, Health::Good);
        let repaired = repair_all(&world, false);
        assert!(matches!(&repaired[..], [(_, Ok(found))] if found.findings.is_good()), "{compression}: {repaired:?}");
        assert_eq!(verify(&world, &third), Health::Good);
    }
}

#[test]
fn a_damaged_trailer_is_made_anew_from_the_catalog() {
    for compression in CODECS {
        let (world, _runner, _row, [first, second, third]) = three(compression);
        let written = fs::read(file_of(&world, &first)).unwrap();
        let size = written.len() as u64;
        // Of the first by a byte in its middle; of the third all that follows its chunks, and the last of these.
        let start = chunks(&world, &first).last().unwrap().end();
        flip(&file_of(&world, &first), (start + size) / 2);
        let whole_third = fs::read(file_of(&world, &third)).unwrap();
        let last = *chunks(&world, &third).last().unwrap();
        fs::set_permissions(file_of(&world, &third), fs::Permissions::from_mode(0o600)).unwrap();
        File::options().write(true).open(file_of(&world, &third)).unwrap().set_len(last.offset + 1).unwrap();
        for archive in [&first, &third] {
            assert_eq!(verify(&world, archive), Health::Damaged, "{compression}");
        }
        for (_, repaired) in repair_all(&world, false) {
            assert!(repaired.as_ref().is_ok_and(|found| found.findings.is_good()), "{compression}: {repaired:?}");
        }
        assert!(fs::read(file_of(&world, &first)).unwrap() == written);
        assert!(fs::read(file_of(&world, &third)).unwrap() == whole_third);
        for archive in [&first, &second, &third] {
            assert_eq!(verify(&world, archive), Health::Good);
        }
    }
}

/// An archive and what it holds.
pub type Held = (Archive, BTreeMap<PathBuf, Vec<u8>>);

/// Two archives in segments that share most chunks, and what they hold.
pub fn two_in_segments(compression: Compression) -> (World, Runner, ScheduleRow, [Held; 2]) {
    let (world, runner, row) = world(compression);
    let first = (run(&world, &runner, &row), tree(&world.path("docs")));
    fs::write(world.path("docs/005"), "changed").unwrap();
    let second = (run(&world, &runner, &row), tree(&world.path("docs")));
    (world, runner, row, [first, second])
}

/// Checks that archives are good by the database, the disk, and the lines of shell in their indexes.
pub fn check_all(world: &World, archives: &[Held]) {
    for (archive, expected) in archives {
        assert_eq!(health(world, archive), Health::Good);
        assert_eq!(verify(world, archive), Health::Good);
        check_by_shell(world, archive, expected);
    }
}

#[test]
fn a_damaged_range_is_written_to_a_new_segment_for_every_archive_with_a_part_of_it() {
    for compression in CODECS {
        let (world, runner, row, archives) = two_in_segments(compression);
        let (first, second) = (&archives[0].0, &archives[1].0);
        let segment = folder(&world).join(&index_of(&world, first).segments()[0]);
        let middle = fs::metadata(&segment).unwrap().len() / 2;
        flip(&segment, middle);
        assert_eq!(verify(&world, second), Health::Damaged);
        assert_eq!(health(&world, first), Health::Damaged);
        let nothing = repair_all(&world, false);
        assert!(nothing.iter().all(|(_, found)| found.as_ref().is_ok_and(|found| !found.is_whole())), "{nothing:?}");
        // The next run stores all anew, as its base is damaged.
        let third = run(&world, &runner, &row);
        assert_eq!(third.health, Health::Good);
        let before = contents(&world);
        let repaired = repair_all(&world, false);
        assert_eq!(repaired.len(), 2);
        assert!(repaired.iter().all(|(_, found)| found.as_ref().is_ok_and(Repaired::is_whole)), "{repaired:?}");
        check_all(&world, &archives);
        let now = contents(&world);
        let new: Vec<&String> = now.keys().filter(|name| !before.contains_key(*name)).collect();
        assert_eq!(new.len(), 1, "{new:?}");
        for (name, bytes) in before.iter().filter(|(name, _)| name.ends_with(".segment")) {
            assert!(now.get(name) == Some(bytes), "{name} changed");
        }
        assert!(repair_all(&world, false).is_empty());
    }
}

#[test]
fn a_missing_segment_and_a_damaged_index_are_repaired() {
    for compression in CODECS {
        let (world, runner, row, archives) = two_in_segments(compression);
        let second = &archives[1].0;
        let index = world.home.backups().join(&second.file_name);
        let written = fs::read(&index).unwrap();
        flip(&index, written.len() as u64 / 2);
        assert_eq!(verify(&world, second), Health::Damaged);
        let is_repaired =
            |found: &(i64, Result<Repaired>)| found.0 == second.run && found.1.as_ref().is_ok_and(Repaired::is_whole);
        for dry_run in [true, false] {
            let repaired = repair_all(&world, dry_run);
            assert!(repaired.len() == 1 && is_repaired(&repaired[0]), "{repaired:?}");
        }
        assert!(fs::read(&index).unwrap() == written);
        check_all(&world, &archives);
        let segment = folder(&world).join(&index_of(&world, &archives[0].0).segments()[0]);
        fs::rename(&segment, world.path("away")).unwrap();
        assert_eq!(verify(&world, second), Health::Damaged);
        assert_eq!((health(&world, second), segments(&world).len()), (Health::Missing, 1));
        run(&world, &runner, &row);
        let repaired = repair_all(&world, false);
        // The header of the first archive is in no other.
        let of = |run: i64| repaired.iter().find(|(found, _)| *found == run).unwrap().1.as_ref().unwrap();
        assert!(of(second.run).is_whole(), "{compression}: {repaired:?}");
        assert_eq!(health(&world, &archives[0].0), Health::Missing);
        check_all(&world, &archives[1..]);
        fs::rename(world.path("away"), &segment).unwrap();
        assert_eq!(verify(&world, &archives[0].0), Health::Good);
        check_all(&world, &archives);
    }
}

#[test]
fn an_index_is_called_replaced_also_if_other_parts_stay_damaged() {
    let (world, _runner, _row, archives) = two_in_segments(Compression::Gzip(6));
    let second = &archives[1].0;
    let written = fs::read(file_of(&world, second)).unwrap();
    let segment = folder(&world).join(&index_of(&world, second).segments()[0]);
    flip(&segment, fs::metadata(&segment).unwrap().len() / 2);
    flip(&file_of(&world, second), written.len() as u64 / 2);
    assert_eq!(verify(&world, second), Health::Damaged);
    let repaired = repair_all(&world, false);
    let (_, found) = repaired.iter().find(|(run, _)| *run == second.run).expect("a result");
    let found = found.as_ref().unwrap();
    assert!(found.index_replaced && !found.is_whole(), "{found:?}");
    assert_eq!((found.damaged_parts, found.repairable_parts), (2, 1));
    assert!(fs::read(file_of(&world, second)).unwrap() == written);
    assert_eq!(health(&world, second), Health::Damaged);
}

/// Puts an index back as if it had not been replaced yet.
pub fn put_index_back(world: &World, archive: &Archive, old: &[u8]) {
    let path = file_of(world, archive);
    fs::remove_file(&path).unwrap();
    fs::write(&path, old).unwrap();
    world.store.record_replaced_index(archive.run, &archive_folder::stored_bytes_at(&path).unwrap()).unwrap();
    world.store.record_index_health(archive.run, Health::Unverified, None).unwrap();
}

#[test]
fn an_index_that_a_killed_repair_has_not_replaced_is_replaced_by_the_next_one() {
    let (world, runner, row, archives) = two_in_segments(Compression::Gzip(6));
    let segment = folder(&world).join(&index_of(&world, &archives[0].0).segments()[0]);
    flip(&segment, fs::metadata(&segment).unwrap().len() / 2);
    assert_eq!(verify(&world, &archives[1].0), Health::Damaged);
    run(&world, &runner, &row);
    let old: Vec<Vec<u8>> = archives.iter().map(|(archive, _)| fs::read(file_of(&world, archive)).unwrap()).collect();
    repair_all(&world, false);
    for ((archive, _), old) in archives.iter().zip(old) {
        put_index_back(&world, archive, &old);
        // Until then it does not count as good, also if it is verified.
        assert_eq!(verify(&world, archive), Health::Damaged);
        assert_eq!(health(&world, archive), Health::Damaged);
    }
    repair_all(&world, false);
    check_all(&world, &archives);
}

#[test]
fn a_chunk_that_decodes_to_other_content_is_never_called_repaired() {
    for layout in [Layout::Whole, Layout::Segmented] {
        let (world, runner, row) = world_in(layout, Compression::Gzip(6));
        let first = run(&world, &runner, &row);
        let database = rusqlite::Connection::open(world.home.db()).unwrap();
        database.execute("UPDATE chunk SET content_digest = randomblob(32) WHERE id = 2", []).unwrap();
        assert_eq!(verify(&world, &first), Health::Damaged);
        // Its stored bytes are what they should be, and those of the next run are equal.
        run(&world, &runner, &row);
        let before = contents(&world);
        for dry_run in [true, false] {
            let repaired = repair_all(&world, dry_run);
            let [(_, Ok(found)), ..] = &repaired[..] else { panic!("{layout:?}: {repaired:?}") };
            assert!(!found.is_whole(), "{layout:?}: {found:?}");
            assert_eq!((found.damaged_parts, found.repairable_parts, found.undecodable_parts), (1, 0, 1));
            assert_eq!(contents(&world), before, "{layout:?}");
        }
        assert_eq!((health(&world, &first), verify(&world, &first)), (Health::Damaged, Health::Damaged));
    }
}

#[test]
fn an_archive_that_is_removed_before_it_is_repaired_is_named_with_the_next_step() {
    let (world, _runner, _row, [first, second, third]) = three(Compression::None);
    flip(&file_of(&world, &first), byte_of(&world, &first, &third, true));
    let at = byte_of(&world, &third, &first, true);
    flip(&file_of(&world, &third), at + chunks(&world, &third)[1].stored_length);
    for archive in [&first, &third] {
        assert_eq!(verify(&world, archive), Health::Damaged);
    }
    let mut results = Vec::new();
    repair_with(&world, false, &mut |archive, result| {
        if results.is_empty() {
            forget(&world.home, &world.store, third.run, true).unwrap();
        }
        results.push((archive.run, result));
        Ok(())
    })
    .unwrap();
    let [(_, Ok(found)), (run, Err(error))] = &results[..] else { panic!("{results:?}") };
    assert!(found.is_whole() && *run == third.run);
    assert!(error.to_string().contains(&format!("@{} was removed", third.run)), "{error}");
    assert!(error.next_step().is_some_and(|step| step.contains("repair")), "{error:?}");
    // One name of a file that is to be removed does not keep the other from being recorded as repaired.
    assert_eq!(world.store.mark_deleting(&[first.run], &[]).unwrap(), 1);
    let metadata = fs::metadata(file_of(&world, &second)).unwrap();
    let stored =
        StoredBytes { size: metadata.len(), device: metadata.dev(), inode: metadata.ino(), modified_ns: Some(0) };
    assert!(world.store.record_replaced_file(&first, &stored, world.clock.now()).unwrap());
    assert_eq!(world.store.mark_deleting(&[second.run], &[]).unwrap(), 1);
    assert!(!world.store.record_replaced_file(&first, &stored, world.clock.now()).unwrap());
}

#[test]
fn a_lost_index_is_written_anew_if_all_that_it_lists_is_right() {
    for compression in CODECS {
        let (world, runner, row, archives) = two_in_segments(compression);
        let second = &archives[1].0;
        let index = file_of(&world, second);
        let written = fs::read(&index).unwrap();
        fs::remove_file(&index).unwrap();
        assert_eq!(verify(&world, second), Health::Missing);
        let dry = repair_all(&world, true);
        assert!(matches!(&dry[..], [(_, Ok(found))] if found.is_whole() && found.index_replaced), "{dry:?}");
        assert!(!index.exists());
        let repaired = repair_all(&world, false);
        assert!(matches!(&repaired[..], [(_, Ok(found))] if found.is_whole() && found.index_replaced), "{repaired:?}");
        assert!(fs::read(&index).unwrap() == written);
        assert_eq!(fs::metadata(&index).unwrap().mode() & 0o7777, 0o400);
        check_all(&world, &archives);
        // Where what it lists is damaged, an index would vouch for it.
        fs::remove_file(&index).unwrap();
        let segment = folder(&world).join(&index_of(&world, &archives[0].0).segments()[0]);
        flip(&segment, fs::metadata(&segment).unwrap().len() / 2);
        assert_eq!(verify(&world, second), Health::Missing);
        assert_eq!(verify(&world, &archives[0].0), Health::Damaged);
        let before = contents(&world);
        for (run, repaired) in repair_all(&world, false) {
            assert!(repaired.is_ok_and(|found| !found.is_whole()), "@{run}");
        }
        assert_eq!(contents(&world), before, "{compression}");
        // The repair of the damaged range does not need the lost index, and then it can be written.
        run(&world, &runner, &row);
        let repaired = repair_all(&world, false);
        assert!(repaired.iter().any(|(run, found)| *run == archives[0].0.run && found.as_ref().unwrap().is_whole()));
        assert!(!index.exists());
        repair_all(&world, false);
        check_all(&world, &archives);
    }
}

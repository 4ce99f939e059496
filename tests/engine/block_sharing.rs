//! Archives that share blocks with their base, on file systems that can: XFS and btrfs in a file, which needs root.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use backup_manager::archive::reader::ArchiveReader;
use backup_manager::backup::Runner;
use backup_manager::clock::{Clock, Timestamp};
use backup_manager::schedule::{Compression, Schedule};
use backup_manager::store::{Archive, Health, Role, RunState, ScheduleRow};

use crate::loop_mount::{LoopMount, shared_bytes};
use crate::reuse::{AfterSeal, damage, file_of, run, verify};
use crate::runs::{recover_all, run_now, tar_lists};
use crate::world::{DAY, HOUR, World};

const KINDS: [&str; 2] = ["xfs", "btrfs"];

/// A home with a source of 12 MiB that does not compress, and its first archive, all in a mounted file system.
fn world(mount: &LoopMount, compression: Compression) -> (World, Runner, ScheduleRow) {
    let world = World::within(mount.folder());
    let row = world.schedule("docs", "01:00");
    let schedule = Schedule { compression, ..row.schedule.clone() };
    world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
    let mut noise = blake3::Hasher::new().finalize_xof();
    for file in 0..120 {
        let mut bytes = vec![0; if file == 60 { 5 << 20 } else { 60_000 }];
        noise.fill(&mut bytes);
        fs::write(world.path(&format!("docs/{file:03}")), bytes).unwrap();
    }
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    world.clock.set(Timestamp::from_millis(i64::try_from(real.as_millis()).unwrap()).plus(HOUR));
    let runner = world.process(Role::Command);
    run(&world, &runner, &row);
    let row = world.store.schedule(row.id).unwrap();
    (world, runner, row)
}

/// Returns lengths and digests of all chunks but the first one, with the global header.
fn chunks(world: &World, archive: &Archive) -> Vec<(u64, [u8; 32])> {
    let reader = ArchiveReader::open(&file_of(world, archive)).unwrap();
    let entries = reader.trailer().unwrap().unwrap().entries();
    entries.map(|chunk| chunk.unwrap()).skip(1).map(|chunk| (chunk.stored_length, chunk.stored_digest)).collect()
}

/// Makes an archive of the same source by a schedule that has none, so that everything is read.
fn fresh(world: &World, runner: &Runner, row: &ScheduleRow) -> Archive {
    let name = backup_manager::schedule::ScheduleName::parse("other").unwrap();
    let other = world.add(Schedule { name, ..row.schedule.clone() });
    run(world, runner, &other)
}

fn succeeds(program: &str, args: &[&str], path: &std::path::Path) {
    let output = Command::new(program).args(args).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}");
}

#[test]
fn what_did_not_change_shares_blocks_with_the_base_and_is_what_a_new_schedule_archives() {
    for kind in KINDS {
        let Some(mount) = LoopMount::new(kind) else { return };
        for compression in [Compression::Zstd(3), Compression::Gzip(6), Compression::None] {
            let (world, runner, row) = world(&mount, compression);
            let first = world.store.newest_good(row.id).unwrap().unwrap();
            fs::write(world.path("docs/030"), "changed").unwrap();
            fs::write(world.path("docs/119"), "changed").unwrap();
            let second = run(&world, &runner, &row);
            let (path, size) = (file_of(&world, &second), second.size);
            let shared = shared_bytes(&path);
            assert!(shared >= size * 6 / 10 && shared < size, "{kind} {compression}: {shared} of {size} bytes");
            assert_eq!(chunks(&world, &second), chunks(&world, &fresh(&world, &runner, &row)), "{kind} {compression}");
            let (program, args): (&str, &[&str]) = match compression {
                Compression::Gzip(_) => ("gzip", &["-t"]),
                Compression::Zstd(_) => ("zstd", &["-q", "-t"]),
                Compression::None => ("cat", &[]),
            };
            succeeds(program, args, &path);
            assert_eq!(tar_lists(&path).len(), 122, "{kind} {compression}");
            assert_eq!(verify(&world, &second), Health::Good);
            // The base is removed, and its blocks stay as long as the other file has them.
            assert_eq!(world.store.mark_deleting(&[first.run], &[]).unwrap(), 1);
            recover_all(&runner);
            assert!(!file_of(&world, &first).exists());
            assert_eq!(verify(&world, &second), Health::Good);
            // And the next one shares with it.
            fs::write(world.path("docs/031"), "changed").unwrap();
            let third = run(&world, &runner, &row);
            assert!(shared_bytes(&file_of(&world, &third)) >= size * 6 / 10, "{kind} {compression}");
        }
    }
}

#[test]
fn a_file_system_without_shared_blocks_gets_archives_without_padding() {
    let Some(mount) = LoopMount::new("ext4") else { return };
    let (world, runner, row) = world(&mount, Compression::Zstd(3));
    fs::write(world.path("docs/030"), "changed").unwrap();
    let second = run(&world, &runner, &row);
    assert_eq!(second.verified_at, Some(world.clock.now()), "all was copied, and read back");
    let lengths = chunks(&world, &second);
    assert!(lengths.iter().any(|(length, _)| length % 4096 != 0), "{lengths:?}");
    assert_eq!(shared_bytes(&file_of(&world, &second)), 0);
    assert_eq!(lengths, chunks(&world, &fresh(&world, &runner, &row)));
}

#[test]
fn an_archive_that_shares_blocks_is_verified_at_the_time_of_its_oldest_part() {
    let Some(mount) = LoopMount::new("xfs") else { return };
    let (world, runner, row) = world(&mount, Compression::Zstd(3));
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    fs::write(world.path("docs/030"), "changed").unwrap();
    let second = run(&world, &runner, &row);
    assert!(first.verified_at.is_some() && second.verified_at == first.verified_at, "{second:?}");
    // Long after, everything is read back.
    world.clock.advance(14 * DAY);
    fs::write(world.path("docs/031"), "changed").unwrap();
    let third = run(&world, &runner, &row);
    assert_eq!((third.health, third.verified_at), (Health::Good, Some(world.clock.now())));
    assert!(shared_bytes(&file_of(&world, &third)) > third.size / 2);
}

#[test]
fn a_base_that_was_touched_or_not_verified_lately_is_verified_before_its_blocks_are_shared() {
    for keeps_mtime in [true, false] {
        let Some(mount) = LoopMount::new("xfs") else { return };
        let (world, runner, row) = world(&mount, Compression::Zstd(3));
        let first = world.store.newest_good(row.id).unwrap().unwrap();
        damage(&world, &first, 500_000, keeps_mtime);
        if keeps_mtime {
            world.clock.advance(15 * DAY);
        }
        fs::write(world.path("docs/119"), "changed").unwrap();
        let next = run(&world, &runner, &row);
        assert_eq!(world.store.run(next.run).unwrap().base_run, None);
        assert_eq!(world.store.archive(first.run).unwrap().unwrap().health, Health::Damaged);
        assert_eq!((verify(&world, &next), shared_bytes(&file_of(&world, &next))), (Health::Good, 0));
    }
}

#[test]
fn damage_of_the_base_that_is_found_before_the_archive_is_complete_fails_the_run() {
    let Some(mount) = LoopMount::new("xfs") else { return };
    let (world, mut runner, row) = world(&mount, Compression::Zstd(3));
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    fs::write(world.path("docs/030"), "changed").unwrap();
    world.clock.advance(HOUR);
    let (database, now) = (world.home.db().to_owned(), world.clock.now());
    let statement = "UPDATE stored_file SET health = 'damaged' \
                     WHERE EXISTS (SELECT 1 FROM archive WHERE state = 'sealed') AND id IN (SELECT stored_file_id \
                     FROM part JOIN archive USING (archive_file_id) WHERE state = 'complete')";
    runner.clock = Arc::new(AfterSeal { database, statement, now });
    let ended = run_now(&world, &runner, &row);
    assert_eq!(ended.state, RunState::Failed);
    assert!(ended.error.expect("an error").to_string().contains("damaged"));
    assert_eq!(world.store.archive(first.run).unwrap().unwrap().health, Health::Damaged);
    let archive = world.store.archive(ended.run).unwrap().unwrap();
    assert_eq!((archive.health, archive.verified_at, archive.good), (Health::Unverified, None, false));
    assert_eq!(verify(&world, &archive), Health::Good, "this time it was a false alarm");
}

#[test]
fn damage_of_an_archive_leaves_none_verified_that_may_share_its_blocks() {
    let Some(mount) = LoopMount::new("xfs") else { return };
    let (world, runner, row) = world(&mount, Compression::Zstd(3));
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    fs::write(world.path("docs/030"), "changed").unwrap();
    let second = run(&world, &runner, &row);
    world.store.record_health(&first, Health::Damaged, Some(world.clock.now())).unwrap();
    let found = world.store.archive(second.run).unwrap().unwrap();
    assert_eq!((found.health, found.verified_at, found.good), (Health::Good, None, true));
    // It is verified before it is a base.
    fs::write(world.path("docs/031"), "changed").unwrap();
    let third = run(&world, &runner, &row);
    assert_eq!(world.store.run(third.run).unwrap().base_run, Some(second.run));
    assert_eq!(world.store.archive(second.run).unwrap().unwrap().verified_at, Some(world.clock.now()));
}

#[test]
fn blocks_are_shared_unread_with_no_base_that_was_not_verified_lately_without_verification_either() {
    let Some(mount) = LoopMount::new("xfs") else { return };
    let (world, runner, row) = world(&mount, Compression::Zstd(3));
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    damage(&world, &first, 500_000, true);
    world.clock.advance(15 * DAY);
    fs::write(world.path("docs/119"), "changed").unwrap();
    let schedule = Schedule { verify: false, ..row.schedule };
    world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
    let row = world.store.schedule(row.id).unwrap();
    let next = run(&world, &runner, &row);
    assert_eq!(world.store.run(next.run).unwrap().base_run, None);
    assert_eq!(world.store.archive(first.run).unwrap().unwrap().health, Health::Damaged);
    assert_eq!(verify(&world, &next), Health::Good);
}

#[test]
fn without_verification_a_base_is_read_once_and_then_what_runs_write() {
    let Some(mount) = LoopMount::new("xfs") else { return };
    let (world, runner, row) = world(&mount, Compression::Zstd(3));
    let schedule = Schedule { verify: false, ..row.schedule };
    world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
    let row = world.store.schedule(row.id).unwrap();
    let verified_at = world.clock.now();
    for day in ["one", "two"] {
        world.clock.advance(DAY);
        fs::write(world.path("docs/119"), day).unwrap();
        assert_eq!(run(&world, &runner, &row).verified_at, Some(verified_at), "{day}");
    }
}

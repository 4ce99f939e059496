//! Recovery of runs whose process died.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use backup_manager::archive_folder;
use backup_manager::backup::{RecoveryReport, RunContext};
use backup_manager::cancel::CancelToken;
use backup_manager::chunk::{CatalogChunk, ChunkRecord};
use backup_manager::clock::Clock;
use backup_manager::member::Extent;
use backup_manager::schedule::Schedule;
use backup_manager::store::{Health, Role, RunState, Sealed, StoredBytes};

use crate::runs::{Recording, recover_all, run_now, tar_lists};
use crate::world::{DAY, HOUR, MINUTE, World};

#[test]
fn a_killed_attempt_is_recorded_cleaned_up_and_tried_again() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let dead = world.process(Role::Command);
    let (claim, intent) = world.claim(&dead);
    archive_folder::ensure_ours(&world.home, &world.store).unwrap();
    let temporary = world.home.backups().join(&intent.temporary_name);
    fs::create_dir_all(temporary.parent().unwrap()).unwrap();
    fs::write(&temporary, "half an arch").unwrap();
    let run = claim.run();
    drop((claim, dead));

    let live = world.process(Role::Command);
    assert_eq!(recover_all(&live).requeued, 1);
    assert!(!temporary.exists());
    assert!(world.store.pending_archive(run).unwrap().is_none());
    assert_eq!(world.store.attempts(run).unwrap()[0].outcome, "interrupted");
    assert_eq!(recover_all(&live), RecoveryReport::default(), "a second recovery changes nothing");
    assert!(world.store.claim_next(&live.row, world.clock.now()).unwrap().is_none(), "a pause first");
    world.clock.advance(MINUTE);
    let (claim, intent) = world.claim(&live);
    let (cancel, observer) = (CancelToken::default(), Recording::default());
    let context = RunContext { cancel: &cancel, observer: &observer, is_foreground: false };
    assert_eq!(live.execute(claim, &intent, &context).unwrap().state, RunState::Succeeded);
}

#[test]
fn a_run_that_cannot_be_recovered_yet_waits_and_is_recovered_later() {
    let world = World::new();
    let run = die_sealed(&world, (true, false));
    let identity = world.path("backups/.backup-manager");
    let ours = fs::read(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    let mut service = world.service(false);
    for _ in 0..10 {
        service.tick().unwrap();
    }
    let stuck = world.store.run(run).unwrap();
    assert_eq!((stuck.state, stuck.attempt), (RunState::Running, 2), "taken over once, not ten times");
    fs::write(&identity, ours).unwrap();
    world.clock.advance(MINUTE);
    service.tick().unwrap();
    assert_eq!(world.store.run(run).unwrap().state, RunState::Succeeded);
    assert!(world.store.archive(run).unwrap().is_some());
}

#[test]
fn a_stable_link_that_a_dead_process_did_not_refresh_is_refreshed_at_the_next_start() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let ended = run_now(&world, &world.process(Role::Command), &row);
    fs::remove_file(world.path("backups/docs.tar")).unwrap();
    world.service(false).tick().unwrap();
    let archive = world.store.archive(ended.run).unwrap().unwrap();
    assert_eq!(fs::read_link(world.path("backups/docs.tar")).unwrap(), Path::new(&archive.file_name));
}

#[test]
fn the_run_of_a_live_worker_is_not_taken_over() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let slow = world.process(Role::Command);
    let (claim, _) = world.claim(&slow);
    world.clock.advance(DAY * 30);
    assert_eq!(recover_all(&world.process(Role::Command)), RecoveryReport::default());
    world.store.check_claim(&claim).unwrap();
    world.store.end_without_archive(claim, RunState::Failed, "over", world.clock.now()).unwrap();
}

fn bytes_of(file: &fs::Metadata) -> StoredBytes {
    StoredBytes { size: file.len(), device: file.dev(), inode: file.ino(), modified_ns: Some(0) }
}

/// Creates a run whose process died right after `sealed`. `names` selects the names of its file: temporary, final.
fn die_sealed(world: &World, names: (bool, bool)) -> i64 {
    let row = world.schedule("docs", "01:00");
    let good = run_now(world, &world.process(Role::Command), &row);
    let good = world.store.archive(good.run).unwrap().unwrap();
    let chunks = world.store.archive_chunks(good.run);
    let mut service = world.service(false);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let dead = world.process(Role::Command);
    let (claim, intent) = world.claim(&dead);
    let read_started = world.clock.now();
    let no_members = ChunkRecord::New { members: Vec::new() };
    let records: Vec<_> = chunks
        .map(|chunk| CatalogChunk { chunk: chunk.unwrap(), place: None, read_started, record: no_members.clone() })
        .collect();
    world.store.add_chunks(&claim, &records).unwrap();
    let bytes = fs::read(world.home.backups().join(&good.file_name)).unwrap();
    let (temporary, last) =
        (world.home.backups().join(&intent.temporary_name), world.home.backups().join(&intent.file_name));
    if names.0 {
        fs::write(&temporary, &bytes).unwrap();
    }
    match names {
        // The rename was a link and an unlink.
        (true, true) => fs::hard_link(&temporary, &last).unwrap(),
        (false, true) => fs::write(&last, &bytes).unwrap(),
        (_, false) => {}
    }
    let metadata = fs::metadata(world.home.backups().join(&good.file_name)).unwrap();
    let sealed = Sealed {
        size: good.size,
        digest: good.digest.unwrap().try_into().unwrap(),
        file: bytes_of(&metadata),
        in_segments: None,
        source_root: b"docs".to_vec(),
        scan_started: world.clock.now(),
        extent: Extent { members: 2, files: 1, content_bytes: 10 },
        incomplete: false,
        boot_id: None,
        origin: None,
    };
    world.store.seal(&claim, &sealed).unwrap();
    service.unregister().unwrap();
    claim.run()
}

#[test]
fn a_sealed_archive_is_finished_under_either_name() {
    for names in [(true, false), (false, true), (true, true)] {
        let world = World::new();
        let run = die_sealed(&world, names);
        let live = world.process(Role::Command);
        assert_eq!(recover_all(&live).finished, 1, "{names:?}");
        let archive = world.store.archive(run).unwrap().expect("a complete archive");
        assert_eq!(archive.health, Health::Good);
        assert_eq!(tar_lists(&world.home.backups().join(&archive.file_name)), ["docs/", "docs/file.txt"]);
        assert_eq!(world.archive_files().len(), 2, "{names:?}: no temporary file is left");
        assert_eq!(world.store.attempts(run).unwrap().last().unwrap().outcome, "recovered");
        assert_eq!(recover_all(&live), RecoveryReport::default());
    }
}

#[test]
fn a_sealed_archive_whose_final_name_another_program_took_gets_another_one() {
    let world = World::new();
    let run = die_sealed(&world, (true, false));
    let taken = world.store.pending_archive(run).unwrap().unwrap().file_name;
    fs::write(world.home.backups().join(&taken), "of another program").unwrap();
    let live = world.process(Role::Command);
    assert_eq!(recover_all(&live).finished, 1);
    let archive = world.store.archive(run).unwrap().expect("a complete archive");
    assert_eq!(archive.health, Health::Good);
    assert_ne!(archive.file_name, taken);
    assert_eq!(tar_lists(&world.home.backups().join(&archive.file_name)), ["docs/", "docs/file.txt"]);
    assert!(archive.file_name.contains(&archive.created_at.compact_utc()), "the time in its name: {archive:?}");
    assert_eq!(fs::read(world.home.backups().join(&taken)).unwrap(), b"of another program");
    assert_eq!(world.archive_files().len(), 3, "no temporary file is left");
}

#[test]
fn recovery_does_not_verify_what_the_schedule_says_not_to_verify() {
    let world = World::new();
    let run = die_sealed(&world, (true, false));
    let row = world.store.schedule(world.store.run(run).unwrap().schedule_id).unwrap();
    let schedule = Schedule { verify: false, ..row.schedule };
    world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
    assert_eq!(recover_all(&world.process(Role::Command)).finished, 1);
    let archive = world.store.archive(run).unwrap().expect("a complete archive");
    assert_eq!((archive.health, archive.verified_at), (Health::Unverified, None));
    assert!(archive.good, "as the schedule says");
}

#[test]
fn a_sealed_archive_under_neither_name_is_lost_and_the_run_queued_again() {
    let world = World::new();
    let run = die_sealed(&world, (false, false));
    let live = world.process(Role::Command);
    assert_eq!(recover_all(&live).requeued, 1);
    let run = world.store.run(run).unwrap();
    assert_eq!(run.state, RunState::Queued);
    assert!(run.error.unwrap().contains("lost"));
}

#[test]
fn a_sealed_archive_that_does_not_read_back_is_damaged_and_the_run_failed() {
    let world = World::new();
    let run = die_sealed(&world, (false, true));
    let file = world.archive_files().into_iter().find(|name| name.contains("T010000Z")).unwrap();
    let path = world.home.backups().join(file);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    recover_all(&world.process(Role::Command));
    let archive = world.store.archive(run).unwrap().unwrap();
    assert_eq!((archive.health, archive.good), (Health::Damaged, false));
    let run = world.store.run(run).unwrap();
    assert_eq!(run.state, RunState::Failed);
    assert!(run.error.unwrap().contains("did not read back"));
}

#[test]
fn a_sealed_archive_that_cannot_be_inspected_is_not_taken_for_lost() {
    let world = World::new();
    let run = die_sealed(&world, (false, true));
    let (folder, away) = (world.home.backups().join("docs"), world.home.backups().join("away"));
    fs::rename(&folder, &away).unwrap();
    // A link to itself: every access below it fails, and not because a file does not exist.
    std::os::unix::fs::symlink("docs", &folder).unwrap();
    recover_all(&world.process(Role::Command));
    assert_eq!(world.store.run(run).unwrap().state, RunState::Running);
    fs::remove_file(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    recover_all(&world.process(Role::Command));
    assert_eq!(world.store.run(run).unwrap().state, RunState::Succeeded);
}

#[test]
fn a_run_whose_cancellation_was_requested_is_not_queued_again_by_recovery() {
    let world = World::new();
    let run = die_sealed(&world, (false, false));
    let row = world.store.schedule(world.store.run(run).unwrap().schedule_id).unwrap();
    assert_eq!(world.store.cancel(row.id, world.clock.now()).unwrap(), 1);
    recover_all(&world.process(Role::Command));
    assert_eq!(world.store.run(run).unwrap().state, RunState::Cancelled);
}

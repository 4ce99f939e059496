//! What a claim allows to write to the catalog, and what a run keeps from being deleted.

use std::time::Duration;

use backup_manager::chunk::{BaseChunk, CatalogChunk, Chunk, ChunkRecord, MemberRecord};
use backup_manager::error::{ErrorKind, Result};
use backup_manager::store::{Archive, Claim, Health, RunState, Store, WorkerRow};
use uuid::Uuid;

use crate::model::World;
use crate::random::Random;
use crate::support::{NOW, sealed};

/// Returns a world with one archive of the first schedule, and its run.
fn world_with_archive() -> (World, i64) {
    let mut world = World::new(Random::new(3));
    world.add_large_archive([3, 4]);
    let run = *world.archives.keys().next().unwrap();
    (world, run)
}

fn end(store: &Store, claim: Claim) {
    store.discard_chunks(&claim).unwrap();
    store.end_without_archive(claim, RunState::Failed, "", NOW).unwrap();
}

#[test]
fn a_worker_whose_run_was_taken_over_writes_nothing_to_the_catalog() {
    let (world, base) = world_with_archive();
    let store = &world.store;
    let claim = world.claim(0);
    assert!(store.hold_base(&claim, base).unwrap());
    let found = store.base_chunks(base, 0, 1).unwrap().remove(0);
    let record = ChunkRecord::Reused { id: found.id, reread: true };
    let chunk = CatalogChunk { chunk: found.chunk, place: None, read_started: NOW, record };
    let other = WorkerRow { uuid: Uuid::from_u128(8), ..world.worker.clone() };
    let taken = store.take_over(claim.run(), world.worker.uuid, claim.attempt(), &other, NOW).unwrap().unwrap();
    let later = NOW.plus(Duration::from_secs(1));
    let writes: [(&str, Result<()>); 9] = [
        ("add_chunks", store.add_chunks(&claim, &[chunk])),
        ("discard_chunks", store.discard_chunks(&claim)),
        ("hold_base", store.hold_base(&claim, base).map(drop)),
        ("mark_reread", store.mark_reread(&claim, &[found.id], later)),
        ("release_base", store.release_base(&claim)),
        ("record_counts", store.record_counts(&claim, &Default::default(), &[])),
        ("seal", store.seal(&claim, &sealed())),
        ("rename_sealed", store.rename_sealed(&claim, "one/another.tar", NOW)),
        ("seal_as_link", store.seal_as_link(&claim, &sealed())),
    ];
    for (what, result) in writes {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Fenced, "{what}");
    }
    let failure = store.end_without_archive(claim, RunState::Failed, "", NOW).unwrap_err();
    assert_eq!(failure.error.kind(), ErrorKind::Fenced);
    assert_eq!(store.run(taken.run()).unwrap().base_run, Some(base));
    end(store, taken);
}

#[test]
fn the_base_of_a_running_run_is_not_deleted_with_its_schedule() {
    let (world, base) = world_with_archive();
    let store = &world.store;
    let claim = world.claim(1);
    assert!(store.hold_base(&claim, base).unwrap());
    let row = store.schedule(world.schedules[0]).unwrap();
    assert_eq!(store.delete_schedule_with_archives(&row, NOW).unwrap(), 0);
    assert_eq!(store.mark_deleting(&[base], &[]).unwrap(), 0, "nor by retention");
    assert!(store.archive(base).unwrap().is_some());
    end(store, claim);
    assert_eq!(store.mark_deleting(&[base], &[]).unwrap(), 1);
    assert!(!store.hold_base(&world.claim(1), base).unwrap(), "it is being deleted");
}

#[test]
fn only_chunks_and_members_that_the_base_has_are_referred_to() {
    let (world, base) = world_with_archive();
    let store = &world.store;
    let claim = world.claim(0);
    let found = store.base_chunks(base, 0, 1).unwrap().remove(0);
    let later = NOW.plus(Duration::from_secs(1));
    let add = |chunk: Chunk, record| {
        store.add_chunks(&claim, &[CatalogChunk { chunk, place: None, read_started: later, record }])
    };
    let reused = |id: i64| ChunkRecord::Reused { id, reread: true };
    assert!(add(found.chunk, reused(found.id)).is_err(), "the run holds no base");
    assert!(store.hold_base(&claim, base).unwrap());
    assert!(add(found.chunk, reused(found.id + 1_000)).is_err(), "no such chunk");
    let other = Chunk { stored_digest: [7; 32], ..found.chunk };
    assert!(add(other, reused(found.id)).is_err(), "other bytes");
    let unknown = ChunkRecord::New { members: vec![MemberRecord::Known(found.members[0].id + 1_000)] };
    assert!(add(found.chunk, unknown).is_err(), "no such member");
    add(found.chunk, reused(found.id)).unwrap();
    let [read] = &store.base_chunks(base, 0, 1).unwrap()[..] else { panic!("one chunk") };
    assert_eq!(read.read_started, later, "it was read again");
    end(store, claim);
}

#[test]
fn ids_of_chunks_and_members_that_were_removed_are_not_used_again() {
    let (world, base) = world_with_archive();
    let ids = |chunks: &[BaseChunk]| -> Vec<i64> {
        chunks.iter().flat_map(|chunk| chunk.members.iter().map(|member| member.id).chain([chunk.id])).collect()
    };
    let found = world.store.base_chunks(base, 0, 1).unwrap().remove(0);
    let members: Vec<_> = found.members.iter().map(|known| MemberRecord::New(known.entry.clone())).collect();
    let chunk =
        CatalogChunk { chunk: found.chunk, place: None, read_started: NOW, record: ChunkRecord::New { members } };
    let mut seen: Vec<i64> = Vec::new();
    for _ in 0..2 {
        let claim = world.claim(0);
        world.store.add_chunks(&claim, std::slice::from_ref(&chunk)).unwrap();
        let added = ids(&world.store.base_chunks(claim.run(), 0, 1).unwrap());
        assert!(added.len() == 4 && added.iter().all(|id| !seen.contains(id)), "{added:?} after {seen:?}");
        seen = added;
        end(&world.store, claim);
    }
}

#[test]
fn what_was_found_of_a_removed_archive_is_not_recorded_for_the_next_with_its_row() {
    let (mut world, first) = world_with_archive();
    let of = |world: &World, run| world.store.archive(run).unwrap().expect("it is complete");
    // In this world all digests are equal.
    let old = Archive { digest: Some(vec![9; 32]), ..of(&world, first) };
    assert_eq!(world.store.mark_deleting(&[first], &[]).unwrap(), 1);
    world.store.remove_deleted(first).unwrap();
    world.add_large_archive([3, 4]);
    let second = *world.archives.keys().last().unwrap();
    let new = of(&world, second);
    assert_eq!((new.archive_file, second > first), (old.archive_file, true));
    // A verification of the first one ends now.
    world.store.record_health(&old, Health::Damaged, Some(NOW)).unwrap();
    assert_eq!(of(&world, second).health, new.health);
    world.store.record_health(&new, Health::Damaged, Some(NOW)).unwrap();
    assert_eq!(of(&world, second).health, Health::Damaged);
}

//! Calls of every function of the store that runs a statement.

use std::time::Duration;

use backup_manager::chunk::{CatalogChunk, Chunk, ChunkRecord, MemberRecord};
use backup_manager::member::{CatalogMember, Extent, FileTime, Member, MemberKind, MemberPath, Xattrs};
use backup_manager::progress::{Problem, ProblemKind};
use backup_manager::schedule::{Cadence, Schedule, ScheduleName};
use backup_manager::store::{
    Claim, ClaimNow, Completed, Drill, Due, Health, HistoryFilter, LegacyArchive, QueueNow, Requeue, Requeued, Role,
    RunRequest, RunState, StopRequest, Store, Task, Watermark, WorkerRow, check_copy,
};
use chrono_tz::Tz;
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{NOW, found, query, sealed};

const HOUR: Duration = Duration::from_secs(3600);
pub const REQUEST: RunRequest = RunRequest { verify: true, reread: false };
pub const COMPLETED: Completed = Completed {
    incomplete: false,
    reason: None,
    notes: Vec::new(),
    verified_at: Some(NOW),
    suspect: false,
    accepts: None,
    shares_blocks_of: None,
    damaged: None,
};

pub fn call_everything(store: &Store, dir: &TempDir) {
    let (one, two) = (worker(), worker());
    settings(store);
    workers(store, &one);
    schedules(store);
    rescan(store);
    runs(store, &one, &two);
    archives(store, &one);
    crate::segments::call(store, &one);
    crate::hooks::call(store, &one, &two);
    members(store);
    history(store);
    maintenance(store, dir);
}

fn worker() -> WorkerRow {
    let uuid = Uuid::new_v4();
    WorkerRow { uuid, role: Role::Command, pid: 7, host: "here".to_owned(), started_at: NOW, stop_requested: None }
}

fn schedule(name: &str) -> (Schedule, Watermark) {
    let cadence = Cadence::parse_daily("02:00").unwrap();
    let schedule = Schedule::new(ScheduleName::parse(name).unwrap(), b"source".to_vec(), cadence);
    let watermark = Watermark::starting(&schedule, Tz::UTC, NOW);
    (schedule, watermark)
}

/// Returns the row of a schedule that is made now.
pub fn new_schedule(store: &Store, name: &str) -> i64 {
    store.create_schedules(&[schedule(name)], NOW).unwrap()[0].0
}

fn settings(store: &Store) {
    store.check_writable().unwrap();
    // Only a new database may take over an identity.
    store.adopt_identity(Uuid::new_v4()).unwrap();
    store.watch().unwrap().changed().unwrap();
    store.set_setting("compression", Some("zstd")).unwrap();
    store.set_setting("compression", None).unwrap();
    store.settings().unwrap();
    store.set_imported(b"text", NOW).unwrap();
    store.set_import_error(Some("error")).unwrap();
    store.imported().unwrap();
    store.set_config_error(Some("error")).unwrap();
    store.config_error().unwrap();
    store.set_service_zone("UTC").unwrap();
    store.service_zone().unwrap();
}

fn workers(store: &Store, worker: &WorkerRow) {
    store.add_worker(worker.uuid, worker.role, worker.pid, &worker.host, NOW).unwrap();
    store.request_stop(worker.uuid, StopRequest::Drain).unwrap();
    store.stop_request(worker.uuid).unwrap();
    store.remove_worker(worker.uuid).unwrap();
}

fn schedules(store: &Store) {
    let id = new_schedule(store, "gone");
    let (mut paused, watermark) = schedule("gone");
    paused.enabled = false;
    store.edit_schedules(&[(id, paused, watermark)], NOW).unwrap();
    store.delete_schedule(id, NOW).unwrap();
    store.create_schedules(&[schedule("gone")], NOW).unwrap();
    store.schedules().unwrap();
    store.due_schedules(NOW, 10).unwrap();
    store.schedules_handled_after(NOW).unwrap();
    store.next_due().unwrap();
    store.move_watermark(id, watermark, Watermark { next_due: None, ..watermark }).unwrap();
    store.may_prune(id, 1, true).unwrap();
    store.is_prune_held(id).unwrap();
    store.clear_held_prune(id).unwrap();
    store.release_held_prune(id).unwrap();
    let row = store.schedule_named("gone").unwrap().unwrap();
    store.delete_schedule_with_archives(&row, NOW).unwrap();
}

/// Enqueues an occurrence of a schedule.
fn enqueue(store: &Store, schedule: i64, missed: bool) {
    let from = store.schedule(schedule).unwrap().watermark;
    let occurrence = from.next_due.unwrap();
    let to = Watermark { handled_until: occurrence, next_due: Some(occurrence.plus(HOUR)) };
    store.enqueue_due(&Due { schedule, from, to, occurrence, count: 1, missed }, NOW).unwrap();
}

fn runs(store: &Store, one: &WorkerRow, two: &WorkerRow) {
    let id = new_schedule(store, "runs");
    enqueue(store, id, true);
    enqueue(store, id, false);
    enqueue(store, id, false);
    store.next_not_before().unwrap();
    let (claim, _) = store.claim_next(one, NOW).unwrap().unwrap();
    store.cancel_requested(claim.run()).unwrap();
    store.running().unwrap();
    store.queued().unwrap();
    store.discard_chunks(&claim).unwrap();
    assert!(matches!(store.requeue(claim, Requeue::Refund, "", NOW).unwrap(), Requeued::Queued { .. }));
    let (claim, _) = store.claim_next(one, NOW).unwrap().unwrap();
    enqueue(store, id, false);
    assert!(matches!(store.requeue(claim, Requeue::Retry, "", NOW).unwrap(), Requeued::SupersededBy(_)));
    let (claim, _) = store.claim_next(one, NOW).unwrap().unwrap();
    assert!(matches!(store.claim_now(id, REQUEST, two, NOW).unwrap().0, ClaimNow::Running(_)));
    assert_eq!(store.queue_now(id, REQUEST, NOW).unwrap(), QueueNow::Running(claim.run()));
    store.cancel(id, NOW).unwrap();
    assert_eq!(store.cancel_run(claim.run(), NOW).unwrap(), RunState::Running);
    let claim = store.take_over(claim.run(), one.uuid, claim.attempt(), two, NOW).unwrap().unwrap();
    store.end_without_archive(claim, RunState::Failed, "", NOW).unwrap();
    store.last_ended(id).unwrap();
    assert!(matches!(store.queue_now(id, REQUEST, NOW).unwrap(), QueueNow::Queued { attempt: 0, .. }));
}

pub fn chunk(path: &str) -> CatalogChunk {
    let member = Member {
        path: MemberPath::parse(path.as_bytes()).unwrap(),
        kind: MemberKind::Folder,
        size: 0,
        mode: 0o755,
        uid: 0,
        gid: 0,
        user_name: Box::default(),
        group_name: Box::default(),
        modified: FileTime { seconds: 0, nanoseconds: 0 },
        link_target: None,
        device_number: None,
        xattrs: Xattrs::new(),
    };
    let member = CatalogMember {
        member,
        entry_bytes: 1,
        device: 1,
        inode: 1,
        changed: FileTime { seconds: 0, nanoseconds: 0 },
        content_digest: None,
        xattr_digest: None,
        is_reusable: true,
    };
    let chunk = Chunk {
        sequence: 0,
        offset: 0,
        stored_length: 1,
        stored_digest: [0; 32],
        content_length: 1,
        content_digest: Some([0; 32]),
    };
    CatalogChunk {
        chunk,
        place: None,
        read_started: NOW,
        record: ChunkRecord::New { members: vec![MemberRecord::New(member)] },
    }
}

/// Makes a complete archive of a schedule; returns its run.
fn archive(store: &Store, schedule: i64, worker: &WorkerRow) -> i64 {
    let claimed = store.claim_now(schedule, REQUEST, worker, NOW).unwrap();
    let ClaimNow::Claimed(claim) = claimed.0 else { panic!("{claimed:?}") };
    write(store, &claim);
    let run = claim.run();
    store.complete(claim, &Completed { notes: vec!["a remark".to_owned()], ..COMPLETED }, NOW).unwrap();
    run
}

fn write(store: &Store, claim: &Claim) {
    let problem = Problem { path: Box::from(&b"path"[..]), kind: ProblemKind::Changed, reason: String::new() };
    store.record_counts(claim, &Default::default(), &[problem]).unwrap();
    store.check_claim(claim).unwrap();
    store.add_chunks(claim, &[chunk("folder")]).unwrap();
    let next = chunk("other");
    store.add_chunks(claim, &[CatalogChunk { chunk: Chunk { sequence: 1, offset: 1, ..next.chunk }, ..next }]).unwrap();
    store.seal(claim, &sealed()).unwrap();
    store.rename_sealed(claim, &format!("other/other-20261123T000001Z-{}.tar", claim.run()), NOW).unwrap();
    store.pending_archive(claim.run()).unwrap();
    store.temporary_names().unwrap();
}

/// The archive that `base` made is the base of three runs: of one that refers to its rows, of one that makes a hard
/// link of its file, and of one that does neither.
fn reuse(store: &Store, schedule: i64, base: i64, worker: &WorkerRow) {
    let query = query(schedule);
    assert_eq!(store.find_base(&query).unwrap().unwrap().run, base);
    let found = store.base_chunks(base, 0, 10).unwrap().remove(0);
    for round in 0..3 {
        let ClaimNow::Claimed(claim) = store.claim_now(schedule, REQUEST, worker, NOW).unwrap().0 else { panic!() };
        assert!(store.hold_base(&claim, base).unwrap());
        let new = |record| CatalogChunk { chunk: found.chunk, place: None, read_started: NOW, record };
        match round {
            0 => {
                let known = ChunkRecord::New { members: vec![MemberRecord::Known(found.members[0].id)] };
                let reused = CatalogChunk {
                    chunk: Chunk { sequence: 1, offset: 1, ..found.chunk },
                    ..new(ChunkRecord::Reused { id: found.id, reread: true })
                };
                store.add_chunks(&claim, &[new(known)]).unwrap();
                store.add_chunks(&claim, &[reused]).unwrap();
                store.discard_chunks(&claim).unwrap();
            }
            1 => store.seal_as_link(&claim, &sealed()).unwrap(),
            _ => store.release_base(&claim).unwrap(),
        }
        match round {
            1 => drop(store.complete(claim, &Completed { verified_at: None, ..COMPLETED }, NOW).unwrap()),
            _ => store.end_without_archive(claim, RunState::Failed, "", NOW).unwrap(),
        }
    }
    store.record_touched(1, 1).unwrap();
    store.set_reuse_off(schedule, NOW).unwrap();
    assert!(store.find_base(&query).unwrap().is_none());
}

fn archives(store: &Store, worker: &WorkerRow) {
    let id = new_schedule(store, "archives");
    let (first, second) = (archive(store, id, worker), archive(store, id, worker));
    reuse(store, id, second, worker);
    let found = store.archive(second).unwrap().unwrap();
    store.archives(None).unwrap();
    store.archives(Some(id)).unwrap();
    store.newest_good(id).unwrap();
    store.archive_before(id, second).unwrap();
    store.archive_named(&found.file_name).unwrap();
    store.unhealthy_archives(id).unwrap();
    store.set_pinned(second, true).unwrap();
    store.record_health(&found, Health::Damaged, Some(NOW)).unwrap();
    store.record_health(&found, Health::Good, Some(NOW)).unwrap();
    store.accept(id, NOW).unwrap();
    let run = store.run(second).unwrap();
    store.attempts(second).unwrap();
    store.problems(second, 10).unwrap();
    store.new_problems(&run).unwrap();
    store.mark_deleting(&[first], &[second]).unwrap();
    assert_eq!(store.archives_being_deleted().unwrap().len(), 1);
    store.remove_deleted(first).unwrap();
    let legacy = LegacyArchive {
        file_name: "archives/archives-legacy.tar".to_owned(),
        created_at: NOW,
        size: 1,
        device: 1,
        inode: 2,
        codec: "none",
        extent: Extent::default(),
        readable: true,
        source_root: b"/source".to_vec(),
    };
    store.add_legacy_archive(id, &legacy, NOW).unwrap();
}

fn members(store: &Store) {
    let run = store.archives(None).unwrap()[0].run;
    let path = MemberPath::parse(b"folder").unwrap();
    store.members(run, 0, 10).unwrap();
    store.chunk_members(run, 0).unwrap();
    store.member_before(run, 1).unwrap();
    assert_eq!(store.chunks_with_path(run, &path, true).unwrap(), [0]);
    store.chunks_of_unit(run, 0).unwrap();
    store.paths(&mut |_| ()).unwrap();
    store.path_occurrences(&path, None).unwrap();
    store.path_occurrences(&path, Some(1)).unwrap();
    store.source_roots().unwrap();
    store.source_root(run).unwrap();
    assert!(store.has_chunks(run).unwrap());
}

fn rescan(store: &Store) {
    assert!(store.is_used().unwrap());
    store.raise_run_numbers(60).unwrap();
    let schedule = new_schedule(store, "found");
    let mut found = found(schedule, 70, "found/found-70.tar".to_owned(), 3);
    let run = store.begin_adding_archive(&found, NOW).unwrap();
    store.add_chunks_of_archive(run, &[chunk("folder")]).unwrap();
    store.finish_adding_archive(run, None, NOW).unwrap();
    let file = store.shared_file(&found).unwrap().unwrap();
    for (number, name) in [(71, "found/found-71.tar"), (72, "found/found-72.tar")] {
        (found.run, found.file_name) = (number, name.to_owned());
        store.has_archive_file(name).unwrap();
        match number {
            71 => store.add_archive_link(&found, file, NOW).unwrap(),
            _ => store.begin_adding_archive(&found, NOW).unwrap(),
        };
    }
    store.discard_partly_added_archives().unwrap();
    assert_eq!(store.known_inode(file).unwrap(), Some(3));
    store.split_file(file, &[71], Some((1, 4))).unwrap();
    store.record_other_file(file, (1, 5)).unwrap();
    assert!(store.has_archives().unwrap());
}

fn history(store: &Store) {
    for schedule in [None, Some(1)] {
        for since in [None, Some(NOW)] {
            for states in [Vec::new(), vec![RunState::Failed, RunState::Missed]] {
                store.history(&HistoryFilter { schedule, since, states, limit: Some(10) }).unwrap();
            }
        }
    }
}

fn maintenance(store: &Store, dir: &TempDir) {
    let copy = dir.path().join("copy.db");
    store.copy_into(&copy).unwrap();
    check_copy(&copy).unwrap();
    store.begin_task(Task::Copy, HOUR, NOW).unwrap();
    store.record_task_failure(Task::Copy).unwrap();
    store.task_state(Task::Copy).unwrap();
    store.lacks_copy_of_first_schedule(NOW).unwrap();
    store.prune_history(NOW.plus(HOUR)).unwrap();
    let drill = Drill {
        run: 1,
        started_at: NOW,
        finished_at: Some(NOW),
        passed: true,
        files: 0,
        content_bytes: 0,
        error: None,
    };
    store.record_drill(1, &drill).unwrap();
    store.last_drill(1).unwrap();
}

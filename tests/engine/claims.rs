//! Claims, fences, retries and coalescing: promises I2 and I4 on the store alone.

use backup_manager::clock::Clock;
use backup_manager::error::ErrorKind;
use backup_manager::store::{ClaimNow, Completed, Requeue, Requeued, Role, RunRequest, RunState, Trigger};

use crate::world::{DAY, HOUR, MIDNIGHT, MINUTE, World};

const WANTED: RunRequest = RunRequest { verify: true, reread: false };

#[test]
fn an_occurrence_becomes_one_run_with_any_number_of_services() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let (mut one, mut two) = (world.service(false), world.service(true));
    world.clock.advance(HOUR);
    assert_eq!(one.tick().unwrap().enqueued, 1);
    assert_eq!(two.tick().unwrap().enqueued, 0);
    let runs = world.runs();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].scheduled_for, Some(MIDNIGHT.plus(HOUR)));
    assert_eq!((runs[0].state, runs[0].coalesced), (RunState::Queued, 0));
}

#[test]
fn only_one_service_claims_the_run() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let (mut one, two) = (world.service(false), world.service(true));
    world.clock.advance(HOUR);
    one.tick().unwrap();
    assert!(one.claim().unwrap().is_some());
    assert!(two.claim().unwrap().is_none());
}

#[test]
fn a_second_service_is_refused_and_the_error_names_the_first() {
    let world = World::new();
    let _one = world.service(false);
    let options = backup_manager::service::Options {
        workers: 1,
        grace: MINUTE,
        zone: chrono_tz::Tz::UTC,
        import: None,
        config: None,
        maintenance: Default::default(),
        scratch: None,
    };
    let refused = backup_manager::service::Service::register(world.process(Role::Service), options, false);
    let error = refused.err().expect("a refusal");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
}

#[test]
fn a_worker_whose_run_was_taken_over_cannot_write() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let (slow, quick) = (world.process(Role::Command), world.process(Role::Command));
    let (claim, _) = world.claim(&slow);
    let taken = world.store.take_over(claim.run(), slow.row.uuid, claim.attempt(), &quick.row, world.clock.now());
    let _taken = taken.unwrap().expect("a take-over");
    assert_eq!(world.store.check_claim(&claim).unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(world.store.discard_chunks(&claim).unwrap_err().kind(), ErrorKind::Fenced);
    let accepts = Some(claim.run());
    let completed = Completed { accepts, ..Completed::default() };
    let failure = world.store.complete(claim, &completed, world.clock.now()).unwrap_err();
    assert_eq!(failure.error.kind(), ErrorKind::Fenced);
    let database = rusqlite::Connection::open(world.store.path()).unwrap();
    let accepted: i64 = database.query_row("SELECT sum(acknowledged) FROM archive", [], |row| row.get(0)).unwrap();
    assert_eq!(accepted, 0, "not even that an older archive is accepted");
    let claim = failure.claim;
    // The old worker and attempt do not serve for a second take-over.
    let again = world.store.take_over(claim.run(), slow.row.uuid, claim.attempt(), &slow.row, world.clock.now());
    assert!(again.unwrap().is_none());
    let failure = world.store.requeue(claim, Requeue::Retry, "late", world.clock.now()).unwrap_err();
    assert_eq!(failure.error.kind(), ErrorKind::Fenced);
}

#[test]
fn a_run_is_tried_three_times_with_pauses_and_then_fails() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    let process = world.process(Role::Command);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    for pause in [MINUTE, MINUTE * 5] {
        let (claim, _) = world.claim(&process);
        let until = world.clock.now().plus(pause);
        let requeued = world.store.requeue(claim, Requeue::Retry, "disk trouble", world.clock.now()).unwrap();
        assert_eq!(requeued, Requeued::Queued { not_before: until });
        world.clock.advance(pause - std::time::Duration::from_secs(1));
        assert!(world.store.claim_next(&process.row, world.clock.now()).unwrap().is_none(), "too early");
        world.clock.advance(std::time::Duration::from_secs(1));
    }
    let (claim, _) = world.claim(&process);
    assert_eq!(claim.attempt(), 3);
    let requeued = world.store.requeue(claim, Requeue::Retry, "disk trouble", world.clock.now()).unwrap();
    assert_eq!(requeued, Requeued::Ended);
    let run = &world.runs()[0];
    assert_eq!((run.state, run.error.as_deref()), (RunState::Failed, Some("disk trouble")));
    let outcomes: Vec<_> = world.store.attempts(run.id).unwrap().into_iter().map(|a| a.outcome).collect();
    assert_eq!(outcomes, ["failed", "failed", "failed"]);
}

#[test]
fn a_stop_does_not_use_up_a_try() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    let process = world.process(Role::Command);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    for _ in 0..10 {
        let (claim, _) = world.claim(&process);
        let requeued = world.store.requeue(claim, Requeue::Refund, "stopped", world.clock.now()).unwrap();
        assert_eq!(requeued, Requeued::Queued { not_before: world.clock.now() });
    }
    assert_eq!(world.runs()[0].attempt, 10);
}

#[test]
fn a_requeued_run_is_coalesced_into_a_newer_queued_one() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    let process = world.process(Role::Command);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let (claim, _) = world.claim(&process);
    let old = claim.run();
    world.clock.advance(DAY);
    service.tick().unwrap();
    let newer = world.runs()[1].id;
    assert!(world.store.claim_next(&process.row, world.clock.now()).unwrap().is_none(), "never two running");
    let requeued = world.store.requeue(claim, Requeue::Retry, "cut off", world.clock.now()).unwrap();
    assert_eq!(requeued, Requeued::SupersededBy(newer));
    let old = world.store.run(old).unwrap();
    assert_eq!((old.state, old.superseded_by), (RunState::Failed, Some(newer)));
    assert_eq!(world.store.run(newer).unwrap().coalesced, 1);
}

#[test]
fn occurrences_due_while_a_run_is_queued_are_coalesced_into_it() {
    let world = World::new();
    world.schedule("docs", "*/10 * * * *");
    let mut service = world.service(false);
    for _ in 0..3 {
        world.clock.advance(MINUTE * 10);
        service.tick().unwrap();
    }
    let runs = world.runs();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].scheduled_for, Some(MIDNIGHT.plus(MINUTE * 30)));
    assert_eq!(runs[0].coalesced, 2);
}

#[test]
fn a_run_by_hand_claims_the_queued_run_and_joins_a_running_one() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let mut service = world.service(false);
    let (one, two) = (world.process(Role::Command), world.process(Role::Command));
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let (claimed, _) = world.store.claim_now(row.id, WANTED, &one.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    assert_eq!(claim.scheduled_for(), Some(MIDNIGHT.plus(HOUR)));
    let (joined, _) = world.store.claim_now(row.id, WANTED, &two.row, world.clock.now()).unwrap();
    assert!(matches!(joined, ClaimNow::Running(run) if run == claim.run()));
    world.store.end_without_archive(claim, RunState::Cancelled, "enough", world.clock.now()).unwrap();
    let (fresh, _) = world.store.claim_now(row.id, WANTED, &two.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(fresh) = fresh else { panic!("{fresh:?}") };
    assert_eq!(world.store.run(fresh.run()).unwrap().trigger, Trigger::Manual);
    // A run by hand is not tried again.
    let requeued = world.store.requeue(fresh, Requeue::Retry, "its process ended", world.clock.now()).unwrap();
    assert_eq!(requeued, Requeued::Ended);
}

#[test]
fn a_not_before_written_under_a_wrong_clock_counts_as_now() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    let process = world.process(Role::Command);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let (claim, _) = world.claim(&process);
    let wrong = world.clock.now().plus(DAY * 365);
    world.store.requeue(claim, Requeue::Retry, "cut off", wrong).unwrap();
    assert!(world.store.claim_next(&process.row, world.clock.now()).unwrap().is_some());
}

#[test]
fn pausing_and_deleting_a_schedule_cancel_its_queued_run() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.schedule("code", "01:00");
    let mut service = world.service(false);
    world.clock.advance(HOUR);
    assert_eq!(service.tick().unwrap().enqueued, 2);
    let mut paused = row.schedule.clone();
    paused.enabled = false;
    world.store.edit_schedules(&[(row.id, paused, row.watermark)], world.clock.now()).unwrap();
    let code = world.store.schedule_named("code").unwrap().unwrap();
    world.store.delete_schedule(code.id, world.clock.now()).unwrap();
    assert!(world.runs().iter().all(|run| run.state == RunState::Cancelled));
    assert!(service.claim().unwrap().is_none());
}

#[test]
fn a_deleted_name_is_created_again_with_its_history_and_listed_last() {
    let world = World::new();
    let docs = world.schedule("docs", "01:00");
    world.schedule("code", "01:00");
    world.store.delete_schedule(docs.id, world.clock.now()).unwrap();
    let again = world.schedule("docs", "02:00");
    assert_eq!(again.id, docs.id);
    let names: Vec<_> = world.store.schedules().unwrap().iter().map(|r| r.schedule.name.to_string()).collect();
    assert_eq!(names, ["code", "docs"]);
}

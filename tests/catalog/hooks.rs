//! Commands of schedules, their output, and what is to be undone after runs.

use std::collections::BTreeMap;
use std::time::Duration;

use backup_manager::clock::Timestamp;
use backup_manager::error::ErrorKind;
use backup_manager::schedule::{Cadence, CommandKind, HookOptions, Hooks, Schedule, ScheduleName};
use backup_manager::store::{
    Claim, ClaimNow, CommandEnding, CommandOutput, Duty, DutyKind, DutyState, MAX_OUTPUT_BYTES, Managed, NewDuty, Role,
    RunRequest, RunState, ScheduleChanges, ScheduleHooks, Store, Watermark, WorkerRow,
};
use chrono_tz::Tz;
use uuid::Uuid;

use crate::support::{NOW, open};

fn name() -> ScheduleName {
    ScheduleName::parse("docs").unwrap()
}

fn docs() -> (Schedule, Watermark) {
    let schedule = Schedule::new(name(), b"source".to_vec(), Cadence::parse_daily("02:00").unwrap());
    let watermark = Watermark::starting(&schedule, Tz::UTC, NOW);
    (schedule, watermark)
}

fn worker() -> WorkerRow {
    let uuid = Uuid::new_v4();
    WorkerRow { uuid, role: Role::Command, pid: 7, host: "here".to_owned(), started_at: NOW, stop_requested: None }
}

fn claim(store: &Store, schedule: i64, worker: &WorkerRow) -> Claim {
    let request = RunRequest { verify: true, reread: false };
    match store.claim_now(schedule, request, worker, NOW).unwrap().0 {
        ClaimNow::Claimed(claim) => claim,
        ClaimNow::Running(run) => panic!("@{run} is running"),
    }
}

fn hooks(command: &str) -> ScheduleHooks {
    let commands = BTreeMap::from([(CommandKind::Before, command.to_owned()), (CommandKind::After, "b".to_owned())]);
    let options = HookOptions { time_limit: Duration::from_secs(9), ..HookOptions::default() };
    ScheduleHooks {
        hooks: Hooks { commands, options },
        approvals: BTreeMap::from([(CommandKind::Before, vec![command.len() as u8; 32])]),
    }
}

fn file() -> Managed {
    Managed { file: "/backup.toml".to_owned(), line: 3, is_paused: true }
}

/// Returns a schedule with commands.
fn created(store: &Store, command: &str) -> i64 {
    let (created, hooks) = ([docs()], [(name(), hooks(command))]);
    let managed = [(name(), Some(file()))];
    let changes = ScheduleChanges { created: &created, hooks: &hooks, managed: &managed, ..ScheduleChanges::default() };
    store.apply_schedules(&changes, NOW).unwrap()[0].0
}

#[test]
fn a_deleted_schedule_keeps_its_commands_and_its_name_does_not_get_them_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let id = created(&store, "a");
    assert_eq!(store.hooks(id).unwrap(), hooks("a"));
    assert_eq!(store.schedule(id).unwrap().managed_by, Some(file()));
    let (schedule, watermark) = docs();
    store.edit_schedules(&[(id, Schedule { verify: false, ..schedule }, watermark)], NOW).unwrap();
    assert_eq!(store.hooks(id).unwrap(), hooks("a"), "another option was edited");
    assert_eq!(store.schedule(id).unwrap().managed_by, Some(file()));
    store.delete_schedule(id, NOW).unwrap();
    assert_eq!(store.hooks(id).unwrap(), hooks("a"), "its command after may be owed");
    assert_eq!(store.create_schedules(&[docs()], NOW).unwrap()[0].0, id);
    assert_eq!(store.hooks(id).unwrap(), ScheduleHooks::default());
    assert_eq!(store.schedule(id).unwrap().managed_by, None);
}

#[test]
fn changes_with_commands_for_an_unknown_name_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let created = [docs()];
    let hooks = [(ScheduleName::parse("other").unwrap(), hooks("a"))];
    let changes = ScheduleChanges { created: &created, hooks: &hooks, ..ScheduleChanges::default() };
    store.apply_schedules(&changes, NOW).unwrap_err();
    assert!(store.schedules().unwrap().is_empty());
}

#[test]
fn only_the_command_that_was_seen_is_approved() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let id = created(&store, "a");
    let seen = ScheduleHooks { approvals: BTreeMap::from([(CommandKind::Before, vec![9; 32])]), ..hooks("a") };
    let changed = ScheduleHooks { approvals: BTreeMap::new(), ..hooks("rm -rf") };
    let changes = [(name(), changed.clone())];
    store.apply_schedules(&ScheduleChanges { hooks: &changes, ..ScheduleChanges::default() }, NOW).unwrap();
    store.approve_commands(id, &seen).unwrap();
    assert_eq!(store.hooks(id).unwrap(), changed, "another command was approved");
}

#[test]
fn the_end_of_an_output_is_kept_as_long_as_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let id = created(&store, "a");
    let claimed = claim(&store, id, &worker());
    let run = claimed.run();
    let mut output = vec![b'x'; 3 * MAX_OUTPUT_BYTES];
    output.extend_from_slice(b"\x1b[31m the end");
    let executed = CommandOutput {
        attempt: 1,
        kind: CommandKind::Before,
        container: Some("app".to_owned()),
        started_at: NOW,
        ended_at: NOW,
        ending: CommandEnding::Exited(75),
        output,
    };
    let endings = [
        CommandEnding::Exited(0),
        CommandEnding::Signal(9),
        CommandEnding::TimeLimit,
        CommandEnding::NotStarted,
        CommandEnding::Lost,
    ];
    for ending in endings {
        store.record_command(run, &CommandOutput { ending, ..executed.clone() }).unwrap();
    }
    let found = store.command_outputs(run).unwrap();
    assert_eq!(found.iter().map(|one| one.ending).collect::<Vec<_>>(), endings);
    assert_eq!(found[0].output.len(), MAX_OUTPUT_BYTES);
    assert!(found[0].output.ends_with(b"\x1b[31m the end"));
    assert_eq!(found[0].container.as_deref(), Some("app"));
    store.end_without_archive(claimed, RunState::Skipped, "", NOW).unwrap();
    // The newest run of a schedule is never removed.
    store.end_without_archive(claim(&store, id, &worker()), RunState::Skipped, "", NOW).unwrap();
    assert_eq!(store.prune_history(NOW.plus(Duration::from_secs(1))).unwrap(), 1);
    assert!(store.command_outputs(run).unwrap().is_empty());
    store.record_command(run, &executed).unwrap();
    assert!(store.command_outputs(run).unwrap().is_empty(), "the run is not in the history any more");
}

#[test]
fn a_skipped_run_is_neither_the_last_failure_nor_the_last_success() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let id = created(&store, "a");
    let failed = claim(&store, id, &worker());
    let run = failed.run();
    store.end_without_archive(failed, RunState::Failed, "broken", NOW).unwrap();
    let skipped = claim(&store, id, &worker());
    let (second, attempt) = (skipped.run(), skipped.attempt());
    store.end_without_archive(skipped, RunState::Skipped, "not today", NOW).unwrap();
    assert_eq!(store.last_ended(id).unwrap().unwrap().id, run);
    assert_eq!(store.run(second).unwrap().state, RunState::Skipped);
    let attempts = store.attempts(second).unwrap();
    assert_eq!((attempts[0].attempt, attempts[0].outcome.as_str()), (attempt, "skipped"));
}

fn plan(store: &Store, claim: &Claim, key: &str) -> Duty {
    let new = NewDuty { kind: DutyKind::Start, subject: "{}", shared_key: Some(key) };
    store.plan_duty(claim, &new, NOW).unwrap()
}

fn is_fenced<T: std::fmt::Debug>(result: Result<T, backup_manager::error::Error>) -> bool {
    result.unwrap_err().kind() == ErrorKind::Fenced
}

#[test]
fn a_worker_whose_duty_was_taken_over_settles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let id = created(&store, "a");
    let (one, two) = (worker(), worker());
    let old = claim(&store, id, &one);
    let planned = plan(&store, &old, "app");
    assert_eq!(
        (planned.state, planned.worker, planned.schedule_name.as_str()),
        (DutyState::Planned, Some(one.uuid), "docs")
    );
    let done = store.mark_duty_done(&planned, "{\"stopped\":1}").unwrap();
    let taken = store.take_duty(&done, two.uuid).unwrap().unwrap();
    assert!(store.take_duty(&done, one.uuid).unwrap().is_none(), "it was taken over twice");
    assert_eq!((taken.state, taken.tries, taken.subject.as_str()), (DutyState::Done, 1, "{\"stopped\":1}"));
    assert!(is_fenced(store.settle_duty(&done)));
    assert!(is_fenced(store.mark_duty_done(&done, "{}")));
    assert!(is_fenced(store.settle_shared_duty(&done)));
    assert!(is_fenced(store.postpone_duty(&done, "", NOW)));
    // Likewise whoever lost the run plans nothing.
    let new = store.take_over(old.run(), one.uuid, old.attempt(), &two, NOW).unwrap().unwrap();
    let lost = NewDuty { kind: DutyKind::After, subject: "{}", shared_key: None };
    assert!(is_fenced(store.plan_duty(&old, &lost, NOW)));
    let later = NOW.plus(Duration::from_secs(60));
    store.postpone_duty(&taken, "it does not start", later).unwrap();
    store.end_without_archive(new, RunState::Failed, "", NOW).unwrap();
    let waiting = &store.open_duties().unwrap()[0];
    assert_eq!((waiting.worker, waiting.error.as_deref()), (None, Some("it does not start")));
    assert!(!waiting.is_due(NOW) && waiting.is_due(later));
    assert!(waiting.is_due(Timestamp::from_millis(0)), "the clock was ahead when it was written");
    let again = store.take_duty(waiting, two.uuid).unwrap().unwrap();
    store.settle_duty(&again).unwrap();
    assert!(is_fenced(store.settle_duty(&again)), "it is settled twice");
    assert!(store.open_duties().unwrap().is_empty());
}

#[test]
fn of_several_duties_about_one_thing_the_last_remains() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let claimed = claim(&store, created(&store, "a"), &worker());
    let [one, two, other] = ["app", "app", "db"].map(|key| plan(&store, &claimed, key));
    assert!(store.settle_shared_duty(&one).unwrap());
    assert!(!store.settle_shared_duty(&two).unwrap(), "nobody would start it");
    assert!(!store.settle_shared_duty(&other).unwrap());
    let open: Vec<i64> = store.open_duties().unwrap().iter().map(|duty| duty.id).collect();
    assert_eq!(open, [two.id, other.id]);
    store.end_without_archive(claimed, RunState::Failed, "", NOW).unwrap();
}

#[test]
fn a_duty_outlives_its_schedule_and_the_history_keeps_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let id = created(&store, "a");
    let claimed = claim(&store, id, &worker());
    let run = claimed.run();
    let (open, settled) = (plan(&store, &claimed, "app"), plan(&store, &claimed, "db"));
    store.settle_duty(&settled).unwrap();
    store.end_without_archive(claimed, RunState::Failed, "", NOW).unwrap();
    store.end_without_archive(claim(&store, id, &worker()), RunState::Failed, "", NOW).unwrap();
    store.delete_schedule(id, NOW).unwrap();
    assert_eq!(store.duties_of_run(run).unwrap().len(), 2);
    let later = NOW.plus(Duration::from_secs(1));
    assert_eq!(store.prune_history(later).unwrap(), 0);
    assert_eq!(store.duties_of_run(run).unwrap(), std::slice::from_ref(&open));
    store.settle_duty(&open).unwrap();
    assert_eq!(store.prune_history(later).unwrap(), 1);
}

#[test]
fn a_duty_that_cannot_be_read_does_not_hide_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let claimed = claim(&store, created(&store, "a"), &worker());
    let [bad, good] = ["app", "db"].map(|key| plan(&store, &claimed, key));
    store.end_without_archive(claimed, RunState::Failed, "", NOW).unwrap();
    let connection = rusqlite::Connection::open(store.path()).unwrap();
    connection.execute("UPDATE duty SET worker = 'nobody' WHERE id = ?1", [bad.id]).unwrap();
    assert_eq!(store.open_duties().unwrap(), [good]);
}

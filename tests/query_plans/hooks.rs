//! Calls of the functions about commands around runs.

use std::collections::BTreeMap;

use backup_manager::schedule::{CommandKind, HookOptions, Hooks, ScheduleName};
use backup_manager::store::{
    ClaimNow, CommandEnding, CommandOutput, DutyKind, Managed, NewDuty, RunState, ScheduleChanges, ScheduleHooks,
    Store, WorkerRow,
};

use crate::calls::{REQUEST, new_schedule};
use crate::support::NOW;

pub fn call(store: &Store, one: &WorkerRow, two: &WorkerRow) {
    let id = new_schedule(store, "hooks");
    let name = ScheduleName::parse("hooks").unwrap();
    let hooks = ScheduleHooks {
        hooks: Hooks {
            commands: BTreeMap::from([(CommandKind::Before, "true".to_owned())]),
            options: HookOptions { containers: true, ..HookOptions::default() },
        },
        approvals: BTreeMap::from([(CommandKind::Before, vec![1; 32])]),
    };
    let file = Managed { file: "/etc/backup.toml".to_owned(), line: 1, is_paused: false };
    let (with_hooks, managed) = ([(name.clone(), hooks.clone())], [(name, Some(file))]);
    let changes = ScheduleChanges { hooks: &with_hooks, managed: &managed, ..ScheduleChanges::default() };
    store.apply_schedules(&changes, NOW).unwrap();
    store.approve_commands(id, &hooks).unwrap();
    assert_eq!(store.hooks(id).unwrap(), hooks);
    let ClaimNow::Claimed(claim) = store.claim_now(id, REQUEST, one, NOW).unwrap().0 else { panic!() };
    let executed = CommandOutput {
        attempt: 1,
        kind: CommandKind::Before,
        container: None,
        started_at: NOW,
        ended_at: NOW,
        ending: CommandEnding::Exited(75),
        output: b"not today".to_vec(),
    };
    store.record_command(claim.run(), &executed).unwrap();
    assert_eq!(store.command_outputs(claim.run()).unwrap(), [executed]);
    let new = NewDuty { kind: DutyKind::Start, subject: "{}", shared_key: Some("app") };
    let first = store.plan_duty(&claim, &new, NOW).unwrap();
    let second = store.mark_duty_done(&store.plan_duty(&claim, &new, NOW).unwrap(), "{}").unwrap();
    assert!(store.settle_shared_duty(&first).unwrap());
    store.postpone_duty(&second, "refused", NOW).unwrap();
    let taken = store.take_duty(&store.open_duties().unwrap()[0], two.uuid).unwrap().unwrap();
    store.settle_duty(&taken).unwrap();
    assert_eq!(store.duties_of_run(claim.run()).unwrap().len(), 2);
    store.end_without_archive(claim, RunState::Skipped, "not today", NOW).unwrap();
}

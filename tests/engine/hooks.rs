//! Commands around runs, with the real shell: their order, what becomes of a run when they fail, and that `--after` is
//! executed whatever happens (I16).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backup_manager::approval;
use backup_manager::backup::RunContext;
use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::schedule::{Cadence, CommandKind, HookOptions, Hooks, Schedule, ScheduleName};
use backup_manager::store::{
    ClaimNow, CommandEnding, DutyKind, DutyState, NewDuty, Role, RunRequest, RunState, ScheduleChanges, ScheduleRow,
};

use crate::runs::{Recording, recover_all, run_now, tar_lists};
use crate::world::{HOUR, MINUTE, World};

/// Writes a line about the command into `log`.
const LOG: &str = "echo \"$KIND run=$BACKUP_RUN attempt=$BACKUP_ATTEMPT again=$BACKUP_AGAIN state=$BACKUP_STATE \
                   archive=${BACKUP_ARCHIVE##*/} problems=$BACKUP_PROBLEMS error=$BACKUP_ERROR\" >>log";

impl World {
    /// Sets commands, each of which first writes a line into `log`.
    fn set_commands(&self, row: &ScheduleRow, commands: &[(CommandKind, &str)]) {
        let logged = |kind: CommandKind, text: &str| format!("KIND={kind}; {LOG}; {text}");
        let commands: BTreeMap<_, _> = commands.iter().map(|(kind, text)| (*kind, logged(*kind, text))).collect();
        self.set_hooks(row, Hooks { commands, ..Hooks::default() });
    }

    pub fn set_hooks(&self, row: &ScheduleRow, hooks: Hooks) {
        let approved = approval::approve(&self.home, &row.schedule.name, hooks, |_| true).unwrap();
        let hooks = [(row.schedule.name.clone(), approved)];
        let changes = ScheduleChanges { hooks: &hooks, ..ScheduleChanges::default() };
        self.store.apply_schedules(&changes, self.clock.now()).unwrap();
    }

    /// Adds a schedule whose source is a command.
    fn schedule_of_command(&self, command: &str, allow_empty: bool) -> ScheduleRow {
        let name = ScheduleName::parse("db").unwrap();
        let row = self.add(Schedule::new(name, b"app.dump".to_vec(), Cadence::parse_daily("01:00").unwrap()));
        self.set_source_command(&row, command, allow_empty);
        row
    }

    pub fn set_source_command(&self, row: &ScheduleRow, command: &str, allow_empty: bool) {
        let commands = BTreeMap::from([(CommandKind::Source, command.to_owned())]);
        let options = HookOptions { allow_empty, ..HookOptions::default() };
        self.set_hooks(row, Hooks { commands, options });
    }

    /// Returns the lines that the commands have written, and clears them.
    fn take_log(&self) -> Vec<String> {
        let lines = fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("log"));
        lines.lines().map(str::to_owned).collect()
    }

    /// Plans the duty of `--after` in a claimed run whose process then dies.
    fn die_after_planning(&self, row: &ScheduleRow, is_started: bool) -> i64 {
        let dead = self.process(Role::Command);
        let request = RunRequest { verify: true, reread: false };
        let (claimed, _) = self.store.claim_now(row.id, request, &dead.row, self.clock.now()).unwrap();
        let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
        let new = NewDuty { kind: DutyKind::After, subject: "{}", shared_key: None };
        let duty = self.store.plan_duty(&claim, &new, self.clock.now()).unwrap();
        if is_started {
            self.store.mark_duty_done(&duty, r#"{"is_started":true}"#).unwrap();
        }
        claim.run()
    }

    fn open_duties(&self) -> usize {
        self.store.open_duties().unwrap().len()
    }
}

use CommandKind::{After, Before, OnFailure, OnSuccess};

#[test]
fn the_commands_of_a_run_are_executed_in_order_and_told_about_it() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let dump = "echo dump >docs/dump";
    world.set_commands(&row, &[(Before, dump), (After, "rm docs/dump"), (OnSuccess, ""), (OnFailure, "")]);
    let ended = run_now(&world, &world.process(Role::Command), &row);
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.error);
    let archive = world.store.archive(ended.run).unwrap().unwrap();
    let file = archive.file_name.rsplit('/').next().unwrap();
    assert_eq!(
        world.take_log(),
        [
            "before run=1 attempt=1 again= state=starting archive= problems=0 error=".to_owned(),
            "after run=1 attempt=1 again= state=read archive= problems=0 error=".to_owned(),
            format!("on-success run=1 attempt=1 again= state=succeeded archive={file} problems=0 error="),
        ]
    );
    let members = tar_lists(&world.home.backups().join(&archive.file_name));
    assert_eq!(members, ["docs/", "docs/dump", "docs/file.txt"], "before was before the reading, after behind it");
    assert!(!world.path("docs/dump").exists());
    assert_eq!(world.open_duties(), 0);
    let kinds: Vec<_> = world.store.command_outputs(ended.run).unwrap().iter().map(|found| found.kind).collect();
    assert_eq!(kinds, [Before, After, OnSuccess]);
}

#[test]
fn a_failing_before_fails_the_run_which_is_not_tried_again_and_after_is_executed() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let fail = "echo first; echo no database >&2; exit 3";
    world.set_commands(&row, &[(Before, fail), (After, ""), (OnSuccess, ""), (OnFailure, "")]);
    let mut service = world.service(false);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let (claim, intent) = service.claim().unwrap().unwrap();
    let ended = service.execute(claim, &intent).unwrap();
    assert_eq!(ended.state, RunState::Failed);
    let run = world.store.run(ended.run).unwrap();
    assert_eq!(run.error.as_deref(), Some("--before ended with exit code 3: no database"));
    assert!(world.store.archive(ended.run).unwrap().is_none());
    assert!(world.archive_files().is_empty());
    let error = "error=--before ended with exit code 3: no database";
    assert_eq!(
        world.take_log(),
        [
            "before run=1 attempt=1 again= state=starting archive= problems=0 error=".to_owned(),
            format!("after run=1 attempt=1 again= state=failed archive= problems=0 {error}"),
            format!("on-failure run=1 attempt=1 again= state=failed archive= problems=0 {error}"),
        ]
    );
    let recorded = &world.store.command_outputs(ended.run).unwrap()[0];
    assert_eq!((recorded.ending, &*recorded.output), (CommandEnding::Exited(3), &b"first\nno database\n"[..]));
}

#[test]
fn exit_code_75_of_before_skips_the_run_without_a_failure() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.set_commands(&row, &[(Before, "exit 75"), (After, ""), (OnSuccess, ""), (OnFailure, "")]);
    let ended = run_now(&world, &world.process(Role::Command), &row);
    assert_eq!(ended.state, RunState::Skipped);
    assert!(world.store.archive(ended.run).unwrap().is_none());
    let log = world.take_log();
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(log[1].starts_with("after run=1 attempt=1 again= state=skipped"), "{log:?}");
}

#[test]
fn a_failing_after_makes_the_run_incomplete_and_is_tried_again_later() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.set_commands(&row, &[(After, "test -e thawed"), (OnFailure, "")]);
    let ended = run_now(&world, &world.process(Role::Command), &row);
    assert_eq!(ended.state, RunState::Incomplete);
    let run = world.store.run(ended.run).unwrap();
    assert_eq!(run.error.as_deref(), Some("--after ended with exit code 1"));
    assert!(world.store.archive(ended.run).unwrap().unwrap().good, "the archive is good");
    let log = world.take_log();
    assert!(log[1].starts_with("on-failure run=1 attempt=1 again= state=incomplete archive=docs-"), "{log:?}");

    let mut service = world.service(false);
    service.tick().unwrap();
    assert!(world.take_log().is_empty(), "a pause first");
    world.clock.advance(MINUTE);
    service.tick().unwrap();
    assert!(world.take_log()[0].starts_with("after run=1 attempt=1 again=1 state=incomplete"));
    world.clock.advance(MINUTE);
    service.tick().unwrap();
    assert!(world.take_log().is_empty(), "a longer pause after the second failure");
    fs::write(world.path("thawed"), "").unwrap();
    world.clock.advance(MINUTE);
    service.tick().unwrap();
    assert_eq!(world.take_log().len(), 1);
    assert_eq!(world.open_duties(), 0);
}

#[test]
fn a_failing_command_at_the_end_changes_nothing() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.set_commands(&row, &[(OnSuccess, "exit 1")]);
    let ended = run_now(&world, &world.process(Role::Command), &row);
    assert_eq!(ended.state, RunState::Succeeded);
    assert_eq!(world.store.command_outputs(ended.run).unwrap()[0].ending, CommandEnding::Exited(1));
}

#[test]
fn held_commands_fail_the_run_before_anything_is_executed() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.set_commands(&row, &[(Before, ""), (After, ""), (OnFailure, "")]);
    fs::remove_file(world.home.secrets().join("commands")).unwrap();
    let ended = run_now(&world, &world.process(Role::Command), &row);
    assert_eq!(ended.state, RunState::Failed);
    let error = ended.error.unwrap();
    assert_eq!(error.next_step(), Some("backup-manager accept docs --commands"), "{error}");
    assert!(world.take_log().is_empty());
    assert_eq!(world.open_duties(), 0);
}

#[test]
fn a_cancelled_before_is_ended_and_after_is_executed_to_its_end() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.set_commands(&row, &[(Before, "sleep 1000"), (After, "sleep 0.2; echo done >>log")]);
    let runner = world.process(Role::Command);
    let cancel = CancelToken::new();
    let request = RunRequest { verify: true, reread: false };
    let (claimed, intent) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    let observer = Recording::default();
    let context = RunContext { cancel: &cancel, observer: &observer, is_foreground: true };
    let ended = std::thread::scope(|scope| {
        let running = scope.spawn(|| runner.execute(claim, &intent.unwrap(), &context).unwrap());
        while !world.path("log").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        cancel.cancel();
        running.join().unwrap()
    });
    assert_eq!(ended.state, RunState::Cancelled);
    let log = world.take_log();
    assert!(log[1].contains("state=failed") && log[1].contains("error=--before was ended because"), "{log:?}");
    assert_eq!(log[2], "done");
}

#[test]
fn recovery_executes_after_once_and_says_so_if_it_was_started_before() {
    for (is_started, again) in [(false, ""), (true, "1")] {
        let world = World::new();
        let row = world.schedule("docs", "01:00");
        world.set_commands(&row, &[(Before, ""), (After, "")]);
        world.die_after_planning(&row, is_started);
        recover_all(&world.process(Role::Command));
        let log = world.take_log();
        assert_eq!(log.len(), 1, "{log:?}");
        assert!(log[0].starts_with(&format!("after run=1 attempt=1 again={again} state=failed")), "{log:?}");
        recover_all(&world.process(Role::Command));
        assert!(world.take_log().is_empty(), "a second recovery executes nothing");
        assert_eq!(world.open_duties(), 0);
    }
}

#[test]
fn a_deleted_schedule_keeps_its_duty_and_a_database_without_its_token_holds_it() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.set_commands(&row, &[(After, "test -e thawed")]);
    let runner = world.process(Role::Command);
    run_now(&world, &runner, &row);
    let deleted = [row.id];
    let changes = ScheduleChanges { deleted: &deleted, ..ScheduleChanges::default() };
    world.store.apply_schedules(&changes, world.clock.now()).unwrap();
    world.take_log();
    fs::write(world.path("thawed"), "").unwrap();
    let token = world.home.secrets().join("commands");
    let kept = fs::read(&token).unwrap();
    fs::remove_file(&token).unwrap();
    world.clock.advance(MINUTE);
    recover_all(&runner);
    assert!(world.take_log().is_empty(), "held");
    let held = &world.store.open_duties().unwrap()[0];
    assert_eq!(held.state, DutyState::Done);
    assert!(held.error.as_ref().unwrap().contains("held"), "{held:?}");
    fs::write(&token, kept).unwrap();
    world.clock.advance(HOUR);
    recover_all(&runner);
    assert_eq!(world.take_log().len(), 1);
    assert_eq!(world.open_duties(), 0);
}

#[test]
fn the_duty_of_a_live_process_is_left_to_it_and_a_loser_settles_nothing() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.set_commands(&row, &[(After, "")]);
    let slow = world.process(Role::Command);
    let request = RunRequest { verify: true, reread: false };
    let (claimed, _) = world.store.claim_now(row.id, request, &slow.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    let new = NewDuty { kind: DutyKind::After, subject: "{}", shared_key: None };
    let duty = world.store.plan_duty(&claim, &new, world.clock.now()).unwrap();
    recover_all(&world.process(Role::Command));
    assert!(world.take_log().is_empty(), "its process is alive");
    drop(slow);
    recover_all(&world.process(Role::Command));
    assert_eq!(world.take_log().len(), 1);
    assert!(world.store.mark_duty_done(&duty, "{}").is_err(), "the loser is fenced");
}

#[test]
fn a_run_first_undoes_what_an_earlier_one_left_and_its_own_after_settles_what_still_fails() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.set_commands(&row, &[(Before, ""), (After, "test -e thawed")]);
    let runner = world.process(Role::Command);
    run_now(&world, &runner, &row);
    world.take_log();
    run_now(&world, &runner, &row);
    let kinds: Vec<String> =
        world.take_log().iter().map(|line| line[..line.find(" att").unwrap()].to_owned()).collect();
    assert_eq!(kinds, ["after run=1", "before run=2", "after run=2"]);
    assert_eq!(world.open_duties(), 2);
    world.set_commands(&row, &[(Before, "touch thawed"), (After, "test -e thawed")]);
    let ended = run_now(&world, &runner, &row);
    assert_eq!((ended.state, world.open_duties()), (RunState::Succeeded, 0));
}

/// Returns the content of a member of an archive, as GNU tar extracts it.
pub fn member(archive: &Path, name: &str) -> Vec<u8> {
    let extracted = Command::new("tar").arg("-xOf").arg(archive).arg(name).output().unwrap();
    assert!(extracted.status.success(), "{}", String::from_utf8_lossy(&extracted.stderr));
    extracted.stdout
}

#[test]
fn what_a_command_prints_is_the_one_file_of_the_archive() {
    let world = World::new();
    let row = world.schedule_of_command("echo note >&2; seq 1 500000", false);
    let runner = world.process(Role::Command);
    let expected: String = (1..=500_000).map(|number| format!("{number}\n")).collect();
    for _ in 0..2 {
        let ended = run_now(&world, &runner, &row);
        assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.error);
        let archive = world.store.archive(ended.run).unwrap().unwrap();
        let path = world.home.backups().join(&archive.file_name);
        assert_eq!(tar_lists(&path), ["app.dump"]);
        assert!(member(&path, "app.dump") == expected.as_bytes(), "the content differs");
        assert_eq!(world.store.command_outputs(ended.run).unwrap()[0].output, b"note\n");
        let found: Vec<String> = world.archive_files();
        assert!(found.iter().all(|name| !name.contains(".part")), "{found:?}");
        world.clock.advance(MINUTE);
    }
}

#[test]
fn a_source_command_that_fails_or_prints_nothing_leaves_nothing() {
    let cases = [
        ("echo half; echo no such table >&2; exit 1", "--source-command ended with exit code 1: no such table"),
        ("true", "--source-command has printed nothing"),
        ("echo half; kill -9 $$", "--source-command was ended by SIGKILL"),
    ];
    for (command, message) in cases {
        let world = World::new();
        let row = world.schedule_of_command(command, false);
        let ended = run_now(&world, &world.process(Role::Command), &row);
        assert_eq!(ended.state, RunState::Failed, "{command}");
        let error = ended.error.unwrap().to_string();
        assert!(error.starts_with(message), "{command}: {error}");
        assert_eq!(world.archive_files(), [""; 0], "{command}");
    }
    let world = World::new();
    let row = world.schedule_of_command("true", true);
    assert_eq!(run_now(&world, &world.process(Role::Command), &row).state, RunState::Succeeded, "allowed");
}

#[test]
fn output_that_a_process_left_behind_may_still_write_is_not_kept() {
    let world = World::new();
    let row = world.schedule_of_command("echo begun; sleep 30 & echo $! >job", false);
    let runner = world.process(Role::Command);
    let is_over = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Once the shell has ended, the clock moves on.
            while !is_over.load(Ordering::SeqCst) {
                world.clock.advance(Duration::from_millis(100));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let ended = run_now(&world, &runner, &row);
        is_over.store(true, Ordering::SeqCst);
        ended
    });
    Command::new("kill").arg(fs::read_to_string(world.path("job")).unwrap().trim()).status().unwrap();
    let error = ended.error.unwrap().to_string();
    assert!(error.starts_with("--source-command has ended, and a process that it left may still print"), "{error}");
    assert_eq!(world.archive_files(), [""; 0]);
}

#[test]
fn what_a_killed_program_has_spooled_is_removed_by_recovery() {
    let world = World::new();
    let row = world.schedule_of_command("echo whole", false);
    let dead = world.process(Role::Command);
    let request = RunRequest { verify: true, reread: false };
    let (_claimed, intent) = world.store.claim_now(row.id, request, &dead.row, world.clock.now()).unwrap();
    let name = intent.unwrap().temporary_name;
    let (attempt, _) = name.rsplit_once('-').unwrap();
    fs::create_dir_all(world.home.backups().join("db")).unwrap();
    fs::write(world.home.backups().join(format!("{attempt}-0123abcd.part")), "half").unwrap();
    drop(dead);
    let runner = world.process(Role::Command);
    recover_all(&runner);
    assert_eq!(world.archive_files().iter().filter(|name| name.ends_with(".part")).count(), 0);
    assert_eq!(run_now(&world, &runner, &row).state, RunState::Succeeded);
}

#[test]
fn duties_that_cannot_be_read_stop_neither_schedules_nor_runs_nor_the_service() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let mut service = world.service(false);
    service.tick().unwrap();
    let connection = rusqlite::Connection::open(world.store.path()).unwrap();
    connection.execute_batch("ALTER TABLE duty RENAME TO lost").unwrap();
    world.clock.advance(24 * HOUR);
    assert_eq!(service.tick().unwrap().enqueued, 1);
    let runner = world.process(Role::Command);
    recover_all(&runner);
    run_now(&world, &runner, &row);
    assert_eq!(world.archive_files().len(), 1);
}

//! Runs from claim to end, and the deletion of their archives.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use backup_manager::archive_folder;
use backup_manager::backup::{RecoveryReport, RunContext, RunOutcome, Runner, recover};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::error::ErrorKind;
use backup_manager::progress::{Observer, Problem, Progress};
use backup_manager::store::{ClaimNow, Health, Role, RunRequest, RunState, ScheduleRow, Trigger};

use crate::world::{DAY, HOUR, MINUTE, World};

/// Records the notes.
#[derive(Default)]
pub struct Recording {
    notes: Mutex<Vec<String>>,
}

impl Observer for Recording {
    fn progress(&self, _: &Progress) {}

    fn problem(&self, _: &Problem) {}

    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }
}

pub fn run_now(world: &World, runner: &Runner, row: &ScheduleRow) -> RunOutcome {
    run_with(world, runner, row, &CancelToken::default(), &Recording::default())
}

fn run_with(
    world: &World,
    runner: &Runner,
    row: &ScheduleRow,
    cancel: &CancelToken,
    observer: &Recording,
) -> RunOutcome {
    let request = RunRequest { verify: true, reread: false };
    let (claimed, intent) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    runner.execute(claim, &intent.unwrap(), &RunContext { cancel, observer, is_foreground: true }).unwrap()
}

pub fn recover_all(runner: &Runner) -> RecoveryReport {
    let (cancel, observer) = (CancelToken::default(), Recording::default());
    let context = RunContext { cancel: &cancel, observer: &observer, is_foreground: false };
    recover(runner, &context).unwrap()
}

pub fn tar_lists(path: &Path) -> Vec<String> {
    let listed = Command::new("tar").arg("-tf").arg(path).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_run_makes_a_verified_archive_that_tar_opens_and_a_stable_link_to_it() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    let ended = run_now(&world, &runner, &row);
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.error);
    let archive = world.store.newest_good(row.id).unwrap().expect("a good archive");
    assert_eq!(archive.health, Health::Good);
    assert_eq!(archive.verified_at, Some(world.clock.now()));
    assert_eq!(archive.file_name, format!("docs/docs-20261123T000000Z-{}.tar", ended.run));
    let path = world.home.backups().join(&archive.file_name);
    assert_eq!(tar_lists(&path), ["docs/", "docs/file.txt"]);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o400, archive.size));
    assert_eq!(fs::read_link(world.path("backups/docs.tar")).unwrap(), Path::new(&archive.file_name));
    assert_eq!(world.archive_files(), [archive.file_name]);
}

#[test]
fn each_format_has_its_stable_link_and_the_link_of_another_format_is_removed() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    for (compression, link) in [("gzip", "docs.tar.gz"), ("zstd", "docs.tar.zst"), ("none", "docs.tar")] {
        let mut schedule = row.schedule.clone();
        schedule.compression = compression.parse().unwrap();
        world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
        world.clock.advance(MINUTE);
        assert_eq!(run_now(&world, &runner, &row).state, RunState::Succeeded);
        let links: Vec<String> = fs::read_dir(world.home.backups())
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_type().unwrap().is_symlink())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        assert_eq!(links, [link]);
        assert_eq!(tar_lists(&world.home.backups().join(link)), ["docs/", "docs/file.txt"]);
    }
}

#[test]
fn a_link_of_the_users_own_under_the_name_of_a_stable_link_is_left_alone_and_reported() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    assert_eq!(run_now(&world, &runner, &row).state, RunState::Succeeded);
    let newest = fs::read_link(world.path("backups/docs.tar")).unwrap();
    let refresh = || archive_folder::refresh_links_only(&world.home, &world.store, std::slice::from_ref(&row)).unwrap();
    let own = ["docs/own-file", "docs/own.tar", "/etc/docs.tar", "../docs", "docs/docs-20261123T000000Z-1.tar.bak"];
    for (link, is_wanted) in [("docs.tar", true), ("docs.tar.gz", false)] {
        let link = world.home.backups().join(link);
        for target in own {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(target, &link).unwrap();
            let notes = refresh();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
            assert_eq!(notes.len(), usize::from(is_wanted), "{target}: {notes:?}");
            assert!(
                notes.iter().all(|note| note.contains("is a link to") && note.contains("move it away")),
                "{notes:?}"
            );
        }
        // Links to archives are the program's own, whichever archive it is.
        for target in ["docs/docs-20200101T000000Z-7.tar", "old/old-20200101T000000Z-legacy.tar.gz"] {
            fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(refresh(), Vec::<String>::new());
            assert_eq!(fs::read_link(&link).ok(), is_wanted.then(|| newest.clone()), "{target}");
            let _ = is_wanted || std::os::unix::fs::symlink(target, &link).is_ok();
        }
    }
}

#[test]
fn a_missing_source_fails_the_run_and_leaves_no_file() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    fs::remove_dir_all(world.path("docs")).unwrap();
    let runner = world.process(Role::Command);
    let ended = run_now(&world, &runner, &row);
    assert_eq!(ended.state, RunState::Failed);
    assert!(ended.error.unwrap().to_string().contains("docs"));
    assert!(world.archive_files().is_empty());
    assert!(world.store.pending_archive(ended.run).unwrap().is_none());
}

#[test]
fn a_source_emptied_since_fails_until_it_is_accepted_once() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    assert_eq!(run_now(&world, &runner, &row).state, RunState::Succeeded);
    fs::remove_file(world.path("docs/file.txt")).unwrap();
    world.clock.advance(DAY);
    let ended = run_now(&world, &runner, &row);
    assert_eq!(ended.state, RunState::Failed);
    assert!(ended.error.unwrap().next_step().unwrap().contains("accept docs"));
    assert_eq!(world.archive_files().len(), 1, "no file of the failed run is left");
    world.store.accept(row.id, world.clock.now()).unwrap();
    assert_eq!(run_now(&world, &runner, &row).state, RunState::Succeeded);
    assert!(!world.store.schedule(row.id).unwrap().accepted, "once");
}

#[test]
fn a_folder_of_another_database_or_one_not_mounted_fails_runs_before_anything_is_written() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    assert_eq!(run_now(&world, &runner, &row).state, RunState::Succeeded);
    let files = world.archive_files();
    let identity = world.path("backups/.backup-manager");
    let ours = fs::read(&identity).unwrap();
    fs::write(&identity, r#"{"database":"5d3f1a52-6b1f-4b0a-9f3a-0c7f4b3a9e11"}"#).unwrap();
    let ended = run_now(&world, &runner, &row);
    assert_eq!(ended.state, RunState::Failed);
    assert!(ended.error.unwrap().to_string().contains("belongs to another database"));
    fs::remove_file(&identity).unwrap();
    let ended = run_now(&world, &runner, &row);
    assert!(ended.error.unwrap().to_string().contains("has lost its identity"));
    assert!(!identity.exists());
    assert_eq!(world.archive_files(), files);
    fs::write(&identity, ours).unwrap();
    world.clock.advance(MINUTE);
    assert_eq!(run_now(&world, &runner, &row).state, RunState::Succeeded);
}

#[test]
fn a_cancelled_run_leaves_no_file_and_a_drained_one_is_queued_again() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    let cancel = CancelToken::default();
    cancel.cancel();
    let ended = run_with(&world, &runner, &row, &cancel, &Recording::default());
    assert_eq!(ended.state, RunState::Cancelled);
    assert!(world.archive_files().is_empty());

    let mut service = world.service(false);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    let (claim, intent) = world.claim(&runner);
    let cancel = CancelToken::default();
    cancel.cancel_and_requeue();
    let observer = Recording::default();
    let context = RunContext { cancel: &cancel, observer: &observer, is_foreground: false };
    let ended = runner.execute(claim, &intent, &context).unwrap();
    assert_eq!(ended.state, RunState::Queued);
    assert!(world.archive_files().is_empty());
    let (claim, _) = world.claim(&runner);
    assert_eq!(claim.attempt(), 2);
    world.store.end_without_archive(claim, RunState::Failed, "over", world.clock.now()).unwrap();
}

#[test]
fn the_first_scan_of_a_source_can_be_cancelled() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    let request = RunRequest { verify: true, reread: false };
    let (claimed, intent) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    // As `cancel` in another process does.
    world.store.cancel_run(claim.run(), world.clock.now()).unwrap();
    let (cancel, observer) = (CancelToken::default(), Recording::default());
    let context = RunContext { cancel: &cancel, observer: &observer, is_foreground: false };
    let ended = runner.execute(claim, &intent.unwrap(), &context).unwrap();
    assert_eq!(ended.state, RunState::Cancelled);
    let reason = ended.error.unwrap().to_string();
    assert!(reason.contains("before anything was written"), "{reason}");
}

#[test]
fn the_old_systems_archive_is_moved_aside_and_pinned_and_nothing_of_it_is_lost() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    fs::create_dir_all(world.home.backups()).unwrap();
    let old = world.path("backups/docs.tar");
    let made = Command::new("tar").arg("-C").arg(world.dir.path()).arg("-cf").arg(&old).arg("docs").status().unwrap();
    assert!(made.success());
    let bytes = fs::read(&old).unwrap();
    let runner = world.process(Role::Command);
    let observer = Recording::default();
    let ended = run_with(&world, &runner, &row, &CancelToken::default(), &observer);
    assert_eq!(ended.state, RunState::Succeeded);
    let archives = world.store.archives(Some(row.id)).unwrap();
    let legacy = archives.iter().find(|a| a.file_name.contains("-legacy.tar")).expect("the old archive in the catalog");
    assert!(legacy.pinned && legacy.good);
    assert_eq!(fs::read(world.home.backups().join(&legacy.file_name)).unwrap(), bytes);
    assert_eq!(world.store.run(legacy.run).unwrap().trigger, Trigger::Rescan);
    assert!(observer.notes.lock().unwrap().iter().any(|note| note.contains("legacy")));
    let newest = archives.iter().find(|a| a.run == ended.run).unwrap();
    assert_eq!(fs::read_link(&old).unwrap(), Path::new(&newest.file_name));
}

#[test]
fn deleting_archives_removes_files_and_rows_and_recovery_finishes_it() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    let first = run_now(&world, &runner, &row).run;
    world.clock.advance(DAY);
    let second = run_now(&world, &runner, &row).run;
    world.store.mark_deleting(&[first], &[second]).unwrap();
    assert_eq!(archive_folder::finish_deletions(&world.home, &world.store).unwrap(), 1);
    assert_eq!(world.archive_files().len(), 1);
    assert!(world.store.archive(first).unwrap().is_none());
    assert!(!world.store.has_chunks(first).unwrap());
    // Killed between the mark and the unlink.
    world.store.mark_deleting(&[second], &[]).unwrap();
    assert!(world.store.archive(second).unwrap().is_none(), "invisible at once");
    recover_all(&runner);
    assert!(world.archive_files().is_empty());
    assert!(world.store.archives_being_deleted().unwrap().is_empty());
}

#[test]
fn an_archive_that_cannot_be_deleted_does_not_keep_another_from_deletion() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    let runs = [run_now(&world, &runner, &row).run, run_now(&world, &runner, &row).run];
    let stuck = world.home.backups().join(&world.store.archive(runs[0]).unwrap().unwrap().file_name);
    fs::remove_file(&stuck).unwrap();
    fs::create_dir(&stuck).unwrap();
    world.store.mark_deleting(&runs, &[]).unwrap();
    let error = archive_folder::finish_deletions(&world.home, &world.store).unwrap_err();
    assert!(error.to_string().contains(&*stuck.to_string_lossy()), "{error}");
    let left = world.store.archives_being_deleted().unwrap();
    assert_eq!(left.iter().map(|archive| archive.run).collect::<Vec<_>>(), [runs[0]], "listed until it is deleted");
    assert!(world.archive_files().is_empty(), "the other is deleted");
}

#[test]
fn an_existing_file_of_the_final_name_is_never_overwritten() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    let first = run_now(&world, &runner, &row);
    assert_eq!(first.state, RunState::Succeeded);
    // The name of the archive of the next run, created by another program.
    let foreign = world.home.backups().join(format!("docs/docs-20261123T000000Z-{}.tar", first.run + 1));
    fs::write(&foreign, "not ours").unwrap();
    let ended = run_now(&world, &runner, &row);
    assert_eq!(ended.state, RunState::Failed);
    assert_ne!(ended.error.unwrap().kind(), ErrorKind::Fenced);
    assert_eq!(fs::read(&foreign).unwrap(), b"not ours");
    assert_eq!(world.archive_files().len(), 2);
}

/// A failing disk may prevent the removal of a temporary file, and the run ends all the same.
#[test]
fn temporary_files_of_ended_attempts_are_removed_by_the_next_run_and_those_in_use_are_kept() {
    let world = World::new();
    let (docs, mail) = (world.schedule("docs", "01:00"), world.schedule("mail", "01:00"));
    let runner = world.process(Role::Command);
    run_now(&world, &runner, &docs);
    let request = RunRequest { verify: true, reread: false };
    let (claimed, intent) = world.store.claim_now(mail.id, request, &runner.row, world.clock.now()).unwrap();
    let in_use = intent.unwrap().temporary_name;
    let backups = world.home.backups();
    fs::create_dir(backups.join("mail")).unwrap();
    let files = ["docs/.docs-20261123T000000Z-1.tar.gz.1-0123abcd.part", "docs/.mine.part", &in_use];
    files.iter().for_each(|file| fs::write(backups.join(file), "half").unwrap());
    run_now(&world, &runner, &docs);
    archive_folder::remove_orphaned_files(&world.home, &world.store, "mail").unwrap();
    assert_eq!(files.map(|file| backups.join(file).exists()), [false, true, true]);
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    world.store.end_without_archive(claim, RunState::Failed, "no more", world.clock.now()).unwrap();
    archive_folder::remove_orphaned_files(&world.home, &world.store, "mail").unwrap();
    assert!(!backups.join(&in_use).exists());
}

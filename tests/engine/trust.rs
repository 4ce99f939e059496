//! Retention, sources that shrink, verification and deletion, on real archives.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use backup_manager::archive_folder;
use backup_manager::backup::Runner;
use backup_manager::cancel::CancelToken;
use backup_manager::clock::{Clock, Timestamp};
use backup_manager::error::{ErrorKind, Result};
use backup_manager::maintenance::prune::{self, PruneContext, PrunePlan};
use backup_manager::maintenance::verify::{Findings, verify_archive, verify_file};
use backup_manager::progress::{Problem, ProblemKind};
use backup_manager::schedule::Retention;
use backup_manager::store::{Archive, ClaimNow, Health, Role, RunCounts, RunRequest, RunState, ScheduleRow};

use crate::runs::run_now;
use crate::world::{DAY, World};

pub fn keep(world: &World, row: &ScheduleRow, policy: Retention) {
    let mut schedule = world.store.schedule(row.id).unwrap().schedule;
    schedule.retention = policy;
    world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
}

pub fn run_daily(world: &World, runner: &Runner, row: &ScheduleRow, days: u32) {
    for _ in 0..days {
        world.clock.advance(DAY);
        assert_eq!(run_now(world, runner, row).state, RunState::Succeeded);
    }
}

fn runs_of(world: &World, row: &ScheduleRow) -> Vec<i64> {
    world.store.archives(Some(row.id)).unwrap().iter().map(|archive| archive.run).collect()
}

pub fn path_of(world: &World, archive: &Archive) -> PathBuf {
    world.home.backups().join(&archive.file_name)
}

pub fn flip(path: &PathBuf, at: u64, bit: u8) {
    let mut permissions = fs::metadata(path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(path, permissions).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

fn apply(world: &World, plan: &PrunePlan, now: Timestamp) -> Result<usize> {
    let cancel = &CancelToken::new();
    let context = PruneContext { home: &world.home, store: &world.store, now, threads: 1, cancel };
    plan.apply(&context).map(|deleted| deleted.removed)
}

fn verify(world: &World, archive: &Archive) -> Findings {
    let now = world.clock.now();
    verify_archive(&world.home, &world.store, archive, 2, &CancelToken::new(), now).unwrap()
}

#[test]
fn retention_is_applied_after_good_runs_and_never_after_failed_ones() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    keep(&world, &row, Retention { last: Some(2), ..Retention::EMPTY });
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 4);
    assert_eq!(runs_of(&world, &row), [3, 4]);
    assert_eq!(world.archive_files().len(), 2, "the files are removed as well");
    fs::rename(world.path("docs"), world.path("away")).unwrap();
    keep(&world, &row, Retention { last: Some(1), ..Retention::EMPTY });
    world.clock.advance(DAY);
    assert_eq!(run_now(&world, &runner, &row).state, RunState::Failed);
    assert_eq!(runs_of(&world, &row), [3, 4]);
}

#[test]
fn a_prune_of_over_half_waits_for_the_next_good_run() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    keep(&world, &row, Retention { all: true, ..Retention::EMPTY });
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 6);
    keep(&world, &row, Retention { last: Some(1), ..Retention::EMPTY });
    run_daily(&world, &runner, &row, 1);
    assert_eq!(runs_of(&world, &row).len(), 7, "held");
    run_daily(&world, &runner, &row, 1);
    assert_eq!(runs_of(&world, &row), [8]);
}

#[test]
fn pinned_archives_are_kept_and_forget_refuses_pinned_and_newest_good_ones() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    keep(&world, &row, Retention { last: Some(1), ..Retention::EMPTY });
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 1);
    assert!(world.store.set_pinned(1, true).unwrap());
    run_daily(&world, &runner, &row, 2);
    assert_eq!(runs_of(&world, &row), [1, 3]);
    assert_eq!(prune::forget(&world.home, &world.store, 1, true).unwrap_err().kind(), ErrorKind::Failed);
    assert_eq!(prune::forget(&world.home, &world.store, 3, false).unwrap_err().kind(), ErrorKind::Failed);
    assert_eq!(prune::forget(&world.home, &world.store, 2, false).unwrap_err().kind(), ErrorKind::NotFound);
    world.store.set_pinned(1, false).unwrap();
    prune::forget(&world.home, &world.store, 1, false).unwrap();
    assert_eq!(runs_of(&world, &row), [3]);
}

#[test]
fn nothing_is_pruned_while_the_file_of_the_newest_good_archive_is_missing() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    keep(&world, &row, Retention { all: true, ..Retention::EMPTY });
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 3);
    let newest = world.store.newest_good(row.id).unwrap().unwrap();
    fs::remove_file(path_of(&world, &newest)).unwrap();
    keep(&world, &row, Retention { last: Some(1), ..Retention::EMPTY });
    let plan = PrunePlan::compute(&world.store, &world.store.schedule(row.id).unwrap()).unwrap();
    let error = apply(&world, &plan, world.clock.now()).unwrap_err();
    assert!(error.to_string().contains("is missing or has changed"), "{error}");
    assert_eq!(runs_of(&world, &row).len(), 3);
    // Marked as missing since the plan was computed, so the plan is no longer valid.
    assert_eq!(verify(&world, &newest).health, Health::Missing);
    assert_eq!(world.store.mark_deleting(&[1], &[newest.run]).unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn nothing_is_pruned_on_the_strength_of_an_archive_that_was_not_verified_lately() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    keep(&world, &row, Retention { all: true, ..Retention::EMPTY });
    let runner = world.process(Role::Command);
    for day in 0..3 {
        fs::write(world.path("docs/day"), day.to_string()).unwrap();
        run_daily(&world, &runner, &row, 1);
    }
    keep(&world, &row, Retention { last: Some(2), ..Retention::EMPTY });
    let plan = PrunePlan::compute(&world.store, &world.store.schedule(row.id).unwrap()).unwrap();
    let prune = |now| apply(&world, &plan, now);
    // Damage that no time or size of the file shows.
    let newest = world.store.newest_good(row.id).unwrap().unwrap();
    flip(&path_of(&world, &newest), 1_000, 3);
    // Long after its verification, and before the time of it, which a wrong clock recorded then.
    for now in [world.clock.now().plus(15 * DAY), world.clock.now().minus(DAY)] {
        let error = prune(now).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert_eq!(runs_of(&world, &row), [1, 2, 3]);
    }
    flip(&path_of(&world, &newest), 1_000, 3);
    assert!(verify(&world, &newest).is_good());
    assert_eq!(prune(world.clock.now().plus(15 * DAY)).unwrap(), 1);
    assert_eq!(runs_of(&world, &row), [2, 3]);
}

#[test]
fn an_archive_of_a_source_that_shrank_by_more_than_half_is_not_good_until_accepted() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    for n in 0..9 {
        fs::write(world.path("docs").join(format!("{n}")), "some content").unwrap();
    }
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 1);
    (0..8).for_each(|n| fs::remove_file(world.path("docs").join(format!("{n}"))).unwrap());
    run_daily(&world, &runner, &row, 1);
    let archives = world.store.archives(Some(row.id)).unwrap();
    assert!(archives[1].suspect && !archives[1].good);
    assert_eq!(world.store.newest_good(row.id).unwrap().unwrap().run, 1);
    assert!(fs::read_link(world.path("backups/docs.tar")).unwrap().ends_with(&archives[0].file_name));
    run_daily(&world, &runner, &row, 1);
    let archives = world.store.archives(Some(row.id)).unwrap();
    assert!(archives.iter().all(|archive| archive.good), "a later one like it accepts it");

    // The source shrinks once more, and this time it grows again.
    (0..30).for_each(|n| fs::write(world.path("docs").join(format!("x{n}")), "some content").unwrap());
    run_daily(&world, &runner, &row, 1);
    (0..30).for_each(|n| fs::remove_file(world.path("docs").join(format!("x{n}"))).unwrap());
    run_daily(&world, &runner, &row, 1);
    (0..30).for_each(|n| fs::write(world.path("docs").join(format!("x{n}")), "some content").unwrap());
    run_daily(&world, &runner, &row, 1);
    let good: Vec<bool> = world.store.archives(Some(row.id)).unwrap().iter().map(|archive| archive.good).collect();
    assert_eq!(good, [true, true, true, true, false, true]);
    (0..30).for_each(|n| fs::remove_file(world.path("docs").join(format!("x{n}"))).unwrap());
    run_daily(&world, &runner, &row, 1);
    assert!(!world.store.archive(7).unwrap().unwrap().good);
    assert_eq!(world.store.accept(row.id, world.clock.now()).unwrap(), Some(7));
    assert!(world.store.archive(7).unwrap().unwrap().good, "accepted by hand");
}

#[test]
fn a_source_accepted_beforehand_may_shrink() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    (0..9).for_each(|n| fs::write(world.path("docs").join(format!("{n}")), "some content").unwrap());
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 1);
    (0..9).for_each(|n| fs::remove_file(world.path("docs").join(format!("{n}"))).unwrap());
    world.store.accept(row.id, world.clock.now()).unwrap();
    run_daily(&world, &runner, &row, 1);
    assert!(world.store.archive(2).unwrap().unwrap().good);
}

#[test]
fn verification_names_the_damaged_member_and_marks_the_archive_until_it_is_good_again() {
    for compression in ["none", "gzip", "zstd"] {
        let world = World::new();
        let row = world.schedule("docs", "01:00");
        fs::write(world.path("docs/large"), vec![7; 6 << 20]).unwrap();
        fs::write(world.path("docs/other"), "untouched").unwrap();
        let mut schedule = row.schedule.clone();
        schedule.compression = compression.parse().unwrap();
        world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
        let runner = world.process(Role::Command);
        run_daily(&world, &runner, &row, 1);
        let archive = world.store.newest_good(row.id).unwrap().unwrap();
        let path = path_of(&world, &archive);
        assert!(verify(&world, &archive).is_good());
        assert!(verify_file(&path, 2, &CancelToken::new()).unwrap().is_good());
        // In the second piece of the large file, whose chunk has no header of its own.
        let chunks = world.store.archive_chunks(archive.run).map(Result::unwrap);
        let second = chunks.filter(|chunk| chunk.content_length >= 1 << 20).nth(1).unwrap();
        flip(&path, second.offset + second.stored_length / 2, 3);
        let findings = verify(&world, &archive);
        assert_eq!(findings.damaged_members, [b"docs/large".to_vec()], "{compression}: {findings:?}");
        let damaged = world.store.archive(archive.run).unwrap().unwrap();
        assert_eq!((damaged.health, damaged.good), (Health::Damaged, false));
        assert!(world.store.newest_good(row.id).unwrap().is_none());
        assert!(!verify_file(&path, 2, &CancelToken::new()).unwrap().is_good());
        flip(&path, second.offset + second.stored_length / 2, 3);
        assert!(verify(&world, &archive).is_good());
        assert_eq!(world.store.newest_good(row.id).unwrap().unwrap().run, archive.run);
    }
}

#[test]
fn a_swapped_truncated_or_removed_file_is_found_and_an_unmounted_folder_changes_nothing() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 1);
    fs::write(world.path("docs/file.txt"), "other content!! \n").unwrap();
    run_daily(&world, &runner, &row, 1);
    let archives = world.store.archives(Some(row.id)).unwrap();
    let (one, two) = (path_of(&world, &archives[0]), path_of(&world, &archives[1]));
    let bytes = fs::read(&one).unwrap();
    fs::rename(&two, world.path("two")).unwrap();
    fs::copy(&one, &two).unwrap();
    assert_eq!(verify(&world, &archives[1]).health, Health::Damaged, "swapped with another whole archive");
    fs::remove_file(&one).unwrap();
    fs::write(&one, &bytes[..bytes.len() - 700]).unwrap();
    assert_eq!(verify(&world, &archives[0]).health, Health::Damaged, "truncated");
    fs::remove_file(&one).unwrap();
    assert_eq!(verify(&world, &archives[0]).health, Health::Missing);
    fs::remove_file(world.path("backups/.backup-manager")).unwrap();
    fs::rename(world.path("two"), &two).unwrap();
    let cancel = CancelToken::new();
    assert!(verify_archive(&world.home, &world.store, &archives[1], 1, &cancel, world.clock.now()).is_err());
    assert_eq!(world.store.archive(archives[1].run).unwrap().unwrap().health, Health::Damaged, "as it was");
}

#[test]
fn a_deletion_interrupted_at_any_step_is_finished() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    keep(&world, &row, Retention { all: true, ..Retention::EMPTY });
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 3);
    let archives = world.store.archives(Some(row.id)).unwrap();
    // Interrupted after the mark, and after the unlink.
    world.store.mark_deleting(&[1, 2], &[3]).unwrap();
    fs::remove_file(path_of(&world, &archives[1])).unwrap();
    for _ in 0..2 {
        archive_folder::finish_deletions(&world.home, &world.store).unwrap();
        assert_eq!(runs_of(&world, &row), [3]);
        assert_eq!(world.archive_files(), [archives[2].file_name.clone()]);
    }
}

#[test]
fn a_database_that_names_a_file_elsewhere_as_an_archive_does_not_get_it_removed() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    keep(&world, &row, Retention { all: true, ..Retention::EMPTY });
    let runner = world.process(Role::Command);
    run_daily(&world, &runner, &row, 2);
    let precious = world.path("precious");
    fs::write(&precious, "precious").unwrap();
    let absolute = precious.to_str().unwrap();
    for path in [absolute, "../precious", "docs/../../precious", "docs/..", "precious"] {
        let connection = rusqlite::Connection::open(world.home.db()).unwrap();
        let _ = connection
            .execute("UPDATE archive SET state = 'deleting', file_name = ?1 WHERE run_id = 1", [path])
            .unwrap();
        let error = archive_folder::finish_deletions(&world.home, &world.store).unwrap_err().to_string();
        assert!(error.contains("does not lie in the folder of a schedule"), "{path}: {error}");
        let _ = connection
            .execute(
                "UPDATE archive SET state = 'writing', file_name = 'docs/x', temporary_name = ?1 WHERE run_id = 1",
                [path],
            )
            .unwrap();
        assert!(world.store.pending_archive(1).is_err(), "{path}");
        assert!(precious.exists());
    }
}

#[test]
fn an_unreadable_file_of_the_old_system_is_a_failed_run_and_a_readable_one_succeeded() {
    let world = World::new();
    world.schedule("bad", "01:00");
    world.schedule("good", "01:00");
    archive_folder::ensure_ours(&world.home, &world.store).unwrap();
    fs::write(world.path("backups/bad.tar"), vec![7; 4096]).unwrap();
    let mut tar = std::process::Command::new("tar");
    tar.arg("-C").arg(world.dir.path()).arg("-cf").arg(world.path("backups/good.tar")).arg("good");
    assert!(tar.status().unwrap().success());
    let rows = world.store.schedules().unwrap();
    archive_folder::refresh_stable_links(&world.home, &world.store, &rows, world.clock.now()).unwrap();
    let state = |name: &str| {
        let run = world.runs().into_iter().find(|run| run.schedule_name == name).unwrap();
        (run.state, run.error.is_some(), world.store.archive(run.id).unwrap().unwrap().health)
    };
    assert_eq!(state("bad"), (RunState::Failed, true, Health::Damaged));
    assert_eq!(state("good"), (RunState::Succeeded, false, Health::Good));
}

#[test]
fn ten_thousand_known_problems_are_compared_at_once() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let runner = world.process(Role::Command);
    let problem = |number: usize| Problem {
        path: format!("docs/{number:05}").into_bytes().into(),
        kind: ProblemKind::Unreadable,
        reason: "permission denied".to_owned(),
    };
    let request = RunRequest { verify: true, reread: false };
    let mut runs = Vec::new();
    for count in [10_000, 10_003] {
        world.clock.advance(DAY);
        let claimed = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
        let ClaimNow::Claimed(claim) = claimed.0 else { panic!("a claim") };
        let problems: Vec<Problem> = (0..count).map(problem).collect();
        world.store.record_counts(&claim, &RunCounts::default(), &problems).unwrap();
        runs.push(claim.run());
        world.store.end_without_archive(claim, RunState::Failed, "over", world.clock.now()).unwrap();
    }
    let connection = rusqlite::Connection::open(world.home.db()).unwrap();
    connection.execute("UPDATE run SET state = 'incomplete'", []).unwrap();
    let started = std::time::Instant::now();
    assert_eq!(world.store.new_problems(&world.store.run(runs[1]).unwrap()).unwrap(), 3);
    assert_eq!(world.store.new_problems(&world.store.run(runs[0]).unwrap()).unwrap(), 10_000);
    assert!(started.elapsed().as_millis() < 500, "{:?}", started.elapsed());
}

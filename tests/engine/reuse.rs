//! Runs that take what did not change from the last archive.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backup_manager::backup::{RunContext, RunOutcome, Runner};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::{Clock, Timestamp};
use backup_manager::error::Result;
use backup_manager::maintenance::verify::verify_archive;
use backup_manager::member::{CatalogMember, FileTime, MemberKind};
use backup_manager::progress::ProblemKind;
use backup_manager::store::{Archive, ClaimNow, Health, Role, RunRequest, RunState, ScheduleRow};

use crate::runs::{Recording, recover_all, run_now, tar_lists};
use crate::world::{DAY, HOUR, World};

/// A schedule whose files changed long before now, by the clock of the test, and its first archive.
pub fn world() -> (World, Runner, ScheduleRow) {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    for file in 0..100 {
        fs::write(world.path(&format!("docs/{file:03}")), vec![file as u8; 10_000]).unwrap();
    }
    fs::write(world.path("docs/large"), vec![7; 9 << 20]).unwrap();
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    world.clock.set(Timestamp::from_millis(i64::try_from(real.as_millis()).unwrap()).plus(HOUR));
    let runner = world.process(Role::Command);
    run(&world, &runner, &row);
    (world, runner, row)
}

/// Runs an hour later; returns the archive.
pub fn run(world: &World, runner: &Runner, row: &ScheduleRow) -> Archive {
    world.clock.advance(HOUR);
    let ended = run_now(world, runner, row);
    assert!(ended.error.is_none(), "{:?}", ended.error);
    world.store.archive(ended.run).unwrap().expect("an archive")
}

fn run_rereading(world: &World, runner: &Runner, row: &ScheduleRow) -> RunOutcome {
    world.clock.advance(HOUR);
    let request = RunRequest { verify: true, reread: true };
    let (claimed, intent) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    let (cancel, observer) = (CancelToken::default(), Recording::default());
    let context = RunContext { cancel: &cancel, observer: &observer, is_foreground: true };
    runner.execute(claim, &intent.unwrap(), &context).unwrap()
}

pub fn reasons(world: &World, archive: &Archive) -> Vec<(String, u64)> {
    world.store.run(archive.run).unwrap().counts.read_reasons.into_iter().collect()
}

fn base_of(world: &World, archive: &Archive) -> Option<i64> {
    world.store.run(archive.run).unwrap().base_run
}

/// Returns whether nothing was read.
fn is_all_reused(world: &World, archive: &Archive) -> bool {
    base_of(world, archive).is_some() && reasons(world, archive).is_empty()
}

pub fn file_of(world: &World, archive: &Archive) -> PathBuf {
    world.home.backups().join(&archive.file_name)
}

pub fn rows(world: &World, archive: &Archive) -> Vec<CatalogMember> {
    let (mut rows, mut sequence) = (Vec::new(), Some(0));
    while let Some(from) = sequence {
        let (page, next) = world.store.members(archive.run, from, 1_000).unwrap();
        rows.extend(page.into_iter().map(|member| member.entry));
        sequence = next;
    }
    rows
}

pub fn verify(world: &World, archive: &Archive) -> Health {
    let (cancel, now) = (CancelToken::default(), world.clock.now());
    verify_archive(&world.home, &world.store, archive, 2, &cancel, now).unwrap().health
}

/// Flips a byte of an archive file, and sets its mtime back if that is wanted.
pub fn damage(world: &World, archive: &Archive, at: u64, keeps_mtime: bool) {
    let path = file_of(world, archive);
    let before = fs::metadata(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    if keeps_mtime {
        file.set_modified(UNIX_EPOCH + Duration::new(before.mtime() as u64, before.mtime_nsec() as u32)).unwrap();
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
}

#[test]
fn a_run_that_finds_nothing_changed_is_a_verified_link_with_rows_of_its_own() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let second = run(&world, &runner, &row);
    assert_ne!(first.file_name, second.file_name);
    assert_eq!(fs::metadata(file_of(&world, &second)).unwrap().nlink(), 2);
    assert_eq!(
        (second.archive_file, second.health, second.verified_at),
        (first.archive_file, Health::Good, first.verified_at)
    );
    assert_eq!(second.extent, first.extent);
    assert!(is_all_reused(&world, &second));
    assert_eq!(base_of(&world, &second), Some(first.run));
    assert_eq!(rows(&world, &second), rows(&world, &first));
    assert_eq!(tar_lists(&file_of(&world, &second)).len(), 103);
    assert_eq!(world.store.newest_good(row.id).unwrap().unwrap().run, second.run);
    // Deleting one leaves the other whole.
    assert_eq!(world.store.mark_deleting(&[first.run], &[]).unwrap(), 1);
    recover_all(&runner);
    assert!(!file_of(&world, &first).exists());
    assert_eq!((verify(&world, &second), rows(&world, &second).len()), (Health::Good, 103));
    // And the next one is a link again, verified once the last time is long ago.
    let third = run(&world, &runner, &row);
    assert_eq!(fs::metadata(file_of(&world, &third)).unwrap().nlink(), 2);
    world.clock.advance(14 * DAY);
    let fourth = run(&world, &runner, &row);
    assert_eq!(fourth.archive_file, second.archive_file);
    assert_eq!(fourth.verified_at, Some(world.clock.now()), "it was verified again");
}

#[test]
fn archives_of_a_schedule_that_verifies_none_are_bases_too() {
    let (world, runner, row) = world();
    let mut schedule = world.store.schedule(row.id).unwrap().schedule;
    schedule.verify = false;
    world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
    fs::write(world.path("docs/new"), "new").unwrap();
    let (first, second) = (run(&world, &runner, &row), run(&world, &runner, &row));
    assert_eq!((first.health, first.verified_at), (Health::Unverified, None));
    assert_eq!(second.archive_file, first.archive_file, "one file");
}

#[test]
fn one_changed_file_makes_a_new_file_with_the_old_rows_and_that_is_what_a_new_schedule_would_archive() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    fs::write(world.path("docs/050"), "other content").unwrap();
    let second = run(&world, &runner, &row);
    assert_ne!(second.archive_file, first.archive_file);
    assert_eq!(second.verified_at, Some(world.clock.now()));
    let counted = reasons(&world, &second);
    assert!(counted.contains(&("size or mtime".to_owned(), 1)), "{counted:?}");
    assert!(counted.iter().map(|(_, count)| count).sum::<u64>() < 50, "{counted:?}");
    let reread = run_rereading(&world, &runner, &row);
    let third = world.store.archive(reread.run).unwrap().unwrap();
    let plain = |rows: Vec<CatalogMember>| -> Vec<CatalogMember> {
        let without_ctime = |mut row: CatalogMember| {
            if row.member.kind == MemberKind::Folder {
                row.changed = FileTime::default();
            }
            row
        };
        rows.into_iter().map(without_ctime).collect()
    };
    assert_eq!(plain(rows(&world, &second)), plain(rows(&world, &third)));
    assert!(third.archive_file == second.archive_file, "all was read again, and is the same");
    assert!(reasons(&world, &third).iter().any(|(reason, _)| reason == "reread"));
    for archive in [&first, &second, &third] {
        assert_eq!(verify(&world, archive), Health::Good);
    }
    // The rows of the first archive that the second one shares survive it.
    world.store.mark_deleting(&[first.run], &[]).unwrap();
    recover_all(&runner);
    assert_eq!((verify(&world, &second), rows(&world, &second).len()), (Health::Good, 103));
}

#[test]
fn a_touched_base_is_verified_first_and_a_damaged_one_is_not_used() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let path = file_of(&world, &first);
    File::open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
    let second = run(&world, &runner, &row);
    assert_eq!(second.archive_file, first.archive_file, "it is whole");
    assert_eq!(world.store.archive(first.run).unwrap().unwrap().verified_at, Some(world.clock.now()));
    damage(&world, &first, 500_000, false);
    let third = run(&world, &runner, &row);
    assert_ne!(third.archive_file, first.archive_file);
    assert_eq!(base_of(&world, &third), None);
    for archive in [first.run, second.run] {
        assert_eq!(world.store.archive(archive).unwrap().unwrap().health, Health::Damaged, "@{archive}");
    }
    assert_eq!(verify(&world, &third), Health::Good);
}

#[test]
fn a_base_whose_file_is_missing_is_marked_and_the_one_before_is_used() {
    let (world, runner, row) = world();
    let older = world.store.newest_good(row.id).unwrap().unwrap();
    fs::write(world.path("docs/099"), "changed").unwrap();
    let newest = run(&world, &runner, &row);
    fs::remove_file(file_of(&world, &newest)).unwrap();
    let next = run(&world, &runner, &row);
    assert_eq!(world.store.archive(newest.run).unwrap().unwrap().health, Health::Missing);
    assert_eq!(base_of(&world, &next), Some(older.run));
    assert_eq!((verify(&world, &next), rows(&world, &next).len()), (Health::Good, 103));
}

#[test]
fn damage_that_shows_while_bytes_are_taken_makes_the_run_begin_again_without_that_base() {
    let (world, runner, row) = world();
    let older = world.store.newest_good(row.id).unwrap().unwrap();
    fs::write(world.path("docs/099"), "changed").unwrap();
    let base = run(&world, &runner, &row);
    damage(&world, &base, 500_000, true);
    fs::write(world.path("docs/050"), "changed").unwrap();
    let next = run(&world, &runner, &row);
    assert_eq!(world.store.archive(base.run).unwrap().unwrap().health, Health::Damaged);
    assert_eq!(base_of(&world, &next), Some(older.run), "the one before is used");
    assert_eq!((verify(&world, &next), rows(&world, &next).len()), (Health::Good, 103));
    assert_eq!(world.archive_files().len(), 3, "no temporary file is left");
}

#[test]
fn damage_behind_thousands_of_members_leaves_none_of_their_rows() {
    let (world, runner, row) = world();
    fs::create_dir(world.path("docs/many")).unwrap();
    for file in 0..2_500 {
        fs::write(world.path(&format!("docs/many/{file:04}")), "x").unwrap();
    }
    // Larger than a chunk, so that it is one of its own.
    fs::write(world.path("docs/z"), vec![5; 6 << 20]).unwrap();
    let base = run(&world, &runner, &row);
    // So many new rows that some are in the catalog when the damage shows.
    for file in 0..2_500 {
        fs::write(world.path(&format!("docs/many/{file:04}")), "y").unwrap();
    }
    let members = rows(&world, &base).len();
    damage(&world, &base, fs::metadata(file_of(&world, &base)).unwrap().len() - (1 << 20), true);
    let next = run(&world, &runner, &row);
    assert_eq!(world.store.archive(base.run).unwrap().unwrap().health, Health::Damaged);
    assert_eq!((verify(&world, &next), rows(&world, &next).len()), (Health::Good, members));
}

#[test]
fn an_edited_schedule_another_mode_and_another_level_are_never_links() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    // A rescan of the file would create the schedule as it was.
    let mut edited = row.schedule.clone();
    edited.catch_up = backup_manager::schedule::CatchUp::Skip;
    world.store.edit_schedules(&[(row.id, edited.clone(), row.watermark)], world.clock.now()).unwrap();
    let second = run(&world, &runner, &row);
    assert_ne!(second.archive_file, first.archive_file);
    assert!(is_all_reused(&world, &second), "its bytes are those of the first");
    fs::set_permissions(file_of(&world, &second), fs::Permissions::from_mode(0o440)).unwrap();
    let third = run(&world, &runner, &row);
    assert_ne!(third.archive_file, second.archive_file);
    assert_eq!(fs::metadata(file_of(&world, &third)).unwrap().mode() & 0o7777, 0o400);
    let row = world.store.schedule(row.id).unwrap();
    edited.compression = backup_manager::schedule::Compression::Gzip(1);
    world.store.edit_schedules(&[(row.id, edited.clone(), row.watermark)], world.clock.now()).unwrap();
    let fourth = run(&world, &runner, &row);
    assert_eq!(base_of(&world, &fourth), None);
}

#[test]
fn an_archive_that_was_made_in_another_way_is_no_base() {
    let (world, runner, row) = world();
    let database = rusqlite::Connection::open(world.home.db()).unwrap();
    for change in [
        "UPDATE archive SET source_root = CAST('/elsewhere' AS BLOB)",
        "UPDATE archive SET root_name = CAST('other' AS BLOB)",
        "UPDATE archive SET writer_version = writer_version - 1",
        "UPDATE archive SET archive_mode = 416",
        "UPDATE archive SET effective_uid = effective_uid + 1",
        "UPDATE archive SET capabilities = capabilities || '0'",
        "UPDATE archive_file SET codec = 'gzip'",
        "UPDATE archive_file SET level = level + 1",
        "UPDATE archive SET suspect = 1, acknowledged = 0",
        "UPDATE stored_file SET health = 'unproven'",
    ] {
        let before = run(&world, &runner, &row);
        assert!(base_of(&world, &before).is_some());
        assert!(database.execute(change, []).unwrap() > 0, "{change}");
        let next = run(&world, &runner, &row);
        assert_eq!(base_of(&world, &next), None, "{change}");
        assert_ne!(next.archive_file, before.archive_file, "{change}");
    }
}

#[test]
fn after_a_restart_what_changed_lately_is_read_and_is_the_same() {
    let (world, runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let database = rusqlite::Connection::open(world.home.db()).unwrap();
    database.execute("UPDATE archive SET boot_id = 'another'", []).unwrap();
    let second = run(&world, &runner, &row);
    assert_eq!(second.archive_file, first.archive_file);
    let counted = reasons(&world, &second);
    assert!(counted.contains(&("restart".to_owned(), 102)), "{counted:?}");
    let third = run(&world, &runner, &row);
    assert!(is_all_reused(&world, &third), "only once");
}

#[test]
fn content_that_changed_without_its_times_turns_reuse_off_until_it_is_accepted() {
    let (world, runner, row) = world();
    let mut edited = row.schedule.clone();
    edited.reuse.ignore_ctime = true;
    world.store.edit_schedules(&[(row.id, edited.clone(), row.watermark)], world.clock.now()).unwrap();
    run(&world, &runner, &row);
    let path = world.path("docs/large");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"!", 5 << 20).unwrap();
    file.set_modified(modified).unwrap();
    let missed = run(&world, &runner, &row);
    assert!(is_all_reused(&world, &missed), "that is what the option means");
    let found = run_rereading(&world, &runner, &row);
    assert_eq!(found.state, RunState::Incomplete);
    let problems = world.store.problems(found.run, 10).unwrap();
    assert_eq!(problems.iter().map(|p| p.kind).collect::<Vec<_>>(), [ProblemKind::ChangedWithoutTimes]);
    let content = rows(&world, &world.store.archive(found.run).unwrap().unwrap());
    let large = content.iter().find(|row| row.member.path.as_bytes() == b"docs/large").unwrap();
    assert_eq!(large.content_digest, Some(*blake3::hash(&fs::read(&path).unwrap()).as_bytes()));
    for _ in 0..2 {
        let next = run(&world, &runner, &row);
        assert_eq!(base_of(&world, &next), None);
        let notes = world.store.run(next.run).unwrap().counts.notes;
        assert!(notes.iter().any(|note| note.contains("accept docs")), "{notes:?}");
    }
    world.store.accept(row.id, world.clock.now()).unwrap();
    assert!(is_all_reused(&world, &run(&world, &runner, &row)));
}

/// A clock that executes a statement whenever it is asked, as if another process did: one that acts once an archive
/// is sealed.
pub struct AfterSeal {
    pub database: PathBuf,
    pub statement: &'static str,
    pub now: Timestamp,
}

impl Clock for AfterSeal {
    fn now(&self) -> Timestamp {
        let database = rusqlite::Connection::open(&self.database).unwrap();
        database.execute(self.statement, []).unwrap();
        self.now
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn damage_that_is_found_before_a_link_is_complete_fails_the_run() {
    let (world, mut runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    world.clock.advance(HOUR);
    let (database, now) = (world.home.db().to_owned(), world.clock.now());
    let statement = "UPDATE stored_file SET health = 'damaged' WHERE id IN (SELECT stored_file_id \
                     FROM part JOIN archive USING (archive_file_id) WHERE state = 'sealed')";
    runner.clock = Arc::new(AfterSeal { database, statement, now });
    let ended = run_now(&world, &runner, &row);
    assert_eq!(ended.state, RunState::Failed);
    assert!(ended.error.expect("an error").to_string().contains("damaged"));
    assert!(world.store.newest_good(row.id).unwrap().is_none());
    for run in [first.run, ended.run] {
        assert_eq!(world.store.archive(run).unwrap().unwrap().health, Health::Damaged, "@{run}");
    }
}

#[test]
fn a_link_that_a_dead_worker_sealed_is_finished_or_dropped_without_harm_to_its_base() {
    for is_lost in [false, true] {
        let (world, runner, row) = world();
        let first = world.store.newest_good(row.id).unwrap().unwrap();
        world.clock.advance(HOUR);
        let dead = world.process(Role::Command);
        let request = RunRequest { verify: true, reread: false };
        let (claimed, intent) = world.store.claim_now(row.id, request, &dead.row, world.clock.now()).unwrap();
        let (ClaimNow::Claimed(claim), Some(intent)) = (claimed, intent) else { panic!("not claimed") };
        let run = claim.run();
        let temporary = world.home.backups().join(&intent.temporary_name);
        fs::hard_link(file_of(&world, &first), &temporary).unwrap();
        assert!(world.store.hold_base(&claim, first.run).unwrap());
        let stat = fs::metadata(&temporary).unwrap();
        let sealed = backup_manager::store::Sealed {
            size: stat.len(),
            digest: first.digest.as_deref().unwrap().try_into().unwrap(),
            file: backup_manager::store::StoredBytes {
                size: stat.len(),
                device: stat.dev(),
                inode: stat.ino(),
                modified_ns: Some(stat.mtime() * 1_000_000_000 + stat.mtime_nsec()),
            },
            in_segments: None,
            source_root: world.path("docs").as_os_str().as_encoded_bytes().to_vec(),
            scan_started: world.clock.now(),
            extent: first.extent,
            incomplete: false,
            boot_id: None,
            origin: None,
        };
        world.store.seal_as_link(&claim, &sealed).unwrap();
        drop((claim, dead));
        if is_lost {
            fs::remove_file(&temporary).unwrap();
        }
        recover_all(&runner);
        assert_eq!(world.store.archive(run).unwrap().is_some(), !is_lost);
        assert_eq!((verify(&world, &first), rows(&world, &first).len()), (Health::Good, 103), "lost: {is_lost}");
    }
}

#[test]
fn a_base_whose_header_or_trailer_is_damaged_is_marked_and_not_used() {
    let size = |world: &World, archive: &Archive| fs::metadata(file_of(world, archive)).unwrap().size();
    for from_end in [false, true] {
        let (world, runner, row) = world();
        let first = world.store.newest_good(row.id).unwrap().unwrap();
        let at = if from_end { size(&world, &first) - 700 } else { 600 };
        damage(&world, &first, at, true);
        let second = run(&world, &runner, &row);
        assert_ne!(second.archive_file, first.archive_file);
        assert_eq!(world.store.archive(first.run).unwrap().unwrap().health, Health::Damaged);
        assert_eq!(verify(&world, &second), Health::Good);
    }
}

#[test]
fn a_verification_under_a_clock_that_was_ahead_is_not_a_recent_one() {
    let (world, runner, row) = world();
    let now = world.clock.now();
    world.clock.advance(400 * DAY);
    fs::write(world.path("docs/new"), "new").unwrap();
    let ahead = run(&world, &runner, &row);
    world.clock.set(now);
    let next = run(&world, &runner, &row);
    assert_eq!((next.archive_file, next.verified_at), (ahead.archive_file, Some(world.clock.now())));
}

/// A clock that takes the archive folder away at one of its calls, as a disk that is unplugged.
struct UnpluggingClock {
    folder: PathBuf,
    calls_left: AtomicUsize,
    now: Timestamp,
}

impl Clock for UnpluggingClock {
    fn now(&self) -> Timestamp {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            fs::rename(&self.folder, self.folder.with_extension("unplugged")).unwrap();
        }
        self.now
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn try_run(world: &World, runner: &Runner, row: &ScheduleRow) -> Result<RunOutcome> {
    let request = RunRequest { verify: true, reread: false };
    let (claimed, intent) = world.store.claim_now(row.id, request, &runner.row, world.clock.now()).unwrap();
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    let (cancel, observer) = (CancelToken::default(), Recording::default());
    runner.execute(claim, &intent.unwrap(), &RunContext { cancel: &cancel, observer: &observer, is_foreground: true })
}

#[test]
fn a_base_is_not_missing_because_the_archive_folder_vanished_during_the_run() {
    let (world, mut runner, row) = world();
    let first = world.store.newest_good(row.id).unwrap().unwrap();
    let folder = world.home.backups().to_owned();
    let mut unplugged = 0;
    for calls in 1..12 {
        world.clock.advance(HOUR);
        let clock = UnpluggingClock { folder: folder.clone(), calls_left: calls.into(), now: world.clock.now() };
        runner.clock = Arc::new(clock);
        let ended = try_run(&world, &runner, &row);
        let aside = folder.with_extension("unplugged");
        if aside.exists() {
            unplugged += 1;
            let _ = fs::remove_dir_all(&folder);
            fs::rename(aside, &folder).unwrap();
        }
        assert_eq!(world.store.archive(first.run).unwrap().unwrap().health, Health::Good, "call {calls}: {ended:?}");
        runner = world.process(Role::Command);
        recover_all(&runner);
    }
    assert!(unplugged > 3, "{unplugged}");
}

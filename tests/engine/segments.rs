//! Archives in the segmented layout: what a run adds, what stays, what is freed, and what damage means.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backup_manager::archive::check::check_by_trailer;
use backup_manager::archive::index::Index;
use backup_manager::archive_folder;
use backup_manager::archive_name::{ArchiveName, SegmentName};
use backup_manager::backup::Runner;
use backup_manager::cancel::CancelToken;
use backup_manager::clock::{Clock, Timestamp};
use backup_manager::maintenance::rescan::rescan;
use backup_manager::member::CatalogMember;
use backup_manager::schedule::{Compression, Layout, Schedule};
use backup_manager::store::{Archive, Health, Role, RunState, ScheduleRow, SegmentIntent, Space, Watermark};

use crate::reuse::{run, verify};
use crate::runs::{Recording, recover_all, run_now};
use crate::world::{DAY, HOUR, World};

pub const CODECS: [Compression; 3] = [Compression::None, Compression::Gzip(6), Compression::Zstd(3)];

/// A schedule of archives in segments, whose files changed long before now.
pub fn world(compression: Compression) -> (World, Runner, ScheduleRow) {
    world_in(Layout::Segmented, compression)
}

/// The same in any layout.
pub fn world_in(layout: Layout, compression: Compression) -> (World, Runner, ScheduleRow) {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let mut bytes = 0_u64;
    for file in 0..300 {
        let content: Vec<u8> = (0..10_000).map(|_| next(&mut bytes)).collect();
        fs::write(world.path(&format!("docs/{file:03}")), content).unwrap();
    }
    fs::write(world.path("docs/large"), vec![7; 9 << 20]).unwrap();
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    world.clock.set(Timestamp::from_millis(i64::try_from(real.as_millis()).unwrap()).plus(HOUR));
    let schedule = Schedule { layout, compression, ..row.schedule.clone() };
    edit(&world, &row, schedule);
    let runner = world.process(Role::Command);
    (world, runner, row)
}

fn edit(world: &World, row: &ScheduleRow, schedule: Schedule) {
    let watermark = Watermark::starting(&schedule, chrono_tz::Tz::UTC, world.clock.now());
    world.store.edit_schedules(&[(row.id, schedule, watermark)], world.clock.now()).unwrap();
}

/// Returns bytes that do not compress well.
fn next(state: &mut u64) -> u8 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 59) as u8 * 8
}

pub fn folder(world: &World) -> PathBuf {
    world.home.backups().join("docs")
}

/// Returns the contents of the files in the folder of the schedule.
pub fn contents(world: &World) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder(world)).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())).collect()
}

/// Returns the sizes of the segments.
pub fn segments(world: &World) -> BTreeMap<String, usize> {
    let files = contents(world).into_iter().filter(|(name, _)| name.ends_with(".segment"));
    files.map(|(name, content)| (name, content.len())).collect()
}

pub fn index_of(world: &World, archive: &Archive) -> Index {
    Index::open(&world.home.backups().join(&archive.file_name)).unwrap()
}

/// Runs a line of shell that an index contains, in its folder.
fn shell(world: &World, line: &str) -> String {
    let done = Command::new("sh").arg("-c").arg(line).current_dir(folder(world)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Restores an archive by the lines of shell in its index, and compares it with `expected`.
pub fn check_by_shell(world: &World, archive: &Archive, expected: &BTreeMap<PathBuf, Vec<u8>>) {
    let text = fs::read_to_string(world.home.backups().join(&archive.file_name)).unwrap();
    let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap().trim_start_matches("# ").to_owned();
    assert_eq!(format!("cksum {}", shell(world, &line("| cksum")).trim_end()), line("# cksum "));
    let target = tempfile::tempdir().unwrap();
    shell(world, &format!("{} -C {}", line("| tar "), target.path().display()));
    assert_eq!(tree(&target.path().join("docs")), *expected);
}

pub fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().into(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_run_adds_what_changed_and_no_synced_file_ever_changes() {
    for compression in CODECS {
        let (world, runner, row) = world(compression);
        let mut archives: Vec<(Archive, BTreeMap<PathBuf, Vec<u8>>)> = Vec::new();
        let mut before = BTreeMap::new();
        for day in 0..4 {
            if day > 0 {
                fs::write(world.path(&format!("docs/{:03}", day * 70)), format!("day {day}")).unwrap();
            }
            let archive = run(&world, &runner, &row);
            assert_eq!((archive.health, archive.layout), (Health::Good, Layout::Segmented));
            archives.push((archive, tree(&world.path("docs"))));
            let now = contents(&world);
            for (name, content) in &before {
                assert!(now.get(name) == Some(content), "{name} changed");
            }
            before = now;
        }
        for (archive, expected) in &archives {
            check_by_shell(&world, archive, expected);
            let path = world.home.backups().join(&archive.file_name);
            let (_, digest) = check_by_trailer(&path, 2, &CancelToken::new()).unwrap();
            assert_eq!(Some(&digest[..]), archive.digest.as_deref());
            assert_eq!(verify(&world, archive), Health::Good);
        }
        let sizes: Vec<usize> = segments(&world).into_values().collect();
        assert_eq!(sizes.len(), 4, "{sizes:?}");
        assert!(sizes[1..].iter().all(|size| *size < sizes[0] / 4), "{compression}: {sizes:?}");
        let link = fs::read_link(world.home.backups().join(format!("docs.{}.index", compression.extension())));
        assert_eq!(link.unwrap(), Path::new(&archives[3].0.file_name));
    }
}

#[test]
fn a_run_that_finds_nothing_changed_adds_an_index_only() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let first = run(&world, &runner, &row);
    let expected = tree(&world.path("docs"));
    let before = segments(&world);
    let second = run(&world, &runner, &row);
    assert_eq!(segments(&world), before);
    assert_eq!((second.digest.clone(), second.archive_file), (first.digest.clone(), first.archive_file));
    let (one, other) = (index_of(&world, &first), index_of(&world, &second));
    assert!(one.ranges().eq(other.ranges()) && one.archive_name() != other.archive_name());
    check_by_shell(&world, &second, &expected);
    // Only the index of the other one is removed with it.
    delete(&world, &first);
    assert_eq!(segments(&world), before);
    check_by_shell(&world, &second, &expected);
    delete(&world, &second);
    assert!(contents(&world).is_empty());
}

#[test]
fn without_verification_a_base_is_read_once_and_then_what_runs_write() {
    let (world, runner, row) = world(Compression::Zstd(3));
    edit(&world, &row, Schedule { verify: false, ..world.store.schedule(row.id).unwrap().schedule });
    let first = run(&world, &runner, &row);
    assert_eq!(first.verified_at, None);
    let mut base_verified_at = None;
    for day in 1..4 {
        world.clock.advance(DAY);
        if day != 2 {
            fs::write(world.path("docs/100"), format!("day {day}")).unwrap();
        }
        let archive = run(&world, &runner, &row);
        let verified_at = *base_verified_at.get_or_insert(world.clock.now());
        assert_eq!((archive.health, archive.verified_at), (Health::Good, Some(verified_at)), "day {day}");
        assert_eq!(world.store.segment_names(archive.run).unwrap().len(), usize::from(day != 2));
    }
    assert_eq!(world.store.archive(first.run).unwrap().unwrap().verified_at, base_verified_at);
}

pub fn delete(world: &World, archive: &Archive) {
    assert_eq!(world.store.mark_deleting(&[archive.run], &[]).unwrap(), 1);
    assert_eq!(archive_folder::finish_deletions(&world.home, &world.store).unwrap(), 1);
}

#[test]
fn a_segment_goes_with_the_last_archive_that_has_a_part_of_it() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let first = run(&world, &runner, &row);
    fs::write(world.path("docs/005"), "changed").unwrap();
    let second = run(&world, &runner, &row);
    let expected = tree(&world.path("docs"));
    let sizes: Vec<u64> = segments(&world).into_values().map(|size| size as u64).collect();
    let index = |archive: &Archive| fs::metadata(world.home.backups().join(&archive.file_name)).unwrap().len();
    let both = world.store.archives(None).unwrap();
    let indexes = [index(&first), index(&second)];
    assert_eq!(Space::of(&both).disk_bytes, sizes.iter().chain(&indexes).sum::<u64>());
    let freed: Vec<u64> = both.iter().map(Archive::freed_bytes).collect();
    assert_eq!(freed, [indexes[0], indexes[1] + sizes[1]]);
    delete(&world, &first);
    assert_eq!(segments(&world).len(), 2, "the second has parts of both");
    check_by_shell(&world, &second, &expected);
    assert_eq!(verify(&world, &second), Health::Good);
    delete(&world, &second);
    assert!(contents(&world).is_empty());
}

#[test]
fn an_index_that_the_database_does_not_know_keeps_its_segments() {
    let (world, runner, row) = world(Compression::None);
    let first = run(&world, &runner, &row);
    let path = world.home.backups().join(&first.file_name);
    let unknown = folder(&world).join("docs-20200101T000000Z-999.tar.index");
    fs::copy(&path, &unknown).unwrap();
    let before = segments(&world);
    delete(&world, &first);
    assert_eq!(segments(&world), before);
    fs::remove_file(&unknown).unwrap();
    archive_folder::finish_deletions(&world.home, &world.store).unwrap();
    assert!(contents(&world).is_empty());
}

/// Returns the names of the indexes that cannot be read.
fn unreadable(world: &World) -> Vec<String> {
    let found = archive_folder::find_unreadable_indexes(&world.home, &world.store).unwrap();
    found.into_iter().map(|index| index.name).collect()
}

#[test]
fn an_index_that_cannot_be_read_stops_the_removal_of_segments_in_its_folder_only() {
    let (world, runner, docs) = world(Compression::None);
    let mail = world.schedule("mail", "01:00");
    edit(&world, &mail, Schedule { layout: Layout::Segmented, ..mail.schedule.clone() });
    let first = run(&world, &runner, &docs);
    let other = run(&world, &runner, &mail);
    // Cut off, of a name that is that of no archive, and a link that leads nowhere: each may refer to any segment.
    let texts = [("docs-20200101T000000Z-999.tar.index", "# backup-manager index 1\n"), ("docs.index", "# mine\n")];
    texts.iter().for_each(|(name, text)| fs::write(folder(&world).join(name), text).unwrap());
    std::os::unix::fs::symlink("nowhere", folder(&world).join("link.index")).unwrap();
    // In a folder without segments, no index refers to any.
    fs::create_dir_all(world.home.backups().join("whole")).unwrap();
    fs::write(world.home.backups().join("whole/notes.index"), "notes").unwrap();
    let before = segments(&world);
    delete(&world, &other);
    assert!(!world.archive_files().iter().any(|name| name.starts_with("mail/")));
    // The archive and its index are removed as requested.
    delete(&world, &first);
    assert!(world.store.archive(first.run).unwrap().is_none());
    assert!(!world.home.backups().join(&first.file_name).exists());
    let names = ["docs/docs-20200101T000000Z-999.tar.index", "docs/docs.index", "docs/link.index"];
    let mut found = unreadable(&world);
    found.sort();
    assert_eq!(found, names);
    for name in names {
        assert_eq!(segments(&world), before);
        archive_folder::finish_deletions(&world.home, &world.store).unwrap();
        fs::remove_file(world.home.backups().join(name)).unwrap();
    }
    archive_folder::finish_deletions(&world.home, &world.store).unwrap();
    assert_eq!((contents(&world).len(), unreadable(&world).len()), (0, 0));
}

#[test]
fn an_index_of_the_database_that_cannot_be_read_is_named_once_segments_are_to_be_removed() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let mut archives = Vec::new();
    for day in 0..3 {
        fs::write(world.path("docs/005"), format!("day {day}")).unwrap();
        archives.push(run(&world, &runner, &row));
    }
    let before = segments(&world).len();
    let index = world.home.backups().join(&archives[2].file_name);
    let text = fs::read(&index).unwrap();
    fs::set_permissions(&index, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&index, &text[..text.len() - 9]).unwrap();
    assert_eq!(unreadable(&world), [""; 0], "its verification finds it");
    delete(&world, &archives[1]);
    assert_eq!(segments(&world).len(), before);
    assert_eq!(unreadable(&world), [archives[2].file_name.as_str()]);
    fs::write(&index, &text).unwrap();
    archive_folder::finish_deletions(&world.home, &world.store).unwrap();
    assert_eq!((segments(&world).len(), unreadable(&world).len()), (before - 1, 0));
}

#[test]
fn the_number_of_a_segment_that_is_still_to_be_removed_is_not_used_again() {
    let (world, runner, row) = world(Compression::None);
    archive_folder::ensure_ours(&world.home, &world.store).unwrap();
    fs::create_dir_all(folder(&world)).unwrap();
    world.clock.advance(HOUR * 24);
    world.service(false).tick().unwrap();
    let dead = world.process(Role::Command);
    let (claim, intent) = world.claim(&dead);
    let archive = ArchiveName::parse_index(intent.file_name.split_once('/').unwrap().1, "docs");
    let name = SegmentName { archive: archive.unwrap(), number: 1 };
    let segment_name = format!("docs/{}", name.file_name());
    let temporary_name = format!("docs/{}", name.temporary_name(1, 7));
    fs::write(world.home.backups().join(&temporary_name), "half a segm").unwrap();
    world.store.add_segment(&claim, &SegmentIntent { segment_name: segment_name.clone(), temporary_name }).unwrap();
    let first = claim.run();
    drop((claim, dead));
    // Its row stays: nothing in the folder is removed.
    fs::write(folder(&world).join("notes.index"), "notes").unwrap();
    assert_eq!(recover_all(&runner).requeued, 1);
    assert_eq!(world.store.segments_being_deleted().unwrap().len(), 1);
    // The same second, so that the archive gets the same name.
    let ended = run_now(&world, &runner, &row);
    assert_eq!((ended.run, ended.state), (first, RunState::Succeeded), "{:?}", ended.error);
    let archive = world.store.archive(first).unwrap().unwrap();
    assert_eq!(index_of(&world, &archive).segments(), [SegmentName { number: 2, ..name }.file_name()]);
    fs::remove_file(folder(&world).join("notes.index")).unwrap();
    archive_folder::finish_deletions(&world.home, &world.store).unwrap();
    assert_eq!(verify(&world, &archive), Health::Good);
    assert_eq!(contents(&world).len(), 2, "the segment and the index");
}

#[test]
fn what_is_found_of_an_archive_that_was_removed_meanwhile_says_nothing_about_a_new_one() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let removed = run(&world, &runner, &row);
    let files = contents(&world);
    delete(&world, &removed);
    // Rows of archive files are numbered anew, so that the new one has that of the old one.
    let new = run(&world, &runner, &row);
    assert_eq!(new.archive_file, removed.archive_file);
    let verified_at = new.verified_at;
    for name in files.keys().filter(|name| name.starts_with("docs-")) {
        fs::write(folder(&world).join(name), &files[name]).unwrap();
    }
    world.clock.advance(HOUR);
    let _ = verify(&world, &removed);
    let part = world.store.parts(new.archive_file).unwrap().remove(0);
    world.store.record_missing(&removed, part.id).unwrap();
    let found = world.store.archive(new.run).unwrap().unwrap();
    assert_eq!((found.health, found.verified_at), (Health::Good, verified_at));
}

/// Flips a byte of a file; its mtime stays.
pub fn flip(path: &Path, at: u64) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(before).unwrap();
}

pub fn health(world: &World, archive: &Archive) -> Health {
    world.store.archive(archive.run).unwrap().unwrap().health
}

#[test]
fn damage_makes_every_archive_with_a_part_of_it_damaged_and_no_other() {
    let (world, runner, row) = world(Compression::Zstd(3));
    let first = run(&world, &runner, &row);
    fs::write(world.path("docs/005"), "changed").unwrap();
    let second = run(&world, &runner, &row);
    fs::write(world.path("docs/005"), "changed again").unwrap();
    let third = run(&world, &runner, &row);
    // What the second and the third do not share lies first in their segments, behind the header.
    let only_second = index_of(&world, &second);
    let header = only_second.ranges().next().unwrap();
    flip(&folder(&world).join(header.segment), header.offset + 3);
    assert_eq!(verify(&world, &third), Health::Good);
    assert_eq!(verify(&world, &second), Health::Damaged);
    assert_eq!((health(&world, &first), health(&world, &third)), (Health::Good, Health::Good));
    // The middle of the first segment is a part of all three.
    let shared = folder(&world).join(index_of(&world, &first).segments()[0].clone());
    flip(&shared, fs::metadata(&shared).unwrap().len() / 2);
    assert_eq!(verify(&world, &first), Health::Damaged);
    for archive in [&first, &second, &third] {
        assert_eq!(health(&world, archive), Health::Damaged);
    }
    flip(&shared, fs::metadata(&shared).unwrap().len() / 2);
    assert_eq!(verify(&world, &third), Health::Good);
    assert_eq!((health(&world, &first), health(&world, &second)), (Health::Good, Health::Damaged));
    fs::rename(&shared, world.path("moved")).unwrap();
    assert_eq!(verify(&world, &first), Health::Damaged);
    assert_eq!((health(&world, &first), health(&world, &third)), (Health::Missing, Health::Missing));
}

#[test]
fn a_run_without_an_archive_leaves_no_segment() {
    let (world, runner, row) = world(Compression::None);
    run(&world, &runner, &row);
    let before = contents(&world);
    for file in fs::read_dir(world.path("docs")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    world.clock.advance(Duration::from_secs(60));
    // The header and the end marks are written before it is known that the source is empty.
    let ended = run_now(&world, &runner, &row);
    assert_eq!(ended.state, RunState::Failed);
    assert_eq!(contents(&world), before);
}

/// Removes the database, and returns the same with a new one that has the folder.
pub fn with_lost_database(world: World, runner: Runner) -> World {
    let identity = world.store.identity();
    let (dir, lost) = (world.dir, world.store);
    drop((runner, lost));
    for end in ["", "-wal", "-shm"] {
        fs::remove_file(dir.path().join(format!("backup.db{end}"))).ok();
    }
    let world = World::within(dir);
    world.store.adopt_identity(identity).unwrap();
    World::within(world.dir)
}

#[test]
fn a_lost_database_is_rebuilt_from_indexes_and_segments() {
    let (world, runner, row) = world(Compression::Gzip(6));
    let first = run(&world, &runner, &row);
    fs::write(world.path("docs/005"), "changed").unwrap();
    let second = run(&world, &runner, &row);
    let expected: Vec<_> = [&first, &second].map(|archive| crate::reuse::rows(&world, archive)).into();
    let before = contents(&world);
    let world = with_lost_database(world, runner);
    let report =
        rescan(&world.home, &world.store, 2, &Recording::default(), &CancelToken::new(), first.created_at).unwrap();
    assert_eq!((report.added.len(), report.foreign.len(), report.damaged.len()), (2, 0, 0), "{report:?}");
    assert_eq!(contents(&world), before);
    for (archive, expected) in [&first, &second].into_iter().zip(expected) {
        let found = world.store.archive(archive.run).unwrap().unwrap();
        assert_eq!((found.health, found.layout, &found.digest), (Health::Good, Layout::Segmented, &archive.digest));
        // The archive does not hold all that the catalog did.
        let names = |rows: &[CatalogMember]| -> Vec<_> { rows.iter().map(|row| row.member.path.clone()).collect() };
        assert_eq!(names(&crate::reuse::rows(&world, &found)), names(&expected));
        assert_eq!(verify(&world, &found), Health::Good);
    }
    let again =
        rescan(&world.home, &world.store, 2, &Recording::default(), &CancelToken::new(), first.created_at).unwrap();
    assert_eq!((again.added.len(), again.known, again.foreign.len()), (0, 2, 0));
    // What belongs together is removed together, as before.
    for run in [first.run, second.run] {
        delete(&world, &world.store.archive(run).unwrap().unwrap());
    }
    assert!(contents(&world).is_empty());
}

//! Changes that no time shows.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use backup_manager::backup::pipeline::ReadReason;
use backup_manager::progress::ProblemKind;
use backup_manager::schedule::Compression;
use rustix::fs::{Timespec, Timestamps, futimens};

use crate::catalog::World;
use crate::loop_mount::LoopMount;

/// Overwrites the first byte of a file and sets its mtime back, but not its ctime, which nobody can.
fn overwrite(world: &World, name: &str) {
    let path = world.path(name);
    let stat = rustix::fs::stat(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"!", 0).unwrap();
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let last_access = time(stat.st_atime, stat.st_atime_nsec as _);
    let last_modification = time(stat.st_mtime, stat.st_mtime_nsec as _);
    futimens(&file, &Timestamps { last_access, last_modification }).unwrap();
}

fn world() -> World {
    let mut world = World::new(Compression::None);
    for file in 0..100 {
        fs::write(world.path(&format!("{file:03}")), vec![file as u8; 10_000]).unwrap();
    }
    fs::write(world.path("large"), vec![7; 9 << 20]).unwrap();
    fs::write(world.path("larger"), vec![7; 17 << 20]).unwrap();
    world.later();
    world.run();
    world
}

#[test]
fn the_same_size_and_mtime_are_not_enough() {
    let mut world = world();
    overwrite(&world, "050");
    world.later();
    let second = world.run();
    assert_eq!(second.read(ReadReason::CtimeOnly), 1);
    world.assert_as_fresh(&second, "mtime set back");
}

#[test]
fn content_that_changed_without_its_times_is_archived_and_reported() {
    for name in ["050", "large", "larger"] {
        let mut world = world();
        world.rules = |rules| rules.ignores_ctime = true;
        overwrite(&world, name);
        world.later();
        let second = world.run();
        assert_eq!(second.written.problems, [], "nothing indicates the change");
        assert!(second.written.is_link);
        world.rules = |rules| (rules.ignores_ctime, rules.rereads_all) = (true, true);
        let third = world.run();
        let problems = &third.written.problems;
        assert_eq!(problems.len(), 1, "{name}: {problems:?}");
        assert_eq!(problems[0].kind, ProblemKind::ChangedWithoutTimes);
        assert_eq!(problems[0].path.as_ref(), world.path(name).as_os_str().as_encoded_bytes());
        let (old, new) = (world.rows(&world.archives[0]), world.rows(&third));
        let row = |rows: &[_], path: &str| -> backup_manager::member::CatalogMember {
            let found = rows
                .iter()
                .find(|row: &&backup_manager::member::CatalogMember| row.member.path.file_name() == path.as_bytes());
            found.unwrap().clone()
        };
        let (old, new) = (row(&old, name), row(&new, name));
        assert_ne!(old.content_digest, new.content_digest);
        let digest = |row: &backup_manager::member::CatalogMember| {
            blake3::Hash::from_bytes(row.content_digest.unwrap()).to_hex()[..16].to_owned()
        };
        assert!(problems[0].reason.contains(&digest(&old)) && problems[0].reason.contains(&digest(&new)));
        assert!(!new.is_reusable);
        assert_eq!(third.stream().len(), world.archives[0].stream().len());
    }
}

#[test]
fn what_changed_just_before_it_was_read_is_read_again() {
    let mut world = world();
    // A run that begins in the same second as the change.
    overwrite(&world, "050");
    world.clock = backup_manager::clock::ManualClock::at(crate::catalog::now());
    let second = world.run();
    assert_eq!(second.read(ReadReason::CtimeOnly), 1);
    world.later();
    let third = world.run();
    assert!(third.read(ReadReason::Recent) >= 1, "a later change may have the same times");
    let fourth = world.run();
    assert_eq!((fourth.read(ReadReason::Recent), fourth.written.is_link), (0, true));
}

/// A store through a shared mapping moves ctime only if the page was written to disk since the store before.
#[test]
fn a_store_through_a_mapping_after_the_file_was_read_is_seen() {
    check_stores_through_a_mapping(world());
}

#[test]
fn a_store_through_a_mapping_is_seen_on_xfs() {
    let Some(disk) = LoopMount::new("xfs") else { return };
    let folder = disk.folder();
    let mut world = World::of(tempfile::tempdir().unwrap(), folder.path().to_owned(), Compression::None);
    fs::write(world.path("050"), vec![50; 10_000]).unwrap();
    world.later();
    world.run();
    check_stores_through_a_mapping(world);
}

fn check_stores_through_a_mapping(mut world: World) {
    let file = fs::File::options().read(true).write(true).open(world.path("050")).unwrap();
    let mut map = Mapping::of(&file, 10_000);
    map.store(b'1');
    // The run begins more than the margin after the store: it must not count as recent.
    world.later();
    let second = world.run();
    assert!(second.read(ReadReason::CtimeOnly) + second.read(ReadReason::SizeOrTime) == 1);
    map.store(b'2');
    world.later();
    let third = world.run();
    world.assert_as_fresh(&third, "the second store");
}

struct Mapping(*mut u8, usize);

impl Mapping {
    #[allow(unsafe_code, reason = "no safe call writes through a mapping")]
    fn of(file: &fs::File, length: usize) -> Mapping {
        use rustix::fd::AsRawFd;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0) };
        assert_ne!(address, libc::MAP_FAILED);
        Mapping(address.cast(), length)
    }

    #[allow(unsafe_code, reason = "no safe call writes through a mapping")]
    fn store(&mut self, byte: u8) {
        // SAFETY: within the mapping, which lives as long as `self`.
        unsafe { self.0.write_volatile(byte) };
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code, reason = "no safe call writes through a mapping")]
    fn drop(&mut self) {
        // SAFETY: mapped in `of`, and not used any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).position(|window| window == needle).expect("the content of the file")
}

#[test]
fn a_byte_that_changed_below_the_file_system_is_found_when_its_chunk_is_read_again() {
    let Some(disk) = LoopMount::new("ext4") else { return };
    let folder = disk.folder();
    let mut world = World::of(tempfile::tempdir().unwrap(), folder.path().to_owned(), Compression::None);
    let content = blake3::hash(b"some content that is nowhere else").to_hex().repeat(100);
    fs::write(world.path("file"), &content).unwrap();
    world.later();
    world.run();
    disk.change_image(|image| {
        let offset = find(&fs::read(image).unwrap(), content.as_bytes());
        fs::File::options().write(true).open(image).unwrap().write_all_at(b"!", offset as u64).unwrap();
    });
    assert_eq!(fs::read(world.path("file")).unwrap()[0], b'!');
    let missed = world.run();
    assert!(missed.written.is_link, "nothing indicates it");
    world.clock.advance(Duration::from_secs(31 * 86_400));
    let found = world.run();
    let kinds: Vec<_> = found.written.problems.iter().map(|problem| problem.kind).collect();
    assert_eq!((kinds, found.written.silent_changes), (vec![ProblemKind::ChangedWithoutTimes], 1));
    let row = world.rows(&found).pop().expect("the file");
    assert_eq!(row.content_digest, Some(*blake3::hash(&fs::read(world.path("file")).unwrap()).as_bytes()));
}

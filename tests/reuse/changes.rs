//! What is taken from the base, and what is read.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use backup_manager::backup::pipeline::ReadReason;
use backup_manager::error::ErrorKind;
use backup_manager::schedule::Compression;

use crate::catalog::{World, links};

pub const CODECS: [Compression; 3] = [Compression::None, Compression::Gzip(1), Compression::Zstd(3)];

/// Makes 200 files of up to 40 KB in ten folders, one of 6 MB and one of 20 MB, both sparse or not, and links.
pub fn fill(world: &World) {
    for folder in 0..10 {
        fs::create_dir(world.path(&format!("{folder}"))).unwrap();
        for file in 0..20 {
            let bytes = vec![(folder * 20 + file) as u8; folder * 4_000 + file * 10];
            fs::write(world.path(&format!("{folder}/{file:02}")), bytes).unwrap();
        }
    }
    let large = |size: u32| (0..size).map(|i| (i / 1000 * 7) as u8).collect::<Vec<u8>>();
    fs::write(world.path("5/large"), large(6 << 20)).unwrap();
    fs::write(world.path("7/larger"), large(20 << 20)).unwrap();
    fs::File::create(world.path("8/hole")).unwrap().set_len(30 << 20).unwrap();
    symlink("nowhere", world.path("2/link")).unwrap();
    fs::hard_link(world.path("1/05"), world.path("3/name")).unwrap();
    fs::hard_link(world.path("7/larger"), world.path("9/larger")).unwrap();
}

fn filled(compression: Compression) -> World {
    let mut world = World::new(compression);
    fill(&world);
    world.later();
    world.run();
    world
}

#[test]
fn a_run_that_finds_nothing_changed_reads_and_writes_nothing_and_links() {
    for compression in CODECS {
        let mut world = filled(compression);
        let members = world.archives[0].written.extent.members;
        let second = world.run();
        assert!(second.written.is_link && second.recorded == 0);
        assert_eq!((second.reused(), second.written.reuse.as_ref().unwrap().read.len()), (members, 0));
        assert_eq!(links(&second.path), 2);
        assert_eq!(second.written.extent, world.archives[0].written.extent);
        world.assert_as_fresh(&second, "linked");
    }
}

#[test]
fn an_archive_that_may_not_be_a_link_is_copied_from_the_base() {
    for compression in CODECS {
        let mut world = filled(compression);
        world.links = false;
        let second = world.run();
        assert!(!second.written.is_link);
        assert_eq!((second.reused(), links(&second.path)), (world.archives[0].written.extent.members, 1));
        world.assert_as_fresh(&second, "copied");
        // The rows are those of the base, except for the global header and the end marks.
        let shared = second.chunks.iter().zip(&world.archives[0].chunks).filter(|(a, b)| a.1 == b.1).count();
        assert_eq!(shared, second.chunks.len() - 2);
    }
}

#[test]
fn a_link_that_is_refused_falls_back_to_a_copy() {
    let world = filled(Compression::None);
    // As the 65,000th link of ext4, or a file of another owner: the path leads to another file than the open one.
    let first = world.archives[0].path.clone();
    let copy = world.dir.path().join("copy");
    fs::copy(&first, &copy).unwrap();
    let immutable = std::process::Command::new("chattr").arg("+i").arg(&first).status();
    if immutable.is_ok_and(|status| status.success()) {
        let second = world.try_run();
        std::process::Command::new("chattr").arg("-i").arg(&first).status().unwrap();
        let second = second.unwrap();
        assert!(!second.written.is_link);
        second.verify();
    } else {
        eprintln!("skipped: chattr +i is not possible here");
    }
}

#[test]
fn one_changed_file_is_read_with_its_chunk_only() {
    for compression in CODECS {
        let mut world = filled(compression);
        fs::write(world.path("4/07"), "other content").unwrap();
        world.later();
        let second = world.run();
        assert_eq!(second.read(ReadReason::SizeOrTime), 1);
        assert!(second.reused() > 0 && !second.written.is_link);
        world.assert_as_fresh(&second, "one changed");
        let third = world.run();
        assert!(third.written.is_link);
    }
}

#[test]
fn a_file_behind_the_last_member_of_a_chunk_moves_its_end() {
    let mut world = filled(Compression::None);
    // A small file behind each of some neighbours in turn: some of them lie at the end of a chunk.
    for file in 4..10 {
        fs::write(world.path(&format!("4/{file:02}+")), "x").unwrap();
        world.later();
        let made = world.run();
        world.assert_as_fresh(&made, &format!("behind {file}"));
        assert!(made.reused() > 100, "{file}");
    }
}

#[test]
fn a_chunk_that_lost_its_first_or_its_last_member_is_not_taken() {
    let mut world = World::new(Compression::None);
    for file in 0..100 {
        fs::write(world.path(&format!("{file:03}")), vec![file as u8; 10_000]).unwrap();
    }
    world.later();
    for round in 0..6 {
        let made = world.run();
        world.assert_as_fresh(&made, &format!("round {round}"));
        // Not in the first chunk, which holds the folder, whose mtime changes.
        let chunks: Vec<_> = world.names(&made).into_iter().filter(|names| names.len() > 2).collect();
        let names = &chunks[1 + round % 2];
        let name = if round < 3 { names.last() } else { names.first() };
        fs::remove_file(world.path(name.unwrap())).unwrap();
        world.later();
    }
}

#[test]
fn a_change_of_mode_alone_encodes_one_chunk_and_of_ctime_alone_none() {
    let mut world = filled(Compression::Zstd(3));
    let path = world.path("4/07");
    let mode = path.metadata().unwrap().mode();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode ^ 0o100)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    world.later();
    let second = world.run();
    assert_eq!(second.read(ReadReason::CtimeOnly), 1);
    world.assert_as_fresh(&second, "ctime");
    // The bytes of the chunk were taken from the base; it has a row of its own, with one new member.
    let new = second.chunks.iter().zip(&world.archives[0].chunks).filter(|(a, b)| a.1 != b.1).count();
    assert_eq!(new, 3, "with the global header and the end marks");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode ^ 0o100)).unwrap();
    world.later();
    let third = world.run();
    assert_eq!(third.read(ReadReason::Owner), 1);
    world.assert_as_fresh(&third, "mode");
}

#[test]
fn a_changed_piece_of_a_large_file_is_encoded_alone() {
    use std::os::unix::fs::FileExt;
    for (name, pieces) in [("5/large", 2), ("7/larger", 5)] {
        let mut world = filled(Compression::Gzip(1));
        let file = fs::File::options().write(true).open(world.path(name)).unwrap();
        file.write_all_at(b"changed", (5 << 20) + 3).unwrap();
        drop(file);
        world.later();
        let second = world.run();
        world.assert_as_fresh(&second, name);
        // The header with the first piece has another time, and the second piece other content.
        let old: Vec<_> = world.archives[0].chunks.iter().map(|(_, id)| *id).collect();
        let new = second.chunks.iter().filter(|(_, id)| !old.contains(id)).count();
        let others = if name == "7/larger" { 1 } else { 0 };
        assert!(new <= 2 + 2 + others, "{name}: {new} new chunks of {pieces} pieces");
    }
}

#[test]
fn chunks_are_read_again_after_their_period_and_keep_their_rows() {
    let mut world = filled(Compression::None);
    let first = world.archives[0].clone();
    world.clock.advance(Duration::from_secs(22 * 86_400));
    let second = world.run();
    let reread = second.read(ReadReason::Reread);
    assert!(reread > 0 && second.reused() > 0, "some are due: {reread} of {}", first.written.extent.members);
    assert!(second.written.is_link, "an equal chunk only gets the new time");
    // They are not due again, the others still are not.
    let third = world.run();
    assert_eq!((third.read(ReadReason::Reread), third.written.is_link), (0, true));
    world.clock.advance(Duration::from_secs(9 * 86_400));
    let fourth = world.run();
    assert!(fourth.read(ReadReason::Reread) > 0 && fourth.reused() > 0 && fourth.written.is_link);
    world.rules = |rules| rules.rereads_all = true;
    let fifth = world.run();
    assert_eq!((fifth.read(ReadReason::Reread), fifth.reused()), (first.written.extent.members, 0));
    assert!(fifth.written.is_link);
    world.assert_as_fresh(&fifth, "reread");
}

#[test]
fn a_link_whose_carrier_cannot_be_read_any_more_carries_the_data_itself() {
    if crate::support::nobody::again_as_nobody(&["a_link_whose_carrier"]) {
        return;
    }
    let mut world = World::new(Compression::None);
    // Far apart, so that they lie in different chunks.
    fs::create_dir(world.path("a")).unwrap();
    fs::write(world.path("a/carrier"), "data").unwrap();
    for file in 0..100 {
        fs::write(world.path(&format!("m{file}")), vec![1; 8_000]).unwrap();
    }
    fs::hard_link(world.path("a/carrier"), world.path("z")).unwrap();
    world.later();
    world.run();
    // The carrier vanishes from the walk without a change of the file.
    fs::set_permissions(world.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
    let second = world.run();
    fs::set_permissions(world.path("a"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(second.written.losses > 0);
    let rows = world.rows(&second);
    let z = rows.iter().find(|row| row.member.path.as_bytes() == b"source/z").unwrap();
    assert_eq!(z.content_digest, Some(*blake3::hash(b"data").as_bytes()), "it carries the data");
    assert!(second.reused() > 50, "and the chunks between are taken from the base");
}

/// Gives the source the mtime that it had, as programs do that copy trees.
fn keeping_mtime(world: &World, change: impl FnOnce()) {
    let modified = world.source.metadata().unwrap().modified().unwrap();
    change();
    fs::File::open(&world.source).unwrap().set_modified(modified).unwrap();
}

#[test]
fn what_was_removed_from_the_end_is_not_in_the_next_archive_though_its_folder_kept_its_mtime() {
    for compression in CODECS {
        let mut world = filled(compression);
        // Larger than a chunk, so that it is one of its own.
        fs::write(world.path("z"), vec![9; 5 << 20]).unwrap();
        world.later();
        world.run();
        keeping_mtime(&world, || fs::remove_file(world.path("z")).unwrap());
        let next = world.run();
        assert!(!next.written.is_link);
        world.assert_as_fresh(&next, "removed");
    }
}

#[test]
fn an_archive_without_the_losses_of_its_base_is_no_link_of_it() {
    if crate::support::nobody::again_as_nobody(&["an_archive_without_the_losses"]) {
        return;
    }
    let mut world = World::new(Compression::None);
    fs::write(world.path("file"), "content").unwrap();
    fs::write(world.path("secret"), "unreadable").unwrap();
    fs::set_permissions(world.path("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    world.later();
    let first = world.run();
    assert_eq!(first.written.losses, 1);
    keeping_mtime(&world, || fs::remove_file(world.path("secret")).unwrap());
    let whole = world.run();
    assert_eq!((whole.written.losses, whole.written.is_link), (0, false), "all chunks are the same");
    assert_eq!(whole.reused(), 2);
}

#[test]
fn what_is_read_after_the_clock_was_set_back_is_dated_by_the_earlier_time() {
    let mut world = filled(Compression::None);
    fs::write(world.path("9/19"), "changed").unwrap();
    world.later();
    world.sets_clock_back = Duration::from_secs(3_600);
    let second = world.run();
    let back = second.started.millis() - 3_600_000;
    assert_eq!(world.read_started(&second, "9/19").millis(), back);
    // Of what changes until the clock shows that time again nothing can be said.
    world.sets_clock_back = Duration::ZERO;
    world.later();
    let third = world.run();
    assert!(third.read(ReadReason::Recent) > 0);
}

#[test]
fn an_ordinary_user_takes_from_a_base_too() {
    crate::support::nobody::again_as_nobody(&["a_run_that_finds_nothing", "one_changed_file", "content_that_changed"]);
}

#[test]
fn a_damaged_base_is_noticed_before_its_bytes_are_taken() {
    use std::os::unix::fs::FileExt;
    let mut world = filled(Compression::None);
    fs::set_permissions(&world.archives[0].path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&world.archives[0].path).unwrap();
    file.write_all_at(b"?", 9_000_000).unwrap();
    fs::write(world.path("0/00"), "changed").unwrap();
    world.later();
    let error = world.try_run().err().expect("the damage is found");
    assert_eq!(error.kind(), ErrorKind::Damage);
    assert!(error.to_string().contains("archive-0"), "{error}");
}

#[test]
fn an_untrusted_file_system_is_read_and_named() {
    let shm = std::path::Path::new("/dev/shm");
    let Ok(dir) = tempfile::tempdir_in(shm) else {
        eprintln!("skipped: there is no /dev/shm");
        return;
    };
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let mut world = World::of(dir, source, Compression::None);
    fs::write(world.path("file"), "content").unwrap();
    world.later();
    world.run();
    let second = world.run();
    assert_eq!((second.reused(), second.read(ReadReason::FileSystem)), (0, 1));
    assert!(second.written.notes.iter().any(|note| note.contains("tmpfs")), "{:?}", second.written.notes);
    world.rules = |rules| rules.trusts_times = true;
    assert_eq!(world.run().reused(), 2);
}

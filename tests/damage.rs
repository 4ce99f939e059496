//! A flipped bit anywhere in an archive file is always found, with and without the database, and the damaged member is
//! named.
//!
//! `BACKUP_TEST_FLIPS` sets how many bits are flipped in each format (default 20); the seed is printed.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backup_manager::archive::check::{self, DamagedChunk};
use backup_manager::archive::damaged_members;
use backup_manager::archive::padding::Padding;
use backup_manager::archive::reader::ArchiveReader;
use backup_manager::archive::rebuild;
use backup_manager::cancel::CancelToken;
use backup_manager::chunk::{CatalogChunk, ChunkRecord, MemberRecord};
use backup_manager::clock::Timestamp;
use backup_manager::maintenance::verify::verify_file;
use backup_manager::member::CatalogMember;
use support::archive::{TestArchive, make, make_with, run_tool};

/// A small random number generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn flips() -> u64 {
    std::env::var("BACKUP_TEST_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

fn source(folder: &Path, random: &mut Random) {
    for n in 0..60 {
        let text: String = (0..random.below(900)).map(|i| format!("{n} {i} {}\n", random.below(1000))).collect();
        let below = folder.join(format!("d{}", n % 7));
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join(format!("file{n}")), text).unwrap();
    }
    let bytes: Vec<u8> = (0..5 << 20).map(|_| random.below(256) as u8).collect();
    fs::write(folder.join("large"), bytes).unwrap();
    std::os::unix::fs::symlink("large", folder.join("link")).unwrap();
}

/// Returns the members of each chunk: names, and the offsets at which their entries begin.
fn owners(records: &[CatalogChunk]) -> BTreeMap<u64, Vec<(u64, String)>> {
    records
        .iter()
        .map(|chunk| {
            let mut offset = 0;
            let start = |member: &CatalogMember| {
                offset += member.entry_bytes;
                offset - member.entry_bytes
            };
            let starts: Vec<u64> = chunk.new_members().map(start).collect();
            let names = chunk.new_members().map(|m| m.member.path.to_string());
            (chunk.chunk.sequence, starts.into_iter().zip(names).collect())
        })
        .collect()
}

/// Flips a bit, checks the file with the records and by the trailer, and flips the bit back.
fn check_flipped(made: &TestArchive, at: u64, bit: u64) -> (Vec<DamagedChunk>, bool, bool) {
    let file = OpenOptions::new().read(true).write(true).open(&made.path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
    let reader = ArchiveReader::open(&made.path).unwrap();
    let mut expected = made.records.iter().map(|record| Ok(record.chunk));
    let mut damaged = Vec::new();
    let never = CancelToken::new();
    let result = check::check_chunks(&reader, &mut expected, 2, &never, &mut |chunk| {
        damaged.push(chunk);
        std::ops::ControlFlow::Continue(())
    });
    let structure = !result.is_ok_and(|digest| digest == made.written.digest);
    let by_itself = verify_file(&made.path, 2, &never).map_or(true, |findings| !findings.is_good());
    file.write_all_at(&byte, at).unwrap();
    (damaged, structure, by_itself)
}

fn every_flip_is_found(compression: &str, padding: Padding, seed: u64) {
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    source(&tree, &mut random);
    let made = make_with(&tree, folder.path(), compression.parse().unwrap(), |job| job.padding = padding);
    fs::set_permissions(&made.path, fs::Permissions::from_mode(0o600)).unwrap();
    let owners = owners(&made.records);
    let last = made.records.last().unwrap().chunk.sequence;
    let mut named = 0;
    for _ in 0..flips() {
        let (at, bit) = (random.below(made.written.size), random.below(8));
        let (damaged, structure, by_itself) = check_flipped(&made, at, bit);
        assert!(by_itself, "byte {at} bit {bit}: not found by the trailer");
        let chunk = made.records.iter().find(|c| (c.chunk.offset..c.chunk.end()).contains(&at));
        let Some(chunk) = chunk else {
            assert!(structure && damaged.is_empty(), "byte {at} bit {bit} in the trailer");
            continue;
        };
        assert_eq!(damaged.len(), 1, "byte {at} bit {bit}");
        assert_eq!(damaged[0].chunk.sequence, chunk.chunk.sequence);
        let members: Vec<CatalogMember> = chunk.new_members().cloned().collect();
        if members.is_empty() || chunk.chunk.sequence == 0 || chunk.chunk.sequence == last {
            continue;
        }
        // The member is named while the bit is still flipped.
        let file = OpenOptions::new().read(true).write(true).open(&made.path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        let reader = ArchiveReader::open(&made.path).unwrap();
        let names: Vec<String> = damaged_members::differing(&reader, &damaged[0].chunk, &members)
            .iter()
            .map(|member| member.path.to_string())
            .collect();
        file.write_all_at(&byte, at).unwrap();
        named += 1;
        if compression == "none" {
            let within = at - chunk.chunk.offset;
            let (_, owner) = owners[&chunk.chunk.sequence].iter().rev().find(|(begins, _)| *begins <= within).unwrap();
            assert!(names.contains(owner), "byte {at} bit {bit}: {owner} is not among {names:?}");
            assert!(names.len() <= 1, "byte {at} bit {bit}: only {owner} is damaged, not {names:?}");
        } else {
            assert!(!names.is_empty());
        }
    }
    eprintln!("{} bits flipped in {compression}, {named} in chunks with members", flips());
    made.verify().expect("the archive is whole again");
    run_tool(Command::new("tar").arg("-tf").arg(&made.path));
}

#[test]
fn every_flip_in_a_plain_archive_is_found_and_the_member_named() {
    for padding in [Padding::None, Padding::Blocks] {
        every_flip_is_found("none", padding, 0x5EED_0001);
    }
}

#[test]
fn every_flip_in_a_gzip_archive_is_found_and_members_named() {
    every_flip_is_found("gzip", Padding::None, 0x5EED_0002);
}

#[test]
fn every_flip_in_a_zstd_archive_is_found_and_members_named() {
    every_flip_is_found("zstd", Padding::None, 0x5EED_0003);
}

#[test]
fn the_rebuilt_catalog_equals_the_written_one() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    source(&tree, &mut Random(7));
    fs::hard_link(tree.join("large"), tree.join("second")).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 1 << 20).unwrap();
    xattr::set(tree.join("d1"), "user.note", b"value").unwrap_or_else(|e| eprintln!("skipped: no xattrs: {e}"));
    for compression in ["none", "gzip", "zstd"] {
        let made = make(&tree, folder.path(), compression.parse().unwrap());
        let reader = Arc::new(ArchiveReader::open(&made.path).unwrap());
        let trailer = reader.trailer().unwrap().unwrap();
        assert_eq!(rebuild::read_comment(&reader, &trailer).unwrap().unwrap(), b"{\"schedule\":\"test\"}");
        let mut records = Vec::new();
        rebuild::read_records(reader, &trailer, Timestamp::from_millis(0), 2, &mut |chunk| {
            records.push(chunk);
            Ok(())
        })
        .unwrap();
        let plain = |chunk: &CatalogChunk, is_written: bool| {
            let mut chunk = chunk.clone();
            chunk.read_started = Timestamp::from_millis(0);
            let ChunkRecord::New { members } = &mut chunk.record else { panic!("no chunk is reused") };
            for member in members {
                let MemberRecord::New(member) = member else { panic!("no member is known") };
                assert!(member.is_reusable == is_written);
                member.is_reusable = true;
                (member.device, member.inode, member.changed) = (0, 0, Default::default());
                member.member.xattrs.clear();
            }
            chunk
        };
        let (written, read): (Vec<_>, Vec<_>) =
            (made.records.iter().map(|c| plain(c, true)).collect(), records.iter().map(|c| plain(c, false)).collect());
        assert_eq!(written, read, "{compression}");
    }
}

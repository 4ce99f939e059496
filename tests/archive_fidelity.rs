//! Everything a Linux file system records about a tree is restored by GNU tar, bsdtar, Python's tarfile and our own
//! restore, in all formats; by ours also as an unprivileged user.
//!
//! The normal run takes a few random trees, `BACKUP_MANAGER_LONG_TESTS=1` takes 1,000.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use backup_manager::browse::{OpenArchive, Selection};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::SystemClock;
use backup_manager::member::MemberPath;
use backup_manager::restore::{self, Options, RestoreContext};
use backup_manager::schedule::Compression;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use support::archive::{Silent, TestArchive, has_tool, is_long_run, make, run_tool};
use support::nobody::again_as_nobody;
use support::tree::{self, Entry, Kind, Seen, is_root};

const FORMATS: [Compression; 3] = [Compression::None, Compression::Gzip(1), Compression::Zstd(1)];

/// Extracts with Python, which supports neither `.tar.zst` nor attributes. Errors are raised, not printed.
const PYTHON: &str = "
import sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    archive.errorlevel = 2
    if hasattr(tarfile, 'fully_trusted_filter'):
        archive.extraction_filter = tarfile.fully_trusted_filter
    archive.extractall(sys.argv[2], numeric_owner=True)
";

fn entry(parent: usize, name: &[u8], kind: Kind) -> Entry {
    Entry {
        parent,
        name: name.to_vec(),
        kind,
        mode: 0o644,
        owner: (0, 0),
        modified: (1_700_000_000, 123_456_789),
        xattrs: Vec::new(),
        acl_user: None,
    }
}

fn file(parent: usize, name: &[u8], size: u64) -> Entry {
    entry(parent, name, Kind::File { size, spans: vec![(0, size, 3)] })
}

/// One entry for each known difficulty.
fn hard_cases() -> Vec<Entry> {
    const MIB: u64 = 1 << 20;
    let long = [b'n'; 255];
    let mut entries = vec![
        Entry { mode: 0o2770, acl_user: Some(1001), ..entry(0, b"folder", Kind::Folder) },
        entry(1, &[b'd'; 200], Kind::Folder),
        entry(2, &[b'e'; 200], Kind::Folder),
        file(3, &long, 10),
        entry(3, &[b'l'; 250], Kind::HardLink(0)),
        entry(3, b"long target", Kind::Symlink(vec![b't'; 4000])),
        entry(0, b"dangling", Kind::Symlink(b"../../nowhere\nat all".to_vec())),
        entry(1, b"caf\xe9 \xff\n\t\"", Kind::Folder),
        file(4, b"\xfe\xffnot text", 513),
        entry(4, b"fifo", Kind::Fifo),
        Entry { owner: (4_000_000_000, 3_000_000), ..entry(0, b"device", Kind::Device(4, 64)) },
        entry(0, b"big device", Kind::Device(4095, 1_048_575)),
        Entry { mode: 0o6755, owner: (70_000, 2_097_152), ..file(0, b"setuid", 512) },
        Entry { modified: (-2, 500_000_000), ..file(0, b"before 1970", 0) },
        Entry { modified: (-86_400 * 365, 0), ..file(0, b"well before 1970", 1) },
        Entry { modified: (9_000_000_000, 1), ..file(0, b"after 2242", 511) },
        Entry { acl_user: Some(2_000_000_000), mode: 0o640, ..file(0, b"acl", 5) },
        entry(0, b"sparse", Kind::File { size: 3 * MIB, spans: vec![(MIB, 4096, 1), (2 * MIB + 4096, 8192, 2)] }),
        entry(0, b"hole at both ends", Kind::File { size: 40 * MIB + 7, spans: vec![(9 * MIB, 6 * MIB + 11, 1)] }),
        entry(0, b"only a hole", Kind::File { size: 20 * MIB, spans: vec![] }),
        file(0, b"four", 4 * MIB),
        file(0, b"four and one", 4 * MIB + 1),
        file(0, b"whole", 11 * MIB + 3),
        file(0, b"pieces", 21 * MIB + 511),
        entry(0, b"pieces again", Kind::HardLink(usize::MAX)),
        // Names that tar itself uses.
        file(0, b"@LongLink", 3),
        file(0, b"pax_global_header", 3),
        entry(0, b"PaxHeaders", Kind::Folder),
        file(0, b"-rf", 1),
        file(0, b"GNUSparseFile.0", 1),
    ];
    let attributes: [(&[u8], &[u8]); 7] = [
        (b"user.text", b"value"),
        (b"user.empty", b""),
        (b"user.binary=odd%name", b"\0\xff\n=\x00 12 user=\n"),
        (b"user.long", &[b'v'; 3000]),
        (b"trusted.t", b"t"),
        (b"security.capability", b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
        (b"user.\xc3\xa4", b"\xc3\xa4"),
    ];
    let xattrs = attributes.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    entries.push(Entry { xattrs, ..file(0, b"attributes", 100) });
    let xattrs = vec![(b"user.folder".to_vec(), b"x".to_vec())];
    entries.push(Entry { xattrs, mode: 0o755, ..entry(0, b"folder with attributes", Kind::Folder) });
    let xattrs = vec![(b"trusted.link".to_vec(), b"x".to_vec())];
    entries.push(Entry { xattrs, ..entry(0, b"link with attributes", Kind::Symlink(b"pieces".to_vec())) });
    entries
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![8 => any::<u8>(), 4 => b'a'..=b'z'].prop_map(|b| if b == 0 || b == b'/' { b'_' } else { b });
    let length = prop_oneof![8 => 1..20usize, 1 => 90..110usize, 1 => 200..=255usize];
    length.prop_flat_map(move |length| prop::collection::vec(byte.clone(), length)).prop_map(|name| match &name[..] {
        b"." | b".." => b"dots".to_vec(),
        _ => name,
    })
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let span = (0..600_000u64, 0..70_000u64, any::<u8>());
    prop_oneof![
        6 => Just(Kind::Folder),
        8 => (0..3000u64).prop_map(|size| Kind::File { size, spans: vec![(0, size, 7)] }),
        3 => (0..600_000u64, prop::collection::vec(span, 0..4)).prop_map(|(size, spans)| Kind::File { size, spans }),
        3 => any_name().prop_map(Kind::Symlink),
        3 => any::<usize>().prop_map(Kind::HardLink),
        1 => Just(Kind::Fifo),
        1 => (0..4096u32, 0..1_048_576u32).prop_map(|(major, minor)| Kind::Device(major, minor)),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let owner = prop_oneof![Just(0), Just(1), Just(65_534), Just(70_000), 0..4_294_967_294u32];
    let seconds =
        prop_oneof![4 => 0..2_000_000_000i64, 1 => -2_000_000_000..-1i64, 1 => 8_000_000_000..9_000_000_000i64];
    let nanoseconds = prop_oneof![Just(0), Just(500_000_000), 0..1_000_000_000u32];
    let value = prop::collection::vec(any::<u8>(), 0..50);
    let xattrs = prop::collection::vec((prop::sample::select(vec!["user.a", "user.b=c", "trusted.d"]), value), 0..3);
    (
        any::<usize>(),
        any_name(),
        any_kind(),
        0..0o10000u32,
        (owner.clone(), owner),
        (seconds, nanoseconds),
        xattrs,
        prop::option::weighted(0.1, 0..100_000u32),
    )
        .prop_map(|(parent, name, kind, mode, owner, modified, xattrs, acl_user)| {
            let xattrs = xattrs.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value)).collect();
            Entry { parent, name, kind, mode, owner, modified, xattrs, acl_user }
        })
}

/// Removes from an entry what this user may not create and read again.
fn possible(mut entry: Entry) -> Entry {
    if is_root() {
        return entry;
    }
    entry.owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    entry.xattrs.retain(|(name, _)| name.starts_with(b"user."));
    match entry.kind {
        Kind::Folder => entry.mode |= 0o700,
        Kind::Device(..) => entry.kind = Kind::Fifo,
        _ => entry.mode |= 0o400,
    }
    entry
}

#[test]
fn every_kind_of_member_is_restored_by_every_reader() {
    assert_fidelity(&hard_cases().into_iter().map(possible).collect::<Vec<_>>());
}

#[test]
fn random_trees_are_restored_by_every_reader() {
    let cases = if is_long_run() { 1_000 } else { 6 };
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let trees = prop::collection::vec(any_entry().prop_map(possible), 0..40);
    let result = TestRunner::new(config).run(&trees, |entries| {
        assert_fidelity(&entries);
        Ok(())
    });
    // The message contains the smallest tree that fails.
    result.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn all_tests_pass_as_an_unprivileged_user() {
    if !again_as_nobody(&["--skip", "all_tests_pass_as_an_unprivileged_user"]) {
        eprintln!("skipped: already an unprivileged user");
    }
}

fn assert_fidelity(entries: &[Entry]) {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("source");
    tree::make(&source, entries);
    let expected = tree::snapshot(&source);
    for compression in FORMATS {
        let made = make(&source, scratch.path(), compression);
        assert_eq!(made.written.problems, [], "{compression}");
        assert_eq!(made.written.extent.members, expected.len() as u64);
        made.verify().unwrap();
        assert_catalog_agrees(&made, &expected);
        // As an unprivileged user GNU tar cannot set the attributes of a read-only file.
        let readers: &[_] = if is_root() { &["tar", "bsdtar", "python3"] } else { &[] };
        for reader in readers {
            let out = scratch.path().join("out");
            fs::create_dir(&out).unwrap();
            if extract(reader, &made.path, &out) {
                let found = tree::snapshot(&out.join("source"));
                let what = format!("{compression} through {reader}");
                tree::compare(&seen_by(reader, &expected), &seen_by(reader, &found), &what).unwrap();
            }
            fs::remove_dir_all(&out).unwrap();
        }
        for without_openat2 in [false, true] {
            let out = scratch.path().join("out");
            restore(&made.path, &out, without_openat2);
            let what = format!("{compression} through our restore, by steps {without_openat2}");
            tree::compare(&expected, &tree::snapshot(&out.join("source")), &what).unwrap();
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

/// Restores all there is with our own restore, which must have nothing to complain of.
fn restore(archive: &Path, out: &Path, without_openat2: bool) {
    let opened = OpenArchive::from_file(archive).unwrap();
    let options = Options { setuid: true, devices: true, sync: false, without_openat2, threads: 3, ..Options::to(out) };
    let (clock, cancel) = (SystemClock::new(), CancelToken::new());
    let mut on_action = |_, _: &MemberPath| {};
    let mut context = RestoreContext { clock: &clock, observer: &Silent, cancel: &cancel, on_action: &mut on_action };
    let report = restore::restore(&opened, &Selection::everything().unwrap(), &options, &mut context).unwrap();
    assert_eq!((report.outcome(), report.setuid.count), (None, 0), "{report:?}");
}

/// Extracts with all options that the reader has. Returns whether the reader is installed.
fn extract(reader: &str, archive: &Path, out: &Path) -> bool {
    if !has_tool(reader) {
        return false;
    }
    match reader {
        "tar" => run_tool(
            Command::new("tar")
                .args(["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--warning=no-timestamp", "-xpf"])
                .arg(archive)
                .arg("-C")
                .arg(out),
        ),
        "bsdtar" => run_tool(
            Command::new("bsdtar")
                .args(["--xattrs", "--acls", "--numeric-owner", "-xpf"])
                .arg(archive)
                .arg("-C")
                .arg(out),
        ),
        _ => {
            let mut plain = archive.to_owned();
            if archive.extension().is_some_and(|e| e == "zst") {
                plain = archive.with_extension("plain");
                run_tool(Command::new("zstd").args(["-dqf", "-o"]).arg(&plain).arg(archive));
            }
            run_tool(Command::new("python3").args(["-c", PYTHON]).arg(&plain).arg(out))
        }
    };
    true
}

/// Removes what a reader does not restore, so that the rest must be equal.
fn seen_by(reader: &str, tree: &BTreeMap<PathBuf, Seen>) -> BTreeMap<PathBuf, Seen> {
    let mut tree = tree.clone();
    for entry in tree.values_mut() {
        match reader {
            "python3" => {
                // It stores times as floating-point numbers, sets none on links, and supports no attributes.
                entry.modified = if entry.kind == "symlink" { (0, 0) } else { (entry.modified.0, 0) };
                entry.xattrs.clear();
                entry.is_sparse = false;
            }
            "bsdtar" => {
                // It adds the fraction of a time before 1970 instead of subtracting it.
                if entry.modified.0 < 0 {
                    entry.modified = (-1, 0);
                }
                // It does not decode the two characters that a keyword cannot hold.
                let decoded = |name: String| name.replace("%3D", "=").replace("%25", "%");
                let xattrs = std::mem::take(&mut entry.xattrs);
                entry.xattrs = xattrs.into_iter().map(|(name, value)| (decoded(name), value)).collect();
            }
            _ => {}
        }
    }
    tree
}

/// Asserts that the rows of the catalog agree with the file system.
fn assert_catalog_agrees(made: &TestArchive, expected: &BTreeMap<PathBuf, Seen>) {
    let mut members = made.records.iter().flat_map(|record| record.new_members());
    let mut previous = None;
    for row in &mut members {
        let path = row.member.path.as_path().strip_prefix("source").unwrap();
        let seen = &expected[path];
        assert!(previous.is_none_or(|previous| previous < &row.member.path), "members are in order");
        previous = Some(&row.member.path);
        if row.member.link_target.is_none() && seen.kind == "file" {
            assert_eq!(row.content_digest, seen.content.map(|hash| *hash.as_bytes()), "{}", path.display());
            assert_eq!(row.member.size, seen.size);
        }
        assert!(row.is_reusable);
        assert_eq!(row.xattr_digest.is_some(), !row.member.xattrs.is_empty());
    }
}

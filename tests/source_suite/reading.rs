//! Reading of a file: content, holes, attributes; and detection of changes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use backup_manager::member::{Span, Xattrs};
use backup_manager::source::{OpenFile, OwnerNames, SourceEntry, Stability};

use crate::support::*;

fn read_all(file: &OpenFile) -> Vec<u8> {
    let mut content = Vec::new();
    let mut buffer = [0; 1000];
    loop {
        match file.read_at(&mut buffer, content.len() as u64).unwrap() {
            0 => return content,
            length => content.extend_from_slice(&buffer[..length]),
        }
    }
}

#[test]
fn content_is_read_from_any_offset() {
    let dir = tree(&[]);
    let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.path().join("f"), &content).unwrap();
    let file = Source::at(dir.path()).find("f").open().unwrap();
    assert_eq!(read_all(&file), content);
    let mut some = [0; 10];
    assert_eq!(file.read_at(&mut some, 399_995).unwrap(), 5);
    assert_eq!(some[..5], content[399_995..]);
    assert_eq!(file.read_at(&mut some, 1 << 40).unwrap(), 0);
    assert_eq!(file.check().unwrap(), Stability::Unchanged);
    assert_eq!(file.stat().size, 400_000);
}

#[test]
fn every_change_of_an_open_file_is_detected() {
    type Act = fn(&Path);
    let append: Act = |path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
    let rewrite: Act = |path| OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"X", 0).unwrap();
    let rewrite_unseen: Act = |path| {
        let before = fs::metadata(path).unwrap().modified().unwrap();
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"X", 0).unwrap();
        file.set_modified(before).unwrap();
    };
    let cut: Act = |path| OpenOptions::new().write(true).open(path).unwrap().set_len(3).unwrap();
    let cut_and_fill: Act = |path| fs::write(path, "0123456789").unwrap();
    let chmod: Act = |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let age_and_grow: Act = |path| {
        let file = OpenOptions::new().append(true).open(path).unwrap();
        (&file).write_all(b"more").unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    let grow_and_chmod: Act = |path| {
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let replace: Act = |path| {
        fs::write(path.with_extension("new"), "abc").unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    };
    let read: Act = |path| drop(fs::read(path).unwrap());
    let cases: [(&str, Act, Stability); 10] = [
        ("nothing but a read", read, Stability::Unchanged),
        ("append", append, Stability::Grew),
        ("rewrite", rewrite, Stability::Changed),
        ("rewrite, time set back", rewrite_unseen, Stability::Changed),
        ("cut", cut, Stability::Changed),
        ("rewritten with the same size", cut_and_fill, Stability::Changed),
        ("mode", chmod, Stability::Changed),
        ("older and longer", age_and_grow, Stability::Changed),
        ("longer with another mode", grow_and_chmod, Stability::Changed),
        ("another file in its place", replace, Stability::Changed),
    ];
    for (what, act, expected) in cases {
        let dir = tree(&[]);
        let path = dir.path().join("f");
        fs::write(&path, "0123456789").unwrap();
        assert!(succeeds("touch", &["-d", "2020-01-01", path.to_str().unwrap()]));
        let mut file = Source::at(dir.path()).find("f").open().unwrap();
        act(&path);
        assert_eq!(file.check().unwrap(), expected, "{what}");
        // The file that was opened is still the one that is read, and it can be read again.
        file.refresh().unwrap();
        assert_eq!(file.check().unwrap(), Stability::Unchanged, "{what}");
        assert_eq!(read_all(&file).len() as u64, file.stat().size, "{what}");
    }
}

/// Reads a file by its spans alone.
fn read_sparse(file: &OpenFile, spans: &[Span]) -> Vec<u8> {
    let mut content = vec![0; file.stat().size as usize];
    let mut end = 0;
    for span in spans {
        assert!(span.length > 0 && span.offset >= end, "{spans:?}");
        end = span.end();
        let data = &mut content[span.offset as usize..end as usize];
        assert_eq!(file.read_at(data, span.offset).unwrap(), data.len());
    }
    content
}

#[test]
fn holes_are_found_and_no_data_is_lost_between_them() {
    let dir = tree(&[]);
    let mebibyte = 1 << 20;
    let cases: [(&str, u64, &[u64]); 5] = [
        ("at the start", 2 * mebibyte, &[mebibyte]),
        ("in the middle and at the end", 8 * mebibyte + 17, &[0, 3 * mebibyte, 5 * mebibyte]),
        ("everywhere", 64 * mebibyte, &[]),
        ("before the last byte", 4 * mebibyte + 1, &[4 * mebibyte]),
        ("short", 100_000, &[0]),
    ];
    for (name, size, writes) in cases {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        for offset in writes {
            file.write_all_at(b"D", *offset).unwrap();
        }
        drop(file);
        let open = Source::at(dir.path()).find(name).open().unwrap();
        let spans = open.data_spans().unwrap().unwrap_or_else(|| panic!("no holes {name}"));
        assert_eq!(spans.len(), writes.len(), "{name}: {spans:?}");
        assert!(spans.iter().all(|span| span.end() <= size));
        assert!(read_sparse(&open, &spans) == fs::read(dir.path().join(name)).unwrap(), "{name}");
    }
    plant(dir.path(), &["dense"]);
    assert_eq!(Source::at(dir.path()).find("dense").open().unwrap().data_spans().unwrap(), None);
    fs::write(dir.path().join("dense"), "").unwrap();
    assert_eq!(Source::at(dir.path()).find("dense").open().unwrap().data_spans().unwrap(), None);
}

#[test]
fn spans_stay_within_the_size_at_opening() {
    let dir = tree(&[]);
    let file = File::create(dir.path().join("f")).unwrap();
    file.set_len(1 << 20).unwrap();
    let open = Source::at(dir.path()).find("f").open().unwrap();
    file.write_all_at(&[7; 100_000], (1 << 20) - 100).unwrap();
    let spans = open.data_spans().unwrap().unwrap();
    assert_eq!(spans.last().map(|span| span.end()), Some(1 << 20));
    file.set_len(10).unwrap();
    assert!(open.data_spans().unwrap().unwrap().is_empty());
}

#[test]
fn files_of_proc_neither_block_nor_report_holes() {
    // A file of size 0 that has content, and a file whose reads block until the kernel has a message.
    for path in ["/proc/self/status", "/proc/kmsg"] {
        let walked = match Source::at(path).try_walk() {
            Ok(walked) => walked,
            Err(error) => {
                skip(&error.to_string());
                continue;
            }
        };
        let file = walked.found[0].open().unwrap();
        assert_eq!((file.stat().size, file.data_spans().unwrap()), (0, None));
        let mut content = [0; 4096];
        for _ in 0..200 {
            // Each call must return.
            match file.read_at(&mut content, 0) {
                Ok(length) => assert!(length > 0 || path == "/proc/kmsg"),
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotSeekable), "{error}");
                    break;
                }
            }
        }
    }
}

#[test]
fn reading_leaves_the_access_time_alone() {
    let dir = tree(&["f", "control", "sub/g"]);
    let atime = |name: &str| fs::metadata(dir.path().join(name)).unwrap().atime();
    for name in ["f", "control", "sub"] {
        assert!(succeeds("touch", &["-a", "-d", "2001-01-01", dir.path().join(name).to_str().unwrap()]));
    }
    let old = atime("f");
    fs::read(dir.path().join("control")).unwrap();
    if atime("control") == old {
        return skip("the file system keeps no access times");
    }
    let source = Source::at(dir.path());
    assert_eq!(read_all(&source.find("f").open().unwrap()), b"f");
    assert_eq!((atime("f"), atime("sub")), (old, old));
}

#[test]
fn a_lease_of_another_program_delays_the_open_and_does_not_fail_it() {
    let dir = tree(&["f"]);
    let script = "import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR)
def give_up(*_):
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, give_up)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.read()";
    let mut holder = Command::new("python3")
        .args(["-c", script, dir.path().join("f").to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line != "held\n" {
        holder.wait().unwrap();
        return skip("the file system grants no leases");
    }
    let file = Source::at(dir.path()).find("f").open();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_eq!(read_all(&file.unwrap()), b"f");
}

/// Compares the attributes, read by path and, if the entry can be opened, by handle.
fn expect_xattrs(entry: &SourceEntry, expected: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let own = |xattrs: &Xattrs| {
        // The security modules of the machine set this one on every file.
        let ours = xattrs.iter().filter(|(name, _)| !name.starts_with(b"security.selinux"));
        ours.map(|(name, value)| (name.to_vec(), value.to_vec())).collect::<Vec<_>>()
    };
    let expected: Vec<_> = expected.clone().into_iter().collect();
    assert_eq!(own(&entry.xattrs().unwrap()), expected, "{}", entry.path);
    if let Ok(file) = entry.open() {
        assert_eq!(own(&file.xattrs().unwrap()), expected, "{}", entry.path);
    }
}

#[test]
fn attributes_of_every_kind_are_read() {
    let dir = tree(&["f", "bare", "sub/g"]);
    let at = |name: &str| dir.path().join(name);
    symlink("f", at("link")).unwrap();
    mkfifo(&at("pipe"));
    if xattr::set(at("f"), "user.probe", b"").is_err() {
        return skip("the file system keeps no extended attributes");
    }
    let mut many = BTreeMap::from([(b"user.probe".to_vec(), Vec::new())]);
    for number in 0..40 {
        // More names and a longer value than fit into the first buffer.
        let name = format!("user.{}.{number}", "n".repeat(30));
        let value = vec![number; if number == 7 { 1500 } else { 3 }];
        xattr::set(at("f"), &name, &value).unwrap();
        many.insert(name.into_bytes(), value);
    }
    let one = BTreeMap::from([(b"user.x".to_vec(), b"\0\xff\n".to_vec())]);
    xattr::set(at("sub"), "user.x", b"\0\xff\n").unwrap();
    xattr::set(dir.path(), "user.x", b"\0\xff\n").unwrap();
    let mut trusted = BTreeMap::new();
    if xattr::set(at("link"), "trusted.t", b"on the link").is_ok() {
        xattr::set(at("pipe"), "trusted.t", b"on the link").unwrap();
        trusted.insert(b"trusted.t".to_vec(), b"on the link".to_vec());
    } else {
        skip("attributes on links and fifos need root");
    }
    let found = Source::at(dir.path()).walk().found;
    let named = |name: &str| found.iter().find(|found| found.path.to_string() == name).unwrap();
    expect_xattrs(named("src"), &one);
    expect_xattrs(named("src/f"), &many);
    expect_xattrs(named("src/sub"), &one);
    expect_xattrs(named("src/bare"), &BTreeMap::new());
    expect_xattrs(named("src/link"), &trusted);
    expect_xattrs(named("src/pipe"), &trusted);
    // The same file as a root of its own, and without attributes at all.
    expect_xattrs(&Source::at(at("f")).walk().found[0], &many);
    expect_xattrs(&Source::at(at("link")).walk().found[0], &many);
}

#[test]
fn access_control_lists_are_attributes() {
    let dir = tree(&["f"]);
    let path = dir.path().join("f");
    if !succeeds("setfacl", &["-m", "u:1234:r", path.to_str().unwrap()]) {
        return skip("setfacl is missing or the file system keeps no access control lists");
    }
    let xattrs = Source::at(dir.path()).find("f").xattrs().unwrap();
    assert_eq!(xattrs.get(b"system.posix_acl_access").map(<[u8]>::len), Some(44));
}

#[test]
fn names_of_owners_are_those_of_the_system() {
    let names = OwnerNames::new();
    for (database, ask) in [("passwd", true), ("group", false)] {
        let output = Command::new("getent").arg(database).output().unwrap().stdout;
        let mut first = BTreeMap::new();
        for line in output.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let fields: Vec<&[u8]> = line.split(|&b| b == b':').collect();
            let id: u32 = String::from_utf8_lossy(fields[2]).parse().unwrap();
            first.entry(id).or_insert(fields[0].to_vec());
        }
        assert_eq!(first.get(&0).map(Vec::as_slice), Some(&b"root"[..]));
        for (id, name) in first {
            let both = std::thread::scope(|scope| {
                let ask = || if ask { names.user(id) } else { names.group(id) };
                let other = scope.spawn(ask);
                (ask(), other.join().unwrap())
            });
            assert_eq!((&*both.0, &*both.1), (&*name, &*name), "{database} {id}");
        }
    }
    assert_eq!((&*names.user(4_000_000_123), &*names.group(4_000_000_123)), (&b""[..], &b""[..]));
}

//! Sources that change while they are archived (I9): nothing hangs, whatever is missing is reported, and the archive is
//! always a whole tar.
//!
//! The pipeline reads the clock after each entry that the walk finds, before it opens any file of a small chunk. These
//! tests change the source at that moment.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backup_manager::cancel::CancelToken;
use backup_manager::clock::{Clock, SystemClock, Timestamp};
use backup_manager::error::{Error, ErrorKind};
use backup_manager::member::{MemberKind, MemberPath};
use backup_manager::progress::{Observer, Problem, ProblemKind, Progress};
use backup_manager::schedule::Compression;

use support::archive::{TestArchive, make, make_with, run_tool, try_make};
use support::nobody::again_as_nobody;

const FORMATS: [Compression; 3] = [Compression::None, Compression::Gzip(1), Compression::Zstd(1)];

/// A clock that calls an action once, when the walk has found `after` entries.
struct ActingClock<'a> {
    system: SystemClock,
    found: AtomicU64,
    after: u64,
    action: Mutex<Option<Box<dyn FnOnce() + Send + 'a>>>,
}

impl<'a> ActingClock<'a> {
    fn after(found: u64, action: impl FnOnce() + Send + 'a) -> Self {
        let action = Mutex::new(Some(Box::new(action) as Box<dyn FnOnce() + Send + 'a>));
        ActingClock { system: SystemClock::new(), found: AtomicU64::new(0), after: found, action }
    }
}

impl Clock for ActingClock<'_> {
    fn now(&self) -> Timestamp {
        if std::thread::current().name() == Some("walk") && self.found.fetch_add(1, Ordering::SeqCst) == self.after {
            let action = self.action.lock().unwrap().take();
            action.into_iter().for_each(|action| action());
        }
        self.system.now()
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic()
    }
}

struct Scene {
    scratch: tempfile::TempDir,
    source: PathBuf,
}

impl Scene {
    /// A source with these files, each holding its own name.
    fn new(files: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let source = scratch.path().join("source");
        for name in files {
            let path = source.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        Scene { scratch, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.source.join(name)
    }

    /// Writes an archive and changes the source when the walk has found `found` entries, including the root.
    fn make_changed(&self, compression: Compression, found: u64, action: impl FnOnce() + Send) -> TestArchive {
        let clock = ActingClock::after(found, action);
        let made = make_with(&self.source, self.scratch.path(), compression, |job| job.clock = &clock);
        assert!(clock.action.lock().unwrap().is_none(), "the source was changed");
        made.verify().unwrap();
        made
    }
}

/// Extracts with GNU tar and returns the content of all files.
fn extracted(made: &TestArchive) -> BTreeMap<String, Vec<u8>> {
    let out = tempfile::tempdir().unwrap();
    run_tool(Command::new("tar").arg("-xpf").arg(&made.path).arg("-C").arg(out.path()));
    let mut found = BTreeMap::new();
    let mut pending = vec![out.path().join("source")];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if stat.is_file() {
            let name = path.strip_prefix(out.path().join("source")).unwrap().to_str().unwrap().to_owned();
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

fn problems(made: &TestArchive) -> Vec<(String, ProblemKind)> {
    let name =
        |path: &[u8]| Path::new(std::str::from_utf8(path).unwrap()).file_name().unwrap().to_str().unwrap().to_owned();
    made.written.problems.iter().map(|problem| (name(&problem.path), problem.kind)).collect()
}

#[test]
fn what_vanishes_after_it_was_listed_is_reported() {
    for compression in FORMATS {
        let scene = Scene::new(&["a", "b", "c", "dir/d"]);
        let made = scene.make_changed(compression, 6, || {
            fs::remove_file(scene.path("b")).unwrap();
            fs::remove_dir_all(scene.path("dir")).unwrap();
        });
        assert_eq!((made.written.losses, made.written.problems_total), (3, 3));
        assert_eq!(problems(&made), ["b", "dir", "d"].map(|name| (name.to_owned(), ProblemKind::Vanished)));
        let found = extracted(&made);
        assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "c"]);
    }
}

#[test]
fn a_file_saved_by_renaming_a_new_one_over_it_is_the_new_one() {
    let scene = Scene::new(&["a", "b"]);
    let made = scene.make_changed(Compression::None, 3, || {
        fs::write(scene.path("new"), "the new a").unwrap();
        fs::rename(scene.path("new"), scene.path("a")).unwrap();
    });
    assert_eq!(made.written.problems, []);
    assert_eq!(extracted(&made)["a"], b"the new a");
}

#[test]
fn what_was_replaced_by_another_kind_is_reported_and_never_opened() {
    let scene = Scene::new(&["device", "fifo", "folder", "link", "socket", "z"]);
    let secret = scene.scratch.path().join("secret");
    fs::write(&secret, "not of the source").unwrap();
    let made = scene.make_changed(Compression::None, 7, || {
        for name in ["device", "fifo", "folder", "link", "socket"] {
            fs::remove_file(scene.path(name)).unwrap();
        }
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, scene.path("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        fs::create_dir(scene.path("folder")).unwrap();
        symlink(&secret, scene.path("link")).unwrap();
        UnixListener::bind(scene.path("socket")).unwrap();
    });
    let replaced = |name: &str| (name.to_owned(), ProblemKind::Replaced);
    let gone = ("device".to_owned(), ProblemKind::Vanished);
    assert_eq!(problems(&made), [gone, replaced("fifo"), replaced("folder"), replaced("link"), replaced("socket")]);
    assert_eq!(extracted(&made).into_keys().collect::<Vec<_>>(), ["z"]);
}

#[test]
fn a_folder_replaced_by_a_link_is_not_followed() {
    let scene = Scene::new(&["dir/a", "dir/b", "z"]);
    let outside = scene.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a"), "not of the source").unwrap();
    let made = scene.make_changed(Compression::None, 5, || {
        fs::rename(scene.path("dir"), scene.scratch.path().join("moved")).unwrap();
        symlink(&outside, scene.path("dir")).unwrap();
    });
    let found = extracted(&made);
    for name in ["dir/a", "dir/b"] {
        match found.get(name) {
            Some(content) => assert_eq!(content, name.as_bytes(), "the content is that of the folder that was listed"),
            None => assert!(problems(&made).iter().any(|(path, _)| name.ends_with(path)), "{name} is reported"),
        }
    }
}

#[test]
fn a_file_that_grew_after_it_was_listed_is_archived_whole() {
    const MIB: u64 = 1 << 20;
    for compression in FORMATS {
        for size in [4 * MIB, 4 * MIB + 1, 9 * MIB, 16 * MIB + 1] {
            let scene = Scene::new(&["a", "b", "c"]);
            let content: Vec<u8> = (0..size).map(|i| ((i * i) >> 9) as u8).collect();
            let made = scene.make_changed(compression, 4, || fs::write(scene.path("b"), &content).unwrap());
            assert_eq!(made.written.problems, []);
            let row =
                made.records.iter().flat_map(|r| r.new_members()).find(|row| row.member.path.as_bytes() == b"source/b");
            assert_eq!(row.unwrap().content_digest, Some(*blake3::hash(&content).as_bytes()));
            let found = extracted(&made);
            assert!(found["b"] == content && found["c"] == b"c", "{size} {compression}");
        }
    }
}

fn linked(made: &TestArchive) -> Vec<(String, MemberKind, Option<String>)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let rows = made.records.iter().flat_map(|record| record.new_members()).map(|row| &row.member);
    rows.filter(|member| member.kind != MemberKind::Folder)
        .map(|member| (member.path.to_string(), member.kind, member.link_target.as_deref().map(text)))
        .collect()
}

#[test]
fn the_first_name_in_the_archive_carries_the_data_of_hard_links() {
    for size in [10, 5 << 20, 20 << 20] {
        let scene = Scene::new(&[]);
        fs::create_dir(&scene.source).unwrap();
        let content: Vec<u8> = (0..size).map(|i| (i / 3) as u8).collect();
        fs::write(scene.path("a"), &content).unwrap();
        for name in ["b", "c", "d"] {
            fs::hard_link(scene.path("a"), scene.path(name)).unwrap();
        }
        let made = make(&scene.source, scene.scratch.path(), Compression::None);
        let link =
            |name: &str, to: &str| (format!("source/{name}"), MemberKind::HardLink, Some(format!("source/{to}")));
        let file = |name: &str| (format!("source/{name}"), MemberKind::File, None);
        assert_eq!(linked(&made), [file("a"), link("b", "a"), link("c", "a"), link("d", "a")]);
        assert_eq!((made.written.extent.files, made.written.extent.content_bytes), (4, size));
        // The first two vanish before they are opened, if they are opened only after all were listed.
        if size == 10 {
            let made = scene.make_changed(Compression::None, 5, || {
                fs::remove_file(scene.path("a")).unwrap();
                fs::remove_file(scene.path("b")).unwrap();
            });
            assert_eq!(linked(&made), [file("c"), link("d", "c")]);
            assert_eq!(made.written.losses, 2);
            assert_eq!(extracted(&made)["d"], content);
        }
    }
}

#[test]
fn names_of_symbolic_links_are_no_hard_links() {
    let scene = Scene::new(&["a"]);
    symlink("a", scene.path("b")).unwrap();
    fs::hard_link(scene.path("b"), scene.path("c")).unwrap();
    let made = make(&scene.source, scene.scratch.path(), Compression::None);
    let symlink = |name: &str| (format!("source/{name}"), MemberKind::Symlink, Some("a".to_owned()));
    assert_eq!(linked(&made)[1..], [symlink("b"), symlink("c")]);
}

#[test]
fn a_name_that_became_another_file_does_not_carry_the_data_of_links() {
    let scene = Scene::new(&["a"]);
    fs::hard_link(scene.path("a"), scene.path("b")).unwrap();
    fs::hard_link(scene.path("a"), scene.path("c")).unwrap();
    let made = scene.make_changed(Compression::None, 4, || {
        fs::write(scene.path("new"), "another").unwrap();
        fs::rename(scene.path("new"), scene.path("a")).unwrap();
    });
    let found = extracted(&made);
    assert_eq!((&found["a"][..], &found["b"][..], &found["c"][..]), (&b"another"[..], &b"a"[..], &b"a"[..]));
    assert_eq!(made.written.problems, []);
}

#[test]
fn hard_links_are_right_with_many_links_over_many_chunks() {
    let scene = Scene::new(&[]);
    fs::create_dir(&scene.source).unwrap();
    for file in 0..300 {
        fs::write(scene.path(&format!("a{file:03}")), format!("{file}").repeat(2000)).unwrap();
        fs::hard_link(scene.path(&format!("a{file:03}")), scene.path(&format!("b{file:03}"))).unwrap();
        fs::hard_link(scene.path(&format!("a{file:03}")), scene.path(&format!("c{file:03}"))).unwrap();
    }
    // Every third of the first names is removed after the walk has passed some of them.
    let made = scene.make_changed(Compression::None, 150, || {
        (0..300).step_by(3).for_each(|file| fs::remove_file(scene.path(&format!("a{file:03}"))).unwrap());
    });
    let found = extracted(&made);
    for file in 0..300 {
        for name in ["b", "c"] {
            assert_eq!(found[&format!("{name}{file:03}")], format!("{file}").repeat(2000).into_bytes());
        }
    }
}

#[test]
fn files_whose_stated_size_is_wrong_are_archived_whole() {
    let (proc, sys) = (Path::new("/proc/sys/kernel/random"), Path::new("/sys/kernel/mm/transparent_hugepage"));
    let scratch = tempfile::tempdir().unwrap();
    for source in [proc, sys].into_iter().filter(|source| source.exists()) {
        let made = make(source, scratch.path(), Compression::None);
        made.verify().unwrap();
        let out = scratch.path().join("out");
        fs::create_dir(&out).unwrap();
        run_tool(Command::new("tar").arg("-xf").arg(&made.path).arg("-C").arg(&out));
        let name = source.file_name().unwrap();
        for entry in fs::read_dir(source).unwrap().map(Result::unwrap).filter(|e| e.file_type().unwrap().is_file()) {
            let Ok(content) = fs::read(entry.path()) else { continue };
            // These two differ at each reading.
            if !["uuid", "entropy_avail"].contains(&entry.file_name().to_str().unwrap()) {
                let path = entry.path();
                let found = fs::read(out.join(name).join(entry.file_name())).ok();
                assert_eq!(found, Some(content), "{}: {:?}", path.display(), made.written.problems);
            }
        }
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_cannot_be_read_is_reported_and_the_rest_is_archived() {
    let scene = Scene::new(&["closed/a", "folder/b", "open"]);
    fs::set_permissions(scene.path("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(scene.path("folder/b"), fs::Permissions::from_mode(0o000)).unwrap();
    if again_as_nobody(&["--exact", "what_cannot_be_read_is_reported_and_the_rest_is_archived"]) {
        return;
    }
    let made = make(&scene.source, scene.scratch.path(), Compression::None);
    made.verify().unwrap();
    let unreadable = |name: &str| (name.to_owned(), ProblemKind::Unreadable);
    assert_eq!(problems(&made), [unreadable("closed"), unreadable("b")]);
    fs::set_permissions(scene.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    let names: Vec<_> = linked(&made).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["source/open"]);
}

#[test]
fn a_missing_source_is_an_error_and_an_odd_one_an_archive() {
    let scene = Scene::new(&["only"]);
    let missing = scene.path("nothing");
    let error = try_make(&missing, scene.scratch.path(), Compression::None, |_| {}, &mut |_| Ok(())).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("nothing"), "{error}");
    let names = |made: &TestArchive| {
        made.records.iter().flat_map(|r| r.new_members()).map(|row| row.member.path.clone()).collect::<Vec<_>>()
    };
    // A file, an empty folder, a link to a folder.
    let made = make(&scene.path("only"), scene.scratch.path(), Compression::Gzip(1));
    made.verify().unwrap();
    assert_eq!(names(&made), [MemberPath::parse(b"only").unwrap()]);
    let link = scene.scratch.path().join("link");
    symlink(&scene.source, &link).unwrap();
    let made = make(&link, scene.scratch.path(), Compression::Zstd(1));
    assert_eq!((made.written.extent.members, made.written.folders), (2, 1));
    fs::remove_file(scene.path("only")).unwrap();
    let made = make(&scene.source, scene.scratch.path(), Compression::Zstd(1));
    made.verify().unwrap();
    assert_eq!((made.written.extent.members, made.written.extent.files), (1, 0));
}

#[test]
fn our_own_files_and_sockets_are_left_out_and_noted() {
    let scene = Scene::new(&["a", "backups/old.tar", "backup.db"]);
    let _listener = UnixListener::bind(scene.path("socket")).unwrap();
    let own_paths = [scene.path("backups"), scene.path("backup.db")];
    let made = make_with(&scene.source, scene.scratch.path(), Compression::None, |job| job.own_paths = &own_paths);
    assert_eq!(extracted(&made).into_keys().collect::<Vec<_>>(), ["a"]);
    let notes = made.written.notes.join("\n");
    assert!(notes.contains("backups") && notes.contains("backup.db") && notes.contains("socket"), "{notes}");
    assert_eq!(made.written.problems, []);
}

#[test]
fn a_cancelled_archive_ends_at_once_wherever_it_is() {
    let scene = Scene::new(&[]);
    (0..40).for_each(|i| fs::create_dir_all(scene.path(&format!("{i}"))).unwrap());
    (0..2000).for_each(|i| fs::write(scene.path(&format!("{}/{i}", i % 40)), vec![1; 3000]).unwrap());
    fs::write(scene.path("large"), vec![1; 30 << 20]).unwrap();
    for compression in FORMATS {
        for found in [0, 1, 2, 500, 1500, 2041] {
            let cancel = CancelToken::new();
            let clock = ActingClock::after(found, || cancel.cancel());
            let (source, folder) = (&scene.source, scene.scratch.path());
            let result =
                try_make(source, folder, compression, |job| (job.clock, job.cancel) = (&clock, &cancel), &mut |_| {
                    Ok(())
                });
            assert_eq!(result.err().unwrap().kind(), ErrorKind::Interrupted, "{compression} after {found}");
        }
    }
    assert_eq!(fs::read_dir(scene.scratch.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_catalog_that_fails_ends_the_archive_with_its_error() {
    let scene = Scene::new(&[]);
    fs::create_dir(&scene.source).unwrap();
    (0..3000).for_each(|i| fs::write(scene.path(&format!("{i}")), vec![1; 300]).unwrap());
    for failing in 0..2 {
        let mut calls = 0;
        let mut catalog = |_: &[_]| {
            calls += 1;
            if calls > failing { Err(Error::new(ErrorKind::Fenced, "the claim is lost")) } else { Ok(()) }
        };
        let result = try_make(&scene.source, scene.scratch.path(), Compression::None, |_| {}, &mut catalog);
        assert_eq!(result.err().unwrap().kind(), ErrorKind::Fenced);
    }
}

/// An observer that panics at the first problem, in the thread that reports it.
struct Panicking;

impl Observer for Panicking {
    fn progress(&self, _: &Progress) {}
    fn problem(&self, problem: &Problem) {
        panic!("the test wants it: {}", problem.reason)
    }
    fn note(&self, _: &str) {}
}

#[test]
fn a_thread_that_panics_ends_the_archive() {
    let scene = Scene::new(&["a", "b", "c"]);
    (0..500).for_each(|i| fs::write(scene.path(&format!("d{i}")), vec![1; 20_000]).unwrap());
    let clock = ActingClock::after(3, || fs::remove_file(scene.path("b")).unwrap());
    let (source, folder) = (&scene.source, scene.scratch.path());
    let result = try_make(
        source,
        folder,
        Compression::None,
        |job| (job.clock, job.observer) = (&clock, &Panicking),
        &mut |_| Ok(()),
    );
    let error = result.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_full_disk_is_reported_and_no_temporary_file_left() {
    let scene = Scene::new(&[]);
    fs::create_dir(&scene.source).unwrap();
    let noise: Vec<u8> = (0..3_000_000u64).map(|i| ((i * i) >> 11) as u8).collect();
    (0..10).for_each(|i| fs::write(scene.path(&format!("{i}")), &noise).unwrap());
    let disk = scene.scratch.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let results = FORMATS.map(|format| try_make(&scene.source, &disk, format, |_| {}, &mut |_| Ok(())).err());
    let left = fs::read_dir(&disk).unwrap().count();
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    for error in results {
        assert_eq!(error.unwrap().kind(), ErrorKind::DiskFull);
    }
    assert_eq!(left, 0);
}

#[test]
fn a_tree_4000_levels_deep_and_a_wide_folder_are_archived() {
    let scene = Scene::new(&[]);
    fs::create_dir(&scene.source).unwrap();
    // A path that deep is too long for a system call, so folders are created from inside.
    let script = "import os, sys\nos.chdir(sys.argv[1])\nfor i in range(4000):\n    os.mkdir('d' * (1 + i % 3))\n    \
                  os.chdir('d' * (1 + i % 3))\nopen('deepest', 'w').write('here')";
    run_tool(Command::new("python3").args(["-c", script]).arg(&scene.source));
    (0..5000).for_each(|i| fs::write(scene.path(&format!("f{i}")), "").unwrap());
    for compression in [Compression::None, Compression::Zstd(1)] {
        let made = make(&scene.source, scene.scratch.path(), compression);
        assert_eq!((made.written.extent.members, made.written.problems_total), (9002, 0));
        made.verify().unwrap();
        let out = run_tool(Command::new("tar").arg("-tf").arg(&made.path)).stdout;
        assert_eq!(out.split(|&b| b == b'\n').count() - 1, 9002);
    }
    run_tool(Command::new("rm").arg("-rf").arg(&scene.source));
    assert_eq!(fs::metadata(scene.scratch.path()).unwrap().nlink(), 2);
}

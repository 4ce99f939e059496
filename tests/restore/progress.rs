//! How far a restore has come, and how often it reads an archive.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use backup_manager::browse::{OpenArchive, Selection, read_file};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::{ManualClock, Timestamp};
use backup_manager::error::ErrorKind;
use backup_manager::member::MemberPath;
use backup_manager::progress::{Observer, Problem, Progress};
use backup_manager::restore::{self, Action, Options, Overwrite, Report, RestoreContext};

use crate::tar_file::TarFile;

/// Records all progress: time passes with each report, so that the next is due at once.
struct Recorder {
    clock: ManualClock,
    seen: Mutex<Vec<Progress>>,
}

impl Observer for Recorder {
    fn progress(&self, progress: &Progress) {
        self.seen.lock().unwrap().push(*progress);
        self.clock.advance(Duration::from_secs(1));
    }

    fn problem(&self, _: &Problem) {}
    fn note(&self, _: &str) {}
}

/// Restores `file`, and returns the report and each progress.
fn restore_recorded(file: &Path, options: &Options) -> (Report, Vec<Progress>) {
    let recorder = Recorder { clock: ManualClock::at(Timestamp::from_millis(0)), seen: Mutex::default() };
    let mut on_action = |_: Action, _: &MemberPath| recorder.clock.advance(Duration::from_secs(1));
    let mut context = RestoreContext {
        clock: &recorder.clock,
        observer: &recorder,
        cancel: &CancelToken::new(),
        on_action: &mut on_action,
    };
    let archive = OpenArchive::from_file(file).unwrap();
    let report = restore::restore(&archive, &Selection::everything().unwrap(), options, &mut context).unwrap();
    (report, recorder.seen.into_inner().unwrap())
}

#[test]
fn progress_is_reported_within_a_large_file_and_counts_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("a.tar"), folder.path().join("to"));
    let size = 5 << 20;
    fs::write(&file, TarFile::default().file("large", &vec![7; size]).file("small", b"x").end()).unwrap();
    let options = Options { sync: false, threads: 1, overwrite: Overwrite::IfChanged, ..Options::to(&to) };
    let (_, seen) = restore_recorded(&file, &options);
    let within = seen.iter().filter(|p| p.members == 0 && p.bytes > 0 && p.bytes < size as u64).count();
    assert!(within > 5, "{seen:?}");
    assert!(seen.is_sorted_by_key(|progress| progress.bytes), "{seen:?}");
    // What exists already is done, too.
    let (report, seen) = restore_recorded(&file, &options);
    assert_eq!((report.unchanged, report.extent.members), (2, 0));
    assert_eq!(seen.last().map(|progress| (progress.members, progress.bytes)), Some((2, size as u64 + 1)), "{seen:?}");
}

#[test]
fn links_in_a_ring_do_not_make_a_restore_read_the_archive_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("a.tar"), folder.path().join("to"));
    let head = TarFile::default().hard_link("a", "a").hard_link("b", "a").file("../evil", b"evil");
    let tar = (0..50).fold(head, |tar, number| tar.file(&format!("{number}"), b"content"));
    fs::write(&file, tar.bytes(&[b'x'; 512]).end()).unwrap();
    let (report, seen) = restore_recorded(&file, &Options { sync: false, ..Options::to(&to) });
    // One report for each member and problem: 54 of them in each pass.
    assert!(seen.len() <= 2 * 54 + 2, "the archive was read {} times", seen.len() / 54);
    let refused: Vec<_> = report.refused.list.iter().map(|(path, _)| String::from_utf8_lossy(path)).collect();
    assert_eq!((refused, report.damaged.count), (vec!["a".into(), "../evil".into(), "b".into()], 1), "{report:?}");
    let archive = OpenArchive::from_file(&file).unwrap();
    let path = archive.member_path(Path::new("b")).unwrap();
    assert_eq!(read_file(&archive, &path, &mut |_| Ok(())).unwrap_err().kind(), ErrorKind::Damage);
}

//! The archives of a series in segments, made by the engine with a database, read back by the lines of shell in their
//! indexes and by GNU tar.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backup_manager::archive::buffer::Buffer;
use backup_manager::archive::codec::Decoder;
use backup_manager::archive::index::Index;
use backup_manager::archive::reader::ArchiveReader;
use backup_manager::archive_folder;
use backup_manager::backup::{RunContext, Runner};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::{Clock, ManualClock, Timestamp};
use backup_manager::home::{Home, HomeOptions};
use backup_manager::hooks::Starter;
use backup_manager::liveness::Worker;
use backup_manager::maintenance::compaction::{CompactionContext, compact_segments};
use backup_manager::maintenance::verify::verify_archive;
use backup_manager::schedule::{Cadence, Compression, Layout, Reuse, Schedule, ScheduleName};
use backup_manager::store::{
    Access, Archive, Bootstrap, ClaimNow, Health, Role, RunRequest, ScheduleRow, Store, Watermark, WorkerRow,
};

use crate::support::archive::{Silent, run_tool};
use crate::support::random::Random;

/// A home with a schedule of archives in segments.
pub struct Segmented {
    _dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    runner: Runner,
    row: ScheduleRow,
    /// The archives that were not deleted, each with the digest of its tar.
    archives: Vec<(Archive, blake3::Hash)>,
}

impl Segmented {
    pub fn new(dir: tempfile::TempDir, source: &Path, compression: Compression, now: Timestamp) -> Segmented {
        let clock = Arc::new(ManualClock::at(now));
        let places = HomeOptions { home: Some(dir.path().to_owned()), ..HomeOptions::default() };
        let home = Arc::new(Home::locate(&places, dir.path()).unwrap());
        let bootstrap = Bootstrap { access: Access::Create, file_mode: 0o600, folder_mode: 0o700, notice: |_| () };
        let store = Store::open(home.db(), &bootstrap).unwrap();
        let (name, cadence) = (ScheduleName::parse("Büro 2").unwrap(), Cadence::parse_daily("01:00").unwrap());
        let schedule = Schedule {
            layout: Layout::Segmented,
            compression,
            reuse: Reuse { trust_times: true, ..Reuse::default() },
            ..Schedule::new(name, source.as_os_str().as_encoded_bytes().to_vec(), cadence)
        };
        let watermark = Watermark::starting(&schedule, chrono_tz::Tz::UTC, now);
        let created = store.create_schedules(&[(schedule, watermark)], now).unwrap();
        let row = store.schedule(created[0].0).unwrap();
        let worker = Worker::register(&home.workers(), 0o700, now).unwrap();
        let worker_row = WorkerRow {
            uuid: worker.uuid(),
            role: Role::Command,
            pid: std::process::id(),
            host: "here".to_owned(),
            started_at: now,
            stop_requested: None,
        };
        store.add_worker(worker_row.uuid, worker_row.role, worker_row.pid, &worker_row.host, now).unwrap();
        let runner = Runner {
            home,
            store,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            worker: Arc::new(worker),
            row: Arc::new(worker_row),
            threads: 2,
            children: Starter::new().unwrap(),
        };
        Segmented { _dir: dir, clock, runner, row, archives: Vec::new() }
    }

    /// Makes an archive, and compares its tar without the global header with `expected`. Returns its index.
    pub fn run(&mut self, now: Timestamp, reread: bool, expected: &[u8], what: &str) -> PathBuf {
        self.clock.set(now);
        let request = RunRequest { verify: true, reread };
        let (claimed, intent) = self.store().claim_now(self.row.id, request, &self.runner.row, now).unwrap();
        let ClaimNow::Claimed(claim) = claimed else { panic!("{what}: {claimed:?}") };
        let context = RunContext { cancel: &CancelToken::new(), observer: &Silent, is_foreground: true };
        let ended = self.runner.execute(claim, &intent.unwrap(), &context).unwrap();
        assert!(ended.error.is_none(), "{what}: {:?}", ended.error);
        let archive = self.store().archive(ended.run).unwrap().unwrap();
        let index = self.runner.home.backups().join(&archive.file_name);
        let found = stream(&index);
        if found != expected {
            let at = found.iter().zip(expected).position(|(a, b)| a != b);
            panic!("{what}: {} and {} bytes that differ at {at:?}", found.len(), expected.len());
        }
        let ranges = Index::open(&index).unwrap().ranges().count() as u64;
        assert!(ranges <= Index::max_ranges(archive.size), "{what}: {ranges} ranges");
        self.archives.push((archive, blake3::hash(&found)));
        index
    }

    /// Removes one of the archives, and all that no other one refers to. Then moves what is left of segments that are
    /// used little; returns from how many.
    pub fn delete_one(&mut self, random: &mut Random) -> u64 {
        let at = random.below(self.archives.len() as u64) as usize;
        let (archive, _) = self.archives.remove(at);
        assert_eq!(self.store().mark_deleting(&[archive.run], &[]).unwrap(), 1);
        archive_folder::finish_deletions(&self.runner.home, self.store()).unwrap();
        let (now, cancel) = (self.clock.now(), &CancelToken::new());
        let context = CompactionContext {
            home: &self.runner.home,
            store: self.store(),
            now,
            cancel,
            warn: &|what| panic!("{what}"),
        };
        compact_segments(&context, &self.row).unwrap().segments
    }

    /// Asserts that all archives which were not deleted are still what they were.
    pub fn check_all(&self, what: &str) {
        for (archive, digest) in &self.archives {
            let index = self.runner.home.backups().join(&archive.file_name);
            assert!(blake3::hash(&stream(&index)) == *digest, "{what}: @{} changed", archive.run);
            let cancel = CancelToken::new();
            let found = verify_archive(&self.runner.home, self.store(), archive, 2, &cancel, self.clock.now()).unwrap();
            assert_eq!(found.health, Health::Good, "{what}: @{}", archive.run);
        }
    }

    /// Extracts an archive into `target` as its index says, after the check that it demands.
    pub fn extract(&self, index: &Path, target: &Path) {
        let text = fs::read_to_string(index).unwrap();
        let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap().trim_start_matches("# ");
        assert_eq!(format!("cksum {}", shell(index, line("| cksum")).trim_end()), line("# cksum "));
        let options = "--xattrs --xattrs-include=* --numeric-owner --warning=no-timestamp -p";
        shell(index, &format!("set -f; {} {options} -C {}", line("| tar "), target.display()));
    }

    fn store(&self) -> &Store {
        &self.runner.store
    }
}

/// Runs a line of shell in the folder of an index.
fn shell(index: &Path, line: &str) -> String {
    let folder = index.parent().unwrap();
    String::from_utf8(run_tool(Command::new("sh").arg("-c").arg(line).current_dir(folder)).stdout).unwrap()
}

/// Returns the tar of an archive without its first chunk, the global header.
fn stream(index: &Path) -> Vec<u8> {
    let reader = ArchiveReader::open(index).unwrap();
    let trailer = reader.trailer().unwrap().unwrap();
    let mut decoder = Decoder::new(reader.codec()).unwrap();
    let (mut stored, mut content) = (Buffer::new(), Buffer::new());
    for chunk in trailer.entries().skip(1) {
        let chunk = chunk.unwrap();
        stored.clear();
        reader.read_stored(chunk.offset, chunk.stored_length, &mut stored).unwrap();
        decoder.decode(&stored, chunk.content_length, &mut content).unwrap();
    }
    content.to_vec()
}

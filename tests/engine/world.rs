//! One database, a clock that only tests advance, and as many processes as a test needs: each is a worker with a
//! liveness lock of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_manager::backup::Runner;
use backup_manager::clock::{Clock, ManualClock, Timestamp};
use backup_manager::home::{Home, HomeOptions};
use backup_manager::liveness::Worker;
use backup_manager::schedule::{Cadence, Schedule, ScheduleName};
use backup_manager::service::{Options, Service};
use backup_manager::store::{
    Access, Bootstrap, Claim, HistoryFilter, Intent, Role, Run, ScheduleRow, Store, Watermark, WorkerRow,
};
use chrono_tz::Tz;

/// 2026-11-23T00:00:00Z, a Monday.
pub const MIDNIGHT: Timestamp = Timestamp::from_millis(1_795_392_000_000);
pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(86_400);

pub struct World {
    pub dir: tempfile::TempDir,
    pub home: Arc<Home>,
    pub store: Store,
    pub clock: Arc<ManualClock>,
}

impl World {
    pub fn new() -> World {
        World::within(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn within(dir: tempfile::TempDir) -> World {
        let places = HomeOptions { home: Some(dir.path().to_owned()), ..HomeOptions::default() };
        let home = Arc::new(Home::locate(&places, dir.path()).expect("a home"));
        let bootstrap = Bootstrap { access: Access::Create, file_mode: 0o600, folder_mode: 0o700, notice: |_| () };
        let store = Store::open(home.db(), &bootstrap).expect("a new database");
        World { dir, home, store, clock: Arc::new(ManualClock::at(MIDNIGHT)) }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Creates a source with one file, and a schedule for it: daily, or by a cron expression.
    pub fn schedule(&self, name: &str, at: &str) -> ScheduleRow {
        let source = self.path(name);
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("file.txt"), format!("content of {name}\n")).unwrap();
        self.add(Schedule::new(
            ScheduleName::parse(name).unwrap(),
            name.as_bytes().to_owned(),
            if at.contains(' ') { Cadence::parse_cron(at).unwrap() } else { Cadence::parse_daily(at).unwrap() },
        ))
    }

    pub fn add(&self, schedule: Schedule) -> ScheduleRow {
        let now = self.clock.now();
        let watermark = Watermark::starting(&schedule, Tz::UTC, now);
        let created = self.store.create_schedules(&[(schedule, watermark)], now).unwrap();
        self.store.schedule(created[0].0).unwrap()
    }

    /// Starts a process; dropping it has the effect of a kill.
    pub fn process(&self, role: Role) -> Runner {
        let now = self.clock.now();
        let worker = Worker::register(&self.home.workers(), 0o700, now).unwrap();
        let row = WorkerRow {
            uuid: worker.uuid(),
            role,
            pid: std::process::id(),
            host: "here".to_owned(),
            started_at: now,
            stop_requested: None,
        };
        if role == Role::Command {
            self.store.add_worker(row.uuid, row.role, row.pid, &row.host, now).unwrap();
        }
        Runner {
            home: Arc::clone(&self.home),
            store: self.store.clone(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            worker: Arc::new(worker),
            row: Arc::new(row),
            threads: 2,
        }
    }

    pub fn service(&self, join: bool) -> Service {
        self.service_in(Tz::UTC, join)
    }

    pub fn service_following(&self, file: PathBuf) -> Service {
        let options = Options { import: Some(file), ..self.options(Tz::UTC) };
        Service::register(self.process(Role::Service), options, false).unwrap()
    }

    pub fn service_in(&self, zone: Tz, join: bool) -> Service {
        Service::register(self.process(Role::Service), self.options(zone), join).unwrap()
    }

    fn options(&self, zone: Tz) -> Options {
        Options { workers: 1, grace: MINUTE, zone, import: None, maintenance: Default::default(), scratch: None }
    }

    pub fn claim(&self, runner: &Runner) -> (Claim, Intent) {
        self.store.claim_next(&runner.row, self.clock.now()).unwrap().expect("a queued run")
    }

    /// Returns all runs, oldest first.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = self.store.history(&HistoryFilter::default()).unwrap();
        runs.reverse();
        runs
    }

    /// Returns the sorted names of the regular files below the archive folder, without copies of the database.
    pub fn archive_files(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.home.backups().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let kind = entry.file_type().unwrap();
                if entry.file_name() == ".database" {
                    continue;
                }
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    names.push(relative(self.home.backups(), &entry.path()));
                }
            }
        }
        names.retain(|name| name != ".backup-manager");
        names.sort();
        names
    }
}

fn relative(folder: &Path, path: &Path) -> String {
    path.strip_prefix(folder).unwrap().to_string_lossy().into_owned()
}

//! One database, a clock that only tests advance, and as many processes as a test needs: each is a worker with a
//! liveness lock of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backup_manager::backup::Runner;
use backup_manager::clock::{Clock, ManualClock, Timestamp};
use backup_manager::home::{Home, HomeOptions};
use backup_manager::hooks::Starter;
use backup_manager::liveness::Worker;
use backup_manager::store::{Access, Bootstrap, HistoryFilter, Role, Run, Store, WorkerRow};

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
            children: Starter::new().unwrap(),
        }
    }

    /// Returns all runs, oldest first.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = self.store.history(&HistoryFilter::default()).unwrap();
        runs.reverse();
        runs
    }
}

//! What the tests of the engine do in a world: schedules of small sources, services, claims.

#[path = "../support/world.rs"]
mod shared;

use std::fs;
use std::path::{Path, PathBuf};

use backup_manager::backup::Runner;
use backup_manager::clock::Clock;
use backup_manager::schedule::{Cadence, Schedule, ScheduleName};
use backup_manager::service::{Options, Service};
use backup_manager::store::{Claim, Intent, Role, ScheduleRow, Watermark};
use chrono_tz::Tz;

pub use shared::{DAY, HOUR, MIDNIGHT, MINUTE, World};

impl World {
    pub fn new() -> World {
        World::within(tempfile::tempdir().expect("a temporary folder"))
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

    pub fn service(&self, join: bool) -> Service {
        self.service_in(Tz::UTC, join)
    }

    pub fn service_following(&self, file: PathBuf) -> Service {
        let options = Options { import: Some(file), ..self.options(Tz::UTC) };
        Service::register(self.process(Role::Service), options, false).unwrap()
    }

    pub fn service_with_settings(&self, config: PathBuf, import: Option<PathBuf>) -> Service {
        let options = Options { import, config: Some(config), ..self.options(Tz::UTC) };
        Service::register(self.process(Role::Service), options, false).unwrap()
    }

    pub fn service_in(&self, zone: Tz, join: bool) -> Service {
        Service::register(self.process(Role::Service), self.options(zone), join).unwrap()
    }

    fn options(&self, zone: Tz) -> Options {
        Options {
            workers: 1,
            grace: MINUTE,
            zone,
            import: None,
            config: None,
            maintenance: Default::default(),
            scratch: None,
        }
    }

    pub fn claim(&self, runner: &Runner) -> (Claim, Intent) {
        self.store.claim_next(&runner.row, self.clock.now()).unwrap().expect("a queued run")
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

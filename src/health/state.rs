//! The state of the home and of its schedules: what `status`, metrics and notifications report.
//!
//! The facts are read here, and what is wrong with them is decided by the pure functions beside this file.

use chrono_tz::Tz;

use super::service_problems;
use super::{LiveService, ScheduleFacts, ScheduleProblem, ServiceProblem, copy_problem, schedule_problems};
use crate::approval;
use crate::archive_folder;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::liveness::{self, RunHeartbeat};
use crate::store::{Archive, Drill, Duty, Role, Run, ScheduleRow, Store, Task, WorkerRow};

/// Something wrong with the home as a whole.
#[derive(Debug)]
pub enum HomeProblem {
    /// With the services, or with the copies of the database that they make.
    Service(ServiceProblem),
    /// The database cannot be written.
    Database(Error),
    /// The archive folder does not exist, is not ours or not writable, or holds what the database does not know.
    ArchiveFolder(Error),
}

/// The live services, and what is wrong with them, the database or the archive folder.
#[derive(Debug)]
pub struct HomeState {
    /// Oldest first.
    pub services: Vec<LiveService>,
    /// Always in the same order.
    pub problems: Vec<HomeProblem>,
    /// What runs began and is still to be undone, and nobody works on; in the order in which it was planned.
    pub open_duties: Vec<Duty>,
}

impl HomeState {
    /// Reads heartbeats, database and archive folder.
    pub fn read(home: &Home, store: &Store, now: Timestamp) -> Result<HomeState> {
        let folder = home.workers();
        let services: Vec<LiveService> = live_services(home, store)?
            .into_iter()
            .map(|row| {
                let heartbeat = liveness::read_heartbeat(&folder, &row.uuid);
                (row, heartbeat)
            })
            .collect();
        let mut problems: Vec<_> = service_problems(&services, now).into_iter().map(HomeProblem::Service).collect();
        problems.extend(store.check_writable().err().map(HomeProblem::Database));
        if let Err(error) = archive_folder::inspect(home, store) {
            problems.push(HomeProblem::ArchiveFolder(error));
        } else if let Some(error) = archive_folder::find_unknown_archives(home, store)?.error(home) {
            problems.push(HomeProblem::ArchiveFolder(error));
        }
        let unreadable = archive_folder::find_unreadable_indexes(home, store)?.into_iter();
        problems.extend(unreadable.map(|index| HomeProblem::ArchiveFolder(index.into_error(home))));
        let copy = store.task_state(Task::Copy)?;
        problems.extend(copy_problem(&services, copy, now).map(HomeProblem::Service));
        let mut open_duties = store.open_duties()?;
        open_duties.retain(|duty| !duty.worker.is_some_and(|worker| liveness::is_alive(&folder, &worker)));
        Ok(HomeState { services, problems, open_duties })
    }
}

/// Returns the live services of the database, oldest first.
pub fn live_services(home: &Home, store: &Store) -> Result<Vec<WorkerRow>> {
    let workers = home.workers();
    let mut rows = store.workers()?;
    rows.retain(|row| row.role == Role::Service && liveness::is_alive(&workers, &row.uuid));
    Ok(rows)
}

/// The state of one schedule.
#[derive(Debug)]
pub struct ScheduleState {
    /// The schedule.
    pub row: ScheduleRow,
    /// The zone of its cadence.
    pub zone: Tz,
    /// The run that ended last.
    pub last: Option<Run>,
    /// The newest good archive.
    pub newest: Option<Archive>,
    /// The last restore test.
    pub drill: Option<Drill>,
    /// Problems of the last run that the run before it did not have; 0 once accepted.
    pub new_problems: u64,
    /// Archives that are damaged or missing.
    pub unhealthy_archives: u64,
    /// Whether a run of it is running.
    pub is_running: bool,
    /// Always in the same order.
    pub problems: Vec<ScheduleProblem>,
}

impl ScheduleState {
    /// Reads the state of a schedule. `default_zone` is that of schedules without one; `heartbeat` is that of its
    /// running run, if its worker wrote one.
    pub fn read(
        home: &Home,
        store: &Store,
        row: ScheduleRow,
        default_zone: Tz,
        is_running: bool,
        heartbeat: Option<&RunHeartbeat>,
        now: Timestamp,
    ) -> Result<ScheduleState> {
        let zone = row.schedule.zone.unwrap_or(default_zone);
        let last = store.last_ended(row.id)?;
        let last_archive = last.as_ref().map(|run| store.archive(run.id)).transpose()?.flatten();
        let newest = store.newest_good(row.id)?;
        let new_problems = match last.as_ref().filter(|run| !run.accepted) {
            Some(run) => store.new_problems(run)?,
            None => 0,
        };
        let drill = store.last_drill(row.id)?;
        let unhealthy_archives = store.unhealthy_archives(row.id)?;
        let held = approval::held_commands(home, &row.schedule.name, &store.hooks(row.id)?)?;
        let held = (!held.is_empty()).then(|| approval::kinds(&held));
        let facts = ScheduleFacts {
            row: &row,
            zone,
            last_run: last.as_ref(),
            last_archive: last_archive.as_ref(),
            new_problems,
            newest_good: newest.as_ref(),
            unhealthy_archives,
            last_drill: drill.as_ref(),
            is_running,
            run_heartbeat: heartbeat,
            held_commands: held.as_deref(),
        };
        let problems = schedule_problems(&facts, now);
        Ok(ScheduleState { row, zone, last, newest, drill, new_problems, unhealthy_archives, is_running, problems })
    }
}

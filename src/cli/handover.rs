//! Which process executes the runs of `run`, and runs that a service or another user executes for this command.
//!
//! Only a process with the rights of the service may read the sources: an archive that root makes of files that only
//! root may read must not get into the hands of the owner of the schedules.

use super::Context;
use super::become_user::become_user;
use super::terminal::TerminalObserver;
use super::wait::{Idle, report_end, wait_for_end};
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::health::live_services;
use crate::liveness;
use crate::owner;
use crate::store::{QueueNow, Run, RunRequest, ScheduleRow, Store, WorkerRow};

/// Options of manual runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Have the service run it.
    pub(super) queue: bool,
    /// Fail with `Busy` if a run of the schedule runs in another process.
    pub(super) no_wait: bool,
    pub(super) no_verify: bool,
    pub(super) reread: bool,
}

impl RunOptions {
    pub(super) fn request(&self) -> RunRequest {
        RunRequest { verify: !self.no_verify, reread: self.reread }
    }
}

/// The process that executes runs.
pub enum Executor {
    /// This command.
    Command,
    /// The live service, for which the runs are queued.
    Service,
    /// This command, as the user to whom the database belongs.
    Owner {
        /// That user.
        uid: u32,
        /// The user's group.
        gid: u32,
    },
}

impl Executor {
    /// Chooses the service if the options demand it or if it runs as another user, else this command. Root in the home
    /// of another user executes nothing itself: the heartbeats of that user are not to be relied on.
    ///
    /// Errors: `Failed` if the options demand a service and none runs; `Busy` if it stops.
    pub fn choose(context: &Context, store: &Store, options: &RunOptions) -> Result<Executor> {
        let services = live_services(&context.home, store)?;
        let (uid, workers) = (rustix::process::geteuid().as_raw(), context.home.workers());
        // A service that did not write its user is of a version that leaves the work to this command.
        let is_other = |row: &WorkerRow| {
            liveness::read_heartbeat(&workers, &row.uuid).and_then(|found| found.uid).is_some_and(|other| other != uid)
        };
        let is_foreign = !services.is_empty() && services.iter().all(is_other);
        if services.is_empty() && options.queue {
            return Err(Error::failed("no service is running that could execute queued runs")
                .hint("start it with `backup-manager start`, or leave out --queue"));
        }
        let other_owner = owner::of_database().filter(|(owner, _)| uid == 0 && *owner != 0);
        if options.queue || is_foreign || (other_owner.is_some() && !services.is_empty()) {
            if services.iter().all(|row| row.stop_requested.is_some()) {
                return Err(Error::busy("the service is stopping and executes no further runs")
                    .hint("start it again with `backup-manager start`, or run again once it has stopped"));
            }
            return Ok(Executor::Service);
        }
        Ok(other_owner.map_or(Executor::Command, |(uid, gid)| Executor::Owner { uid, gid }))
    }
}

/// Continues this command as another user, to whom the schedules belong: an archive never holds more than that user
/// may read.
pub fn continue_as_owner(context: &Context, uid: u32, gid: u32) -> Result<()> {
    context.print_info(&format!("no service is running: running as uid {uid}, to whom the schedules belong"));
    become_user(uid, gid).map_err(|error| {
        Error::failed(format!("cannot run as uid {uid}, to whom the schedules belong"))
            .because(error)
            .hint("run it as that user, or start the service: it executes runs for other users, too")
    })
}

/// Queues a run for the service, waits for it, and returns its result as that of this command.
pub fn run_one(
    context: &Context,
    store: &Store,
    row: &ScheduleRow,
    options: &RunOptions,
    cancel: &CancelToken,
) -> Result<(Run, u8)> {
    let name = &row.schedule.name;
    // Before a new run gets a number. What cannot be read here is reported by the run itself.
    if let Err(error) = archive_folder::reserve_run_numbers(&context.home, store) {
        log::warn!("the archive folder was not compared with the database: {error}");
    }
    let (run, attempts_before) = match store.queue_now(row.id, options.request(), context.now())? {
        QueueNow::Running(run) if options.no_wait => return Err(running_error(row, run)),
        QueueNow::Running(run) => {
            context.print_info(&format!("run @{run} of {name} is running already; waiting for it"));
            (run, None)
        }
        QueueNow::Queued { run, .. } if options.no_wait => {
            context.print_info(&format!("run @{run} of {name} is queued for the service"));
            return Ok((store.run(run)?, 0));
        }
        QueueNow::Queued { run, attempt } => {
            context.print_info(&format!("run @{run} of {name} is queued for the service; waiting for it"));
            (run, Some(attempt))
        }
    };
    let observer = TerminalObserver::new(name.as_str(), context.quiet);
    let ended = wait_for_end(context, store, run, None, cancel, &observer, &mut |current| {
        // Queued again after an attempt that this command waited for: that was its result.
        let is_tried = current.worker.is_none() && Some(current.attempt) != attempts_before;
        if is_tried { Ok(Idle::Leave) } else { check_service(context, store, current) }
    });
    observer.finish();
    match ended? {
        Some(run) => Ok(report_end(run)),
        None => Err(retried(context, store, run)?),
    }
}

/// Returns the error for a run that this command does not wait for.
pub(super) fn running_error(row: &ScheduleRow, run: i64) -> Error {
    Error::busy(format!("run @{run} of {} is running", row.schedule.name)).hint("run without --no-wait to wait for it")
}

/// Fails if no service is left that could begin or recover a run.
fn check_service(context: &Context, store: &Store, run: &Run) -> Result<Idle> {
    if !live_services(&context.home, store)?.is_empty() {
        return Ok(Idle::Wait);
    }
    let (number, name) = (run.id, &run.schedule_name);
    let message = match run.worker {
        None => format!("the service ended before it began run @{number} of {name}, which stays queued"),
        Some(_) => format!("the service ended during run @{number} of {name}, which the next one recovers"),
    };
    Err(Error::failed(message)
        .hint(format!("`backup-manager start`, or to drop the run: `backup-manager cancel @{number}`")))
}

/// Returns the error for a run that is queued for another try.
fn retried(context: &Context, store: &Store, number: i64) -> Result<Error> {
    let run = store.run(number)?;
    let zone = context.shown_zone(store)?;
    let reason = run.error.as_deref().unwrap_or("no reason is known");
    let at = run.not_before.rfc3339(&zone);
    let message = format!("run @{number} of {} failed, and will be tried again at {at}: {reason}", run.schedule_name);
    Ok(Error::failed(message).hint(format!("see `backup-manager history @{number}`")))
}

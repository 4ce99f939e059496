//! This process as a worker of the database.

use std::sync::Arc;

use super::terminal::TerminalObserver;
use super::{Context, config};
use crate::archive_folder;
use crate::backup::{self, RunContext, Runner};
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::hooks::Starter;
use crate::liveness::{self, Worker};
use crate::store::{Role, Run, Store, WorkerRow};

/// Creates the liveness lock of this process and a runner. The database does not know the worker yet.
pub fn new_runner(context: &Context, store: &Store, threads: usize, role: Role, children: Starter) -> Result<Runner> {
    let home = Arc::new(context.home.clone());
    let now = context.now();
    let worker = Worker::register(&home.workers(), home.folder_mode(), now)?;
    let row = WorkerRow {
        uuid: worker.uuid(),
        role,
        pid: std::process::id(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        started_at: now,
        stop_requested: None,
    };
    Ok(Runner {
        home,
        store: store.clone(),
        clock: Arc::clone(&context.clock),
        worker: Arc::new(worker),
        row: Arc::new(row),
        threads,
        children,
    })
}

/// Registers this command as a worker in the database, and recovers the runs of dead workers until it is cancelled.
pub fn register_command(context: &Context, store: &Store, cancel: &CancelToken) -> Result<Runner> {
    let runner = new_runner(context, store, config::threads(store, None)?, Role::Command, Starter::new()?)?;
    let row = &runner.row;
    store.add_worker(row.uuid, Role::Command, row.pid, &row.host, row.started_at)?;
    // Before the first claim gets a number. What cannot be read here is reported by the run itself.
    if let Err(error) = archive_folder::reserve_run_numbers(&context.home, store) {
        log::warn!("the archive folder was not compared with the database: {error}");
    }
    let observer = TerminalObserver::new("recovery", context.quiet);
    let run_context = RunContext { cancel, observer: &observer, is_foreground: true };
    backup::recover(&runner, &run_context)?;
    Ok(runner)
}

/// Recovers the runs of dead workers, for a command that executes no run itself.
pub fn recover(context: &Context, store: &Store) -> Result<()> {
    let runner = register_command(context, store, &CancelToken::default())?;
    store.remove_worker(runner.row.uuid)
}

/// Same as [`recover`], but only if there is a run of a dead worker.
pub fn recover_if_needed(context: &Context, store: &Store) -> Result<()> {
    let workers = context.home.workers();
    let is_orphaned = |run: &Run| run.worker.is_some_and(|worker| !liveness::is_alive(&workers, &worker));
    if store.running()?.iter().any(is_orphaned) { recover(context, store) } else { Ok(()) }
}

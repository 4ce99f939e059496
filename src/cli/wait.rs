//! Waiting for a run of another process.

use std::time::Duration;

use uuid::Uuid;

use super::Context;
use super::terminal::TerminalObserver;
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::liveness;
use crate::progress::Observer;
use crate::store::{Run, RunState, Store};

/// How often the state of the run is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What to do about a run that no live process works on.
pub(super) enum Idle {
    /// Wait.
    Wait,
    /// Wait no more.
    Leave,
}

/// Waits for the end of a run of another process and shows its progress. While no live process except this worker,
/// `own`, has the run, `idle` decides; returns `None` after [`Idle::Leave`].
///
/// Errors: `Interrupted` after `cancel`, which does not cancel the run; those of `idle`.
pub(super) fn wait_for_end(
    context: &Context,
    store: &Store,
    run: i64,
    own: Option<Uuid>,
    cancel: &CancelToken,
    observer: &TerminalObserver,
    idle: &mut dyn FnMut(&Run) -> Result<Idle>,
) -> Result<Option<Run>> {
    let workers = context.home.workers();
    loop {
        let current = store.run(run)?;
        if current.state.is_final() {
            return Ok(Some(current));
        }
        if cancel.is_cancelled() {
            let message = format!("no longer waiting for run @{run}, which continues");
            return Err(Error::new(ErrorKind::Interrupted, message)
                .hint(format!("to cancel it: `backup-manager cancel @{run}`")));
        }
        let is_worked_on = |uuid: &Uuid| Some(*uuid) != own && liveness::is_alive(&workers, uuid);
        match current.worker.filter(is_worked_on) {
            Some(uuid) => {
                if let Some(heartbeat) = liveness::read_run_heartbeat(&workers, &uuid, run) {
                    observer.progress(&heartbeat.progress(context.now()));
                }
            }
            None => match idle(&current)? {
                Idle::Wait => {}
                Idle::Leave => return Ok(None),
            },
        }
        cancel.wait(POLL_INTERVAL);
    }
}

/// Reports why a run of another process made no archive; returns the run with its exit code.
pub(super) fn report_end(run: Run) -> (Run, u8) {
    if let Some(reason) = run.error.as_ref().filter(|_| run.state != RunState::Skipped) {
        super::report(&Error::failed(reason.clone()));
    }
    let code = exit_code(&run);
    (run, code)
}

/// Returns the exit code for a run that ended.
pub(super) fn exit_code(run: &Run) -> u8 {
    match run.state {
        RunState::Succeeded | RunState::Skipped => 0,
        RunState::Incomplete => ErrorKind::Incomplete.exit_code(),
        RunState::Cancelled => ErrorKind::Interrupted.exit_code(),
        _ => ErrorKind::Failed.exit_code(),
    }
}

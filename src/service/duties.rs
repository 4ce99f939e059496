//! Undoing what runs have begun and not undone, on a thread beside the runs.

use std::sync::Arc;

use super::Service;
use super::maintenance::BackgroundThread;
use super::run_log::MaintenanceLog;
use crate::backup::{self, COMMAND_DUTIES, RunContext, Runner, START_DUTIES};
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::store::DutyKind;

/// Threads that settle duties: one starts containers, and does not wait for the other, which executes commands.
#[derive(Default)]
pub(super) struct SettlingThreads {
    starting: Option<BackgroundThread>,
    executing: Option<BackgroundThread>,
}

impl SettlingThreads {
    /// Takes the threads, to end them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = BackgroundThread> {
        self.starting.take().into_iter().chain(self.executing.take())
    }
}

impl Service {
    /// Settles the duties that are due, unless a thread does so already. While serving, on threads of their own: a
    /// command or a stop takes long, and the loop must go on.
    pub(super) fn settle_duties(&mut self) -> Result<()> {
        for kinds in [START_DUTIES, COMMAND_DUTIES] {
            let slot = match kinds == START_DUTIES {
                true => &mut self.settling.starting,
                false => &mut self.settling.executing,
            };
            let is_busy = slot.as_ref().is_some_and(|settling| !settling.thread.is_finished());
            if is_busy || !backup::has_due_duties(&self.runner, kinds)? {
                continue;
            }
            let (runner, cancel) = (self.runner.clone(), Arc::new(CancelToken::new()));
            if self.background.is_none() {
                settle(&runner, kinds, &cancel);
                continue;
            }
            let thread_cancel = Arc::clone(&cancel);
            let work = move || settle(&runner, kinds, &thread_cancel);
            match std::thread::Builder::new().name("duties".to_owned()).spawn(work) {
                Ok(thread) => *slot = Some(BackgroundThread { cancel, thread }),
                Err(error) => log::error!("the thread that undoes what runs began could not be started: {error}"),
            }
        }
        Ok(())
    }
}

fn settle(runner: &Runner, kinds: &[DutyKind], cancel: &CancelToken) {
    let context = RunContext { cancel, observer: &MaintenanceLog, is_foreground: false };
    if let Err(error) = backup::settle_duties(runner, kinds, &context) {
        log::error!("what runs began is not undone yet: {error}");
    }
}

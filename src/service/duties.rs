//! Undoing what runs have begun and not undone, on a thread beside the runs.

use std::sync::Arc;

use super::Service;
use super::maintenance::BackgroundThread;
use super::run_log::MaintenanceLog;
use crate::backup::{self, RunContext, Runner};
use crate::cancel::CancelToken;
use crate::error::Result;

impl Service {
    /// Settles the duties that are due, unless a thread does so already. While serving, on a thread of its own: a
    /// command takes long, and the loop must go on.
    pub(super) fn settle_duties(&mut self) -> Result<()> {
        let is_busy = self.settling.as_ref().is_some_and(|settling| !settling.thread.is_finished());
        if is_busy || !backup::has_due_duties(&self.runner)? {
            return Ok(());
        }
        let (runner, cancel) = (self.runner.clone(), Arc::new(CancelToken::new()));
        if self.background.is_none() {
            settle(&runner, &cancel);
            return Ok(());
        }
        let thread_cancel = Arc::clone(&cancel);
        let thread =
            std::thread::Builder::new().name("duties".to_owned()).spawn(move || settle(&runner, &thread_cancel));
        match thread {
            Ok(thread) => self.settling = Some(BackgroundThread { cancel, thread }),
            Err(error) => log::error!("the thread that undoes what runs began could not be started: {error}"),
        }
        Ok(())
    }
}

fn settle(runner: &Runner, cancel: &CancelToken) {
    let context = RunContext { cancel, observer: &MaintenanceLog, is_foreground: false };
    if let Err(error) = backup::settle_duties(runner, &context) {
        log::error!("what runs began is not undone yet: {error}");
    }
}

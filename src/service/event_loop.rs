//! The loop of a service: ticks and waits until it is asked to stop, then drains.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::systemd::ServiceManager;
use super::{COMMIT_POLL_INTERVAL, Event, MAX_WAIT, Service};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::import_export::FollowedFile;
use crate::store::StopRequest;
use crate::words::count;

impl Service {
    /// Serves until the service is asked to stop and all running work has ended.
    ///
    /// `events` must be the other end of `sender`, by which the service's own threads report too. The service manager
    /// is notified before the first tick, after each tick, and when the drain begins.
    pub fn serve(
        &mut self,
        events: &Receiver<Event>,
        sender: &Sender<Event>,
        service_manager: &ServiceManager,
    ) -> Result<()> {
        self.background = Some(sender.clone());
        let mut has_failed = false;
        // A signal may have come while the database was opened.
        if let Ok(Event::Stop) = events.try_recv() {
            self.stop = Some(StopRequest::Drain);
        }
        service_manager.notify_ready();
        while self.stop.is_none() {
            if !self.runner.store.is_in_place() {
                // A database that was put in its place gets another service, and two must not work in one archive
                // folder.
                log::error!("the database was removed or replaced: this service ends");
                self.stop = Some(StopRequest::Now);
                break;
            }
            let next = self.tick_and_report(&mut has_failed);
            service_manager.notify_alive();
            self.start_runs(sender);
            self.start_maintenance();
            if self.stop.is_none() {
                self.wait(events, next);
            }
        }
        service_manager.notify_stopping();
        self.drain(events)
    }

    /// Performs a tick and returns when the next one is due. A failure is logged, stays in the heartbeat until a tick
    /// succeeds, and does not end the service.
    fn tick_and_report(&mut self, has_failed: &mut bool) -> Option<Timestamp> {
        let (trouble, next) = match self.tick() {
            Ok(tick) => (self.duties_trouble.take(), tick.next),
            Err(error) => {
                log::error!("a scheduler tick failed and will be retried: {error}");
                (Some(format!("its last scheduler tick failed: {error}")), None)
            }
        };
        let had_failed = std::mem::replace(has_failed, trouble.is_some());
        if had_failed || trouble.is_some() {
            self.update_heartbeat(|heartbeat| heartbeat.trouble = trouble);
        }
        next
    }

    /// Waits until `next`, an event, a change that a tick must handle, or [`MAX_WAIT`].
    fn wait(&mut self, events: &Receiver<Event>, next: Option<Timestamp>) {
        let until = self.runner.clock.monotonic() + MAX_WAIT;
        loop {
            let until_next = next.map_or(MAX_WAIT, |at| at.since(self.runner.clock.now()));
            let rest = until.saturating_sub(self.runner.clock.monotonic());
            let pause = COMMIT_POLL_INTERVAL.min(until_next).min(rest);
            match events.recv_timeout(pause) {
                Ok(Event::Stop) => {
                    self.stop = Some(StopRequest::Drain);
                    return;
                }
                Ok(Event::RunEnded(_)) => return,
                Err(_) if pause.is_zero() || self.has_external_change() => return,
                Err(_) => {}
            }
        }
    }

    /// Returns whether the database was replaced, the clock was set back, the text file changed, or another process
    /// committed.
    fn has_external_change(&mut self) -> bool {
        if !self.runner.store.is_in_place()
            || self.last_tick.is_some_and(|last| self.runner.clock.now() < last)
            || self.followed_files.iter().any(FollowedFile::has_changed)
        {
            return true;
        }
        self.watch.changed().unwrap_or_else(|error| {
            log::error!("cannot check for commits of other processes: {error}");
            false
        })
    }

    /// Lets running work finish within the grace period, then cancels it; a cancelled run returns to the queue (I10).
    fn drain(&mut self, events: &Receiver<Event>) -> Result<()> {
        let maintenance = self.maintenance.take();
        if let Some(maintenance) = &maintenance {
            maintenance.cancel.cancel();
        }
        // What it is executing may still end; else it is executed again at the next start.
        let settling: Vec<_> = self.settling.take().collect();
        settling.iter().for_each(|settling| settling.cancel.cancel_and_requeue());
        let started = self.runner.clock.monotonic();
        let grace = if self.stop == Some(StopRequest::Now) { Duration::ZERO } else { self.options.grace };
        let mut is_cancelled = false;
        log::info!("stopping: {} under way", count(self.active.len() as u64, "run"));
        while !self.active.is_empty() {
            let request = self.runner.store.stop_request(self.runner.row.uuid).unwrap_or(None);
            // Their containers are started before anything else.
            self.cancel_runs_with_stopped_containers();
            let is_over = self.runner.clock.monotonic().saturating_sub(started) >= grace;
            if !is_cancelled && (is_over || request == Some(StopRequest::Now)) {
                is_cancelled = true;
                self.active.cancel_and_requeue();
            }
            if let Ok(Event::Stop) = events.recv_timeout(COMMIT_POLL_INTERVAL) {
                is_cancelled = true;
                self.active.cancel_and_requeue();
            }
        }
        // It notices the cancel token at its next chunk.
        if maintenance.is_some_and(|maintenance| maintenance.thread.join().is_err()) {
            log::error!("the maintenance thread panicked");
        }
        for settling in settling {
            if settling.thread.join().is_err() {
                log::error!("the thread that undoes what runs began panicked");
            }
        }
        self.unregister()
    }
}

//! One scheduler tick: recover orphaned runs, undo what runs have begun, follow files, enqueue due runs.

use std::sync::Arc;
use std::time::Duration;

use super::run_log::log_due;
use super::runs::{RunEndGuard, recover_run, spawn_for_run};
use super::{MAX_WAIT, Service, lock};
use crate::archive_folder;
use crate::backup;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::import_export;
use crate::schedule::CatchUp;
use crate::store::{Due, ScheduleRow, Watermark};

/// An occurrence that is enqueued later than this was missed: the service was down, or the machine suspended.
const MISSED_AFTER: Duration = Duration::from_secs(120);
/// How far the clock may be set back, beyond one period, before watermarks in the future are reset.
const MAX_CLOCK_SETBACK: Duration = Duration::from_secs(3 * 3600);
/// Due schedules that one query returns.
const DUE_BATCH: u32 = 500;
/// Due occurrences that are counted one by one.
const MAX_COUNTED_OCCURRENCES: u64 = 100_000;
/// How long the first runs of a service wait at most for a followed file that keeps changing.
const MAX_FILE_DELAY: Duration = MAX_WAIT;
/// How long a run whose recovery failed is left alone.
const RECOVERY_RETRY_INTERVAL: Duration = MAX_WAIT;

/// What one scheduler tick did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// Schedules whose due occurrences became a run or were coalesced into one.
    pub enqueued: usize,
    /// When the next tick is due if no event comes before.
    pub next: Option<Timestamp>,
}

impl Service {
    /// Performs one scheduler tick: recovery, duties, requests to stop, followed files, due runs.
    pub fn tick(&mut self) -> Result<Tick> {
        let now = self.runner.clock.now();
        self.update_heartbeat(|heartbeat| heartbeat.ticked_at_ms = now.millis());
        self.recover()?;
        // What cannot be read of duties must not keep schedules from being run, or the service from being stopped.
        let settled = self.settle_duties();
        let next_duty = settled.and_then(|()| backup::next_duty(&self.runner)).unwrap_or_else(|error| {
            log::error!("what runs began cannot be undone now: {error}");
            self.duties_trouble = Some(format!("what runs began cannot be undone now: {error}"));
            None
        });
        if self.stop.is_none() {
            self.stop = self.runner.store.stop_request(self.runner.row.uuid)?;
        }
        if self.stop.is_some() {
            return Ok(Tick::default());
        }
        let settles_in = self.follow_files(now)?;
        if self.awaits_files {
            return Ok(Tick { enqueued: 0, next: settles_in.map(|rest| now.plus(rest)) });
        }
        if self.last_tick.is_none() {
            self.refresh_links_only();
        }
        if self.last_tick.is_none_or(|last| now < last) {
            self.reset_future_watermarks(now)?;
        }
        self.last_tick = Some(now);
        let enqueued = self.enqueue_all_due(now)?;
        let waiting = [
            self.runner.store.next_due()?,
            self.runner.store.next_not_before()?.filter(|at| *at > now),
            settles_in.map(|rest| now.plus(rest)),
            next_duty,
        ];
        Ok(Tick { enqueued, next: waiting.into_iter().flatten().min() })
    }

    /// Applies the followed files that are to be. Returns how long one must stay unchanged until then; `None` if no
    /// change is pending. A file that changes again and again delays the first runs for a while only.
    fn follow_files(&mut self, now: Timestamp) -> Result<Option<Duration>> {
        let (home, store, zone) = (&self.runner.home, &self.runner.store, self.options.zone);
        let monotonic = self.runner.clock.monotonic();
        let first_tick_at = *self.first_tick_at.get_or_insert(monotonic);
        let mut settles_in = None;
        for file in &mut self.followed_files {
            let rest = import_export::follow_file(file, home, store, zone, now, monotonic)?;
            settles_in = [settles_in, rest].into_iter().flatten().min();
        }
        let is_late = monotonic.saturating_sub(first_tick_at) >= MAX_FILE_DELAY;
        self.awaits_files &= settles_in.is_some() && !is_late;
        Ok(settles_in)
    }

    /// Recovers the runs of dead workers. While serving, each on a thread of its own: reading a large archive back
    /// takes long, and the loop must go on.
    fn recover(&mut self) -> Result<()> {
        let now = self.runner.clock.monotonic();
        lock(&self.failed_recoveries).retain(|_, failed_at| now.saturating_sub(*failed_at) < RECOVERY_RETRY_INTERVAL);
        let orphaned = {
            let (active, failed) = (self.active.lock(), lock(&self.failed_recoveries));
            let is_ours = |run| active.contains_key(&run) || failed.contains_key(&run);
            backup::take_over_orphaned_runs(&self.runner, &is_ours)?
        };
        for orphan in orphaned {
            let run = orphan.run();
            self.active.insert(run);
            let guard = RunEndGuard { run, active: self.active.clone(), events: self.background.clone() };
            let (runner, cancel) = (self.runner.clone(), self.active.cancel_token(run));
            let failed_recoveries = Arc::clone(&self.failed_recoveries);
            let work = move || {
                let _guard = guard;
                recover_run(&runner, orphan, &cancel, &failed_recoveries);
            };
            if self.background.is_none() {
                work();
            } else if !spawn_for_run(&self.runner.store, run, work) {
                lock(&self.failed_recoveries).insert(run, now);
            }
        }
        backup::remove_dead_workers(&self.runner)
    }

    /// Renews the stable links: a process may have died between the end of a run and the change of its link.
    fn refresh_links_only(&self) {
        let (home, store) = (&self.runner.home, &self.runner.store);
        let renewed = store.schedules().and_then(|rows| archive_folder::refresh_links_only(home, store, &rows));
        match renewed {
            Ok(notes) => notes.iter().for_each(|note| log::info!("{note}")),
            Err(error) => log::warn!("the stable links were not renewed: {error}"),
        }
    }

    /// Moves watermarks that lie far in the future back to now. They were written while the clock was far ahead;
    /// without this nothing would run until that false date.
    fn reset_future_watermarks(&self, now: Timestamp) -> Result<()> {
        for row in self.runner.store.schedules_handled_after(now.plus(MAX_CLOCK_SETBACK))? {
            let Some(cadence) = &row.schedule.cadence else { continue };
            let limit = now.plus(MAX_CLOCK_SETBACK).plus(cadence.period(self.zone(&row), now));
            if row.watermark.handled_until <= limit {
                continue;
            }
            let to = Watermark::starting(&row.schedule, self.options.zone, now);
            if self.runner.store.move_watermark(row.id, row.watermark, to)? {
                log::warn!("{}: the clock was far ahead; its occurrences count from now again", row.schedule.name);
            }
        }
        Ok(())
    }

    fn enqueue_all_due(&self, now: Timestamp) -> Result<usize> {
        let mut enqueued = 0;
        loop {
            let due = self.runner.store.due_schedules(now, DUE_BATCH)?;
            for row in &due {
                enqueued += usize::from(self.enqueue_due(row, now)?);
            }
            if due.len() < DUE_BATCH as usize {
                return Ok(enqueued);
            }
        }
    }

    /// Enqueues one run for all occurrences of a schedule that are due. Returns whether there was one.
    fn enqueue_due(&self, row: &ScheduleRow, now: Timestamp) -> Result<bool> {
        let Some(cadence) = &row.schedule.cadence else { return Ok(false) };
        let zone = self.zone(row);
        let found = cadence.due_occurrences(zone, row.watermark.handled_until, now, MAX_COUNTED_OCCURRENCES);
        let to = Watermark::starting(&row.schedule, self.options.zone, now);
        let Some(found) = found else {
            // `next_due` was computed in another zone or by other rules: no occurrence is due after all.
            let to = Watermark { next_due: to.next_due, ..row.watermark };
            self.runner.store.move_watermark(row.id, row.watermark, to)?;
            return Ok(false);
        };
        let is_late = now.since(found.newest) > MISSED_AFTER;
        let due = Due {
            schedule: row.id,
            from: row.watermark,
            to,
            occurrence: found.newest,
            count: found.count,
            missed: is_late && row.schedule.catch_up == CatchUp::Skip,
        };
        let outcome = self.runner.store.enqueue_due(&due, now)?;
        log_due(row.schedule.name.as_str(), &found, outcome, zone);
        Ok(true)
    }
}

//! The service: what is due becomes runs, runs are carried out, requests are answered, and a stop is a drain (I10).
//!
//! [`Service::tick`] is one round and takes the time from the clock, so that tests and simulation drive it step by
//! step. [`Service::serve`] only repeats it and waits in between.

pub mod systemd;
mod threads;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono_tz::Tz;
use crossbeam_channel::{Receiver, Sender};

use self::systemd::ServiceManager;
use crate::archive_folder;
use crate::backup::{self, Ended, Runner};
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::import_export;
use crate::liveness::{self, Heartbeat, Registration};
use crate::maintenance;
use crate::schedule::{Cadence, CatchUp};
use crate::store::{Claim, Due, Intent, Role, ScheduleRow, StopRequest, Watch, Watermark};
use threads::{EndsRun, carry_out, lock, recover_run, run_maintenance, spawn};

/// Longest nap: a clock that was set, or a machine that slept, is noticed by then.
const NAP: Duration = Duration::from_secs(30);
/// How often commits of other processes are looked for.
const POLL: Duration = Duration::from_millis(400);
/// An occurrence that is later than this was missed: the service was down, or the machine asleep.
const LATE: Duration = Duration::from_secs(120);
/// Allowance for a clock that was set back, beyond one period.
const BACKWARD: Duration = Duration::from_secs(3 * 3600);
/// How often the service looks whether some of the daily work is due.
const MAINTENANCE_EVERY: Duration = Duration::from_secs(3600);
/// How long a text file must look the same before a change of it is applied.
const SETTLING: Duration = Duration::from_secs(1);
/// Due schedules taken in one round.
const DUE_BATCH: u32 = 500;
/// Missed occurrences counted one by one.
const COUNT_LIMIT: u64 = 100_000;

/// What the service is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM or SIGINT: drain; a second one cancels.
    Stop,
    /// A run of this service ended.
    RunEnded(i64),
}

/// How the service works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Runs at once.
    pub workers: usize,
    /// How long running work may go on after a stop.
    pub grace: Duration,
    /// Zone of schedules without one.
    pub zone: Tz,
    /// A text file that is read at start and whenever it changes (§4).
    pub import: Option<PathBuf>,
    /// What is looked after, and how often.
    pub maintenance: maintenance::Intervals,
    /// Where restore drills write; without it, below the archive folder.
    pub scratch: Option<PathBuf>,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// Schedules whose due occurrences became a run or were counted in one.
    pub enqueued: usize,
    /// When the next round is wanted, if nothing happens before.
    pub next: Option<Timestamp>,
}

/// A process that serves a database.
pub struct Service {
    runner: Runner,
    options: Options,
    active: Arc<Mutex<HashMap<i64, Arc<CancelToken>>>>,
    /// Runs of dead workers that could not be put right, and since when: not looked at again at once.
    stuck: Arc<Mutex<HashMap<i64, Duration>>>,
    /// While serving: where threads tell that they are done.
    background: Option<Sender<Event>>,
    watch: Watch,
    last_tick: Option<Timestamp>,
    text_file: Option<import_export::TextFileState>,
    stop: Option<StopRequest>,
    maintenance: Option<MaintenanceThread>,
    maintenance_begun: Option<Duration>,
}

/// The daily work under way beside the runs.
struct MaintenanceThread {
    cancel: Arc<CancelToken>,
    thread: std::thread::JoinHandle<()>,
}

impl Service {
    /// Registers as a service of the database.
    ///
    /// Errors: `Busy` naming the other service's process, unless `join`.
    pub fn register(runner: Runner, options: Options, join: bool) -> Result<Service> {
        let home = Arc::clone(&runner.home);
        let _registration = Registration::lock(&home.workers(), home.folder_mode())?;
        if let (Some(pid), false) = (serving(&runner)?, join) {
            return Err(Error::busy(format!("the service already runs as process {pid}"))
                .hint("stop it with `backup-manager stop`, or add workers to it with `serve --join`"));
        }
        let row = &runner.row;
        runner.store.add_worker(row.uuid, Role::Service, row.pid, &row.host, runner.clock.now())?;
        let watch = runner.store.watch()?;
        let mut service = Service {
            text_file: options.import.clone().map(import_export::TextFileState::new),
            runner,
            options,
            active: Arc::default(),
            stuck: Arc::default(),
            background: None,
            watch,
            last_tick: None,
            stop: None,
            maintenance: None,
            maintenance_begun: None,
        };
        service.recompute_for_zone()?;
        Ok(service)
    }

    /// Recomputes what is next where the zone is not the one it was computed in.
    fn recompute_for_zone(&mut self) -> Result<()> {
        let store = &self.runner.store;
        let name = self.options.zone.name();
        if store.service_zone()?.as_deref() == Some(name) {
            return Ok(());
        }
        for row in store.schedules()?.iter().filter(|row| row.schedule.zone.is_none()) {
            let next_due = self.next_after(row, row.watermark.handled_until);
            store.move_watermark(row.id, row.watermark, Watermark { next_due, ..row.watermark })?;
        }
        store.set_service_zone(name)
    }

    /// Does one round: what dead workers left, requests, the text file, what is due.
    pub fn tick(&mut self) -> Result<Tick> {
        let now = self.runner.clock.now();
        self.say(|heartbeat| heartbeat.ticked_at_ms = now.millis());
        self.recover()?;
        if self.stop.is_none() {
            self.stop = self.runner.store.stop_request(self.runner.row.uuid)?;
        }
        if self.stop.is_some() {
            return Ok(Tick::default());
        }
        let look_again = match &mut self.text_file {
            Some(state) => import_export::follow_text_file(state, &self.runner.store, self.options.zone, now)?,
            None => false,
        };
        if self.last_tick.is_none() {
            self.renew_stable_links();
        }
        if self.last_tick.is_none_or(|last| now < last) {
            self.reset_future_watermarks(now)?;
        }
        self.last_tick = Some(now);
        let mut enqueued = 0;
        loop {
            let due = self.runner.store.due_schedules(now, DUE_BATCH)?;
            for row in &due {
                enqueued += usize::from(self.enqueue_due(row, now)?);
            }
            if due.len() < DUE_BATCH as usize {
                break;
            }
        }
        let waiting = [
            self.runner.store.next_due()?,
            self.runner.store.next_not_before()?.filter(|at| *at > now),
            look_again.then(|| now.plus(SETTLING)),
        ];
        Ok(Tick { enqueued, next: waiting.into_iter().flatten().min() })
    }

    /// Says something in the worker file. What `status` shows is no reason to stop working.
    fn say(&self, change: impl FnOnce(&mut Heartbeat)) {
        if let Err(error) = self.runner.worker.update(change) {
            log::warn!("{error}");
        }
    }

    /// Puts right what dead workers left. While serving, each run on a thread of its own: reading a large archive back
    /// takes long, and the loop must go on.
    fn recover(&mut self) -> Result<()> {
        let now = self.runner.clock.monotonic();
        lock(&self.stuck).retain(|_, since| now.saturating_sub(*since) < NAP);
        let taken = {
            let (active, stuck) = (lock(&self.active), lock(&self.stuck));
            let is_ours = |run| active.contains_key(&run) || stuck.contains_key(&run);
            backup::take_over_orphaned_runs(&self.runner, &is_ours)?
        };
        for taken in taken {
            let run = taken.run();
            lock(&self.active).insert(run, Arc::default());
            let ends = EndsRun { run, active: Arc::clone(&self.active), sender: self.background.clone() };
            let (runner, stuck) = (self.runner.clone(), Arc::clone(&self.stuck));
            let work = move || {
                let _ends = ends;
                recover_run(&runner, taken, &stuck);
            };
            match &self.background {
                Some(_) => drop(spawn(run, work)),
                None => work(),
            }
        }
        backup::remove_dead_workers(&self.runner)
    }

    /// A process may have died between the end of a run and its stable name.
    fn renew_stable_links(&self) {
        let (home, store) = (&self.runner.home, &self.runner.store);
        let renewed = store.schedules().and_then(|rows| archive_folder::renew_stable_links(home, store, &rows));
        match renewed {
            Ok(notes) => notes.iter().for_each(|note| log::info!("{note}")),
            Err(error) => log::warn!("the stable names were not renewed: {error}"),
        }
    }

    /// After a clock that was far ahead: starts again from now, else nothing would run until that false date.
    fn reset_future_watermarks(&self, now: Timestamp) -> Result<()> {
        for row in self.runner.store.schedules_handled_after(now.plus(BACKWARD))? {
            let Some(cadence) = &row.schedule.cadence else { continue };
            let limit = now.plus(BACKWARD).plus(cadence.period(self.zone(&row), now));
            if row.watermark.handled_until <= limit {
                continue;
            }
            let to = Watermark { handled_until: now, next_due: self.next_after(&row, now) };
            if self.runner.store.move_watermark(row.id, row.watermark, to)? {
                log::warn!("{}: the clock was far ahead; its occurrences count from now again", row.schedule.name);
            }
        }
        Ok(())
    }

    fn enqueue_due(&self, row: &ScheduleRow, now: Timestamp) -> Result<bool> {
        let Some(cadence) = &row.schedule.cadence else { return Ok(false) };
        let missed = cadence.missed(self.zone(row), row.watermark.handled_until, now, COUNT_LIMIT);
        let to = Watermark { handled_until: now, next_due: self.next_after(row, now) };
        let Some(missed) = missed else {
            // Computed in another zone or by other rules: nothing has come after all.
            let to = Watermark { next_due: to.next_due, ..row.watermark };
            self.runner.store.move_watermark(row.id, row.watermark, to)?;
            return Ok(false);
        };
        let late = now.since(missed.newest) > LATE;
        let due = Due {
            schedule: row.id,
            from: row.watermark,
            to,
            occurrence: missed.newest,
            count: missed.count,
            missed: late && row.schedule.catch_up == CatchUp::Skip,
        };
        let done = self.runner.store.enqueue_due(&due, now)?;
        log::info!(
            "{}: due at {} ({} occurrence{}): {done:?}",
            row.schedule.name,
            missed.newest.rfc3339(&self.zone(row)),
            missed.count,
            if missed.count == 1 { "" } else { "s" }
        );
        Ok(true)
    }

    fn zone(&self, row: &ScheduleRow) -> Tz {
        row.schedule.zone.unwrap_or(self.options.zone)
    }

    fn next_after(&self, row: &ScheduleRow, after: Timestamp) -> Option<Timestamp> {
        row.schedule.cadence.as_ref().and_then(|cadence: &Cadence| cadence.next_after(self.zone(row), after))
    }

    /// Claims the run that has waited longest, unless the service is stopping or has its hands full.
    pub fn claim(&self) -> Result<Option<(Claim, Intent)>> {
        if self.stop.is_some() || lock(&self.active).len() >= self.options.workers {
            return Ok(None);
        }
        let claimed = self.runner.store.claim_next(&self.runner.row, self.runner.clock.now())?;
        if let Some((claim, _)) = &claimed {
            lock(&self.active).insert(claim.run(), Arc::default());
        }
        Ok(claimed)
    }

    /// Carries a claimed run out on this thread.
    pub fn execute(&self, claim: Claim, intent: &Intent) -> Result<Ended> {
        let cancel = lock(&self.active).get(&claim.run()).cloned().unwrap_or_default();
        carry_out(&self.runner, &self.active, claim, intent, &cancel)
    }

    /// Serves until a stop is asked for and everything has drained. `events` also carries what this service's own
    /// threads tell, through `sender`.
    ///
    /// `supervisor` is told of the first round, of each further one, and of the drain.
    pub fn serve(
        &mut self,
        events: &Receiver<Event>,
        sender: &Sender<Event>,
        supervisor: &ServiceManager,
    ) -> Result<()> {
        self.background = Some(sender.clone());
        let mut next;
        let mut failing = false;
        // A stop may have come while the database was brought up.
        if let Ok(Event::Stop) = events.try_recv() {
            self.stop = Some(StopRequest::Drain);
        }
        supervisor.ready();
        while self.stop.is_none() {
            if !self.runner.store.is_in_place() {
                // Who puts another in its place starts another service, and two must not work in one archive folder.
                log::error!("the database was removed or replaced: this service ends");
                self.stop = Some(StopRequest::Now);
                break;
            }
            match self.tick() {
                Ok(tick) => {
                    next = tick.next;
                    if std::mem::take(&mut failing) {
                        self.say(|heartbeat| heartbeat.trouble = None);
                    }
                }
                Err(error) => {
                    log::error!("this round failed and is tried again: {error}");
                    failing = true;
                    let why = format!("its last round failed: {error}");
                    self.say(|heartbeat| heartbeat.trouble = Some(why));
                    next = None;
                }
            }
            supervisor.alive();
            self.start_runs(sender);
            self.start_maintenance();
            if self.stop.is_none() {
                self.wait(events, next);
            }
        }
        supervisor.stopping();
        self.drain(events)
    }

    fn start_runs(&self, sender: &Sender<Event>) {
        loop {
            let (claim, intent) = match self.claim() {
                Ok(Some(claimed)) => claimed,
                Ok(None) => return,
                Err(error) => {
                    log::error!("no run could be claimed: {error}");
                    return;
                }
            };
            let run = claim.run();
            let (runner, active, sender) = (self.runner.clone(), Arc::clone(&self.active), sender.clone());
            let cancel = lock(&self.active).get(&run).cloned().unwrap_or_default();
            let ends = EndsRun { run, active: Arc::clone(&active), sender: Some(sender) };
            let spawned = spawn(run, move || {
                // A panic ends the thread, not the run: it is no longer active then, and the next round takes it over
                // (I6).
                let _ends = ends;
                let _ = carry_out(&runner, &active, claim, &intent, &cancel);
            });
            if !spawned {
                return;
            }
        }
    }

    /// Does what is due of the daily work on this thread: see [`maintenance::run_maintenance`].
    pub fn run_maintenance(&self, cancel: &CancelToken) -> Result<maintenance::MaintenanceReport> {
        run_maintenance(&self.runner, &self.options, cancel)
    }

    /// Looks every hour whether some of the daily work is due, and does it beside the runs, one thing at a time.
    fn start_maintenance(&mut self) {
        let now = self.runner.clock.monotonic();
        let is_time = self.maintenance_begun.is_none_or(|begun| now.saturating_sub(begun) >= MAINTENANCE_EVERY);
        let is_busy = self.maintenance.as_ref().is_some_and(|maintenance| !maintenance.thread.is_finished());
        if self.stop.is_some() || !is_time || is_busy {
            return;
        }
        self.maintenance_begun = Some(now);
        let (runner, options, cancel) = (self.runner.clone(), self.options.clone(), Arc::new(CancelToken::new()));
        let stop = Arc::clone(&cancel);
        let thread = std::thread::Builder::new().name("maintenance".to_owned()).spawn(move || {
            if let Err(error) = run_maintenance(&runner, &options, &stop) {
                log::warn!("the daily work was not done: {error}");
            }
        });
        match thread {
            Ok(thread) => self.maintenance = Some(MaintenanceThread { cancel, thread }),
            Err(error) => log::error!("the daily work could not be started: {error}"),
        }
    }

    /// Naps until the next instant, an event, or somebody else's commit.
    fn wait(&mut self, events: &Receiver<Event>, next: Option<Timestamp>) {
        let until = self.runner.clock.monotonic() + NAP;
        loop {
            let now = self.runner.clock.now();
            let due = next.map_or(NAP, |at| at.since(now));
            let rest = until.saturating_sub(self.runner.clock.monotonic());
            let pause = POLL.min(due).min(rest);
            match events.recv_timeout(pause) {
                Ok(Event::Stop) => self.stop = Some(StopRequest::Drain),
                Ok(Event::RunEnded(_)) => {}
                Err(_) if pause.is_zero() || !self.runner.store.is_in_place() => {}
                Err(_) if self.last_tick.is_some_and(|last| self.runner.clock.now() < last) => return,
                Err(_) if self.text_file.as_ref().is_some_and(import_export::TextFileState::has_changed) => {}
                Err(_) => match self.watch.changed() {
                    Ok(false) => continue,
                    Ok(true) => return,
                    Err(error) => {
                        log::error!("cannot look for changes: {error}");
                        continue;
                    }
                },
            }
            return;
        }
    }

    /// Lets running work finish within the grace, then cancels it; it goes back into the queue (I10).
    fn drain(&mut self, events: &Receiver<Event>) -> Result<()> {
        let maintenance = self.maintenance.take();
        if let Some(maintenance) = &maintenance {
            maintenance.cancel.cancel();
        }
        let started = self.runner.clock.monotonic();
        let grace = if self.stop == Some(StopRequest::Now) { Duration::ZERO } else { self.options.grace };
        let mut cancelled = false;
        log::info!("stopping: {} runs under way", lock(&self.active).len());
        while !lock(&self.active).is_empty() {
            let asked = self.runner.store.stop_request(self.runner.row.uuid).unwrap_or(None);
            let over = self.runner.clock.monotonic().saturating_sub(started) >= grace;
            if !cancelled && (over || asked == Some(StopRequest::Now)) {
                cancelled = true;
                lock(&self.active).values().for_each(|cancel| cancel.drain());
            }
            if let Ok(Event::Stop) = events.recv_timeout(POLL) {
                cancelled = true;
                lock(&self.active).values().for_each(|cancel| cancel.drain());
            }
        }
        // It notices at the next chunk.
        if maintenance.is_some_and(|maintenance| maintenance.thread.join().is_err()) {
            log::error!("the daily work panicked");
        }
        self.sign_off()
    }

    /// Ends the registration; nothing of the service is left behind.
    pub fn sign_off(&mut self) -> Result<()> {
        self.runner.store.remove_worker(self.runner.row.uuid)
    }
}

/// Returns the process number of a live service of the database.
pub fn serving(runner: &Runner) -> Result<Option<u32>> {
    let workers = runner.home.workers();
    let rows = runner.store.workers()?;
    Ok(rows.iter().find(|row| row.role == Role::Service && liveness::is_alive(&workers, &row.uuid)).map(|row| row.pid))
}

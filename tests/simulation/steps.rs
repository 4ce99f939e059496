//! The steps, and what must hold after each.

#[path = "changes.rs"]
mod changes;
#[path = "crashes.rs"]
mod crashes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backup_manager::backup::{RecoveryReport, RunContext, Runner, recover};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::{Clock, Timestamp};
use backup_manager::error::ErrorKind;
use backup_manager::service::{Options, Service};
use backup_manager::store::{
    Claim, ClaimNow, Due, EnqueueOutcome, Intent, Requeue, Role, RunRequest, RunState, StopRequest, Watermark,
};
use chrono_tz::Tz;
use crashes::Zombie;
use uuid::Uuid;

use crate::model::Expected;
use crate::stages::Silent;
use crate::stress::promises::{Promises, When, difference, snapshot};
use crate::stress::random::Random;
use crate::stress::{fast_folder, print};
use crate::world::{DAY, HOUR, MINUTE, World};

const NAMES: [&str; 3] = ["docs", "code", "mail"];

/// A process: a service, or a command that carries runs out.
struct Process {
    runner: Runner,
    service: Option<Service>,
    last_tick: Option<Timestamp>,
    held: Option<(Claim, Intent)>,
}

pub struct Simulation {
    random: Random,
    world: World,
    processes: Vec<Process>,
    zombies: Vec<Zombie>,
    schedules: Vec<Expected>,
    stale: Option<(Due, Timestamp)>,
    zone: Tz,
    mounted: bool,
    promises: Promises,
    log: Vec<String>,
    is_verbose: bool,
}

impl Simulation {
    pub fn new(seed: u64, is_verbose: bool) -> Simulation {
        let mut simulation = Simulation {
            random: Random::seeded(seed),
            world: World::within(fast_folder()),
            processes: Vec::new(),
            zombies: Vec::new(),
            schedules: Vec::new(),
            stale: None,
            zone: Tz::UTC,
            mounted: true,
            promises: Promises::default(),
            log: Vec::new(),
            is_verbose,
        };
        for name in &NAMES[..2] {
            simulation.create(name);
        }
        simulation
    }

    pub fn log(&self) -> &[String] {
        &self.log
    }

    pub fn archives_read(&self) -> u64 {
        self.promises.archives_read
    }

    fn note(&mut self, text: String) {
        let line = format!("{} {text}", self.now().rfc3339(&chrono::Utc));
        if self.is_verbose {
            print(&line);
        }
        self.log.push(line);
    }

    fn now(&self) -> Timestamp {
        self.world.clock.now()
    }

    pub fn step(&mut self) {
        match self.random.below(100) {
            0..=21 => self.pass_time(),
            22..=24 => self.set_clock(),
            25..=47 => self.tick(),
            48..=61 => self.claim(),
            62..=66 => self.finish(),
            67..=75 => self.crash(),
            76..=78 => self.run_now(),
            79..=80 => self.kill(),
            81 => self.stop(),
            82 => self.start(),
            83..=86 => self.edit(),
            87 => self.delete_or_create(),
            88..=90 => self.change_source(),
            91..=92 => self.resume_zombie(),
            93 => self.crash_after_takeover(),
            94..=95 => self.delete_archive(),
            96 => self.enqueue_stale(),
            97 => self.mount(),
            98 => self.cancel(),
            _ => self.recover_twice(),
        }
    }

    fn pass_time(&mut self) {
        let longest = *self.random.pick(&[MINUTE, MINUTE * 10, HOUR, HOUR * 6, DAY, DAY * 3]);
        let time = Duration::from_millis(self.random.between(1, longest.as_millis() as u64));
        self.world.clock.advance(time);
        self.note(format!("{time:?} pass"));
    }

    fn set_clock(&mut self) {
        let by = *self.random.pick(&[MINUTE * 5, HOUR, HOUR * 2, HOUR * 5, DAY, DAY * 40, DAY * 365]);
        let now = if self.random.one_in(2) { self.now().plus(by) } else { self.now().minus(by) };
        self.world.clock.set(now);
        self.note(format!("the clock is set by {by:?}"));
    }

    fn start(&mut self) {
        if self.processes.len() > 4 {
            return;
        }
        if self.processes.iter().all(|process| process.service.is_none()) {
            self.zone = *self.random.pick(&[Tz::UTC, Tz::Asia__Kolkata]);
        }
        let runner = Runner { threads: 1, ..self.world.process(Role::Service) };
        let options = Options {
            // The run of a lost thread takes up a place until the end.
            workers: 9,
            grace: MINUTE,
            zone: self.zone,
            import: None,
            config: None,
            maintenance: Default::default(),
            scratch: None,
        };
        let service = Service::register(runner.clone(), options, true).unwrap();
        self.processes.push(Process { runner, service: Some(service), last_tick: None, held: None });
        self.note(format!("a service starts, in {}", self.zone));
    }

    fn service(&mut self) -> usize {
        let services: Vec<usize> =
            (0..self.processes.len()).filter(|&at| self.processes[at].service.is_some()).collect();
        if services.is_empty() {
            self.start();
            return self.processes.len() - 1;
        }
        *self.random.pick(&services)
    }

    fn tick(&mut self) {
        let at = self.service();
        let now = self.now();
        self.note(format!("service {at} ticks"));
        let known = self.known();
        let zone = if self.zone == Tz::UTC { 0 } else { 330 };
        let process = &mut self.processes[at];
        if process.last_tick.is_none_or(|last| now < last) {
            self.schedules.iter_mut().for_each(|schedule| schedule.reset_future_watermark(now));
        }
        process.last_tick = Some(now);
        process.service.as_mut().expect("a service").tick().unwrap();
        let runs = self.world.runs();
        for schedule in &mut self.schedules {
            let id = schedule.id;
            let Some(newest) = schedule.tick(zone, now, |instant| known.contains(&(id, instant))) else {
                continue;
            };
            let instant = Some(Timestamp::from_millis(newest));
            let run = runs.iter().find(|run| run.schedule_id == id && run.scheduled_for == instant);
            let run = run.unwrap_or_else(|| panic!("{}: due at {newest}, and no run exists for it", schedule.name));
            let missed = schedule.skip && now.millis() - newest > 120_000;
            let is_as_expected = known.contains(&(id, newest)) || (run.state == RunState::Missed) == missed;
            assert!(is_as_expected, "{}: due at {newest}, {:?} at {now:?}", schedule.name, run.state);
        }
        let living: BTreeSet<Uuid> = self.processes.iter().map(|process| process.runner.row.uuid).collect();
        for run in self.world.store.running().unwrap() {
            assert!(
                !self.mounted || run.worker.is_some_and(|uuid| living.contains(&uuid)),
                "@{} was not recovered",
                run.id
            );
        }
    }

    /// Returns every instant that has a run, with its schedule.
    fn known(&self) -> BTreeSet<(i64, i64)> {
        let runs = self.world.runs();
        runs.iter().filter_map(|run| run.scheduled_for.map(|at| (run.schedule_id, at.millis()))).collect()
    }

    fn claim(&mut self) {
        let at = self.service();
        if self.processes[at].held.is_some() {
            return self.finish();
        }
        let claimed = self.processes[at].service.as_ref().expect("a service").claim().unwrap();
        let Some(held) = claimed else { return };
        self.note(format!("service {at} claims @{}", held.0.run()));
        self.processes[at].held = Some(held);
        if self.random.one_in(2) {
            self.end(at);
        }
    }

    fn finish(&mut self) {
        let busy: Vec<usize> = (0..self.processes.len()).filter(|&at| self.processes[at].held.is_some()).collect();
        if !busy.is_empty() {
            let at = *self.random.pick(&busy);
            self.end(at);
        }
    }

    /// Carries out the run that a process holds; a command may be cancelled or stopped meanwhile.
    fn end(&mut self, at: usize) {
        let Some((claim, intent)) = self.processes[at].held.take() else { return };
        let run = claim.run();
        let process = &self.processes[at];
        let ended = match &process.service {
            Some(service) => service.execute(claim, &intent),
            None => {
                let cancel = CancelToken::default();
                match self.random.below(6) {
                    0 => cancel.cancel(),
                    1 => cancel.cancel_and_requeue(),
                    _ => {}
                }
                let context = RunContext { cancel: &cancel, observer: &Silent, is_foreground: self.random.one_in(2) };
                process.runner.execute(claim, &intent, &context)
            }
        };
        let line = match ended {
            Ok(ended) => format!("@{run} ends {:?} ({:?})", ended.state, ended.error.map(|e| e.to_string())),
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::Fenced, "@{run} was taken from a living worker: {error}");
                format!("@{run} does not end: {error}")
            }
        };
        self.note(line);
    }

    fn run_now(&mut self) {
        let schedule = self.random.pick(&self.schedules).clone();
        if schedule.deleted {
            return;
        }
        let runner = Runner { threads: 1, ..self.world.process(Role::Command) };
        let request = RunRequest { verify: !self.random.one_in(6), reread: false };
        let (claimed, intent) = self.world.store.claim_now(schedule.id, request, &runner.row, self.now()).unwrap();
        let ClaimNow::Claimed(claim) = claimed else {
            self.world.store.remove_worker(runner.row.uuid).unwrap();
            return;
        };
        self.note(format!("a command runs {}: @{}", schedule.name, claim.run()));
        let held = Some((claim, intent.unwrap()));
        self.processes.push(Process { runner, service: None, last_tick: None, held });
        if self.random.one_in(2) {
            let at = self.processes.len() - 1;
            self.end(at);
            let process = self.processes.remove(at);
            self.world.store.remove_worker(process.runner.row.uuid).unwrap();
        }
    }

    fn snapshot(&self) -> String {
        snapshot(self.world.dir.path())
    }

    fn assert_unchanged(&self, before: &str, actor: &str) {
        let mut changed = difference(before, &self.snapshot());
        // Whichever process comes first writes the owner of the folder; its content is the same in each case.
        changed.retain(|line| !(line.starts_with("+ ") && line.contains("/backups/.backup-manager ")));
        assert!(changed.is_empty(), "{actor} changed something: {}", changed.join("; "));
    }

    fn stop(&mut self) {
        let at = self.service();
        let uuid = self.processes[at].runner.row.uuid;
        self.world.store.request_stop(uuid, StopRequest::Drain).unwrap();
        self.note(format!("service {at} stops"));
        let tick = self.processes[at].service.as_mut().expect("a service").tick().unwrap();
        assert_eq!(tick.enqueued, 0, "a service that stops enqueues nothing (I10)");
        assert!(self.processes[at].service.as_ref().expect("a service").claim().unwrap().is_none());
        if self.random.one_in(2) {
            self.end(at);
        } else if let Some((claim, _)) = self.processes[at].held.take() {
            self.world.store.discard_chunks(&claim).unwrap();
            let now = self.now();
            self.world.store.requeue(claim, Requeue::Refund, "the service was stopped", now).unwrap();
        }
        self.processes[at].service.as_mut().expect("a service").unregister().unwrap();
        self.processes.remove(at);
    }

    /// A service computed long ago what is due, and enqueues it now.
    fn enqueue_stale(&mut self) {
        let now = self.now();
        let Some((due, _)) = self.stale.take() else {
            let row = self.world.store.schedules().unwrap().into_iter().next();
            let Some(row) = row.filter(|row| row.schedule.enabled) else { return };
            let zone = row.schedule.zone.unwrap_or(self.zone);
            let cadence = row.schedule.cadence.as_ref().expect("a cadence");
            let later = now.plus(DAY);
            let Some(found) = cadence.due_occurrences(zone, row.watermark.handled_until, later, 1_000) else { return };
            let to = Watermark::starting(&row.schedule, self.zone, later);
            let (occurrence, count) = (found.newest, found.count);
            let due = Due { schedule: row.id, from: row.watermark, to, occurrence, count, missed: false };
            self.stale = Some((due, now));
            return;
        };
        let known = self.known().contains(&(due.schedule, due.occurrence.millis()));
        let row = self.world.store.schedule(due.schedule).unwrap();
        let schedule = self.schedules.iter_mut().find(|s| s.id == due.schedule).expect("a schedule");
        let current = row.watermark == due.from && schedule.enabled && !schedule.deleted;
        let done = self.world.store.enqueue_due(&due, now).unwrap();
        assert_eq!(done == EnqueueOutcome::Overtaken, !current, "{done:?} from {:?} on {:?}", due.from, row.watermark);
        if current {
            schedule.handled = due.to.handled_until.millis();
            schedule.accounted += if known { 0 } else { due.count };
        }
        self.note(format!("a stale service enqueues: {done:?}"));
    }

    fn cancel(&mut self) {
        let schedule = self.random.pick(&self.schedules).clone();
        self.world.store.cancel(schedule.id, self.now()).unwrap();
        self.note(format!("{} is cancelled", schedule.name));
    }

    fn recover_twice(&mut self) {
        let runner = self.world.process(Role::Command);
        let cancel = CancelToken::default();
        let context = RunContext { cancel: &cancel, observer: &Silent, is_foreground: false };
        recover(&runner, &context).unwrap();
        if self.mounted {
            let before = self.snapshot();
            let again = recover(&runner, &context).unwrap();
            assert_eq!(again, RecoveryReport::default(), "a second recovery found something");
            self.assert_unchanged(&before, "a second recovery");
        }
        self.world.store.remove_worker(runner.row.uuid).unwrap();
        self.note("a command recovers".to_owned());
    }

    pub fn check(&mut self) {
        if self.mounted {
            let violations = self.promises.violations(self.world.dir.path(), When::Always);
            assert!(violations.is_empty(), "{}", violations.join("; "));
        }
        let mut accounted: BTreeMap<i64, u64> = BTreeMap::new();
        for run in self.world.runs().iter().filter(|run| run.scheduled_for.is_some() && run.superseded_by.is_none()) {
            *accounted.entry(run.schedule_id).or_default() += 1 + run.coalesced;
        }
        for schedule in &self.schedules {
            let found = accounted.get(&schedule.id).copied().unwrap_or(0);
            assert_eq!(found, schedule.accounted, "occurrences of {} that are counted by runs (I2)", schedule.name);
        }
        for row in self.world.store.schedules().unwrap() {
            let schedule = self.schedules.iter().find(|s| s.id == row.id).expect("a schedule");
            let found = row.watermark.handled_until.millis();
            assert!(!schedule.enabled || found == schedule.handled, "{}: handled {found}", schedule.name);
        }
    }

    /// Kills all processes and lets one service recover; after that everything must be as if nothing had happened.
    pub fn settle(&mut self) {
        if !self.mounted {
            self.mount();
        }
        self.zombies.clear();
        while !self.processes.is_empty() {
            self.remove_process(0);
        }
        NAMES.iter().for_each(|name| self.fill_source(name));
        self.start();
        for _ in 0..6 {
            self.tick();
            self.claim();
            self.finish();
            self.check();
            self.world.clock.advance(MINUTE * 10);
        }
        self.tick();
        let violations = self.promises.violations(self.world.dir.path(), When::Settled);
        assert!(violations.is_empty(), "in the end: {}", violations.join("; "));
        let before = self.snapshot();
        self.tick();
        self.assert_unchanged(&before, "a second tick");
        self.assert_duplicates_are_refused();
    }

    /// Whatever the program checks first, the database itself refuses a second run where there may be only one (I2).
    fn assert_duplicates_are_refused(&self) {
        let mut connection = rusqlite::Connection::open(self.world.home.db()).unwrap();
        let transaction = connection.transaction().unwrap();
        for (what, row) in [
            ("of one occurrence", "'schedule', 7, 'missed', NULL, 0, 0, 0"),
            ("queued", "'manual', NULL, 'queued', NULL, 0, 0, NULL"),
            ("running", "'manual', NULL, 'running', 'nobody', 0, 0, NULL"),
        ] {
            let insert = format!(
                "INSERT INTO run (schedule_id, trigger, scheduled_for_ms, state, worker, not_before_ms, \
                     queued_at_ms, finished_at_ms) \
                 SELECT id, {row} FROM (SELECT id FROM schedule LIMIT 1), (SELECT 1 UNION ALL SELECT 2)"
            );
            let refused = transaction.execute(&insert, []).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(refused.starts_with("UNIQUE constraint failed: run."), "two runs {what}: {refused:?} (I2)");
        }
    }
}

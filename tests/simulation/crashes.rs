//! Crashes of processes and threads, and workers that go on after others took them for dead.

use std::collections::BTreeSet;
use std::fs;

use backup_manager::backup::{RunContext, Runner, recover};
use backup_manager::cancel::CancelToken;
use backup_manager::error::ErrorKind;
use backup_manager::store::{Claim, Completed, Intent, Requeue, Role, RunState};
use uuid::Uuid;

use super::Simulation;
use crate::stages::{CancelOnRetry, STAGES, Silent, Stage, carry_to};
use crate::world::MINUTE;

/// A worker that all others take for dead, and that resumes its run later.
pub struct Zombie {
    runner: Runner,
    claim: Claim,
    intent: Intent,
    stage: Stage,
}

impl Simulation {
    /// Ends the process at `at` without any clean-up; its heartbeat file stays, or not.
    pub(super) fn remove_process(&mut self, at: usize) -> Uuid {
        let process = self.processes.remove(at);
        let uuid = process.runner.row.uuid;
        drop(process);
        if self.random.one_in(2) {
            fs::write(self.world.home.workers().join(uuid.to_string()), "").unwrap();
        }
        uuid
    }

    pub(super) fn kill(&mut self) {
        if self.processes.is_empty() {
            return;
        }
        let at = self.random.below(self.processes.len());
        self.note(format!("process {at} is killed"));
        self.remove_process(at);
    }

    /// A process that holds a run carries it to some stage and crashes, or loses the thread that carries it out.
    pub(super) fn crash(&mut self) {
        let busy: Vec<usize> = (0..self.processes.len()).filter(|&at| self.processes[at].held.is_some()).collect();
        if busy.is_empty() {
            return self.claim();
        }
        let at = *self.random.pick(&busy);
        let Some((claim, intent)) = self.processes[at].held.take() else { return };
        let stage: Stage = *self.random.pick(&STAGES);
        let run = claim.run();
        let (claim, carried) = carry_to(&self.world, &self.processes[at].runner, claim, &intent, stage);
        let mut resumed = self.processes[at].runner.clone();
        // The lock ends with the process, and a clone would hold it.
        resumed.worker = self.world.process(Role::Service).worker;
        if self.random.one_in(3) {
            self.note(format!("process {at} loses its thread for @{run} at {stage:?}: {carried:?}"));
            self.zombies.extend(claim.map(|claim| Zombie { runner: resumed, claim, intent, stage }));
            return self.recover_lost_thread(at);
        }
        self.note(format!("process {at} crashes with @{run} at {stage:?}: {carried:?}"));
        self.remove_process(at);
        if let (Some(claim), true) = (claim, self.random.one_in(2)) {
            self.zombies.push(Zombie { runner: resumed, claim, intent, stage });
        }
    }

    /// A process recovers the run of its own lost thread and may carry it out again: the worker is the same then, and
    /// only the attempt number distinguishes the two.
    fn recover_lost_thread(&mut self, at: usize) {
        let context = RunContext { cancel: &CancelToken::default(), observer: &Silent, is_foreground: false };
        recover(&self.processes[at].runner, &context).unwrap();
        self.world.clock.advance(MINUTE * 6);
        let claimed = self.processes[at].service.as_ref().and_then(|service| service.claim().unwrap());
        self.processes[at].held = claimed;
        if self.random.one_in(2) {
            self.resume_zombie();
        }
    }

    pub(super) fn resume_zombie(&mut self) {
        if self.zombies.is_empty() {
            return;
        }
        let at = self.random.below(self.zombies.len());
        let run = self.world.store.run(self.zombies[at].claim.run()).unwrap();
        let Zombie { runner, claim, .. } = &self.zombies[at];
        if run.worker == Some(runner.row.uuid) && run.attempt == claim.attempt() && run.state == RunState::Running {
            // Nobody has recovered the run yet, and no process restarts its own attempt.
            return;
        }
        let Zombie { runner, claim, intent, stage } = self.zombies.remove(at);
        // A worker that already has a temporary file does not restart its attempt.
        let act = self.random.below(if stage == Stage::Claimed { 6 } else { 4 });
        self.note(format!("a zombie resumes @{}: {act}", run.id));
        let (store, now, before) = (&self.world.store, self.now(), self.snapshot());
        let completed = Completed { verified_at: Some(now), ..Completed::default() };
        let ended = match act {
            0 => store.check_claim(&claim),
            1 => store.discard_chunks(&claim),
            2 => store.complete(claim, &completed, now).map(drop).map_err(|unended| unended.error),
            3 => store.requeue(claim, Requeue::Retry, "late", now).map(drop).map_err(|unended| unended.error),
            _ => {
                let cancel = CancelToken::default();
                let context = RunContext { cancel: &cancel, observer: &CancelOnRetry(&cancel), is_foreground: false };
                runner.execute(claim, &intent, &context).map(drop)
            }
        };
        let kind = ended.err().map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::Fenced), "@{} was written by a worker that had lost it (I4)", run.id);
        self.assert_unchanged(&before, "a worker that had lost its run");
    }

    /// Takes over the run of a dead worker, and crashes before recovering it.
    pub(super) fn crash_after_takeover(&mut self) {
        let living: BTreeSet<Uuid> = self.processes.iter().map(|process| process.runner.row.uuid).collect();
        let running = self.world.store.running().unwrap();
        let Some(run) = running.iter().find(|run| run.worker.is_some_and(|uuid| !living.contains(&uuid))) else {
            return;
        };
        let heir = self.world.process(Role::Command);
        let dead = run.worker.expect("a worker");
        let taken = self.world.store.take_over(run.id, dead, run.attempt, &heir.row, self.now()).unwrap();
        self.note(format!("a command takes over @{} and crashes: {}", run.id, taken.is_some()));
    }
}

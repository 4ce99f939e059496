//! Services and commands as steps on one real store, with a clock that jumps and crashes between any two steps. After
//! each step the promises are checked, and the occurrences are compared with those that an independent model computes.
//!
//! `BACKUP_SEED=n` replays one seed and prints its steps; `BACKUP_STRESS=full` runs 10,000 seeds.

#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/stages.rs"]
mod stages;
#[path = "simulation/steps.rs"]
mod steps;
#[path = "stress/mod.rs"]
mod stress;
#[path = "support/world.rs"]
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use steps::Simulation;

const QUICK: u64 = 80;
const FULL: u64 = 10_000;
const STEPS: usize = 70;

/// Runs one seed, and returns how many archives were read whole, or the violation and the steps that led to it.
fn play(seed: u64, is_verbose: bool) -> Result<u64, String> {
    let mut simulation = Simulation::new(seed, is_verbose);
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            simulation.step();
            simulation.check();
        }
        simulation.settle();
    }));
    match outcome {
        Ok(()) => Ok(simulation.archives_read()),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
            Err(format!("seed {seed}: {why}\n  replay it with BACKUP_SEED={seed}\n  {}", simulation.log().join("\n  ")))
        }
    }
}

#[test]
fn the_promises_hold_after_every_step() {
    if let Some(seed) = stress::number("BACKUP_SEED") {
        play(seed, true).unwrap_or_else(|why| panic!("{why}"));
        return;
    }
    let seeds = stress::number("BACKUP_SEEDS").unwrap_or(if stress::full() { FULL } else { QUICK });
    let (next, archives, started) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let failures = thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut failures = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::SeqCst);
                        if seed >= seeds || failures.len() >= 3 {
                            return failures;
                        }
                        match play(seed, false) {
                            Ok(read) => drop(archives.fetch_add(read, Ordering::SeqCst)),
                            Err(why) => failures.push(why),
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect::<Vec<_>>()
    });
    stress::print(&format!(
        "simulation: {seeds} seeds of {STEPS} steps, {} archives read whole, {} violations, {:.1} s",
        archives.load(Ordering::SeqCst),
        failures.len(),
        started.elapsed().as_secs_f64()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

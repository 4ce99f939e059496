//! Services and commands as steps on one real store, by a clock that jumps, with deaths between any two steps; after
//! each step the promises are asked for, and the occurrences are reckoned by a model of its own.
//!
//! `BACKUP_SEED=n` replays one seed and tells its steps; `BACKUP_PROVE=full` goes through 10,000.

#[path = "simulation/accident.rs"]
mod accident;
#[path = "simulation/model.rs"]
mod model;
#[path = "prove/mod.rs"]
mod prove;
#[path = "simulation/steps.rs"]
mod steps;
#[path = "engine/world.rs"]
#[allow(dead_code, reason = "shared with the tests of the engine")]
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use steps::Simulation;

const QUICK: u64 = 80;
const FULL: u64 = 10_000;
const STEPS: usize = 70;

fn play(seed: u64, tell: bool) -> Result<u64, String> {
    let mut simulation = Simulation::new(seed, tell);
    let course = std::panic::catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            simulation.step();
            simulation.check();
        }
        simulation.settle();
    }));
    match course {
        Ok(()) => Ok(simulation.archives_read()),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
            Err(format!(
                "seed {seed}: {why}\n  replay it with BACKUP_SEED={seed}\n  {}",
                simulation.told().join("\n  ")
            ))
        }
    }
}

#[test]
fn whatever_happens_the_promises_hold() {
    if let Some(seed) = prove::number("BACKUP_SEED") {
        play(seed, true).unwrap_or_else(|why| panic!("{why}"));
        return;
    }
    let seeds = prove::number("BACKUP_SEEDS").unwrap_or(if prove::full() { FULL } else { QUICK });
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
    prove::say(&format!(
        "simulation: {seeds} seeds of {STEPS} steps, {} archives read whole, {} violations, {:.1} s",
        archives.load(Ordering::SeqCst),
        failures.len(),
        started.elapsed().as_secs_f64()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

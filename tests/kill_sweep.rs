//! The real program, killed at its Nth write, sync, rename, link, unlink or open, and met with errors there; then what
//! the next command makes of it.
//!
//! Calls are interrupted by `strace --inject`. `BACKUP_PROVE=full` goes through every N of every call; otherwise some.

#[path = "kill_sweep/harness.rs"]
mod harness;
#[path = "prove/mod.rs"]
mod prove;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use harness::{Case, Inject, Scenario, Templates};

/// Cases of each programme in the quick form.
const QUICK: usize = 40;

/// Goes through `cases` on two threads; returns what went wrong.
fn go_through(name: &str, cases: &[Case<'_>]) {
    let (next, started) = (AtomicUsize::new(0), Instant::now());
    let (wrong, struck) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match case.play() {
                        Ok(true) => drop(struck.fetch_add(1, Ordering::SeqCst)),
                        Ok(false) => {}
                        Err(why) => wrong.lock().expect("no panic").push(format!("{case}: {why}")),
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no panic");
    prove::say(&format!(
        "{name}: {} cases, {} struck, {} violations, {:.1} s",
        cases.len(),
        struck.load(Ordering::SeqCst),
        wrong.len(),
        started.elapsed().as_secs_f64()
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Every case, or in the quick form some of them, spread over all.
fn some<T>(cases: Vec<T>) -> Vec<T> {
    let only = prove::number("BACKUP_CASES").map_or(QUICK, |n| n as usize);
    let stride = if prove::full() { 1 } else { cases.len().div_ceil(only).max(1) };
    cases.into_iter().step_by(stride).collect()
}

fn sweep(name: &str, injections: &[Inject]) {
    if let Some(reason) = harness::cannot() {
        prove::say(&format!("skipped: {name}: {reason}"));
        return;
    }
    let templates = Templates::make();
    let scenarios: Vec<Scenario> = templates.scenarios();
    let mut cases = Vec::new();
    for scenario in &scenarios {
        for (call, most) in scenario.calls() {
            for n in 1..=most {
                cases.extend(injections.iter().map(|inject| Case { scenario, call: call.clone(), n, inject: *inject }));
            }
        }
    }
    go_through(name, &some(cases));
}

#[test]
fn killed_at_any_call_the_next_command_puts_it_right() {
    sweep("kill sweep", &[Inject::Kill]);
}

#[test]
fn failing_at_any_call_nothing_is_left_behind() {
    let errors = ["ENOSPC", "EIO", "EDQUOT", "EMFILE"];
    let injections: Vec<Inject> =
        errors.into_iter().flat_map(|error| [Inject::Once(error), Inject::ForGood(error)]).collect();
    sweep("errno sweep", &injections);
}

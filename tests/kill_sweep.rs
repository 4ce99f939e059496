//! The real program, killed at its Nth write, sync, rename, link, unlink or open, and met with errors there; then what
//! the next command makes of it.
//!
//! Calls are interrupted by `strace --inject`. `BACKUP_PROVE=full` goes through every N of every call; otherwise some.
//! `BACKUP_KIND=prune` goes through one kind of command only, `BACKUP_CALL=fsync` through one call, `BACKUP_CASES=n`
//! through about n cases, and `BACKUP_ERRORS=all` through every error at every call of every scenario, which takes
//! twice as long.

#[path = "kill_sweep/case.rs"]
mod case;
#[path = "kill_sweep/homes.rs"]
mod homes;
#[path = "kill_sweep/looks.rs"]
mod looks;
#[path = "prove/mod.rs"]
mod prove;
#[path = "kill_sweep/strike.rs"]
mod strike;
#[allow(dead_code, reason = "the tests of restoring use the rest")]
#[path = "support/tree.rs"]
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use case::Case;
use homes::Homes;
use strike::Inject;

/// Cases of each programme in the quick form.
const QUICK: usize = 40;

/// A case that takes longer is worth a word: something waits that nobody interrupts.
const SLOW: Duration = Duration::from_secs(5);

/// What became of the cases of one kind.
#[derive(Default)]
struct Count {
    cases: usize,
    struck: usize,
    violations: usize,
    spent: Duration,
}

/// Both programmes begin from the same homes, made once where they go on at the same time.
fn homes() -> Arc<Homes> {
    static SHARED: Mutex<Weak<Homes>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().expect("no panic");
    shared.upgrade().unwrap_or_else(|| {
        let homes = Arc::new(Homes::make());
        *shared = Arc::downgrade(&homes);
        homes
    })
}

/// Goes through `cases` on two threads, prints what it comes to, and fails where anything went wrong.
fn go_through(name: &str, cases: &[Case<'_>]) {
    let (next, started) = (AtomicUsize::new(0), Instant::now());
    let counts = Mutex::new(BTreeMap::<&str, Count>::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let began = Instant::now();
                    let outcome = case.play();
                    let mut counts = counts.lock().expect("no panic");
                    let count = counts.entry(case.scenario.kind).or_default();
                    count.cases += 1;
                    count.struck += usize::from(outcome != Ok(false));
                    count.violations += usize::from(outcome.is_err());
                    count.spent += began.elapsed();
                    if began.elapsed() > SLOW {
                        prove::say(&format!("slow: {case}: {:.1} s", began.elapsed().as_secs_f64()));
                    }
                    if let Err(why) = outcome {
                        prove::say(&format!("violation: {case}: {why}"));
                    }
                }
            });
        }
    });
    let (mut struck, mut wrong, mut lines) = (0, 0, String::new());
    for (kind, count) in counts.into_inner().expect("no panic") {
        let Count { cases, violations, spent, .. } = count;
        struck += count.struck;
        wrong += violations;
        let seconds = spent.as_secs_f64();
        lines +=
            &format!("\n  {kind}: {cases} cases, {} struck, {violations} violations, {seconds:.1} s", count.struck);
    }
    let (all, seconds) = (cases.len(), started.elapsed().as_secs_f64());
    prove::say(&format!("{name}: {all} cases, {struck} struck, {wrong} violations, {seconds:.1} s{lines}"));
    assert!(wrong == 0, "{wrong} violations, told above as they were met");
    assert!(struck * 2 > all, "most cases struck nothing: what is injected does not get there");
}

/// Every case, or in the quick form some of each kind, spread over all.
fn some(cases: Vec<Case<'_>>) -> Vec<Case<'_>> {
    let quick = (!prove::full()).then_some(QUICK);
    let Some(only) = prove::number("BACKUP_CASES").map(|n| n as usize).or(quick) else { return cases };
    let mut kinds: BTreeMap<&str, Vec<Case<'_>>> = BTreeMap::new();
    for case in cases {
        kinds.entry(case.scenario.kind).or_default().push(case);
    }
    let share = only.div_ceil(kinds.len().max(1)).max(1);
    let spread = |cases: Vec<_>| {
        // Odd, so that it meets every injection in turn.
        let stride = cases.len().div_ceil(share) | 1;
        cases.into_iter().skip(stride / 2).step_by(stride)
    };
    kinds.into_values().flat_map(spread).collect()
}

/// Strikes at every call of every scenario: with all the injections in the first of each kind, and in its others, which
/// take the same way through the calls, with one group of them after the other.
fn sweep(name: &str, injections: &[&[Inject]]) {
    if let Some(reason) = strike::cannot() {
        prove::say(&format!("skipped: {name}: {reason}"));
        return;
    }
    let homes = homes();
    let is_wanted = |variable, what: &str| std::env::var(variable).map_or(true, |only| what.contains(&only));
    let all = std::env::var("BACKUP_ERRORS").is_ok_and(|wanted| wanted == "all");
    let (mut cases, mut seen) = (Vec::new(), BTreeSet::new());
    for scenario in homes.scenarios.iter().filter(|scenario| is_wanted("BACKUP_KIND", scenario.kind)) {
        let whole = seen.insert(scenario.kind) || all;
        for (call, most) in scenario.calls.iter().filter(|(call, _)| is_wanted("BACKUP_CALL", call)) {
            for n in 1..=*most {
                let dealt = &injections[n % injections.len()];
                let injections = if whole { injections } else { std::slice::from_ref(dealt) };
                let case = |inject: &Inject| Case { scenario, call: call.clone(), n, inject: *inject };
                cases.extend(injections.iter().copied().flatten().map(case));
            }
        }
    }
    go_through(name, &some(cases));
}

#[test]
fn killed_at_any_call_the_next_command_puts_it_right() {
    sweep("kill sweep", &[&[Inject::Kill]]);
}

#[test]
fn failing_at_any_call_nothing_is_left_behind() {
    let errors = ["ENOSPC", "EIO", "EDQUOT", "EMFILE"].map(|error| [Inject::Once(error), Inject::ForGood(error)]);
    sweep("errno sweep", &errors.each_ref().map(|pair| &pair[..]));
}

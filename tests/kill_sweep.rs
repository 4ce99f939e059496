//! Kills the real program at its Nth write, sync, rename, link, unlink or open, or makes that call fail; then checks
//! what the next command makes of it.
//!
//! A backup with a base is also stopped at each call, while another command removes archives.
//!
//! Faults are injected by `strace --inject`. `BACKUP_STRESS=full` plays every N of every call; otherwise some.
//! `BACKUP_KIND=prune` plays one kind of command only, `BACKUP_CALL=fsync` one call, `BACKUP_CASES=n` about n cases,
//! and `BACKUP_ERRORS=all` every error at every call of every scenario, which takes twice as long.

#[path = "kill_sweep/beside.rs"]
mod beside;
#[path = "kill_sweep/case.rs"]
mod case;
#[path = "kill_sweep/fault.rs"]
mod fault;
#[path = "kill_sweep/homes.rs"]
mod homes;
#[path = "kill_sweep/older_schema.rs"]
mod older_schema;
#[path = "kill_sweep/state.rs"]
mod state;
#[path = "stress/mod.rs"]
mod stress;
#[path = "support/tree.rs"]
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use case::{Case, Scenario};
use fault::Fault;
use homes::Homes;

/// The number of cases of each sweep in the quick form.
const QUICK: usize = 40;

/// A case that takes longer is printed: something waits that nothing interrupts.
const SLOW: Duration = Duration::from_secs(5);

/// The outcomes of the cases of one kind.
#[derive(Default)]
struct Count {
    cases: usize,
    /// Cases in which the fault happened.
    hit: usize,
    violations: usize,
    spent: Duration,
}

/// Returns the homes to begin from. Both sweeps share them, so that they are made once if the sweeps run concurrently.
fn homes() -> Arc<Homes> {
    static SHARED: Mutex<Weak<Homes>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().expect("no panic");
    shared.upgrade().unwrap_or_else(|| {
        let homes = Arc::new(Homes::make());
        *shared = Arc::downgrade(&homes);
        homes
    })
}

/// Plays `cases` on two threads, prints the counts, and fails if there was any violation.
fn play_all(name: &str, cases: &[Case<'_>]) {
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
                    count.hit += usize::from(outcome != Ok(false));
                    count.violations += usize::from(outcome.is_err());
                    count.spent += began.elapsed();
                    if began.elapsed() > SLOW {
                        stress::print(&format!("slow: {case}: {:.1} s", began.elapsed().as_secs_f64()));
                    }
                    if let Err(why) = outcome {
                        stress::print(&format!("violation: {case}: {why}"));
                    }
                }
            });
        }
    });
    let (mut hits, mut wrong, mut lines) = (0, 0, String::new());
    for (kind, count) in counts.into_inner().expect("no panic") {
        let Count { cases, violations, spent, .. } = count;
        hits += count.hit;
        wrong += violations;
        let seconds = spent.as_secs_f64();
        lines += &format!("\n  {kind}: {cases} cases, {} hit, {violations} violations, {seconds:.1} s", count.hit);
    }
    let (all, seconds) = (cases.len(), started.elapsed().as_secs_f64());
    stress::print(&format!("{name}: {all} cases, {hits} hit, {wrong} violations, {seconds:.1} s{lines}"));
    assert!(wrong == 0, "{wrong} violations, printed above");
    assert!(hits * 2 > all, "most cases hit nothing: the faults are not injected");
}

/// Returns every case, or in the quick form some of each kind, spread over all.
fn select(cases: Vec<Case<'_>>) -> Vec<Case<'_>> {
    let quick = (!stress::full()).then_some(QUICK);
    let Some(only) = stress::number("BACKUP_CASES").map(|n| n as usize).or(quick) else { return cases };
    let mut kinds: BTreeMap<&str, Vec<Case<'_>>> = BTreeMap::new();
    for case in cases {
        kinds.entry(case.scenario.kind).or_default().push(case);
    }
    let share = only.div_ceil(kinds.len().max(1)).max(1);
    let spread = |cases: Vec<_>| {
        // Odd, so that it takes every fault in turn.
        let stride = cases.len().div_ceil(share) | 1;
        cases.into_iter().skip(stride / 2).step_by(stride)
    };
    kinds.into_values().flat_map(spread).collect()
}

/// Injects faults at every call of every scenario that `is_meant`: all of `faults` in the first scenario of each kind,
/// and in its others, which make the same calls, one group of faults after the other.
fn sweep(name: &str, faults: &[&[Fault]], is_meant: impl Fn(&Scenario, &str) -> bool) {
    if let Some(reason) = fault::why_unsupported() {
        stress::print(&format!("skipped: {name}: {reason}"));
        return;
    }
    let homes = homes();
    let is_wanted = |variable, what: &str| std::env::var(variable).map_or(true, |only| what.contains(&only));
    let all = std::env::var("BACKUP_ERRORS").is_ok_and(|wanted| wanted == "all");
    let (mut cases, mut seen) = (Vec::new(), BTreeSet::new());
    for scenario in homes.scenarios.iter().filter(|scenario| is_wanted("BACKUP_KIND", scenario.kind)) {
        let is_first = seen.insert(scenario.kind) || all;
        for (call, count) in scenario.calls.iter().filter(|(call, _)| is_wanted("BACKUP_CALL", call)) {
            if !is_meant(scenario, call) {
                continue;
            }
            for n in 1..=*count {
                let one_group = &faults[n % faults.len()];
                let faults = if is_first { faults } else { std::slice::from_ref(one_group) };
                let case = |fault: &Fault| Case { scenario, call: call.clone(), n, fault: *fault };
                cases.extend(faults.iter().copied().flatten().map(case));
            }
        }
    }
    play_all(name, &select(cases));
}

#[test]
fn the_next_command_recovers_from_a_kill_at_any_call() {
    sweep("kill sweep", &[&[Fault::Kill]], |_, _| true);
}

#[test]
fn an_error_at_any_call_leaves_nothing_behind() {
    let errors = ["ENOSPC", "EIO", "EDQUOT", "EMFILE"].map(|error| [Fault::Once(error), Fault::Always(error)]);
    sweep("errno sweep", &errors.each_ref().map(|pair| &pair[..]), |_, _| true);
}

#[test]
fn a_run_that_takes_from_its_base_lasts_beside_a_command_that_removes_archives() {
    let faults = [Fault::Stop, Fault::StopAndKill];
    sweep("sweep beside", &[&faults], |scenario, _| scenario.beside.is_some());
}

/// Calls that fail because of what a file or a file system is: links, names, modes, owners and copied ranges.
const OF_FILES: [&str; 16] = [
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "open",
    "openat",
    "openat2",
    "chmod",
    "fchmod",
    "fchown",
    "ioctl",
    "copy_file_range",
    "ftruncate",
];

#[test]
fn what_a_file_system_refuses_a_run_with_a_base_leaves_nothing_behind() {
    let errors = ["EMLINK", "EPERM", "EXDEV", "EOPNOTSUPP"].map(|error| [Fault::Once(error), Fault::Always(error)]);
    let is_meant = |scenario: &Scenario, call: &str| scenario.beside.is_some() && OF_FILES.contains(&call);
    sweep("errno sweep of files", &errors.each_ref().map(|pair| &pair[..]), is_meant);
}

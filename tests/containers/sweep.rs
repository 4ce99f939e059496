//! The program is killed at each request of a run to the engine: what it stopped is started by whoever comes next, and
//! what was stopped before stays so (I16).

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use backup_manager::store::DutyKind;

use super::fake_engine::{FakeContainer, Fault};
use super::runs::{STOP, Site, stack, text};

/// When the program is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Before the engine gets the request: after the commit of the duty that belongs to it.
    Unsent,
    /// Once the engine has got it and before it acts, which it does all the same.
    Received,
    /// Once the engine has acted and before it answers: before the commit that belongs to it.
    Done,
}

const MOMENTS: [Moment; 3] = [Moment::Unsent, Moment::Received, Moment::Done];

fn site() -> Site {
    Site::new(|source| {
        let mut containers = stack(source);
        let exec = FakeContainer::new("dump").bind(source).label("backup-manager.exec-before", "dump");
        containers.push(exec.label("backup-manager.exec-after", "clean"));
        containers
            .push(FakeContainer { status: "paused", ..FakeContainer::new("frozen").bind(source).label(STOP, "true") });
        containers
    })
}

fn statuses(site: &Site) -> BTreeMap<String, &'static str> {
    site.engine.state().containers.iter().map(|container| (container.name.clone(), container.status)).collect()
}

/// Runs the program and kills it at the request of this number; returns whether there was such a request.
fn run_and_kill(site: &Site, number: usize, moment: Moment) -> bool {
    let first = site.engine.state().requests.len();
    let pid = Arc::new(Mutex::new(None));
    let killed = Arc::clone(&pid);
    if matches!(moment, Moment::Unsent) {
        site.engine.state().fault_at = Some((first + number, Fault::CutBefore));
    }
    site.engine.state().watcher = Some(Box::new(move |request, is_done| {
        let is_moment = is_done == matches!(moment, Moment::Done);
        if request == first + number && is_moment {
            let pid: Option<rustix::process::Pid> = *killed.lock().unwrap();
            rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL).unwrap();
        }
    }));
    let mut command: Command = site.command(&["run", "photos"]);
    let child = {
        // The watcher waits for the process number.
        let mut pid = pid.lock().unwrap();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        *pid = Some(rustix::process::Pid::from_child(&child));
        child
    };
    let output = child.wait_with_output().unwrap();
    let mut state = site.engine.state();
    (state.watcher, state.fault_at) = (None, None);
    let is_killed = output.status.code().is_none();
    assert!(is_killed || output.status.success(), "{moment:?} {number}: {}", text(&output));
    is_killed
}

#[test]
fn what_a_killed_run_stopped_is_started_by_whoever_comes_next() {
    let mut counts = BTreeMap::new();
    for moment in MOMENTS {
        for number in 1.. {
            let site = site();
            let before = statuses(&site);
            if !run_and_kill(&site, number, moment) {
                break;
            }
            let stopped = statuses(&site).iter().filter(|(name, status)| before[*name] != **status).count();
            // The schedule may be deleted meanwhile.
            if number % 2 == 0 {
                site.ok(&["delete", "photos"]);
            }
            site.ok(&["run", "other"]);
            assert_eq!(statuses(&site), before, "{moment:?} at request {number}: {:#?}", site.engine.changes());
            // A stop that may be under way is waited for; each other duty is settled.
            let open = site.open(DutyKind::Start);
            let is_waiting = |error: &Option<String>| error.as_ref().is_some_and(|text| text.contains("under way"));
            assert!(open.iter().all(|duty| is_waiting(&duty.error)), "{moment:?} at request {number}: {open:?}");
            let count = counts.entry(format!("{moment:?}")).or_insert((0, 0, 0));
            *count = (count.0 + 1, count.1 + stopped, count.2 + open.len());
        }
    }
    for (moment, (kills, stopped, waiting)) in &counts {
        println!(
            "{moment}: {kills} kills, {stopped} containers down at the kill, {waiting} stops waited for, 0 violations"
        );
        assert!(*kills > 20 && (*stopped > 0), "{moment}");
    }
}

//! Due times, through the service: missed and late runs, clocks that step, time zones.

use backup_manager::clock::{Clock, Timestamp};
use backup_manager::schedule::CatchUp;
use backup_manager::store::{RunState, Watermark};
use chrono_tz::Tz;

use crate::world::{DAY, HOUR, MIDNIGHT, MINUTE, World};

#[test]
fn missed_occurrences_are_caught_up_by_one_run_that_counts_them() {
    let world = World::new();
    world.schedule("docs", "01:00");
    world.clock.advance(DAY * 10);
    let mut service = world.service(false);
    service.tick().unwrap();
    let runs = world.runs();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].scheduled_for, Some(MIDNIGHT.plus(DAY * 9 + HOUR)));
    assert_eq!(runs[0].coalesced, 9);
}

#[test]
fn with_skip_they_are_recorded_as_missed_and_the_next_one_runs() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    let mut schedule = row.schedule.clone();
    schedule.catch_up = CatchUp::Skip;
    world.store.edit_schedules(&[(row.id, schedule, row.watermark)], world.clock.now()).unwrap();
    world.clock.advance(DAY * 3);
    let mut service = world.service(false);
    service.tick().unwrap();
    assert_eq!(world.runs()[0].state, RunState::Missed);
    assert_eq!(world.runs()[0].coalesced, 2);
    world.clock.advance(HOUR);
    service.tick().unwrap();
    assert_eq!(world.runs()[1].state, RunState::Queued);
}

#[test]
fn nothing_that_was_due_before_an_edit_runs_after_it() {
    let world = World::new();
    let row = world.schedule("docs", "01:00");
    world.clock.advance(DAY * 2);
    let now = world.clock.now();
    let watermark = Watermark::starting(&row.schedule, Tz::UTC, now);
    world.store.edit_schedules(&[(row.id, row.schedule.clone(), watermark)], now).unwrap();
    let mut service = world.service(false);
    assert_eq!(service.tick().unwrap().enqueued, 0);
    assert_eq!(service.tick().unwrap().next, Some(MIDNIGHT.plus(DAY * 2 + HOUR)));
}

#[test]
fn a_clock_set_back_repeats_nothing() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    world.clock.advance(HOUR + MINUTE);
    service.tick().unwrap();
    world.clock.set(MIDNIGHT.plus(MINUTE * 30));
    service.tick().unwrap();
    world.clock.advance(HOUR);
    service.tick().unwrap();
    assert_eq!(world.runs().len(), 1);
    world.clock.advance(DAY);
    service.tick().unwrap();
    // The first is still queued, and now counts both.
    assert_eq!(world.runs()[0].coalesced, 1);
}

#[test]
fn after_a_clock_was_a_year_ahead_runs_continue_from_now() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let mut service = world.service(false);
    world.clock.set(MIDNIGHT.plus(DAY * 365));
    service.tick().unwrap();
    world.clock.set(MIDNIGHT.plus(DAY));
    let next = service.tick().unwrap().next;
    assert_eq!(next, Some(MIDNIGHT.plus(DAY + HOUR)));
    let process = world.process(backup_manager::store::Role::Command);
    let (claim, _) = world.claim(&process);
    world.store.end_without_archive(claim, RunState::Failed, "never mind", world.clock.now()).unwrap();
    world.clock.advance(HOUR);
    assert_eq!(service.tick().unwrap().enqueued, 1);
}

#[test]
fn another_zone_at_the_next_start_moves_the_next_occurrence() {
    let world = World::new();
    world.schedule("docs", "01:00");
    let next = |world: &World| world.store.schedules().unwrap()[0].watermark.next_due.unwrap();
    let mut utc = world.service_in(Tz::UTC, false);
    assert_eq!(next(&world), MIDNIGHT.plus(HOUR));
    utc.unregister().unwrap();
    drop(utc);
    let _paris = world.service_in(Tz::Europe__Paris, false);
    assert_eq!(next(&world), MIDNIGHT.plus(DAY), "01:00 in Paris is 00:00 UTC, and today's has passed");
}

#[test]
fn a_time_computed_in_the_zone_of_a_command_is_recomputed_at_the_next_start() {
    let world = World::new();
    let next = |world: &World| world.store.schedules().unwrap()[0].watermark.next_due.unwrap();
    world.service_in(Tz::Europe__Paris, false).unregister().unwrap();
    // A command in a shell without that zone computes 01:00 in UTC while no service runs.
    world.schedule("docs", "01:00");
    assert_eq!(next(&world), MIDNIGHT.plus(HOUR));
    let _paris = world.service_in(Tz::Europe__Paris, false);
    assert_eq!(next(&world), MIDNIGHT.plus(DAY), "01:00 in Paris is 00:00 UTC, and today's has passed");
}

#[test]
fn spring_and_autumn_in_paris_run_every_night_once() {
    let world = World::new();
    // From a week before each change to a week after, in steps of ten minutes.
    for (start, nights) in [("2026-03-22T12:00:00Z", 14), ("2026-10-18T12:00:00Z", 14)] {
        world.clock.set(Timestamp::parse_rfc3339(start).unwrap());
        let name = format!("night_{}", &start[5..7]);
        world.schedule(&name, "02:30");
        let mut service = world.service_in(Tz::Europe__Paris, true);
        let process = world.process(backup_manager::store::Role::Command);
        let before = world.runs().len();
        for _ in 0..(nights * 144) {
            world.clock.advance(MINUTE * 10);
            service.tick().unwrap();
            while let Some((claim, _)) = world.store.claim_next(&process.row, world.clock.now()).unwrap() {
                world.store.end_without_archive(claim, RunState::Failed, "counted", world.clock.now()).unwrap();
            }
        }
        assert_eq!(world.runs().len() - before, nights, "{start}");
        let row = world.store.schedule_named(&name).unwrap().unwrap();
        world.store.delete_schedule(row.id, world.clock.now()).unwrap();
        service.unregister().unwrap();
    }
}

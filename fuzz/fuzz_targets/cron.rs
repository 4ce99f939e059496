//! Cron expressions: none panics or computes without end, and what is accepted has occurrences that only rise.
#![no_main]

use backup_manager::clock::Timestamp;
use backup_manager::schedule::Cadence;
use libfuzzer_sys::fuzz_target;

const ZONES: [chrono_tz::Tz; 4] =
    [chrono_tz::UTC, chrono_tz::Europe::Berlin, chrono_tz::Australia::Lord_Howe, chrono_tz::Africa::Casablanca];

fuzz_target!(|text: &str| {
    let Ok(cadence) = Cadence::parse_cron(text) else { return };
    let Cadence::Cron(expression) = &cadence else { panic!("{text:?} is no cron expression") };
    assert_eq!(Cadence::parse_cron(expression.as_str()).ok().as_ref(), Some(&cadence), "{text:?} is not read back");
    let zone = ZONES[text.len() % ZONES.len()];
    let mut last = Timestamp::from_millis(1_774_659_600_000);
    for _ in 0..3 {
        let Some(next) = cadence.next_after(zone, last) else { break };
        assert!(next > last, "{text:?}: {next:?} is not after {last:?}");
        last = next;
    }
    assert!(!cadence.period(zone, last).is_zero(), "{text:?} has no period");
});

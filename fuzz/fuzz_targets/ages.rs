//! Ages, durations and times as options have them: none panics, and an age is printed in a form that is read back.
#![no_main]

use backup_manager::clock::Timestamp;
use backup_manager::schedule::{format_age, parse_age, parse_duration, parse_since, parse_when};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let now = Timestamp::from_millis(1_774_659_600_000);
    for zone in [chrono_tz::UTC, chrono_tz::America::New_York, chrono_tz::Asia::Kolkata] {
        let (since, until) = (parse_since(text, zone, now), parse_when(text, zone, now));
        assert_eq!(since.is_ok(), until.is_ok(), "{text:?} is a time only in one way");
        if let (Ok(since), Ok(until)) = (since, until) {
            assert!(since <= until, "{text:?} ends before it begins");
            let _printed = (since.rfc3339(&zone), until.rfc3339(&zone));
        }
    }
    if let Ok(age) = parse_age(text) {
        assert_eq!(parse_age(&format_age(age)).ok(), Some(age), "{text:?} is not read back");
        assert_eq!(parse_duration(text).ok(), Some(age), "{text:?} is another duration");
        let _limit = now.minus(age);
    }
    let _duration = parse_duration(text);
});

//! Compares `Cadence` with a walk through every minute, around the clock changes of the time zones.
//!
//! The walk shares nothing with the program except the table of offsets: no parsing, no calendar, no search. Every test
//! run walks a few unusual zones; `BACKUP_STRESS=full cargo test --release --test cadence_oracle -- --nocapture` walks
//! every zone and every change, and prints their number.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use backup_manager::clock::Timestamp;
use backup_manager::schedule::{Cadence, DueOccurrences};
use chrono::{DateTime, Offset, TimeZone};
use chrono_tz::{TZ_VARIANTS, Tz};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// Seconds before and after a change in which all occurrences are compared.
const BEFORE: i64 = 27 * HOUR;
const AFTER: i64 = 75 * HOUR;
/// Seconds by which a walk starts earlier, to know what the wall clock has already shown.
const WARM_UP: i64 = 49 * HOUR;

fn offset(zone: Tz, at: i64) -> i64 {
    let utc = DateTime::from_timestamp(at, 0).expect("within the years of this test").naive_utc();
    i64::from(zone.offset_from_utc_datetime(&utc).fix().local_minus_utc())
}

fn year_begins(year: i64) -> i64 {
    let leap_days = |years: i64| years / 4 - years / 100 + years / 400;
    ((year - 1_970) * 365 + leap_days(year - 1) - leap_days(1_969)) * DAY
}

/// Returns the instants from the year `first` up to the year `last` at which the offset of a zone changes.
fn changes(zone: Tz, first: i64, last: i64) -> Vec<i64> {
    let mut found = Vec::new();
    let (mut at, end) = (year_begins(first), year_begins(last));
    while at < end {
        let next = at + 2 * HOUR;
        if offset(zone, at) != offset(zone, next) {
            let (mut low, mut high) = (at, next);
            while high - low > 1 {
                let middle = (low + high) / 2;
                if offset(zone, middle) == offset(zone, low) { low = middle } else { high = middle }
            }
            found.push(high);
        }
        at = next;
    }
    found
}

/// A cadence as plain numbers, with its text for the program.
struct Pattern {
    text: String,
    minutes_of_day: Vec<i64>,
    weekday: Option<i64>,
    days_of_month: Vec<i64>,
    fixed: bool,
}

impl Pattern {
    /// Returns whether a minute of the wall clock (counted from 1970 there) matches.
    fn matches(&self, minute: i64) -> bool {
        let day = minute.div_euclid(1_440);
        self.minutes_of_day.binary_search(&minute.rem_euclid(1_440)).is_ok()
            // 1970-01-01 was a Thursday, which is number 4.
            && self.weekday.is_none_or(|weekday| (day + 4).rem_euclid(7) == weekday)
            && (self.days_of_month.is_empty() || self.days_of_month.contains(&day_of_month(day)))
    }
}

/// Returns the day of the month, counted through years and months from 1600 on.
fn day_of_month(day: i64) -> i64 {
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut left = day - year_begins(1_600) / DAY;
    let mut year = 1_600 + 400 * (left / 146_097);
    left %= 146_097;
    while left >= 365 + i64::from(is_leap(year)) {
        left -= 365 + i64::from(is_leap(year));
        year += 1;
    }
    for length in [31, 28 + i64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
    }
    left + 1
}

/// Returns the eight cadences for a change: `shown` is the minute in the middle of its gap or overlap.
fn patterns(shown: i64) -> Vec<Pattern> {
    let clock = |minute: i64| format!("{:02}:{:02}", minute / 60, minute % 60);
    let near = |by: i64| (shown + by).rem_euclid(1_440);
    let daily = |mut minutes: Vec<i64>| {
        let text = minutes.iter().map(|&minute| clock(minute)).collect::<Vec<_>>().join(",");
        minutes.sort_unstable();
        Pattern { text, minutes_of_day: minutes, weekday: None, days_of_month: vec![], fixed: true }
    };
    let cron = |text: String, minutes_of_day: Vec<i64>| Pattern {
        text: format!("cron {text}"),
        minutes_of_day,
        weekday: None,
        days_of_month: vec![],
        fixed: false,
    };
    let (hour, minute, day) = (near(0) / 60, near(0) % 60, shown.div_euclid(1_440));
    let (weekday, month_day) = ((day + 4).rem_euclid(7), day_of_month(day));
    let next_hour = if hour == 23 { 0 } else { hour + 1 };
    let mut two_hours = vec![hour * 60 + minute, next_hour * 60 + minute];
    two_hours.sort_unstable();
    vec![
        daily(vec![near(0)]),
        daily(vec![near(-61)]),
        daily(vec![near(61)]),
        daily(vec![near(0), near(11), near(-17), near(700), 0]),
        cron("*/15 * * * *".to_owned(), (0..1_440).step_by(15).collect()),
        cron(format!("{minute} * * * *"), (0..24).map(|hour| hour * 60 + minute).collect()),
        Pattern {
            weekday: Some(weekday),
            fixed: true,
            ..cron(format!("{minute} {hour} * * {weekday}"), vec![near(0)])
        },
        Pattern {
            days_of_month: vec![month_day],
            ..cron(format!("{minute} {hour},{next_hour} {month_day} * *"), two_hours)
        },
    ]
}

/// The times that a wall clock shows, step by step.
struct Walk {
    start: i64,
    step: i64,
    /// Seconds from 1970 on the wall clock.
    shown: Vec<i64>,
}

impl Walk {
    /// Walks around a change in steps of a minute, or of a second if an offset is not in whole minutes.
    fn around(zone: Tz, change: i64) -> Self {
        let whole = [offset(zone, change - 1), offset(zone, change), change].iter().all(|seconds| seconds % 60 == 0);
        let step = if whole { 60 } else { 1 };
        let start = change.div_euclid(60) * 60 - BEFORE - WARM_UP;
        let count = (change + AFTER - start) / step;
        let shown = (0..=count).map(|index| start + index * step).map(|at| at + offset(zone, at)).collect();
        Walk { start, step, shown }
    }

    /// Returns all occurrences after `from`.
    fn occurrences(&self, pattern: &Pattern, from: i64) -> Vec<i64> {
        let mut found = Vec::new();
        let mut latest = self.shown[0].div_euclid(60);
        for (index, &shown) in self.shown.iter().enumerate() {
            let minute = shown.div_euclid(60);
            let due = match pattern.fixed {
                // A minute occurs when the clock first shows it or a later one.
                true => (latest + 1..=minute).any(|minute| pattern.matches(minute)),
                false => shown.rem_euclid(60) == 0 && pattern.matches(minute),
            };
            latest = latest.max(minute);
            let at = self.start + index as i64 * self.step;
            if due && at > from {
                found.push(at);
            }
        }
        found
    }
}

/// A small generator of repeatable pseudo-random numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: i64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as i64
    }
}

/// Compares all cadences around one change; returns the number of comparisons.
fn compare(zone: Tz, change: i64) -> usize {
    let walk = Walk::around(zone, change);
    let (first, last) = (change - BEFORE, walk.start + (walk.shown.len() as i64 - 1) * walk.step);
    let shown = change + (offset(zone, change - 1) + offset(zone, change)) / 2;
    let mut numbers = Numbers(change.unsigned_abs() | 1);
    let mut compared = 0;
    for pattern in patterns(shown.div_euclid(60)) {
        let cadence: Cadence = pattern.text.parse().unwrap_or_else(|e| panic!("{}: {e}", pattern.text));
        let expected = walk.occurrences(&pattern, first);
        let context = || format!("{zone} around {change}, \"{}\"", pattern.text);
        let next = |after_ms: i64| cadence.next_after(zone, Timestamp::from_millis(after_ms));

        let mut found = Vec::new();
        let mut after = first * 1_000;
        while let Some(at) = next(after).map(Timestamp::millis).filter(|&at| at <= last * 1_000) {
            assert!(at > after, "{}: {at} is not after {after}", context());
            found.push(at / 1_000);
            after = at;
        }
        assert_eq!(found, expected, "{}", context());

        for _ in 0..4 {
            let after = first * 1_000 + numbers.below((last - first) * 1_000);
            let expected = expected.iter().find(|&&at| at * 1_000 > after).map(|at| at * 1_000);
            let found = next(after).map(Timestamp::millis).filter(|&at| at <= last * 1_000);
            assert_eq!(found, expected, "{} after {after} ms", context());
        }

        let until = first + numbers.below(last - first);
        let all: Vec<i64> = expected.iter().copied().filter(|&at| at <= until).collect();
        for limit in [1, 5, 10_000] {
            let expected = all.last().map(|&newest| DueOccurrences {
                newest: Timestamp::from_millis(newest * 1_000),
                count: limit.min(all.len() as u64),
            });
            let (first, until) = (Timestamp::from_millis(first * 1_000), Timestamp::from_millis(until * 1_000));
            assert_eq!(cadence.due_occurrences(zone, first, until, limit), expected, "{} limit {limit}", context());
        }
        compared += found.len() + 1 + 4 + 3;
    }
    compared
}

/// Zones with unusual changes: half hours, whole days, at midnight, a minute past it, in Ramadan, to the second.
const UNUSUAL_ZONES: [(Tz, i64, i64); 12] = [
    (Tz::Australia__Lord_Howe, 1_980, 2_037),
    (Tz::Africa__Casablanca, 2_008, 2_030),
    (Tz::Pacific__Apia, 1_890, 2_037),
    (Tz::America__Sao_Paulo, 1_985, 2_037),
    (Tz::America__Havana, 1_925, 2_037),
    (Tz::Asia__Beirut, 1_984, 2_037),
    (Tz::America__St_Johns, 1_987, 2_012),
    (Tz::Africa__Monrovia, 1_880, 2_037),
    (Tz::Europe__Amsterdam, 1_935, 1_941),
    (Tz::Asia__Manila, 1_840, 1_900),
    (Tz::America__Juneau, 1_860, 1_905),
    (Tz::Europe__Paris, 1_970, 2_037),
];

#[test]
fn cadences_agree_with_the_walk_in_unusual_zones() {
    for (zone, first, last) in UNUSUAL_ZONES {
        let changes = changes(zone, first, last);
        assert!(!changes.is_empty(), "{zone} has no change");
        // An odd step, so that both of the two changes of a year are walked.
        for change in changes.iter().step_by(1 + changes.len() / 16 / 2 * 2) {
            compare(zone, *change);
        }
    }
}

#[test]
fn cadences_agree_with_the_walk_in_every_zone() {
    if std::env::var("BACKUP_STRESS").as_deref() != Ok("full") {
        println!("skipped: walking every zone takes long; set BACKUP_STRESS=full");
        return;
    }
    let [next, walked, recent, compared] = [const { AtomicUsize::new(0) }; 4];
    let work = || {
        while let Some(&zone) = TZ_VARIANTS.get(next.fetch_add(1, Ordering::Relaxed)) {
            for change in changes(zone, 1_840, 2_100) {
                compared.fetch_add(compare(zone, change), Ordering::Relaxed);
                walked.fetch_add(1, Ordering::Relaxed);
                if (year_begins(1_970)..year_begins(2_038)).contains(&change) {
                    recent.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
    let (walked, recent) = (walked.into_inner(), recent.into_inner());
    println!(
        "{} zones, {walked} changes from 1840 to 2099 ({recent} of them from 1970 to 2037), 8 cadences each, {} \
         comparisons: no difference",
        TZ_VARIANTS.len(),
        compared.into_inner()
    );
    assert!(recent > 30_000, "only {recent} changes from 1970 to 2037 were walked");
}

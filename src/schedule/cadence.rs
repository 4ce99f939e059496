//! When a schedule is due: fixed times of day or a cron expression, and their instants in a time zone.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono_tz::Tz;

use super::cron::CronExpr;
use super::wall_clock::{self, DAY, MAX_OFFSET, MAX_SECOND, MIN_SECOND};
use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// A time of day on the wall clock, to the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOfDay {
    hour: u8,
    minute: u8,
}

impl TimeOfDay {
    /// Parses `9:00` or `09:00`: hours 0 to 23 with one or two digits, minutes with two. Any other text is a usage
    /// error.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Err(Error::usage(format!("\"{}\" is not a time of day: {why}", text.escape_debug()))
                .hint("write hours and minutes like 09:00 or 23:30"))
        };
        let Some((hour, minute)) = text.split_once(':') else {
            return invalid("it has no \":\"");
        };
        if hour.is_empty() || minute.is_empty() || !hour.bytes().chain(minute.bytes()).all(|b| b.is_ascii_digit()) {
            return invalid("hours and minutes are numbers");
        }
        if hour.len() > 2 {
            return invalid("the hour has one or two digits");
        }
        if minute.len() != 2 {
            return invalid("the minutes have two digits");
        }
        let number = |digits: &str| digits.bytes().fold(0, |number, digit| number * 10 + (digit - b'0'));
        match (number(hour), number(minute)) {
            (24.., _) => invalid("hours are from 0 to 23"),
            (_, 60..) => invalid("minutes are from 00 to 59"),
            (hour, minute) => Ok(TimeOfDay { hour, minute }),
        }
    }

    /// Returns the hour, 0 to 23.
    pub fn hour(self) -> u8 {
        self.hour
    }

    /// Returns the minute, 0 to 59.
    pub fn minute(self) -> u8 {
        self.minute
    }

    fn seconds(self) -> i64 {
        i64::from(self.hour) * 3_600 + i64::from(self.minute) * 60
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

impl FromStr for TimeOfDay {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// Times of day: at least one, sorted, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DailyTimes(Vec<TimeOfDay>);

impl DailyTimes {
    /// Sorts `times` and removes duplicates; `None` if there are none.
    pub fn new(mut times: Vec<TimeOfDay>) -> Option<Self> {
        times.sort_unstable();
        times.dedup();
        (!times.is_empty()).then_some(DailyTimes(times))
    }

    /// Parses times separated by commas: `09:00,18:30`. Any other text is a usage error.
    pub fn parse(text: &str) -> Result<Self> {
        let times = text.split(',').map(|time| TimeOfDay::parse(time.trim_matches([' ', '\t'])));
        Ok(DailyTimes::new(times.collect::<Result<_>>()?).expect("splitting gives at least one part"))
    }

    /// Returns the times in order.
    pub fn as_slice(&self) -> &[TimeOfDay] {
        &self.0
    }
}

impl fmt::Display for DailyTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, time) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{time}")?;
        }
        Ok(())
    }
}

/// When a schedule is due. Its text form is `09:00,18:30` or `cron */15 * * * *`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cadence {
    /// Every day at these times.
    Daily(DailyTimes),
    /// At the times of a cron expression.
    Cron(CronExpr),
}

/// The occurrences of a schedule that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueOccurrences {
    /// The newest of them.
    pub newest: Timestamp,
    /// Number of occurrences, counted up to the limit given.
    pub count: u64,
}

/// Days before and after an instant that [`Cadence::period`] examines: a little over a year.
const NEARBY_DAYS: i64 = 400;

impl Cadence {
    /// Parses times of day separated by commas: `09:00,18:30`. Any other text is a usage error.
    pub fn parse_daily(text: &str) -> Result<Self> {
        DailyTimes::parse(text).map(Cadence::Daily)
    }

    /// Parses a cron expression of five fields, or six with seconds first. Any other text is a usage error.
    pub fn parse_cron(text: &str) -> Result<Self> {
        CronExpr::parse(text).map(Cadence::Cron)
    }

    /// Returns the first occurrence strictly after `after`; `None` if there is none before the year 10000.
    ///
    /// Times of day, and cron expressions with a single time of day, occur once a day: in a gap of the wall clock at
    /// the first instant after it, in an overlap at the first pass. Other cron expressions follow real time: not in a
    /// gap, and at both passes of an overlap.
    pub fn next_after(&self, zone: Tz, after: Timestamp) -> Option<Timestamp> {
        let after = after.millis().div_euclid(1_000).max(MIN_SECOND);
        if after >= MAX_SECOND {
            return None;
        }
        let next = match self {
            Cadence::Daily(times) => next_fixed(zone, after, Some, times.0.iter().map(|time| time.seconds())),
            Cadence::Cron(cron) if cron.is_at_a_fixed_time() => {
                next_fixed(zone, after, |day| cron.next_day(day), [cron.first_of_day()].into_iter())
            }
            Cadence::Cron(cron) => next_in_real_time(zone, after, cron),
        };
        next.filter(|&next| next <= MAX_SECOND).map(|next| Timestamp::from_millis(next * 1_000))
    }

    /// Returns the longest usual time between two occurrences in the year before and after `around`, as if the wall
    /// clock had no gaps and overlaps.
    pub fn period(&self, zone: Tz, around: Timestamp) -> Duration {
        let seconds = match self {
            Cadence::Daily(DailyTimes(times)) => {
                let overnight = DAY - (times[times.len() - 1].seconds() - times[0].seconds());
                times.windows(2).map(|pair| pair[1].seconds() - pair[0].seconds()).fold(overnight, i64::max)
            }
            Cadence::Cron(cron) => {
                let around = around.millis().div_euclid(1_000).clamp(MIN_SECOND, MAX_SECOND);
                let today = (around + wall_clock::offset(zone, around)).div_euclid(DAY);
                let mut days = Vec::new();
                let mut day = cron.next_day(today - NEARBY_DAYS);
                while let Some(found) = day.filter(|&day| days.len() < 2 || day <= today + NEARBY_DAYS) {
                    days.push(found);
                    day = cron.next_day(found + 1);
                }
                // Only at the end of the calendar is there no second day.
                if days.len() < 2 { DAY } else { cron.longest_gap(&days) }
            }
        };
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Returns the newest of the occurrences after `after` and up to `until` inclusive, and their number, counted up to
    /// `limit`; `None` if there are none. The computing time depends on `limit`, not on the number of occurrences.
    pub fn due_occurrences(&self, zone: Tz, after: Timestamp, until: Timestamp, limit: u64) -> Option<DueOccurrences> {
        let next = |after| self.next_after(zone, after).filter(|&next| next <= until);
        let mut newest = next(after)?;
        let mut count = 1;
        while count < limit {
            match next(newest) {
                Some(later) => newest = later,
                None => return Some(DueOccurrences { newest, count }),
            }
            count += 1;
        }
        // Invariant: `low` is an occurrence, and there is none after `high`.
        let (mut low, mut high) = (newest.millis(), until.millis().min(MAX_SECOND * 1_000));
        while low < high {
            let middle = low + (high - low) / 2;
            match next(Timestamp::from_millis(middle)) {
                Some(later) => (newest, low) = (later, later.millis()),
                None => high = middle,
            }
        }
        Some(DueOccurrences { newest, count: limit.min(count) })
    }
}

/// Returns the first instant after `after` at which the wall clock first shows one of `times` (seconds since midnight,
/// sorted), or a later time, on a matching day. `next_day` returns the first matching day at or after a day.
fn next_fixed(
    zone: Tz,
    after: i64,
    next_day: impl Fn(i64) -> Option<i64>,
    times: impl Iterator<Item = i64> + Clone,
) -> Option<i64> {
    // A later wall clock time is first shown at a later or the same instant. So the first one found is the earliest,
    // and all times before the current one have already been shown.
    let mut day = next_day((after + wall_clock::offset(zone, after)).div_euclid(DAY))?;
    loop {
        let shown = times.clone().map(|time| wall_clock::first_showing(zone, day * DAY + time));
        if let Some(found) = shown.into_iter().find(|&at| at > after) {
            return Some(found);
        }
        day = next_day(day + 1)?;
    }
}

/// Returns the first instant after `after` at which the wall clock shows a time that matches `cron`.
fn next_in_real_time(zone: Tz, after: i64, cron: &CronExpr) -> Option<i64> {
    // Changes of the offset move the wall clock by less than this, so a match further ahead cannot be skipped.
    const REACH: i64 = 2 * MAX_OFFSET;
    let mut from = after + 1;
    while from <= MAX_SECOND {
        let shown = from + wall_clock::offset(zone, from);
        let nearest = cron.next_shown(shown - REACH)?;
        if nearest > shown + 2 * REACH {
            from += nearest - shown - REACH;
            continue;
        }
        let found = cron.next_shown(shown).map(|next| from + (next - shown));
        let until = found.unwrap_or(MAX_SECOND).min(from + DAY);
        let changed = wall_clock::offset_changes(zone, from, until);
        if changed > until && found == Some(until) {
            return found;
        }
        from = changed;
    }
    None
}

impl fmt::Display for Cadence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cadence::Daily(times) => times.fmt(f),
            Cadence::Cron(cron) => write!(f, "cron {cron}"),
        }
    }
}

impl FromStr for Cadence {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("cron ") {
            Some(expression) => Self::parse_cron(expression),
            None => Self::parse_daily(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use chrono_tz::Europe::Paris;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(text).unwrap()
    }

    fn cadence(text: &str) -> Cadence {
        text.parse().unwrap()
    }

    #[test]
    fn times_of_day_are_parsed_and_printed() {
        for (text, shown) in [("9:00", "09:00"), ("09:00", "09:00"), ("0:00", "00:00"), ("23:59", "23:59")] {
            assert_eq!(TimeOfDay::parse(text).unwrap().to_string(), shown);
        }
        for bad in
            ["", ":", "9", "9:0", "9:000", "009:00", "24:00", "9:60", "-9:00", "+9:00", "9:00:00", "９:00", " 9:00"]
        {
            let error = TimeOfDay::parse(bad).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.next_step().is_some());
        }
    }

    #[test]
    fn printed_cadences_are_parsed_back() {
        for (text, shown) in [
            ("18:30,9:00,09:00", "09:00,18:30"),
            ("cron  */15 *  * * mon", "cron */15 * * * mon"),
            ("cron 0 30 2 * * *", "cron 0 30 2 * * *"),
        ] {
            assert_eq!(cadence(text).to_string(), shown);
            assert_eq!(cadence(shown), cadence(text));
        }
        for bad in ["", "cron", "cron ", "09:00,", "*/15 * * * *", "cron 09:00"] {
            assert!(bad.parse::<Cadence>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_in_a_gap_and_at_its_end_are_one_occurrence() {
        let three = cadence("02:15,02:45,03:00");
        let first = three.next_after(Paris, at("2026-03-28T12:00:00+01:00")).unwrap();
        assert_eq!(first, at("2026-03-29T03:00:00+02:00"));
        assert_eq!(three.next_after(Paris, first).unwrap(), at("2026-03-30T02:15:00+02:00"));
    }

    #[test]
    fn the_next_occurrence_is_strictly_after_to_the_millisecond() {
        let nine = cadence("09:00");
        let on_time = at("2026-11-23T09:00:00+01:00");
        let before = Timestamp::from_millis(on_time.millis() - 1);
        assert_eq!(nine.next_after(Paris, before), Some(on_time));
        assert_eq!(nine.next_after(Paris, on_time), Some(at("2026-11-24T09:00:00+01:00")));
    }

    #[test]
    fn the_period_is_the_longest_usual_gap() {
        let around = at("2026-11-23T00:00:00Z");
        for (text, seconds) in [
            ("09:00", 86_400),
            ("09:00,18:30", 14 * 3_600 + 1_800),
            ("cron * * * * * *", 1),
            ("cron */15 * * * *", 900),
            ("cron 20,30 * * * *", 3_000),
            ("cron 0 9-17 * * *", 16 * 3_600),
            ("cron */15 9-17 * * 1-5", 86_400 * 2 + 15 * 3_600 + 900),
            ("cron 0 9 * * 1", 7 * 86_400),
            ("cron 0 9 1 * *", 31 * 86_400),
            ("cron 0 0 1 1 *", 365 * 86_400),
            ("cron 0 0 29 2 *", 1_461 * 86_400),
        ] {
            assert_eq!(cadence(text).period(Paris, around), Duration::from_secs(seconds), "{text}");
        }
    }

    #[test]
    fn occurrences_due_for_years_are_counted_up_to_the_limit() {
        let (after, until) = (at("2006-01-01T00:00:00Z"), at("2026-06-30T12:00:00.5Z"));
        let due = |text: &str, limit| cadence(text).due_occurrences(Paris, after, until, limit).unwrap();
        let each_second = due("cron * * * * * *", 100);
        assert_eq!((each_second.newest, each_second.count), (at("2026-06-30T12:00:00Z"), 100));
        // Every minute of one day, then none for a year.
        let new_year = due("cron * * 1 1 *", 100);
        assert_eq!((new_year.newest, new_year.count), (at("2026-01-01T23:59:00+01:00"), 100));
        let daily = due("09:00", 1_000_000);
        assert_eq!((daily.newest, daily.count), (at("2026-06-30T09:00:00+02:00"), 7_486));
        let nine = cadence("09:00");
        assert_eq!(nine.due_occurrences(Paris, daily.newest, until, 10), None);
        assert_eq!(nine.due_occurrences(Paris, until, after, 10), None);
    }

    #[test]
    fn extreme_instants_are_handled() {
        let ends = [i64::MIN, MIN_SECOND * 1_000, -1, 0, 1, MAX_SECOND * 1_000 - 1, MAX_SECOND * 1_000, i64::MAX];
        for zone in [Tz::UTC, Paris, Tz::Pacific__Apia, Tz::Asia__Manila] {
            for text in ["00:00,23:59", "cron * * * * * *", "cron 0 0 29 2 *", "cron 0 0,1 29 2 1"] {
                for &from in &ends {
                    let from = Timestamp::from_millis(from);
                    let next = cadence(text).next_after(zone, from);
                    assert!(next.is_none_or(|next| next > from), "{zone} {text} {from:?}");
                    assert!(next.is_none() || from.millis() < MAX_SECOND * 1_000, "{zone} {text} {from:?}");
                    assert!(cadence(text).period(zone, from) > Duration::ZERO);
                    for &until in &ends {
                        cadence(text).due_occurrences(zone, from, Timestamp::from_millis(until), 3);
                    }
                }
            }
        }
    }
}

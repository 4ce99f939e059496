//! Cron expressions. croner parses and checks them and matches days; this module matches times of a wall clock without
//! gaps and overlaps. `cadence` computes the instants in a time zone from that.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate};
use croner::parser::{CronParser, Seconds, Year};
use croner::{CronComponent, CronPattern, JobType, Weekday};

use super::wall_clock::{DAY, MAX_SECOND};
use crate::error::{Error, Result};
use crate::words;

/// A cron expression of five fields, or six with seconds first, that matches at least once.
#[derive(Clone, Debug)]
pub struct CronExpr {
    /// As written, with single spaces.
    text: String,
    pattern: Box<CronPattern>,
    hours: Vec<i64>,
    minutes: Vec<i64>,
    seconds: Vec<i64>,
    at_a_fixed_time: bool,
    day_rule: Option<DayRule>,
}

const HINT: &str = "write minute, hour, day, month and weekday (or six fields with seconds in front), \
                    like \"30 2 * * 1-5\"";

/// The six fields from the left: name, largest step, words allowed.
const FIELDS: [(&str, u32, &[&str]); 6] = [
    ("second", 60, &[]),
    ("minute", 60, &[]),
    ("hour", 24, &[]),
    ("day", 31, &["L", "W", "LW"]),
    ("month", 12, &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]),
    (
        "weekday",
        7,
        &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "L", "SUNL", "MONL", "TUEL", "WEDL", "THUL", "FRIL", "SATL"],
    ),
];

/// The names that cronie has for common expressions. `@reboot` has no time.
const NAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// Which days an expression with a day and a weekday matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DayRule {
    /// Those that match the day of the month or the weekday.
    Either,
    /// Those that match both.
    Both,
}

impl CronExpr {
    /// Parses an expression, or a name for one such as `@daily`. An invalid one, and one that never matches (30
    /// February), is a usage error.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let fields =
            NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&text)).map_or(&*text, |(_, fields)| fields);
        let day_rule = day_rule(fields);
        match CronExpr::with_day_rule(&text, fields, day_rule) {
            // The two never match on one day (31 April). Versions before took such an expression as either of them, and
            // a schedule that is in the database must stay readable.
            Err(_) if day_rule == Some(DayRule::Both) => CronExpr::with_day_rule(&text, fields, Some(DayRule::Either)),
            parsed => parsed,
        }
    }

    fn with_day_rule(text: &str, fields: &str, day_rule: Option<DayRule>) -> Result<Self> {
        let invalid = |why: &str| Error::usage(format!("\"{text}\" is not a cron expression: {why}")).hint(HINT);
        check_fields(fields).map_err(|why| invalid(&why))?;
        let parser = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .dom_and_dow(day_rule == Some(DayRule::Both))
            .build();
        let cron = parser.parse(fields).map_err(|e| invalid(&e.to_string()))?;
        let at_a_fixed_time = cron.determine_job_type() == JobType::FixedTime;
        let mut pattern = cron.pattern;
        // Years are not matched, and their table takes more memory than all the rest.
        pattern.years = CronComponent::new(0, 0, 0, 0);
        let values = |component: &CronComponent| component.values().into_iter().map(i64::from).collect::<Vec<_>>();
        let expr = CronExpr {
            hours: values(&pattern.hours),
            minutes: values(&pattern.minutes),
            seconds: values(&pattern.seconds),
            at_a_fixed_time,
            day_rule,
            text: text.to_owned(),
            pattern: Box::new(pattern),
        };
        let empty = expr.hours.is_empty() || expr.minutes.is_empty() || expr.seconds.is_empty();
        // After 400 years the calendar repeats with its weekdays.
        if empty || expr.next_day_until(0, 400 * 366).is_none() {
            return Err(invalid("it never comes"));
        }
        Ok(expr)
    }

    /// Returns the expression as written, with single spaces.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns which days match, if both the day of the month and the weekday are given.
    pub fn day_rule(&self) -> Option<DayRule> {
        self.day_rule
    }

    /// Returns whether second, minute and hour are each a single number. Such an expression has a time of day, as
    /// `--at` has; any other follows real time.
    pub fn is_at_a_fixed_time(&self) -> bool {
        self.at_a_fixed_time
    }

    /// Returns the first matching time of day, in seconds since midnight on the wall clock.
    pub(super) fn first_of_day(&self) -> i64 {
        self.hours[0] * 3_600 + self.minutes[0] * 60 + self.seconds[0]
    }

    /// Returns the first matching day at or after `day`; days count from 1970-01-01.
    pub(super) fn next_day(&self, day: i64) -> Option<i64> {
        self.next_day_until(day, MAX_SECOND / DAY)
    }

    fn next_day_until(&self, day: i64, until: i64) -> Option<i64> {
        let mut day = day;
        while day <= until {
            let date = DateTime::from_timestamp(day.checked_mul(DAY)?, 0)?.date_naive();
            if !self.pattern.month_match(date.month()).unwrap_or(false) {
                day += days_left_in_month(date);
                continue;
            }
            let weekday = Weekday::from_days_from_sunday(date.weekday().num_days_from_sunday());
            if self.pattern.day_match(date.year(), date.month(), date.day(), weekday).unwrap_or(false) {
                return Some(day);
            }
            day += 1;
        }
        None
    }

    /// Returns the first matching time at or after `shown`. Both are times of a wall clock without gaps and overlaps,
    /// in seconds since 1970-01-01.
    pub(super) fn next_shown(&self, shown: i64) -> Option<i64> {
        let today = shown.div_euclid(DAY);
        let day = self.next_day(today)?;
        if day == today
            && let Some(time) = self.next_time(shown.rem_euclid(DAY))
        {
            return Some(day * DAY + time);
        }
        let day = if day == today { self.next_day(today + 1)? } else { day };
        Some(day * DAY + self.first_of_day())
    }

    /// Returns the first matching time of day at or after `time`, in seconds since midnight.
    fn next_time(&self, time: i64) -> Option<i64> {
        let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
        let start_of_minute = self.minutes[0] * 60 + self.seconds[0];
        if self.hours.binary_search(&hour).is_ok() {
            if self.minutes.binary_search(&minute).is_ok()
                && let Some(second) = at_or_after(&self.seconds, second)
            {
                return Some(hour * 3_600 + minute * 60 + second);
            }
            if let Some(minute) = at_or_after(&self.minutes, minute + 1) {
                return Some(hour * 3_600 + minute * 60 + self.seconds[0]);
            }
        }
        at_or_after(&self.hours, hour + 1).map(|hour| hour * 3_600 + start_of_minute)
    }

    /// Returns the longest time from one match to the next, in seconds, on a wall clock without gaps and overlaps, for
    /// the matching `days` (sorted).
    pub(super) fn longest_gap(&self, days: &[i64]) -> i64 {
        // A step between two hours, for example, is shortened by the span of the minutes and seconds.
        let (mut longest, mut span) = (0, 0);
        for (values, unit) in [(&self.seconds[..], 1), (&self.minutes, 60), (&self.hours, 3_600), (days, DAY)] {
            let step = values.windows(2).map(|pair| pair[1] - pair[0]).max();
            longest = longest.max(step.map_or(0, |step| step * unit - span));
            span += (values[values.len() - 1] - values[0]) * unit;
        }
        longest
    }
}

/// Returns how the day of the month and the weekday combine: as in cronie, a field that begins with `*` (`*/2`) is no
/// restriction of its own, so that both must match. `None` if one of them matches every day.
fn day_rule(fields: &str) -> Option<DayRule> {
    let mut last = fields.rsplit(' ');
    let (weekday, _month, day) = (last.next()?, last.next()?, last.next()?);
    // croner's own sign for both.
    if day == "*" || weekday == "*" || weekday.starts_with('+') {
        return None;
    }
    let has_star = day.starts_with('*') || weekday.starts_with('*');
    Some(if has_star { DayRule::Both } else { DayRule::Either })
}

fn at_or_after(sorted: &[i64], min: i64) -> Option<i64> {
    sorted.get(sorted.partition_point(|&value| value < min)).copied()
}

/// Returns the days from `date` to the first of the next month.
fn days_left_in_month(date: NaiveDate) -> i64 {
    i64::from(date.num_days_in_month()) - i64::from(date.day()) + 1
}

/// Checks for expressions that croner would misinterpret: words that do not belong to the field ("0 MON * * *"), and
/// steps greater than the field ("*/90" minutes would be every hour). The error is the reason.
fn check_fields(text: &str) -> std::result::Result<(), String> {
    let fields: Vec<&str> = text.split(' ').filter(|field| !field.is_empty()).collect();
    if !(5..=6).contains(&fields.len()) {
        return Err(format!("it has {}", words::count(fields.len() as u64, "field")));
    }
    for (field, (name, largest_step, words)) in fields.iter().rev().zip(FIELDS.iter().rev()) {
        for word in field.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()) {
            if !words.contains(&word.to_uppercase().as_str()) {
                return Err(format!("\"{word}\" has no meaning in the field for the {name}"));
            }
        }
        for part in field.split(',') {
            if part.is_empty() {
                return Err(format!("the field for the {name} has a comma without a value"));
            }
            let step = part.split_once('/').and_then(|(_, step)| step.parse::<u32>().ok());
            if step.is_some_and(|step| step > *largest_step) {
                return Err(format!("the step in \"{part}\" is too large in the field for the {name}"));
            }
        }
    }
    Ok(())
}

impl PartialEq for CronExpr {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CronExpr {}

impl fmt::Display for CronExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_croner_would_misinterpret_are_refused() {
        for (bad, reason) in [
            ("", "0 fields"),
            ("* * * *", "4 fields"),
            ("* * * * * * *", "7 fields"),
            ("@reboot", "1 field"),
            ("@ daily", "2 fields"),
            ("0 MON * * *", "\"MON\" has no meaning in the field for the hour"),
            ("0 0 * * JAN", "weekday"),
            ("0 0 * * MONDAY", "MONDAY"),
            ("*/90 * * * *", "is too large in the field for the minute"),
            ("0 0,,1 * * *", "comma"),
            ("0 0 , * *", "comma"),
            ("60 * * * *", "60 * * * *"),
            ("0 24 * * *", "0 24"),
            ("0 0 0 * *", "0 0 0"),
            ("0 0 * 13 *", "13"),
            ("0 0 30 2 *", "never comes"),
            ("0 0 31 4,6,9,11 *", "never comes"),
            ("0 0 * * L", "never comes"),
            ("5/10 * * * *", "5/10"),
            ("0 0 * * 1;2", "illegal"),
            ("０ 0 * * *", "illegal"),
        ] {
            let error = CronExpr::parse(bad).expect_err(bad);
            assert!(error.to_string().contains(reason), "{bad}: {error}");
            assert!(error.next_step().is_some());
        }
    }

    #[test]
    fn expressions_with_a_time_of_day_are_recognised() {
        for fixed in ["30 2 * * *", "0 30 2 * * 1-5", "0 0 29 2 *", "5-5 2 L * *"] {
            assert!(CronExpr::parse(fixed).unwrap().is_at_a_fixed_time(), "{fixed}");
        }
        for real_time in ["* * * * *", "30 * * * *", "30 2,3 * * *", "0,30 2 * * *", "* 30 2 * * *", "0 */24 * * *"] {
            assert!(!CronExpr::parse(real_time).unwrap().is_at_a_fixed_time(), "{real_time}");
        }
    }

    #[test]
    fn days_are_found_across_months_and_centuries() {
        let day = |text: &str| NaiveDate::parse_from_str(text, "%F").unwrap().to_epoch_days() as i64;
        for (cron, from, found) in [
            ("0 0 29 2 *", "2026-01-01", "2028-02-29"),
            ("0 0 29 2 *", "2096-03-01", "2104-02-29"),
            ("0 0 L * *", "2026-02-01", "2026-02-28"),
            ("0 0 * * 5#5", "2026-02-01", "2026-05-29"),
            ("0 0 13 * +5", "2026-04-01", "2026-11-13"),
            ("0 0 * * 7", "2026-11-23", "2026-11-29"),
            ("0 0 LW 5 *", "2026-01-01", "2026-05-29"),
            ("0 0 13 * 5", "2026-11-01", "2026-11-06"),
            // As in cronie: the first odd day that is a Monday, not every odd day and every Monday.
            ("0 0 */2 * 1", "2026-11-01", "2026-11-09"),
            ("0 0 13 * */5", "2026-11-01", "2026-11-13"),
            ("0 3 31 4,6,9,11 */2", "2026-11-23", "2026-11-24"),
            ("@weekly", "2026-11-23", "2026-11-29"),
            ("@Yearly", "2026-11-23", "2027-01-01"),
        ] {
            assert_eq!(CronExpr::parse(cron).unwrap().next_day(day(from)), Some(day(found)), "{cron}");
        }
    }
}

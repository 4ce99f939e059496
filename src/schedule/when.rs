//! Times and ages in the forms of the command line.

use std::time::Duration;

use chrono::{NaiveDate, NaiveDateTime};
use chrono_tz::Tz;

use super::wall_clock::{self, DAY, MAX_SECOND, MIN_SECOND};
use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// Parses a time. Any other text is a usage error. The forms, in `zone`:
///
/// - RFC 3339: `2026-11-20T14:00:00+01:00`;
/// - `2026-11-20 14:00`, with or without seconds: in an overlap the first pass, in a gap the first instant after it;
/// - `2026-11-20`, `yesterday`: the last millisecond of that day;
/// - an age such as `3d`: that long before `now`.
pub fn parse_when(text: &str, zone: Tz, now: Timestamp) -> Result<Timestamp> {
    parse(text, zone, now, end_of_day)
}

/// Parses like [`parse_when`], for the start of a span: a day is its first millisecond.
pub fn parse_since(text: &str, zone: Tz, now: Timestamp) -> Result<Timestamp> {
    parse(text, zone, now, |zone, day| Timestamp::from_millis(wall_clock::first_showing(zone, day * DAY) * 1_000))
}

fn parse(text: &str, zone: Tz, now: Timestamp, of_day: fn(Tz, i64) -> Timestamp) -> Result<Timestamp> {
    let text = text.trim();
    if text == "yesterday" {
        let now = now.millis().div_euclid(1_000).clamp(MIN_SECOND, MAX_SECOND);
        let today = (now + wall_clock::offset(zone, now)).div_euclid(DAY);
        return Ok(of_day(zone, today - 1));
    }
    if let Some(age) = age_of(text) {
        return Ok(now.minus(age));
    }
    if let Some(day) = date_of(text) {
        return Ok(of_day(zone, day));
    }
    if let Some(local) = date_and_time_of(text) {
        return Ok(Timestamp::from_millis(wall_clock::first_showing(zone, local) * 1_000));
    }
    Timestamp::parse_rfc3339(text).map_err(|_| {
        Error::usage(format!("\"{}\" is not a time", text.escape_debug())).hint(
            "write 2026-11-20, \"2026-11-20 14:00\", 2026-11-20T14:00:00+01:00, yesterday, or an age like 3d or 12h",
        )
    })
}

/// Parses an age: a number followed by `h`, `d` or `w`. Any other text is a usage error, except that `s` is accepted
/// too, since ages that are not whole hours are printed with it.
pub fn parse_age(text: &str) -> Result<Duration> {
    age_of(text.trim()).ok_or_else(|| {
        Error::usage(format!("\"{}\" is not an age", text.escape_debug()))
            .hint("write a number of hours, days or weeks like 12h, 3d or 2w")
    })
}

/// Parses how long something may take: a number followed by `s`, `m`, `h` or `d`. Here `m` means minutes; in an age it
/// could mean months and is refused.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let text = text.trim();
    let minutes = text.strip_suffix('m').and_then(|number| seconds_of(number, 60));
    minutes.or_else(|| age_of(text)).ok_or_else(|| {
        Error::usage(format!("\"{}\" is not a duration", text.escape_debug()))
            .hint("write a number of seconds, minutes or hours like 30s, 90m or 2h")
    })
}

/// Formats an age in a form that [`parse_age`] accepts: in whole days or hours if it is a multiple, else in seconds.
pub fn format_age(age: Duration) -> String {
    match age.as_secs() {
        0 => "0d".to_owned(),
        seconds if seconds.is_multiple_of(86_400) => format!("{}d", seconds / 86_400),
        seconds if seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        seconds => format!("{seconds}s"),
    }
}

fn age_of(text: &str) -> Option<Duration> {
    let unit = match text.as_bytes().last()? {
        b's' => 1,
        b'h' => 3_600,
        b'd' => 86_400,
        b'w' => 7 * 86_400,
        _ => return None,
    };
    seconds_of(&text[..text.len() - 1], unit)
}

fn seconds_of(number: &str, unit: u64) -> Option<Duration> {
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(unit).map(Duration::from_secs)
}

/// Returns the days since 1970-01-01 of a date of exactly the form `2026-11-20`.
fn date_of(text: &str) -> Option<i64> {
    let digits_and_dashes =
        text.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() });
    if text.len() != 10 || !digits_and_dashes {
        return None;
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(i64::from(date.to_epoch_days()))
}

/// Returns the wall clock time, in seconds since 1970-01-01, of `2026-11-20 14:00` or `2026-11-20T14:00:00`.
fn date_and_time_of(text: &str) -> Option<i64> {
    date_of(text.get(..10)?)?;
    let time = text[10..].strip_prefix([' ', 'T'])?;
    let format = match time.len() {
        5 => "%Y-%m-%d %H:%M",
        8 => "%Y-%m-%d %H:%M:%S",
        _ => return None,
    };
    let joined = format!("{} {time}", &text[..10]);
    Some(NaiveDateTime::parse_from_str(&joined, format).ok()?.and_utc().timestamp())
}

fn end_of_day(zone: Tz, day: i64) -> Timestamp {
    Timestamp::from_millis(wall_clock::first_showing(zone, (day + 1) * DAY) * 1_000 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono_tz::Europe::Paris;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn a_duration_may_be_in_minutes_and_an_age_may_not() {
        for (text, seconds) in [("90m", 5_400), ("2h", 7_200), (" 30s ", 30), ("1d", 86_400), ("0m", 0)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for bad in ["", "m", "90", "-1m", "1.5h", "90 m", "99999999999999999999m", "9999999999999999999m"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_age("90m").is_err());
    }

    #[test]
    fn a_span_begins_at_the_start_of_the_given_day() {
        let now = Timestamp::parse_rfc3339("2026-11-23T12:00:00Z").unwrap();
        for (text, expected) in [
            ("2026-11-20", "2026-11-20T00:00:00+01:00"),
            ("yesterday", "2026-11-22T00:00:00+01:00"),
            ("3d", "2026-11-20T13:00:00+01:00"),
        ] {
            assert_eq!(parse_since(text, Tz::Europe__Paris, now).unwrap().rfc3339(&Tz::Europe__Paris), expected);
        }
    }

    #[test]
    fn every_form_is_parsed_to_one_instant() {
        let now = at("2026-11-23T10:00:00+01:00");
        for (text, meant) in [
            ("2026-11-20T14:00:00Z", "2026-11-20T14:00:00Z"),
            ("2026-11-20 14:00:00+03:00", "2026-11-20T11:00:00Z"),
            ("2026-11-20 14:00", "2026-11-20T14:00:00+01:00"),
            ("2026-07-20 14:00:30", "2026-07-20T14:00:30+02:00"),
            ("2026-07-20T14:00", "2026-07-20T14:00:00+02:00"),
            ("2026-11-20", "2026-11-20T23:59:59.999+01:00"),
            ("2026-10-25", "2026-10-25T23:59:59.999+01:00"),
            ("yesterday", "2026-11-22T23:59:59.999+01:00"),
            ("2026-03-29 02:30", "2026-03-29T03:00:00+02:00"),
            ("2026-10-25 02:30", "2026-10-25T02:30:00+02:00"),
            ("3d", "2026-11-20T10:00:00+01:00"),
            ("12h", "2026-11-22T22:00:00+01:00"),
            ("2w", "2026-11-09T10:00:00+01:00"),
        ] {
            assert_eq!(parse_when(text, Paris, now).unwrap(), at(meant), "{text}");
        }
    }

    #[test]
    fn invalid_times_are_refused() {
        let now = at("2026-11-23T10:00:00+01:00");
        for bad in [
            "",
            "now-ish",
            "2026-13-01",
            "2026-02-30",
            "26-11-20",
            "2026-11-20 25:00",
            "2026-11-20 1:00",
            "-3d",
            "3",
            "d",
            "99999999999999999999d",
            "2026-11-20\u{e9}",
            "+026-11-20",
            "3 d",
            "3m",
        ] {
            let error = parse_when(bad, Paris, now).expect_err(bad);
            assert!(error.next_step().is_some(), "{bad}");
        }
    }

    #[test]
    fn extreme_times_are_handled() {
        for now in [i64::MIN, i64::MAX] {
            for text in ["yesterday", "18446744073709551615s", "0001-01-01", "9999-12-31", "0000-01-01 00:00"] {
                let _ = parse_when(text, Paris, Timestamp::from_millis(now));
            }
        }
    }

    #[test]
    fn printed_ages_are_parsed_back() {
        for text in ["0d", "3d", "36h", "90s"] {
            assert_eq!(format_age(parse_age(text).unwrap()), text);
        }
        assert_eq!(format_age(parse_age("2w").unwrap()), "14d");
    }
}

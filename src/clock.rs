//! The only module that reads the system clock (I7). All others take a [`Timestamp`] or a [`Clock`].

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, TimeZone, Utc};

use crate::error::{Error, Result};

/// 0000-01-02T00:00:00Z in milliseconds: the first instant whose year is 0 or later in every zone.
const FIRST_SHOWN: i64 = -62_167_132_800_000;
/// 9999-12-30T23:59:59.999Z in milliseconds: the last instant whose year has four digits in every zone.
const LAST_SHOWN: i64 = 253_402_214_399_999;

/// An instant in milliseconds since 1970-01-01T00:00:00Z, as the database stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Creates an instant from milliseconds since 1970-01-01T00:00:00Z.
    pub const fn from_millis(millis: i64) -> Self {
        Timestamp(millis)
    }

    /// Returns milliseconds since 1970-01-01T00:00:00Z.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Creates an instant from a chrono date and time, truncated to milliseconds.
    pub fn from_datetime<Z: TimeZone>(time: &DateTime<Z>) -> Self {
        Timestamp(time.timestamp_millis())
    }

    /// Returns the instant as a UTC date and time. One outside [`FIRST_SHOWN`] and [`LAST_SHOWN`] becomes the nearer of
    /// them: archives may hold any time, RFC 3339 has four digits for the year, and chrono panics if the offset of a
    /// zone leads beyond its calendar.
    pub fn utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0.clamp(FIRST_SHOWN, LAST_SHOWN)).unwrap_or_default()
    }

    /// Returns the instant in RFC 3339 form in `zone`, to the second.
    pub fn rfc3339<Z: TimeZone>(self, zone: &Z) -> String
    where
        Z::Offset: std::fmt::Display,
    {
        self.utc().with_timezone(zone).to_rfc3339_opts(chrono::SecondsFormat::Secs, false)
    }

    /// Returns the instant in the form used in file names: `20261123T023000Z`.
    pub fn compact_utc(self) -> String {
        self.utc().format("%Y%m%dT%H%M%SZ").to_string()
    }

    /// Parses a time in RFC 3339 form; any other text is a usage error.
    pub fn parse_rfc3339(text: &str) -> Result<Self> {
        let time = DateTime::parse_from_rfc3339(text).map_err(|e| {
            Error::usage(format!("\"{text}\" is not a time")).because(e).hint("write it like 2026-11-20T14:00:00+01:00")
        })?;
        Ok(Self::from_datetime(&time))
    }

    /// Returns the instant `duration` later; saturates.
    pub fn plus(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns the instant `duration` earlier; saturates.
    pub fn minus(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns the time since `earlier`; zero if this is not later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A source of time: the system's in production, a [`ManualClock`] in tests.
pub trait Clock: Send + Sync {
    /// Returns the wall-clock time.
    fn now(&self) -> Timestamp;

    /// Returns the time since some fixed instant; never steps back. Used for rates and delays, not for dates.
    fn monotonic(&self) -> Duration;
}

/// The system clock.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Creates a clock whose monotonic time starts at zero.
    pub fn new() -> Self {
        SystemClock { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let millis = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        };
        Timestamp(millis)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A clock that only moves when it is set or advanced: for tests and simulation.
#[derive(Debug)]
pub struct ManualClock {
    now_ms: AtomicI64,
    monotonic_ms: AtomicI64,
}

impl ManualClock {
    /// Creates a clock at `now`.
    pub fn at(now: Timestamp) -> Self {
        ManualClock { now_ms: AtomicI64::new(now.0), monotonic_ms: AtomicI64::new(0) }
    }

    /// Advances the wall clock and the monotonic clock by `duration`.
    pub fn advance(&self, duration: Duration) {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        self.now_ms.fetch_add(millis, Ordering::SeqCst);
        self.monotonic_ms.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the wall clock, forward or back. The monotonic clock does not change.
    pub fn set(&self, now: Timestamp) {
        self.now_ms.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.now_ms.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.monotonic_ms.load(Ordering::SeqCst)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_wall_clock_back_does_not_change_monotonic_time() {
        let clock = ManualClock::at(Timestamp::from_millis(10_000));
        clock.advance(Duration::from_secs(5));
        clock.set(Timestamp::from_millis(0));
        assert_eq!(clock.now().millis(), 0);
        assert_eq!(clock.monotonic(), Duration::from_secs(5));
    }

    #[test]
    fn instants_beyond_four_digits_of_years_are_shown_as_the_nearest_in_every_zone() {
        let west = chrono::FixedOffset::west_opt(86_399).unwrap();
        let east = chrono::FixedOffset::east_opt(86_399).unwrap();
        for (millis, shown) in [
            (i64::MAX, ["9999-12-30T23:59:59+00:00", "9999-12-30T00:00:00-23:59:59", "9999-12-31T23:59:58+23:59:59"]),
            (i64::MIN, ["0000-01-02T00:00:00+00:00", "0000-01-01T00:00:01-23:59:59", "0000-01-02T23:59:59+23:59:59"]),
        ] {
            let at = Timestamp::from_millis(millis);
            assert_eq!(at.rfc3339(&Utc), shown[0]);
            let date_and_time = |text: &str| text[..19].to_owned();
            assert_eq!(date_and_time(&at.rfc3339(&west)), date_and_time(shown[1]));
            assert_eq!(date_and_time(&at.rfc3339(&east)), date_and_time(shown[2]));
        }
        assert_eq!(Timestamp::from_millis(0).rfc3339(&Utc), "1970-01-01T00:00:00+00:00");
    }
}

//! The only module that reads the system clock (I7). All others take a [`Timestamp`] or a [`Clock`].

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, TimeZone, Utc};

use crate::error::{Error, Result};

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

    /// Returns the instant as a UTC date and time, clamped to the years that chrono supports.
    pub fn utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0).unwrap_or(if self.0 < 0 {
            DateTime::<Utc>::MIN_UTC
        } else {
            DateTime::<Utc>::MAX_UTC
        })
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
    fn instants_outside_the_calendar_are_clamped() {
        assert_eq!(Timestamp::from_millis(i64::MAX).utc(), DateTime::<Utc>::MAX_UTC);
        assert_eq!(Timestamp::from_millis(i64::MIN).utc(), DateTime::<Utc>::MIN_UTC);
    }
}

//! What the wall clock of a zone shows, in whole seconds.
//!
//! Everything is built on one question that has exactly one answer: how far a zone is from UTC at an instant. Going
//! the other way, from the wall clock to an instant, has none, one or several answers; here it is asked as "when does
//! the wall clock first show this or later", which again has exactly one and gives the rules for gaps and overlaps:
//! in a gap it is the first instant after it, in an overlap the first pass.

use chrono::{DateTime, Offset, TimeZone};
use chrono_tz::Tz;

/// Seconds of a day.
pub(super) const DAY: i64 = 86_400;

/// The first and last second that this module reckons with: the years 1 to 9999.
pub(super) const FIRST: i64 = -62_135_596_800;
pub(super) const LAST: i64 = 253_402_300_799;

/// More than the wall clock of any zone ever differed from UTC (Manila, 15 h 56 min 8 s, until 1844).
pub(super) const FARTHEST: i64 = 17 * 3_600;

/// Returns how many seconds the wall clock is ahead of UTC at the instant `at`.
pub(super) fn offset(zone: Tz, at: i64) -> i64 {
    let clamped = at.clamp(FIRST - DAY, LAST + DAY);
    // The clamped range lies well within the years that chrono knows.
    let utc = DateTime::from_timestamp(clamped, 0).unwrap_or_default().naive_utc();
    i64::from(zone.offset_from_utc_datetime(&utc).fix().local_minus_utc())
}

/// Returns the first instant in (`from`, `until`] at which the offset is another than at `from`, or else `until + 1`.
///
/// The two must be less than four days apart: no zone ever changed twice in so short a time (Freetown came closest, in
/// 1939), so that equal offsets at both mean that there was no change between.
pub(super) fn offset_changes(zone: Tz, from: i64, until: i64) -> i64 {
    let before = offset(zone, from);
    if until <= from || offset(zone, until) == before {
        return until + 1;
    }
    let (mut same, mut changed) = (from, until);
    while changed - same > 1 {
        let middle = same + (changed - same) / 2;
        if offset(zone, middle) == before {
            same = middle;
        } else {
            changed = middle;
        }
    }
    changed
}

/// Returns the first instant at which the wall clock shows `local` (seconds since 1970 on that clock) or later.
pub(super) fn first_showing(zone: Tz, local: i64) -> i64 {
    let mut from = local - FARTHEST;
    let last = local + FARTHEST;
    loop {
        let reached = local - offset(zone, from);
        let changed = offset_changes(zone, from, last);
        if reached < changed {
            // A change that jumps over `local` makes `reached` an instant before it.
            return reached.max(from);
        }
        from = changed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp()
    }

    fn showing(zone: Tz, local: &str) -> String {
        let local = utc(&format!("{local}Z"));
        let at = DateTime::from_timestamp(first_showing(zone, local), 0).unwrap();
        at.with_timezone(&zone).to_rfc3339()
    }

    #[test]
    fn a_gap_gives_the_first_instant_after_it_and_an_overlap_its_first_pass() {
        use chrono_tz::{America, Australia, Europe, Pacific};
        assert_eq!(showing(Europe::Paris, "2026-03-29T02:30:00"), "2026-03-29T03:00:00+02:00");
        assert_eq!(showing(Europe::Paris, "2026-10-25T02:30:00"), "2026-10-25T02:30:00+02:00");
        assert_eq!(showing(Europe::Paris, "2026-10-25T03:00:00"), "2026-10-25T03:00:00+01:00");
        assert_eq!(showing(Australia::Lord_Howe, "2026-10-04T02:15:00"), "2026-10-04T02:30:00+11:00");
        assert_eq!(showing(Australia::Lord_Howe, "2026-04-05T01:45:00"), "2026-04-05T01:45:00+11:00");
        assert_eq!(showing(Pacific::Apia, "2011-12-30T09:00:00"), "2011-12-31T00:00:00+14:00");
        assert_eq!(showing(America::Sao_Paulo, "2018-11-04T00:00:00"), "2018-11-04T01:00:00-02:00");
        assert_eq!(showing(America::Juneau, "1867-10-18T12:00:00"), "1867-10-18T12:00:00+15:02");
    }
}

//! The wall clock of a time zone, in whole seconds.
//!
//! Everything is based on one function that is always unambiguous: the offset of a zone from UTC at an instant. The
//! inverse, from a wall clock time to an instant, has no, one or several results. Therefore this module computes when
//! the wall clock first shows a time or a later one, which is unambiguous as well and gives the rules for gaps and
//! overlaps: in a gap the first instant after it, in an overlap the first pass.

use chrono::{DateTime, Offset, TimeZone};
use chrono_tz::Tz;

/// Seconds in a day.
pub(super) const DAY: i64 = 86_400;

/// The first and last second that this module supports: the years 1 to 9999.
pub(super) const MIN_SECOND: i64 = -62_135_596_800;
pub(super) const MAX_SECOND: i64 = 253_402_300_799;

/// In seconds; greater than the offset of any zone from UTC ever was (Manila, 15 h 56 min 8 s, until 1844).
pub(super) const MAX_OFFSET: i64 = 17 * 3_600;

/// Returns how many seconds the wall clock is ahead of UTC at the instant `at`.
pub(super) fn offset(zone: Tz, at: i64) -> i64 {
    let clamped = at.clamp(MIN_SECOND - DAY, MAX_SECOND + DAY);
    // The clamped range is well within the years that chrono supports.
    let utc = DateTime::from_timestamp(clamped, 0).unwrap_or_default().naive_utc();
    i64::from(zone.offset_from_utc_datetime(&utc).fix().local_minus_utc())
}

/// Returns the first instant in (`from`, `until`] at which the offset differs from that at `from`, else `until + 1`.
///
/// The two must be less than four days apart. No zone ever changed twice in so short a time (Freetown came closest, in
/// 1939), so equal offsets at both mean that there was no change in between.
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

/// Returns the first instant at which the wall clock shows `local` (seconds since 1970 on that clock) or a later time.
pub(super) fn first_showing(zone: Tz, local: i64) -> i64 {
    let mut from = local - MAX_OFFSET;
    let last = local + MAX_OFFSET;
    loop {
        let reached = local - offset(zone, from);
        let changed = offset_changes(zone, from, last);
        if reached < changed {
            // If a change skips `local`, `reached` is before the change.
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

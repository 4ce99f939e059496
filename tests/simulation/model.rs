//! What should have become of every occurrence, computed without the program: plain arithmetic on fixed offsets.

use backup_manager::clock::Timestamp;
use backup_manager::schedule::Cadence;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// How far ahead of now, beyond a period, the watermark may lie before it is reset to now.
const MAX_AHEAD: i64 = 3 * HOUR;

/// When a schedule is due.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Minutes of the day, local, ascending.
    Daily(Vec<i64>),
    /// Every quarter of an hour.
    Quarters,
    /// At a minute of every hour, local.
    Hourly(i64),
}

impl Rule {
    pub fn cadence(&self) -> Cadence {
        match self {
            Rule::Daily(minutes) => {
                let times: Vec<String> = minutes.iter().map(|m| format!("{:02}:{:02}", m / 60, m % 60)).collect();
                Cadence::parse_daily(&times.join(",")).expect("daily times")
            }
            Rule::Quarters => Cadence::parse_cron("*/15 * * * *").expect("a cron expression"),
            Rule::Hourly(minute) => Cadence::parse_cron(&format!("{minute} * * * *")).expect("a cron expression"),
        }
    }

    /// Returns the longest interval between two occurrences, in milliseconds.
    fn period(&self) -> i64 {
        match self {
            Rule::Daily(minutes) => {
                let overnight = 24 * 60 - (minutes[minutes.len() - 1] - minutes[0]);
                minutes.windows(2).map(|pair| pair[1] - pair[0]).fold(overnight, i64::max) * MINUTE
            }
            Rule::Quarters => 15 * MINUTE,
            Rule::Hourly(_) => HOUR,
        }
    }

    /// Returns the number of occurrences after `from` up to and including `to`, and the newest. `offset` is how far
    /// local time is ahead of UTC, in minutes.
    pub fn between(&self, offset: i64, from: i64, to: i64) -> Option<(u64, i64)> {
        let series: Vec<(i64, i64)> = match self {
            Rule::Daily(minutes) => minutes.iter().map(|m| (DAY, (m - offset) * MINUTE)).collect(),
            Rule::Quarters => vec![(15 * MINUTE, -offset * MINUTE)],
            Rule::Hourly(minute) => vec![(HOUR, (minute - offset) * MINUTE)],
        };
        let mut count = 0;
        let mut newest = i64::MIN;
        for (step, phase) in series {
            let (first, last) = ((from - phase).div_euclid(step), (to - phase).div_euclid(step));
            if last > first {
                count += (last - first) as u64;
                newest = newest.max(last * step + phase);
            }
        }
        (count > 0).then_some((count, newest))
    }
}

/// A schedule as it should be.
#[derive(Clone, Debug)]
pub struct Expected {
    pub id: i64,
    pub name: String,
    pub rule: Rule,
    /// Minutes ahead of UTC, if it has a time zone of its own.
    pub offset: Option<i64>,
    pub enabled: bool,
    pub deleted: bool,
    pub skip: bool,
    pub handled: i64,
    /// Occurrences that a run counts.
    pub accounted: u64,
}

impl Expected {
    /// A service finds that its clock was set back: a watermark from a wrong future is reset to now.
    pub fn reset_future_watermark(&mut self, now: Timestamp) {
        let now = now.millis();
        if self.enabled && !self.deleted && self.handled > now + MAX_AHEAD + self.rule.period() {
            self.handled = now;
        }
    }

    /// A service ticks. `known` returns whether an instant has a run already. Returns the newest due occurrence.
    pub fn tick(&mut self, zone: i64, now: Timestamp, known: impl Fn(i64) -> bool) -> Option<i64> {
        if !self.enabled || self.deleted {
            return None;
        }
        let due = self.rule.between(self.offset.unwrap_or(zone), self.handled, now.millis());
        let (count, newest) = due?;
        self.handled = now.millis();
        if !known(newest) {
            self.accounted += count;
        }
        Some(newest)
    }
}

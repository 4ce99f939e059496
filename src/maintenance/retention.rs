//! Retention: which archives of a schedule are kept, and by which rules (I8).
//!
//! The decision asks neither clock nor disk: it is a function of the archives' run numbers and times. Which archive is
//! the newest is decided by [`sort_newest_first`]. Buckets are formed from the times in the file names, in the
//! schedule's zone.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{Datelike, Timelike};
use chrono_tz::Tz;

use crate::clock::Timestamp;
use crate::schedule::Retention;
use crate::store::{Archive, ArchiveAge, MAX_AHEAD, sort_newest_first};

/// What retention knows of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveFacts {
    /// Number of the run that created it.
    pub run: i64,
    /// Its physical file. Runs that find nothing changed make further names of one file.
    pub file: i64,
    /// The old system created it: older than any of ours, whatever its number.
    pub is_legacy: bool,
    /// A rescan added it: its time decides how old it is.
    pub is_rescanned: bool,
    /// The time in its file name.
    pub created_at: Timestamp,
    /// Good in the sense of I8.
    pub is_good: bool,
    /// Its run had no losses.
    pub is_whole: bool,
    /// Pinned by the user.
    pub is_pinned: bool,
    /// Created by a manual run.
    pub is_manual: bool,
}

impl From<&Archive> for ArchiveFacts {
    fn from(archive: &Archive) -> Self {
        ArchiveFacts {
            run: archive.run,
            file: archive.archive_file,
            is_legacy: archive.is_legacy(),
            is_rescanned: archive.is_rescanned,
            created_at: archive.created_at,
            is_good: archive.good,
            is_whole: !archive.incomplete,
            is_pinned: archive.pinned,
            is_manual: archive.manual,
        }
    }
}

/// A rule that keeps an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeepRule {
    /// No good archive exists, so none is removed.
    NothingGood,
    /// It is the newest good archive.
    NewestGood,
    /// It is the newest good archive of a run without losses.
    NewestWhole,
    /// It is pinned.
    Pinned,
    /// The policy keeps all archives.
    All,
    /// Its time cannot be right.
    WrongClock,
    /// It is not older than the policy's limit, counted back from the newest good archive.
    Within,
    /// It is one of the newest, or the newest name of one of as many newest files.
    Last,
    /// It is the newest of its hour.
    Hourly,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is the newest of its year.
    Yearly,
    /// A manual run created it.
    Manual,
}

impl KeepRule {
    /// Returns the word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            KeepRule::NothingGood => "no good archive",
            KeepRule::NewestGood => "newest good",
            KeepRule::NewestWhole => "newest whole",
            KeepRule::Pinned => "pinned",
            KeepRule::All => "all",
            KeepRule::WrongClock => "wrong clock",
            KeepRule::Within => "within",
            KeepRule::Last => "last",
            KeepRule::Hourly => "hourly",
            KeepRule::Daily => "daily",
            KeepRule::Weekly => "weekly",
            KeepRule::Monthly => "monthly",
            KeepRule::Yearly => "yearly",
            KeepRule::Manual => "manual",
        }
    }
}

/// The decision of retention on one archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Number of its run.
    pub run: i64,
    /// The rules that keep it; an archive kept by none is removed.
    pub kept_by: Vec<KeepRule>,
}

/// Decides which archives of one schedule are kept, newest first.
///
/// An archive that is not good takes no place in a rule. It is removed once the rules would remove it even if it were
/// good.
pub fn decide(archives: &[ArchiveFacts], policy: &Retention, zone: Tz) -> Vec<Decision> {
    let mut newest_first = archives.to_vec();
    sort_newest_first(&mut newest_first, |archive| ArchiveAge {
        run: archive.run,
        created_at: archive.created_at,
        is_legacy: archive.is_legacy,
        is_rescanned: archive.is_rescanned,
    });
    let mut kept: BTreeMap<i64, BTreeSet<KeepRule>> = BTreeMap::new();
    let mut keep = |run: i64, rule: KeepRule| {
        kept.entry(run).or_default().insert(rule);
    };
    let good: Vec<ArchiveFacts> = newest_first.iter().filter(|archive| archive.is_good).copied().collect();
    if let Some(newest) = good.first() {
        keep(newest.run, KeepRule::NewestGood);
        good.iter().find(|archive| archive.is_whole).into_iter().for_each(|a| keep(a.run, KeepRule::NewestWhole));
        let misdated = misdated(&newest_first);
        let in_time = |archive: &&ArchiveFacts| !misdated.contains(&archive.run);
        let good_in_time: Vec<ArchiveFacts> = good.iter().filter(in_time).copied().collect();
        for (run, rule) in apply_policy(&good_in_time, newest, policy, zone) {
            keep(run, rule);
        }
        let all_in_time: Vec<ArchiveFacts> = newest_first.iter().filter(in_time).copied().collect();
        let is_bad = |run: i64| good.iter().all(|archive| archive.run != run);
        for (run, rule) in apply_policy(&all_in_time, newest, policy, zone) {
            if is_bad(run) {
                keep(run, rule);
            }
        }
        misdated.into_iter().for_each(|run| keep(run, KeepRule::WrongClock));
    } else {
        newest_first.iter().for_each(|archive| keep(archive.run, KeepRule::NothingGood));
    }
    newest_first.iter().filter(|archive| archive.is_pinned).for_each(|archive| keep(archive.run, KeepRule::Pinned));
    newest_first
        .iter()
        .map(|archive| Decision {
            run: archive.run,
            kept_by: kept.get(&archive.run).map(|rules| rules.iter().copied().collect()).unwrap_or_default(),
        })
        .collect()
}

/// Returns the runs of archives whose time cannot be right: more than [`MAX_AHEAD`] ahead of both neighbours, or of the
/// newest archive, which was created after them. They are kept and take no place in a rule.
fn misdated(newest_first: &[ArchiveFacts]) -> Vec<i64> {
    let is_ahead = |archive: &ArchiveFacts, of: &ArchiveFacts| archive.created_at.since(of.created_at) > MAX_AHEAD;
    let ours: Vec<&ArchiveFacts> = newest_first.iter().filter(|archive| !archive.is_legacy).collect();
    let between = ours.windows(3).filter(|w| is_ahead(w[1], w[0]) && is_ahead(w[1], w[2])).map(|w| w[1].run);
    let newest = ours.first().into_iter();
    let beyond = newest.flat_map(|newest| ours.iter().filter(|archive| is_ahead(archive, newest)).map(|a| a.run));
    between.chain(beyond).collect::<BTreeSet<i64>>().into_iter().collect()
}

/// Applies the rules of a policy to `archives`, which are sorted newest first. Returns each run that a rule keeps.
fn apply_policy(
    archives: &[ArchiveFacts],
    newest_good: &ArchiveFacts,
    policy: &Retention,
    zone: Tz,
) -> Vec<(i64, KeepRule)> {
    let mut kept = Vec::new();
    if policy.all {
        kept.extend(archives.iter().map(|archive| (archive.run, KeepRule::All)));
    }
    let age = |archive: &ArchiveFacts| newest_good.created_at.since(archive.created_at);
    if let Some(within) = policy.within.filter(|within| !within.is_zero()) {
        kept.extend(archives.iter().filter(|a| age(a) <= within).map(|archive| (archive.run, KeepRule::Within)));
    }
    if let Some(limit) = policy.manual.filter(|limit| !limit.is_zero()) {
        let manual = archives.iter().filter(|archive| archive.is_manual && age(archive) <= limit);
        kept.extend(manual.map(|archive| (archive.run, KeepRule::Manual)));
    }
    let last = policy.last.unwrap_or(0) as usize;
    kept.extend(archives.iter().take(last).map(|archive| (archive.run, KeepRule::Last)));
    // Names of one file take no place of others: one bad sector would take them all. As many files stay.
    let mut files = BTreeSet::new();
    let newest_of_file = archives.iter().filter(|archive| files.insert(archive.file));
    kept.extend(newest_of_file.take(last).map(|archive| (archive.run, KeepRule::Last)));
    type Bucket = fn(Timestamp, Tz) -> (i64, u32);
    let buckets: [(Option<u32>, KeepRule, Bucket); 5] = [
        (policy.hourly, KeepRule::Hourly, hour),
        (policy.daily, KeepRule::Daily, day),
        (policy.weekly, KeepRule::Weekly, week),
        (policy.monthly, KeepRule::Monthly, month),
        (policy.yearly, KeepRule::Yearly, year),
    ];
    for (count, rule, bucket) in buckets {
        let mut newest_of: BTreeMap<(i64, u32), i64> = BTreeMap::new();
        for archive in archives {
            newest_of.entry(bucket(archive.created_at, zone)).or_insert(archive.run);
        }
        kept.extend(newest_of.values().rev().take(count.unwrap_or(0) as usize).map(|run| (*run, rule)));
    }
    kept
}

/// Identifies an hour by the instant at which it began, so that the two hours of the overlap in autumn are two buckets.
fn hour(at: Timestamp, zone: Tz) -> (i64, u32) {
    let local = at.utc().with_timezone(&zone);
    let into = i64::from(local.minute()) * 60 + i64::from(local.second());
    (at.utc().timestamp() - into, 0)
}

fn day(at: Timestamp, zone: Tz) -> (i64, u32) {
    let local = at.utc().with_timezone(&zone);
    (i64::from(local.year()), local.ordinal())
}

fn week(at: Timestamp, zone: Tz) -> (i64, u32) {
    let local = at.utc().with_timezone(&zone).iso_week();
    (i64::from(local.year()), local.week())
}

fn month(at: Timestamp, zone: Tz) -> (i64, u32) {
    let local = at.utc().with_timezone(&zone);
    (i64::from(local.year()), local.month())
}

fn year(at: Timestamp, zone: Tz) -> (i64, u32) {
    (i64::from(at.utc().with_timezone(&zone).year()), 0)
}

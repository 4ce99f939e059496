//! Retention: which archives of a schedule stay, by which rule, and letting the others go (I8).
//!
//! The choice asks neither clock nor disk: it is a function of the archives' own numbers and times. "Newest" is the
//! highest run number; buckets are formed of the times in the names, in the schedule's zone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use chrono::{Datelike, Timelike};
use chrono_tz::Tz;

use crate::archive_folder;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::schedule::{Retention, parse_zone};
use crate::store::{Archive, ScheduleRow, Store};

/// An archive dated further ahead of its neighbours was made under a wrong clock.
const AHEAD: Duration = Duration::from_secs(86_400);

/// What retention knows of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveFacts {
    /// Number of the run that made it; a higher one is newer.
    pub run: i64,
    /// The old system made it: older than any of ours, whatever its number.
    pub legacy: bool,
    /// The time in its name.
    pub created_at: Timestamp,
    /// Good in the sense of I8.
    pub good: bool,
    /// Made by a run that met no loss.
    pub whole: bool,
    /// Pinned by hand.
    pub pinned: bool,
    /// Made by a run asked for by hand.
    pub manual: bool,
}

impl From<&Archive> for ArchiveFacts {
    fn from(archive: &Archive) -> Self {
        ArchiveFacts {
            run: archive.run,
            legacy: archive.digest.is_none(),
            created_at: archive.created_at,
            good: archive.good,
            whole: !archive.incomplete,
            pinned: archive.pinned,
            manual: archive.manual,
        }
    }
}

/// A rule that keeps an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeepRule {
    /// No good archive exists, so none goes.
    NothingGood,
    /// It is the newest good one.
    NewestGood,
    /// It is the newest good one of a run without losses.
    NewestWhole,
    /// It is pinned.
    Pinned,
    /// The policy keeps all.
    All,
    /// Its time cannot be right.
    OutOfTime,
    /// It is near enough to the newest good one.
    Within,
    /// It is one of the newest.
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
    /// A run by hand made it.
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
            KeepRule::OutOfTime => "out of time",
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

/// What retention says of one archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Number of its run.
    pub run: i64,
    /// The rules that keep it; none of them means that it goes.
    pub kept_by: Vec<KeepRule>,
}

/// Decides which of the archives of one schedule stay, newest first. An archive that is not good fills no place of a
/// rule; it goes once the rules would let it go even if it were good.
pub fn decide(archives: &[ArchiveFacts], policy: &Retention, zone: Tz) -> Vec<Decision> {
    let mut newest_first = archives.to_vec();
    newest_first.sort_by_key(|archive| std::cmp::Reverse((!archive.legacy, archive.run)));
    let mut kept: BTreeMap<i64, BTreeSet<KeepRule>> = BTreeMap::new();
    let mut keep = |run: i64, rule: KeepRule| {
        kept.entry(run).or_default().insert(rule);
    };
    let good: Vec<ArchiveFacts> = newest_first.iter().filter(|archive| archive.good).copied().collect();
    if let Some(newest) = good.first() {
        keep(newest.run, KeepRule::NewestGood);
        good.iter().find(|archive| archive.whole).into_iter().for_each(|a| keep(a.run, KeepRule::NewestWhole));
        let strange = out_of_time(&newest_first);
        let in_time = |archive: &&ArchiveFacts| !strange.contains(&archive.run);
        for (run, rule) in choose(&good.iter().filter(in_time).copied().collect::<Vec<_>>(), newest, policy, zone) {
            keep(run, rule);
        }
        let all: Vec<ArchiveFacts> = newest_first.iter().filter(in_time).copied().collect();
        let is_bad = |run: i64| good.iter().all(|archive| archive.run != run);
        for (run, rule) in choose(&all, newest, policy, zone).into_iter().filter(|(run, _)| is_bad(*run)) {
            keep(run, rule);
        }
        strange.into_iter().for_each(|run| keep(run, KeepRule::OutOfTime));
    } else {
        newest_first.iter().for_each(|archive| keep(archive.run, KeepRule::NothingGood));
    }
    newest_first.iter().filter(|archive| archive.pinned).for_each(|archive| keep(archive.run, KeepRule::Pinned));
    newest_first
        .iter()
        .map(|archive| Decision {
            run: archive.run,
            kept_by: kept.get(&archive.run).map(|rules| rules.iter().copied().collect()).unwrap_or_default(),
        })
        .collect()
}

/// Returns the archives whose time cannot be right: over a day ahead of both neighbours, or of the newest of all, which
/// was made after them. They stay, and fill no place.
fn out_of_time(newest_first: &[ArchiveFacts]) -> Vec<i64> {
    let is_ahead = |archive: &ArchiveFacts, of: &ArchiveFacts| archive.created_at.since(of.created_at) > AHEAD;
    let ours: Vec<&ArchiveFacts> = newest_first.iter().filter(|archive| !archive.legacy).collect();
    let between = ours.windows(3).filter(|w| is_ahead(w[1], w[0]) && is_ahead(w[1], w[2])).map(|w| w[1].run);
    let newest = ours.first().into_iter();
    let beyond = newest.flat_map(|newest| ours.iter().filter(|archive| is_ahead(archive, newest)).map(|a| a.run));
    between.chain(beyond).collect::<BTreeSet<i64>>().into_iter().collect()
}

/// Applies the rules of a policy to archives, newest first.
fn choose(archives: &[ArchiveFacts], newest_good: &ArchiveFacts, policy: &Retention, zone: Tz) -> Vec<(i64, KeepRule)> {
    let mut chosen = Vec::new();
    if policy.all {
        chosen.extend(archives.iter().map(|archive| (archive.run, KeepRule::All)));
    }
    let age = |archive: &ArchiveFacts| newest_good.created_at.since(archive.created_at);
    if let Some(within) = policy.within.filter(|within| !within.is_zero()) {
        chosen.extend(archives.iter().filter(|a| age(a) <= within).map(|archive| (archive.run, KeepRule::Within)));
    }
    if let Some(manual) = policy.manual.filter(|manual| !manual.is_zero()) {
        let by_hand = archives.iter().filter(|archive| archive.manual && age(archive) <= manual);
        chosen.extend(by_hand.map(|archive| (archive.run, KeepRule::Manual)));
    }
    let last = policy.last.unwrap_or(0) as usize;
    chosen.extend(archives.iter().take(last).map(|archive| (archive.run, KeepRule::Last)));
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
        chosen.extend(newest_of.values().rev().take(count.unwrap_or(0) as usize).map(|run| (*run, rule)));
    }
    chosen
}

/// Hours are told apart in the overlap of autumn too: by the real hour in which the local one began.
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

/// What retention would do to the archives of one schedule.
#[derive(Clone, Debug)]
pub struct PrunePlan {
    /// The archives, newest first.
    pub archives: Vec<Archive>,
    /// What becomes of each, in the same order.
    pub decisions: Vec<Decision>,
}

impl PrunePlan {
    /// Works out what retention would do with the archives of a schedule now.
    pub fn compute(store: &Store, row: &ScheduleRow) -> Result<PrunePlan> {
        let mut by_run: BTreeMap<i64, Archive> =
            store.archives(Some(row.id))?.into_iter().map(|archive| (archive.run, archive)).collect();
        let facts: Vec<ArchiveFacts> = by_run.values().map(ArchiveFacts::from).collect();
        let decisions = decide(&facts, &row.schedule.retention, zone_of(store, row)?);
        let archives = decisions.iter().filter_map(|decision| by_run.remove(&decision.run)).collect();
        Ok(PrunePlan { archives, decisions })
    }

    /// Returns the archives that go, newest first.
    pub fn removals(&self) -> impl Iterator<Item = &Archive> {
        self.archives.iter().zip(&self.decisions).filter(|(_, decision)| decision.kept_by.is_empty()).map(|(a, _)| a)
    }

    /// Says whether over half of the good archives would go, which is not done at once: a wrong clock or a slip in the
    /// policy looks the same.
    pub fn is_large(&self) -> bool {
        let good = self.archives.iter().filter(|archive| archive.good).count();
        self.removals().filter(|archive| archive.good).count() * 2 > good
    }

    /// Lets the archives go that the plan lets go, and returns how many. Nothing goes if one of those that make this
    /// safe, the newest good ones, is not what it was when the plan was made.
    ///
    /// Errors: `Failed` where the archive folder or the newest good archive is not there.
    pub fn apply(&self, home: &Home, store: &Store) -> Result<usize> {
        let going: Vec<i64> = self.removals().map(|archive| archive.run).collect();
        if going.is_empty() {
            return Ok(0);
        }
        archive_folder::ensure_ours(home, store)?;
        let is_anchor = |decision: &Decision| {
            decision.kept_by.iter().any(|rule| matches!(rule, KeepRule::NewestGood | KeepRule::NewestWhole))
        };
        let mut anchors = Vec::new();
        for (archive, _) in self.archives.iter().zip(&self.decisions).filter(|(_, decision)| is_anchor(decision)) {
            let path = home.backups().join(&archive.file_name);
            if !fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == archive.size) {
                return Err(Error::failed(format!(
                    "nothing of {} is pruned: its newest good archive {} is not there as it was",
                    archive.schedule_name,
                    path.display()
                ))
                .hint(format!("run `backup-manager verify {}`", archive.schedule_name)));
            }
            anchors.push(archive.run);
        }
        store.mark_deleting(&going, &anchors)?;
        archive_folder::finish_deletions(home, store)?;
        Ok(going.len())
    }
}

/// Applies retention after a good run. A prune of over half waits for the next good run; what is worth saying is
/// returned.
pub fn apply_retention(home: &Home, store: &Store, row: &ScheduleRow, run: i64) -> Result<Option<String>> {
    let plan = PrunePlan::compute(store, row)?;
    let count = plan.removals().count();
    if plan.is_large() && !store.may_prune_over_half(row.id, run)? {
        let name = &row.schedule.name;
        return Ok(Some(format!(
            "retention would remove {count} archives of {name}, over half of the good ones: that waits for the next \
             good run, or `backup-manager prune {name} --yes`"
        )));
    }
    if !plan.is_large() {
        store.clear_held_prune(row.id)?;
    }
    let gone = plan.apply(home, store)?;
    store.clear_held_prune(row.id)?;
    Ok((gone > 0).then(|| {
        format!("retention removed {gone} archive{} of {}", if gone == 1 { "" } else { "s" }, row.schedule.name)
    }))
}

/// Removes one archive now, by hand.
///
/// Errors: `Failed` for a pinned one and, unless `force`, for the newest good one; `NotFound`.
pub fn forget(home: &Home, store: &Store, run: i64, force: bool) -> Result<Archive> {
    let archive = store.archive(run)?.ok_or_else(|| no_archive(run))?;
    if archive.pinned {
        return Err(Error::failed(format!("the archive @{run} is pinned"))
            .hint(format!("let go of it first: `backup-manager pin @{run} --off`")));
    }
    let newest = store.newest_good(archive.schedule_id)?.map(|newest| newest.run);
    if !force && newest == Some(run) {
        return Err(Error::failed(format!("@{run} is the newest good archive of {}", archive.schedule_name))
            .hint("make another with `backup-manager run`, or add --force"));
    }
    archive_folder::ensure_ours(home, store)?;
    store.mark_deleting(&[run], newest.filter(|_| !force).as_slice())?;
    archive_folder::finish_deletions(home, store)?;
    Ok(archive)
}

/// Returns the error for a run that has no archive.
pub fn no_archive(run: i64) -> Error {
    Error::not_found(format!("there is no archive @{run}"))
        .hint("see `backup-manager backups --all` for those there are")
}

/// Returns the zone that a schedule's days begin in: its own, else that of the last service, else UTC.
fn zone_of(store: &Store, row: &ScheduleRow) -> Result<Tz> {
    match (row.schedule.zone, store.service_zone()?) {
        (Some(zone), _) => Ok(zone),
        (None, Some(name)) => parse_zone(&name),
        (None, None) => Ok(Tz::UTC),
    }
}

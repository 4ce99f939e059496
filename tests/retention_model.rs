//! Compares retention with an independent model, which decides for each archive by itself whether a rule keeps it.

use std::collections::BTreeSet;
use std::time::Duration;

use backup_manager::clock::Timestamp;
use backup_manager::maintenance::retention::{ArchiveFacts, Decision, KeepRule, decide};
use backup_manager::schedule::Retention;
use chrono_tz::Tz;
use proptest::prelude::*;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// 2024-01-01T00:00:00Z.
const START: i64 = 1_704_067_200_000;

fn newer(a: &ArchiveFacts, b: &ArchiveFacts) -> bool {
    (!a.is_legacy, a.run) > (!b.is_legacy, b.run)
}

/// Returns the name of the period that an instant falls into. The names of later periods are greater.
fn period(rule: KeepRule, at: Timestamp, zone: Tz) -> String {
    let local = at.utc().with_timezone(&zone);
    match rule {
        // Named by the instant at which the local clock showed the full hour, since in autumn one hour occurs twice.
        KeepRule::Hourly => {
            let shown = local.format("%M:%S").to_string();
            let (minutes, seconds) = shown.split_once(':').unwrap();
            let into = minutes.parse::<i64>().unwrap() * 60 + seconds.parse::<i64>().unwrap();
            format!("{:020}", at.millis().div_euclid(1000) - into)
        }
        KeepRule::Daily => local.format("%Y-%m-%d").to_string(),
        KeepRule::Weekly => local.format("%G-%V").to_string(),
        KeepRule::Monthly => local.format("%Y-%m").to_string(),
        _ => local.format("%Y").to_string(),
    }
}

fn is_misdated(archives: &[ArchiveFacts], this: &ArchiveFacts) -> bool {
    let ours: Vec<&ArchiveFacts> = archives.iter().filter(|a| !a.is_legacy).collect();
    let ahead = |of: &ArchiveFacts| this.created_at.millis() - of.created_at.millis() > DAY_MS;
    if this.is_legacy {
        return false;
    }
    let before = ours.iter().filter(|a| a.run < this.run).max_by_key(|a| a.run);
    let after = ours.iter().filter(|a| a.run > this.run).min_by_key(|a| a.run);
    let last = ours.iter().max_by_key(|a| a.run).unwrap();
    ahead(last) || before.is_some_and(|a| ahead(a)) && after.is_some_and(|a| ahead(a))
}

/// Returns whether the policy keeps `this` when the archives `among`, which include it, take the places of the rules.
fn kept_among(
    among: &[ArchiveFacts],
    this: &ArchiveFacts,
    newest: &ArchiveFacts,
    policy: &Retention,
    zone: Tz,
) -> bool {
    let age_ms = newest.created_at.millis() - this.created_at.millis();
    let within = |limit: Option<Duration>| {
        limit.is_some_and(|limit| !limit.is_zero() && age_ms <= i64::try_from(limit.as_millis()).unwrap())
    };
    let newer_files: BTreeSet<i64> = among.iter().filter(|a| newer(a, this)).map(|a| a.file).collect();
    let rank = match newer_files.contains(&this.file) {
        true => among.iter().filter(|a| newer(a, this)).count(),
        false => newer_files.len(),
    };
    let mut kept = policy.all || within(policy.within) || this.is_manual && within(policy.manual);
    kept |= (rank as u64) < u64::from(policy.last.unwrap_or(0));
    for (count, rule) in [
        (policy.hourly, KeepRule::Hourly),
        (policy.daily, KeepRule::Daily),
        (policy.weekly, KeepRule::Weekly),
        (policy.monthly, KeepRule::Monthly),
        (policy.yearly, KeepRule::Yearly),
    ] {
        let own = period(rule, this.created_at, zone);
        let is_newest = among.iter().all(|a| !newer(a, this) || period(rule, a.created_at, zone) != own);
        let later: BTreeSet<String> =
            among.iter().map(|a| period(rule, a.created_at, zone)).filter(|name| *name > own).collect();
        kept |= is_newest && (later.len() as u64) < u64::from(count.unwrap_or(0));
    }
    kept
}

fn model(archives: &[ArchiveFacts], policy: &Retention, zone: Tz) -> BTreeSet<i64> {
    let good: Vec<ArchiveFacts> = archives.iter().filter(|a| a.is_good).copied().collect();
    let Some(newest) = good.iter().find(|a| good.iter().all(|b| !newer(b, a))) else {
        return archives.iter().map(|a| a.run).collect();
    };
    let whole = good.iter().filter(|a| a.is_whole).find(|a| good.iter().all(|b| !b.is_whole || !newer(b, a)));
    let in_time = |list: &[ArchiveFacts]| -> Vec<ArchiveFacts> {
        list.iter().filter(|a| !is_misdated(archives, a)).copied().collect()
    };
    let (good, all) = (in_time(&good), in_time(archives));
    let is_kept = |this: &&ArchiveFacts| {
        this.is_pinned
            || this.run == newest.run
            || whole.is_some_and(|whole| whole.run == this.run)
            || is_misdated(archives, this)
            || kept_among(if this.is_good { &good } else { &all }, this, newest, policy, zone)
    };
    archives.iter().filter(is_kept).map(|a| a.run).collect()
}

fn kept(decisions: &[Decision]) -> BTreeSet<i64> {
    decisions.iter().filter(|decision| !decision.kept_by.is_empty()).map(|decision| decision.run).collect()
}

fn policies() -> impl Strategy<Value = Retention> {
    let count = || prop_oneof![3 => Just(None), 2 => (0_u32..6).prop_map(Some)];
    let age =
        || prop_oneof![2 => Just(None), 2 => (0_u64..200).prop_map(|hours| Some(Duration::from_secs(hours * 3600)))];
    (count(), count(), count(), count(), count(), count(), age(), age(), prop::bool::weighted(0.05))
        .prop_map(|(last, hourly, daily, weekly, monthly, yearly, within, manual, all)| {
            if all {
                return Retention { all, ..Retention::EMPTY };
            }
            Retention { last, hourly, daily, weekly, monthly, yearly, within, manual, all }
        })
        .prop_filter("it keeps something", |policy| policy.check().is_ok())
}

prop_compose! {
    /// Archives with gaps from minutes to months, a clock that is sometimes wrong, and every combination of flags.
    fn histories()(
        start in 0_i64..700,
        steps in prop::collection::vec(
            (prop_oneof![4 => 0_i64..3 * HOUR_MS, 6 => 20 * HOUR_MS..28 * HOUR_MS, 2 => 0_i64..40 * DAY_MS,
                         1 => 60 * DAY_MS..400 * DAY_MS],
             prop_oneof![20 => Just(0_i64), 1 => Just(365 * DAY_MS), 1 => Just(-365 * DAY_MS), 1 => 0_i64..3 * DAY_MS],
             prop::bool::weighted(0.8), prop::bool::weighted(0.85), prop::bool::weighted(0.05),
             prop::bool::weighted(0.2), prop::bool::weighted(0.02), prop::bool::weighted(0.2)),
            0..60,
        ),
        all_bad in prop::bool::weighted(0.05),
    ) -> Vec<ArchiveFacts> {
        let (mut at, mut file) = (START + start * DAY_MS, 0);
        steps.into_iter().enumerate().map(|(index, (step, clock_error, good, whole, pinned, manual, legacy, shares))| {
            at += step;
            file += i64::from(!shares);
            ArchiveFacts {
                run: index as i64 * 3 + 1,
                file,
                is_legacy: legacy,
                is_rescanned: false,
                created_at: Timestamp::from_millis(at + clock_error),
                is_good: good && !all_bad,
                is_whole: whole,
                is_pinned: pinned,
                is_manual: manual,
            }
        }).collect()
    }
}

fn zones() -> impl Strategy<Value = Tz> {
    prop_oneof![
        Just(Tz::UTC),
        Just(Tz::Europe__Berlin),
        Just(Tz::America__New_York),
        Just(Tz::Australia__Lord_Howe),
        Just(Tz::Pacific__Apia),
        Just(Tz::Asia__Kathmandu),
    ]
}

fn cases() -> u32 {
    std::env::var("BACKUP_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn retention_keeps_what_the_model_keeps(archives in histories(), policy in policies(), zone in zones()) {
        let decisions = decide(&archives, &policy, zone);
        prop_assert_eq!(decisions.len(), archives.len());
        prop_assert_eq!(kept(&decisions), model(&archives, &policy, zone));
    }

    #[test]
    fn the_newest_good_and_the_pinned_are_always_kept(archives in histories(), policy in policies(), zone in zones()) {
        let kept_runs = kept(&decide(&archives, &policy, zone));
        for archive in archives.iter().filter(|a| a.is_pinned) {
            prop_assert!(kept_runs.contains(&archive.run));
        }
        let newest = archives.iter().filter(|a| a.is_good).max_by_key(|a| (!a.is_legacy, a.run));
        let whole = archives.iter().filter(|a| a.is_good && a.is_whole).max_by_key(|a| (!a.is_legacy, a.run));
        for archive in newest.into_iter().chain(whole) {
            prop_assert!(kept_runs.contains(&archive.run));
        }
        if newest.is_none() {
            prop_assert_eq!(kept_runs.len(), archives.len());
        }
    }

    #[test]
    fn retention_of_the_kept_archives_keeps_them_all(archives in histories(), policy in policies(), zone in zones()) {
        let kept_runs = kept(&decide(&archives, &policy, zone));
        let rest: Vec<ArchiveFacts> = archives.iter().filter(|a| kept_runs.contains(&a.run)).copied().collect();
        let newest = archives.iter().filter(|a| !a.is_legacy).map(|a| a.run).max();
        // Once misdated archives are removed, the times of their neighbours may be judged differently.
        if archives.iter().any(|a| is_misdated(&archives, a)) || rest.iter().any(|a| is_misdated(&rest, a)) {
            return Ok(());
        }
        if rest.iter().all(|a| Some(a.run) != newest) {
            return Ok(());
        }
        prop_assert_eq!(kept(&decide(&rest, &policy, zone)), kept_runs);
    }
}

/// Returns one good archive a day, at noon UTC, with run numbers from 1 upwards.
fn daily(days: i64) -> Vec<ArchiveFacts> {
    (0..days).map(|day| fact(day + 1, START + day * DAY_MS + 12 * HOUR_MS)).collect()
}

fn fact(run: i64, at: i64) -> ArchiveFacts {
    ArchiveFacts {
        run,
        file: run,
        is_legacy: false,
        is_rescanned: false,
        created_at: Timestamp::from_millis(at),
        is_good: true,
        is_whole: true,
        is_pinned: false,
        is_manual: false,
    }
}

#[test]
fn the_default_keeps_days_weeks_and_months() {
    // 2024-01-01 was a Monday; the last day is 2024-12-30, a Monday too.
    let kept_runs = kept(&decide(&daily(365), &Retention::default(), Tz::UTC));
    let days: Vec<String> = kept_runs
        .iter()
        .map(|run| Timestamp::from_millis(START + (run - 1) * DAY_MS).utc().format("%m-%d").to_string())
        .collect();
    assert_eq!(
        days,
        [
            "07-31", "08-31", "09-30", "10-31", "11-30", "12-15", "12-22", "12-24", "12-25", "12-26", "12-27", "12-28",
            "12-29", "12-30"
        ]
    );
}

#[test]
fn names_of_one_file_take_no_place_of_others() {
    let mut archives = daily(8);
    archives[3..].iter_mut().for_each(|archive| archive.file = 4);
    let last = Retention { last: Some(3), ..Retention::EMPTY };
    let kept_runs = kept(&decide(&archives, &last, Tz::UTC));
    assert_eq!(kept_runs, BTreeSet::from([2, 3, 6, 7, 8]), "three archives, and three files");
}

#[test]
fn a_clock_a_year_ahead_for_a_while_removes_no_old_archive() {
    let mut archives = daily(60);
    let before = kept(&decide(&archives, &Retention::default(), Tz::UTC));
    let year_ahead = START + (60 + 365) * DAY_MS;
    archives.extend((0..5).map(|day| fact(61 + day, year_ahead + day * DAY_MS)));
    archives.extend((0..2).map(|day| fact(66 + day, START + (65 + day) * DAY_MS)));
    let after = kept(&decide(&archives, &Retention::default(), Tz::UTC));
    assert!((61..=65).all(|run| after.contains(&run)), "times that cannot be right: kept, {after:?}");
    let daily_kept = (59..=67).filter(|run| !(61..=65).contains(run)).all(|run| after.contains(&run));
    assert!(daily_kept, "they take no place in a rule: {before:?} {after:?}");
}

#[test]
fn a_damaged_archive_takes_no_place_and_is_removed_in_its_time() {
    let mut archives = daily(30);
    archives[28].is_good = false;
    let policy = Retention { daily: Some(3), ..Retention::EMPTY };
    assert_eq!(kept(&decide(&archives, &policy, Tz::UTC)), BTreeSet::from([27, 28, 29, 30]));
    archives[28].is_good = true;
    archives[10].is_good = false;
    assert_eq!(kept(&decide(&archives, &policy, Tz::UTC)), BTreeSet::from([28, 29, 30]));
}

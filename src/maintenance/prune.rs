//! Pruning: removes the archives that retention does not keep, and single archives by command (I8).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono_tz::Tz;

use super::retention::{self, ArchiveFacts, Decision, KeepRule};
use super::shared_files::separate_files;
use super::verify::verify_archive;
use crate::archive_folder::{self, Deleted};
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::schedule::parse_zone;
use crate::store::{Archive, ScheduleRow, Store};
use crate::words;

/// How long a verification counts: on the strength of a newest good archive whose oldest part was not verified for
/// longer, nothing is removed (I20).
const VERIFICATION_COUNTS_FOR: Duration = Duration::from_secs(14 * 86_400);

/// What pruning needs.
#[derive(Clone, Copy)]
pub struct PruneContext<'a> {
    /// The paths of the installation.
    pub home: &'a Home,
    /// The database.
    pub store: &'a Store,
    /// The time.
    pub now: Timestamp,
    /// Threads that decode, where an archive has to be verified first.
    pub threads: usize,
    /// Ends a verification; then nothing is removed.
    pub cancel: &'a CancelToken,
}

/// What retention would do to the archives of one schedule.
#[derive(Clone, Debug)]
pub struct PrunePlan {
    /// The archives, newest first.
    pub archives: Vec<Archive>,
    /// The decision on each archive, in the same order.
    pub decisions: Vec<Decision>,
    /// Whether the store holds the next prune of the schedule.
    is_held: bool,
}

/// Why a plan is not applied without a user's consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// It removes more than half of the good archives. A wrong clock or a mistake in the policy has the same effect.
    Size,
    /// The store holds it until the next good run: the first one since the deleted name of the schedule came back,
    /// maybe with other rules.
    Store,
}

impl HeldBy {
    fn reason(self) -> &'static str {
        match self {
            HeldBy::Size => "over half of the good ones",
            HeldBy::Store => "the first since its name came back",
        }
    }
}

impl PrunePlan {
    /// Computes what retention would do to the archives of a schedule now.
    pub fn compute(store: &Store, row: &ScheduleRow) -> Result<PrunePlan> {
        let mut by_run: BTreeMap<i64, Archive> =
            store.archives(Some(row.id))?.into_iter().map(|archive| (archive.run, archive)).collect();
        let facts: Vec<ArchiveFacts> = by_run.values().map(ArchiveFacts::from).collect();
        let decisions = retention::decide(&facts, &row.schedule.retention, zone_of(store, row)?);
        let archives = decisions.iter().filter_map(|decision| by_run.remove(&decision.run)).collect();
        Ok(PrunePlan { archives, decisions, is_held: store.is_prune_held(row.id)? })
    }

    /// Returns the archives to be removed, newest first.
    pub fn removals(&self) -> impl Iterator<Item = &Archive> {
        self.archives.iter().zip(&self.decisions).filter(|(_, decision)| decision.kept_by.is_empty()).map(|(a, _)| a)
    }

    /// Returns why the plan waits for a later good run, or for a user who asks for it; `None` if it may be applied.
    pub fn held_by(&self) -> Option<HeldBy> {
        match self.removals().next() {
            None => None,
            Some(_) if self.is_large() => Some(HeldBy::Size),
            Some(_) => self.is_held.then_some(HeldBy::Store),
        }
    }

    /// Returns whether the plan removes more than half of the good archives.
    pub fn is_large(&self) -> bool {
        let good = self.archives.iter().filter(|archive| archive.good).count();
        self.removals().filter(|archive| archive.good).count() * 2 > good
    }

    /// Removes the archives that no rule keeps, except the bases of running runs.
    ///
    /// Nothing is removed if one of the newest good archives, which make the removal safe, has changed since the plan
    /// was computed or is damaged, or if the folder holds archives that the catalog does not know. A newest good
    /// archive that was not verified lately is verified first (I20).
    ///
    /// Errors: `Failed` in these cases, if the archive folder is not ours, or if the file of a newest good archive is
    /// missing or has another size; `Busy` if one of them is no longer good; `Interrupted` if cancelled.
    pub fn apply(&self, context: &PruneContext<'_>) -> Result<Deleted> {
        let PruneContext { home, store, .. } = *context;
        let removals: Vec<i64> = self.removals().map(|archive| archive.run).collect();
        if removals.is_empty() {
            return Ok(Deleted::default());
        }
        archive_folder::ensure_ours(home, store)?;
        if let Some(error) = archive_folder::find_unknown_archives(home, store)?.error(home) {
            return Err(error);
        }
        let is_anchor = |decision: &Decision| {
            decision.kept_by.iter().any(|rule| matches!(rule, KeepRule::NewestGood | KeepRule::NewestWhole))
        };
        separate_files(home, store, self.archives.first().map(|archive| archive.schedule_id))?;
        let mut anchors = Vec::new();
        for (archive, _) in self.archives.iter().zip(&self.decisions).filter(|(_, decision)| is_anchor(decision)) {
            // Its file may have just been found to be another one than that which was verified.
            if let Some(archive) = store.archive(archive.run)? {
                ensure_verified(context, &archive)?;
            }
            anchors.push(archive.run);
        }
        let marked = store.mark_deleting(&removals, &anchors)?;
        archive_folder::delete_marked(home, store, &removals, marked)
    }
}

/// Fails if a newest good archive is not as it was written, which is read from the disk if that was not done lately.
fn ensure_verified(context: &PruneContext<'_>, archive: &Archive) -> Result<()> {
    let PruneContext { home, store, now, threads, cancel } = *context;
    let path = home.backups().join(&archive.file_name);
    let fault = |what: &str| {
        let (name, path) = (&archive.schedule_name, path.display());
        Error::failed(format!("nothing of {name} is pruned: its newest good archive {path} {what}"))
            .hint(format!("run `backup-manager verify {}`", words::shell_word(name)))
    };
    let is_file = |path: &Path, size: Option<u64>| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && size.is_none_or(|size| found.len() == size))
    };
    let mut is_there = is_file(&path, None);
    for part in store.parts(archive.archive_file)? {
        is_there &= is_file(&home.backups().join(part.segment_name.as_ref().unwrap_or(&archive.file_name)), part.size);
    }
    if !is_there {
        return Err(fault("is missing or has changed"));
    }
    // A time in the future was recorded under a wrong clock.
    let counts = |at: Timestamp| at <= now && at >= now.minus(VERIFICATION_COUNTS_FOR);
    if archive.verified_at.is_some_and(counts) {
        return Ok(());
    }
    match verify_archive(home, store, archive, threads, cancel, now)?.is_good() {
        true => Ok(()),
        false => Err(fault("is damaged")),
    }
}

/// Applies retention after a good run, and returns a note about the result for the user. A plan that is held
/// ([`PrunePlan::held_by`]) waits for the next good run.
pub fn apply_retention(context: &PruneContext<'_>, row: &ScheduleRow, run: i64) -> Result<Option<String>> {
    let store = context.store;
    let plan = PrunePlan::compute(store, row)?;
    let count = plan.removals().count();
    if count > 0 && !store.may_prune(row.id, run, plan.is_large())? {
        let name = &row.schedule.name;
        let why = plan.held_by().map_or("", HeldBy::reason);
        return Ok(Some(format!(
            "retention would remove {} of {name}, {why}: that waits for the next good run, or \
             `backup-manager prune {} --yes`",
            words::count(count as u64, "archive"),
            words::shell_word(name.as_str())
        )));
    }
    if !plan.is_large() {
        store.clear_held_prune(row.id)?;
    }
    let deleted = plan.apply(context)?;
    store.clear_held_prune(row.id)?;
    let name = row.schedule.name.as_str();
    let removed = words::count(deleted.removed as u64, "archive");
    let removed = (deleted.removed > 0).then(|| format!("retention removed {removed} of {name}"));
    Ok(removed.into_iter().chain(deleted.waiting_note(name)).reduce(|one, other| format!("{one}; {other}")))
}

/// Applies a plan at the user's request. One that is held ([`PrunePlan::held_by`]) is applied only with `yes`, and then
/// no longer held.
///
/// Errors: `Failed` for a held plan without `yes`; those of [`PrunePlan::apply`].
pub fn prune_on_request(context: &PruneContext<'_>, row: &ScheduleRow, plan: &PrunePlan, yes: bool) -> Result<Deleted> {
    let name = &row.schedule.name;
    if let Some(held) = plan.held_by()
        && !yes
    {
        let count = words::count(plan.removals().count() as u64, "archive");
        return Err(Error::failed(format!("pruning {name} would remove {count}, {}", held.reason())).hint(format!(
            "check `backup-manager prune {} --dry-run`, then add --yes",
            words::shell_word(name.as_str())
        )));
    }
    let deleted = plan.apply(context)?;
    if deleted != Deleted::default() {
        context.store.release_held_prune(row.id)?;
    }
    Ok(deleted)
}

/// Removes one archive at the user's request: now, or later ([`Deleted::waiting`]). Returns it as it was.
///
/// Errors: `Failed` for a pinned archive and, unless `force`, for the newest good one; `NotFound`; `Busy` for the base
/// of a running run.
pub fn forget(home: &Home, store: &Store, run: i64, force: bool) -> Result<(Archive, Deleted)> {
    let archive = store.archive(run)?.ok_or_else(|| no_archive(run))?;
    if archive.pinned {
        return Err(Error::failed(format!("the archive @{run} is pinned"))
            .hint(format!("unpin it first: `backup-manager pin @{run} --off`")));
    }
    let newest = store.newest_good(archive.schedule_id)?.map(|newest| newest.run);
    if !force && newest == Some(run) {
        return Err(Error::failed(format!("@{run} is the newest good archive of {}", archive.schedule_name))
            .hint("make another with `backup-manager run`, or add --force"));
    }
    archive_folder::ensure_ours(home, store)?;
    if store.mark_deleting(&[run], newest.filter(|_| !force).as_slice())? == 0 {
        let name = &archive.schedule_name;
        return Err(Error::busy(format!("the running backup of {name} takes unchanged data from the archive @{run}"))
            .hint("try again when it has ended: `backup-manager status`"));
    }
    let deleted = archive_folder::delete_marked(home, store, &[run], 1)?;
    Ok((archive, deleted))
}

/// Returns the error for a run that has no archive.
pub fn no_archive(run: i64) -> Error {
    Error::not_found(format!("there is no archive @{run}")).hint("see `backup-manager backups --all` for all archives")
}

/// Returns the zone in which the days of a schedule begin: its own, else that of the last service, else UTC.
fn zone_of(store: &Store, row: &ScheduleRow) -> Result<Tz> {
    match (row.schedule.zone, store.service_zone()?) {
        (Some(zone), _) => Ok(zone),
        (None, Some(name)) => parse_zone(&name),
        (None, None) => Ok(Tz::UTC),
    }
}

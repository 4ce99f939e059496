//! Recovery of the runs of dead workers: by compare-and-set, from what the row says is on disk. Recovering twice has
//! the same result as once.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::archive_folder;
use crate::archive_name::ArchiveName;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::liveness;
use crate::schedule::Layout;
use crate::store::{ArchiveState, Claim, PendingArchive, Requeue, Run, RunState};

use super::duties::{COMMAND_DUTIES, START_DUTIES, settle_duties};
use super::{Inherited, RunContext, Runner, SealedArchive};

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Runs whose sealed archive was finished.
    pub finished: u32,
    /// Interrupted runs that were queued for another attempt.
    pub requeued: u32,
    /// Interrupted runs that were ended.
    pub ended: u32,
}

/// The run of a dead worker, claimed by this worker and not yet recovered.
#[must_use = "a run that was taken over must be recovered"]
pub struct OrphanedRun {
    claim: Claim,
    run: Run,
}

impl OrphanedRun {
    /// Returns the number of the run.
    pub fn run(&self) -> i64 {
        self.run.id
    }
}

/// Takes over the runs of dead workers and recovers each; then finishes deletions and removes dead workers.
///
/// A run that cannot be recovered now is logged and stays `running` until the next recovery.
pub fn recover(runner: &Runner, context: &RunContext<'_>) -> Result<RecoveryReport> {
    let mut report = RecoveryReport::default();
    for orphan in take_over_orphaned_runs(runner, &|_| false)? {
        let (run, schedule) = (orphan.run(), orphan.run.schedule_name.clone());
        match recover_run(runner, orphan, context) {
            Ok(RunState::Queued) => report.requeued += 1,
            Ok(RunState::Failed | RunState::Cancelled) => report.ended += 1,
            Ok(_) => report.finished += 1,
            Err(error) => log::error!("{schedule}: run @{run} cannot be recovered yet: {error}"),
        }
    }
    for kinds in [START_DUTIES, COMMAND_DUTIES] {
        if let Err(error) = settle_duties(runner, kinds, context) {
            log::error!("what runs began is not undone yet: {error}");
        }
    }
    remove_dead_workers(runner)?;
    Ok(report)
}

/// Takes over the runs of dead workers.
///
/// A run of this very worker counts as orphaned if `is_active` is false for it: its thread panicked, or it was taken
/// over earlier and could not be recovered then.
pub fn take_over_orphaned_runs(runner: &Runner, is_active: &dyn Fn(i64) -> bool) -> Result<Vec<OrphanedRun>> {
    let workers = runner.home.workers();
    let mut orphans = Vec::new();
    for run in runner.store.running()? {
        let Some(owner) = run.worker else { continue };
        let is_alive = if owner == runner.row.uuid { is_active(run.id) } else { liveness::is_alive(&workers, &owner) };
        if is_alive {
            continue;
        }
        let now = runner.clock.now();
        if let Some(claim) = runner.store.take_over(run.id, owner, run.attempt, &runner.row, now)? {
            log::warn!("{}: run @{} is taken over: its process ended", run.schedule_name, run.id);
            orphans.push(OrphanedRun { claim, run });
        }
    }
    Ok(orphans)
}

/// Finishes the deletions that dead processes began, and removes the rows of dead workers.
pub fn remove_dead_workers(runner: &Runner) -> Result<()> {
    // An error of the archive folder, for example while its disk is not mounted, must not prevent the rest.
    let deleted = archive_folder::finish_deletions(&runner.home, &runner.store).unwrap_or_else(|error| {
        log::error!("deletions of archives were not finished and will be tried again: {error}");
        0
    });
    let workers = runner.home.workers();
    let mut dead = Vec::new();
    for row in runner.store.workers()? {
        if row.uuid != runner.row.uuid && !liveness::is_alive(&workers, &row.uuid) {
            dead.push(row.uuid);
        }
    }
    // A worker that died after the end of a run and before its stable link was refreshed left no other trace.
    if deleted > 0 || !dead.is_empty() {
        let rows = runner.store.schedules()?;
        match archive_folder::refresh_links_only(&runner.home, &runner.store, &rows) {
            Ok(notes) => notes.iter().for_each(|note| log::info!("{note}")),
            Err(error) => log::warn!("the stable links were not refreshed: {error}"),
        }
    }
    for uuid in dead {
        runner.store.remove_worker(uuid)?;
    }
    Ok(())
}

/// Undoes what a run that was taken over has begun, then finishes it, or queues it again, by what its row says is on
/// disk.
pub fn recover_run(runner: &Runner, orphan: OrphanedRun, context: &RunContext<'_>) -> Result<RunState> {
    let run = orphan.run();
    let state = try_recover_run(runner, orphan, context)?;
    runner.run_end_command(run, context);
    Ok(state)
}

fn try_recover_run(runner: &Runner, orphan: OrphanedRun, context: &RunContext<'_>) -> Result<RunState> {
    let OrphanedRun { claim, run } = orphan;
    let problem = runner.settle_run(&run, context)?;
    const REASON: &str = "its process ended";
    let Some(archive) = runner.store.pending_archive(run.id)? else { return requeue(runner, claim, REASON) };
    // If the disk is not mounted, the files are not visible, and nothing may be concluded from that.
    archive_folder::ensure_ours(&runner.home, &runner.store)?;
    match archive.state {
        ArchiveState::Sealed => finish_sealed(runner, claim, &archive, problem, context),
        _ => {
            remove_temporary(runner, &archive)?;
            // What the command of a source has printed.
            if let Err(error) = archive_folder::remove_orphaned_files(&runner.home, &runner.store, &run.schedule_name) {
                log::warn!("{}: other temporary files were not removed: {error}", run.schedule_name);
            }
            requeue(runner, claim, REASON)
        }
    }
}

/// Renames the file if that is still to be done, then completes the run.
///
/// A sealed file may have either name, or both if the rename was a link and an unlink. The final name may also be
/// that of a file of another program, which is kept.
fn finish_sealed(
    runner: &Runner,
    claim: Claim,
    archive: &PendingArchive,
    problem: Option<String>,
    context: &RunContext<'_>,
) -> Result<RunState> {
    if archive.layout == Layout::Segmented {
        match runner.rename_segments(archive.run) {
            Err(error) if error.kind() == ErrorKind::NotFound => return requeue(runner, claim, &error.to_string()),
            renamed => renamed?,
        }
    }
    let target = runner.home.backups().join(&archive.file_name);
    let temporary = archive.temporary_name.as_ref().map(|name| runner.home.backups().join(name));
    let has_temporary = temporary.as_deref().map(exists).transpose()?.unwrap_or(false);
    match (exists(&target)?, temporary) {
        (true, Some(temporary)) if has_temporary && !is_same_file(&temporary, &target)? => {
            if archive.layout == Layout::Segmented {
                // The index says which archive it is of, so that no other name would be its own.
                durable::remove(&temporary)?;
                return requeue(runner, claim, "a file of another program has the name of its index");
            }
            let renamed = rename_around(runner, &claim, archive, context)?;
            return finish_sealed(runner, claim, &renamed, problem, context);
        }
        (true, Some(temporary)) if has_temporary => durable::remove(&temporary)?,
        (true, _) => durable::sync_folder(target.parent().unwrap_or(&target))?,
        (false, Some(temporary)) if has_temporary => durable::rename_no_replace(&temporary, &target)?,
        (false, _) => return requeue(runner, claim, "its archive file was lost before it was in place"),
    }
    let row = runner.store.schedule(claim.schedule())?;
    let digest = archive.digest.as_deref().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let (Some(digest), Some(size)) = (digest, archive.size) else {
        return Err(Error::failed(format!("the sealed archive of run @{} has no digest", archive.run)));
    };
    let (file_name, is_incomplete) = (archive.file_name.as_str(), archive.incomplete);
    let layout = archive.layout;
    let archive =
        SealedArchive { file_name, size, digest, is_incomplete, problem, layout, inherited: Inherited::Nothing };
    runner.finish_sealed(claim, &archive, &row, context).map(|outcome| outcome.state)
}

/// Gives a sealed archive, which still has its temporary name, a final name that no file has, since another program
/// made a file of the one that it was to get.
fn rename_around(
    runner: &Runner,
    claim: &Claim,
    archive: &PendingArchive,
    context: &RunContext<'_>,
) -> Result<PendingArchive> {
    let taken = &archive.file_name;
    let name = taken.split_once('/').and_then(|(schedule, name)| ArchiveName::parse(name, schedule));
    let Some(name) = name else { return Err(Error::failed(format!("{taken} is not the name of an archive"))) };
    let mut created_at = runner.clock.now();
    let file_name = loop {
        let file_name = format!("{}/{}", name.schedule, ArchiveName { created_at, ..name }.file_name());
        if !exists(&runner.home.backups().join(&file_name))? {
            break file_name;
        }
        created_at = created_at.plus(Duration::from_secs(1));
    };
    runner.store.rename_sealed(claim, &file_name, created_at)?;
    context.observer.note(&format!("{taken} is a file of another program, and is kept: the archive is {file_name}"));
    Ok(PendingArchive { file_name, ..archive.clone() })
}

/// Returns whether both names are those of one file, as after a rename by a link that was not finished.
fn is_same_file(one: &Path, other: &Path) -> Result<bool> {
    let identity = |path: &Path| {
        let found = path.symlink_metadata().map_err(Error::io("inspect", path))?;
        Ok((found.dev(), found.ino()))
    };
    Ok(identity(one)? == identity(other)?)
}

/// Returns whether the name exists, without following a link. Nothing may be concluded from an error.
fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("inspect", path)(error)),
    }
}

fn remove_temporary(runner: &Runner, archive: &PendingArchive) -> Result<()> {
    match &archive.temporary_name {
        Some(name) => durable::remove(&runner.home.backups().join(name)),
        None => Ok(()),
    }
}

fn requeue(runner: &Runner, claim: Claim, reason: &str) -> Result<RunState> {
    let run = claim.run();
    runner.store.discard_chunks(&claim)?;
    match runner.store.requeue(claim, Requeue::Retry, reason, runner.clock.now()) {
        Ok(_) => runner.store.run(run).map(|run| run.state),
        // Another worker recovered it meanwhile.
        Err(failed) if failed.error.kind() == ErrorKind::Fenced => runner.store.run(run).map(|run| run.state),
        Err(failed) => Err(failed.error),
    }
}

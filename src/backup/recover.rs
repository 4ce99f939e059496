//! Putting right what dead workers left (§5): by compare-and-set, from what the row says, twice with the same result.

use std::io;
use std::path::Path;

use crate::archive_folder;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::liveness;
use crate::store::{ArchiveState, Claim, PendingArchive, Requeue, Run, RunState};

use super::{RunContext, Runner, SealedArchive};

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Runs whose sealed archive was finished.
    pub finished: u32,
    /// Runs that were cut off and wait for another try.
    pub requeued: u32,
    /// Runs that were cut off and ended.
    pub ended: u32,
}

/// The run of a dead worker, taken over and still to be put right.
#[must_use = "a run that was taken over must be put right"]
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

/// Takes over the runs of dead workers and puts each right; finishes deletions; forgets dead workers.
pub fn recover(runner: &Runner, context: &RunContext<'_>) -> Result<RecoveryReport> {
    let mut recovered = RecoveryReport::default();
    for taken in take_over_orphaned_runs(runner, &|_| false)? {
        let run = taken.run();
        match recover_run(runner, taken, context) {
            Ok(RunState::Queued) => recovered.requeued += 1,
            Ok(RunState::Failed | RunState::Cancelled) => recovered.ended += 1,
            Ok(_) => recovered.finished += 1,
            Err(error) => log::error!("run @{run}: cannot be put right yet: {error}"),
        }
    }
    remove_dead_workers(runner)?;
    Ok(recovered)
}

/// Takes over the runs of dead workers.
///
/// Runs of this very worker count as dead where `active` does not know them: a thread that panicked, or an earlier
/// take-over that could not be put right.
pub fn take_over_orphaned_runs(runner: &Runner, active: &dyn Fn(i64) -> bool) -> Result<Vec<OrphanedRun>> {
    let workers = runner.home.workers();
    let mut taken = Vec::new();
    for run in runner.store.running()? {
        let Some(dead) = run.worker else { continue };
        let alive = if dead == runner.row.uuid { active(run.id) } else { liveness::is_alive(&workers, &dead) };
        if alive {
            continue;
        }
        let now = runner.clock.now();
        if let Some(claim) = runner.store.take_over(run.id, dead, run.attempt, &runner.row, now)? {
            log::warn!("run @{} of {}: its process ended; taking over", run.id, run.schedule_name);
            taken.push(OrphanedRun { claim, run });
        }
    }
    Ok(taken)
}

/// Finishes the deletions that dead processes began, and takes the rows of dead workers away.
pub fn remove_dead_workers(runner: &Runner) -> Result<()> {
    // Trouble with the archive folder, as while its disk is not mounted, must not keep the rest from going on.
    let deleted = archive_folder::finish_deletions(&runner.home, &runner.store).unwrap_or_else(|error| {
        log::error!("deleted archives stay until later: {error}");
        0
    });
    let workers = runner.home.workers();
    let mut dead = Vec::new();
    for row in runner.store.workers()? {
        if row.uuid != runner.row.uuid && !liveness::is_alive(&workers, &row.uuid) {
            dead.push(row.uuid);
        }
    }
    // A dead worker may have fallen between a run's end and its stable name, and left nothing else to put right.
    if deleted > 0 || !dead.is_empty() {
        let rows = runner.store.schedules()?;
        match archive_folder::renew_stable_links(&runner.home, &runner.store, &rows) {
            Ok(notes) => notes.iter().for_each(|note| log::info!("{note}")),
            Err(error) => log::warn!("the stable names were not renewed: {error}"),
        }
    }
    for uuid in dead {
        runner.store.remove_worker(uuid)?;
    }
    Ok(())
}

/// Brings a run that was taken over to its end, or back into the queue, by what its row says is on disk.
pub fn recover_run(runner: &Runner, taken: OrphanedRun, context: &RunContext<'_>) -> Result<RunState> {
    let OrphanedRun { claim, run } = taken;
    const REASON: &str = "its process ended";
    let Some(archive) = runner.store.pending_archive(run.id)? else { return queue_again(runner, claim, REASON) };
    // On a disk that is not mounted there is nothing to see, and nothing may be concluded from it.
    archive_folder::check(&runner.home, &runner.store)?;
    match archive.state {
        ArchiveState::Sealed => finish(runner, claim, &archive, context),
        _ => {
            remove_temporary(runner, &archive)?;
            queue_again(runner, claim, REASON)
        }
    }
}

/// A sealed file may stand under either name, or under both where the rename was a link and an unlink.
fn finish(runner: &Runner, claim: Claim, archive: &PendingArchive, context: &RunContext<'_>) -> Result<RunState> {
    let last = runner.home.backups().join(&archive.file_name);
    let temporary = archive.temporary_name.as_ref().map(|name| runner.home.backups().join(name));
    let temporary_left = temporary.as_deref().map(stands).transpose()?.unwrap_or(false);
    match (stands(&last)?, temporary) {
        (true, Some(temporary)) if temporary_left => durable::remove(&temporary)?,
        (true, _) => durable::sync_folder(last.parent().unwrap_or(&last))?,
        (false, Some(temporary)) if temporary_left => durable::rename_new(&temporary, &last)?,
        (false, _) => return queue_again(runner, claim, "its archive file was lost before it was in place"),
    }
    let row = runner.store.schedule(claim.schedule())?;
    let digest = archive.digest.as_deref().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let (Some(digest), Some(size)) = (digest, archive.size) else {
        return Err(Error::failed(format!("the sealed archive of run @{} has no digest", archive.run)));
    };
    let archive = SealedArchive { file_name: &archive.file_name, size, digest, incomplete: archive.incomplete };
    runner.finish_sealed(claim, &archive, &row, context).map(|ended| ended.state)
}

/// Says whether a name stands there. Where that cannot be told, nothing may be concluded.
fn stands(path: &Path) -> Result<bool> {
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

fn queue_again(runner: &Runner, claim: Claim, reason: &str) -> Result<RunState> {
    let run = claim.run();
    runner.store.discard_chunks(&claim)?;
    match runner.store.requeue(claim, Requeue::Retry, reason, runner.clock.now()) {
        Ok(_) => runner.store.run(run).map(|run| run.state),
        // Somebody else put it right meanwhile.
        Err(unended) if unended.error.kind() == ErrorKind::Fenced => runner.store.run(run).map(|run| run.state),
        Err(unended) => Err(unended.error),
    }
}

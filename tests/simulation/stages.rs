//! Crashes: the engine's own parts carry a run to a stage and stop there, as if the process had been killed.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backup_manager::archive::padding::Padding;
use backup_manager::archive_folder;
use backup_manager::backup::{Runner, pipeline};
use backup_manager::cancel::CancelToken;
use backup_manager::clock::Clock;
use backup_manager::durable::{self, PendingFile, SealedFile};
use backup_manager::error::Result;
use backup_manager::member::MemberPath;
use backup_manager::progress::{Observer, Problem, Progress};
use backup_manager::store::{Claim, Completed, Intent, ScheduleRow, Sealed};

use crate::world::World;

/// How far a run came before its process crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Claimed,
    HalfWritten,
    Catalogued,
    Synced,
    Sealed,
    Linked,
    InPlace,
    Complete,
    /// Sealed, and the file was deleted by somebody else.
    Lost,
}

pub const STAGES: [Stage; 9] = [
    Stage::Claimed,
    Stage::HalfWritten,
    Stage::Catalogued,
    Stage::Synced,
    Stage::Sealed,
    Stage::Linked,
    Stage::InPlace,
    Stage::Complete,
    Stage::Lost,
];

pub struct Silent;

impl Observer for Silent {
    fn progress(&self, _: &Progress) {}
    fn problem(&self, _: &Problem) {}
    fn note(&self, _: &str) {}
}

/// Cancels a run as soon as it reports that its end cannot be written, which it would retry for ever.
pub struct CancelOnRetry<'a>(pub &'a CancelToken);

impl Observer for CancelOnRetry<'_> {
    fn progress(&self, _: &Progress) {}
    fn problem(&self, _: &Problem) {}

    fn note(&self, text: &str) {
        if text.contains("cannot be written") {
            self.0.cancel();
        }
    }
}

/// Carries a run to `stage` and returns the claim, unless the stage consumes it; the files stay as they are. `Err` is
/// the error at which the engine itself would have stopped on the way.
pub fn carry_to(
    world: &World,
    runner: &Runner,
    claim: Claim,
    intent: &Intent,
    stage: Stage,
) -> (Option<Claim>, Result<()>) {
    if stage == Stage::Claimed {
        return (Some(claim), Ok(()));
    }
    let file = match write(world, runner, &claim, intent, stage) {
        Ok(Some(file)) => file,
        Ok(None) => return (Some(claim), Ok(())),
        Err(error) => return (Some(claim), Err(error)),
    };
    let temporary = file.keep();
    let last = world.home.backups().join(&intent.file_name);
    match stage {
        Stage::Linked => fs::hard_link(&temporary, &last).unwrap(),
        Stage::InPlace | Stage::Complete => durable::rename_no_replace(&temporary, &last).unwrap(),
        Stage::Lost => fs::remove_file(&temporary).unwrap(),
        _ => {}
    }
    if stage != Stage::Complete {
        return (Some(claim), Ok(()));
    }
    let now = world.clock.now();
    let completed = Completed { verified_at: Some(now), ..Completed::default() };
    match world.store.complete(claim, &completed, now) {
        Ok(_) => (None, Ok(())),
        Err(unended) => (Some(unended.claim), Err(unended.error)),
    }
}

fn write(world: &World, runner: &Runner, claim: &Claim, intent: &Intent, stage: Stage) -> Result<Option<SealedFile>> {
    let row = world.store.schedule(claim.schedule())?;
    archive_folder::ensure_ours(&world.home, &world.store)?;
    let source = world.home.source_path(&row.schedule.source);
    fs::read_dir(&source).map_err(backup_manager::error::Error::io("list", &source))?;
    durable::make_folder(&world.home.backups().join(row.schedule.name.as_str()), 0o700)?;
    let temporary = world.home.backups().join(&intent.temporary_name);
    if stage == Stage::HalfWritten {
        fs::write(&temporary, "half an arch").map_err(backup_manager::error::Error::io("write", &temporary))?;
        return Ok(None);
    }
    let mut pending = PendingFile::create_named(&temporary, 0o400)?;
    let written = archive(world, runner, (claim, intent), &row, &source, &mut pending)?;
    if stage == Stage::Catalogued {
        // As a killed process does: without removing the temporary file.
        std::mem::forget(pending);
        return Ok(None);
    }
    let file = pending.seal()?;
    if stage == Stage::Synced {
        let _: PathBuf = file.keep();
        return Ok(None);
    }
    let sealed = Sealed {
        size: written.size,
        digest: written.digest,
        file: backup_manager::store::StoredBytes {
            size: written.size,
            device: file.device(),
            inode: file.inode(),
            modified_ns: Some(0),
        },
        in_segments: None,
        source_root: source.as_os_str().as_bytes().to_owned(),
        scan_started: world.clock.now(),
        extent: written.extent,
        incomplete: false,
        boot_id: None,
        origin: None,
    };
    world.store.seal(claim, &sealed)?;
    Ok(Some(file))
}

fn archive(
    world: &World,
    runner: &Runner,
    (claim, intent): (&Claim, &Intent),
    row: &ScheduleRow,
    source: &Path,
    pending: &mut PendingFile,
) -> Result<pipeline::WrittenArchive> {
    let (own_paths, running) = (world.home.own_paths(), CancelToken::new());
    let job = pipeline::PipelineOptions {
        source,
        root_name: &MemberPath::parse(row.schedule.name.as_str().as_bytes())?,
        excludes: &row.schedule.excludes,
        patterns: &[],
        own_paths: &own_paths,
        compression: intent.compression,
        padding: Padding::None,
        layout: backup_manager::schedule::Layout::Whole,
        threads: 1,
        comment: "{}",
        base: None,
        run: claim.run(),
        clock: &*runner.clock,
        observer: &Silent,
        cancel: &running,
    };
    pipeline::write(&job, pending, &mut |chunks| world.store.add_chunks(claim, chunks))
}

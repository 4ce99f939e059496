//! Restore tests (verb `drill`): the newest good archive of a schedule is restored into a scratch folder, compared with
//! the catalog, and removed. Only an archive that was restored once is known to be restorable.

mod compare;
mod part;
mod sample;
mod scratch;

use std::path::Path;

use self::part::FilePart;
use self::sample::Sample;
use self::scratch::Scratch;
use crate::archive_folder;
use crate::browse::{OpenArchive, Selection};
use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::liveness::SegmentLock;
use crate::maintenance::verify;
use crate::member::Extent;
use crate::progress::Observer;
use crate::store::{Archive, Drill, ScheduleRow, Store};
use crate::words::{bytes, count, shell_word};

/// Bytes of content that one drill restores at most by default.
pub const SAMPLE_BYTES: u64 = 1 << 30;

/// What drills need besides the home and the database.
pub struct DrillContext<'a> {
    /// The time.
    pub clock: &'a dyn Clock,
    /// Receives progress and notes.
    pub observer: &'a dyn Observer,
    /// Ends the work early.
    pub cancel: &'a CancelToken,
    /// Number of threads that decode.
    pub threads: usize,
    /// Bytes of content restored at most, but at least one chunk; of a larger archive a sample is restored.
    pub sample_bytes: u64,
    /// Folder to restore into; `None` for one in the archive folder.
    pub scratch: Option<&'a Path>,
}

/// The result of a drill.
#[derive(Clone, Debug)]
pub struct DrillOutcome {
    /// The archive that was restored.
    pub archive: Archive,
    /// How much was restored and compared.
    pub extent: Extent,
    /// Path of a file of which only a part was restored, since it is too large, and the bytes of that part.
    pub part: Option<(String, u64)>,
    /// Differences between the restored files and the catalog, in words; empty if the drill passed.
    pub differences: Vec<String>,
}

impl DrillOutcome {
    /// Returns how much was restored and compared, in words.
    pub fn describe(&self) -> String {
        let text = format!("{} in {}", bytes(self.extent.content_bytes), count(self.extent.files, "file"));
        match &self.part {
            Some((path, part_bytes)) => format!("{text}, of {path} a part of {}", bytes(*part_bytes)),
            None => text,
        }
    }
}

/// Restores the newest good archive of a schedule, or a sample of it, compares the restored files with the catalog,
/// removes them, and records the result. An archive with differences is also verified, which marks it if it is damaged.
///
/// Errors: `NotFound` if there is no good archive; `Busy` while another drill is running; `DiskFull` if the scratch
/// folder has too little space; `Interrupted` after `cancel`. In these cases nothing is recorded.
pub fn drill(home: &Home, store: &Store, row: &ScheduleRow, context: &DrillContext<'_>) -> Result<DrillOutcome> {
    archive_folder::ensure_ours(home, store)?;
    let archive = store.newest_good(row.id)?.ok_or_else(|| {
        Error::not_found(format!("{} has no good archive", row.schedule.name))
            .hint(format!("make one with `backup-manager run {}`", shell_word(row.schedule.name.as_str())))
    })?;
    let scratch = Scratch::open(home, context.scratch)?;
    let sample = Sample::choose(store, &archive, context)?;
    scratch.check_free_space(sample.extent.content_bytes)?;
    let started = context.clock.now();
    let found = test(home, store, &archive, &sample, &scratch, context);
    // Also when it was interrupted.
    scratch.clear()?;
    let (extent, differences) = match found {
        Ok(differences) => (sample.extent, differences),
        // These errors are not of the archive.
        Err(error)
            if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::DiskFull | ErrorKind::DatabaseDamage) =>
        {
            return Err(error);
        }
        Err(error) => (Extent::default(), vec![error.to_string()]),
    };
    let part = sample.part.as_ref().map(|part| (part.path().to_string(), part.content_bytes()));
    let error = (!differences.is_empty()).then(|| differences.join("; "));
    let drill = Drill {
        run: archive.run,
        started_at: started,
        finished_at: Some(context.clock.now()),
        passed: error.is_none(),
        files: extent.files,
        content_bytes: extent.content_bytes,
        error: error.clone(),
    };
    store.record_drill(row.id, &drill)?;
    if error.is_some() {
        let now = context.clock.now();
        verify::verify_archive(home, store, &archive, context.threads, context.cancel, now)?;
        archive_folder::refresh_stable_links(home, store, std::slice::from_ref(row), now)?;
    }
    Ok(DrillOutcome { archive, extent, part, differences })
}

/// Restores a sample to the scratch folder and returns how it differs from the catalog, in words.
fn test(
    home: &Home,
    store: &Store,
    archive: &Archive,
    sample: &Sample,
    scratch: &Scratch,
    context: &DrillContext<'_>,
) -> Result<Vec<String>> {
    let _lock = SegmentLock::to_read(home, archive.layout, &archive.file_name);
    let target = scratch.create_target()?;
    let mut differences = Vec::new();
    if sample.is_everything() || !sample.paths.is_empty() {
        let opened = OpenArchive::from_catalog(home, store, archive.clone())?;
        let selection = match sample.is_everything() {
            true => Selection::everything()?,
            false => Selection::exactly(sample.paths.clone())?,
        };
        differences = compare::restore_and_compare(&opened, &selection, &target, context)?;
    }
    if let Some(part) = &sample.part {
        let file = home.backups().join(&archive.file_name);
        differences.extend(part.restore_and_compare(&file, &target, context.cancel)?);
        differences.truncate(compare::MAX_DIFFERENCES);
    }
    Ok(differences)
}

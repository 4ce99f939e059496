//! Before a run writes: the schedule, the source and the folder of the archive.

use super::{Failure, Runner};
use crate::archive::padding::Padding;
use crate::archive::writer::writer_version;
use crate::archive_folder;
use crate::clock::Timestamp;
use crate::durable;
use crate::error::{Error, Result};
use crate::schedule::Layout;
use crate::source::{self, SourceRoot};
use crate::store::{Claim, Intent, Origin, ScheduleRow};

/// The schedule and the source of a run, resolved, and the comment of its archive.
pub(super) struct PreparedRun {
    /// The schedule, with the compression of the run.
    pub(super) schedule: ScheduleRow,
    pub(super) source: SourceRoot,
    pub(super) scan_started: Timestamp,
    /// The boot of the machine.
    pub(super) boot_id: Option<String>,
    /// Whether the chunks of the archive are padded: where files share blocks.
    pub(super) padding: Padding,
    /// How the archive is made; `None` if that cannot be found out.
    pub(super) origin: Option<Origin>,
    /// JSON for the pax global header.
    pub(super) comment: String,
}

impl Runner {
    /// Checks the archive folder. Returns the schedule, with the compression and the layout of the run.
    pub(super) fn prepare_folder(&self, claim: &Claim, intent: &Intent) -> std::result::Result<ScheduleRow, Failure> {
        let mut row = self.store.schedule(claim.schedule()).map_err(Failure::permanent)?;
        row.schedule.compression = intent.compression;
        row.schedule.layout = intent.layout;
        archive_folder::ensure_ours(&self.home, &self.store).map_err(Failure::permanent)?;
        // A worker that slept until its run was taken over touches nothing in the archive folder (I4).
        self.store.check_claim(claim).map_err(Failure::retryable)?;
        archive_folder::record_use(&self.home, &self.store, self.clock.now());
        match archive_folder::reserve_run_numbers(&self.home, &self.store) {
            Ok(unknown) => unknown.error(&self.home).iter().for_each(|error| log::warn!("{error}")),
            Err(error) => log::warn!("the archive folder was not compared with the database: {error}"),
        }
        Ok(row)
    }

    /// Resolves the source, creates the folder of the schedule and removes the temporary files of earlier attempts.
    pub(super) fn prepare(
        &self,
        claim: &Claim,
        intent: &Intent,
        row: ScheduleRow,
    ) -> std::result::Result<PreparedRun, Failure> {
        let source = SourceRoot::find(&self.home, &row.schedule).map_err(Failure::permanent)?;
        let scan_started = self.clock.now();
        let comment = self.header_comment(claim, &row, scan_started).map_err(Failure::permanent)?;
        let name = row.schedule.name.as_str();
        let folder = self.home.backups().join(name);
        durable::make_folder(&folder, self.home.folder_mode()).map_err(Failure::retryable)?;
        if let Err(error) = archive_folder::remove_orphaned_files(&self.home, &self.store, name) {
            log::warn!("{name}: temporary files of earlier attempts were not removed: {error}");
        }
        // Segments are shared as they are.
        let shares_blocks =
            intent.layout == Layout::Whole && durable::shares_blocks(&folder).map_err(Failure::retryable)?;
        let padding = if shares_blocks { Padding::Blocks } else { Padding::None };
        let (boot_id, origin) = (source::boot_id(), self.origin(&source, padding));
        Ok(PreparedRun { schedule: row, source, scan_started, boot_id, padding, origin, comment })
    }

    /// Returns how an archive of this source is made by this process.
    fn origin(&self, source: &SourceRoot, padding: Padding) -> Option<Origin> {
        let rights = source::reader_rights().inspect_err(|error| log::warn!("cannot read the capabilities: {error}"));
        let (effective_uid, capabilities) = rights.ok()?;
        Some(Origin {
            root_name: source.name.clone(),
            writer_version: writer_version(padding),
            archive_mode: self.home.archive_mode(),
            effective_uid,
            capabilities,
        })
    }

    /// Returns the comment of the pax global header: all that is needed to create the schedule again from an archive.
    fn header_comment(&self, claim: &Claim, row: &ScheduleRow, started: Timestamp) -> Result<String> {
        let comment = serde_json::json!({
            "backup_manager": env!("CARGO_PKG_VERSION"),
            "database": self.store.identity(),
            "schedule": row.schedule,
            "run": claim.run(),
            "scheduled_for": claim.scheduled_for().map(|at| at.rfc3339(&chrono::Utc)),
            "started": started.rfc3339(&chrono::Utc),
            "source": self.home.source_path(&row.schedule.source).to_string_lossy(),
        });
        serde_json::to_string(&comment).map_err(|e| Error::failed("cannot describe the schedule").because(e))
    }
}

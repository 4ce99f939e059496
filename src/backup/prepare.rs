//! Before a run writes: the schedule, the source and the folder of the archive.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::spool::Spool;
use super::surrounded::Surrounded;
use super::{Failure, Runner};
use crate::archive::padding::Padding;
use crate::archive::writer::writer_version;
use crate::archive_folder;
use crate::clock::Timestamp;
use crate::durable;
use crate::error::{Error, Result};
use crate::schedule::{Hooks, Layout};
use crate::source::{self, SourceRoot};
use crate::store::{Claim, Intent, Origin, ScheduleRow};

/// The schedule and the source of a run, resolved, and the comment of its archive.
pub(super) struct PreparedRun {
    /// The schedule, with the compression of the run.
    pub(super) schedule: ScheduleRow,
    pub(super) source: SourceRoot,
    /// What is recorded as the source, by which a base is found: its path, or the name of what a command prints.
    pub(super) source_root: Vec<u8>,
    /// What the command of the source has printed, if the source is one.
    pub(super) spool: Option<Spool>,
    /// The files of this program, which no archive contains.
    pub(super) own_paths: Vec<PathBuf>,
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

    /// Resolves the source, or writes what its command prints; creates the folder of the schedule and removes the
    /// temporary files of earlier attempts.
    pub(super) fn prepare(
        &self,
        surrounded: &Surrounded<'_>,
        intent: &Intent,
        hooks: &Hooks,
    ) -> std::result::Result<PreparedRun, Failure> {
        let row = surrounded.row.clone();
        let found = match hooks.source_command() {
            Some(_) => None,
            None => Some(SourceRoot::find(&self.home, &row.schedule).map_err(Failure::permanent)?),
        };
        let folder = self.prepare_schedule_folder(row.schedule.name.as_str()).map_err(Failure::retryable)?;
        let (source, spool) = match found {
            Some(source) => (source, None),
            None => {
                let spool = self.spool_source(surrounded, intent, hooks)?;
                (spool.as_source(&row.schedule.source).map_err(Failure::permanent)?, Some(spool))
            }
        };
        let named_source = spool.as_ref().map(|_| row.schedule.source.clone());
        let source_root = named_source.unwrap_or_else(|| source.path.as_os_str().as_bytes().to_vec());
        // What a command printed lies in the folder of the archives.
        let own_paths = if spool.is_some() { Vec::new() } else { self.home.own_paths() };
        let scan_started = self.clock.now();
        let comment = self.header_comment(surrounded.claim, &row, scan_started).map_err(Failure::permanent)?;
        // Segments are shared as they are.
        let shares_blocks =
            intent.layout == Layout::Whole && durable::shares_blocks(&folder).map_err(Failure::retryable)?;
        let padding = if shares_blocks { Padding::Blocks } else { Padding::None };
        let (boot_id, origin) = (source::boot_id(), self.origin(&source, padding));
        Ok(PreparedRun {
            schedule: row,
            source,
            source_root,
            spool,
            own_paths,
            scan_started,
            boot_id,
            padding,
            origin,
            comment,
        })
    }

    /// Creates the folder of a schedule, and removes the temporary files of earlier attempts in it.
    fn prepare_schedule_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.home.backups().join(name);
        durable::make_folder(&folder, self.home.folder_mode())?;
        if let Err(error) = archive_folder::remove_orphaned_files(&self.home, &self.store, name) {
            log::warn!("{name}: temporary files of earlier attempts were not removed: {error}");
        }
        Ok(folder)
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

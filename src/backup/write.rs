//! Writing the archive under its temporary name, and sealing it: synced, then recorded as `sealed` (I1).

use std::os::unix::ffi::OsStrExt;

use super::monitor::{Monitor, RunContext};
use super::pipeline::{self, PipelineOptions, WrittenArchive};
use super::prepare::PreparedRun;
use super::{Failure, Runner};
use crate::durable::{PendingFile, SealedFile};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Claim, Intent, RunCounts, Sealed};
use crate::words::count;

impl Runner {
    /// Writes the archive into a temporary file, which is removed if the returned handle is dropped, and its chunks
    /// into the catalog.
    pub(super) fn write_archive(
        &self,
        claim: &Claim,
        intent: &Intent,
        prepared: &PreparedRun,
        context: &RunContext<'_>,
        monitor: &Monitor<'_>,
    ) -> std::result::Result<(PendingFile, WrittenArchive), Failure> {
        let PreparedRun { schedule: row, source, comment, .. } = prepared;
        let temporary = self.home.backups().join(&intent.temporary_name);
        let mut pending = PendingFile::create_own(&temporary, self.home.archive_mode()).map_err(Failure::retryable)?;
        let own_paths = self.home.own_paths();
        let options = PipelineOptions {
            source: &source.path,
            root_name: &source.name,
            excludes: &row.schedule.excludes,
            patterns: &source.patterns,
            own_paths: &own_paths,
            compression: row.schedule.compression,
            threads: self.threads,
            comment,
            base: None,
            run: claim.run(),
            clock: &*self.clock,
            observer: monitor,
            cancel: context.cancel,
        };
        let written = pipeline::write(&options, &mut pending, &mut |chunks| self.store.add_chunks(claim, chunks))
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound | ErrorKind::Usage => Failure::permanent(error),
                _ => Failure::retryable(error),
            })?;
        Ok((pending, written))
    }

    pub(super) fn record_counts(&self, claim: &Claim, written: &WrittenArchive) -> Result<()> {
        let counts = RunCounts {
            extent: written.extent,
            archive_bytes: written.size,
            problems: written.problems_total,
            losses: written.losses,
            notes: written.notes.clone(),
            ..RunCounts::default()
        };
        self.store.record_counts(claim, &counts, &written.problems)
    }

    /// Fails if the source is empty and the last archive was not: most likely its disk is not mounted. `accept` allows
    /// it (I9).
    pub(super) fn check_not_emptied(&self, prepared: &PreparedRun, written: &WrittenArchive) -> Result<()> {
        let row = &prepared.schedule;
        if written.extent.members > 1 || written.extent.files > 0 || row.accepted {
            return Ok(());
        }
        match self.store.newest_good(row.id)? {
            Some(last) if last.extent.members > 1 => Err(Error::failed(format!(
                "the source {} is empty, and its last archive held {}",
                prepared.source.path.display(),
                count(last.extent.members, "member")
            ))
            .hint(format!("mount it; if it is meant to be empty, run `backup-manager accept {}`", row.schedule.name))),
            _ => Ok(()),
        }
    }

    /// Syncs the file, then records the archive as `sealed`.
    pub(super) fn seal(
        &self,
        claim: &Claim,
        pending: PendingFile,
        prepared: &PreparedRun,
        written: &WrittenArchive,
    ) -> Result<SealedFile> {
        let file = pending.seal()?;
        let sealed = Sealed {
            size: written.size,
            digest: written.digest,
            device: file.device(),
            inode: file.inode(),
            source_root: prepared.source.path.as_os_str().as_bytes().to_owned(),
            scan_started: prepared.scan_started,
            extent: written.extent,
            incomplete: written.losses > 0,
            modified_ns: file.modified_ns(),
            boot_id: None,
            origin: None,
        };
        self.store.seal(claim, &sealed)?;
        Ok(file)
    }
}

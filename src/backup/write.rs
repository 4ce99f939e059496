//! Writing the archive under its temporary name, and sealing it: synced, then recorded as `sealed` (I1).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::base::OpenBase;
use super::monitor::{Monitor, RunContext};
use super::pipeline::{self, PipelineOptions, WrittenArchive};
use super::prepare::PreparedRun;
use super::{Failure, Inherited, Runner};
use crate::archive_folder;
use crate::chunk::CatalogChunk;
use crate::clock::Timestamp;
use crate::durable::{PendingFile, SealedFile};
use crate::error::{Error, ErrorKind, Result};
use crate::member::Extent;
use crate::schedule::Layout;
use crate::store::{Claim, Intent, RunCounts, Sealed, SealedSegments};
use crate::words::{count, shell_word};

/// An archive under its temporary name.
pub(super) struct WrittenRun {
    pub(super) pending: PendingFile,
    pub(super) written: WrittenArchive,
    pub(super) inherited: Inherited,
}

/// Returns why members were read although there was a base.
fn read_reasons(written: &WrittenArchive) -> BTreeMap<String, u64> {
    let read = written.reuse.iter().flat_map(|counts| &counts.read);
    read.map(|(reason, count)| (reason.as_str().to_owned(), *count)).collect()
}

/// Returns what of an archive was verified with its base a short time ago. Takes the ranges that it shares.
fn inherit(base: &OpenBase, written: &mut WrittenArchive, now: Timestamp) -> Inherited {
    match base.recently_verified_at(now) {
        Some(_) if written.is_link => Inherited::File,
        // Nobody looked at the bytes that were written to it meanwhile.
        Some(verified_at) if !written.shared.is_empty() && base.is_as_opened() => {
            let ranges = std::mem::take(&mut written.shared);
            Inherited::Ranges { base_file: base.row.archive_file, verified_at, ranges }
        }
        _ => Inherited::Nothing,
    }
}

impl Runner {
    /// Writes the archive into a temporary file, which is removed if the returned handle is dropped, and its chunks
    /// into the catalog. Takes what did not change from a base; if the base turns out to be damaged, begins again with
    /// another one, or none.
    pub(super) fn write_archive(
        &self,
        claim: &Claim,
        intent: &Intent,
        prepared: &PreparedRun,
        context: &RunContext<'_>,
        monitor: &Monitor<'_>,
    ) -> std::result::Result<WrittenRun, Failure> {
        loop {
            monitor.phase("scanning");
            let base = self.open_base(claim, prepared, context)?;
            let expected = match (&base, &prepared.spool) {
                (_, Some(spool)) => Ok(Some(Extent { members: 1, files: 1, content_bytes: spool.size() })),
                // It would fit once more; and if not, a full disk ends the run cleanly. Nothing is walked before.
                (Some(base), None) => Ok(Some(base.row.extent)),
                (None, None) => self.expected_extent(&prepared.schedule, &prepared.source, monitor),
            };
            let expected = expected.map_err(Failure::retryable)?;
            monitor.phase("writing");
            let write = || self.write_with_base(claim, intent, prepared, &base, context, monitor);
            let written = match expected {
                Some(extent) => {
                    monitor.expect(extent);
                    write()
                }
                None => self.estimate_during(&prepared.schedule, &prepared.source, monitor, write),
            };
            let (error, damaged) = match (written, base) {
                (Ok(written), _) => return Ok(written),
                (Err(error), Some(base)) if base.is_damaged.load(Ordering::Relaxed) => (error, base),
                (Err(error), _) => {
                    return Err(match error.kind() {
                        ErrorKind::NotFound | ErrorKind::Usage => Failure::permanent(error),
                        _ => Failure::retryable(error),
                    });
                }
            };
            log::error!("run @{}: beginning again without archive @{}: {error}", claim.run(), damaged.row.run);
            self.drop_damaged_base(claim, &damaged).map_err(Failure::retryable)?;
            // The room that they take may be needed now.
            self.remove_discarded_segments(claim.run(), intent.schedule_name());
        }
    }

    fn write_with_base(
        &self,
        claim: &Claim,
        intent: &Intent,
        prepared: &PreparedRun,
        base: &Option<OpenBase>,
        context: &RunContext<'_>,
        monitor: &Monitor<'_>,
    ) -> Result<WrittenRun> {
        let PreparedRun { schedule: row, source, comment, .. } = prepared;
        let temporary = self.home.backups().join(&intent.temporary_name);
        let mut pending = PendingFile::create_own(&temporary, self.home.archive_mode())?;
        let base_run = base.as_ref().map_or(0, |base| base.row.run);
        let pages = |from, limit| self.store.base_chunks(base_run, from, limit);
        let mark_reread = |ids: &[i64]| self.store.mark_reread(claim, ids, prepared.scan_started);
        let link_name = self.home.backups().join(intent.another_temporary_name());
        let from_base = base.as_ref().map(|base| base.for_pipeline(&pages, &mark_reread, &link_name));
        let options = PipelineOptions {
            source: &source.path,
            root_name: &source.name,
            excludes: &row.schedule.excludes,
            patterns: &source.patterns,
            own_paths: &prepared.own_paths,
            compression: row.schedule.compression,
            padding: prepared.padding,
            layout: intent.layout,
            threads: self.threads,
            comment,
            base: from_base.as_ref(),
            run: claim.run(),
            clock: &*self.clock,
            observer: monitor,
            cancel: context.cancel,
        };
        let mut written = self.write_layout(claim, intent, &options, &mut pending)?;
        if written.silent_changes > 0 {
            self.store.set_reuse_off(claim.schedule(), self.clock.now())?;
        }
        let inherited = base.as_ref().map_or(Inherited::Nothing, |base| inherit(base, &mut written, self.clock.now()));
        Ok(WrittenRun { pending, written, inherited })
    }

    fn write_layout(
        &self,
        claim: &Claim,
        intent: &Intent,
        options: &PipelineOptions<'_>,
        pending: &mut PendingFile,
    ) -> Result<WrittenArchive> {
        let catalog = &mut |chunks: &[CatalogChunk]| self.store.add_chunks(claim, chunks);
        match intent.layout {
            Layout::Whole => pipeline::write(options, pending, catalog),
            Layout::Segmented => self.write_segmented(claim, intent, options, catalog, pending),
        }
    }

    pub(super) fn record_counts(&self, claim: &Claim, prepared: &PreparedRun, written: &WrittenArchive) -> Result<()> {
        let mut notes = written.notes.clone();
        if prepared.schedule.reuse_off {
            notes.push(format!(
                "everything was read, because a file changed without its times; `backup-manager accept {}` ends that",
                shell_word(prepared.schedule.schedule.name.as_str())
            ));
        }
        let counts = RunCounts {
            extent: written.extent,
            archive_bytes: written.size,
            problems: written.problems_total,
            losses: written.losses,
            notes,
            read_reasons: read_reasons(written),
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
            .hint(format!(
                "mount it; if it is meant to be empty, run `backup-manager accept {}`",
                shell_word(row.schedule.name.as_str())
            ))),
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
            file: archive_folder::stored_bytes(&file),
            in_segments: written.in_segments.map(|in_segments| SealedSegments {
                crc: in_segments.crc.value(),
                trailer_segment: in_segments.trailer_segment,
                trailer_offset: in_segments.trailer_offset,
            }),
            source_root: prepared.source_root.clone(),
            scan_started: prepared.scan_started,
            extent: written.extent,
            incomplete: written.losses > 0,
            boot_id: prepared.boot_id.clone(),
            origin: prepared.origin.clone(),
        };
        if written.is_link {
            self.store.seal_as_link(claim, &sealed)?;
        } else {
            self.store.seal(claim, &sealed)?;
        }
        Ok(file)
    }
}

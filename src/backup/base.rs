//! The base of a run: finding it, holding it, and checking its file before anything is taken from it.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::monitor::RunContext;
use super::pipeline::{self, Rules};
use super::prepare::PreparedRun;
use super::{Failure, Runner};
use crate::archive::padding::Padding;
use crate::archive::reader::ArchiveReader;
use crate::archive::rebuild;
use crate::archive::trailer::Facts;
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::chunk::BaseChunk;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::liveness::SegmentLock;
use crate::maintenance::shared_files::separate_files;
use crate::maintenance::verify;
use crate::schedule::Layout;
use crate::store::{Base, BaseQuery, Claim, Health};

/// The base of a run, held by it and open.
pub(super) struct OpenBase {
    pub(super) row: Base,
    pub(super) reader: ArchiveReader,
    /// Keeps the segments that its index lists.
    _lock: Option<SegmentLock>,
    /// What its trailer says, if its file may become that of an archive that holds the same.
    pub(super) facts: Option<Facts>,
    pub(super) rules: Rules,
    /// Set when its bytes turn out not to be those that were written.
    pub(super) is_damaged: AtomicBool,
}

/// What was verified this short a time ago is not verified again when it becomes part of another archive.
const VERIFIED_RECENTLY: Duration = Duration::from_secs(14 * 86_400);

fn recently_verified_at(base: &Base, now: Timestamp) -> Option<Timestamp> {
    // A time in the future was recorded under a wrong clock.
    base.verified_at.filter(|at| *at <= now && now.since(*at) <= VERIFIED_RECENTLY)
}

impl OpenBase {
    /// Returns what the pipeline needs of it.
    pub(super) fn for_pipeline<'a>(
        &'a self,
        pages: &'a (dyn Fn(u64, u32) -> Result<Vec<BaseChunk>> + Sync),
        mark_reread: &'a (dyn Fn(&[i64]) -> Result<()> + Sync),
        link_name: &'a Path,
    ) -> pipeline::Base<'a> {
        pipeline::Base {
            run: self.row.run,
            reader: &self.reader,
            chunks: self.row.chunks,
            size: self.row.size,
            digest: self.row.digest,
            rules: self.rules,
            pages,
            mark_reread,
            facts: self.facts.clone(),
            link_name,
            is_damaged: &self.is_damaged,
        }
    }

    /// Returns whether its file, one of a whole archive, was not written to since it was opened.
    pub(super) fn is_as_opened(&self) -> bool {
        let facts =
            |stat: &std::fs::Metadata| (stat.len(), stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec());
        let now = self.reader.whole_file().map(std::fs::File::metadata);
        now.is_some_and(|now| now.is_ok_and(|now| facts(&now) == facts(self.reader.metadata())))
    }

    /// Returns when its file was verified, if that is a short time ago.
    pub(super) fn recently_verified_at(&self, now: Timestamp) -> Option<Timestamp> {
        recently_verified_at(&self.row, now)
    }
}

impl Runner {
    /// Returns the base of a run, held and open; `None` if there is none, so that everything is read.
    ///
    /// The newest archive that was made in the same way is taken. One whose file was touched since it was sealed is
    /// verified first. One that is damaged or missing is marked, and the next older one is taken.
    pub(super) fn open_base(
        &self,
        claim: &Claim,
        prepared: &PreparedRun,
        context: &RunContext<'_>,
    ) -> std::result::Result<Option<OpenBase>, Failure> {
        self.find_and_open_base(claim, prepared, context).map_err(Failure::retryable)
    }

    fn find_and_open_base(
        &self,
        claim: &Claim,
        prepared: &PreparedRun,
        context: &RunContext<'_>,
    ) -> Result<Option<OpenBase>> {
        let Some(origin) = prepared.origin.clone() else { return Ok(None) };
        let query = BaseQuery {
            schedule: claim.schedule(),
            compression: prepared.schedule.schedule.compression,
            layout: prepared.schedule.schedule.layout,
            source_root: prepared.source_root.clone(),
            origin,
        };
        // What is known of one file says nothing about a copy of it under another name.
        if let Err(error) = separate_files(&self.home, &self.store, Some(claim.schedule())) {
            log::warn!("no archive is used, and everything is read: {error}");
            return Ok(None);
        }
        while let Some(row) = self.store.find_base(&query)? {
            // One that was deleted since is not found again.
            if !self.store.hold_base(claim, row.run)? {
                continue;
            }
            match self.open_held_base(claim, prepared, &row, context) {
                Ok(opened) => return Ok(Some(opened)),
                Err(error) if matches!(error.kind(), ErrorKind::Damage | ErrorKind::NotFound) => {
                    log::error!("{error}");
                    // Once its row shows that, another one is found.
                    if !self.record_bad_base(&row, error.kind(), context.cancel)? {
                        self.store.release_base(claim)?;
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    log::warn!("archive @{} is not used, and everything is read: {error}", row.run);
                    self.store.release_base(claim)?;
                    return Ok(None);
                }
            }
        }
        self.store.release_base(claim)?;
        Ok(None)
    }

    /// Records that the file of a base is missing, if it was not found, or damaged; of a base in segments, which of its
    /// files are. Returns whether it is a base no longer.
    fn record_bad_base(&self, row: &Base, found: ErrorKind, cancel: &CancelToken) -> Result<bool> {
        // If the disk is not mounted, no file is found, which must not mark the archives as missing (I9).
        archive_folder::ensure_ours(&self.home, &self.store)?;
        let Some(archive) = self.store.archive(row.run)? else { return Ok(true) };
        if row.is_segmented() {
            let now = self.clock.now();
            let findings = verify::verify_archive(&self.home, &self.store, &archive, self.threads, cancel, now)?;
            return Ok(!findings.is_good());
        }
        let (health, verified_at) = match found {
            ErrorKind::NotFound => (Health::Missing, None),
            _ => (Health::Damaged, Some(self.clock.now())),
        };
        self.store.record_health(&archive, health, verified_at).map(|()| true)
    }

    fn open_held_base(
        &self,
        claim: &Claim,
        prepared: &PreparedRun,
        row: &Base,
        context: &RunContext<'_>,
    ) -> Result<OpenBase> {
        let path = self.home.backups().join(&row.file_name);
        let lock = SegmentLock::to_read(&self.home, prepared.schedule.schedule.layout, &row.file_name);
        let reader = ArchiveReader::open(&path)?;
        let mut row = row.clone();
        // Bytes that are shared are not read, so that damage in them would go on from archive to archive.
        let shares_unread =
            prepared.padding == Padding::Blocks || prepared.schedule.schedule.layout == Layout::Segmented;
        let is_due = shares_unread && recently_verified_at(&row, self.clock.now()).is_none();
        let touched = self.touched_parts(&row)?;
        if is_due || !touched.is_empty() {
            row.verified_at = Some(self.verify_base(&row, &touched, context)?);
        }
        let facts = self.facts_for_link(prepared, &reader)?;
        let schedule = &prepared.schedule.schedule;
        let rules = Rules {
            ignores_inode: schedule.reuse.ignore_inode,
            ignores_ctime: schedule.reuse.ignore_ctime,
            trusts_times: schedule.reuse.trust_times,
            is_same_boot: prepared.boot_id.is_some() && prepared.boot_id == row.boot_id,
            base_started: row.started_at,
            now: prepared.scan_started,
            rereads_all: claim.reread(),
        };
        Ok(OpenBase { row, reader, facts, rules, is_damaged: AtomicBool::new(false), _lock: lock })
    }

    /// Returns the files of a base that were touched since they were synced, with their times of change.
    ///
    /// Errors: `NotFound` if one is missing.
    fn touched_parts(&self, row: &Base) -> Result<Vec<(i64, i64)>> {
        let mut touched = Vec::new();
        for part in &row.parts {
            let path = self.home.backups().join(part.segment_name.as_ref().unwrap_or(&row.file_name));
            let stat = std::fs::symlink_metadata(&path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Error::not_found(format!("{} is gone", path.display())),
                _ => Error::io("inspect", &path)(error),
            })?;
            let modified_ns = stat.mtime().saturating_mul(1_000_000_000).saturating_add(stat.mtime_nsec());
            if (Some(stat.len()), Some(modified_ns)) != (part.size, part.modified_ns) {
                log::warn!("{}: the file was touched after it was written: verifying it", path.display());
                touched.push((part.id, modified_ns));
            }
        }
        Ok(touched)
    }

    /// Reads the whole archive of a base; returns when that began. Errors: `Damage` if it is not what was written.
    fn verify_base(&self, row: &Base, touched: &[(i64, i64)], context: &RunContext<'_>) -> Result<Timestamp> {
        let archive = self.store.archive(row.run)?;
        let archive = archive.ok_or_else(|| Error::not_found(format!("archive @{} does not exist", row.run)))?;
        let now = self.clock.now();
        let found = verify::verify_archive(&self.home, &self.store, &archive, self.threads, context.cancel, now)?;
        if !found.is_good() {
            return Err(Error::new(ErrorKind::Damage, format!("archive @{} ({}) is damaged", row.run, row.file_name)));
        }
        touched.iter().try_for_each(|(part, modified_ns)| self.store.record_touched(*part, *modified_ns))?;
        Ok(now)
    }

    /// Returns what the trailer of a base says, if a link to it may be the archive of this run: only the run and its
    /// times may differ from what the archive would say of itself, and the file must have the mode of a new one.
    fn facts_for_link(&self, prepared: &PreparedRun, reader: &ArchiveReader) -> Result<Option<Facts>> {
        let stat = reader.metadata();
        let Some(trailer) = reader.trailer()? else { return Ok(None) };
        let Some(comment) = rebuild::read_comment(reader, &trailer)? else { return Ok(None) };
        let is_same = describes_same(&comment, prepared.comment.as_bytes())
            && stat.permissions().mode() & 0o7777 == self.home.archive_mode();
        Ok(is_same.then(|| trailer.facts().clone()))
    }

    /// Records that the bytes of the base of a run are damaged, and takes the base and all that refers to it from the
    /// run.
    pub(super) fn drop_damaged_base(&self, claim: &Claim, base: &OpenBase) -> Result<()> {
        self.record_bad_base(&base.row, ErrorKind::Damage, &CancelToken::new())?;
        self.store.discard_chunks(claim)?;
        self.store.release_base(claim)
    }
}

/// Returns whether two comments of global headers differ at most in the run and its times.
fn describes_same(a: &[u8], b: &[u8]) -> bool {
    let parse = |comment: &[u8]| -> Option<serde_json::Map<String, serde_json::Value>> {
        let mut fields: serde_json::Map<_, _> = serde_json::from_slice(comment).ok()?;
        ["run", "scheduled_for", "started"].iter().for_each(|field| drop(fields.remove(*field)));
        Some(fields)
    };
    matches!((parse(a), parse(b)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_that_differs_in_more_than_the_run_and_its_times_is_another() {
        let comment = |run: i64, schedule: &str| {
            format!(r#"{{"schedule":{schedule},"run":{run},"scheduled_for":null,"started":"{run}"}}"#)
        };
        let same = |a: &str, b: &str| describes_same(a.as_bytes(), b.as_bytes());
        assert!(same(&comment(1, r#"{"name":"a"}"#), &comment(2, r#"{"name":"a"}"#)));
        assert!(!same(&comment(1, r#"{"name":"a"}"#), &comment(1, r#"{"name":"b"}"#)), "an edited schedule");
        assert!(!same(&comment(1, "{}"), r#"{"schedule":{},"more":1}"#));
        assert!(!same("no JSON", "no JSON"));
    }
}

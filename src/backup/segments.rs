//! The segmented layout of an archive that is being made: the files of its segments, its index, and their names.

use std::io::{BufWriter, Write};
use std::path::Path;

use super::Runner;
use super::pipeline::{self, PipelineOptions, WrittenArchive};
use crate::archive::cksum::Crc;
use crate::archive::index::Index;
use crate::archive::segment_writer::SegmentFiles;
use crate::archive_folder;
use crate::archive_name::{ArchiveName, SegmentName};
use crate::chunk::CatalogChunk;
use crate::durable::{self, PendingFile};
use crate::error::{Error, Result};
use crate::store::{Claim, Intent, SegmentIntent, StoredFile};

impl Runner {
    /// Writes an archive into segments, each synced when it is complete, and its index into `pending`.
    pub(super) fn write_segmented(
        &self,
        claim: &Claim,
        intent: &Intent,
        options: &PipelineOptions<'_>,
        catalog: &mut dyn FnMut(&[CatalogChunk]) -> Result<()>,
        pending: &mut PendingFile,
    ) -> Result<WrittenArchive> {
        let name = archive_name(intent)?;
        let mut create = || self.create_segment(claim, name);
        let mut seal = |row, segment: PendingFile| {
            let sealed = segment.seal()?;
            self.store.record_segment(claim, row, &archive_folder::stored_bytes(&sealed))?;
            sealed.keep();
            Ok(())
        };
        let files = SegmentFiles { create: &mut create, seal: &mut seal };
        let path = pending.temp_path().to_owned();
        let written = pipeline::write_segments(options, &path, files, catalog)?;
        let index = self.index_of(claim.run(), name, &written, options.base.map(|base| base.run))?;
        let mut out = BufWriter::with_capacity(1 << 17, pending.file());
        index.write(&mut out).and_then(|()| out.flush()).map_err(Error::io("write", &path))?;
        Ok(written)
    }

    /// Records the names of a segment and creates its file.
    ///
    /// Segments that an earlier attempt or try of the run has left may still be there, to be deleted: their numbers are
    /// not used again.
    fn create_segment(&self, claim: &Claim, archive: ArchiveName<'_>) -> Result<(i64, PendingFile)> {
        let names = self.store.segment_names(claim.run())?;
        let number = |name: &String| SegmentName::parse(file_name(name), archive.schedule).map(|name| name.number);
        let number = 1 + names.iter().filter_map(number).max().unwrap_or(0);
        let name = SegmentName { archive, number };
        let random = uuid::Uuid::new_v4().as_fields().0;
        let names = SegmentIntent {
            segment_name: format!("{}/{}", archive.schedule, name.file_name()),
            temporary_name: format!("{}/{}", archive.schedule, name.temporary_name(claim.attempt(), random)),
        };
        let row = self.store.add_segment(claim, &names)?;
        let path = self.home.backups().join(&names.temporary_name);
        Ok((row, PendingFile::create_own(&path, self.home.archive_mode())?))
    }

    /// Returns the index of an archive whose spans are in the catalog, all but its trailer.
    fn index_of(&self, run: i64, name: ArchiveName<'_>, written: &WrittenArchive, base: Option<i64>) -> Result<Index> {
        let (run, crc) = match (&written.in_segments, base) {
            (Some(in_segments), _) => (run, Some(in_segments.crc)),
            (None, Some(base)) => {
                (base, self.store.archive_crc(base)?.map(|(value, bytes)| Crc::from_parts(value, bytes)))
            }
            (None, None) => (run, None),
        };
        let crc = crc.ok_or_else(|| Error::failed(format!("the archive @{run} has no checksum")))?;
        let mut index = archive_folder::index_from_rows(&self.store, run, &name, written.extent.members, crc)?;
        if let Some(in_segments) = &written.in_segments {
            let segments = self.store.segments_of_run(run)?;
            let last = segments.iter().find(|segment| segment.id == in_segments.trailer_segment);
            let last = last.and_then(|segment| segment.segment_name.as_deref());
            let last = last.ok_or_else(|| Error::failed(format!("the archive @{run} has no segment")))?;
            let end: u64 = index.ranges().map(|range| range.length).sum();
            index.push(file_name(last), in_segments.trailer_offset, written.size - end);
        }
        Ok(index)
    }

    /// Gives the segments that a run has written their final names and syncs the folder, before its index gets its own.
    ///
    /// Errors: `Busy` if there is a file of such a name; `NotFound` if a segment has neither name.
    pub(super) fn rename_segments(&self, run: i64) -> Result<()> {
        let segments = self.store.segments_of_run(run)?;
        for segment in &segments {
            self.rename_segment(segment)?;
        }
        match segments.first().and_then(|segment| segment.segment_name.as_deref()) {
            Some(name) => durable::sync_folder(self.home.backups().join(name).parent().unwrap_or(Path::new("."))),
            None => Ok(()),
        }
    }

    fn rename_segment(&self, segment: &StoredFile) -> Result<()> {
        let path = |name: &Option<String>| name.as_ref().map(|name| self.home.backups().join(name));
        let (Some(to), Some(from)) = (path(&segment.segment_name), path(&segment.temporary_name)) else {
            return Ok(());
        };
        let is_in_place = segment.identity.is_some() && durable::identity(&to)? == segment.identity;
        match durable::identity(&from)? {
            // A rename by link and unlink was not finished.
            Some(_) if is_in_place => durable::remove(&from),
            Some(_) => durable::rename_unsynced(&from, &to),
            None if is_in_place => Ok(()),
            None => Err(Error::not_found(format!("the segment {} was lost before it was in place", to.display()))),
        }
    }
}

/// Returns the archive of which an intent has the names.
fn archive_name(intent: &Intent) -> Result<ArchiveName<'_>> {
    let schedule = intent.schedule_name();
    let name = intent.file_name.rsplit('/').next().and_then(|name| ArchiveName::parse_index(name, schedule));
    name.ok_or_else(|| Error::failed(format!("{} is not the name of an index", intent.file_name)))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

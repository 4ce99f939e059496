//! Which members of an archive a restore test restores.

use super::{DrillContext, FilePart};
use crate::error::{Error, Result};
use crate::member::{Extent, MemberKind, MemberPath};
use crate::store::{Archive, CatalogEntry, Store};

/// Number of files picked at most from an archive whose content is larger than the sample.
const MAX_FILES: u64 = 1_000;
/// Chunks whose members are read at a time.
const PAGE_CHUNKS: u32 = 256;

/// The part of an archive that a drill restores.
pub(super) struct Sample {
    /// Paths of files; all members are restored if there are none and no part.
    pub(super) paths: Vec<MemberPath>,
    /// A file of which only a part fits.
    pub(super) part: Option<FilePart>,
    /// How much is restored.
    pub(super) extent: Extent,
}

impl Sample {
    /// Chooses all of an archive that is small enough. Of a larger one, chooses files spread over it, beginning with
    /// another one each day, and a part of the first that does not fit any more.
    pub(super) fn choose(store: &Store, archive: &Archive, context: &DrillContext<'_>) -> Result<Sample> {
        let mut sample = Sample { paths: Vec::new(), part: None, extent: archive.extent };
        if archive.extent.content_bytes <= context.sample_bytes {
            return Ok(sample);
        }
        sample.extent = Extent::default();
        let day = context.clock.now().millis().div_euclid(86_400_000);
        let seed = seed_of(day);
        let step = archive.extent.files.div_ceil(MAX_FILES).max(1);
        let first = seed % archive.extent.files.max(1);
        // With the step alone none may be found: further names of files count, and are not picked. From the first one
        // to the end, then from the beginning.
        for (step, is_wrapped) in [(step, false), (step, true), (1, false), (1, true)] {
            if step == 1 && !is_wrapped && sample.extent.files > 0 {
                break;
            }
            let mut position = 0;
            let is_full = visit_files(store, archive.run, &mut |listed| {
                let at = position;
                position += 1;
                if (at < first) != is_wrapped || at % step != first % step {
                    return Ok(true);
                }
                sample.add(store, archive.run, listed, context.sample_bytes, seed)
            })?;
            if is_full {
                return Ok(sample);
            }
        }
        if sample.is_everything() {
            return Err(Error::failed(format!("@{} has content and no file in the catalog", archive.run))
                .hint(format!("run `backup-manager verify @{}`", archive.run)));
        }
        Ok(sample)
    }

    /// Returns whether all members are restored.
    pub(super) fn is_everything(&self) -> bool {
        self.paths.is_empty() && self.part.is_none()
    }

    /// Adds a file, or a part of it if it does not fit. Returns whether there is room for more.
    fn add(&mut self, store: &Store, run: i64, listed: CatalogEntry, max_bytes: u64, seed: u64) -> Result<bool> {
        let left_bytes = max_bytes.saturating_sub(self.extent.content_bytes);
        let CatalogEntry { sequence, entry, .. } = listed;
        self.extent.files += 1;
        self.extent.members += 1;
        if entry.member.size <= left_bytes {
            self.extent.content_bytes += entry.member.size;
            self.paths.push(entry.member.path);
            return Ok(true);
        }
        let part = FilePart::choose(store, run, entry.member.path, sequence, left_bytes, seed)?;
        self.extent.content_bytes += part.content_bytes();
        self.part = Some(part);
        Ok(false)
    }
}

/// Passes the files of an archive that hold their own data to `visit`, in order, until it returns false. Returns
/// whether it did.
fn visit_files(store: &Store, run: i64, visit: &mut dyn FnMut(CatalogEntry) -> Result<bool>) -> Result<bool> {
    let mut next = Some(0);
    while let Some(from) = next {
        let (members, following) = store.members(run, from, PAGE_CHUNKS)?;
        for listed in members.into_iter().filter(|listed| listed.entry.member.kind == MemberKind::File) {
            if !visit(listed)? {
                return Ok(true);
            }
        }
        next = following;
    }
    Ok(false)
}

/// Returns a number for a day that differs from those of other days in no regular way: restore tests come once a week,
/// and an archive may have seven files.
fn seed_of(day: i64) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(&day.to_le_bytes()).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

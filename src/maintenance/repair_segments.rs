//! Repair in the segmented layout: a new segment gets what is damaged, the archives with a part of that refer to it
//! from then on, and their indexes are replaced as a whole. No byte of a segment changes (I19).

use std::collections::BTreeSet;

use super::reconcile::{BothRight, Plan, change, plan};
use super::repair_context::RepairContext;
use super::repair_whole::Replacement;
use crate::archive::check::check_file;
use crate::archive::index::Index;
use crate::archive_folder::{self, CopiedSegment, CopyingSegment};
use crate::error::{Error, ErrorKind, Result};
use crate::liveness::SegmentLock;
use crate::store::{Archive, Health, Moved, StoredRange};

/// Replaces the index of an archive if it is damaged, or lists bytes that are wrong and right where the database has
/// them: a repair was killed before it had replaced it. Returns whether it was replaced or, in a dry run, would be. The
/// caller has the lock under which the files of the schedule are changed.
pub(super) fn complete_index(context: &RepairContext<'_>, archive: &Archive) -> Result<bool> {
    if context.store.archive_crc(archive.run)?.is_none() {
        // A rescan added it without its chunks.
        return Ok(false);
    }
    let path = context.home.backups().join(&archive.file_name);
    let RepairContext { home, store, now, dry_run, .. } = *context;
    match Index::open(&path) {
        Ok(_) => match plan(store, archive, &path, BothRight::Leave)? {
            Plan::Same | Plan::Neither => return Ok(false),
            Plan::Change(moves) if !dry_run => change(home, store, archive, &path, moves, now)?,
            Plan::Change(_) => {}
        },
        Err(error) if error.kind() == ErrorKind::Damage => {
            if !dry_run {
                archive_folder::replace_index(home, store, archive)?;
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return restore_index(context, archive),
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Writes a lost index anew from the rows of the database if everything that it lists is what was written. Returns
/// whether it was written or, in a dry run, would be.
fn restore_index(context: &RepairContext<'_>, archive: &Archive) -> Result<bool> {
    let RepairContext { home, store, threads, cancel, .. } = *context;
    archive_folder::ensure_ours(home, store)?;
    let digest = archive.digest.as_deref().and_then(|digest| <[u8; 32]>::try_from(digest).ok());
    let Some(digest) = digest else { return Ok(false) };
    let _reading = SegmentLock::to_read(home, archive.layout, &archive.file_name);
    let new = archive_folder::write_lost_index(home, store, archive)?;
    let mut chunks = store.archive_chunks(archive.run);
    match check_file(new.temp_path(), &mut chunks, &digest, archive.size, threads, cancel) {
        Ok(()) if context.dry_run => Ok(true),
        Ok(()) => archive_folder::persist_lost_index(home, store, archive, new).map(|()| true),
        // An index that is there would vouch for what is not.
        Err(error) if error.kind() == ErrorKind::Damage => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes damaged parts of an archive to a new segment; those that do not lie in one piece are left. Returns the row of
/// the segment, `None` if there are no such parts. The caller has the lock under which the files of the schedule are
/// changed.
///
/// Errors: `Busy` if a run of the schedule began: what was moved before is repaired.
pub(super) fn move_to_new_segment(
    context: &RepairContext<'_>,
    archive: &Archive,
    parts: &mut dyn Iterator<Item = Result<Replacement>>,
    is_repaired: &dyn Fn(i64) -> bool,
) -> Result<Option<i64>> {
    let RepairContext { home, store, now, .. } = *context;
    let index = home.backups().join(&archive.file_name);
    let mut segment = CopyingSegment::create(home, store, archive, &index, now)?;
    for part in parts {
        let Replacement { offset, bytes } = part?;
        let range = offset..offset + bytes.len() as u64;
        let stored: [StoredRange; 1] = match store.stored_ranges(archive.archive_file, &[range])?.try_into() {
            Ok(stored) => stored,
            Err(_) => continue,
        };
        if stored[0].bytes == bytes.len() as u64 && !is_repaired(stored[0].stored_file) {
            segment.append(&bytes, stored[0])?;
        }
    }
    if segment.size() == 0 {
        return Ok(None);
    }
    let copied = segment.finish()?;
    move_spans(context, archive, &copied)?;
    Ok(Some(copied.row))
}

/// Makes all archives refer to the copies, and replaces their indexes.
fn move_spans(context: &RepairContext<'_>, archive: &Archive, copied: &CopiedSegment) -> Result<()> {
    let RepairContext { home, store, now, .. } = *context;
    let damaged: BTreeSet<i64> = copied.copied.iter().map(|range| range.from.stored_file).collect();
    let mut affected = BTreeSet::new();
    for file in &damaged {
        affected.extend(store.archives_with_part(*file)?);
    }
    // An archive that a rescan added without its chunks keeps its ranges.
    let mut followed = Vec::new();
    for run in affected {
        followed.extend(store.archive_crc(run)?.map(|_| run));
    }
    for run in &followed {
        // If this process is killed, the next repair replaces the indexes that it has not. Until then they list what is
        // damaged, whatever the rows say.
        let health = store.archive(*run)?.map(|archive| archive.health);
        let is_damaged = matches!(health, Some(Health::Damaged | Health::Missing));
        store.record_index_health(*run, if is_damaged { Health::Damaged } else { Health::Unverified }, None)?;
    }
    let moved = store.move_spans(archive.schedule_id, copied.row, &copied.copied, now)?;
    for run in &followed {
        if let Some(archive) = store.archive(*run)? {
            match archive_folder::replace_index(home, store, &archive) {
                // The next repair writes it anew.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    store.record_index_health(*run, Health::Missing, None)?;
                }
                replaced => drop(replaced?),
            }
        }
    }
    for file in damaged {
        store.remove_moved_parts(file, &followed)?;
    }
    if moved == Moved::RunBegan {
        let name = &archive.schedule_name;
        return Err(Error::busy(format!("a run of {name} began")).hint("repair again when it has ended"));
    }
    Ok(())
}

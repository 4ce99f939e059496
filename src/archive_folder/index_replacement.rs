//! The indexes of complete archives: made from the rows of the database, and replaced as a whole when bytes of the
//! archive have moved to another segment (I14, I19).

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::archive::cksum::Crc;
use crate::archive::index::Index;
use crate::archive_name::ArchiveName;
use crate::durable::{PendingFile, PersistMethod, SealedFile};
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::store::{Archive, Store, StoredBytes};

/// Spans that one query reads.
const PAGE_SPANS: u32 = 4_096;

/// Returns an index of the archive `name` with the ranges that the archive file of `run` has in the database.
pub fn index_from_rows(store: &Store, run: i64, name: &ArchiveName<'_>, members: u64, crc: Crc) -> Result<Index> {
    let mut index = Index::new(name, members, crc.cksum());
    let mut next = Some(0);
    while let Some(from) = next {
        let page = store.ranges(run, from, PAGE_SPANS)?;
        for range in &page {
            index.push(file_name(&range.segment_name), range.offset, range.bytes);
        }
        next = page.last().filter(|_| page.len() == PAGE_SPANS as usize).map(|last| last.archive_offset + last.bytes);
    }
    Ok(index)
}

/// Returns the index that a complete archive in segments should have by the database.
///
/// Errors: `Failed` for an archive that is not in segments.
pub fn expected_index(store: &Store, archive: &Archive) -> Result<Index> {
    let name = archive.file_name.split_once('/').and_then(|(folder, name)| ArchiveName::parse_index(name, folder));
    let crc = store.archive_crc(archive.run)?;
    let (Some(name), Some((value, bytes))) = (name, crc) else {
        return Err(Error::failed(format!("the archive @{} is not stored in segments", archive.run)));
    };
    index_from_rows(store, archive.run, &name, archive.extent.members, Crc::from_parts(value, bytes))
}

/// Replaces the index of a complete archive by the one that it should have by the database: the same archive, whose
/// bytes lie elsewhere. Returns whether it was another one. The caller has the lock under which indexes in the folder
/// are changed ([`crate::liveness::SegmentLock::try_to_change`]); without it, the archive could be deleted meanwhile.
///
/// Errors: `Damage` if the present index is of another archive, or if a segment that the new one needs and the present
/// one does not is missing or too short: the database may be an older copy. Then nothing is changed.
pub fn replace_index(home: &Home, store: &Store, archive: &Archive) -> Result<bool> {
    let path = home.backups().join(&archive.file_name);
    let wanted = expected_index(store, archive)?;
    let present = match Index::open(&path) {
        Ok(present) => Some(present),
        // It cannot serve anybody.
        Err(error) if error.kind() == ErrorKind::Damage => None,
        Err(error) => return Err(error),
    };
    if present.as_ref() == Some(&wanted) {
        let stored = stored_bytes_at(&path)?;
        return store.record_replaced_index(archive.run, &stored).map(|()| false);
    }
    check_same_archive(&path, &wanted, present.as_ref())?;
    check_segments(&path, &wanted, present.as_ref())?;
    let sealed = write_index(home, &path, &wanted, &path)?;
    let stored = stored_bytes(&sealed);
    let stored = match sealed.persist(&path, true)? {
        PersistMethod::Renamed => stored,
        PersistMethod::WrittenInPlace => stored_bytes_at(&path)?,
    };
    store.record_replaced_index(archive.run, &stored).map(|()| true)
}

/// Writes the index that a complete archive should have by the database, and whose file is gone, under a temporary
/// name. The caller has the lock under which indexes in the folder are changed, and reads what it lists before it is
/// given its name ([`persist_lost_index`]).
pub fn write_lost_index(home: &Home, store: &Store, archive: &Archive) -> Result<SealedFile> {
    let path = home.backups().join(&archive.file_name);
    let wanted = expected_index(store, archive)?;
    check_segments(&path, &wanted, None)?;
    let segment = wanted.segments().first().map(|name| path.with_file_name(name));
    write_index(home, &path, &wanted, segment.as_deref().unwrap_or(&path))
}

/// Gives an index that was lost and written anew its name. Another file of that name is left alone.
pub fn persist_lost_index(home: &Home, store: &Store, archive: &Archive, sealed: SealedFile) -> Result<()> {
    let stored = stored_bytes(&sealed);
    sealed.persist(&home.backups().join(&archive.file_name), false)?;
    store.record_replaced_index(archive.run, &stored)
}

/// Writes an index under a temporary name, and reads it back. It gets the owner of `like`.
fn write_index(home: &Home, path: &Path, wanted: &Index, like: &Path) -> Result<SealedFile> {
    let mut pending = PendingFile::create(path, home.archive_mode())?;
    pending.give_owner_of(like);
    let mut out = BufWriter::with_capacity(1 << 17, pending.file());
    let written = wanted.write(&mut out).and_then(|()| out.flush());
    drop(out);
    written.map_err(Error::io("write", path))?;
    let sealed = pending.seal()?;
    if Index::open(sealed.temp_path())? != *wanted {
        return Err(Error::failed(format!("the new index {} is not what was written", path.display())));
    }
    Ok(sealed)
}

/// Replaces the indexes that may still list a stored file in which their archives have no bytes any more; then it is no
/// part of these archives any more. Otherwise as [`replace_index`].
pub fn replace_moved_indexes(home: &Home, store: &Store, stored_file: i64) -> Result<()> {
    let runs = store.archives_moved_from(stored_file)?;
    for run in &runs {
        if let Some(archive) = store.archive(*run)? {
            match replace_index(home, store, &archive) {
                // An index that is lost lists nothing.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                replaced => drop(replaced?),
            }
        }
    }
    store.remove_moved_parts(stored_file, &runs)
}

fn check_same_archive(path: &Path, wanted: &Index, present: Option<&Index>) -> Result<()> {
    let facts = |index: &Index| (index.archive_name().file_name(), index.members(), index.cksum());
    match present {
        Some(present) if facts(present) != facts(wanted) => {
            Err(refused(path, "it is the index of an archive that the database does not know"))
        }
        _ => Ok(()),
    }
}

/// Fails if a segment that only the new index lists does not hold the bytes that it lists.
fn check_segments(path: &Path, wanted: &Index, present: Option<&Index>) -> Result<()> {
    let mut needed: HashMap<&str, u64> = HashMap::new();
    for range in wanted.ranges() {
        let end = needed.entry(range.segment).or_default();
        *end = (*end).max(range.offset + range.length);
    }
    let is_present = |name: &str| present.is_some_and(|present| present.segments().iter().any(|known| known == name));
    for (name, bytes) in needed {
        let found = path.with_file_name(name).symlink_metadata();
        let is_whole = found.is_ok_and(|found| found.is_file() && found.len() >= bytes);
        if !is_whole && !is_present(name) {
            return Err(refused(path, &format!("the database says that {name} has bytes of it, which it has not")));
        }
    }
    Ok(())
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Damage, format!("the index {} is not replaced: {why}", path.display()))
        .hint("the database may be an older copy: run `backup-manager rescan`")
}

/// Returns what is recorded of a file that is complete and synced.
pub fn stored_bytes(sealed: &SealedFile) -> StoredBytes {
    StoredBytes {
        size: sealed.size(),
        device: sealed.device(),
        inode: sealed.inode(),
        modified_ns: Some(sealed.modified_ns()),
    }
}

/// Returns what is recorded of a file that is complete.
pub fn stored_bytes_at(path: &Path) -> Result<StoredBytes> {
    let found = path.symlink_metadata().map_err(Error::io("inspect", path))?;
    let modified_ns = found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec());
    Ok(StoredBytes { size: found.len(), device: found.dev(), inode: found.ino(), modified_ns: Some(modified_ns) })
}

/// Returns the last component of a path below the archive folder.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

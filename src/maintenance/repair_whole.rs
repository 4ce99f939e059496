//! Repair in the whole layout: a copy of the archive file with other bytes in the damaged places takes the names of the
//! file, once it was read back and is what was written once. No byte of the old file changes (I19).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::repair_context::RepairContext;
use crate::archive::check::check_file;
use crate::durable::{self, PendingFile, SealedFile};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Archive, StoredBytes};
use crate::words::shell_word;

/// Bytes that are copied between two checks whether the repair was cancelled.
const STEP_BYTES: u64 = 8 << 20;

/// Bytes of an archive file that are written anew.
pub(super) struct Replacement {
    /// Offset of the first one.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// Replaces the file of a damaged archive, under all of its names; `parts` are in order. The caller has the lock under
/// which the files of the schedule are changed.
///
/// Errors: `Damage` if the copy is not what was written once, and nothing is replaced; `NotFound` if the archive was
/// removed meanwhile; `Busy` while a run goes on that may share the damaged bytes.
pub(super) fn replace_file(
    context: &RepairContext<'_>,
    archive: &Archive,
    parts: &mut dyn Iterator<Item = Result<Replacement>>,
) -> Result<()> {
    let RepairContext { home, store, now, .. } = *context;
    let path = home.backups().join(&archive.file_name);
    let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
    names_of_file(context, archive)?;
    let copy = write_copy(context, &path, archive.size, parts)?;
    check_copy(context, archive, &path, copy.temp_path())?;
    // What is marked for deletion meanwhile is unlinked once this process has released the lock.
    let names = names_of_file(context, archive)?;
    let stored = StoredBytes {
        size: copy.size(),
        device: copy.device(),
        inode: copy.inode(),
        modified_ns: Some(copy.modified_ns()),
    };
    copy.persist(&path, true)?;
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    for name in names.iter().filter(|name| name.run != archive.run) {
        let other = home.backups().join(&name.file_name);
        let link = folder.join(durable::random_name()?);
        durable::link_over(&file, &path, &link, &other)?;
        durable::sync_folder(&folder)?;
    }
    match store.record_replaced_file(archive, &stored, now)? {
        true => Ok(()),
        false => Err(removed(archive)),
    }
}

/// Returns the complete archives whose file this is.
///
/// Errors: `NotFound` if the archive itself is none of them any more; `Busy` if one of them is the base of a running
/// run: that has linked the file or shares its blocks, and must find it damaged when it ends. While it is damaged, no
/// other run takes it.
fn names_of_file(context: &RepairContext<'_>, archive: &Archive) -> Result<Vec<Archive>> {
    let mut names: Vec<Archive> = context.store.archives(Some(archive.schedule_id))?;
    names.retain(|name| name.archive_file == archive.archive_file);
    if names.iter().all(|name| name.run != archive.run) {
        return Err(removed(archive));
    }
    if context.store.is_base_of_running_run(archive.archive_file)? {
        let name = &archive.schedule_name;
        return Err(Error::busy(format!("a run of {name} may share damaged bytes of the archive @{}", archive.run))
            .hint("repair again when it has ended"));
    }
    Ok(names)
}

fn removed(archive: &Archive) -> Error {
    Error::not_found(format!("the archive @{} was removed before it was repaired", archive.run))
        .hint("run `backup-manager repair` again if others are damaged")
}

/// Writes the copy, with mode and owner of the file, under a temporary name.
fn write_copy(
    context: &RepairContext<'_>,
    path: &Path,
    size: u64,
    parts: &mut dyn Iterator<Item = Result<Replacement>>,
) -> Result<SealedFile> {
    let mut old = File::open(path).map_err(Error::io("open", path))?;
    let metadata = old.metadata().map_err(Error::io("inspect", path))?;
    let temporary = path.with_file_name(durable::random_name()?);
    let mut pending = PendingFile::create_own(&temporary, metadata.mode() & 0o7777)?;
    give(pending.file(), &metadata, &temporary)?;
    let mut at = 0;
    for part in parts {
        let part = part?;
        copy_range(context, &mut old, pending.file(), path, at..part.offset)?;
        pending.file().write_all(&part.bytes).map_err(Error::io("write", &temporary))?;
        at = part.offset + part.bytes.len() as u64;
    }
    copy_range(context, &mut old, pending.file(), path, at..size)?;
    pending.seal()
}

/// Gives the copy to the owner of the file.
fn give(copy: &File, of: &std::fs::Metadata, path: &Path) -> Result<()> {
    let own = copy.metadata().map_err(Error::io("inspect", path))?;
    if (own.uid(), own.gid()) == (of.uid(), of.gid()) {
        return Ok(());
    }
    std::os::unix::fs::fchown(copy, Some(of.uid()), Some(of.gid())).map_err(Error::io("change the owner of", path))
}

fn copy_range(
    context: &RepairContext<'_>,
    old: &mut File,
    copy: &mut File,
    path: &Path,
    range: Range<u64>,
) -> Result<()> {
    old.seek(SeekFrom::Start(range.start)).map_err(Error::io("read", path))?;
    let mut at = range.start;
    while at < range.end {
        context.cancel.check("the repair was cancelled")?;
        let length = STEP_BYTES.min(range.end - at);
        let copied = io::copy(&mut Read::by_ref(old).take(length), copy).map_err(Error::io("copy", path))?;
        if copied < length {
            return Err(Error::new(ErrorKind::Damage, format!("{} was cut off meanwhile", path.display()))
                .hint("verify it with `backup-manager verify`, then repair again"));
        }
        at += length;
    }
    Ok(())
}

/// Reads the copy back. `path` is that of the file, which errors name: the copy is gone by then.
fn check_copy(context: &RepairContext<'_>, archive: &Archive, path: &Path, copy: &Path) -> Result<()> {
    let digest = archive.digest.as_deref().and_then(|digest| <[u8; 32]>::try_from(digest).ok());
    let digest = digest.ok_or_else(|| {
        Error::failed(format!("{} is not repaired: the database has no digest of it", path.display()))
            .hint("rebuild what the database knows of it with `backup-manager rescan`")
    })?;
    let mut chunks = context.store.archive_chunks(archive.run);
    let checked = check_file(copy, &mut chunks, &digest, archive.size, context.threads, context.cancel);
    checked.map_err(|error| match error.kind() {
        ErrorKind::Damage => {
            let found = error.to_string().replace(&copy.display().to_string(), "the copy with equal bytes");
            let message = format!("{} is not repaired: {found}", path.display());
            let name = shell_word(&archive.schedule_name);
            Error::new(ErrorKind::Damage, message)
                .hint(format!("`backup-manager run {name}` archives what the source still has"))
        }
        _ => error,
    })
}

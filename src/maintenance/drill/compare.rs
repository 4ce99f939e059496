//! Restores a part of an archive and compares it with the catalog.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::DrillContext;
use crate::browse::{OpenArchive, Selection};
use crate::error::{Error, ErrorKind, Result};
use crate::member::{CatalogMember, Member, MemberKind, MemberPath};
use crate::progress::{Observer, Problem, Progress};
use crate::restore::{self, Options};

/// Number of differences reported at most.
pub(super) const MAX_DIFFERENCES: usize = 20;

/// Passes everything on but problems: the differences report them.
struct WithoutProblems<'a>(&'a dyn Observer);

impl Observer for WithoutProblems<'_> {
    fn progress(&self, progress: &Progress) {
        self.0.progress(progress);
    }

    fn problem(&self, _: &Problem) {}

    fn note(&self, text: &str) {
        self.0.note(text);
    }
}

/// Restores the selected members to `target` and compares them with the catalog; returns the differences, in words.
pub(super) fn restore_and_compare(
    opened: &OpenArchive,
    selection: &Selection,
    target: &Path,
    context: &DrillContext<'_>,
) -> Result<Vec<String>> {
    let options = Options { threads: context.threads, ..Options::to(target) };
    let mut restore_context = restore::RestoreContext {
        clock: context.clock,
        observer: &WithoutProblems(context.observer),
        cancel: context.cancel,
        on_action: &mut |_, _| {},
    };
    let report = restore::restore(opened, selection, &options, &mut restore_context)?;
    let (mut differences, reported) = reported_differences(&report);
    let is_root = rustix::process::geteuid().is_root();
    opened.catalog_members(&mut |_, entry| {
        if context.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Interrupted, "the restore test was interrupted"));
        }
        if differences.len() < MAX_DIFFERENCES
            && selection.selects(&entry.member.path)
            && !reported.contains(entry.member.path.as_bytes())
            && let Some(why) = difference(target, &entry, is_root)?
        {
            differences.push(format!("{}: {why}", entry.member.path));
        }
        Ok(())
    })?;
    differences.truncate(MAX_DIFFERENCES);
    Ok(differences)
}

/// Returns what the restore reported, in words, and the paths it is about. A member that was not restored whole differs
/// in other ways too: each is reported once, for the first reason.
fn reported_differences(report: &restore::Report) -> (Vec<String>, BTreeSet<Box<[u8]>>) {
    let (mut differences, mut reported) = (Vec::new(), BTreeSet::new());
    for paths in [&report.damaged, &report.refused, &report.failed, &report.conflicts] {
        for (path, why) in &paths.list {
            if reported.insert(path.clone()) {
                differences.push(format!("{}: {why}", String::from_utf8_lossy(path)));
            }
        }
    }
    (differences, reported)
}

/// Compares a restored file with its member in the catalog; returns the first difference, in words.
fn difference(target: &Path, entry: &CatalogMember, is_root: bool) -> Result<Option<String>> {
    let member = &entry.member;
    if matches!(member.kind, MemberKind::CharDevice | MemberKind::BlockDevice) {
        return Ok(None);
    }
    let path = target.join(member.path.as_path());
    let found = match fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some("it was not restored".to_owned())),
        Err(error) => return Err(Error::io("inspect", &path)(error)),
    };
    let kind = found.file_type();
    let is_kind = match member.kind {
        MemberKind::File | MemberKind::HardLink => kind.is_file(),
        MemberKind::Folder => kind.is_dir(),
        MemberKind::Symlink => kind.is_symlink(),
        _ => std::os::unix::fs::FileTypeExt::is_fifo(&kind),
    };
    if !is_kind {
        return Ok(Some("it was restored as something else".to_owned()));
    }
    if member.kind == MemberKind::Symlink {
        let leads_to = fs::read_link(&path).map_err(Error::io("read the link", &path))?;
        let is_same = member.link_target.as_deref() == Some(leads_to.as_os_str().as_bytes());
        return Ok((!is_same).then(|| "it leads elsewhere".to_owned()));
    }
    if member.kind == MemberKind::HardLink {
        return link_difference(target, member, &found);
    }
    if found.mode() & 0o777 != member.mode & 0o777 {
        return Ok(Some(format!("its mode is {:o}, not {:o}", found.mode() & 0o777, member.mode & 0o777)));
    }
    let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
    if (seconds, nanoseconds) != (member.modified.seconds, i64::from(member.modified.nanoseconds)) {
        return Ok(Some("its time is another".to_owned()));
    }
    if is_root && (found.uid(), found.gid()) != (member.uid, member.gid) {
        return Ok(Some("its owner is another".to_owned()));
    }
    if member.kind != MemberKind::File {
        return Ok(None);
    }
    content_difference(&path, found.len(), entry)
}

/// Compares a restored hard link with the file that it is a further name of. It has the mode, the owner and the time of
/// that file: those in its own header are of a later moment, in which the file may have changed.
fn link_difference(target: &Path, member: &Member, found: &fs::Metadata) -> Result<Option<String>> {
    let first = MemberPath::parse(member.link_target.as_deref().unwrap_or_default())?;
    let path = target.join(first.as_path());
    match fs::symlink_metadata(&path) {
        Ok(of_first) if (of_first.dev(), of_first.ino()) == (found.dev(), found.ino()) => Ok(None),
        Ok(_) => Ok(Some(format!("it is not a hard link to {first}"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Some(format!("{first}, of which it is a further name, was not restored")))
        }
        Err(error) => Err(Error::io("inspect", &path)(error)),
    }
}

/// Compares the content of a restored file with its member; returns the difference, in words.
fn content_difference(path: &Path, size: u64, entry: &CatalogMember) -> Result<Option<String>> {
    if size != entry.member.size {
        return Ok(Some(format!("it has {size} bytes, not {}", entry.member.size)));
    }
    let Some(digest) = entry.content_digest else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).map_err(Error::io("open", path))?).map_err(Error::io("read", path))?;
    Ok((*hasher.finalize().as_bytes() != digest).then(|| "its content is another".to_owned()))
}

//! `diff`: compares two archives, or an archive with its source.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde::Serialize;

use super::documents::PathFields;
use super::render::{self, Format};
use super::{Context, select};
use crate::backup;
use crate::browse::{self, Change, MemberSummary, MembersByPath};
use crate::error::{Error, Result};
use crate::maintenance::prune;
use crate::member::MemberKind;
use crate::progress::{Problem, ProblemKind};
use crate::source::SourceEntry;
use crate::store::{ScheduleRow, Store};

/// Bytes of a file that are read at a time.
const READ_BYTES: usize = 1 << 18;

#[derive(Args)]
pub struct DiffArgs {
    /// The older archive: a schedule (its newest good archive), an archive (@17), or any tar file
    older: OsString,
    /// The newer one [default: the schedule's source as it is now]
    newer: Option<OsString>,
}

/// What `diff --json` prints.
#[derive(Default, Serialize)]
struct DiffDocument {
    added: Vec<PresentDocument>,
    removed: Vec<PresentDocument>,
    changed: Vec<ChangedDocument>,
}

/// A member that only one side has.
#[derive(Serialize)]
struct PresentDocument {
    /// `path`: its path in the archive.
    #[serde(flatten)]
    path: PathFields,
    /// Bytes of its content.
    size: u64,
}

/// A member that both sides have and that differs.
#[derive(Serialize)]
struct ChangedDocument {
    /// `path`: its path in the archive.
    #[serde(flatten)]
    path: PathFields,
    /// Bytes of its content on the older and on the newer side.
    size: [u64; 2],
    /// What differs: content, time, mode, ...
    what: Vec<&'static str>,
}

impl DiffDocument {
    fn add(&mut self, path: &[u8], change: &Change<'_>) {
        let path = PathFields::new("path", path);
        match change {
            Change::Added(brief) => self.added.push(PresentDocument { path, size: brief.size }),
            Change::Removed(brief) => self.removed.push(PresentDocument { path, size: brief.size }),
            Change::Changed(was, is) => {
                let (size, what) = ([was.size, is.size], is.differences(was));
                self.changed.push(ChangedDocument { path, size, what });
            }
        }
    }
}

pub fn cmd_diff(context: &Context, args: &DiffArgs) -> Result<u8> {
    let older = select::archive(context, &args.older, None, None)?;
    let was = browse::members_by_path(&older)?;
    let is = match &args.newer {
        Some(newer) => browse::members_by_path(&select::archive(context, newer, None, None)?)?,
        None => {
            let store = context.open()?;
            source_now(context, &schedule_of(context, &store, &args.older)?, &was)?
        }
    };
    let mut document = DiffDocument::default();
    let mut lines = Vec::new();
    browse::compare(&was, &is, &mut |path, change| {
        if context.format == Format::Json {
            document.add(path.as_bytes(), &change);
        } else {
            lines.extend(plain_line(path.as_bytes(), &change));
        }
        Ok(())
    })?;
    if context.format == Format::Json {
        render::print_json(&document)?;
    } else {
        if lines.is_empty() {
            context.print_info("no difference");
        }
        render::print_bytes(&lines)?;
    }
    Ok(0)
}

/// Returns a line of tab-separated words: `added`, `removed` or `changed`, the path and, if changed, what differs.
fn plain_line(path: &[u8], change: &Change<'_>) -> Vec<u8> {
    let (word, what) = match change {
        Change::Added(_) => ("added", Vec::new()),
        Change::Removed(_) => ("removed", Vec::new()),
        Change::Changed(was, is) => ("changed", is.differences(was)),
    };
    let mut line = format!("{word}\t").into_bytes();
    line.extend(render::printable_bytes(path));
    if !what.is_empty() {
        line.extend(format!("\t{}", what.join(",")).bytes());
    }
    line.push(b'\n');
    line
}

fn schedule_of(context: &Context, store: &Store, what: &OsStr) -> Result<ScheduleRow> {
    if select::names_a_file(context, what) {
        return Err(Error::usage(format!("{} is a file: name what to compare it with", what.display()))
            .hint("backup-manager diff FILE NAME"));
    }
    let what = &*what.to_string_lossy();
    match select::run_number(what) {
        Some(run) => {
            let archive = store.archive(run)?.ok_or_else(|| prune::no_archive(run))?;
            store.schedule(archive.schedule_id)
        }
        None => select::schedule_or_history(store, what),
    }
}

/// Returns what a run would archive now. Files of equal size whose time differs are read, so that `content` is reported
/// only if the content differs.
fn source_now(context: &Context, row: &ScheduleRow, was: &MembersByPath) -> Result<MembersByPath> {
    let mut is = MembersByPath::new();
    let mut failed = None;
    let problems = backup::visit_source(&context.home, row, &mut |found| {
        let stat = &found.stat;
        let link_target = match found.kind {
            MemberKind::Symlink => match found.read_link() {
                Ok(target) => Some(target.into_boxed_slice()),
                Err(problem) => {
                    failed = Some(problem);
                    None
                }
            },
            _ => None,
        };
        let size = if found.kind == MemberKind::File { stat.size } else { 0 };
        let mut brief = MemberSummary {
            kind: found.kind,
            size,
            mode: stat.mode,
            owner: (stat.uid, stat.gid),
            modified: stat.modified,
            link_target,
            device_number: stat.device_number,
            digest: None,
        };
        let old = was.get(&found.path).filter(|old| (old.kind, found.kind) == (MemberKind::File, MemberKind::File));
        if old.is_some_and(|old| old.size == size && old.modified != brief.modified) {
            match content_digest(found) {
                Ok(digest) => brief.digest = Some(digest),
                Err(problem) => failed = Some(problem),
            }
        }
        is.insert(found.path.clone(), brief);
    })?;
    for problem in problems.iter().chain(&failed) {
        context.warn(&format!("{}: {}", render::printable(&problem.path), problem.reason));
    }
    Ok(is)
}

/// Returns the digest of a regular file of the source, of the bytes within its size at opening: of a file that grows no
/// end would be found.
fn content_digest(found: &SourceEntry) -> std::result::Result<[u8; 32], Problem> {
    let file = found.open()?;
    let mut hasher = blake3::Hasher::new();
    let (mut buffer, mut offset) = (vec![0; READ_BYTES], 0);
    while offset < file.stat().size {
        let count = file.read_at(&mut buffer, offset).map_err(|error| Problem {
            path: found.fs_path().as_os_str().as_bytes().into(),
            kind: ProblemKind::Unreadable,
            reason: error.to_string(),
        })?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        offset += count as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

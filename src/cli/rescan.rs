//! `rescan`: rebuilds the catalog from the archive files, or restores a copy of the database.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::documents::PathFields;
use super::render::{self, Format};
use super::signals::Signals;
use super::terminal::TerminalObserver;
use super::{Context, config};
use crate::archive_folder::{self, OrphanedSegment};
use crate::error::{Error, ErrorKind, Result};
use crate::health::live_services;
use crate::maintenance::rescan::{self, RescanReport};
use crate::maintenance::{self, RestoredDatabase};
use crate::store::Access;
use crate::words::shell_word;

#[derive(Args)]
pub struct RescanArgs {
    /// Adopt an archive folder that has the identity of another database, or none
    #[arg(long)]
    adopt: bool,
    /// First restore a copy of the database: this one, or the newest beside the archives
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    from_copy: Option<Option<PathBuf>>,
    /// Then remove the segments that no archive and no index refers to; without it they are listed
    #[arg(long)]
    remove_orphans: bool,
}

pub fn cmd_rescan(context: &Context, args: &RescanArgs) -> Result<u8> {
    let restored_copy = args.from_copy.as_ref().map(|copy| restore_copy(context, copy.as_deref())).transpose()?;
    let store = context.open_or_create()?;
    let taken = archive_folder::adopt(&context.home, &store, args.adopt, context.now())?;
    // Adopting the folder changed the identity in the database.
    let store = if taken { context.open_store(Access::Existing)? } else { store };
    if taken && !live_services(&context.home, &store)?.is_empty() {
        context.warn("the service still uses the previous identity of the database: restart it after the rescan");
    }
    super::worker::recover(context, &store)?;
    let observer = TerminalObserver::new("rescan", context.quiet);
    let threads = config::threads(&store, None)?;
    let signals = Signals::cancel_on_first()?;
    let report = rescan::rescan(&context.home, &store, threads, &observer, &signals.cancel, context.now());
    observer.finish();
    let report = report.map_err(|error| signals.classify(error))?;
    if let Err(error) = maintenance::copy_database(&context.home, &store, context.now()) {
        context.warn(&format!("the database was not copied: {error}"));
    }
    report.orphans.undecided.iter().for_each(|why| context.warn(why));
    if args.remove_orphans {
        archive_folder::remove_orphans(&context.home, &store, &report.orphans.segments)?;
    }
    print_report(context, &report, restored_copy.as_ref(), args.remove_orphans)?;
    Ok(match (report.damaged.is_empty(), report.unreadable.is_empty()) {
        (false, _) => ErrorKind::Damage.exit_code(),
        (true, false) => ErrorKind::Incomplete.exit_code(),
        (true, true) => 0,
    })
}

/// Restores a copy of the database: this one, or the newest beside the archives.
fn restore_copy(context: &Context, copy: Option<&Path>) -> Result<RestoredDatabase> {
    if let Some(copy) = copy.filter(|copy| !copy.is_file()) {
        let (problem, kind) = match copy.exists() {
            true => ("is not a file", ErrorKind::Usage),
            false => ("does not exist", ErrorKind::NotFound),
        };
        return Err(Error::new(kind, format!("the copy {} {problem}", copy.display()))
            .hint("name one, or leave its name out: the newest beside the archives is taken"));
    }
    let restored = maintenance::restore_database_copy(&context.home, copy, context.now())?;
    context.print_info(&format!("restored the copy {}", restored.copy.display()));
    if let Some(previous) = &restored.previous {
        context.print_info(&format!("the previous database is now {}", previous.display()));
    }
    Ok(restored)
}

/// What `rescan --json` prints.
#[derive(Serialize)]
struct RescanDocument<'a> {
    /// Names of schedules that were created, paused.
    schedules: &'a [String],
    /// Names of archive files that were added to the catalog.
    added: &'a [String],
    /// Names of archive files whose indexes listed other bytes than the catalog: it follows them.
    updated: &'a [String],
    /// How many archives the catalog already held.
    known: u64,
    /// Names of archive files in the catalog that do not exist.
    missing: &'a [String],
    /// Files that this program did not write.
    foreign: Vec<String>,
    damaged: Vec<FileDocument<'a>>,
    /// Files and folders that may hold archives and cannot be read.
    unreadable: Vec<FileDocument<'a>>,
    /// Segments that no archive and no index refers to.
    orphans: Vec<OrphanDocument>,
    /// `restored_copy`: the copy of the database that was restored first; only with `--from-copy`.
    #[serde(flatten)]
    restored_copy: Option<PathFields>,
    /// `previous_database`: where the database before it now is; only if there was one.
    #[serde(flatten)]
    previous_database: Option<PathFields>,
}

/// A file or folder that was not added to the catalog.
#[derive(Serialize)]
struct FileDocument<'a> {
    /// `path`: its path.
    #[serde(flatten)]
    path: PathFields,
    reason: &'a str,
}

/// A segment to which nothing refers.
#[derive(Serialize)]
struct OrphanDocument {
    /// `path`: its path.
    #[serde(flatten)]
    path: PathFields,
    /// Its size.
    bytes: u64,
    /// Whether it was removed.
    removed: bool,
}

fn orphan_documents(orphans: &[OrphanedSegment], removed: bool) -> Vec<OrphanDocument> {
    let document = |orphan: &OrphanedSegment| OrphanDocument {
        path: path_fields("path", &orphan.path),
        bytes: orphan.bytes,
        removed,
    };
    orphans.iter().map(document).collect()
}

fn orphan_line(orphan: &OrphanedSegment, removed: bool) -> String {
    let (path, size) = (render::printable(orphan.path.as_os_str().as_bytes()), render::bytes(orphan.bytes));
    match removed {
        true => format!("removed an orphaned segment: {path} ({size})\n"),
        false => format!("orphaned segment, to which no archive refers: {path} ({size})\n"),
    }
}

fn file_documents(files: &[(PathBuf, String)]) -> Vec<FileDocument<'_>> {
    files.iter().map(|(path, reason)| FileDocument { path: path_fields("path", path), reason }).collect()
}

fn path_fields(key: &'static str, path: &Path) -> PathFields {
    PathFields::new(key, path.as_os_str().as_bytes())
}

fn document<'a>(
    report: &'a RescanReport,
    copy: Option<&RestoredDatabase>,
    orphans_removed: bool,
) -> RescanDocument<'a> {
    RescanDocument {
        schedules: &report.schedules,
        added: &report.added,
        updated: &report.updated,
        known: report.known,
        missing: &report.missing,
        foreign: report.foreign.iter().map(|path| path.display().to_string()).collect(),
        damaged: file_documents(&report.damaged),
        unreadable: file_documents(&report.unreadable),
        orphans: orphan_documents(&report.orphans.segments, orphans_removed),
        restored_copy: copy.map(|copy| path_fields("restored_copy", &copy.copy)),
        previous_database: copy
            .and_then(|copy| copy.previous.as_deref())
            .map(|previous| path_fields("previous_database", previous)),
    }
}

fn print_report(
    context: &Context,
    report: &RescanReport,
    copy: Option<&RestoredDatabase>,
    orphans_removed: bool,
) -> Result<()> {
    if context.format == Format::Json {
        return render::print_json(&document(report, copy, orphans_removed));
    }
    let mut text = String::new();
    for name in &report.schedules {
        let resume = format!("`backup-manager resume {}`", shell_word(name));
        text += &format!("created the schedule {name}, paused: resume it with {resume}\n");
    }
    report.added.iter().for_each(|name| text += &format!("added {name}\n"));
    report.updated.iter().for_each(|name| text += &format!("updated {name}: its index and the database differed\n"));
    report.missing.iter().for_each(|name| text += &format!("missing: {name}\n"));
    let shown = |path: &Path| render::printable(path.as_os_str().as_bytes());
    report.foreign.iter().for_each(|path| text += &format!("not ours, left unchanged: {}\n", shown(path)));
    for (path, reason) in &report.damaged {
        let what = if is_in_catalog(report, path) { "damaged" } else { "damaged, left unchanged" };
        text += &format!("{what}: {}: {reason}\n", shown(path));
    }
    let unreadable = report.unreadable.iter();
    unreadable.for_each(|(path, reason)| text += &format!("cannot be read: {}: {reason}\n", shown(path)));
    report.orphans.segments.iter().for_each(|orphan| text += &orphan_line(orphan, orphans_removed));
    if !report.orphans.segments.is_empty() && !orphans_removed {
        context.print_info("remove the orphaned segments with `backup-manager rescan --remove-orphans`");
    }
    text += &format!(
        "{} added, {} known before\n",
        render::count(report.added.len() as u64, "archive"),
        render::count(report.known, "archive")
    );
    render::print_text(&text)
}

/// Returns whether a damaged archive was added or updated all the same.
fn is_in_catalog(report: &RescanReport, path: &Path) -> bool {
    report.added.iter().chain(&report.updated).any(|name| path.ends_with(name))
}

//! `export`: schedules in the text file or in JSON, or an archive as one tar file.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::documents::{self, PathFields};
use super::render::{self, Format};
use super::signals::Signals;
use super::terminal::TerminalObserver;
use super::text_file::{self, FileFormat};
use super::{Context, select};
use crate::archive_folder;
use crate::browse::{self, Copied, OpenArchive};
use crate::durable::{FolderLock, PendingFile};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Observer, Progress};
use crate::schedule::parse_when;

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Args)]
pub struct ExportArgs {
    /// File of schedules to write [default: standard output]; with --to the archive: a schedule (its newest good
    /// archive), an archive (@17), an archive file or an index
    #[arg(value_name = "FILE|ARCHIVE")]
    what: Option<OsString>,
    /// Write an archive to this new file, as one whole tar file
    #[arg(long, value_name = "FILE", requires = "what", conflicts_with_all = ["force", "format"])]
    to: Option<PathBuf>,
    /// This archive of the schedule: @17
    #[arg(long, value_name = "@RUN", requires = "to", conflicts_with = "at")]
    archive: Option<String>,
    /// The newest archive made by then: 2026-11-20, "2026-11-20 14:00", yesterday, 3d
    #[arg(long, value_name = "TIME", requires = "to")]
    at: Option<String>,
    /// Replace an existing file of schedules
    #[arg(long)]
    force: bool,
    /// Form of the file of schedules [default: text; json with --json and no FILE]
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
}

/// What `export ARCHIVE --to FILE --json` prints.
#[derive(Serialize)]
struct ExportedArchiveDocument {
    /// `archive`: the file or index that was read.
    #[serde(flatten)]
    archive: PathFields,
    /// `file`: the file that was written.
    #[serde(flatten)]
    file: PathFields,
    /// Its size in bytes.
    bytes: u64,
    /// The archive digest.
    digest: String,
    /// The checksum that `cksum` prints for it.
    cksum: u32,
}

pub fn cmd_export(context: &Context, args: &ExportArgs) -> Result<u8> {
    match (&args.what, &args.to) {
        (Some(what), Some(to)) => export_archive(context, args, what, to),
        (what, _) => text_file::export_schedules(context, what.as_ref().map(Path::new), args.format, args.force),
    }
}

fn export_archive(context: &Context, args: &ExportArgs, what: &OsString, to: &Path) -> Result<u8> {
    let at = args.at.as_deref().map(|text| parse_when(text, context.zone, context.now())).transpose()?;
    let archive = select::archive(context, what, args.archive.as_deref(), at)?;
    let absolute = std::path::absolute(to).map_err(Error::io("find", to))?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    check_target(context, &archive, to, folder)?;
    let signals = Signals::cancel_on_first()?;
    let _lock = FolderLock::try_acquire(folder);
    let mut pending = PendingFile::create(&absolute, context.home.file_mode())?;
    let copied = copy(context, &archive, pending.file(), to, &signals).map_err(|error| signals.classify(error))?;
    pending.seal()?.persist(&absolute, false)?;
    if context.format == Format::Json {
        render::print_json(&ExportedArchiveDocument {
            archive: PathFields::new("archive", archive.path().as_os_str().as_bytes()),
            file: PathFields::new("file", to.as_os_str().as_bytes()),
            bytes: copied.cksum.bytes,
            digest: documents::hex(copied.digest),
            cksum: copied.cksum.sum,
        })?;
    }
    context.print_info(&format!("wrote {} ({})", to.display(), render::bytes(copied.cksum.bytes)));
    Ok(0)
}

/// Fails, before anything is written, for a file that exists, lies in the archive folder or does not fit.
fn check_target(context: &Context, archive: &OpenArchive, to: &Path, folder: &Path) -> Result<()> {
    if to.symlink_metadata().is_ok() {
        return Err(Error::usage(format!("{} already exists", to.display())).hint("name another file with --to"));
    }
    if archive_folder::contains(&context.home, folder) {
        let (to, backups) = (to.display(), context.home.backups().display());
        return Err(Error::usage(format!("the file {to} would lie in the archive folder {backups}"))
            .hint("name a file elsewhere with --to"));
    }
    let (free, needed) = (archive_folder::free_bytes(folder)?, archive.size());
    if needed > free {
        let (free, needed) = (render::bytes(free), render::bytes(needed));
        let message = format!("{} needs {needed}, and {} has {free} free", to.display(), folder.display());
        return Err(Error::new(ErrorKind::DiskFull, message).hint("name a file on another disk with --to"));
    }
    Ok(())
}

fn copy(context: &Context, archive: &OpenArchive, out: &mut dyn Write, to: &Path, signals: &Signals) -> Result<Copied> {
    let observer = TerminalObserver::new("exporting", context.quiet);
    let started = context.clock.monotonic();
    let mut next = started + PROGRESS_INTERVAL;
    let bytes_total = Some(archive.size());
    let copied = browse::copy_archive(archive, out, to, &signals.cancel, &mut |bytes| {
        let now = context.clock.monotonic();
        if now >= next {
            next = now + PROGRESS_INTERVAL;
            let elapsed = now.saturating_sub(started);
            observer.progress(&Progress { bytes, bytes_total, elapsed, ..Progress::default() });
        }
    });
    observer.finish();
    copied
}

//! Restores from archives. One thread creates folders and links and decides what happens to each member; several
//! threads write small files. Folders get their mode and times last. A restore that was interrupted is finished by
//! running it again: a file that has its final name, size and time is complete.

mod batches;
mod create;
mod digests;
mod existing;
mod interruption;
mod left_out;
mod links;
mod options;
mod report;
mod restorer;
mod state;
mod target_paths;
mod write_file;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use self::batches::BatchQueue;
pub use self::options::{Action, Options, Overwrite, RestoreContext};
pub use self::report::{Paths, Report};
use self::restorer::Restorer;
use self::state::RestoreState;
use crate::browse::{OpenArchive, Selection};
use crate::confined::{self, ConfinedFolder, FolderEnd, FolderTree, Privileges, TreeContext};
use crate::error::{Error, ErrorKind, Result};

/// Restores the members that `selection` selects.
///
/// Errors: `NotFound` for a path that is not in the archive; `DiskFull`; `Interrupted`; `Damage` for a file that is not
/// an archive; `Failed` for a target that cannot be created or written. Problems with single members are in the report.
pub fn restore(
    archive: &OpenArchive,
    selection: &Selection,
    options: &Options,
    context: &mut RestoreContext<'_>,
) -> Result<Report> {
    check_has_digests(archive, options)?;
    raise_open_file_limit();
    let target = open_target(options)?;
    let state = Arc::new(RestoreState::default());
    let privileges = Privileges::of_process(options.setuid);
    let mut tree = FolderTree::new(tree_context(&state, privileges, options.dry_run));
    target.into_iter().for_each(|target| tree.set_confined(target));
    let result = std::thread::scope(|scope| {
        let batches = BatchQueue::start(scope, options.threads, &state, privileges)?;
        let mut restorer = Restorer::new(archive, options, context, &state, privileges, tree, batches);
        let result = restorer.run(selection);
        if result.is_err() {
            state.abandon();
        }
        result.map(|()| restorer.into_tree())
    });
    // A full disk explains more than the errors that follow from it.
    if let Some(fatal) = state.take_fatal() {
        return Err(fatal);
    }
    let tree = match result {
        Err(error) if error.kind() == ErrorKind::Interrupted => return Err(state.interruption_error()),
        result => result?,
    };
    restorer::record_missing(selection, &state, context.observer);
    let target = tree.close();
    if context.cancel.is_cancelled() {
        return Err(state.interruption_error());
    }
    sync(target.as_ref(), options)?;
    // Closing the folders may have filled the disk, too.
    if let Some(fatal) = state.take_fatal() {
        return Err(fatal);
    }
    check_something_is_left(options, state.take_report())
}

/// Waits until the target is on disk, if that is requested.
fn sync(target: Option<&ConfinedFolder>, options: &Options) -> Result<()> {
    let Some(target) = target.filter(|_| options.sync && !options.dry_run) else { return Ok(()) };
    target
        .sync()
        .map_err(|error| error.hint("files may be missing or wrong on its disk: run again with --overwrite always"))
}

/// Fails if `strip` leaves nothing of any member.
fn check_something_is_left(options: &Options, report: Report) -> Result<Report> {
    let is_nothing_left = report.stripped > 0 && Report { stripped: 0, ..report.clone() }.is_empty();
    if is_nothing_left && report.missing.is_empty() {
        return Err(Error::usage(format!(
            "nothing is left to restore: --strip {} removes the whole name",
            options.strip
        ))
        .hint("use a smaller --strip; with -n it lists what would be restored"));
    }
    Ok(report)
}

fn tree_context(state: &Arc<RestoreState>, privileges: Privileges, is_dry_run: bool) -> TreeContext {
    let (completed, is_abandoned) = (state.completed.clone(), state.is_abandoned.clone());
    let state = state.clone();
    let on_finished = Box::new(move |path: &_, result| match result {
        FolderEnd::Finished(loss) => state.record_loss(path, loss),
        FolderEnd::Failed(error) => state.record_failure(path, &error),
        FolderEnd::Unfinished => {
            state.with_interruption(|interruption| interruption.unfinished.add(path.as_bytes(), String::new()));
        }
    });
    TreeContext { completed, is_abandoned, on_finished, privileges, is_dry_run }
}

/// Opens the target; returns `None` if it does not exist.
fn open_target(options: &Options) -> Result<Option<ConfinedFolder>> {
    let to = &options.to;
    match std::fs::metadata(to) {
        Ok(stat) if !stat.is_dir() => {
            Err(Error::failed(format!("{} is not a folder", to.display())).hint("name another with --to"))
        }
        Ok(_) => open_existing_target(options).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(not_writable(to, e)),
    }
}

/// Creates the target, and opens it.
fn create_target(options: &Options) -> Result<ConfinedFolder> {
    std::fs::create_dir_all(&options.to).map_err(|e| not_writable(&options.to, e))?;
    open_existing_target(options)
}

fn open_existing_target(options: &Options) -> Result<ConfinedFolder> {
    let to = &options.to;
    if !options.dry_run {
        check_is_writable(options)?;
    }
    let target = ConfinedFolder::open(to)?;
    if !options.dry_run {
        confined::lock_folder(&target.root()).map_err(Error::io("remove temporary files in the target", to))?;
    }
    Ok(if options.without_openat2 { target.without_openat2() } else { target })
}

/// Checks that contents can be compared if that is requested.
fn check_has_digests(archive: &OpenArchive, options: &Options) -> Result<()> {
    if !options.compare_content || archive.catalog_page(0)?.is_some() {
        return Ok(());
    }
    let file = archive.path().display();
    Err(Error::usage(format!("the catalog has no digests of {file}, so that no content can be compared"))
        .hint("restore with --overwrite always, or to another folder with --to"))
}

/// Checks the folder in which the restore begins to write. With `rename_root` that is a folder in the target if it
/// exists: the folder above a home or a mount point need not be writable.
fn check_is_writable(options: &Options) -> Result<()> {
    use rustix::fs::Access;
    let root = options.rename_root.as_ref().map(|name| options.to.join(OsStr::from_bytes(name)));
    let root = root.filter(|root| std::fs::symlink_metadata(root).is_ok_and(|stat| stat.is_dir()));
    let folder = root.as_ref().unwrap_or(&options.to);
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| not_writable(folder, e.into()))
}

/// Returns the error for a folder in which nothing can be created, with the way out that fits its cause.
fn not_writable(folder: &Path, error: std::io::Error) -> Error {
    let hint = match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem => {
            "mount its file system writable, or restore to another folder with --to".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => {
            let existing = folder.ancestors().find_map(|path| std::fs::metadata(path).ok().map(|stat| (path, stat)));
            let owner = existing.map_or_else(String::new, |(path, stat)| {
                format!("{} belongs to user {}: ", path.display(), stat.uid())
            });
            format!("{owner}run as its owner or as root, or restore to another folder with --to")
        }
        std::io::ErrorKind::NotADirectory => {
            return Error::io("restore to", folder)(error)
                .hint("a part of this path is a file: name another with --to");
        }
        std::io::ErrorKind::AlreadyExists => {
            let message =
                format!("cannot restore to {}: it is a link to a folder that does not exist", folder.display());
            return Error::failed(message).hint("make that folder, or name another with --to");
        }
        _ => return Error::io("restore to", folder)(error).hint("name another folder with --to"),
    };
    Error::failed(format!("the target {} is not writable", folder.display())).because(error).hint(hint)
}

/// Raises the limit of open files to its maximum: a deep tree needs a descriptor for each folder above the current one.
fn raise_open_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it is refused, only very deep trees fail, with an error that names the limit.
    let _ = setrlimit(Resource::Nofile, limit);
}

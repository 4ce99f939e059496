//! `restore`: restores files from an archive.

mod report;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};

use super::render::{self, Format};
use super::signals::Signals;
use super::terminal::TerminalObserver;
use super::{Context, select};
use crate::archive_folder;
use crate::browse::{Globs, OpenArchive, Selection};
use crate::error::{Error, ErrorKind, Result};
use crate::member::MemberPath;
use crate::restore::{self, Action, Options, Overwrite, Report, RestoreContext};
use crate::schedule::parse_when;
use report::{print_report, report_document};

const AFTER_HELP: &str = "\
Without this program: archives are plain tar files.
  tar -xpf FILE -C DIR                      everything
  tar -xpf FILE -C DIR docs/letters         one folder or file
  tar --xattrs --xattrs-include='*' -xpf FILE -C DIR    with extended attributes and ACLs

After an interruption, run the same command again: it restores the rest.
Exit codes: 0 all restored, 3 files were not replaced or owners not set, 4 members are damaged or refused,
130 or 143 interrupted.";

#[derive(Args)]
#[command(after_help = AFTER_HELP, group = ArgGroup::new("target").required(true).args(["to", "in_place"]))]
pub struct RestoreArgs {
    /// A schedule (its newest good archive), an archive (@17), or any tar file
    what: OsString,
    /// Files and folders: names in the archive, or original absolute paths [default: everything]
    path: Vec<PathBuf>,
    /// Restore below this folder
    #[arg(long, visible_alias = "target", value_name = "DIR")]
    to: Option<PathBuf>,
    /// Restore to the original place
    #[arg(long, conflicts_with = "strip")]
    in_place: bool,
    /// Restore from this archive of the schedule: @17
    #[arg(long, value_name = "@RUN", conflicts_with = "at")]
    archive: Option<String>,
    /// Restore from the newest archive made by then: 2026-11-20, "2026-11-20 14:00", yesterday, 3d
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Whether to replace existing files that differ
    #[arg(long, value_enum, default_value_t = OverwriteArg::Never, value_name = "WHEN")]
    overwrite: OverwriteArg,
    /// How to tell whether an existing file has the content of the archive
    #[arg(long, value_enum, default_value_t = CompareArg::Time, value_name = "WHAT")]
    compare: CompareArg,
    /// Print what would happen at each path, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Remove this many leading folders from every name
    #[arg(long, value_name = "N", default_value_t = 0)]
    strip: usize,
    /// Restore only what matches; a pattern with / matches whole paths, else names
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Do not restore what matches
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Restore setuid and setgid bits and capabilities
    #[arg(long)]
    setuid: bool,
    /// Create devices (root only)
    #[arg(long)]
    devices: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum OverwriteArg {
    /// Do not replace them; list them
    Never,
    /// Replace them unless size and time are equal; correct owner, mode and attributes
    IfChanged,
    /// Replace them
    Always,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompareArg {
    /// By its size and modification time
    Time,
    /// By its digest, too: reads the file
    Content,
}

/// What happens at a path.
type PlannedAction = (Action, Vec<u8>);

pub fn cmd_restore(context: &Context, args: &RestoreArgs) -> Result<u8> {
    let include = Globs::parse(&args.include)?;
    let exclude = Globs::parse(&args.exclude)?;
    let at = args.at.as_deref().map(|text| parse_when(text, context.zone, context.now())).transpose()?;
    let archive = select::archive(context, &args.what, args.archive.as_deref(), at)?;
    let paths = args.path.iter().map(|path| archive.member_path(path)).collect::<Result<Vec<_>>>()?;
    let selection = Selection::new(paths, include, exclude);
    let options = restore_options(args, &archive)?;
    if args.devices && !rustix::process::geteuid().is_root() {
        context.warn("--devices has an effect for root only");
    }
    refuse_archive_folder(context, &options.to)?;
    let (report, plan) = restore_members(context, args, &archive, &selection, &options)?;
    let missing = (report.outcome() == Some(ErrorKind::NotFound)).then(|| archive.not_found(&report.missing));
    if report.is_empty() && !selection.is_everything() {
        return Err(missing.unwrap_or_else(|| nothing_matches(args, &archive)));
    }
    if context.format == Format::Json {
        render::print_json(&report_document(args, &archive, &options.to, &report, &plan, missing.as_ref()))?;
    } else {
        print_report(context, args, &archive, &options.to, &report);
    }
    missing.map_or(Ok(report.outcome().map_or(0, ErrorKind::exit_code)), Err)
}

fn nothing_matches(args: &RestoreArgs, archive: &OpenArchive) -> Error {
    Error::not_found(format!("nothing in {} matches", archive.path().display()))
        .hint(format!("list its members: `backup-manager ls {}`", args.what.display()))
}

/// Restores the selected members. Prints what happens at each path if it is a dry run or verbose; for JSON, a dry run
/// returns it.
fn restore_members(
    context: &Context,
    args: &RestoreArgs,
    archive: &OpenArchive,
    selection: &Selection,
    options: &Options,
) -> Result<(Report, Vec<PlannedAction>)> {
    let signals = Signals::cancel_on_first()?;
    let observer = TerminalObserver::new("restoring", context.quiet);
    let mut plan = Vec::new();
    let mut printed = Ok(());
    let mut on_action = |action, path: &MemberPath| {
        if context.format == Format::Json && args.dry_run {
            plan.push((action, path.as_bytes().to_owned()));
        } else if args.dry_run {
            let path = render::printable_bytes(path.as_bytes());
            let line = [word(action).as_bytes(), b"\t", &path, b"\n"].concat();
            if printed.is_ok() {
                printed = render::print_bytes(&line);
            }
        } else if context.verbose {
            render::print_stderr(&format!("{} {}", word(action), render::printable(path.as_bytes())));
        }
    };
    let mut restore_context = RestoreContext {
        clock: &*context.clock,
        observer: &observer,
        cancel: &signals.cancel,
        on_action: &mut on_action,
    };
    let result = restore::restore(archive, selection, options, &mut restore_context);
    observer.finish();
    let report = result.map_err(|error| signals.classify(error))?;
    printed.map(|()| (report, plan))
}

/// Fails if the target lies in the archive folder: files there would be taken for archives, and a restore locks its
/// target, while runs wait for the lock of the archive folder.
fn refuse_archive_folder(context: &Context, to: &Path) -> Result<()> {
    if archive_folder::contains(&context.home, to) {
        let (to, backups) = (to.display(), context.home.backups().display());
        return Err(Error::usage(format!("the target {to} lies in the archive folder {backups}"))
            .hint("name another folder with --to"));
    }
    Ok(())
}

fn restore_options(args: &RestoreArgs, archive: &OpenArchive) -> Result<Options> {
    let overwrite = match args.overwrite {
        OverwriteArg::Never => Overwrite::Never,
        OverwriteArg::IfChanged => Overwrite::IfChanged,
        OverwriteArg::Always => Overwrite::Always,
    };
    let target = target_options(args, archive)?;
    let compare_content = args.compare == CompareArg::Content;
    Ok(Options {
        overwrite,
        compare_content,
        dry_run: args.dry_run,
        setuid: args.setuid,
        devices: args.devices,
        ..target
    })
}

/// Returns options with the folder to restore to and how member names map to paths below it.
fn target_options(args: &RestoreArgs, archive: &OpenArchive) -> Result<Options> {
    if let Some(to) = &args.to {
        return Ok(Options { strip: args.strip, ..Options::to(to) });
    }
    let source = archive.source()?.filter(|source| source.is_absolute()).ok_or_else(|| {
        Error::usage(format!("{} does not record its original place", archive.path().display()))
            .hint("name a folder with --to")
    })?;
    Ok(match (source.parent(), source.file_name()) {
        (Some(parent), Some(name)) => Options { rename_root: Some(name.as_bytes().to_owned()), ..Options::to(parent) },
        _ => Options { strip: 1, ..Options::to(Path::new("/")) },
    })
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Replace => "replace",
        Action::Keep => "same",
        Action::Correct => "correct",
        Action::Conflict => "conflict",
    }
}

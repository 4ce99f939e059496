//! `restore`: restores files from an archive.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;

use super::documents::{ErrorDocument, PathFields};
use super::render::{self, Format};
use super::signals::Signals;
use super::terminal::TerminalObserver;
use super::{Context, select};
use crate::archive_folder;
use crate::browse::{Globs, OpenArchive, Selection};
use crate::error::{Error, ErrorKind, Result};
use crate::member::MemberPath;
use crate::restore::{self, Action, Options, Overwrite, Paths, Report, RestoreContext};
use crate::schedule::parse_when;

const AFTER_HELP: &str = "\
Without this program: archives are plain tar files.
  tar -xpf FILE -C DIR                      everything
  tar -xpf FILE -C DIR docs/letters         one folder or file
  tar --xattrs --xattrs-include='*' -xpf FILE -C DIR    with extended attributes and ACLs

After an interruption, run the same command again: it restores the rest.
Exit codes: 0 all restored, 3 files were not replaced or owners not set, 4 members are damaged or refused,
130 or 143 interrupted.";

/// Paths of each list that are printed without `--verbose`.
const MAX_PRINTED_PATHS: usize = 20;

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
    if report.is_empty() && report.missing.is_empty() && !selection.is_everything() {
        let file = archive.path().display();
        return Err(Error::not_found(format!("nothing in {file} matches"))
            .hint(format!("list its members: `backup-manager ls {}`", args.what.display())));
    }
    let missing = (report.outcome() == Some(ErrorKind::NotFound)).then(|| archive.not_found(&report.missing));
    if context.format == Format::Json {
        render::print_json(&report_document(args, &archive, &options.to, &report, &plan, missing.as_ref()))?;
    } else {
        print_report(context, args, &archive, &options.to, &report);
    }
    missing.map_or(Ok(report.outcome().map_or(0, ErrorKind::exit_code)), Err)
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

/// Returns what to do about conflicts.
fn conflicts_hint(args: &RestoreArgs) -> String {
    let hint = match args.overwrite {
        OverwriteArg::Always | OverwriteArg::IfChanged => {
            "move what is in the way elsewhere and run again, or restore to another folder"
        }
        OverwriteArg::Never => {
            "run again with --overwrite if-changed to replace files that differ and to correct owner, mode and \
             attributes, or with --overwrite always to replace all; move folders that are not empty elsewhere first"
        }
    };
    let strip = if args.strip > 0 { "; members that share a path need a smaller --strip" } else { "" };
    format!("{hint}{strip}")
}

/// Returns the lists of a report, each with its name and what to do next.
fn sections<'a>(args: &RestoreArgs, report: &'a Report) -> [(&'static str, &'a Paths, String); 8] {
    let again = conflicts_hint(args);
    let other =
        format!("restore them from another archive: `backup-manager find --versions PATH` ({})", args.what.display());
    [
        ("conflicts", &report.conflicts, again),
        (
            "refused",
            &report.refused,
            "nothing was written for them; do not trust the origin of this archive".to_owned(),
        ),
        ("damaged", &report.damaged, other),
        ("failed", &report.failed, "the system refused them; correct the cause and run again".to_owned()),
        ("devices", &report.devices, "run as root with --devices".to_owned()),
        (
            "attributes",
            &report.attributes,
            "run as root, on a file system that supports them, with --overwrite always".to_owned(),
        ),
        (
            "kept",
            &report.kept_attributes,
            "run as root or as their owner, on a file system that supports them".to_owned(),
        ),
        ("setuid", &report.setuid, "add --setuid --overwrite always if you want them".to_owned()),
    ]
}

fn paths_text(context: &Context, name: &str, paths: &Paths, next: &str) -> String {
    let mut text = format!("{name}: {}\n", paths.count);
    for (path, reason) in paths.list.iter().take(if context.verbose { usize::MAX } else { MAX_PRINTED_PATHS }) {
        text += &format!("  {}: {reason}\n", render::printable(path));
    }
    let more = paths.count.saturating_sub(MAX_PRINTED_PATHS as u64);
    if more > 0 && !context.verbose {
        text += &format!("  and {more} more (-v lists them)\n");
    }
    text + &format!("  next: {next}")
}

fn print_report(context: &Context, args: &RestoreArgs, archive: &OpenArchive, to: &Path, report: &Report) {
    for (name, paths, next) in sections(args, report) {
        if paths.count > 0 {
            let text = paths_text(context, name, paths, &next);
            log::warn!("restore of {}: {text}", archive.path().display());
            render::print_stderr(&text);
        }
    }
    print_warnings(context, args, archive, report);
    let done = summary(args, report);
    context.print_info(&format!("{done} to {} from {}", to.display(), archive.path().display()));
}

/// Prints what applies to the restore as a whole.
fn print_warnings(context: &Context, args: &RestoreArgs, archive: &OpenArchive, report: &Report) {
    if let Some(reason) = &report.undecodable {
        let text = format!("damaged: {}: {reason}\n  next: restore from another archive", archive.path().display());
        log::warn!("restore of {}", text);
        render::print_stderr(&text);
    }
    if report.owners > 0 {
        context.warn(&format!(
            "{}: the owner could not be set; run as root, --overwrite always",
            render::count(report.owners, "member")
        ));
    }
    if report.kept_owners > 0 {
        context.warn(&format!(
            "{} kept with another owner, which only root can change",
            render::count(report.kept_owners, "member")
        ));
    }
    if report.absolute > 0 {
        context.warn(&format!("{} absolute: restored below the target", render::count(report.absolute, "name")));
    }
    if report.bad_times > 0 {
        context.warn(&format!(
            "{} with a broken time: that of the header was set",
            render::count(report.bad_times, "member")
        ));
    }
    if report.stripped > 0 {
        let members = render::count(report.stripped, "member");
        context.warn(&format!("{members} not restored: --strip {} removes the whole name", args.strip));
    }
}

/// Returns what was done, in one line.
fn summary(args: &RestoreArgs, report: &Report) -> String {
    let what =
        format!("{}, {}", render::count(report.extent.members, "member"), render::bytes(report.extent.content_bytes));
    let kept = if report.unchanged > 0 { format!(", {} unchanged", report.unchanged) } else { String::new() };
    let corrected = match report.corrected {
        0 => String::new(),
        count => format!(", owner, mode or attributes of {} corrected", render::count(count, "member")),
    };
    let verb = if args.dry_run { "would restore" } else { "restored" };
    format!("{verb} {what}{kept}{corrected}")
}

/// What `restore --json` prints.
#[derive(Serialize)]
struct RestoreDocument {
    /// `archive`: the file that was restored from.
    #[serde(flatten)]
    archive: PathFields,
    /// `to`: the target folder.
    #[serde(flatten)]
    to: PathFields,
    /// Members, files and bytes that were restored.
    members: u64,
    files: u64,
    bytes: u64,
    /// Members that existed with the same content.
    unchanged: u64,
    /// Members that existed, of which owner, mode or attributes were corrected.
    corrected: u64,
    owners_not_set: u64,
    /// Members that existed, with an owner that this process cannot change.
    kept_owners: u64,
    /// Absolute names, which were restored below the target.
    absolute_names: u64,
    /// Members whose time in a pax header is none: they got that of the header block.
    bad_times: u64,
    /// Members of whose name `--strip` left nothing.
    stripped_away: u64,
    conflicts: PathsDocument,
    refused: PathsDocument,
    damaged: PathsDocument,
    /// Only if the compressed file does not decode to its end: why. Any member may be wrong then.
    #[serde(skip_serializing_if = "Option::is_none")]
    undecodable: Option<String>,
    failed: PathsDocument,
    devices: PathsDocument,
    attributes: PathsDocument,
    /// Members that existed, with attributes, ACLs or a mode that this process cannot set.
    kept_attributes: PathsDocument,
    setuid: PathsDocument,
    /// Only of a dry run: what would be done with each member.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Vec<ActionDocument>>,
    /// Only if paths on the command line are not in the archive; the others were restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDocument>,
}

/// Paths that share a fate. The list is cut when it is long; `count` is the whole number.
#[derive(Serialize)]
struct PathsDocument {
    count: u64,
    list: Vec<ReasonDocument>,
}

#[derive(Serialize)]
struct ReasonDocument {
    /// `path`: the path in the archive.
    #[serde(flatten)]
    path: PathFields,
    reason: String,
}

#[derive(Serialize)]
struct ActionDocument {
    /// `path`: the path in the archive.
    #[serde(flatten)]
    path: PathFields,
    /// `create`, `replace`, `same`, `correct` (owner, mode, attributes) or `conflict`.
    action: &'static str,
}

fn report_document(
    args: &RestoreArgs,
    archive: &OpenArchive,
    to: &Path,
    report: &Report,
    plan: &[PlannedAction],
    error: Option<&Error>,
) -> RestoreDocument {
    let actions =
        plan.iter().map(|(action, path)| ActionDocument { path: PathFields::new("path", path), action: word(*action) });
    RestoreDocument {
        archive: PathFields::new("archive", archive.path().as_os_str().as_bytes()),
        to: PathFields::new("to", to.as_os_str().as_bytes()),
        members: report.extent.members,
        files: report.extent.files,
        bytes: report.extent.content_bytes,
        unchanged: report.unchanged,
        corrected: report.corrected,
        owners_not_set: report.owners,
        kept_owners: report.kept_owners,
        absolute_names: report.absolute,
        bad_times: report.bad_times,
        stripped_away: report.stripped,
        conflicts: paths_document(&report.conflicts),
        refused: paths_document(&report.refused),
        damaged: paths_document(&report.damaged),
        undecodable: report.undecodable.clone(),
        failed: paths_document(&report.failed),
        devices: paths_document(&report.devices),
        attributes: paths_document(&report.attributes),
        kept_attributes: paths_document(&report.kept_attributes),
        setuid: paths_document(&report.setuid),
        plan: args.dry_run.then(|| actions.collect()),
        error: error.map(ErrorDocument::from),
    }
}

fn paths_document(paths: &Paths) -> PathsDocument {
    let list = paths.list.iter();
    PathsDocument {
        count: paths.count,
        list: list
            .map(|(path, reason)| ReasonDocument { path: PathFields::new("path", path), reason: reason.to_string() })
            .collect(),
    }
}

//! What `restore` reports: text for people, and the JSON document.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use super::{OverwriteArg, PlannedAction, RestoreArgs, word};
use crate::browse::OpenArchive;
use crate::cli::documents::{ErrorDocument, PathFields};
use crate::cli::{Context, render};
use crate::error::Error;
use crate::restore::{Paths, Report};

/// Paths of each list that are printed without `--verbose`.
const MAX_PRINTED_PATHS: usize = 20;

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

/// Prints the lists of a report, each with what to do next, and what was done.
pub(super) fn print_report(context: &Context, args: &RestoreArgs, archive: &OpenArchive, to: &Path, report: &Report) {
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
pub(super) struct RestoreDocument {
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

/// Returns the document of a report; `error` names the paths on the command line that are not in the archive.
pub(super) fn report_document(
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

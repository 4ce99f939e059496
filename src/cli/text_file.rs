//! `import`, and `export` of schedules: in the text file, in JSON, or as a settings file.

use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Context;
use super::documents::PathFields;
use super::render::{self, Format};
use crate::durable::{self, FolderLock, PersistMethod};
use crate::error::{Error, ErrorKind, Result};
use crate::import_export::{self, ExportedText, Imported};
use crate::schedule::text_file;
use crate::words::shell_word;

/// The form of a file of schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FileFormat {
    /// path;hh:mm;name a line
    Text,
    /// Everything, with all options
    Json,
    /// The same as a settings file, which `apply` reads
    Toml,
}

#[derive(Args)]
pub struct ImportArgs {
    /// File, or - for standard input [default: HOME/backup_schedules.txt]
    file: Option<PathBuf>,
    /// Also delete schedules that the file lacks
    #[arg(long)]
    replace: bool,
    /// Form of the file
    #[arg(long, value_enum, default_value = "text")]
    format: FileFormat,
}

/// What `export FILE --json` prints.
#[derive(Serialize)]
struct ExportDocument {
    /// `file`: the file that was written.
    #[serde(flatten)]
    file: PathFields,
    /// How many schedules are in it.
    schedules: usize,
    /// Schedules that are not in it.
    left_out: Vec<LeftOutDocument>,
    /// Schedules that are in it without some of their options.
    without_options: Vec<WithoutOptionsDocument>,
}

/// A schedule that the text file cannot hold.
#[derive(Serialize)]
struct LeftOutDocument {
    name: String,
    reason: String,
}

/// A schedule of which the text file cannot hold all options.
#[derive(Serialize)]
struct WithoutOptionsDocument {
    name: String,
    options: Vec<&'static str>,
}

/// What `import --json` prints.
#[derive(Serialize)]
struct ImportDocument<'a> {
    /// Names of new schedules.
    created: &'a [String],
    /// Names of schedules that changed.
    changed: &'a [String],
    /// Names of schedules that were deleted.
    deleted: &'a [String],
    /// Those of `created` that were deleted before: their history and archives belong to them again.
    revived: &'a [String],
    /// Those of `revived` that were paused, and still are.
    paused: &'a [String],
    /// How many schedules were already as the file has them.
    unchanged: usize,
    /// Names of schedules that got commands, which are held until `accept NAME --commands`.
    with_commands: &'a [String],
}

pub fn cmd_import(context: &Context, args: &ImportArgs) -> Result<u8> {
    let path = args.file.clone().unwrap_or_else(|| context.home.text_file());
    let (name, bytes) = read_input(&path)?;
    // Parsed first, so that a bad file does not create a database.
    let entries = match args.format {
        FileFormat::Text => Some(import_export::parse_text(&bytes, &name)?),
        FileFormat::Json => None,
        FileFormat::Toml => {
            return Err(Error::usage("a settings file is not imported: its schedules are managed by it")
                .hint(format!("backup-manager apply {}", shell_word(&path.display().to_string()))));
        }
    };
    if args.replace && path == Path::new("-") && bytes.trim_ascii().is_empty() {
        // As from a command in a pipe that failed.
        return Err(Error::usage("standard input is empty: --replace would delete every schedule")
            .hint("pass a file; to delete schedules, name them: backup-manager delete NAME"));
    }
    let store = context.open_or_create()?;
    let (zone, now) = (context.default_zone(&store)?, context.now());
    let imported = match &entries {
        Some(entries) => import_export::import_text(&store, entries, args.replace, zone, now)?,
        None => import_export::import_json(&store, &bytes, &name, args.replace, zone, now)?,
    };
    if let Some(line) = entries.as_ref().and_then(|_| text_file::unfinished_line(&bytes, &[])) {
        context.warn(&format!("{name} may be cut off: its last line, \"{line}\", has no newline at its end"));
    }
    // JSON holds all options, so those of the document count.
    let kept = if entries.is_some() { "its options, history and archives" } else { "its history and archives" };
    report(context, &name, kept, &imported)?;
    Ok(0)
}

fn read_input(path: &Path) -> Result<(String, Vec<u8>)> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map_err(Error::io("read", "standard input"))?;
        return Ok(("standard input".to_owned(), bytes));
    }
    let bytes = fs::read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("the text file {} does not exist", path.display()))
            .hint("give its path: backup-manager import FILE"),
        io::ErrorKind::IsADirectory => Error::usage(format!("{} is a folder", path.display()))
            .hint("give the path of the text file: backup-manager import FILE"),
        _ => Error::io("read", path)(e),
    })?;
    Ok((path.display().to_string(), bytes))
}

fn report(context: &Context, name: &str, kept: &str, imported: &Imported) -> Result<()> {
    if context.format == Format::Json {
        return render::print_json(&ImportDocument {
            created: &imported.created,
            changed: &imported.changed,
            deleted: &imported.deleted,
            revived: &imported.revived,
            paused: &imported.paused,
            unchanged: imported.unchanged,
            with_commands: &imported.with_commands,
        });
    }
    for (word, names) in [("new", &imported.created), ("changed", &imported.changed), ("deleted", &imported.deleted)] {
        for schedule in names {
            context.print_info(&format!("{word}: {schedule}"));
        }
    }
    for schedule in &imported.revived {
        context.print_info(&format!("{schedule} was deleted before: {kept} belong to it, and its first prune waits"));
    }
    for schedule in &imported.paused {
        let resume = format!("`backup-manager resume {}`", shell_word(schedule));
        context.print_info(&format!("{schedule} is paused, as it was: to run it, {resume}"));
    }
    for schedule in &imported.with_commands {
        let accept = format!("`backup-manager accept {} --commands`", shell_word(schedule));
        context.print_info(&format!("{schedule} has commands, which are held: inspect them, then {accept}"));
    }
    let total = imported.created.len() + imported.changed.len() + imported.unchanged;
    context.print_info(&format!(
        "{name}: {}, {} new, {} changed, {} deleted, {} unchanged",
        render::count(total as u64, "schedule"),
        imported.created.len(),
        imported.changed.len(),
        imported.deleted.len(),
        imported.unchanged
    ));
    Ok(())
}

/// Returns the form of the file of schedules: the one that is named, else the one that fits.
fn chosen_format(format: Option<FileFormat>, file: Option<&Path>, is_json: bool) -> Result<FileFormat> {
    match (format, file) {
        (Some(FileFormat::Text | FileFormat::Toml), None) if is_json => {
            Err(Error::usage("--json prints one JSON document, and a file of that form is none")
                .hint("name a file, or leave out --format"))
        }
        (Some(format), _) => Ok(format),
        (None, None) if is_json => Ok(FileFormat::Json),
        (None, _) => Ok(FileFormat::Text),
    }
}

/// Writes all schedules to a file, or to standard output; an existing file is replaced only with `force`.
pub(super) fn export_schedules(
    context: &Context,
    file: Option<&Path>,
    format: Option<FileFormat>,
    force: bool,
) -> Result<u8> {
    let is_json = context.format == Format::Json;
    let format = chosen_format(format, file, is_json)?;
    let store = context.open()?;
    let rows = store.schedules()?;
    let whole = |text| ExportedText { text, ..ExportedText::default() };
    let exported = match format {
        FileFormat::Text => import_export::export_text(&store, &rows)?,
        FileFormat::Json => whole(import_export::export_json(&store, &rows)?),
        FileFormat::Toml => whole(import_export::export_toml(&store, &rows)?),
    };
    match file {
        None => {
            render::reserve_stdout();
            render::print_bytes(&exported.text)?;
        }
        Some(file) => write_export(context, file, &exported.text, force)?,
    }
    for (name, reason) in &exported.left_out {
        context.warn(&format!("{name} is not in the text file: {reason} (`export --format json` holds everything)"));
    }
    for (name, options) in &exported.without_options {
        let options = options.join(", ");
        context
            .warn(&format!("{name} is in the text file without: {options} (`export --format json` holds everything)"));
    }
    let is_whole = exported.left_out.is_empty() && exported.without_options.is_empty();
    if let Some(file) = file.filter(|_| is_json) {
        render::print_json(&export_document(file, rows.len(), exported))?;
    }
    Ok(if is_whole { 0 } else { ErrorKind::Incomplete.exit_code() })
}

fn write_export(context: &Context, file: &Path, bytes: &[u8], force: bool) -> Result<()> {
    if !force && file.symlink_metadata().is_ok() {
        return Err(Error::usage(format!("{} already exists", file.display()))
            .hint("replace it with --force, or name another file"));
    }
    let absolute = std::path::absolute(file).map_err(Error::io("find", file))?;
    let _lock = absolute.parent().and_then(FolderLock::try_acquire);
    let how = match durable::write_file(&absolute, bytes, context.home.file_mode(), force)? {
        PersistMethod::Renamed => "",
        PersistMethod::WrittenInPlace => " in place, since it is a mount point",
    };
    context.print_info(&format!("wrote {}{how}", file.display()));
    Ok(())
}

fn export_document(file: &Path, schedules: usize, exported: ExportedText) -> ExportDocument {
    ExportDocument {
        file: PathFields::new("file", file.as_os_str().as_bytes()),
        schedules: schedules - exported.left_out.len(),
        left_out: exported.left_out.into_iter().map(|(name, reason)| LeftOutDocument { name, reason }).collect(),
        without_options: exported
            .without_options
            .into_iter()
            .map(|(name, options)| WithoutOptionsDocument { name, options })
            .collect(),
    }
}

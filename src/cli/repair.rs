//! `repair`: writes damaged parts of archives anew, with equal ones of other archives.

use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde::Serialize;

use super::documents::{ErrorDocument, PathFields};
use super::render::{self, Format};
use super::signals::Signals;
use super::{Context, config, select, worker};
use crate::error::{ErrorKind, Result};
use crate::maintenance::repair::{self, RepairContext, Repaired};
use crate::schedule::Layout;
use crate::store::{Archive, Health};
use crate::words::shell_word;

const AFTER_HELP: &str = "\
A repair reads the archives that are recorded as damaged, and searches the others for parts with the same bytes.
Archives that share a damaged part are all repaired. A file is replaced as a whole, once its copy was read back.
With -n no file changes; what is found is recorded, as by `verify`.

Examples:
  backup-manager repair docs -n    # what of docs can be repaired
  backup-manager repair            # repair all archives";

#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct RepairArgs {
    /// Schedules or archives (@17) [default: every archive]
    #[arg(value_name = "NAME|@RUN")]
    what: Vec<String>,
    /// Print what can be repaired; change no file
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Decoder threads [default: cores]
    #[arg(long, value_name = "N", value_parser = config::parse_threads)]
    threads: Option<usize>,
}

/// What `repair --json` prints of each archive that was damaged.
#[derive(Serialize)]
struct RepairDocument {
    /// The run that made it.
    run: i64,
    /// Name of its schedule.
    name: String,
    /// `path`: its file.
    #[serde(flatten)]
    path: PathFields,
    #[serde(flatten)]
    result: RepairResultDocument,
}

/// What was done, or why nothing.
#[derive(Serialize)]
#[serde(untagged)]
enum RepairResultDocument {
    Done {
        /// Whether nothing is damaged any more; false after a dry run.
        repaired: bool,
        /// How many of its parts were damaged: chunks, its trailer and its index.
        damaged_parts: u64,
        /// How many of these have the bytes that were written, which decode to other content.
        undecodable_parts: u64,
        /// For how many of the damaged parts other archives or the catalog have the right bytes.
        repairable_parts: u64,
        /// Whether its index was replaced or, by a dry run, could be.
        index_replaced: bool,
        health: &'static str,
        /// What is wrong with the archive as a whole.
        structure: Vec<String>,
        /// Members whose bytes are not those that were written.
        damaged_members: Vec<PathFields>,
    },
    Failed {
        error: String,
        failure: ErrorDocument,
    },
}

pub fn cmd_repair(context: &Context, args: &RepairArgs) -> Result<u8> {
    let store = context.open()?;
    if !args.dry_run {
        // While a run goes on, nothing is repaired that it may refer to.
        worker::recover_if_needed(context, &store)?;
    }
    let signals = Signals::cancel_on_first()?;
    let archives = select::archives(&store, &args.what)?;
    let repairing = RepairContext {
        home: &context.home,
        store: &store,
        now: context.now(),
        threads: config::threads(&store, args.threads)?,
        cancel: &signals.cancel,
        dry_run: args.dry_run,
    };
    let (mut documents, mut code) = (Vec::new(), 0);
    let repaired = repair::repair(&repairing, &archives, &mut |archive, result| {
        let result = result.map_err(|error| signals.classify(error));
        code = worse(code, exit_code(&result));
        print_result(context, archive, &result)?;
        documents.push(document(context, archive, &result));
        Ok(())
    });
    repaired.map_err(|error| signals.classify(error))?;
    context.refresh_stable_links(&store, &store.schedules()?)?;
    if context.format == Format::Json {
        render::print_json(&documents)?;
    } else if documents.is_empty() {
        context.print_info("no archive is recorded as damaged: `backup-manager verify` reads them");
    }
    Ok(code)
}

/// Returns the exit code of several results: damage that is left counts more than what failed.
fn worse(code: u8, other: u8) -> u8 {
    if code == 0 || other == ErrorKind::Damage.exit_code() { other } else { code }
}

fn exit_code(result: &Result<Repaired>) -> u8 {
    match result {
        Ok(repaired) if repaired.is_whole() => 0,
        Ok(_) => ErrorKind::Damage.exit_code(),
        Err(error) => error.kind().exit_code(),
    }
}

fn print_result(context: &Context, archive: &Archive, result: &Result<Repaired>) -> Result<()> {
    let repaired = match result {
        Ok(repaired) => repaired,
        Err(error) => {
            super::report(error);
            return Ok(());
        }
    };
    if context.format == Format::Json {
        return Ok(());
    }
    let path = context.home.backups().join(&archive.file_name);
    let path = render::printable(path.as_os_str().as_bytes());
    let parts = render::count(repaired.damaged_parts, "damaged part");
    if repaired.is_whole() {
        let text = match (repaired.index_replaced, repaired.dry_run) {
            (true, true) => format!("index can be replaced: {path}"),
            (true, false) => format!("index replaced: {path}"),
            (false, true) => format!("can be repaired: {path} ({parts})"),
            (false, false) => format!("repaired: {path} ({parts})"),
        };
        return if context.quiet { Ok(()) } else { render::print_line(&text) };
    }
    render::print(&text_of_rest(archive, repaired, &path))
}

/// Returns what is damaged still, and the next step.
fn text_of_rest(archive: &Archive, repaired: &Repaired, path: &str) -> String {
    let Repaired { damaged_parts, undecodable_parts, repairable_parts, index_replaced, findings, .. } = repaired;
    let mut text = format!("{}: {path}\n", findings.health.as_str());
    if *index_replaced {
        text += "  its index was replaced\n";
    }
    let (found, damaged) = (repairable_parts - u64::from(*index_replaced), damaged_parts - u64::from(*index_replaced));
    if damaged > 0 {
        text += &format!("  other archives have equal bytes for {found} of {damaged} damaged parts\n");
    }
    findings.structure.iter().for_each(|line| text += &format!("  {}\n", render::escape_control(line)));
    for member in &findings.damaged_members {
        text += &format!("  damaged member: {}\n", render::printable(member));
    }
    let name = shell_word(&archive.schedule_name);
    let next = format!("  next: `backup-manager run {name}` archives what the source still has");
    let run = archive.run;
    text + &match (findings.health, archive.layout) {
        (Health::Missing, Layout::Whole) => format!(
            "{next}; put the file back and verify it with `backup-manager verify @{run}`, or give it up with \
             `backup-manager forget @{run}`\n"
        ),
        _ if *undecodable_parts > 0 => format!(
            "  {undecodable_parts} of them: the bytes that were written decode to other content, which no equal bytes \
             repair\n{next}\n"
        ),
        _ => format!("{next}; then repair again\n"),
    }
}

fn document(context: &Context, archive: &Archive, result: &Result<Repaired>) -> RepairDocument {
    let path = context.home.backups().join(&archive.file_name);
    let result = match result {
        Ok(Repaired { damaged_parts, undecodable_parts, repairable_parts, index_replaced, findings, .. }) => {
            RepairResultDocument::Done {
                repaired: findings.is_good(),
                damaged_parts: *damaged_parts,
                undecodable_parts: *undecodable_parts,
                repairable_parts: *repairable_parts,
                index_replaced: *index_replaced,
                health: findings.health.as_str(),
                structure: findings.structure.clone(),
                damaged_members: findings.damaged_members.iter().map(|path| PathFields::new("path", path)).collect(),
            }
        }
        Err(error) => RepairResultDocument::Failed { error: error.to_string(), failure: error.into() },
    };
    RepairDocument {
        run: archive.run,
        name: archive.schedule_name.clone(),
        path: PathFields::new("path", path.as_os_str().as_bytes()),
        result,
    }
}

//! `drill`: tests a restore of the newest archive.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::render::{self, Format};
use super::results::Results;
use super::signals::Signals;
use super::terminal::TerminalObserver;
use super::{Context, config, select};
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::maintenance::drill::{self, DrillContext};
use crate::store::{ScheduleRow, Store};

#[derive(Args)]
pub struct DrillArgs {
    /// Schedules (name, or index in `list`) [default: all]
    schedule: Vec<String>,
    /// Folder to restore into [default: BACKUPS/.scratch]
    #[arg(long, value_name = "DIR", env = "BACKUP_SCRATCH")]
    scratch: Option<PathBuf>,
    /// Restore at most this many MiB of content
    #[arg(long, value_name = "MIB", default_value_t = drill::SAMPLE_BYTES >> 20)]
    size: u64,
}

/// What `drill --json` prints of each restore test.
#[derive(Serialize)]
struct OutcomeDocument {
    /// Name of the schedule.
    name: String,
    /// The run whose archive was restored.
    run: i64,
    passed: bool,
    files: u64,
    content_bytes: u64,
    /// How the restored files differ from what was archived.
    differences: Vec<String>,
}

pub fn cmd_drill(context: &Context, args: &DrillArgs) -> Result<u8> {
    let store = context.open()?;
    let mut rows = select::schedules(&store, &args.schedule)?;
    if args.schedule.is_empty() {
        // Schedules without a good archive have nothing to restore yet.
        for row in store.schedules()? {
            if store.newest_good(row.id)?.is_some() {
                rows.push(row);
            }
        }
    }
    if rows.is_empty() {
        context.print_info("there is no good archive to restore");
    }
    let signals = Signals::cancel_on_first()?;
    let mut results = Results::new(rows.len());
    let mut has_failed = false;
    for row in &rows {
        let name = row.schedule.name.as_str();
        if let Some(kind) = signals.interruption() {
            results.skip(name, &Error::new(kind, format!("{name}: no restore test: interrupted")));
            continue;
        }
        match drill_schedule(context, args, &store, row, &signals.cancel) {
            Ok(document) => {
                has_failed |= !document.passed;
                results.add(document, 0);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => results.fail(name, signals.classify(error))?,
            // The others are tested all the same.
            Err(error) => results.fail(name, error.wrap(format!("{name}: no restore test")))?,
        }
    }
    let code = results.finish(context)?;
    Ok(match signals.interruption() {
        Some(kind) => kind.exit_code(),
        // Damage is the most severe result.
        None if has_failed => ErrorKind::Damage.exit_code(),
        None => code,
    })
}

/// Tests a restore of one schedule and prints the result.
fn drill_schedule(
    context: &Context,
    args: &DrillArgs,
    store: &Store,
    row: &ScheduleRow,
    cancel: &CancelToken,
) -> Result<OutcomeDocument> {
    let name = row.schedule.name.as_str();
    let observer = TerminalObserver::new(name, context.quiet);
    let drill_context = DrillContext {
        clock: &*context.clock,
        observer: &observer,
        cancel,
        threads: config::threads(store, None)?,
        sample_bytes: args.size.saturating_mul(1 << 20),
        scratch: args.scratch.as_deref(),
    };
    let result = drill::drill(&context.home, store, row, &drill_context);
    observer.finish();
    let outcome = result?;
    let run = outcome.archive.run;
    let passed = outcome.differences.is_empty();
    if passed {
        let text = format!("{name}: @{run} restored and compared, {}", outcome.describe());
        log::info!("{text}");
        if context.format != Format::Json && !context.quiet {
            render::print_line(&text)?;
        }
    } else {
        let why = outcome.differences.join("\n  ");
        let text = format!("the restore test of {name} failed: @{run} is not restored as it was archived\n  {why}");
        let hint = format!("check it with `backup-manager verify @{run}`");
        super::report(&Error::new(ErrorKind::Damage, text).hint(hint));
    }
    Ok(OutcomeDocument {
        name: name.to_owned(),
        run,
        passed,
        files: outcome.extent.files,
        content_bytes: outcome.extent.content_bytes,
        differences: outcome.differences,
    })
}

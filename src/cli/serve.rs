//! `serve`: the service in the foreground.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, Sender};

use super::documents::ServiceStateDocument;
use super::render::{self, Format};
use super::{Context, config, environment, logging, signals, worker};
use crate::archive_folder;
use crate::error::{Error, ErrorKind, Result};
use crate::hooks::Starter;
use crate::maintenance;
use crate::service::systemd::ServiceManager;
use crate::service::{Event, Options, Service};
use crate::store::{Access, Role, Store};

/// The line that a detached service prints to stdout once it serves.
pub const READY: &str = "ready";

/// How long the service waits before it opens a damaged database again.
const DAMAGED_DATABASE_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Options of a service that `serve` and `start` share.
#[derive(Args, Debug, Default)]
pub struct ServiceOptions {
    /// Maximum number of runs at once [default: 1]
    #[arg(long, value_name = "N", env = "BACKUP_WORKERS")]
    workers: Option<usize>,
    /// Encoder threads per run [default: cores]
    #[arg(long, value_name = "N", env = "BACKUP_THREADS")]
    threads: Option<usize>,
    /// Seconds that running work may take to finish after a request to stop [default: 30]
    #[arg(long, value_name = "SECONDS", env = "BACKUP_GRACE")]
    grace: Option<u64>,
    /// Niceness, 0 to 19; above 0 also the idle I/O class [default: 10]
    #[arg(long, value_name = "N", env = "BACKUP_NICE")]
    nice: Option<u8>,
    /// Verify every archive at least once in this many days; 0 = never [default: 30]
    #[arg(long, value_name = "DAYS", env = "BACKUP_REVERIFY_DAYS")]
    reverify_days: Option<u32>,
    /// Test a restore of each schedule every this many days; 0 = never [default: 7]
    #[arg(long, value_name = "DAYS", env = "BACKUP_DRILL_DAYS")]
    drill_days: Option<u32>,
    /// Keep runs without an archive in the history for this many days; 0 = forever [default: 400]
    #[arg(long, value_name = "DAYS", env = "BACKUP_HISTORY_DAYS")]
    history_days: Option<u32>,
    /// Folder that restore tests write to [default: BACKUPS/.scratch]
    #[arg(long, value_name = "DIR", env = "BACKUP_SCRATCH")]
    scratch: Option<PathBuf>,
    /// Read this text file at start and whenever it changes
    #[arg(long, value_name = "FILE", env = "BACKUP_IMPORT")]
    import: Option<PathBuf>,
    /// Apply this settings file at start and whenever it changes (see `apply`)
    #[arg(long, value_name = "FILE", env = "BACKUP_CONFIG")]
    config: Option<PathBuf>,
}

impl ServiceOptions {
    /// Fails for settings that no service could start with.
    pub fn check(&self, context: &Context) -> Result<()> {
        context.own_zone()?;
        environment::refuse_unknown_settings(std::env::vars_os().map(|(name, _)| name))?;
        for (flag, value) in [("--workers", self.workers), ("--threads", self.threads)] {
            if value.is_some_and(|n| !(1..=256).contains(&n)) {
                return Err(Error::usage(format!("{flag} takes a number from 1 to 256")));
            }
        }
        if self.nice.is_some_and(|nice| nice > 19) {
            return Err(Error::usage("--nice takes a number from 0 to 19"));
        }
        Ok(())
    }

    /// Returns the files to follow that do not exist, each with what it is.
    pub fn missing_files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [("text file", &self.import), ("settings file", &self.config)];
        let given = files.into_iter().filter_map(|(what, file)| Some((what, file.as_deref()?)));
        given.filter(|(_, file)| !file.is_file())
    }

    /// Returns these options as command-line arguments, with absolute paths.
    pub fn to_args(&self) -> Vec<OsString> {
        let numbers = [
            ("--workers", self.workers.map(|n| n.to_string())),
            ("--threads", self.threads.map(|n| n.to_string())),
            ("--grace", self.grace.map(|n| n.to_string())),
            ("--nice", self.nice.map(|n| n.to_string())),
            ("--reverify-days", self.reverify_days.map(|n| n.to_string())),
            ("--drill-days", self.drill_days.map(|n| n.to_string())),
            ("--history-days", self.history_days.map(|n| n.to_string())),
        ];
        let mut args: Vec<OsString> = Vec::new();
        for (flag, value) in numbers {
            args.extend(value.into_iter().flat_map(|value| [OsString::from(flag), OsString::from(value)]));
        }
        for (flag, path) in [("--import", &self.import), ("--config", &self.config), ("--scratch", &self.scratch)] {
            if let Some(path) = path {
                args.extend([OsString::from(flag), std::path::absolute(path).unwrap_or(path.clone()).into()]);
            }
        }
        args
    }
}

#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    options: ServiceOptions,
    /// Serve even if another service of the same database runs
    #[arg(long)]
    join: bool,
    /// Run in the background: print a line to stdout when ready
    #[arg(long, hide = true)]
    detached: bool,
}

pub fn cmd_serve(context: &Context, args: &ServeArgs) -> Result<u8> {
    args.options.check(context)?;
    if args.detached {
        rustix::process::setsid()
            .map_err(|e| Error::failed("cannot leave the terminal").because(std::io::Error::from(e)))?;
    }
    // As early as possible: the main process of a container does not get signals that it has no handler for.
    let (sender, events) = crossbeam_channel::unbounded();
    let stop_sender = sender.clone();
    signals::handle_for_service(args.detached, move || {
        let _ = stop_sender.send(Event::Stop);
    })?;
    let log = logging::Log::Service { stderr: !args.detached && !context.quiet };
    logging::start(log, &context.home, context.zone, Arc::clone(&context.clock), context.verbose)?;
    log::info!("--> Instruction serve");
    // Before the priority of this process is lowered: commands of runs have the normal one.
    let children = Starter::new()?;
    loop {
        match serve(context, args, &children, &events, &sender) {
            // If it ended now, its supervisor would restart it again and again, with the same result.
            Err(error) if error.kind() == ErrorKind::DatabaseDamage && !args.detached => {
                let error = context.with_recovery_step(error);
                super::report(&error);
                log::error!("waiting for the database to be repaired: {}", error.next_step().unwrap_or_default());
                if matches!(events.recv_timeout(DAMAGED_DATABASE_RETRY_INTERVAL), Ok(Event::Stop)) {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    if context.format == Format::Json {
        render::print_json(&ServiceStateDocument { service: "stopped", pid: None })?;
    }
    Ok(0)
}

fn serve(
    context: &Context,
    args: &ServeArgs,
    children: &Starter,
    events: &Receiver<Event>,
    sender: &Sender<Event>,
) -> Result<()> {
    // A service that `start` has detached is not managed by systemd.
    let notify = std::env::var_os("NOTIFY_SOCKET").filter(|_| !args.detached);
    let service_manager = ServiceManager::connect(notify.as_deref())?;
    let is_new = !context.home.db().exists();
    let store = context.open_store(Access::Create)?;
    if is_new {
        log::info!("created the database {}", context.home.db().display());
    }
    lower_priority(config::nice(&store, args.options.nice)?);
    let threads = config::threads(&store, args.options.threads)?;
    let options = service_options(context, &store, args)?;
    let runner = worker::new_runner(context, &store, threads, Role::Service, children.clone())?;
    if let Err(error) = archive_folder::ensure_ours(&context.home, &store) {
        // Its disk may be mounted later; until then each run fails, and `status` is unhealthy.
        log::error!("{error}; {}", error.next_step().unwrap_or_default());
    }
    let mut service = Service::register(runner, options, args.join)?;
    log::info!(
        "serving {} as process {}, time zone {} ({})",
        context.home.db().display(),
        std::process::id(),
        context.zone.name(),
        context.zone_origin
    );
    if args.detached {
        render::print_line(READY)?;
        detach_standard_streams()?;
    }
    service.serve(events, sender, &service_manager)?;
    log::info!("stopped");
    Ok(())
}

/// Returns the settings of the service: of the command line, else of the database.
fn service_options(context: &Context, store: &Store, args: &ServeArgs) -> Result<Options> {
    Ok(Options {
        workers: config::workers(store, args.options.workers)?,
        grace: config::grace(store, args.options.grace)?,
        zone: context.zone,
        import: args.options.import.clone(),
        config: args.options.config.clone(),
        scratch: args.options.scratch.clone(),
        maintenance: maintenance::Intervals {
            reverify_days: config::days(store, "reverify_days", args.options.reverify_days)?,
            drill_days: config::days(store, "drill_days", args.options.drill_days)?,
            history_days: config::days(store, "history_days", args.options.history_days)?,
        },
    })
}

/// Lowers the CPU and I/O priority of this process. The service runs at normal priority where the system refuses.
fn lower_priority(nice: u8) {
    if nice == 0 {
        return;
    }
    let result = rustix::process::setpriority_process(None, i32::from(nice));
    if let Err(error) = result {
        log::warn!("cannot lower the priority: {error}");
    }
    if let Err(error) = super::io_class::set_idle() {
        log::warn!("cannot set the idle I/O class: {error}");
    }
}

/// Replaces the standard streams by `/dev/null`: `start`, at the other end of the pipes, ends now.
fn detach_standard_streams() -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(Error::io("open", "/dev/null"))?;
    rustix::stdio::dup2_stdout(&null)
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .and_then(|()| rustix::stdio::dup2_stdin(&null))
        .map_err(|e| Error::failed("cannot detach from the terminal").because(std::io::Error::from(e)))
}

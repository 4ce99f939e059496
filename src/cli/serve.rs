//! `serve`: the service in the foreground.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Context, config, environment, logging, output, run};
use crate::archive_folder;
use crate::error::{Error, Result};
use crate::service::{Event, Options, Service};
use crate::store::{Access, Role};
use crate::supervisor::Supervisor;

/// What a detached service says on stdout when it serves.
pub const READY: &str = "ready";

/// Options of a service, as `serve` and `start` take them.
#[derive(Args, Debug, Default)]
pub struct ServiceOptions {
    /// Runs at once [default: 1]
    #[arg(long, value_name = "N", env = "BACKUP_WORKERS")]
    workers: Option<usize>,
    /// Encoders a run [default: cores]
    #[arg(long, value_name = "N", env = "BACKUP_THREADS")]
    threads: Option<usize>,
    /// Seconds that running work may take to finish after a stop [default: 30]
    #[arg(long, value_name = "SECONDS", env = "BACKUP_GRACE")]
    grace: Option<u64>,
    /// Niceness, 0 to 19; above 0 the idle I/O class, too [default: 10]
    #[arg(long, value_name = "N", env = "BACKUP_NICE")]
    nice: Option<u8>,
    /// Read this text file at start and whenever it changes
    #[arg(long, value_name = "FILE", env = "BACKUP_IMPORT")]
    import: Option<PathBuf>,
}

impl ServiceOptions {
    /// Refuses what no service could start with.
    pub fn check(&self, _context: &Context) -> Result<()> {
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

    /// Returns the flags that say the same.
    pub fn to_args(&self) -> Vec<OsString> {
        let numbers = [
            ("--workers", self.workers.map(|n| n.to_string())),
            ("--threads", self.threads.map(|n| n.to_string())),
            ("--grace", self.grace.map(|n| n.to_string())),
            ("--nice", self.nice.map(|n| n.to_string())),
        ];
        let mut args: Vec<OsString> = Vec::new();
        for (flag, value) in numbers {
            args.extend(value.into_iter().flat_map(|value| [OsString::from(flag), OsString::from(value)]));
        }
        if let Some(file) = &self.import {
            args.extend([OsString::from("--import"), std::path::absolute(file).unwrap_or(file.clone()).into()]);
        }
        args
    }
}

#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    options: ServiceOptions,
    /// Serve beside another service of the same database
    #[arg(long)]
    join: bool,
    /// Run in the background: say so on stdout when ready
    #[arg(long, hide = true)]
    detached: bool,
}

pub fn cmd_serve(context: &Context, args: &ServeArgs) -> Result<u8> {
    args.options.check(context)?;
    if args.detached {
        rustix::process::setsid()
            .map_err(|e| Error::failed("cannot leave the terminal").because(std::io::Error::from(e)))?;
    }
    // From here on, for a main process of a container is deaf to signals that it has no handler for.
    let (sender, events) = crossbeam_channel::unbounded();
    watch_signals(sender.clone())?;
    // What `start` has detached is nobody's service.
    let notify = std::env::var_os("NOTIFY_SOCKET").filter(|_| !args.detached);
    let supervisor = Supervisor::connect(notify.as_deref())?;
    let missing = !context.home.db().exists();
    let store = context.open_store(Access::Create)?;
    let log = logging::Log::Service { stderr: !args.detached && !context.quiet };
    logging::start(log, &context.home, context.zone, Arc::clone(&context.clock), context.verbose)?;
    log::info!("--> Instruction serve");
    if missing {
        log::info!("made the database {}", context.home.db().display());
    }
    be_modest(config::nice(&store, args.options.nice)?);
    let threads = config::threads(&store, args.options.threads)?;
    let options = Options {
        workers: config::workers(&store, args.options.workers)?,
        grace: config::grace(&store, args.options.grace)?,
        zone: context.zone,
        import: args.options.import.clone(),
    };
    let runner = run::make_runner(context, &store, threads, Role::Service)?;
    if let Err(error) = archive_folder::check(&context.home, &store) {
        // Its disk may be mounted later; until then each run says so, and `status` is not healthy.
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
        output::print_line(READY)?;
        leave_standard_streams()?;
    }
    service.serve(&events, &sender, &supervisor)?;
    log::info!("stopped");
    Ok(0)
}

/// Gives way to everything else on the machine. What the system refuses is no reason not to serve.
fn be_modest(nice: u8) {
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

fn watch_signals(sender: Sender<Event>) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])
        .map_err(|e| Error::failed("cannot watch for signals").because(e))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                let _ = sender.send(Event::Stop);
            }
        })
        .map(drop)
        .map_err(|e| Error::failed("cannot watch for signals").because(e))
}

/// Lets go of the pipes to `start`, which ends now.
fn leave_standard_streams() -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(Error::io("open", "/dev/null"))?;
    rustix::stdio::dup2_stdout(&null)
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .and_then(|()| rustix::stdio::dup2_stdin(&null))
        .map_err(|e| Error::failed("cannot let go of the terminal").because(std::io::Error::from(e)))
}

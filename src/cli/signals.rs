//! The only place that handles signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXFSZ,
};

use super::render;
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};

/// Signals that a service logs and ignores: their default action would end it without a line in its log.
const IGNORED: [i32; 6] = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO];

/// Whether a handler of this module other than that of [`end_with_document`] is installed.
static IS_HANDLED_BY_VERB: AtomicBool = AtomicBool::new(false);
/// Whether an interruption is also reported as a JSON document.
static HAS_DOCUMENT: AtomicBool = AtomicBool::new(false);

/// Makes a write beyond the limit of file sizes (`ulimit -f`) fail with an error, instead of ending this process by
/// SIGXFSZ with a temporary file left behind.
pub fn report_size_limit_as_error() {
    // Without a handler such a limit ends the process; all else works.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Makes SIGINT, SIGTERM and SIGHUP print a JSON document before they end this process, in a verb that does not handle
/// them itself.
pub fn end_with_document() -> Result<()> {
    HAS_DOCUMENT.store(true, Ordering::SeqCst);
    handle_each(&interrupting(), |signal| {
        if !IS_HANDLED_BY_VERB.load(Ordering::SeqCst) {
            end(signal);
        }
    })
}

/// Ends this process as interrupted by `signal`.
fn end(signal: i32) -> ! {
    if HAS_DOCUMENT.load(Ordering::SeqCst) {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        let message = format!("interrupted by {name}");
        render::print_stderr(&format!("error: {message}"));
        render::print_json_error(&Error::new(kind_of(signal), message));
    }
    std::process::exit(128 + signal)
}

/// Returns the signals that interrupt a command. With `nohup`, SIGHUP must stay ignored.
fn interrupting() -> Vec<i32> {
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    [SIGINT, SIGTERM].into_iter().chain(hangup).collect()
}

fn kind_of(signal: i32) -> ErrorKind {
    match signal {
        SIGTERM | SIGHUP => ErrorKind::Terminated,
        _ => ErrorKind::Interrupted,
    }
}

/// The signals that a command has received. They are handled until the process ends.
#[derive(Clone)]
pub struct Signals {
    /// Cancelled by the first signal.
    pub cancel: Arc<CancelToken>,
    /// Number of the last signal; zero before the first.
    last: Arc<AtomicI32>,
}

impl Signals {
    /// Makes the first SIGINT, SIGTERM or SIGHUP cancel the work of a command. The second one ends the process at once
    /// with 128 plus its number; what the process was writing is recovered later. SIGHUP is never the second one: a
    /// terminal that closes may send it more than once.
    pub fn cancel_on_first() -> Result<Signals> {
        IS_HANDLED_BY_VERB.store(true, Ordering::SeqCst);
        let signals = Signals { cancel: Arc::default(), last: Arc::default() };
        let shared = signals.clone();
        handle_each(&interrupting(), move |signal| {
            let last = shared.last.load(Ordering::SeqCst);
            if last != 0 && signal != SIGHUP {
                end(signal);
            }
            if last == 0 {
                shared.last.store(signal, Ordering::SeqCst);
            }
            shared.cancel.cancel();
        })?;
        Ok(signals)
    }

    /// Returns the class of the interruption; `None` if no signal came.
    pub fn interruption(&self) -> Option<ErrorKind> {
        match self.last.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(kind_of(signal)),
        }
    }

    /// Returns `error`; an interruption by SIGTERM or SIGHUP as `Terminated`.
    pub fn classify(&self, error: Error) -> Error {
        match (error.kind(), self.interruption()) {
            (ErrorKind::Interrupted, Some(ErrorKind::Terminated)) => error.with_kind(ErrorKind::Terminated),
            _ => error,
        }
    }
}

/// Calls `stop` for each signal that asks a service to stop: SIGINT and SIGTERM, and in the foreground also SIGQUIT and
/// the first SIGHUP, which a terminal that closes may send more than once. The others that would end a process are
/// logged and ignored.
pub fn handle_for_service(is_background: bool, stop: impl Fn() + Send + 'static) -> Result<()> {
    IS_HANDLED_BY_VERB.store(true, Ordering::SeqCst);
    let mut handled = vec![SIGINT, SIGTERM, SIGQUIT];
    handled.extend(IGNORED);
    // With `nohup`, SIGHUP must stay ignored; a background service has no terminal and reopens its log.
    handled.extend((is_background || !is_ignored(SIGHUP)).then_some(SIGHUP));
    let mut has_hung_up = false;
    handle_each(&handled, move |signal| match signal {
        SIGINT | SIGTERM => stop(),
        SIGQUIT if !is_background => stop(),
        // The log reopens its file before each line if another file, or none, has its name.
        SIGHUP if is_background => log::info!("SIGHUP: the log is open again"),
        SIGHUP if std::mem::replace(&mut has_hung_up, true) => {}
        SIGHUP => stop(),
        other => log::warn!("{} is ignored", signal_hook::low_level::signal_name(other).unwrap_or("a signal")),
    })
}

/// Calls `handler` with the number of each of `signals`, on a thread of its own.
fn handle_each(signals: &[i32], mut handler: impl FnMut(i32) + Send + 'static) -> Result<()> {
    let failed = |e| Error::failed("cannot watch for signals").because(e);
    let mut signals = signal_hook::iterator::Signals::new(signals).map_err(failed)?;
    let watch = move || signals.forever().for_each(&mut handler);
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map(drop).map_err(failed)
}

/// Returns whether this process was started with `signal` ignored, as by `nohup`.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

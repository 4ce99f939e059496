//! SIGINT and SIGTERM: the only place that handles signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};

/// The signals that a command has received. They are handled until the process ends.
#[derive(Clone)]
pub struct Signals {
    /// Cancelled by the first signal.
    pub cancel: Arc<CancelToken>,
    /// Number of the last signal; zero before the first.
    last: Arc<AtomicI32>,
}

impl Signals {
    /// Makes the first SIGINT or SIGTERM cancel the work of a command. The second one ends the process at once with
    /// 128 plus its number; what the process was writing is recovered later.
    pub fn cancel_on_first() -> Result<Signals> {
        let signals = Signals { cancel: Arc::default(), last: Arc::default() };
        let shared = signals.clone();
        Signals::handle_each(move |signal| {
            if shared.last.swap(signal, Ordering::SeqCst) != 0 {
                std::process::exit(128 + signal);
            }
            shared.cancel.cancel();
        })?;
        Ok(signals)
    }

    /// Calls `handler` with the number of each SIGINT and SIGTERM, on a thread of its own.
    pub fn handle_each(mut handler: impl FnMut(i32) + Send + 'static) -> Result<()> {
        let failed = |e| Error::failed("cannot watch for signals").because(e);
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        let watch = move || signals.forever().for_each(&mut handler);
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map(drop).map_err(failed)
    }

    /// Returns the class of the interruption; `None` if no signal came.
    pub fn interruption(&self) -> Option<ErrorKind> {
        match self.last.load(Ordering::SeqCst) {
            0 => None,
            SIGTERM => Some(ErrorKind::Terminated),
            _ => Some(ErrorKind::Interrupted),
        }
    }

    /// Returns `error`; an interruption by SIGTERM as `Terminated`.
    pub fn classify(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::Interrupted && self.interruption() == Some(ErrorKind::Terminated) {
            let hint = error.next_step().map(str::to_owned);
            let error = Error::new(ErrorKind::Terminated, error.to_string());
            return hint.into_iter().fold(error, Error::hint);
        }
        error
    }
}

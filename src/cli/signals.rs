//! Ctrl-C and SIGTERM for commands that end what they do and say so.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};

/// What became of the wish to stop.
#[derive(Clone)]
pub struct Stop {
    /// Becomes true with the first signal.
    pub requested: Arc<CancelToken>,
    signal: Arc<AtomicI32>,
}

impl Stop {
    /// Listens to SIGINT and SIGTERM from now on; the second one ends the process.
    pub fn watch() -> Result<Stop> {
        let stop = Stop { requested: Arc::default(), signal: Arc::default() };
        let failed = |e| Error::failed("cannot watch for signals").because(e);
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        let told = stop.clone();
        let watch = move || {
            for signal in signals.forever() {
                if told.signal.swap(signal, Ordering::SeqCst) != 0 {
                    std::process::exit(128 + signal);
                }
                told.requested.cancel();
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(failed)?;
        Ok(stop)
    }

    /// Returns the error with the class that the signal asks for.
    pub fn classify(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::Interrupted && self.signal.load(Ordering::SeqCst) == SIGTERM {
            let hint = error.next_step().map(str::to_owned);
            let error = Error::new(ErrorKind::Terminated, error.to_string());
            return hint.into_iter().fold(error, Error::hint);
        }
        error
    }
}

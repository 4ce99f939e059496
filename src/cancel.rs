//! Cancel tokens: the one way to ask running work to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// A request to stop, shared by the code that makes it and the work that polls it. A token is used for one piece of
/// work: it cannot be reset.
#[derive(Debug, Default)]
pub struct CancelToken {
    is_cancelled: AtomicBool,
    requeues: AtomicBool,
    waiting: (Mutex<()>, Condvar),
}

impl CancelToken {
    /// Returns a token that is not cancelled.
    pub const fn new() -> Self {
        CancelToken {
            is_cancelled: AtomicBool::new(false),
            requeues: AtomicBool::new(false),
            waiting: (Mutex::new(()), Condvar::new()),
        }
    }

    /// Asks the work to stop. A run ends as `cancelled`.
    pub fn cancel(&self) {
        // Under the lock, so that a waiter that has just checked the flag does not miss the notification.
        let _guard = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_cancelled.store(true, Ordering::SeqCst);
        self.waiting.1.notify_all();
    }

    /// Asks the work to stop because the process stops: a run is queued again (I10).
    pub fn cancel_and_requeue(&self) {
        self.requeues.store(true, Ordering::SeqCst);
        self.cancel();
    }

    /// Returns whether the work was asked to stop, in either way.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }

    /// Returns whether the work was asked to stop by [`CancelToken::cancel_and_requeue`].
    pub fn should_requeue(&self) -> bool {
        self.requeues.load(Ordering::SeqCst)
    }

    /// Fails with [`ErrorKind::Interrupted`] and `message` if the work was asked to stop.
    pub fn check(&self, message: &str) -> Result<()> {
        if self.is_cancelled() { Err(Error::new(ErrorKind::Interrupted, message)) } else { Ok(()) }
    }

    /// Waits for `pause` or until the work is asked to stop.
    pub fn wait(&self, pause: Duration) {
        let guard = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The guard only serves the condition variable; what it protects is the flag.
        drop(self.waiting.1.wait_timeout_while(guard, pause, |()| !self.is_cancelled()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_token_ends_a_wait_and_fails_checks() {
        let token = CancelToken::new();
        assert!(token.check("stopped").is_ok());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| token.wait(Duration::from_secs(3600)));
            token.cancel_and_requeue();
            waiter.join().unwrap();
        });
        assert!(token.is_cancelled() && token.should_requeue());
        let error = token.check("stopped").unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Interrupted, "stopped"));
    }
}

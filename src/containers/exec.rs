//! Commands in containers. They are executed without a shell, and cannot be ended: the API has no request for that.

use std::time::Duration;

use super::container::Container;
use super::engine::{Engine, ExecCommand};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};

/// Pause before the state of a command is asked for again, whose output has ended before itself.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

impl Engine {
    /// Executes a command in a container, passes on what it prints, and returns its exit code. `sink` gets whether the
    /// bytes are of stderr, and the bytes.
    ///
    /// Errors: `Busy` while the same command still runs there, from a run that did not wait for its end; the end of the
    /// time limit or a cancellation, after which the command goes on in the container.
    pub fn execute(
        &self,
        container: &Container,
        command: &ExecCommand,
        limit: Duration,
        cancel: &CancelToken,
        sink: &mut dyn FnMut(bool, &[u8]) -> Result<()>,
    ) -> Result<i64> {
        let doing = format!("execute {} in the container {}", shell_words::join(&command.words), container.name());
        for id in &container.exec_ids {
            let state = self.inspect_exec(id)?;
            if state.is_some_and(|state| state.running && state.process_config.is(&command.words)) {
                return Err(Error::busy(format!("cannot {doing}: it still runs there since an earlier run"))
                    .hint("wait for its end, or end it in the container"));
            }
        }
        let ends_at = self.clock().monotonic().saturating_add(limit);
        let id = self.create_exec(container, command, &doing)?;
        self.start_exec(&id, &doing, limit, cancel, sink)?;
        loop {
            let state = self.inspect_exec(&id)?;
            let state = state.ok_or_else(|| {
                Error::failed(format!("cannot {doing}: the engine lost it, so that its exit code is unknown"))
                    .hint("see the log of the engine")
            })?;
            match state.exit_code {
                Some(code) if !state.running => return Ok(code),
                _ if self.clock().monotonic() >= ends_at || cancel.is_cancelled() => {
                    return Err(Error::failed(format!(
                        "cannot {doing}: its output ended, and it goes on in the container"
                    ))
                    .hint("end it in the container, or raise the time limit of the schedule"));
                }
                _ => cancel.wait(POLL_INTERVAL),
            }
        }
    }
}

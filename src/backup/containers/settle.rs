//! Settling the duties about containers: starting them, and executing their commands after reading.

use std::time::Duration;

use super::connect;
use super::exec::{ExecSubject, RunCommand, execute, facts_of, variables};
use crate::backup::{RunContext, Runner, START_DUTIES, settle_duties};
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::containers::{Container, Engine, ExecCommand, Restart, StoppedContainer, command_after};
use crate::error::{ErrorKind, Result};
use crate::liveness::ContainerLock;
use crate::schedule::CommandKind;
use crate::store::{Duty, DutyKind, DutyState};
use crate::words::shell_word;

/// Seconds before the next tries to start a container; after these, every minute.
const RETRY_SECONDS: [u64; 5] = [1, 2, 5, 10, 30];
/// How often it is checked whether a stop under way has ended.
const STOP_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often a command looks whether a duty is due.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);
/// How long a command that is asked to stop still tries to start containers.
const CANCELLED_WAIT: Duration = Duration::from_secs(60);

/// Returns when a duty is tried again that was tried so often.
fn next_try(tries: u32, now: Timestamp) -> Timestamp {
    let seconds = usize::try_from(tries).ok().and_then(|tries| RETRY_SECONDS.get(tries)).copied().unwrap_or(60);
    now.plus(Duration::from_secs(seconds))
}

impl Runner {
    /// Settles a duty about a container that this worker holds, or records when it is tried again. Returns the reason
    /// if a command after reading was executed and failed.
    ///
    /// Errors: of the database; `Fenced` if another worker has the duty.
    pub(in crate::backup) fn settle_container_duty(&self, duty: &Duty, cancel: &CancelToken) -> Result<Option<String>> {
        match duty.kind {
            DutyKind::Start => self.start_again(duty).map(|()| None),
            DutyKind::ExecAfter => self.exec_after(duty, cancel),
            DutyKind::After => Ok(None),
        }
    }

    /// Starts a container again that a run stopped; left to the last of several runs that have stopped it.
    fn start_again(&self, duty: &Duty) -> Result<()> {
        let prefix = format!("{}: run @{}", duty.schedule_name, duty.run);
        let Ok(stopped) = serde_json::from_str::<StoppedContainer>(&duty.subject) else {
            log::error!("{prefix}: nothing is known of a container that it stopped");
            return self.store.settle_duty(duty);
        };
        let name = &stopped.identity.name;
        let _lock = ContainerLock::wait(&self.home)?;
        if self.store.settle_shared_duty(duty)? {
            log::info!("{prefix}: {name} stays stopped for another run, which starts it");
            return Ok(());
        }
        let now = self.clock.now();
        match connect(self).and_then(|engine| stopped.start_again(&engine, now)) {
            Ok(Restart::Started) => log::info!("{prefix}: started {name}"),
            Ok(Restart::Running) => log::info!("{prefix}: {name} runs"),
            Ok(Restart::LeftAlone(why)) => log::warn!("{prefix}: {name} is not started: {why}"),
            Ok(Restart::NotYet(_)) => {
                let waiting = format!("the stop of {name} may be under way");
                return self.store.postpone_duty(duty, &waiting, now.plus(STOP_POLL_INTERVAL));
            }
            Err(error) => {
                let hint = error.next_step().map_or(String::new(), |next| format!("; {next}"));
                log::error!("{prefix}: {error}{hint}; by hand: docker start {}", shell_word(name));
                return self.store.postpone_duty(duty, &error.to_string(), next_try(duty.tries, now));
            }
        }
        self.store.settle_duty(duty)
    }

    /// Executes the command after reading that the label of a container names now.
    fn exec_after(&self, duty: &Duty, cancel: &CancelToken) -> Result<Option<String>> {
        let Ok(subject) = serde_json::from_str::<ExecSubject>(&duty.subject) else {
            return self.leave(duty, "nothing is known of a command after reading");
        };
        let (name, now) = (&subject.identity.name, self.clock.now());
        let found = connect(self).and_then(|engine| Ok((subject.identity.find(&engine)?, engine)));
        let (container, engine) = match found {
            Ok((Some(container), engine)) => (container, engine),
            Ok((None, _)) => {
                return self.leave(duty, &format!("{name} was removed: its command after is not executed"));
            }
            Err(error) => {
                self.store.postpone_duty(duty, &error.to_string(), next_try(duty.tries, now))?;
                return Ok(Some(error.to_string()));
            }
        };
        if !container.state.running {
            if super::other_duty(self, &subject.identity.id)?.is_some() {
                let waiting = format!("{name} is not started yet");
                return self.store.postpone_duty(duty, &waiting, next_try(duty.tries, now)).map(|()| None);
            }
            return self.leave(duty, &format!("{name} does not run: its command after is not executed"));
        }
        let Some((words, user)) = command_after(&container, &subject.stop_label) else {
            return self.leave(duty, &format!("{name} has no command after any more"));
        };
        let command = ExecCommand { words, user, env: variables(self, &facts_of(duty, duty.state == DutyState::Done)) };
        // A run that was cancelled undoes what it began all the same.
        let never = CancelToken::new();
        let command = RunCommand {
            kind: CommandKind::After,
            command,
            run: duty.run,
            attempt: duty.attempt,
            limit: Duration::from_millis(subject.time_limit_ms),
            cancel: if cancel.is_cancelled() { &never } else { cancel },
        };
        self.settle_by_command(duty, &engine, &container, &command)
    }

    /// Executes a command and settles its duty, whether it succeeds or not: it may have been executed, and is not a
    /// second time.
    fn settle_by_command(
        &self,
        duty: &Duty,
        engine: &Engine,
        container: &Container,
        command: &RunCommand<'_>,
    ) -> Result<Option<String>> {
        let duty = &self.store.mark_duty_done(duty, &duty.subject)?;
        let problem = match execute(self, engine, container, command, None) {
            Ok((0, _)) => None,
            Ok((_, reason)) => Some(reason),
            Err(error) if error.kind() == ErrorKind::Busy => {
                self.store.postpone_duty(duty, &error.to_string(), next_try(duty.tries, self.clock.now()))?;
                return Ok(Some(error.to_string()));
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = &problem {
            log::error!("{}: run @{}: {reason}", duty.schedule_name, duty.run);
        }
        self.store.settle_duty(duty).map(|()| problem)
    }

    /// Waits until the containers that a run stopped are started, for a command that nobody follows. Once it is asked
    /// to stop, it tries for a short time only.
    pub(in crate::backup) fn wait_for_starts(&self, run: i64, context: &RunContext<'_>) {
        let mut gives_up_at = None;
        loop {
            let now = self.clock.monotonic();
            if context.cancel.is_cancelled() {
                gives_up_at.get_or_insert(now.saturating_add(CANCELLED_WAIT));
            }
            let is_over = gives_up_at.is_some_and(|at| now >= at);
            let open = self.store.open_duties().unwrap_or_default();
            let mut left = open.iter().filter(|duty| duty.run == run && duty.kind == DutyKind::Start).peekable();
            let Some(first) = left.peek() else { return };
            if is_over {
                let error = first.error.as_deref().unwrap_or("its stop may be under way");
                context.observer.note(&format!("a container that was stopped is not started yet: {error}"));
                return;
            }
            if let Err(error) = settle_duties(self, START_DUTIES, context) {
                log::error!("run @{run}: a container is started later: {error}");
            }
            std::thread::sleep(WAIT_INTERVAL);
        }
    }

    fn leave(&self, duty: &Duty, why: &str) -> Result<Option<String>> {
        log::warn!("{}: run @{}: {why}", duty.schedule_name, duty.run);
        self.store.settle_duty(duty).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_does_not_start_is_tried_soon_and_then_every_minute() {
        let now = Timestamp::from_millis(0);
        let seconds: Vec<i64> = (0..8).map(|tries| next_try(tries, now).millis() / 1000).collect();
        assert_eq!(seconds, [1, 2, 5, 10, 30, 60, 60, 60]);
    }
}

//! A container that was stopped: what has to be known to start it again, also by a program that did not stop it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::container::{ComposeIdentity, Container, State};
use super::engine::{Change, Engine};
use crate::clock::Timestamp;
use crate::error::Result;

/// Time between SIGTERM and SIGKILL if a container does not say another one.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time that is waited for the end of a stop whose answer is unknown.
const MAX_STOP_TIMEOUT: Duration = Duration::from_secs(600);
/// Added to the time that a stop takes: for the engine's own work, and for clocks that differ.
const MARGIN: Duration = Duration::from_secs(20);
/// Beginning of the time at which a container was started that never was.
const NEVER: &str = "0001-";

/// What a container is known by, also after it was created again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerIdentity {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What compose knows it by.
    pub compose: Option<ComposeIdentity>,
}

impl ContainerIdentity {
    /// Returns the identity of a container.
    pub fn of(container: &Container) -> ContainerIdentity {
        ContainerIdentity { id: container.id.clone(), name: container.name().to_owned(), compose: container.compose() }
    }

    /// Finds the container, else what was created in its place; `None` if it was removed.
    pub fn find(&self, engine: &Engine) -> Result<Option<Container>> {
        match engine.inspect(&self.id)? {
            Some(container) => Ok(Some(container)),
            None => self.successor(engine),
        }
    }

    /// Finds the container with the same place in its compose project, else the one with the same name.
    fn successor(&self, engine: &Engine) -> Result<Option<Container>> {
        let listed = engine.list()?;
        let compose = self.compose.as_ref();
        let by_compose = compose.and_then(|own| listed.iter().find(|other| other.compose().as_ref() == Some(own)));
        match by_compose.or_else(|| listed.iter().find(|other| other.name() == self.name)) {
            Some(found) => engine.inspect(&found.id),
            None => Ok(None),
        }
    }
}

/// A container that a run stops, as it was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedContainer {
    /// Which one.
    #[serde(flatten)]
    pub identity: ContainerIdentity,
    /// When it was started last before the stop, as the engine writes it.
    pub started_at: String,
    /// When it ended by the stop, as the engine writes it; `None` while that is unknown.
    pub finished_at: Option<String>,
    /// Until when a stop can be under way, or can have ended the container, in milliseconds since 1970.
    pub ends_by_ms: i64,
    /// The engine answered the stop: nothing of it is under way.
    pub is_over: bool,
}

/// What became of a container that was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It was started.
    Started,
    /// It runs already, itself or its successor.
    Running,
    /// It is not started, for this reason.
    LeftAlone(&'static str),
    /// The stop may be under way still; by this time it is not.
    NotYet(Timestamp),
}

impl StoppedContainer {
    /// Describes a container that will be stopped at `now`.
    pub fn before_stop(container: &Container, now: Timestamp) -> StoppedContainer {
        let seconds = container.config.stop_timeout.map(|seconds| u64::try_from(seconds).unwrap_or(u64::MAX));
        let timeout = seconds.map_or(STOP_TIMEOUT, |seconds| Duration::from_secs(seconds).min(MAX_STOP_TIMEOUT));
        StoppedContainer {
            identity: ContainerIdentity::of(container),
            started_at: container.state.started_at.clone(),
            finished_at: None,
            ends_by_ms: now.plus(timeout).plus(MARGIN).millis(),
            is_over: false,
        }
    }

    /// Describes it after the engine has answered the stop.
    #[must_use]
    pub fn after_stop(mut self, engine: &Engine) -> StoppedContainer {
        self.is_over = true;
        // Without it, a stop by somebody else is recognised by its time only.
        let found = engine.inspect(&self.identity.id).ok().flatten().filter(|found| !found.state.running);
        self.finished_at = found.map(|found| found.state.finished_at);
        self
    }

    /// Starts it again: the container itself, or the one that compose or somebody has created in its place. What was
    /// started by others counts as done; what was stopped or removed by others is left alone.
    ///
    /// Errors: the engine does not answer, or cannot start it.
    pub fn start_again(&self, engine: &Engine, now: Timestamp) -> Result<Restart> {
        let Some(container) = engine.inspect(&self.identity.id)? else { return self.start_successor(engine) };
        let state = &container.state;
        if state.running || state.restarting {
            let ends_by = Timestamp::from_millis(self.ends_by_ms);
            let may_be_stopping = !self.is_over && state.started_at == self.started_at && now < ends_by;
            return Ok(if may_be_stopping { Restart::NotYet(ends_by) } else { Restart::Running });
        }
        if !self.was_ended_by_stop(state) {
            return Ok(Restart::LeftAlone("somebody else stopped it meanwhile"));
        }
        match engine.start(&container)? {
            Change::Made | Change::WasSo => Ok(Restart::Started),
            Change::NotFound => self.start_successor(engine),
        }
    }

    /// Returns whether our stop ended the container, not that of somebody who had started it again.
    fn was_ended_by_stop(&self, state: &State) -> bool {
        let is_in_time = |finished: &str| {
            let finished = Timestamp::parse_rfc3339(finished);
            finished.map_or(true, |finished| finished <= Timestamp::from_millis(self.ends_by_ms))
        };
        state.started_at == self.started_at
            && match &self.finished_at {
                Some(finished) => *finished == state.finished_at,
                None => is_in_time(&state.finished_at),
            }
    }

    /// Starts what was created in place of a container that was removed, unless it was started before.
    fn start_successor(&self, engine: &Engine) -> Result<Restart> {
        const REMOVED: Restart = Restart::LeftAlone("somebody else removed it meanwhile");
        let Some(successor) = self.identity.successor(engine)? else { return Ok(REMOVED) };
        if successor.state.running || successor.state.restarting {
            return Ok(Restart::Running);
        }
        if !successor.state.started_at.starts_with(NEVER) {
            return Ok(Restart::LeftAlone("somebody else created it again and stopped it"));
        }
        match engine.start(&successor)? {
            Change::Made | Change::WasSo => Ok(Restart::Started),
            Change::NotFound => Ok(REMOVED),
        }
    }
}

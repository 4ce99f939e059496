//! What goes wrong with a request to a container engine, as errors that name socket, container, reason and next step.

use std::io;

use serde::Deserialize;

use super::endpoint::{Endpoint, TimeLimits};
use crate::error::{Error, ErrorKind};

/// Most characters of an engine's message that are repeated.
const MAX_CHARACTERS: usize = 500;

/// Why a request has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection was made.
    Connect(io::Error),
    /// The request was not sent or its answer not read.
    Io(io::Error),
    /// The engine or a proxy answered with this status and message.
    Status(u16, String),
    /// Something answered that is not a container engine.
    NoEngine,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

/// Returns the message in the body of an answer, on one line.
pub(super) fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice(body) {
        Ok(Message { message }) => message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let shown = words.join(" ").chars().filter(|c| !c.is_control()).take(MAX_CHARACTERS).collect::<String>();
    if shown.is_empty() { "no reason given".to_owned() } else { shown }
}

impl Failure {
    /// Converts it into an error. `doing` is what was attempted ("stop the container app").
    pub(super) fn into_error(self, doing: &str, endpoint: &Endpoint, limits: TimeLimits) -> Error {
        let failed =
            |reason: String| Error::failed(format!("cannot {doing}: the container engine at {endpoint} {reason}"));
        match self {
            Failure::Connect(error) => {
                let hint = connect_hint(error.kind(), endpoint);
                Error::failed(format!("cannot {doing}: cannot connect to the container engine at {endpoint}"))
                    .because(error)
                    .hint(hint)
            }
            Failure::Io(error) if error.kind() == io::ErrorKind::TimedOut => failed(format!(
                "did not answer within its time limit ({} s, {} s to stop)",
                limits.answer.as_secs(),
                limits.stop.as_secs()
            ))
            .hint("see whether `docker ps` answers, and the log of the engine"),
            Failure::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                failed("sent an answer that makes no sense".to_owned())
                    .because(error)
                    .hint("set DOCKER_HOST to the API of Docker, Podman or a socket proxy")
            }
            Failure::Io(error) => failed("closed the connection".to_owned())
                .because(error)
                .hint("see whether `docker ps` answers, and the log of the engine"),
            Failure::NoEngine => failed("does not answer like one: it gives no version of its API".to_owned())
                .hint("set DOCKER_HOST to the API of Docker, Podman or a socket proxy"),
            Failure::Status(status, message) => {
                let error = failed(format!("answered {status}: {message}"));
                let error = if status == 404 { error.with_kind(ErrorKind::NotFound) } else { error };
                error.hint(status_hint(status, &message))
            }
        }
    }
}

fn connect_hint(kind: io::ErrorKind, endpoint: &Endpoint) -> String {
    match (kind, endpoint) {
        (io::ErrorKind::PermissionDenied, Endpoint::Unix(path)) => {
            format!("give this user access to {} (a group of it), or use a socket proxy", path.display())
        }
        (io::ErrorKind::NotFound, Endpoint::Unix(path)) => {
            format!("start the engine, mount {} into this container, or set DOCKER_HOST", path.display())
        }
        _ => "start the engine or its proxy, or correct DOCKER_HOST".to_owned(),
    }
}

fn status_hint(status: u16, message: &str) -> String {
    match status {
        400 if message.contains("version") => {
            "install a version of this program that is made for this engine".to_owned()
        }
        401 | 403 => {
            "a proxy refuses this request: allow it CONTAINERS=1, ALLOW_START=1, ALLOW_STOP=1, and for commands \
                      in containers EXEC=1 and POST=1"
                .to_owned()
        }
        404 => "see `docker ps --all` for the containers that there are".to_owned(),
        409 => "see `docker ps --all` for the state of the container".to_owned(),
        _ => "see the log of the engine".to_owned(),
    }
}

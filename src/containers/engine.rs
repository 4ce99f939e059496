//! The requests to a container engine. There are no others: list, inspect, stop, start, and commands in a container.

use std::fmt;
use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::container::{Container, ListedContainer};
use super::endpoint::{Connection, Endpoint, TimeLimits};
use super::failure::{self, Failure};
use super::http::{Response, read_response, write_request};
use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};

/// Newest version of the API that this program was written for.
const NEWEST_KNOWN: ApiVersion = ApiVersion { major: 1, minor: 47 };
/// Most bytes of an answer about containers.
const MAX_JSON: u64 = 64 << 20;
/// Most bytes that are read of an answer that reports an error.
const MAX_MESSAGE: u64 = 64 << 10;
/// Most bytes of one frame of the output of a command.
const MAX_FRAME: u32 = 64 << 20;

/// Version of the API, `1.41`; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    major: u32,
    minor: u32,
}

impl ApiVersion {
    fn parse(text: &str) -> Option<ApiVersion> {
        let (major, minor) = text.split_once('.')?;
        Some(ApiVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a request to stop or to start did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stopped or started the container.
    Made,
    /// The container was already as requested: somebody else did it.
    WasSo,
    /// There is no such container.
    NotFound,
}

/// Why a stop has no result.
#[derive(Debug)]
pub struct StopError {
    /// The reason.
    pub error: Error,
    /// The engine answered. If it did not, the stop may be under way.
    pub is_answered: bool,
}

/// A command that is executed in a container, without a shell unless it names one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct ExecCommand {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// The user in the container; `None` for that of the container.
    pub user: Option<String>,
    /// Variables, `NAME=VALUE`.
    pub env: Vec<String>,
}

/// A container engine. Each request uses a connection of its own.
#[derive(Clone)]
pub struct Engine {
    endpoint: Endpoint,
    version: ApiVersion,
    peer: Option<IpAddr>,
    limits: TimeLimits,
    clock: Arc<dyn Clock>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreatedExec {
    id: String,
}

/// The state of a command in a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ExecState {
    #[serde(default)]
    pub(super) running: bool,
    #[serde(default)]
    pub(super) exit_code: Option<i64>,
    #[serde(default)]
    pub(super) process_config: ProcessConfig,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ProcessConfig {
    #[serde(default)]
    pub(super) entrypoint: String,
    #[serde(default)]
    pub(super) arguments: Option<Vec<String>>,
}

impl ProcessConfig {
    /// Returns whether it is this command.
    pub(super) fn is(&self, words: &[String]) -> bool {
        let arguments = self.arguments.iter().flatten();
        std::iter::once(&self.entrypoint).chain(arguments).eq(words)
    }
}

impl Engine {
    /// Asks the engine for its version and uses that, or the newest that this program knows if that is older.
    ///
    /// Errors: no engine listens there, it does not answer in time, or what answers is not a container engine.
    pub fn connect(endpoint: Endpoint, limits: TimeLimits, clock: Arc<dyn Clock>) -> Result<Engine> {
        let mut engine = Engine { endpoint, version: NEWEST_KNOWN, peer: None, limits, clock };
        const DOING: &str = "ask the container engine for its version";
        let (response, peer) =
            engine.send("GET", "/_ping", None, limits.answer, None).map_err(|e| engine.fail(DOING, e))?;
        let server = response.api_version.as_deref().and_then(ApiVersion::parse);
        match (response.status, server) {
            (200, Some(server)) => (engine.version, engine.peer) = (server.min(NEWEST_KNOWN), peer),
            (200, None) => return Err(engine.fail(DOING, Failure::NoEngine)),
            _ => return Err(engine.fail(DOING, engine.refusal(response))),
        }
        Ok(engine)
    }

    /// Returns the address of the engine.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Returns the IP address behind the host of the endpoint.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// Lists all containers, also those that do not run.
    pub(super) fn list(&self) -> Result<Vec<ListedContainer>> {
        let found = self.get("list the containers", "/containers/json?all=1")?;
        found.ok_or_else(|| self.fail("list the containers", Failure::NoEngine))
    }

    /// Returns a container by its id or name; `None` if there is none.
    ///
    /// Errors: `Usage` if that is neither an id nor a name.
    pub fn inspect(&self, id_or_name: &str) -> Result<Option<Container>> {
        self.get(&format!("inspect the container {id_or_name}"), &format!("/containers/{}/json", part(id_or_name)?))
    }

    /// Stops a container, and returns when it has ended. The engine kills it after its own time limit.
    pub fn stop(&self, container: &Container) -> std::result::Result<Change, StopError> {
        self.change("stop", container)
    }

    /// Starts a container.
    pub fn start(&self, container: &Container) -> Result<Change> {
        self.change("start", container).map_err(|failed| failed.error)
    }

    fn change(&self, verb: &str, container: &Container) -> std::result::Result<Change, StopError> {
        let doing = format!("{verb} the container {}", container.name());
        let id = part(&container.id).map_err(|error| StopError { error, is_answered: true })?;
        let path = self.path(&format!("/containers/{id}/{verb}"));
        let unanswered = |failure| StopError { error: self.fail(&doing, failure), is_answered: false };
        let (response, _) = self.send("POST", &path, None, self.limits.stop, None).map_err(unanswered)?;
        match response.status {
            204 => Ok(Change::Made),
            304 => Ok(Change::WasSo),
            404 => Ok(Change::NotFound),
            // A proxy that gives up waiting, or an engine in trouble, says nothing of what goes on.
            status => {
                let is_answered = status < 500;
                Err(StopError { error: self.fail(&doing, self.refusal(response)), is_answered })
            }
        }
    }

    /// Prepares a command in a container and returns its id.
    pub(super) fn create_exec(&self, container: &Container, command: &ExecCommand, doing: &str) -> Result<String> {
        let json = serde_json::json!({
            "AttachStdout": true, "AttachStderr": true, "Cmd": command.words, "Env": command.env,
            "User": command.user.as_deref().unwrap_or_default(),
        });
        let path = self.path(&format!("/containers/{}/exec", part(&container.id)?));
        let sent = self.send("POST", &path, Some(&json.to_string()), self.limits.answer, None);
        let (mut response, _) = sent.map_err(|e| self.fail(doing, e))?;
        if response.status != 201 {
            return Err(self.fail(doing, self.refusal(response)));
        }
        let created: CreatedExec = read_json(&mut response).map_err(|e| self.fail(doing, e))?;
        part(&created.id)?;
        Ok(created.id)
    }

    /// Starts a prepared command and passes on what it prints until it ends. `sink` gets whether the bytes are of
    /// stderr, and the bytes; an error of it ends the reading, not the command.
    ///
    /// Errors: also the end of the time limit, or a cancellation. The command goes on then: no request ends one.
    pub(super) fn start_exec(
        &self,
        id: &str,
        doing: &str,
        limit: Duration,
        cancel: &CancelToken,
        sink: &mut dyn FnMut(bool, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let path = self.path(&format!("/exec/{}/start", part(id)?));
        let sent = self.send("POST", &path, Some(r#"{"Detach":false,"Tty":false}"#), limit, Some(cancel));
        let interrupted = |failure: Failure| {
            let goes_on = "; it goes on in the container";
            match failure {
                _ if cancel.is_cancelled() => {
                    Error::new(ErrorKind::Interrupted, format!("was asked to stop: cannot {doing} to its end{goes_on}"))
                }
                Failure::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Error::failed(format!("cannot {doing}: not at its end after {} s{goes_on}", limit.as_secs()))
                        .hint("end it in the container, or raise the time limit of the schedule")
                }
                failure => self.fail(doing, failure),
            }
        };
        let (mut response, _) = sent.map_err(interrupted)?;
        if response.status != 200 {
            return Err(self.fail(doing, self.refusal(response)));
        }
        while let Some((is_error, bytes)) = read_frame(&mut response.body).map_err(|e| interrupted(Failure::Io(e)))? {
            copy_frame(&mut response.body, bytes, is_error, sink, &interrupted)?;
        }
        Ok(())
    }

    /// Returns the state of a command; `None` if the engine does not know it (any more).
    pub(super) fn inspect_exec(&self, id: &str) -> Result<Option<ExecState>> {
        self.get("inspect a command in a container", &format!("/exec/{}/json", part(id)?))
    }

    /// Returns the path of a request in the version of the API that is used.
    fn path(&self, below: &str) -> String {
        format!("/v{}{below}", self.version)
    }

    fn get<T: DeserializeOwned>(&self, doing: &str, below: &str) -> Result<Option<T>> {
        let sent = self.send("GET", &self.path(below), None, self.limits.answer, None);
        let (mut response, _) = sent.map_err(|e| self.fail(doing, e))?;
        match response.status {
            200 => read_json(&mut response).map(Some).map_err(|e| self.fail(doing, e)),
            404 => Ok(None),
            _ => Err(self.fail(doing, self.refusal(response))),
        }
    }

    /// Sends a request on a new connection and reads the head of its response; returns the other end, too.
    fn send<'a>(
        &'a self,
        method: &str,
        path: &str,
        json: Option<&str>,
        limit: Duration,
        cancel: Option<&'a CancelToken>,
    ) -> std::result::Result<(Response<Connection<'a>>, Option<IpAddr>), Failure> {
        let mut connection = self.endpoint.connect(&*self.clock, limit, cancel).map_err(Failure::Connect)?;
        let peer = connection.peer();
        // A proxy may answer and close before it has read the request: its answer counts, not the broken pipe.
        let written = write_request(&mut connection, method, path, json);
        match (read_response(connection), written) {
            (Ok(response), _) => Ok((response, peer)),
            (Err(_), Err(error)) | (Err(error), Ok(())) => Err(Failure::Io(error)),
        }
    }

    /// Reads the message of a response that reports an error.
    fn refusal(&self, mut response: Response<Connection<'_>>) -> Failure {
        let body = response.body.read_all(MAX_MESSAGE).unwrap_or_default();
        Failure::Status(response.status, failure::message(&body))
    }

    fn fail(&self, doing: &str, failure: Failure) -> Error {
        failure.into_error(doing, &self.endpoint, self.limits)
    }
}

/// Checks that a text is an id or a name, so that nothing else gets into a path.
fn part(id_or_name: &str) -> Result<&str> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let begins = id_or_name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if begins && id_or_name.len() <= 255 && id_or_name.chars().all(is_valid) {
        return Ok(id_or_name);
    }
    Err(Error::usage(format!("\"{}\" is not the name or id of a container", id_or_name.escape_debug()))
        .hint("containers are listed by `docker ps --all`"))
}

fn read_json<T: DeserializeOwned>(response: &mut Response<impl Read>) -> std::result::Result<T, Failure> {
    let body = response.body.read_all(MAX_JSON).map_err(Failure::Io)?;
    serde_json::from_slice(&body).map_err(|error| Failure::Io(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Reads the head of the next frame of a command's output: whether it is stderr, and its size. `None` at the end.
fn read_frame(from: &mut impl Read) -> io::Result<Option<(bool, u32)>> {
    let mut head = [0; 8];
    if from.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..])?;
    let [stream, 0, 0, 0, a, b, c, d] = head else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the output has no frames"));
    };
    let size = u32::from_be_bytes([a, b, c, d]);
    if stream > 2 || size > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the output has an invalid frame"));
    }
    Ok(Some((stream == 2, size)))
}

/// Passes on the content of a frame.
fn copy_frame(
    from: &mut impl Read,
    size: u32,
    is_error: bool,
    sink: &mut dyn FnMut(bool, &[u8]) -> Result<()>,
    interrupted: &dyn Fn(Failure) -> Error,
) -> Result<()> {
    let mut buffer = [0; 32 << 10];
    let mut left = size as usize;
    while left > 0 {
        let wanted = left.min(buffer.len());
        from.read_exact(&mut buffer[..wanted]).map_err(|e| interrupted(Failure::Io(e)))?;
        sink(is_error, &buffer[..wanted])?;
        left -= wanted;
    }
    Ok(())
}

//! A container engine on a unix socket: a table of containers, a log of the requests, and faults by request.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

/// The time of a container that was never started.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// What the engine does with a request instead of answering it as it should.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status and message, and does nothing.
    Status(u16, &'static str),
    /// Closes the connection without having done anything.
    CutBefore,
    /// Does what is asked, and closes the connection without an answer.
    CutAfter,
    /// Answers these bytes, and does nothing.
    Bytes(&'static str),
    /// Answers after this time.
    Slow(Duration),
    /// Sends the answer in pieces, with a pause after each.
    Drip(Duration),
}

/// A container of the engine.
#[derive(Clone, Debug)]
pub struct FakeContainer {
    pub id: String,
    pub name: String,
    pub status: &'static str,
    pub labels: BTreeMap<String, String>,
    pub mounts: Vec<Value>,
    pub networks: Value,
    pub ports: Value,
    pub host_config: Value,
    pub stop_timeout: Option<i64>,
    pub started_at: String,
    pub finished_at: String,
}

/// A command that was started in a container.
#[derive(Clone, Debug)]
pub struct FakeExec {
    pub container: String,
    pub words: Vec<String>,
    pub user: String,
    pub running: bool,
    pub exit_code: Option<i64>,
}

/// What commands do: what they print to stdout and stderr, and their exit code.
pub type ExecResult = (&'static str, &'static str, i64);

#[derive(Default)]
pub struct EngineState {
    pub api_version: String,
    pub minimum: Option<(u32, u32)>,
    pub containers: Vec<FakeContainer>,
    pub execs: Vec<FakeExec>,
    /// By the first word of a command; others print nothing and end with 0.
    pub exec_results: BTreeMap<String, ExecResult>,
    /// Requests so far: method and path without the version.
    pub requests: Vec<String>,
    /// Full paths of the requests so far.
    pub paths: Vec<String>,
    /// Faults of the next requests that contain the text, each once.
    pub faults: Vec<(String, Fault)>,
    /// A fault of the request of this number.
    pub fault_at: Option<(usize, Fault)>,
    /// Called with the number of each request from 1, and whether it was carried out already.
    pub watcher: Option<Box<dyn FnMut(usize, bool) + Send>>,
    /// Counts the instants at which containers started and ended.
    pub ticks: u32,
    /// Instants are seconds after this one, in milliseconds since 1970; `None` for the system's clock.
    pub epoch_ms: Option<i64>,
}

/// The engine. It answers as long as this exists.
pub struct FakeEngine {
    pub folder: tempfile::TempDir,
    state: Arc<Mutex<EngineState>>,
}

impl FakeContainer {
    /// Creates a running container with an id made of its name.
    pub fn new(name: &str) -> FakeContainer {
        FakeContainer {
            id: id_of(name, 0),
            name: name.to_owned(),
            status: "running",
            labels: BTreeMap::new(),
            mounts: Vec::new(),
            networks: json!({}),
            ports: json!({}),
            host_config: json!({}),
            stop_timeout: None,
            started_at: "2026-11-22T00:00:00.5Z".to_owned(),
            finished_at: NEVER.to_owned(),
        }
    }

    pub fn label(mut self, name: &str, value: &str) -> FakeContainer {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn stopped(mut self) -> FakeContainer {
        self.status = "exited";
        self
    }

    /// Mounts a folder of the host at `/data`.
    pub fn bind(mut self, source: &std::path::Path) -> FakeContainer {
        self.mounts.push(json!({"Type": "bind", "Source": source, "Destination": "/data"}));
        self
    }

    /// Gives it a place in the compose project `stack`.
    pub fn compose(self, service: &str, depends_on: &str) -> FakeContainer {
        self.label("com.docker.compose.project", "stack")
            .label("com.docker.compose.service", service)
            .label("com.docker.compose.container-number", "1")
            .label("com.docker.compose.depends_on", depends_on)
    }

    fn running(&self) -> bool {
        matches!(self.status, "running" | "paused" | "restarting")
    }

    fn inspected(&self, execs: Vec<String>) -> Value {
        json!({
            "Id": self.id, "Name": format!("/{}", self.name), "Mounts": self.mounts, "HostConfig": self.host_config,
            "State": {"Status": self.status, "Running": self.running(), "Paused": self.status == "paused",
                      "Restarting": self.status == "restarting", "StartedAt": self.started_at,
                      "FinishedAt": self.finished_at},
            "Config": {"Hostname": &self.id[..12], "Labels": self.labels, "StopTimeout": self.stop_timeout},
            "NetworkSettings": {"Networks": self.networks, "Ports": self.ports}, "ExecIDs": execs,
        })
    }
}

/// Returns an id of 64 hexadecimal digits for the container of a name.
pub fn id_of(name: &str, generation: u8) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0<62}{generation:02x}")
}

impl FakeEngine {
    pub fn start(containers: Vec<FakeContainer>) -> FakeEngine {
        let folder = tempfile::tempdir().unwrap();
        let state = EngineState { api_version: "1.41".to_owned(), containers, ..EngineState::default() };
        let engine = FakeEngine { folder, state: Arc::new(Mutex::new(state)) };
        let listener = UnixListener::bind(engine.socket()).unwrap();
        let state = Arc::clone(&engine.state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (state, stream) = (Arc::clone(&state), stream.unwrap());
                std::thread::spawn(move || serve(&state, stream));
            }
        });
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    pub fn state(&self) -> MutexGuard<'_, EngineState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets the next request whose method and path contain `text` fail.
    pub fn fail(&self, text: &str, fault: Fault) {
        self.state().faults.push((text.to_owned(), fault));
    }

    /// Returns the requests that change something, with names in place of ids.
    pub fn changes(&self) -> Vec<String> {
        let state = self.state();
        let mut changes: Vec<String> = state.requests.iter().filter(|line| line.starts_with("POST")).cloned().collect();
        for change in &mut changes {
            for container in &state.containers {
                *change = change.replace(&container.id, &container.name);
            }
            *change = change.replace("POST /containers/", "").replace("POST /", "");
        }
        changes
    }

    pub fn status(&self, name: &str) -> &'static str {
        self.state().container(name).status
    }
}

impl EngineState {
    pub fn container(&mut self, name_or_id: &str) -> &mut FakeContainer {
        let found = self.containers.iter_mut().find(|found| found.name == name_or_id || found.id == name_or_id);
        found.unwrap_or_else(|| panic!("no container {name_or_id}"))
    }

    /// Returns the next instant, as engines write it.
    pub fn now(&mut self) -> String {
        self.ticks += 1;
        let at = match self.epoch_ms {
            Some(epoch) => chrono::DateTime::from_timestamp_millis(epoch).unwrap(),
            None => chrono::Utc::now(),
        };
        let nanoseconds = at.timestamp_subsec_millis() * 1_000_000 + self.ticks;
        format!("{}.{nanoseconds:09}Z", at.format("%Y-%m-%dT%H:%M:%S"))
    }

    /// Stops a container as a user does.
    pub fn stop(&mut self, name: &str) {
        let now = self.now();
        let container = self.container(name);
        (container.status, container.finished_at) = ("exited", now);
    }

    /// Starts a container as a user does.
    pub fn start(&mut self, name: &str) {
        let now = self.now();
        let container = self.container(name);
        (container.status, container.started_at) = ("running", now);
    }

    fn watch(&mut self, is_done: bool) {
        let number = self.requests.len();
        if let Some(watcher) = &mut self.watcher {
            watcher(number, is_done);
        }
    }

    fn take_fault(&mut self, line: &str) -> Option<Fault> {
        if let Some((_, fault)) = self.fault_at.take_if(|(number, _)| *number == self.requests.len()) {
            return Some(fault);
        }
        let at = self.faults.iter().position(|(text, _)| line.contains(text.as_str()))?;
        Some(self.faults.remove(at).1)
    }

    /// Carries out a request; returns status and body.
    fn act(&mut self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        let parts: Vec<&str> = path.split('?').next().unwrap().trim_matches('/').split('/').collect();
        let text = |status: u16, value: Value| (status, value.to_string().into_bytes());
        let error = |status: u16, message: String| text(status, json!({"message": message}));
        let known = |state: &Self, id: &str| state.containers.iter().any(|found| found.id == id || found.name == id);
        match (method, parts.as_slice()) {
            ("GET", ["_ping"]) => (200, b"OK".to_vec()),
            ("GET", ["containers", "json"]) => text(200, self.containers.iter().map(listed).collect()),
            (_, ["containers", id, _]) if !known(self, id) => error(404, format!("No such container: {id}")),
            ("GET", ["containers", id, "json"]) => {
                let container = self.container(id).clone();
                let execs = (0..self.execs.len()).filter(|&at| self.execs[at].container == container.id);
                text(200, container.inspected(execs.map(|at| at.to_string()).collect()))
            }
            ("POST", ["containers", id, "stop"]) => self.change(id, true),
            ("POST", ["containers", id, "start"]) => self.change(id, false),
            ("POST", ["containers", id, "exec"]) => self.create_exec(id, body),
            ("POST", ["exec", at, "start"]) => (200, self.run_exec(at.parse().unwrap())),
            ("GET", ["exec", at, "json"]) => {
                let exec = &self.execs[at.parse::<usize>().unwrap()];
                let process = json!({"entrypoint": exec.words[0], "arguments": exec.words[1..]});
                text(200, json!({"Running": exec.running, "ExitCode": exec.exit_code, "ProcessConfig": process}))
            }
            _ => error(400, format!("the tests know no {method} {path}")),
        }
    }

    fn change(&mut self, id: &str, is_stop: bool) -> (u16, Vec<u8>) {
        if self.container(id).running() != is_stop {
            return (304, Vec::new());
        }
        let name = self.container(id).name.clone();
        if is_stop {
            self.stop(&name)
        } else {
            self.start(&name)
        }
        (204, Vec::new())
    }

    fn create_exec(&mut self, id: &str, body: &str) -> (u16, Vec<u8>) {
        let container = self.container(id).clone();
        if container.status != "running" {
            let message = format!("Container {} is not running", container.id);
            return (409, json!({"message": message}).to_string().into_bytes());
        }
        let body: Value = serde_json::from_str(body).unwrap();
        let words = body["Cmd"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect();
        let user = body["User"].as_str().unwrap_or_default().to_owned();
        self.execs.push(FakeExec { container: container.id, words, user, running: false, exit_code: None });
        (201, json!({"Id": (self.execs.len() - 1).to_string()}).to_string().into_bytes())
    }

    fn run_exec(&mut self, at: usize) -> Vec<u8> {
        let exec = &mut self.execs[at];
        let (stdout, stderr, code) = self.exec_results.get(&exec.words[0]).copied().unwrap_or_default();
        (exec.running, exec.exit_code) = (false, Some(code));
        let mut frames = Vec::new();
        for (stream, text) in [(1, stdout), (2, stderr)].into_iter().filter(|(_, text)| !text.is_empty()) {
            frames.extend([stream, 0, 0, 0]);
            frames.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            frames.extend(text.as_bytes());
        }
        frames
    }
}

fn listed(container: &FakeContainer) -> Value {
    json!({"Id": container.id, "Names": [format!("/{}", container.name)], "Labels": container.labels,
           "State": container.status, "Mounts": container.mounts})
}

/// Answers the one request of a connection.
fn serve(state: &Mutex<EngineState>, mut stream: UnixStream) {
    let lock = || state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some((method, path, body)) = read_request(&mut stream) else { return };
    let (below, version) = match path.strip_prefix("/v").and_then(|rest| rest.split_once('/')) {
        Some((version, below)) => (format!("/{below}"), Some(version.to_owned())),
        None => (path.clone(), None),
    };
    let line = format!("{method} {below}");
    let fault = {
        let mut state = lock();
        state.requests.push(line.clone());
        state.paths.push(path);
        state.watch(false);
        state.take_fault(&line)
    };
    match fault {
        Some(Fault::CutBefore) => return,
        Some(Fault::Bytes(bytes)) => return drop(stream.write_all(bytes.as_bytes())),
        Some(Fault::Status(status, message)) => {
            return answer(&mut stream, "1.41", status, json!({"message": message}).to_string().as_bytes(), None);
        }
        Some(Fault::Slow(time)) => std::thread::sleep(time),
        _ => {}
    }
    let (api_version, (status, body)) = {
        let mut state = lock();
        let minor =
            version.and_then(|version| version.split_once('.').and_then(|(_, minor)| minor.parse::<u32>().ok()));
        let is_old = matches!((state.minimum, minor), (Some((_, minimum)), Some(minor)) if minor < minimum);
        let acted = match is_old {
            true => (400, json!({"message": "client version is too old"}).to_string().into_bytes()),
            false => state.act(&method, &below, &body),
        };
        state.watch(true);
        (state.api_version.clone(), acted)
    };
    match fault {
        Some(Fault::CutAfter) => {}
        Some(Fault::Drip(pause)) => answer(&mut stream, &api_version, status, &body, Some(pause)),
        _ => answer(&mut stream, &api_version, status, &body, None),
    }
}

fn read_request(stream: &mut UnixStream) -> Option<(String, String, String)> {
    let mut read = Vec::new();
    let head = loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        read.push(byte[0]);
        if read.ends_with(b"\r\n\r\n") {
            break String::from_utf8(read).unwrap();
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let mut words = head.split(' ');
    Some((words.next()?.to_owned(), words.next()?.to_owned(), String::from_utf8(body).unwrap()))
}

/// Sends an answer: a list in chunks, the output of commands until the end of the connection, the rest with a length.
fn answer(stream: &mut UnixStream, api_version: &str, status: u16, body: &[u8], pause: Option<Duration>) {
    let mut bytes = format!("HTTP/1.1 {status} X\r\nApi-Version: {api_version}\r\n").into_bytes();
    match body {
        _ if matches!(status, 204 | 304) => bytes.extend(b"\r\n"),
        [b'[', ..] => {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(100) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
            }
            bytes.extend(b"0\r\n\r\n");
        }
        [1 | 2, ..] | [] => bytes.extend(b"\r\n".iter().chain(body)),
        _ => bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes().chain(body.iter().copied())),
    }
    match pause {
        None => drop(stream.write_all(&bytes)),
        Some(pause) => {
            for piece in bytes.chunks(1) {
                if stream.write_all(piece).is_err() {
                    return;
                }
                std::thread::sleep(pause);
            }
        }
    }
}

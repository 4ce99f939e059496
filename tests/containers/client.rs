//! Requests and answers: versions, faults, commands; and that there are no other requests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_manager::cancel::CancelToken;
use backup_manager::clock::SystemClock;
use backup_manager::containers::{Change, Container, Endpoint, Engine, ExecCommand, TimeLimits};
use backup_manager::error::{Error, ErrorKind, Result};

use super::fake_engine::{FakeContainer, FakeEngine, Fault};

const LIMITS: TimeLimits = TimeLimits { answer: Duration::from_millis(400), stop: Duration::from_millis(800) };
const HOUR: Duration = Duration::from_secs(3600);

pub fn connect(fake: &FakeEngine) -> Result<Engine> {
    Engine::connect(Endpoint::Unix(fake.socket()), LIMITS, Arc::new(SystemClock::new()))
}

pub fn inspect(engine: &Engine, name: &str) -> Container {
    engine.inspect(name).unwrap().unwrap_or_else(|| panic!("no container {name}"))
}

/// Asserts that an error names each of `parts` and has a next step.
fn assert_names(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "\"{text}\" does not name {part}");
    }
    assert!(error.next_step().is_some(), "no next step: {text}");
}

#[test]
fn the_version_of_the_api_is_that_of_the_engine_and_never_newer_than_known() {
    for (offered, minimum, used) in [("1.41", None, "1.41"), ("1.52", Some((1, 44)), "1.47"), ("1.47", None, "1.47")] {
        let fake = FakeEngine::start(vec![FakeContainer::new("app")]);
        (fake.state().api_version, fake.state().minimum) = (offered.to_owned(), minimum);
        inspect(&connect(&fake).unwrap(), "app");
        assert_eq!(fake.state().paths, ["/_ping".to_owned(), format!("/v{used}/containers/app/json")]);
    }
    // An engine that knows only versions that are newer than this program.
    let fake = FakeEngine::start(vec![FakeContainer::new("app")]);
    (fake.state().api_version, fake.state().minimum) = ("1.60".to_owned(), Some((1, 55)));
    let error = connect(&fake).unwrap().inspect("app").unwrap_err();
    assert_names(&error, &["app", "400", "too old"]);
    assert!(error.next_step().unwrap().contains("version of this program"));
}

#[test]
fn what_no_engine_listens_on_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let connect_to = |path: &Path| {
        Engine::connect(Endpoint::Unix(path.to_owned()), LIMITS, Arc::new(SystemClock::new())).err().unwrap()
    };
    let missing = folder.path().join("missing.sock");
    assert_names(&connect_to(&missing), &["missing.sock", "No such file"]);
    let refusing = folder.path().join("refusing.sock");
    drop(std::os::unix::net::UnixListener::bind(&refusing).unwrap());
    assert_names(&connect_to(&refusing), &["refusing.sock", "refused"]);
    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o600)).unwrap();
    assert_names(&connect_to(&plain), &["plain"]);
    let tcp = Engine::connect(Endpoint::parse("tcp://127.0.0.1:1").unwrap(), LIMITS, Arc::new(SystemClock::new()));
    assert_names(&tcp.err().unwrap(), &["tcp://127.0.0.1:1"]);
}

#[test]
fn what_answers_and_is_no_engine_is_named() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK",
        "HTTP/1.1 200 OK\r\nApi-Version: x\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\n\r\n<html>nginx</html>",
    ] {
        let fake = FakeEngine::start(Vec::new());
        fake.fail("_ping", Fault::Bytes(answer));
        assert_names(&connect(&fake).err().unwrap(), &["docker.sock"]);
    }
}

#[test]
fn an_answer_that_fails_names_socket_container_reason_and_next_step() {
    let cases: [(Fault, &str, &str); 8] = [
        (Fault::Status(403, "Forbidden by the proxy"), "403: Forbidden by the proxy", "ALLOW_STOP=1"),
        (Fault::Status(409, "removal is in progress"), "409: removal is in progress", "docker ps"),
        (Fault::Status(500, "driver failed"), "500: driver failed", "log of the engine"),
        (Fault::CutBefore, "closed the connection", "docker ps"),
        (Fault::CutAfter, "closed the connection", "docker ps"),
        (Fault::Bytes("HTTP/1.1 200 OK\r\nContent-Le"), "closed the connection", "docker ps"),
        (Fault::Bytes("hello\r\n\r\n"), "makes no sense", "DOCKER_HOST"),
        (Fault::Slow(Duration::from_secs(3)), "did not answer within", "docker ps"),
    ];
    for (fault, reason, next) in cases {
        let fake = FakeEngine::start(vec![FakeContainer::new("app")]);
        let engine = connect(&fake).unwrap();
        let app = inspect(&engine, "app");
        fake.fail("stop", fault.clone());
        let failed = engine.stop(&app).unwrap_err();
        assert_names(&failed.error, &["stop the container app", "docker.sock", reason]);
        assert!(failed.error.next_step().unwrap().contains(next), "{:?}", failed.error.next_step());
        assert_eq!(failed.is_answered, matches!(fault, Fault::Status(400..500, _)), "{fault:?}");
    }
}

#[test]
fn an_answer_that_arrives_byte_by_byte_has_no_more_time_than_another() {
    let fake = FakeEngine::start(vec![FakeContainer::new("app")]);
    let engine = connect(&fake).unwrap();
    fake.fail("app/json", Fault::Drip(Duration::from_millis(20)));
    assert_names(&engine.inspect("app").unwrap_err(), &["inspect the container app", "did not answer within"]);
    fake.fail("app/json", Fault::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"));
    assert_names(&engine.inspect("app").unwrap_err(), &["inspect the container app", "makes no sense"]);
}

#[test]
fn stopping_and_starting_say_who_did_it() {
    let fake = FakeEngine::start(vec![FakeContainer::new("app")]);
    let engine = connect(&fake).unwrap();
    let app = inspect(&engine, "app");
    assert_eq!(engine.stop(&app).unwrap(), Change::Made);
    assert_eq!(engine.stop(&app).unwrap(), Change::WasSo);
    assert_eq!(engine.start(&app).unwrap(), Change::Made);
    assert_eq!(engine.start(&app).unwrap(), Change::WasSo);
    fake.state().containers.clear();
    assert_eq!(engine.stop(&app).unwrap(), Change::NotFound);
    assert_eq!(engine.start(&app).unwrap(), Change::NotFound);
    assert!(engine.inspect("app").unwrap().is_none());
    for name in ["", "..", "a/b", "a?b", "a b", "a\r\nX: y", "é"] {
        assert_eq!(engine.inspect(name).unwrap_err().kind(), ErrorKind::Usage, "{name:?}");
    }
}

fn command(words: &[&str]) -> ExecCommand {
    let words = words.iter().map(|&word| word.to_owned()).collect();
    ExecCommand { words, user: Some("postgres".to_owned()), env: vec!["BACKUP_SCHEDULE=db".to_owned()] }
}

#[test]
fn a_command_in_a_container_returns_its_output_and_its_exit_code() {
    let fake = FakeEngine::start(vec![FakeContainer::new("db")]);
    fake.state().exec_results.insert("pg_dump".to_owned(), ("dump", "warning", 3));
    let engine = connect(&fake).unwrap();
    let mut output = Vec::new();
    let mut sink = |is_error: bool, bytes: &[u8]| {
        output.push((is_error, String::from_utf8(bytes.to_owned()).unwrap()));
        Ok(())
    };
    let dump = command(&["pg_dump", "-Fc", "my db"]);
    let code = engine.execute(&inspect(&engine, "db"), &dump, HOUR, &CancelToken::new(), &mut sink).unwrap();
    assert_eq!(code, 3);
    assert_eq!(output, [(false, "dump".to_owned()), (true, "warning".to_owned())]);
    let exec = fake.state().execs[0].clone();
    assert_eq!((exec.words, exec.user.as_str()), (dump.words, "postgres"));
}

#[test]
fn a_command_that_does_not_end_or_cannot_begin_is_named() {
    let fake = FakeEngine::start(vec![FakeContainer::new("db"), FakeContainer::new("off").stopped()]);
    let engine = connect(&fake).unwrap();
    let run = |name: &str, limit: Duration, cancel: &CancelToken| {
        engine
            .execute(&inspect(&engine, name), &command(&["pg_dump", "a b"]), limit, cancel, &mut |_, _| Ok(()))
            .unwrap_err()
    };
    let never = CancelToken::new();
    assert_names(&run("off", HOUR, &never), &["pg_dump 'a b'", "container off", "409", "is not running"]);
    fake.fail("start", Fault::Slow(Duration::from_secs(3)));
    let error = run("db", Duration::from_millis(300), &never);
    assert_names(&error, &["pg_dump 'a b'", "container db", "goes on in the container"]);
    // It still runs when the next run comes.
    fake.state().execs[0].running = true;
    let error = run("db", HOUR, &never);
    assert_names(&error, &["pg_dump 'a b'", "container db", "still runs"]);
    assert_eq!((error.kind(), fake.state().execs.len()), (ErrorKind::Busy, 1));
    fake.state().execs[0].running = false;
    let cancelled = CancelToken::new();
    cancelled.cancel();
    let error = run("db", HOUR, &cancelled);
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    fake.fail("start", Fault::Bytes("HTTP/1.1 200 OK\r\n\r\nplain text without frames"));
    assert_names(&run("db", HOUR, &never), &["makes no sense"]);
}

/// Everything that the program can ask of an engine is in its code as one of these paths.
#[test]
fn only_these_requests_exist_in_the_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![folder];
    let mut found = Vec::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        if text.contains("UnixStream") && !path.ends_with("containers/endpoint.rs") {
            assert!(!text.contains("docker"), "{} connects to a socket of its own", path.display());
        }
        if path.ends_with("containers/engine.rs") {
            let quoted = text.split('"').skip(1).step_by(2).filter(|literal| literal.starts_with('/'));
            found.extend(quoted.map(str::to_owned));
            let methods = text.matches("self.send(\"").count() + text.matches("engine.send(\"").count();
            let known = ["self.send(\"POST\"", "self.send(\"GET\"", "engine.send(\"GET\""];
            assert_eq!(methods, known.iter().map(|call| text.matches(call).count()).sum::<usize>());
            assert!(text.contains("self.change(\"stop\", ") && text.contains("self.change(\"start\", "));
            assert_eq!(text.matches(".change(").count(), 2);
        } else {
            for path_of_api in ["/containers/", "/exec/", "/images", "/volumes", "/networks", "/build"] {
                let quoted = format!("\"{path_of_api}");
                assert!(!text.contains(&quoted), "{}: {quoted}", path.display());
            }
        }
    }
    found.sort();
    let paths = [
        "/_ping",
        "/containers/json?all=1",
        "/containers/{id}/{verb}",
        "/containers/{}/exec",
        "/containers/{}/json",
        "/exec/{}/json",
        "/exec/{}/start",
        "/v{}{below}",
    ];
    assert_eq!(found, paths);
}

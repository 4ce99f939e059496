//! Runs that stop containers and start them again, with the program itself and an engine on a socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use backup_manager::clock::{Clock, SystemClock};
use backup_manager::containers::StoppedContainer;
use backup_manager::liveness::Worker;
use backup_manager::schedule::{HookOptions, Hooks, ScheduleName};
use backup_manager::store::{
    Access, Bootstrap, ClaimNow, Duty, DutyKind, NewDuty, Role, RunRequest, ScheduleChanges, ScheduleHooks, Store,
    WorkerRow,
};

use super::client::{connect, inspect};
use super::fake_engine::{FakeContainer, FakeEngine, Fault};

pub const STOP: &str = "backup-manager.stop";

/// A home with a schedule `photos` that stops containers, and an engine.
pub struct Site {
    pub engine: FakeEngine,
    folder: tempfile::TempDir,
}

impl Site {
    pub fn new(containers: impl FnOnce(&Path) -> Vec<FakeContainer>) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("photos");
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(folder.path().join("other")).unwrap();
        fs::write(source.join("a.jpg"), "picture").unwrap();
        fs::write(folder.path().join("other/file"), "text").unwrap();
        let site = Site { engine: FakeEngine::start(containers(&source)), folder };
        site.ok(&["create", "photos", "--name", "photos", "--at", "03:00"]);
        site.ok(&["create", "other", "--name", "other", "--at", "03:00"]);
        site.set(HookOptions { containers: true, ..HookOptions::default() });
        site
    }

    pub fn set(&self, options: HookOptions) {
        let hooks = Hooks { options, ..Hooks::default() };
        let hooks = [(ScheduleName::parse("photos").unwrap(), ScheduleHooks { hooks, ..ScheduleHooks::default() })];
        let changes = ScheduleChanges { hooks: &hooks, ..ScheduleChanges::default() };
        self.store().apply_schedules(&changes, SystemClock::new().now()).unwrap();
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub fn store(&self) -> Store {
        let bootstrap = Bootstrap { access: Access::Create, file_mode: 0o600, folder_mode: 0o700, notice: |_| () };
        Store::open(&self.path("backup.db"), &bootstrap).unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("DOCKER_HOST", format!("unix://{}", self.engine.socket().display()));
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let text = text(&output);
        assert!(output.status.success(), "{args:?}: {text}");
        text
    }

    pub fn open(&self, kind: DutyKind) -> Vec<Duty> {
        self.store().open_duties().unwrap().into_iter().filter(|duty| duty.kind == kind).collect()
    }

    /// Stops a container as a run of `other` of a process that lives until the result is dropped.
    fn hold(&self, name: &str) -> Worker {
        let (store, now) = (self.store(), SystemClock::new().now());
        let worker = Worker::register(&self.path("backup.db.workers"), 0o700, now).unwrap();
        let host = "here".to_owned();
        let (uuid, pid) = (worker.uuid(), std::process::id());
        let row = WorkerRow { uuid, role: Role::Command, pid, host, started_at: now, stop_requested: None };
        store.add_worker(uuid, row.role, pid, &row.host, now).unwrap();
        let other = store.schedule_named("other").unwrap().unwrap().id;
        let (claimed, _) = store.claim_now(other, RunRequest { verify: true, reread: false }, &row, now).unwrap();
        let ClaimNow::Claimed(claim) = claimed else { panic!("no claim") };
        let engine = connect(&self.engine).unwrap();
        let container = inspect(&engine, name);
        let before = StoppedContainer::before_stop(&container, now);
        let subject = serde_json::to_string(&before).unwrap();
        let new = NewDuty { kind: DutyKind::Start, subject: &subject, shared_key: Some(&container.id) };
        let duty = store.plan_duty(&claim, &new, now).unwrap();
        engine.stop(&container).unwrap();
        let subject = serde_json::to_string(&before.after_stop(&engine)).unwrap();
        store.mark_duty_done(&duty, &subject).unwrap();
        worker
    }

    pub fn serve(&self) -> Child {
        self.command(&["serve"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Waits until the condition holds.
    pub fn eventually(&self, what: &str, holds: impl Fn(&Site) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}: {:#?}", self.engine.changes());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Ends a service in the way in which a supervisor does.
pub fn end(mut service: Child) {
    let pid = rustix::process::Pid::from_child(&service);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    service.wait().unwrap();
}

/// An application that depends on its database, and containers that are none of the run's business.
pub fn stack(source: &Path) -> Vec<FakeContainer> {
    let labelled = |name: &str| FakeContainer { stop_timeout: Some(0), ..FakeContainer::new(name) }.label(STOP, "true");
    vec![
        labelled("app").bind(source).compose("app", "db:service_started:false"),
        labelled("db").bind(source).compose("db", ""),
        labelled("off").bind(source).stopped(),
        // By its mounts it may be chosen: where these tests run in a container, nothing is known of its mounts.
        labelled("elsewhere").label("backup-manager.schedule", "elsewhere"),
        FakeContainer::new("plain").bind(source),
    ]
}

#[test]
fn a_run_stops_reads_and_starts_in_the_order_of_dependencies() {
    let site = Site::new(stack);
    let printed = site.ok(&["run", "photos"]);
    assert_eq!(site.engine.changes(), ["app/stop", "db/stop", "db/start", "app/start"], "{printed}");
    let statuses = ["app", "db", "off", "elsewhere", "plain"].map(|name| site.engine.status(name));
    assert_eq!(statuses, ["running", "running", "exited", "running", "running"]);
    assert!(site.store().open_duties().unwrap().is_empty());
    // What a user types if the program does not come back is in the log before anything is read.
    let log = fs::read_to_string(site.path("logs/backup_manager.log")).unwrap();
    assert!(log.contains("stopped app, db; if this program does not come back: docker start db app"), "{log}");
    // Schedules without the option leave containers alone, and need no engine.
    let before = site.engine.state().requests.len();
    site.ok(&["run", "other"]);
    assert_eq!(site.engine.state().requests.len(), before);
}

#[test]
fn commands_of_labels_surround_everything_and_their_output_is_kept() {
    let site = Site::new(|source| {
        let db = FakeContainer::new("db").bind(source).label(STOP, "true");
        let db = db.label("backup-manager.exec-before", "pg_dump -f '/dump/my db'");
        vec![db.label("backup-manager.exec-after", "cleanup /dump").label("backup-manager.exec-user", "postgres")]
    });
    site.engine.state().exec_results.insert("pg_dump".to_owned(), ("dumped 3 tables\n", "", 0));
    site.ok(&["run", "photos"]);
    let id = site.engine.state().container("db").id.clone();
    let changes: Vec<String> = site.engine.changes().iter().map(|line| line.replace(&id, "db")).collect();
    let expected = ["db/exec", "exec/0/start", "db/stop", "db/start", "db/exec", "exec/1/start"];
    assert_eq!(changes, expected);
    let execs = site.engine.state().execs.clone();
    assert_eq!(execs[0].words, ["pg_dump", "-f", "/dump/my db"]);
    assert_eq!(
        (execs[1].words.as_slice(), execs[1].user.as_str()),
        (["cleanup", "/dump"].map(str::to_owned).as_slice(), "postgres")
    );
    let outputs = site.store().command_outputs(1).unwrap();
    assert_eq!((outputs.len(), outputs[0].output.as_slice()), (2, b"dumped 3 tables\n".as_slice()));
    assert_eq!(outputs[0].container.as_deref(), Some("db"));
}

#[test]
fn what_a_command_in_a_container_prints_is_archived_unless_it_fails_or_is_empty() {
    let site = Site::new(|_| vec![FakeContainer::new("db")]);
    let create = ["create", "--source-command", "pg_dump app | cat", "--source-name", "app.dump"];
    site.ok(&[&create[..], &["--source-container", "db", "--name", "app", "--at", "03:00"]].concat());
    site.engine.state().exec_results.insert("/bin/sh".to_owned(), ("the dump", "a notice\n", 0));
    site.ok(&["run", "app"]);
    let execs = site.engine.state().execs.clone();
    assert_eq!(execs[0].words, ["/bin/sh", "-c", "pg_dump app | cat"]);
    assert_eq!(site.ok(&["cat", "app", "app.dump"]), "the dump");
    let outputs = site.store().command_outputs(1).unwrap();
    assert_eq!((outputs[0].output.as_slice(), outputs[0].container.as_deref()), (&b"a notice\n"[..], Some("db")));
    for (result, reason) in [
        (("half", "no such database\n", 1), "ended with exit code 1: no such database"),
        (("", "", 0), "has printed nothing"),
    ] {
        site.engine.state().exec_results.insert("/bin/sh".to_owned(), result);
        let output = site.run(&["run", "app"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(reason), "{}", text(&output));
    }
    let folder = fs::read_dir(site.path("backups/app")).unwrap();
    assert_eq!(folder.count(), 1, "the archive of the first run");
    site.ok(&["edit", "app", "--source-container", "gone"]);
    let output = site.run(&["run", "app"]);
    assert!(text(&output).contains("there is no container gone"), "{}", text(&output));
}

#[test]
fn a_command_before_that_fails_stops_nothing_and_the_one_after_is_executed() {
    let site = Site::new(|source| {
        let db = FakeContainer::new("db").bind(source).label(STOP, "true");
        vec![db.label("backup-manager.exec-before", "pg_dump").label("backup-manager.exec-after", "cleanup")]
    });
    site.engine.state().exec_results.insert("pg_dump".to_owned(), ("", "no such database\n", 1));
    let output = site.run(&["run", "photos"]);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("pg_dump in the container db ended with exit code 1: no such database"), "{printed}");
    assert_eq!(site.engine.changes(), ["db/exec", "exec/0/start", "db/exec", "exec/1/start"]);
    // Exit code 75 says that there is nothing to do.
    site.engine.state().exec_results.insert("pg_dump".to_owned(), ("", "", 75));
    assert!(site.ok(&["run", "photos"]).contains("skipped"));
    // A command after that fails makes the run incomplete: the archive is good.
    site.engine.state().exec_results.insert("pg_dump".to_owned(), ("", "", 0));
    site.engine.state().exec_results.insert("cleanup".to_owned(), ("", "disk full", 2));
    let output = site.run(&["run", "photos"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(
        text(&output).contains("cleanup in the container db ended with exit code 2: disk full"),
        "{}",
        text(&output)
    );
    assert!(site.store().open_duties().unwrap().is_empty() && site.engine.status("db") == "running");
}

#[test]
fn without_an_engine_or_with_a_refusal_the_run_fails_before_anything_is_stopped() {
    for (request, fault, reason) in [
        ("_ping", Fault::CutBefore, "closed the connection"),
        ("containers/json", Fault::Status(403, "Forbidden"), "403: Forbidden"),
        ("/json", Fault::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull"), "containers"),
    ] {
        let site = Site::new(stack);
        site.engine.fail(request, fault);
        let output = site.run(&["run", "photos"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(reason) && text(&output).contains("next: "), "{}", text(&output));
        assert!(site.engine.changes().is_empty());
    }
    let site = Site::new(stack);
    site.engine.state().container("app").host_config = serde_json::json!({"AutoRemove": true});
    let output = site.run(&["run", "photos"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("the container app cannot be stopped") && site.engine.changes().is_empty());
}

#[test]
fn a_container_that_does_not_stop_fails_the_run_and_those_before_it_are_started() {
    for fault in [Fault::Status(500, "cannot kill"), Fault::CutAfter] {
        let site = Site::new(stack);
        let id = site.engine.state().container("db").id.clone();
        site.engine.fail(&format!("{id}/stop"), fault.clone());
        let output = site.run(&["run", "photos"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("stop the container db"), "{}", text(&output));
        assert_eq!(["app", "db"].map(|name| site.engine.status(name)), ["running"; 2], "{fault:?}");
        assert!(site.store().open_duties().unwrap().is_empty());
    }
}

#[test]
fn a_container_that_does_not_start_is_tried_until_it_does() {
    let site = Site::new(stack);
    for _ in 0..2 {
        site.engine.fail("/start", Fault::Status(500, "port is already allocated"));
    }
    let started = Instant::now();
    site.ok(&["run", "photos"]);
    assert!(started.elapsed() > Duration::from_millis(900), "the second try came at once");
    assert_eq!(["app", "db"].map(|name| site.engine.status(name)), ["running"; 2]);
    let log = fs::read_to_string(site.path("logs/backup_manager.log")).unwrap();
    assert!(log.contains("port is already allocated") && log.contains("by hand: docker start db"), "{log}");
    assert!(site.store().open_duties().unwrap().is_empty());
}

#[test]
fn a_container_that_is_down_for_too_long_is_started_before_the_end() {
    let site = Site::new(|source| vec![FakeContainer::new("app").bind(source).label(STOP, "true")]);
    site.set(HookOptions { containers: true, max_downtime: Some(Duration::from_secs(1)), ..HookOptions::default() });
    // Random bytes at the highest level of zstd take longer than a second.
    let mut bytes = vec![0; 24 << 20];
    getrandom::fill(&mut bytes).unwrap();
    bytes.iter_mut().for_each(|byte| *byte &= 0x3f);
    fs::write(site.path("photos/large"), bytes).unwrap();
    site.ok(&["edit", "photos", "--compress", "zstd:19"]);
    let output = site.run(&["run", "photos"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("--max-downtime"), "{}", text(&output));
    assert_eq!(site.engine.changes(), ["app/stop", "app/start"]);
}

#[test]
fn a_container_that_two_runs_share_is_started_by_the_last_one() {
    let site = Site::new(stack);
    // Another run has stopped the application and still reads.
    let holder = site.hold("app");
    site.ok(&["run", "photos"]);
    assert_eq!(site.engine.changes(), ["app/stop", "app/stop", "db/stop", "db/start"]);
    assert_eq!((site.engine.status("app"), site.open(DutyKind::Start).len()), ("exited", 1));
    drop(holder);
    // Its process died: whoever comes next starts it.
    site.ok(&["run", "other"]);
    assert_eq!((site.engine.status("app"), site.open(DutyKind::Start).len()), ("running", 0));
}

#[test]
fn a_service_that_is_stopped_starts_containers_first() {
    let site = Site::new(|source| vec![FakeContainer::new("app").bind(source).label(STOP, "true")]);
    let mut bytes = vec![0; 64 << 20];
    getrandom::fill(&mut bytes).unwrap();
    bytes.iter_mut().for_each(|byte| *byte &= 0x3f);
    fs::write(site.path("photos/large"), bytes).unwrap();
    site.ok(&["edit", "photos", "--compress", "zstd:19"]);
    let service = site.serve();
    site.eventually("the service runs", |site| site.run(&["status", "--service"]).status.success());
    site.ok(&["run", "photos", "--queue", "--no-wait"]);
    site.eventually("it is stopped", |site| site.engine.status("app") == "exited");
    let started = Instant::now();
    end(service);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!((site.engine.status("app"), site.open(DutyKind::Start).len()), ("running", 0));
}

#[test]
fn status_names_labelled_containers_that_no_schedule_is_for() {
    let site = Site::new(stack);
    let printed = text(&site.run(&["status"]));
    assert!(printed.contains("the container elsewhere has labels for backups"), "{printed}");
    site.engine.state().containers.retain(|container| container.name != "elsewhere");
    let printed = text(&site.run(&["status"]));
    assert!(!printed.contains("labels for backups"), "{printed}");
    site.engine.fail("_ping", Fault::CutBefore);
    let printed = text(&site.run(&["status"]));
    assert!(printed.contains("runs that stop containers will fail") && printed.contains("docker.sock"), "{printed}");
}

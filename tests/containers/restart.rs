//! Starting again what was stopped, whatever others did meanwhile.

use backup_manager::clock::Timestamp;
use backup_manager::containers::{Engine, Restart, StoppedContainer};

use super::client::{connect, inspect};
use super::fake_engine::{FakeContainer, FakeEngine, Fault, NEVER, id_of};

/// 2026-11-23T00:00:00Z.
const NOW: Timestamp = Timestamp::from_millis(1_795_392_000_000);

struct Stack {
    fake: FakeEngine,
    engine: Engine,
}

impl Stack {
    fn new() -> Stack {
        let fake = FakeEngine::start(vec![FakeContainer::new("app").compose("app", "")]);
        fake.state().epoch_ms = Some(NOW.millis());
        let engine = connect(&fake).unwrap();
        Stack { fake, engine }
    }

    /// Describes the container and stops it, with the answer of the engine or without.
    fn stop(&self, is_answered: bool) -> StoppedContainer {
        let app = inspect(&self.engine, "app");
        let stopped = StoppedContainer::before_stop(&app, NOW);
        self.engine.stop(&app).unwrap();
        if is_answered { stopped.after_stop(&self.engine) } else { stopped }
    }

    fn restart(&self, stopped: &StoppedContainer, now: Timestamp) -> Restart {
        stopped.start_again(&self.engine, now).unwrap()
    }

    /// Replaces the container as compose does: same place in the project, another id and name.
    fn recreate(&self, name: &str, status: &'static str, started_at: &str) {
        let mut state = self.fake.state();
        let app = state.container("app");
        (app.id, app.name) = (id_of("app", 1), name.to_owned());
        (app.status, app.started_at) = (status, started_at.to_owned());
    }
}

fn later(seconds: u64) -> Timestamp {
    NOW.plus(std::time::Duration::from_secs(seconds))
}

#[test]
fn what_was_stopped_is_started_once() {
    for is_answered in [true, false] {
        let stack = Stack::new();
        let stopped = stack.stop(is_answered);
        assert_eq!(stack.restart(&stopped, NOW), Restart::Started);
        assert_eq!(stack.restart(&stopped, NOW), Restart::Running);
        assert_eq!(stack.fake.status("app"), "running");
    }
}

#[test]
fn a_stop_without_an_answer_is_waited_for() {
    let stack = Stack::new();
    let app = inspect(&stack.engine, "app");
    let stopped = StoppedContainer::before_stop(&app, NOW);
    // The container still shuts down: starting it now would do nothing, and it would end afterwards.
    let Restart::NotYet(until) = stack.restart(&stopped, NOW) else { panic!("it is not waited for") };
    assert!(until > later(10) && until < later(60), "{until:?}");
    stack.fake.state().stop("app");
    assert_eq!(stack.restart(&stopped, later(5)), Restart::Started);
    // Another one was never stopped.
    let stack = Stack::new();
    let stopped = StoppedContainer::before_stop(&inspect(&stack.engine, "app"), NOW);
    assert_eq!(stack.restart(&stopped, until), Restart::Running);
    assert!(stack.fake.changes().is_empty());
}

#[test]
fn what_others_stopped_or_removed_meanwhile_is_left_alone() {
    let stack = Stack::new();
    let stopped = stack.stop(true);
    stack.fake.state().start("app");
    assert_eq!(stack.restart(&stopped, NOW), Restart::Running);
    stack.fake.state().stop("app");
    assert!(matches!(stack.restart(&stopped, NOW), Restart::LeftAlone(_)));
    // The same if this program did not see the answer, and somebody stopped it later.
    let stack = Stack::new();
    let stopped = StoppedContainer::before_stop(&inspect(&stack.engine, "app"), NOW);
    stack.fake.state().epoch_ms = Some(later(600).millis());
    stack.fake.state().stop("app");
    assert!(matches!(stack.restart(&stopped, later(700)), Restart::LeftAlone(_)));
    stack.fake.state().containers.clear();
    assert!(matches!(stack.restart(&stopped, NOW), Restart::LeftAlone(_)));
    assert!(stack.fake.changes().iter().all(|change| !change.contains("start")));
}

#[test]
fn what_was_created_in_its_place_is_found() {
    // By compose, under another name.
    let stack = Stack::new();
    let stopped = stack.stop(true);
    stack.recreate("stack_app_1", "running", "2026-11-23T00:00:05Z");
    assert_eq!(stack.restart(&stopped, NOW), Restart::Running);
    // Created, and not started yet.
    let stack = Stack::new();
    let stopped = stack.stop(true);
    stack.recreate("stack_app_1", "created", NEVER);
    assert_eq!(stack.restart(&stopped, NOW), Restart::Started);
    assert_eq!(stack.fake.status("stack_app_1"), "running");
    // Stopped by somebody.
    let stack = Stack::new();
    let stopped = stack.stop(true);
    stack.recreate("stack_app_1", "exited", "2026-11-23T00:00:05Z");
    assert!(matches!(stack.restart(&stopped, NOW), Restart::LeftAlone(_)));
    // By its name, without compose.
    let stack = Stack::new();
    let stopped = stack.stop(true);
    stack.recreate("app", "created", NEVER);
    stack.fake.state().container("app").labels.clear();
    assert_eq!(stack.restart(&stopped, NOW), Restart::Started);
}

#[test]
fn an_engine_that_cannot_start_it_is_an_error_and_nothing_is_concluded() {
    let stack = Stack::new();
    let stopped = stack.stop(true);
    stack.fake.fail("start", Fault::Status(500, "port is already allocated"));
    let error = stopped.start_again(&stack.engine, NOW).unwrap_err().to_string();
    assert!(error.contains("start the container app") && error.contains("port is already allocated"), "{error}");
    for text in ["app/json", "containers/json"] {
        stack.fake.fail(text, Fault::Status(500, "x"));
    }
    stack.fake.fail("/json", Fault::CutBefore);
    assert!(stopped.start_again(&stack.engine, NOW).is_err());
    stack.fake.state().faults.clear();
    assert_eq!(stack.restart(&stopped, NOW), Restart::Started);
}

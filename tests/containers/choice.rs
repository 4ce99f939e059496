//! Which containers a run chooses, in which order, and which it refuses.

use std::collections::BTreeSet;
use std::path::Path;

use backup_manager::containers::{Choice, Own, Purpose, Stopping, choose, unmatched};
use backup_manager::error::Result;
use serde_json::json;

use super::client::connect;
use super::fake_engine::{FakeContainer, FakeEngine};

const STOP: &str = "backup-manager.stop";

fn purpose<'a>(schedule: &'a str, source: &'a Path) -> Purpose<'a> {
    Purpose { schedule, source, stop_label: "true" }
}

/// Chooses for the schedule `photos` of `/srv/photos`, from outside containers.
fn chosen(fake: &FakeEngine, held: &[String]) -> Result<Choice> {
    let held: BTreeSet<String> = held.iter().cloned().collect();
    choose(&connect(fake)?, &Own::default(), &purpose("photos", Path::new("/srv/photos")), &held)
}

fn names(choice: &Choice) -> Vec<&str> {
    choice.containers.iter().map(|chosen| chosen.container.name()).collect()
}

fn photos(name: &str) -> FakeContainer {
    FakeContainer::new(name).bind(Path::new("/srv/photos"))
}

#[test]
fn labelled_containers_that_mount_part_of_the_source_are_chosen() {
    let fake = FakeEngine::start(vec![
        photos("same").label(STOP, "true"),
        FakeContainer::new("above").bind(Path::new("/srv")).label(STOP, "true"),
        FakeContainer::new("below").bind(Path::new("/srv/photos/2026")).label(STOP, "true"),
        FakeContainer::new("beside").bind(Path::new("/srv/photos2")).label(STOP, "true"),
        FakeContainer::new("named").label(STOP, "true").label("backup-manager.schedule", "x, photos"),
        photos("other").label(STOP, "true").label("backup-manager.schedule", "x"),
        photos("unlabelled"),
        photos("no").label(STOP, "false"),
        photos("theirs").label("docker-volume-backup.stop-during-backup", "true"),
        photos("exec").label("docker-volume-backup.archive-pre", "sync").label("docker-volume-backup.copy-pre", "x"),
        photos("off").label(STOP, "true").stopped(),
        FakeContainer { status: "paused", ..photos("frozen").label(STOP, "true") },
        FakeContainer { status: "restarting", ..photos("looping").label(STOP, "true") },
    ]);
    let choice = chosen(&fake, &[]).unwrap();
    assert_eq!(names(&choice), ["above", "below", "exec", "looping", "named", "same", "theirs"]);
    let exec = &choice.containers[2];
    assert_eq!((exec.stopping, exec.exec_before.as_deref()), (Stopping::No, Some(["sync".to_owned()].as_slice())));
    assert_eq!(choice.notes.len(), 2, "{:?}", choice.notes);
    assert!(choice.notes[0].contains("copy-pre") && choice.notes[1].contains("frozen is paused"), "{:?}", choice.notes);
    // What another run has stopped is chosen as if it ran.
    let held = fake.state().container("off").id.clone();
    assert!(names(&chosen(&fake, &[held]).unwrap()).contains(&"off"));
    assert!(fake.changes().is_empty());
}

#[test]
fn containers_that_depend_on_others_are_stopped_before_them() {
    let fake = FakeEngine::start(vec![
        photos("a-db").label(STOP, "true").compose("db", ""),
        photos("b-cache").label(STOP, "true").compose("cache", ""),
        photos("c-app").label(STOP, "true").compose("app", "db:service_healthy:false,cache:service_started:true"),
        photos("d-web").label(STOP, "true").compose("web", "app:service_started:false"),
        photos("e-circle").label(STOP, "true").compose("one", "two:service_started:false"),
        photos("f-circle").label(STOP, "true").compose("two", "one:service_started:false"),
        photos("0-alone").label(STOP, "true"),
    ]);
    let choice = chosen(&fake, &[]).unwrap();
    assert_eq!(names(&choice), ["0-alone", "d-web", "c-app", "a-db", "b-cache", "e-circle", "f-circle"]);
}

#[test]
fn what_must_not_be_stopped_is_refused_by_name_before_anything_is() {
    let network = |address: &str, alias: &str| json!({"net": {"IPAddress": address, "Aliases": [alias]}});
    for (reason, container) in [
        ("--rm", FakeContainer { host_config: json!({"AutoRemove": true}), ..photos("x") }),
        ("Swarm", photos("x").label("com.docker.swarm.service.id", "1")),
        ("systemd", photos("x").label("PODMAN_SYSTEMD_UNIT", "x.service")),
        ("maybe", photos("x").label("backup-manager.stop", "maybe")),
        ("stopp", photos("x").label("backup-manager.stopp", "true")),
    ] {
        let container = match container.labels.contains_key(STOP) {
            true => container,
            false => container.label(STOP, "true"),
        };
        let fake = FakeEngine::start(vec![container, photos("fine").label(STOP, "true")]);
        let error = chosen(&fake, &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("nothing was stopped") && text.contains('x') && text.contains(reason), "{text}");
        assert!(error.next_step().is_some() && fake.changes().is_empty());
    }
    // A command in such a container is harmless.
    let exec = FakeContainer { host_config: json!({"AutoRemove": true}), ..photos("x") };
    let fake = FakeEngine::start(vec![FakeContainer {
        networks: network("10.0.0.9", "x"),
        ..exec.label("backup-manager.exec-before", "sync")
    }]);
    assert_eq!(names(&chosen(&fake, &[]).unwrap()), ["x"]);
}

#[test]
fn a_labelled_container_that_no_schedule_is_for_is_named() {
    let fake = FakeEngine::start(vec![
        photos("app").label(STOP, "true"),
        FakeContainer::new("elsewhere").bind(Path::new("/srv/music")).label(STOP, "true"),
        FakeContainer::new("misspelt").label(STOP, "true").label("backup-manager.schedule", "photo"),
        FakeContainer::new("daily").bind(Path::new("/srv/x")).label("docker-volume-backup.stop-during-backup", "daily"),
        FakeContainer::new("off").label(STOP, "true").stopped(),
    ]);
    let purposes = [purpose("photos", Path::new("/srv/photos"))];
    let names = unmatched(&connect(&fake).unwrap(), &Own::default(), &purposes).unwrap();
    assert_eq!(names, ["elsewhere", "misspelt", "off"]);
}

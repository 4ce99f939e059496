//! Which containers a run stops, and in which it executes commands: those with a label that mount part of its source.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use super::container::{Container, ListedContainer};
use super::endpoint::Endpoint;
use super::engine::Engine;
use super::labels::{Instructions, Stopping};
use super::own::{Own, Place};
use crate::error::{Error, Result};

/// Label of Swarm: the service that a container is a task of.
const SWARM_SERVICE: &str = "com.docker.swarm.service.id";
/// Label of Podman: the unit of systemd that manages a container.
const SYSTEMD_UNIT: &str = "PODMAN_SYSTEMD_UNIT";

/// The schedule for which containers are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Purpose<'a> {
    /// Name of the schedule.
    pub schedule: &'a str,
    /// Its source, an absolute path as this process sees it.
    pub source: &'a Path,
    /// Value of docker-volume-backup's stop label for which a container is stopped.
    pub stop_label: &'a str,
}

/// A container that a run does something with.
#[derive(Clone, Debug)]
pub struct ChosenContainer {
    /// As it was when it was chosen.
    pub container: Container,
    /// Whether it is stopped.
    pub stopping: Stopping,
    /// Words of the command that is executed in it before reading.
    pub exec_before: Option<Vec<String>>,
    /// Words of the command that is executed in it after reading.
    pub exec_after: Option<Vec<String>>,
    /// The user that executes them; `None` for that of the container.
    pub exec_user: Option<String>,
}

/// The containers of a run.
#[derive(Debug, Default)]
pub struct Choice {
    /// In the order in which they are stopped: those that depend on others first.
    pub containers: Vec<ChosenContainer>,
    /// Labels that are not carried, containers that are left as they are.
    pub notes: Vec<String>,
}

/// Chooses the containers for a schedule among those that run, and those in `held`: ids of containers that other runs
/// have stopped and will start.
///
/// Errors: the engine does not answer; a label is invalid; a container has to be stopped that must not be: this
/// program's own, its way to the engine, and those that would be gone or started by others. Nothing was done then.
pub fn choose(engine: &Engine, own: &Own, purpose: &Purpose<'_>, held: &BTreeSet<String>) -> Result<Choice> {
    let places = own.places(purpose.source);
    let mut choice = Choice::default();
    let mut refused = Vec::new();
    for listed in engine.list()? {
        let instructions = match Instructions::parse(&listed.labels, purpose.stop_label) {
            Ok(Some(instructions)) => Ok(instructions),
            Ok(None) => continue,
            Err(reason) => Err(reason),
        };
        let is_active = listed.is_active() || held.contains(&listed.id);
        let named = instructions.as_ref().ok().and_then(|found| found.schedules.as_ref());
        let Some(container) = engine.inspect(&listed.id)? else { continue };
        if !belongs(named, purpose.schedule, places.as_deref(), &container) {
            continue;
        }
        match instructions {
            Err(reason) => refused.push(format!("{}: {reason}", listed.name())),
            Ok(instructions) => {
                choice.notes.extend(notes_on(&listed, &instructions));
                if is_active && instructions.asks_for_anything() {
                    refused.extend(refusal(engine, own, &container, instructions.stopping));
                    choice.containers.push(ChosenContainer::new(container, instructions));
                }
            }
        }
    }
    if !refused.is_empty() {
        return Err(Error::failed(format!("nothing was stopped: {}", refused.join("; ")))
            .hint("remove or correct the label of that container, and create it again"));
    }
    choice.containers = in_stopping_order(choice.containers);
    Ok(choice)
}

/// Returns words and user of the command that the labels of a container name for after reading.
pub fn command_after(container: &Container, stop_label: &str) -> Option<(Vec<String>, Option<String>)> {
    let instructions = Instructions::parse(&container.config.labels, stop_label).ok().flatten()?;
    Some((instructions.exec_after?, instructions.exec_user))
}

/// Returns the names of labelled containers that belong to none of these schedules.
///
/// Errors: the engine does not answer.
pub fn unmatched(engine: &Engine, own: &Own, purposes: &[Purpose<'_>]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for listed in engine.list()? {
        let labelled = |purpose: &&Purpose<'_>| {
            let parsed = Instructions::parse(&listed.labels, purpose.stop_label);
            parsed.is_err() || parsed.is_ok_and(|found| found.is_some_and(|found| found.asks_for_anything()))
        };
        let wanted: Vec<_> = purposes.iter().filter(labelled).collect();
        if wanted.is_empty() {
            continue;
        }
        let Some(container) = engine.inspect(&listed.id)? else { continue };
        let is_matched = wanted.iter().any(|purpose| {
            let parsed = Instructions::parse(&listed.labels, purpose.stop_label).ok().flatten();
            let named = parsed.as_ref().and_then(|found| found.schedules.as_ref());
            belongs(named, purpose.schedule, own.places(purpose.source).as_deref(), &container)
        });
        if !is_matched {
            names.push(container.name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Returns whether a container belongs to a schedule: as its label says, else if it mounts part of the source, or if it
/// is not known where the source lies.
fn belongs(named: Option<&Vec<String>>, schedule: &str, places: Option<&[Place]>, container: &Container) -> bool {
    if let Some(names) = named {
        return names.iter().any(|name| name == schedule);
    }
    let Some(places) = places else { return true };
    container.mounts.iter().any(|mount| {
        let mounted = Place::in_mount(&mount.name, &mount.source, Path::new(""));
        places.iter().any(|place| place.overlaps(&mounted))
    })
}

fn notes_on(listed: &ListedContainer, instructions: &Instructions) -> Vec<String> {
    let name = listed.name();
    let mut notes: Vec<String> = instructions
        .not_carried
        .iter()
        .map(|label| format!("the label {label} of the container {name} has no counterpart and is ignored"))
        .collect();
    if listed.state == "paused" && instructions.asks_for_anything() {
        notes.push(format!("the container {name} is paused and is left as it is"));
    }
    notes
}

impl ChosenContainer {
    fn new(container: Container, instructions: Instructions) -> ChosenContainer {
        let Instructions { stopping, exec_before, exec_after, exec_user, .. } = instructions;
        ChosenContainer { container, stopping, exec_before, exec_after, exec_user }
    }
}

/// Returns why a container must not be stopped, with its name.
fn refusal(engine: &Engine, own: &Own, container: &Container, stopping: Stopping) -> Option<String> {
    if stopping == Stopping::No {
        return None;
    }
    let labels = &container.config.labels;
    let reason = if own.container.as_ref().is_some_and(|own| own.id == container.id) {
        "this program runs in it"
    } else if is_proxy(engine.endpoint(), engine.peer(), container) {
        "this program reaches the container engine through it"
    } else if own.container.as_ref().is_some_and(|own| shares_network(own, container)) {
        "this program shares its network"
    } else if container.host_config.auto_remove {
        "it was started with --rm, so that stopping it would remove it"
    } else if labels.contains_key(SWARM_SERVICE) {
        "it is a task of a Swarm service, which would replace it"
    } else if labels.contains_key(SYSTEMD_UNIT) {
        "a unit of systemd manages it, and would start it again"
    } else {
        return None;
    };
    Some(format!("the container {} cannot be stopped: {reason}", container.name()))
}

/// Returns whether the host of the endpoint is this container: by one of its names, its addresses, or a published port.
fn is_proxy(endpoint: &Endpoint, peer: Option<IpAddr>, container: &Container) -> bool {
    let Endpoint::Tcp { host, port } = endpoint else { return false };
    let service = container.compose().map(|compose| compose.service);
    let networks = || container.network_settings.networks.values();
    let names = networks().flat_map(|network| network.aliases.iter().chain(&network.dns_names)).map(String::as_str);
    let names = names.chain([container.name(), &container.config.hostname]).chain(service.as_deref());
    let is_named =
        names.into_iter().any(|name| name.eq_ignore_ascii_case(host)) || container.id.starts_with(host.as_str());
    let address = |text: &String| text.parse::<IpAddr>().ok();
    let addresses = networks().flat_map(|network| [address(&network.ip_address), address(&network.ipv6_address)]);
    let is_peer = peer.is_some() && addresses.into_iter().any(|address| address.is_some() && address == peer);
    let published = container.network_settings.ports.values().flatten().flatten();
    let is_local = peer.is_some_and(|peer| peer.is_loopback()) || host == "localhost";
    let is_published = is_local && published.into_iter().any(|published| published.host_port == port.to_string());
    is_named || is_peer || is_published
}

/// Returns whether one of both containers uses the network of the other, or both that of a third one.
fn shares_network(own: &Container, other: &Container) -> bool {
    let provider = |container: &Container| {
        let name = container.host_config.network_mode.strip_prefix("container:");
        name.filter(|name| !name.is_empty()).map(str::to_owned)
    };
    let is = |name: &str, container: &Container| container.id.starts_with(name) || container.name() == name;
    match (provider(own), provider(other)) {
        (Some(ours), Some(theirs)) => ours == theirs || is(&ours, other) || is(&theirs, own),
        (Some(ours), None) => is(&ours, other),
        (None, Some(theirs)) => is(&theirs, own),
        (None, None) => false,
    }
}

/// Orders containers so that those that depend on others by compose come before them, else by name. What depends on
/// itself in a circle comes last.
fn in_stopping_order(mut left: Vec<ChosenContainer>) -> Vec<ChosenContainer> {
    left.sort_by(|a, b| a.container.name().cmp(b.container.name()));
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let mut needed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for chosen in &left {
            let Some(compose) = chosen.container.compose() else { continue };
            let services = chosen.container.depends_on().filter(|service| *service != compose.service);
            needed.entry(compose.project).or_default().extend(services.map(str::to_owned));
        }
        let is_needed = |chosen: &ChosenContainer| {
            let compose = chosen.container.compose();
            compose.is_some_and(|own| needed.get(&own.project).is_some_and(|services| services.contains(&own.service)))
        };
        let (later, now): (Vec<_>, Vec<_>) = left.into_iter().partition(is_needed);
        if now.is_empty() {
            ordered.extend(later);
            break;
        }
        ordered.extend(now);
        left = later;
    }
    ordered
}

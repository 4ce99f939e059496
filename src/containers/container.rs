//! What the API returns about containers. Unknown fields are ignored; missing ones and `null` are empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Label of compose: name of the project.
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
/// Label of compose: name of the service in its file.
const COMPOSE_SERVICE: &str = "com.docker.compose.service";
/// Label of compose: which of several containers of a service.
const COMPOSE_NUMBER: &str = "com.docker.compose.container-number";
/// Label of compose: `SERVICE:CONDITION:RESTART,...` of each service that this one depends on.
const COMPOSE_DEPENDS_ON: &str = "com.docker.compose.depends_on";

/// Labels of a container.
pub type Labels = BTreeMap<String, String>;

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A container in the list of all.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedContainer {
    pub(super) id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) names: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: Labels,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) state: String,
}

/// A container in detail.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// Its name as the API writes it, with a slash.
    #[serde(rename = "Name", default, deserialize_with = "or_default")]
    slashed_name: String,
    /// What it does at the moment.
    pub state: State,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) config: Config,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) host_config: HostConfig,
    /// Folders of the host and volumes in it.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) network_settings: NetworkSettings,
    /// Commands that were started in it through the API and may still run.
    #[serde(rename = "ExecIDs", default, deserialize_with = "or_default")]
    pub(super) exec_ids: Vec<String>,
}

/// What a container does.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    /// It runs, paused or not.
    #[serde(default)]
    pub running: bool,
    /// It is frozen.
    #[serde(default)]
    pub paused: bool,
    /// The engine starts it again after it has ended.
    #[serde(default)]
    pub restarting: bool,
    /// When it was started last, as the engine writes it.
    #[serde(default, deserialize_with = "or_default")]
    pub started_at: String,
    /// When it ended last, as the engine writes it.
    #[serde(default, deserialize_with = "or_default")]
    pub finished_at: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Config {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) hostname: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: Labels,
    /// Seconds between SIGTERM and SIGKILL; negative: no limit.
    #[serde(default)]
    pub(super) stop_timeout: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostConfig {
    /// The engine removes the container when it ends (`--rm`).
    #[serde(default)]
    pub(super) auto_remove: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) network_mode: String,
}

/// A folder of the host or a volume in a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Mount {
    /// Name of the volume; empty for a folder of the host.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    /// Path on the host.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) source: String,
    /// Path in the container.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) destination: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetworkSettings {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) networks: BTreeMap<String, Network>,
    /// Ports of the host that lead to it.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) ports: BTreeMap<String, Option<Vec<PublishedPort>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Network {
    #[serde(rename = "Aliases", default, deserialize_with = "or_default")]
    pub(super) aliases: Vec<String>,
    #[serde(rename = "DNSNames", default, deserialize_with = "or_default")]
    pub(super) dns_names: Vec<String>,
    #[serde(rename = "IPAddress", default, deserialize_with = "or_default")]
    pub(super) ip_address: String,
    #[serde(rename = "GlobalIPv6Address", default, deserialize_with = "or_default")]
    pub(super) ipv6_address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PublishedPort {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) host_port: String,
}

/// What compose knows a container by, also after it was recreated.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct ComposeIdentity {
    /// Name of the project.
    pub project: String,
    /// Name of the service.
    pub service: String,
    /// Which container of the service.
    pub number: String,
}

impl ComposeIdentity {
    pub(super) fn of(labels: &Labels) -> Option<ComposeIdentity> {
        let label = |name: &str| labels.get(name).cloned();
        Some(ComposeIdentity {
            project: label(COMPOSE_PROJECT)?,
            service: label(COMPOSE_SERVICE)?,
            number: label(COMPOSE_NUMBER).unwrap_or_else(|| "1".to_owned()),
        })
    }
}

impl ListedContainer {
    /// Returns its name without the slash, else its id. A name with a second slash is that of a link to it.
    pub(super) fn name(&self) -> &str {
        let own = self.names.iter().map(|name| name.trim_start_matches('/')).find(|name| !name.contains('/'));
        own.unwrap_or(&self.id)
    }

    /// Returns what compose knows it by; `None` if it was not created by compose.
    pub(super) fn compose(&self) -> Option<ComposeIdentity> {
        ComposeIdentity::of(&self.labels)
    }

    /// Returns whether it runs or is being started again, but is not paused.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.state.as_str(), "running" | "restarting")
    }
}

impl Container {
    /// Returns its name.
    pub fn name(&self) -> &str {
        match self.slashed_name.trim_start_matches('/') {
            "" => &self.id,
            name => name,
        }
    }

    /// Returns what compose knows it by; `None` if it was not created by compose.
    pub fn compose(&self) -> Option<ComposeIdentity> {
        ComposeIdentity::of(&self.config.labels)
    }

    /// Returns the services of its compose project that it depends on.
    pub(super) fn depends_on(&self) -> impl Iterator<Item = &str> {
        let label = self.config.labels.get(COMPOSE_DEPENDS_ON).map_or("", String::as_str);
        label.split(',').filter_map(|dependency| dependency.split(':').next()).filter(|service| !service.is_empty())
    }
}

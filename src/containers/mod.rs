//! Container engines: Docker and Podman, through the API that both have, on a unix socket or `DOCKER_HOST`.
//!
//! Only what a run needs is in here, and no other request can be made: list, inspect, stop, start, and commands in
//! containers.

mod choice;
mod container;
mod endpoint;
mod engine;
mod exec;
mod failure;
mod http;
mod labels;
mod own;
mod restart;

pub use choice::{Choice, ChosenContainer, Purpose, choose, command_after, unmatched};
pub use container::{ComposeIdentity, Container, Labels, State};
pub use endpoint::{Endpoint, TimeLimits};
pub use engine::{ApiVersion, Change, Engine, ExecCommand, StopError};
pub use labels::{DEFAULT_STOP_LABEL, Stopping};
pub use own::Own;
pub use restart::{ContainerIdentity, Restart, StoppedContainer};

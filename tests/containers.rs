//! The client of container engines, against an engine on a socket that does what a test wants.

#[path = "containers/fake_engine.rs"]
mod fake_engine;

#[path = "containers/choice.rs"]
mod choice;
#[path = "containers/client.rs"]
mod client;
#[path = "containers/restart.rs"]
mod restart;
#[path = "containers/runs.rs"]
mod runs;
#[path = "containers/sweep.rs"]
mod sweep;

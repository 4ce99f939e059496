//! Child processes: the commands of a schedule, each run by `/bin/sh -c`.
//!
//! A command is given by the user, but nothing of this process is: it starts with an environment of its own, without
//! ambient capabilities, without descriptors, at normal priority, in its own process group. Its standard input is an
//! empty file that is locked as long as the command runs, so that the processes that a killed program left are found
//! and ended ([`end_orphans`]) before another command of the run is started (I16).

mod child;
mod descriptors;
mod environment;
mod orphans;
mod output;
mod process_table;
mod starter;
mod supervise;

pub use child::{ChildCommand, Children, Outcome};
pub use descriptors::keep_from_children;
pub use environment::{HookState, RunFacts, VARIABLES};
pub use orphans::{end_orphans, runs_with_commands};
pub use output::{OUTPUT_LIMIT, Output};
pub use starter::Starter;
pub use supervise::{Ended, Sink};

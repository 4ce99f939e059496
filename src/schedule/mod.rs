//! Schedules and their parts, as values: what, when, how, and what is kept.

mod cadence;
mod compression;
mod cron;
mod excludes;
mod name;
mod spec;
mod wall;

pub use cadence::{Cadence, DailyTimes, Missed, TimeOfDay};
pub use compression::Compression;
pub use cron::CronExpr;
pub use excludes::Excludes;
pub use name::ScheduleName;
pub use spec::Spec;

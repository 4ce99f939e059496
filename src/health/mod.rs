//! Health: overdue schedules, stalled runs, services that do not respond, damaged archives.
//!
//! Everything here is a pure function of rows, heartbeats and the time: no I/O, no clock. Facts about the
//! whole home, such as whether the database can be written, are not among them: `status` reads and judges those.

mod schedule;
mod service;

pub use schedule::{OVERDUE_GRACE, STALLED_AFTER, ScheduleFacts, ScheduleProblem, schedule_problems};
pub use service::{
    COPY_LIMIT, FIRST_COPY_LIMIT, LiveService, ServiceProblem, TICK_LIMIT, copy_problem, service_problems,
};

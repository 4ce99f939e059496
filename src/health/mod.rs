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

/// Times in the tests of schedules and services.
#[cfg(test)]
mod test_times {
    use std::time::Duration;

    use crate::clock::Timestamp;

    pub const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
    pub const MS: Duration = Duration::from_millis(1);
    pub const DAY: Duration = Duration::from_secs(86_400);

    pub fn ago(duration: Duration) -> Timestamp {
        NOW.minus(duration)
    }
}

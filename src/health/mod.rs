//! Health: overdue schedules, stalled runs, services that do not respond, damaged archives.
//!
//! What is wrong with schedules and services is decided by pure functions of rows, heartbeats and the time: no I/O,
//! no clock. [`HomeState`] and [`ScheduleState`] read these facts, for `status`, metrics and notifications alike, and
//! those about the whole home, such as whether the database can be written.

mod metrics;
mod schedule;
mod service;
mod state;

pub use metrics::metrics_text;
pub use schedule::{OVERDUE_GRACE, STALLED_AFTER, ScheduleFacts, ScheduleProblem, schedule_problems};
pub use service::{
    COPY_LIMIT, FIRST_COPY_LIMIT, LiveService, ServiceProblem, TICK_LIMIT, copy_problem, service_problems,
};
pub use state::{HomeProblem, HomeState, ScheduleState, live_services};

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

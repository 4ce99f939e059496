//! Health of the services: whether one is alive, responds and copies the database.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::liveness::Heartbeat;
use crate::store::{TaskState, WorkerRow};

/// A service whose last scheduler tick is older than this does not respond. Between two ticks it sleeps at most 30 s.
pub const TICK_LIMIT: Duration = Duration::from_secs(120);
/// The last copy of the database may be this old while a service is running: it makes one a day.
pub const COPY_LIMIT: Duration = Duration::from_secs(26 * 3600);
/// How long a service may take to make its first copy.
pub const FIRST_COPY_LIMIT: Duration = Duration::from_secs(600);

/// A service process and its heartbeat, if that could be read.
pub type LiveService = (WorkerRow, Option<Heartbeat>);

/// Something wrong with the service that its rows and heartbeats show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceProblem {
    /// No service is alive.
    NotRunning,
    /// The service process is alive, and its last tick is older than [`TICK_LIMIT`].
    NotResponding {
        /// Its process.
        pid: u32,
        /// Time since its last tick.
        silent_for: Duration,
    },
    /// A service is running, and its last attempt to copy the database failed.
    CopyFailed,
    /// A service is running, and no copy of the database was begun for more than [`COPY_LIMIT`].
    NoRecentCopy {
        /// The age of the last copy; `None` if there was none.
        age: Option<Duration>,
    },
    /// The service reports in its heartbeat why it does no work.
    Reported {
        /// Its process.
        pid: u32,
        /// The reason, as the service wrote it.
        reason: String,
    },
}

/// Returns the problems of the services that are alive, in the order of `services`. A service whose heartbeat could not
/// be read is alive and has no problem.
pub fn service_problems(services: &[LiveService], now: Timestamp) -> Vec<ServiceProblem> {
    if services.is_empty() {
        return vec![ServiceProblem::NotRunning];
    }
    let mut problems = Vec::new();
    for (row, heartbeat) in services {
        let Some(heartbeat) = heartbeat else { continue };
        let silent_for = now.since(Timestamp::from_millis(heartbeat.ticked_at_ms));
        if silent_for > TICK_LIMIT {
            problems.push(ServiceProblem::NotResponding { pid: row.pid, silent_for });
        }
        if let Some(reason) = &heartbeat.trouble {
            problems.push(ServiceProblem::Reported { pid: row.pid, reason: reason.clone() });
        }
    }
    problems
}

/// Returns the problem of a database that no service could copy lately. A service that has just started has time to
/// make its first copy.
pub fn copy_problem(services: &[LiveService], copy: TaskState, now: Timestamp) -> Option<ServiceProblem> {
    if !services.iter().any(|(row, _)| now.since(row.started_at) > FIRST_COPY_LIMIT) {
        return None;
    }
    match copy {
        TaskState::Failed => Some(ServiceProblem::CopyFailed),
        TaskState::NeverStarted => Some(ServiceProblem::NoRecentCopy { age: None }),
        TaskState::Started(at) => {
            let age = now.since(at);
            (age > COPY_LIMIT).then_some(ServiceProblem::NoRecentCopy { age: Some(age) })
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::health::test_times::{DAY, MS, NOW, ago};
    use crate::store::Role;

    fn service(ticked_at: Timestamp, trouble: Option<&str>) -> LiveService {
        let row = WorkerRow {
            uuid: Uuid::nil(),
            role: Role::Service,
            pid: 7,
            host: "host".to_owned(),
            started_at: ago(DAY),
            stop_requested: None,
        };
        let trouble = trouble.map(str::to_owned);
        (row, Some(Heartbeat { pid: 7, ticked_at_ms: ticked_at.millis(), trouble, ..Heartbeat::default() }))
    }

    #[test]
    fn a_service_responds_up_to_the_tick_limit() {
        let problems = |silent_for| service_problems(&[service(ago(silent_for), None)], NOW);
        assert_eq!(problems(TICK_LIMIT), []);
        let silent_for = TICK_LIMIT + MS;
        assert_eq!(problems(silent_for), [ServiceProblem::NotResponding { pid: 7, silent_for }]);
    }

    #[test]
    fn a_tick_in_the_future_is_no_problem() {
        assert_eq!(service_problems(&[service(NOW.plus(DAY), None)], NOW), []);
    }

    #[test]
    fn no_live_service_is_a_problem_and_one_without_a_heartbeat_is_none() {
        assert_eq!(service_problems(&[], NOW), [ServiceProblem::NotRunning]);
        let (row, _) = service(NOW, None);
        assert_eq!(service_problems(&[(row, None)], NOW), []);
    }

    #[test]
    fn a_silent_service_and_what_it_reported_are_two_problems() {
        let silent_for = TICK_LIMIT * 2;
        let problems = service_problems(&[service(ago(silent_for), Some("the disk is full"))], NOW);
        let reported = ServiceProblem::Reported { pid: 7, reason: "the disk is full".to_owned() };
        assert_eq!(problems, [ServiceProblem::NotResponding { pid: 7, silent_for }, reported]);
    }

    #[test]
    fn a_running_service_without_a_recent_copy_is_a_problem_once_it_had_time_to_make_one() {
        let since = |age| {
            let (mut row, heartbeat) = service(NOW, None);
            row.started_at = ago(age);
            [(row, heartbeat)]
        };
        let check = |age, copy| copy_problem(&since(age), copy, NOW);
        let copied = |age| TaskState::Started(ago(age));
        assert_eq!(check(FIRST_COPY_LIMIT, TaskState::NeverStarted), None);
        let none_yet = Some(ServiceProblem::NoRecentCopy { age: None });
        assert_eq!(
            check(FIRST_COPY_LIMIT + MS, TaskState::NeverStarted),
            none_yet,
            "no attempt was made, so none failed"
        );
        assert_eq!(check(DAY, TaskState::Failed), Some(ServiceProblem::CopyFailed));
        assert_eq!(check(DAY, copied(COPY_LIMIT)), None);
        let age = Some(COPY_LIMIT + MS);
        assert_eq!(check(DAY, copied(COPY_LIMIT + MS)), Some(ServiceProblem::NoRecentCopy { age }));
        assert_eq!(copy_problem(&[], TaskState::NeverStarted, NOW), None, "no service is running");
    }
}

//! The state as metrics, in the text format of Prometheus.

use std::fmt::Write;

use super::{HomeState, ScheduleProblem, ScheduleState};
use crate::clock::Timestamp;
use crate::store::RunState;

/// How the last run of a schedule may have ended.
const LAST_STATES: [RunState; 4] = [RunState::Succeeded, RunState::Incomplete, RunState::Failed, RunState::Missed];

/// A value that some schedules have.
type Value = fn(&ScheduleState) -> Option<f64>;

/// The metrics of a schedule: name, help, value.
const OF_SCHEDULE: [(&str, &str, Value); 16] = [
    ("schedule_enabled", "Whether the schedule is not paused.", |state| flag(state.row.schedule.enabled)),
    ("schedule_overdue", "Whether the newest good archive is older than one period and 3 hours.", |state| {
        flag(has(state, |problem| {
            matches!(problem, ScheduleProblem::Overdue { .. } | ScheduleProblem::OverdueWithoutArchive { .. })
        }))
    }),
    ("schedule_running", "Whether a run is running.", |state| flag(state.is_running)),
    ("schedule_stalled", "Whether the running run makes no progress.", |state| {
        flag(has(state, |problem| matches!(problem, ScheduleProblem::Stalled { .. })))
    }),
    ("schedule_problems", "Number of things that `status` reports as wrong with the schedule.", |state| {
        Some(state.problems.len() as f64)
    }),
    ("next_run_timestamp_seconds", "When the next run is due.", |state| {
        state.row.watermark.next_due.filter(|_| state.row.schedule.enabled).map(seconds)
    }),
    ("last_success_timestamp_seconds", "When the newest good archive was made.", |state| {
        state.newest.as_ref().map(|archive| seconds(archive.created_at))
    }),
    ("last_verification_timestamp_seconds", "When the newest good archive was last read back.", |state| {
        state.newest.as_ref().and_then(|archive| archive.verified_at).map(seconds)
    }),
    ("newest_archive_bytes", "Size of the newest good archive.", |state| {
        state.newest.as_ref().map(|archive| archive.size as f64)
    }),
    ("unhealthy_archives", "Number of archives that are damaged or missing.", |state| {
        Some(state.unhealthy_archives as f64)
    }),
    ("last_run_timestamp_seconds", "When the last run ended.", |state| {
        state.last.as_ref().and_then(|run| run.finished_at).map(seconds)
    }),
    ("last_run_duration_seconds", "How long the last run took.", |state| {
        let run = state.last.as_ref()?;
        Some(run.finished_at?.since(run.started_at?).as_secs_f64())
    }),
    ("last_run_unread_paths", "Number of paths that the last run could not read completely.", |state| {
        state.last.as_ref().map(|run| run.counts.losses as f64)
    }),
    ("last_run_new_unread_paths", "Those that the run before it could read, until they are accepted.", |state| {
        state.last.as_ref().map(|_| state.new_problems as f64)
    }),
    ("last_restore_test_timestamp_seconds", "When the last restore test ended.", |state| {
        state.drill.as_ref().and_then(|drill| drill.finished_at).map(seconds)
    }),
    ("last_restore_test_passed", "Whether the last restore test restored everything as it was.", |state| {
        state.drill.as_ref().and_then(|drill| flag(drill.passed))
    }),
];

/// Returns the state in the text format of Prometheus, without timestamps of samples.
///
/// `is_healthy` is whether `status` exits with 0.
pub fn metrics_text(home: &HomeState, schedules: &[&ScheduleState], is_healthy: bool, now: Timestamp) -> String {
    let mut text = String::new();
    let of_home = [
        ("status_timestamp_seconds", "When these metrics were read.", Some(seconds(now))),
        ("healthy", "Whether nothing is wrong: `status` exits with 0.", flag(is_healthy)),
        ("services", "Number of services that are alive.", Some(home.services.len() as f64)),
        ("home_problems", "Number of things wrong with service, database or archive folder.", {
            Some(home.problems.len() as f64)
        }),
    ];
    for (name, help, value) in of_home {
        family(&mut text, name, help, value.map(|value| (String::new(), value)));
    }
    let labels: Vec<String> = schedules.iter().map(|state| label(state.row.schedule.name.as_str())).collect();
    let named = || schedules.iter().zip(&labels);
    for (name, help, value) in OF_SCHEDULE {
        let samples = named().filter_map(|(state, label)| Some((format!("{{{label}}}"), value(state)?)));
        family(&mut text, name, help, samples);
    }
    let states = named().filter_map(|(state, label)| Some((state.last.as_ref()?.state, label)));
    let samples = states.flat_map(|(last, label)| {
        LAST_STATES
            .map(|state| (format!("{{{label},state=\"{}\"}}", state.as_str()), f64::from(u8::from(state == last))))
    });
    family(&mut text, "last_run_state", "How the last run ended: 1 for its state.", samples);
    text
}

/// Adds a metric with its samples: labels in braces, and value. One without samples is left out.
fn family(text: &mut String, name: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return;
    }
    let _ = write!(text, "# HELP backup_manager_{name} {help}\n# TYPE backup_manager_{name} gauge\n");
    for (labels, value) in samples {
        let _ = writeln!(text, "backup_manager_{name}{labels} {value}");
    }
}

/// Returns the label with the name of a schedule, in which a database of others may hold any character.
fn label(name: &str) -> String {
    let escaped = name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("schedule=\"{escaped}\"")
}

fn has(state: &ScheduleState, is_one: fn(&ScheduleProblem) -> bool) -> bool {
    state.problems.iter().any(is_one)
}

fn flag(is_true: bool) -> Option<f64> {
    Some(f64::from(u8::from(is_true)))
}

fn seconds(at: Timestamp) -> f64 {
    at.millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_escapes_what_would_end_it() {
        assert_eq!(label("a\"b\\c\nd é"), r#"schedule="a\"b\\c\nd é""#);
    }
}

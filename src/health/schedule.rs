//! Health of a schedule: what its rows and heartbeats show to be wrong.

use std::time::Duration;

use chrono_tz::Tz;

use crate::clock::Timestamp;
use crate::liveness::RunHeartbeat;
use crate::store::{Archive, Drill, Run, RunState, ScheduleRow};

/// How much older than one period the newest good archive may be.
pub const OVERDUE_GRACE: Duration = Duration::from_secs(3 * 3600);
/// A writing run whose numbers have not changed for longer than this is stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(15 * 60);

/// What the database and the heartbeats hold about one schedule.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleFacts<'a> {
    /// The schedule.
    pub row: &'a ScheduleRow,
    /// The zone of its cadence.
    pub zone: Tz,
    /// The run that ended last.
    pub last_run: Option<&'a Run>,
    /// The archive of that run.
    pub last_archive: Option<&'a Archive>,
    /// Problems of that run that the run before it did not have; zero if they were accepted.
    pub new_problems: u64,
    /// The newest archive that is good in the sense of I8.
    pub newest_good: Option<&'a Archive>,
    /// Archives that are damaged or missing.
    pub unhealthy_archives: u64,
    /// The last restore test.
    pub last_drill: Option<&'a Drill>,
    /// Whether a run of it is running.
    pub is_running: bool,
    /// The heartbeat of that run, if its worker wrote one.
    pub run_heartbeat: Option<&'a RunHeartbeat>,
    /// Its commands that nobody approved, in words.
    pub held_commands: Option<&'a str>,
}

/// Something wrong with a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScheduleProblem {
    /// The last run failed, and nobody accepted it.
    RunFailed {
        /// Number of the run.
        run: i64,
        /// Why it failed, if that is known.
        error: Option<String>,
    },
    /// The last run could not read paths that the run before it could.
    NewUnreadablePaths {
        /// Number of the run.
        run: i64,
        /// How many there are.
        count: u64,
    },
    /// The last archive holds less than half of what the one before it held, and nobody accepted it.
    SuspectArchive {
        /// Number of its run.
        run: i64,
    },
    /// Archives are damaged or missing.
    UnhealthyArchives {
        /// How many there are.
        count: u64,
    },
    /// The last restore test failed.
    DrillFailed {
        /// Why it failed.
        error: String,
    },
    /// The newest good archive is older than one period and [`OVERDUE_GRACE`].
    Overdue {
        /// The age of that archive.
        newest_good_age: Duration,
    },
    /// There is no good archive, although one period and [`OVERDUE_GRACE`] have passed.
    OverdueWithoutArchive {
        /// Time since the schedule was created or last edited.
        waiting_for: Duration,
    },
    /// Commands are held, and no run is begun until they are approved.
    CommandsHeld {
        /// Kinds and commands.
        commands: String,
    },
    /// The numbers of the running run have not changed for longer than [`STALLED_AFTER`].
    Stalled {
        /// Number of the run.
        run: i64,
        /// Time since its numbers last changed.
        stalled_for: Duration,
    },
}

/// Returns the problems of a schedule, always in the same order.
pub fn schedule_problems(facts: &ScheduleFacts<'_>, now: Timestamp) -> Vec<ScheduleProblem> {
    let mut problems = Vec::new();
    if let Some(run) = facts.last_run {
        if run.state == RunState::Failed && !run.accepted {
            problems.push(ScheduleProblem::RunFailed { run: run.id, error: run.error.clone() });
        }
        if facts.new_problems > 0 {
            problems.push(ScheduleProblem::NewUnreadablePaths { run: run.id, count: facts.new_problems });
        }
    }
    if let Some(archive) = facts.last_archive.filter(|archive| archive.suspect) {
        problems.push(ScheduleProblem::SuspectArchive { run: archive.run });
    }
    if facts.unhealthy_archives > 0 {
        problems.push(ScheduleProblem::UnhealthyArchives { count: facts.unhealthy_archives });
    }
    if let Some(error) = facts.last_drill.and_then(|drill| drill.error.clone()) {
        problems.push(ScheduleProblem::DrillFailed { error });
    }
    if let Some(commands) = facts.held_commands {
        problems.push(ScheduleProblem::CommandsHeld { commands: commands.to_owned() });
    }
    let newest_good = facts.newest_good.map(|archive| archive.created_at);
    problems.extend(overdue(facts.row, facts.zone, newest_good, facts.is_running, now));
    problems.extend(facts.run_heartbeat.and_then(|heartbeat| stalled(heartbeat, now)));
    problems
}

/// Returns the problem of a schedule that has had no good archive for one period and [`OVERDUE_GRACE`].
///
/// A schedule without a cadence, a paused one, and one whose first run is running are never overdue. One that was just
/// created, edited or resumed has its period from then on.
fn overdue(
    row: &ScheduleRow,
    zone: Tz,
    newest_good: Option<Timestamp>,
    is_running: bool,
    now: Timestamp,
) -> Option<ScheduleProblem> {
    let cadence = row.schedule.cadence.as_ref().filter(|_| row.schedule.enabled)?;
    if newest_good.is_none() && is_running {
        return None;
    }
    let waiting_since = newest_good.unwrap_or(row.created_at).max(row.edited_at);
    let waiting_for = now.since(waiting_since);
    (waiting_for > cadence.period(zone, now) + OVERDUE_GRACE).then(|| match newest_good {
        Some(at) => ScheduleProblem::Overdue { newest_good_age: now.since(at) },
        None => ScheduleProblem::OverdueWithoutArchive { waiting_for },
    })
}

/// Returns the problem of a stalled run. Only a run that writes can be one: while it scans the source or verifies the
/// archive, its numbers do not change.
fn stalled(heartbeat: &RunHeartbeat, now: Timestamp) -> Option<ScheduleProblem> {
    let stalled_for = now.since(Timestamp::from_millis(heartbeat.moved_at_ms));
    (heartbeat.phase == "writing" && stalled_for > STALLED_AFTER)
        .then_some(ScheduleProblem::Stalled { run: heartbeat.run, stalled_for })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::test_times::{DAY, MS, NOW, ago};
    use crate::member::Extent;
    use crate::schedule::Layout;
    use crate::schedule::{Cadence, Schedule, ScheduleName};
    use crate::store::{Health, RunCounts, Trigger, Watermark};

    /// A daily schedule, created and edited 100 days ago.
    fn daily() -> ScheduleRow {
        let name = ScheduleName::parse("docs").unwrap();
        ScheduleRow {
            id: 1,
            schedule: Schedule::new(name, b"/docs".to_vec(), Cadence::parse_daily("09:00").unwrap()),
            watermark: Watermark { handled_until: ago(DAY), next_due: None },
            accepted: false,
            reuse_off: false,
            deleted: false,
            managed_by: None,
            created_at: ago(DAY * 100),
            edited_at: ago(DAY * 100),
        }
    }

    fn failed_run() -> Run {
        Run {
            id: 17,
            schedule_id: 1,
            schedule_name: "docs".to_owned(),
            trigger: Trigger::Schedule,
            scheduled_for: None,
            coalesced: 0,
            state: RunState::Failed,
            attempt: 1,
            worker: None,
            not_before: NOW,
            queued_at: NOW,
            started_at: None,
            finished_at: None,
            counts: RunCounts::default(),
            accepted: false,
            base_run: None,
            superseded_by: None,
            error: Some("no space".to_owned()),
        }
    }

    fn suspect_archive() -> Archive {
        Archive {
            run: 17,
            schedule_id: 1,
            schedule_name: "docs".to_owned(),
            file_name: "docs/docs-20261118T110640Z-17.tar".to_owned(),
            created_at: NOW,
            size: 1,
            digest: None,
            archive_file: 1,
            names: 1,
            health: Health::Good,
            verified_at: None,
            incomplete: false,
            suspect: true,
            pinned: false,
            manual: false,
            is_rescanned: false,
            good: false,
            layout: Layout::Whole,
            files: Vec::new(),
            extent: Extent::default(),
        }
    }

    fn no_problems(row: &ScheduleRow) -> ScheduleFacts<'_> {
        ScheduleFacts {
            row,
            zone: Tz::UTC,
            last_run: None,
            last_archive: None,
            new_problems: 0,
            newest_good: None,
            unhealthy_archives: 0,
            last_drill: None,
            is_running: true,
            run_heartbeat: None,
            held_commands: None,
        }
    }

    #[test]
    fn a_schedule_is_overdue_after_one_period_and_the_grace() {
        let check = |age| overdue(&daily(), Tz::UTC, Some(ago(age)), false, NOW);
        assert_eq!(check(DAY + OVERDUE_GRACE), None);
        let newest_good_age = DAY + OVERDUE_GRACE + MS;
        assert_eq!(check(newest_good_age), Some(ScheduleProblem::Overdue { newest_good_age }));
    }

    #[test]
    fn a_running_run_excuses_a_schedule_without_an_archive_only() {
        assert_eq!(overdue(&daily(), Tz::UTC, None, true, NOW), None);
        assert!(overdue(&daily(), Tz::UTC, Some(ago(DAY * 2)), true, NOW).is_some());
    }

    #[test]
    fn a_schedule_without_an_archive_waits_from_its_creation() {
        let waiting_for = DAY + OVERDUE_GRACE + MS;
        let check = |created_at| {
            let row = ScheduleRow { created_at, edited_at: created_at, ..daily() };
            overdue(&row, Tz::UTC, None, false, NOW)
        };
        assert_eq!(check(ago(waiting_for - MS)), None);
        assert_eq!(check(ago(waiting_for)), Some(ScheduleProblem::OverdueWithoutArchive { waiting_for }));
    }

    #[test]
    fn an_edited_schedule_has_its_period_again() {
        let check = |edited_ago| {
            let row = ScheduleRow { edited_at: ago(edited_ago), ..daily() };
            overdue(&row, Tz::UTC, Some(ago(DAY * 50)), false, NOW)
        };
        assert_eq!(check(DAY + OVERDUE_GRACE), None);
        let overdue = ScheduleProblem::Overdue { newest_good_age: DAY * 50 };
        assert_eq!(check(DAY + OVERDUE_GRACE + MS), Some(overdue), "the age is that of the archive");
    }

    #[test]
    fn a_paused_schedule_and_one_without_a_cadence_are_never_overdue() {
        let (mut paused, mut without_cadence) = (daily(), daily());
        paused.schedule.enabled = false;
        without_cadence.schedule.cadence = None;
        for row in [paused, without_cadence] {
            assert_eq!(overdue(&row, Tz::UTC, None, false, NOW), None);
        }
    }

    #[test]
    fn a_writing_run_is_stalled_after_the_limit_and_no_other_is() {
        let check = |phase: &str, stalled_for| {
            let moved_at_ms = ago(stalled_for).millis();
            stalled(&RunHeartbeat { run: 17, phase: phase.to_owned(), moved_at_ms, ..RunHeartbeat::default() }, NOW)
        };
        assert_eq!(check("writing", STALLED_AFTER), None);
        let stalled_for = STALLED_AFTER + MS;
        assert_eq!(check("writing", stalled_for), Some(ScheduleProblem::Stalled { run: 17, stalled_for }));
        assert_eq!(check("scanning", stalled_for), None);
        assert_eq!(check("proving", stalled_for), None);
    }

    #[test]
    fn all_problems_of_a_schedule_come_in_a_fixed_order() {
        let (row, run, archive) = (daily(), failed_run(), suspect_archive());
        let newest_good = Archive { created_at: ago(DAY * 2), ..suspect_archive() };
        let drill = Drill {
            run: 16,
            started_at: NOW,
            finished_at: None,
            passed: false,
            files: 0,
            content_bytes: 0,
            error: Some("a: its mode is 644, not 600".to_owned()),
        };
        let moved_at_ms = ago(DAY).millis();
        let phase = "writing".to_owned();
        let heartbeat = RunHeartbeat { run: 18, phase, moved_at_ms, ..RunHeartbeat::default() };
        let facts = ScheduleFacts {
            last_run: Some(&run),
            last_archive: Some(&archive),
            new_problems: 3,
            newest_good: Some(&newest_good),
            unhealthy_archives: 2,
            last_drill: Some(&drill),
            run_heartbeat: Some(&heartbeat),
            ..no_problems(&row)
        };
        let expected = [
            ScheduleProblem::RunFailed { run: 17, error: Some("no space".to_owned()) },
            ScheduleProblem::NewUnreadablePaths { run: 17, count: 3 },
            ScheduleProblem::SuspectArchive { run: 17 },
            ScheduleProblem::UnhealthyArchives { count: 2 },
            ScheduleProblem::DrillFailed { error: "a: its mode is 644, not 600".to_owned() },
            ScheduleProblem::Overdue { newest_good_age: DAY * 2 },
            ScheduleProblem::Stalled { run: 18, stalled_for: DAY },
        ];
        assert_eq!(schedule_problems(&facts, NOW), expected);
    }

    #[test]
    fn an_accepted_failure_and_an_accepted_archive_are_no_problems() {
        let row = daily();
        let run = Run { accepted: true, ..failed_run() };
        let archive = Archive { suspect: false, ..suspect_archive() };
        let facts = ScheduleFacts { last_run: Some(&run), last_archive: Some(&archive), ..no_problems(&row) };
        assert_eq!(schedule_problems(&facts, NOW), []);
    }
}

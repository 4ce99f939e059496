//! What is wrong, as `status` prints it.

use crate::cli::render;
use crate::error::Error;
use crate::health::{HomeProblem, ScheduleProblem, ServiceProblem};
use crate::words::shell_word;

pub(super) fn home_problem_text(problem: &HomeProblem) -> String {
    match problem {
        HomeProblem::Service(problem) => service_problem_text(problem),
        HomeProblem::Database(error) => error.to_string(),
        HomeProblem::ArchiveFolder(error) => with_next_step(error),
    }
}

fn with_next_step(error: &Error) -> String {
    error.next_step().map_or_else(|| error.to_string(), |next| format!("{error}: {next}"))
}

fn service_problem_text(problem: &ServiceProblem) -> String {
    match problem {
        ServiceProblem::NotRunning => "the service is not running: start it with `backup-manager start`".to_owned(),
        ServiceProblem::NotResponding { pid, silent_for } => {
            format!("the service (process {pid}) has not responded for {}", render::age(*silent_for))
        }
        ServiceProblem::CopyFailed => "the database could not be copied to the archive folder: see \
                                       logs/backup_service.log; the service tries again each hour"
            .to_owned(),
        ServiceProblem::NoRecentCopy { age } => {
            let since = age.map_or_else(|| "yet".to_owned(), |age| format!("for {}", render::age(age)));
            format!(
                "no copy of the database was made {since}, although a service is running: see \
                     logs/backup_service.log"
            )
        }
        ServiceProblem::Reported { pid, reason } => format!("the service (process {pid}): {reason}"),
    }
}

pub(super) fn schedule_problem_text(problem: &ScheduleProblem, name: &str) -> String {
    let name = shell_word(name);
    match problem {
        ScheduleProblem::RunFailed { run, error } => {
            format!("run @{run} failed: {}", error.as_deref().unwrap_or("no reason is known"))
        }
        ScheduleProblem::NewUnreadablePaths { run, count } => {
            format!("{} could not be read whole: see `history @{run}`", render::count(*count, "new path"))
        }
        ScheduleProblem::SuspectArchive { run } => format!(
            "@{run} holds less than half of what the archive before it held, and does not count as good: inspect it, \
             then run `backup-manager accept {name}`"
        ),
        ScheduleProblem::UnhealthyArchives { count } => {
            let what = render::count(*count, "archive");
            format!(
                "{what} damaged or missing: see `backups {name} --all`; `repair {name}` uses equal parts of other \
                 archives, `run {name}` makes a new one"
            )
        }
        ScheduleProblem::DrillFailed { error } => format!("the last restore test failed: {error}"),
        ScheduleProblem::Overdue { newest_good_age } => {
            format!("overdue: its newest good archive is {} old", render::age(*newest_good_age))
        }
        ScheduleProblem::OverdueWithoutArchive { waiting_for } => {
            format!("overdue: no good archive since it was created or edited {} ago", render::age(*waiting_for))
        }
        ScheduleProblem::CommandsHeld { commands } => format!(
            "its commands are held, and its runs fail, until `backup-manager accept {name} --commands`: {commands}"
        ),
        ScheduleProblem::Stalled { run, stalled_for } => {
            format!("run @{run} has made no progress for {}", render::age(*stalled_for))
        }
    }
}

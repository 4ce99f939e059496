//! A claimed run, as what surrounds its reading sees it.

use std::path::Path;

use super::RunContext;
use super::monitor::Monitor;
use crate::hooks::{HookState, RunFacts};
use crate::store::{Claim, ScheduleRow};

/// A claimed run, for what surrounds its reading.
pub(super) struct Surrounded<'a> {
    pub(super) claim: &'a Claim,
    pub(super) row: &'a ScheduleRow,
    pub(super) context: &'a RunContext<'a>,
    pub(super) monitor: &'a Monitor<'a>,
}

impl<'a> Surrounded<'a> {
    /// Returns what a command learns before anything was read.
    pub(super) fn starting_facts(&self, source: &'a Path) -> RunFacts<'a> {
        RunFacts {
            schedule: self.row.schedule.name.as_str(),
            run: self.claim.run(),
            attempt: self.claim.attempt(),
            is_again: false,
            source,
            archive: None,
            state: HookState::Starting,
            problems: 0,
            error: "",
        }
    }
}

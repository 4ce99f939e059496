//! What a run would take in, without writing anything.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::member::{Extent, MemberKind};
use crate::progress::Problem;
use crate::source::{self, SourceEntry, SourceRoot};
use crate::store::ScheduleRow;

/// How much a source holds, as far as it was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// How much an archive would hold, the content of each file once, however many names it has.
    pub extent: Extent,
    /// Paths that cannot be read.
    pub problems: Vec<Problem>,
    /// False if it was stopped before the end.
    pub complete: bool,
}

/// Tells `visit` every member that a run of the schedule would archive: its name in the archive and its size.
pub fn list_source(
    home: &Home,
    row: &ScheduleRow,
    visit: &mut dyn FnMut(&[u8], u64) -> Result<()>,
) -> Result<Estimate> {
    let mut failed = None;
    let listing = walk(home, row, &mut |path, size| match visit(path, size) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(listing), Err)
}

/// Adds up the source of a schedule, for `limit` at most.
pub fn estimate(home: &Home, row: &ScheduleRow, clock: &dyn Clock, limit: Duration) -> Result<Estimate> {
    let started = clock.monotonic();
    walk(home, row, &mut |_, _| {
        if clock.monotonic().saturating_sub(started) > limit {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
}

/// Tells `visit` every member that a run of the schedule would archive, as it is found; returns what cannot be read.
pub fn visit_source(home: &Home, row: &ScheduleRow, visit: &mut dyn FnMut(&SourceEntry)) -> Result<Vec<Problem>> {
    let listing = walk_found(home, row, &mut |found, _| {
        visit(found);
        ControlFlow::Continue(())
    })?;
    Ok(listing.problems)
}

fn walk(home: &Home, row: &ScheduleRow, visit: &mut dyn FnMut(&[u8], u64) -> ControlFlow<()>) -> Result<Estimate> {
    walk_found(home, row, &mut |found, size| visit(found.path.as_bytes(), size))
}

fn walk_found(
    home: &Home,
    row: &ScheduleRow,
    visit: &mut dyn FnMut(&SourceEntry, u64) -> ControlFlow<()>,
) -> Result<Estimate> {
    let source = SourceRoot::find(home, &row.schedule)?;
    let own_paths = home.own_paths();
    let mut listing = Estimate { complete: true, ..Estimate::default() };
    let mut problems = Vec::new();
    let mut linked = HashSet::new();
    source::walk(
        &source.walk_options(&row.schedule, &own_paths),
        &mut |found| {
            let first_name = found.stat.links < 2 || linked.insert((found.stat.device, found.stat.inode));
            let size = if found.kind == MemberKind::File && first_name { found.stat.size } else { 0 };
            listing.extent.members += 1;
            listing.extent.files += u64::from(found.kind == MemberKind::File);
            listing.extent.content_bytes += size;
            let flow = visit(&found, size);
            listing.complete = flow.is_continue();
            flow
        },
        &mut |problem| problems.push(problem),
    )?;
    listing.problems = problems;
    Ok(listing)
}

/// Returns the bytes that may still be written below `path`, or below the nearest folder above it that exists.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let facts = rustix::fs::statvfs(existing)
        .map_err(io::Error::from)
        .map_err(Error::io("look at the file system of", existing))?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

//! What a run would archive, without writing anything; and whether that fits on the disk.

use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, TryRecvError, bounded};

use super::Runner;
use super::monitor::Monitor;
use crate::archive_folder;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::member::Extent;
use crate::progress::Problem;
use crate::schedule::Compression;
use crate::source::{self, ExtentCounter, SourceEntry, SourceRoot};
use crate::store::ScheduleRow;

/// Bytes that the headers and the padding of a member take in a plain archive, about.
const OVERHEAD_BYTES_PER_MEMBER: u64 = 2_048;

/// How much a source holds, as far as it was walked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// How much an archive would hold; the content of each file counts once, however many names it has.
    pub extent: Extent,
    /// Paths that cannot be read.
    pub problems: Vec<Problem>,
    /// False if the walk was stopped before its end.
    pub is_complete: bool,
}

/// Calls `visit` with every member that a run of the schedule would archive: its name in the archive and its size in
/// bytes.
///
/// Errors: those of `visit`, which stop the walk.
pub fn list_source(
    home: &Home,
    row: &ScheduleRow,
    visit: &mut dyn FnMut(&[u8], u64) -> Result<()>,
) -> Result<Estimate> {
    let mut failure = None;
    let estimate = walk_members(home, row, &mut |path, size| match visit(path, size) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failure.map_or(Ok(estimate), Err)
}

/// Sums up the source of a schedule, for at most `limit`.
pub fn estimate(home: &Home, row: &ScheduleRow, clock: &dyn Clock, limit: Duration) -> Result<Estimate> {
    let started = clock.monotonic();
    walk_members(home, row, &mut |_, _| {
        if clock.monotonic().saturating_sub(started) > limit {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
}

/// Calls `visit` with every entry of the source that a run of the schedule would archive. Returns the paths that cannot
/// be read.
pub fn visit_source(home: &Home, row: &ScheduleRow, visit: &mut dyn FnMut(&SourceEntry)) -> Result<Vec<Problem>> {
    let estimate = walk_entries(home, row, &mut |entry, _| {
        visit(entry);
        ControlFlow::Continue(())
    })?;
    Ok(estimate.problems)
}

fn walk_members(
    home: &Home,
    row: &ScheduleRow,
    visit: &mut dyn FnMut(&[u8], u64) -> ControlFlow<()>,
) -> Result<Estimate> {
    walk_entries(home, row, &mut |entry, size| visit(entry.path.as_bytes(), size))
}

fn walk_entries(
    home: &Home,
    row: &ScheduleRow,
    visit: &mut dyn FnMut(&SourceEntry, u64) -> ControlFlow<()>,
) -> Result<Estimate> {
    let source = SourceRoot::find(home, &row.schedule)?;
    let own_paths = home.own_paths();
    let mut estimate = Estimate { is_complete: true, ..Estimate::default() };
    let mut problems = Vec::new();
    let mut counter = ExtentCounter::default();
    source::walk(
        &source.walk_options(&row.schedule, &own_paths),
        &mut |entry| {
            let flow = visit(&entry, counter.add(&entry));
            estimate.is_complete = flow.is_continue();
            flow
        },
        &mut |problem| problems.push(problem),
    )?;
    (estimate.extent, estimate.problems) = (counter.extent, problems);
    Ok(estimate)
}

/// A run that ends sooner is not estimated for its progress alone.
const ESTIMATE_AFTER: Duration = Duration::from_secs(5);

impl Runner {
    /// Estimates a run before it writes: by the schedule's last archive, else by a walk over its source. Refuses the
    /// run if the archive would not fit. A run that cannot be estimated is not refused: a full disk also ends a run
    /// cleanly. Returns `None` if only its progress needs an estimate.
    ///
    /// Errors: `DiskFull` with both numbers; `Interrupted` if the run was cancelled; the errors of a walk.
    pub(super) fn expected_extent(
        &self,
        row: &ScheduleRow,
        root: &SourceRoot,
        monitor: &Monitor<'_>,
    ) -> Result<Option<Extent>> {
        let free = archive_folder::free_bytes(self.home.backups())?;
        let last = self.store.newest_good(row.id)?.filter(|last| last.digest.is_some());
        let ratio = match (row.schedule.compression, &last) {
            (_, Some(last)) if last.size <= free => return Ok(Some(last.extent)),
            (Compression::None, _) => 1.0,
            // Assumes the compression ratio of the last archive.
            (_, Some(last)) if last.extent.content_bytes > 0 => last.size as f64 / last.extent.content_bytes as f64,
            _ => return Ok(None),
        };
        let own_paths = self.home.own_paths();
        let walk_options = root.walk_options(&row.schedule, &own_paths);
        let extent = source::scan(&walk_options, &mut || !monitor.is_cancelled())?;
        monitor.check_not_cancelled()?;
        let needed = match row.schedule.compression {
            Compression::None => {
                extent.content_bytes.saturating_add(extent.members.saturating_mul(OVERHEAD_BYTES_PER_MEMBER))
            }
            _ => (extent.content_bytes as f64 * ratio) as u64,
        };
        if needed <= free {
            return Ok(Some(extent));
        }
        let (name, folder) = (&row.schedule.name, self.home.backups().display());
        Err(Error::new(
            ErrorKind::DiskFull,
            format!("the archive of {name} needs about {needed} bytes, and {folder} has {free} free"),
        )
        .hint("free space there, exclude more with --exclude, compress with --compress zstd, or name another folder"))
    }

    /// Carries out a run of which the extent is not known. If it takes long, walks its source meanwhile, so that its
    /// progress is known.
    pub(super) fn estimate_during<T>(
        &self,
        row: &ScheduleRow,
        root: &SourceRoot,
        monitor: &Monitor<'_>,
        run: impl FnOnce() -> T,
    ) -> T {
        let (running, ended) = bounded::<()>(0);
        let is_running = || ended.try_recv() == Err(TryRecvError::Empty);
        let own_paths = self.home.own_paths();
        let walk_options = root.walk_options(&row.schedule, &own_paths);
        let estimate = || {
            if ended.recv_timeout(ESTIMATE_AFTER) == Err(RecvTimeoutError::Timeout)
                && let Ok(extent) = source::scan(&walk_options, &mut || is_running())
                && is_running()
            {
                monitor.expect(extent);
            }
        };
        thread::scope(|scope| {
            // Without the thread there is no estimate.
            let _ = thread::Builder::new().name("estimate".to_owned()).spawn_scoped(scope, estimate);
            let result = run();
            drop(running);
            result
        })
    }
}

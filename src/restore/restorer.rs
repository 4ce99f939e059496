//! The thread of a restore that reads the archive and decides what happens to each member.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use super::batches::BatchQueue;
use super::digests::CatalogDigests;
use super::interruption::StoppedAt;
use super::options::{Action, Options, RestoreContext};
use super::state::RestoreState;
use super::target_paths::TargetPaths;
use crate::archive::members::{Entry, Event, Members};
use crate::browse::{OpenArchive, Selection};
use crate::confined::{FolderTree, Privileges};
use crate::error::{Error, ErrorKind, Result};
use crate::member::{MemberPath, PathKey, path_key};
use crate::progress::{Observer, Problem, ProblemKind, Progress};

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

pub(super) struct Restorer<'a, 'c> {
    pub archive: &'a OpenArchive,
    pub options: &'a Options,
    pub context: &'a mut RestoreContext<'c>,
    pub state: &'a Arc<RestoreState>,
    pub privileges: Privileges,
    pub tree: FolderTree,
    /// Small files for the threads that write.
    pub batches: BatchQueue,
    /// Hard links whose first name was not restored: that name in the archive, and the link at its path in the target.
    pub deferred_links: Vec<(MemberPath, Box<Entry>)>,
    pub deferred_link_bytes: usize,
    pub digests: CatalogDigests,
    pub target_paths: TargetPaths,
    /// Set when the restore is cancelled.
    pub stopped_at: Option<StoppedAt>,
    /// The archive is read again, for links whose first name was not restored: what is wrong with it was reported.
    pub is_reading_again: bool,
    /// Members that were reported as lost with a damaged chunk.
    lost: HashSet<PathKey>,
    /// Bytes of content that existing files have, so that it is not written.
    pub kept_bytes: u64,
    /// Bytes of the current file that were read.
    pub current_bytes: u64,
    started: Duration,
    last_progress: Duration,
}

impl<'a, 'c> Restorer<'a, 'c> {
    pub fn new(
        archive: &'a OpenArchive,
        options: &'a Options,
        context: &'a mut RestoreContext<'c>,
        state: &'a Arc<RestoreState>,
        privileges: Privileges,
        tree: FolderTree,
        batches: BatchQueue,
    ) -> Self {
        let started = context.clock.monotonic();
        Restorer {
            archive,
            options,
            context,
            state,
            privileges,
            tree,
            batches,
            deferred_links: Vec::new(),
            deferred_link_bytes: 0,
            digests: CatalogDigests::default(),
            target_paths: TargetPaths::new(options, archive.is_ours()),
            stopped_at: None,
            is_reading_again: false,
            lost: HashSet::new(),
            kept_bytes: 0,
            current_bytes: 0,
            started,
            last_progress: started,
        }
    }

    /// Ends the writing threads' queue and returns the folders, which are still open.
    pub fn into_tree(self) -> FolderTree {
        self.tree
    }

    pub fn run(&mut self, selection: &Selection) -> Result<()> {
        let result = self.restore_members(selection);
        // After a cancellation, too: what was read before is restored.
        self.batches.hand_over()?;
        result
    }

    fn restore_members(&mut self, selection: &Selection) -> Result<()> {
        let read = self.read_members(selection, |restorer, members, entry| restorer.restore_member(members, entry));
        if read.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
            self.leave_out_rest(selection)?;
            for (_, link) in &self.deferred_links {
                self.leave_out(&link.member.path);
            }
        }
        read?;
        self.restore_deferred_links()
    }

    /// Records that nobody knows what follows, if the reader of members was interrupted.
    fn note_interruption(&self, error: &Error) {
        if error.kind() == ErrorKind::Interrupted {
            self.state.with_interruption(|interruption| interruption.may_be_more = true);
        }
    }

    fn check_cancelled(&self) -> Result<()> {
        self.context.cancel.check("the restore was cancelled")
    }

    /// Reads the archive once and passes the selected members to `restore`.
    ///
    /// Errors: `Interrupted`; `stopped_at` is then the first member that was read and is not restored, if there is one.
    pub fn read_members(
        &mut self,
        selection: &Selection,
        mut restore: impl FnMut(&mut Self, &mut Members, Box<Entry>) -> Result<()>,
    ) -> Result<()> {
        let mut members = self.archive.members(selection, self.options.threads)?.cancelled_by(self.context.cancel);
        while let Some(event) = members.next().inspect_err(|error| self.note_interruption(error))? {
            if let Event::Member(entry) = &event
                && self.context.cancel.is_cancelled()
            {
                let position = (entry.sequence, entry.offset);
                self.stopped_at = Some(StoppedAt { position, path: entry.member.path.clone() });
            } else if self.context.cancel.is_cancelled() {
                self.state.with_interruption(|interruption| interruption.may_be_more = true);
            }
            self.check_cancelled()?;
            if self.state.has_fatal() {
                return Ok(());
            }
            match event {
                Event::Member(entry) => {
                    if selection.selects(&entry.member.path) {
                        restore(self, &mut members, entry)?;
                    }
                    if self.stopped_at.is_some() {
                        break;
                    }
                }
                Event::Refused { .. } | Event::Undecodable { .. } if self.is_reading_again => {}
                Event::Refused { name, reason } => self.refuse(&name, &reason),
                Event::Damaged { sequence, after, reason } => {
                    self.record_damage(selection, sequence, after, &reason)?;
                }
                Event::Undecodable { reason } => {
                    let path = self.archive.path().as_os_str().as_bytes();
                    self.report_problem(path, &format!("damaged: {reason}"));
                    self.state.with_report(|report| report.undecodable = Some(reason));
                }
            }
            self.report_progress();
        }
        // The last member was read; the token may have been cancelled while it was restored.
        self.check_cancelled()
    }

    /// Reports progress if some time has passed since the last report.
    pub fn report_progress(&mut self) {
        let now = self.context.clock.monotonic();
        if now.saturating_sub(self.last_progress) < PROGRESS_INTERVAL {
            return;
        }
        self.last_progress = now;
        let (members, bytes) = self.state.with_report(|report| {
            let kept = report.unchanged + report.corrected;
            (report.extent.members + kept, report.extent.content_bytes)
        });
        let totals = self.archive.totals();
        self.context.observer.progress(&Progress {
            members,
            bytes: bytes + self.kept_bytes + self.current_bytes,
            members_total: totals.map(|totals| totals.members),
            bytes_total: totals.map(|totals| totals.content_bytes),
            elapsed: now.saturating_sub(self.started),
        });
    }

    /// Reports what happens at a path, and returns it.
    pub fn report_action(&mut self, action: Action, path: &MemberPath) -> Action {
        (self.context.on_action)(action, path);
        action
    }

    /// Reports a problem to the observer when it occurs.
    pub fn report_problem(&self, path: &[u8], reason: &str) {
        report_problem(self.context.observer, path, reason);
    }

    pub fn refuse(&mut self, name: &[u8], reason: &str) {
        self.report_problem(name, &format!("refused: {reason}"));
        self.state.with_report(|report| report.refused.add(name, reason.to_owned()));
    }

    /// Records the members that are lost with a damaged chunk: those in the catalog, else the last member before it,
    /// else the archive.
    fn record_damage(
        &mut self,
        selection: &Selection,
        sequence: u64,
        after: Option<MemberPath>,
        reason: &str,
    ) -> Result<()> {
        let mut lost: Vec<(Vec<u8>, String)> = Vec::new();
        // Damage after the last chunk has no chunk in the catalog.
        let page = if sequence == u64::MAX { None } else { self.archive.catalog_page(sequence)? };
        if let Some((members, _)) = page {
            let here = members.into_iter().filter(|m| m.sequence == sequence).map(|m| m.entry.member.path);
            let selected = here.filter(|path| selection.selects(path) && self.lost.insert(path_key(path.as_bytes())));
            lost.extend(selected.map(|path| (path.as_bytes().to_vec(), reason.to_owned())));
        } else if self.is_reading_again {
            // Without the catalog all of the archive was read before.
        } else if let Some(after) = after {
            let reason = format!("{reason}; members after this one may be lost");
            lost.push((after.as_bytes().to_vec(), reason));
        } else {
            // There is no member before it that could be named.
            let path = self.archive.path().as_os_str().as_bytes().to_vec();
            lost.push((path, format!("{reason}; members at its beginning may be lost")));
        }
        for (path, reason) in lost {
            self.report_problem(&path, &format!("damaged: {reason}"));
            self.state.with_report(|report| report.damaged.add(&path, reason));
        }
        Ok(())
    }
}

fn report_problem(observer: &dyn Observer, path: &[u8], reason: &str) {
    let reason = reason.to_owned();
    observer.problem(&Problem { path: path.into(), kind: ProblemKind::Unreadable, reason });
}

/// Records the requested paths that were not found: as damaged if the archive has gaps, else as missing. To be called
/// when the threads that write have ended, because they find damage, too.
pub(super) fn record_missing(selection: &Selection, state: &RestoreState, observer: &dyn Observer) {
    let missing = selection.missing();
    let has_gaps =
        state.with_report(|report| report.damaged.count + report.refused.count > 0 || report.undecodable.is_some());
    if !has_gaps {
        state.with_report(|report| report.missing = missing.into_iter().cloned().collect());
        return;
    }
    for path in missing {
        let reason = "it was not found, and parts of the archive are damaged".to_owned();
        report_problem(observer, path.as_bytes(), &reason);
        state.with_report(|report| report.damaged.add(path.as_bytes(), reason));
    }
}

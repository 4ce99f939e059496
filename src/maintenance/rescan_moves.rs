//! Archives in segments whose indexes list other ranges than the database has.

use std::path::PathBuf;

use super::reconcile::{BothRight, Plan, change, plan, settle};
use super::verify::verify_archive;
use crate::cancel::CancelToken;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::liveness::SegmentLock;
use crate::schedule::Layout;
use crate::store::{Archive, Store};

/// What a rescan found of such archives.
#[derive(Debug, Default)]
pub(super) struct Updated {
    /// Names of the files, below the archive folder, of those that agree with the database now.
    pub(super) names: Vec<String>,
    /// Those of which bytes are right in neither place, and those that do not verify, and why.
    pub(super) damaged: Vec<(PathBuf, String)>,
    /// Those that are in use, and why.
    pub(super) left: Vec<(PathBuf, String)>,
}

/// Makes the database and the indexes agree, and verifies the archives of which one has changed.
pub(super) fn update_all(
    home: &Home,
    store: &Store,
    threads: usize,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<Updated> {
    let mut updated = Updated::default();
    let mut changed = Vec::new();
    // What is moved for one archive may be moved for others, too, that were looked at before.
    loop {
        let before = changed.len();
        updated.damaged.clear();
        updated.left.clear();
        changed.extend(update_each(home, store, &mut updated, cancel, now)?);
        if changed.len() == before {
            break;
        }
    }
    changed.sort_by_key(|archive| archive.run);
    changed.dedup_by_key(|archive| archive.run);
    for archive in changed {
        let Some(archive) = store.archive(archive.run)? else { continue };
        let findings = verify_archive(home, store, &archive, threads, cancel, now)?;
        if !findings.is_good() {
            updated.damaged.push((home.backups().join(&archive.file_name), findings.structure.join("; ")));
        }
        updated.names.push(archive.file_name);
    }
    Ok(updated)
}

/// Looks at each archive in segments once; returns those that have changed.
fn update_each(
    home: &Home,
    store: &Store,
    updated: &mut Updated,
    cancel: &CancelToken,
    now: Timestamp,
) -> Result<Vec<Archive>> {
    let mut changed = Vec::new();
    for archive in store.archives(None)?.into_iter().filter(|archive| archive.layout == Layout::Segmented) {
        cancel.check("the rescan was cancelled")?;
        let path = home.backups().join(&archive.file_name);
        match update(home, store, archive.run, now) {
            Ok(Some(Plan::Change(_))) => changed.push(archive),
            Ok(Some(Plan::Neither)) => {
                let reason = "bytes are right neither where its index lists them nor where the database has them: \
                              nothing was changed";
                updated.damaged.push((path, reason.to_owned()));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Failed) => {
                updated.left.push((path, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(changed)
}

/// Makes the database and the index of an archive agree; returns what that took, `None` if it was removed meanwhile.
fn update(home: &Home, store: &Store, run: i64, now: Timestamp) -> Result<Option<Plan>> {
    let Some(archive) = store.archive(run)? else { return Ok(None) };
    let Some(_lock) = SegmentLock::try_to_change(home, &archive.schedule_name)? else {
        return Err(Error::busy("another process changes files of its schedule").hint("run the rescan again"));
    };
    // It may have been removed, or its rows changed, before the lock was taken.
    let Some(archive) = store.archive(run)? else { return Ok(None) };
    let path = home.backups().join(&archive.file_name);
    match plan(store, &archive, &path, BothRight::ReplaceIndex)? {
        Plan::Change(moves) => {
            change(home, store, &archive, &path, moves, now)?;
            Ok(Some(Plan::Change(Vec::new())))
        }
        other => {
            settle(store, &archive, &path)?;
            Ok(Some(other))
        }
    }
}

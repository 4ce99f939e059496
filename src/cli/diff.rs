//! `diff`: what changed between two archives, or an archive and its source.

use std::fs::File;

use clap::Args;
use serde_json::{Map, Value, json};

use super::render::{self, Format};
use super::{Context, select};
use crate::backup;
use crate::browse::{self, Change, MemberSummary, MembersByPath};
use crate::error::{Error, Result};
use crate::member::MemberKind;
use crate::store::{ScheduleRow, Store};

#[derive(Args)]
pub struct DiffArgs {
    /// The older archive: a schedule (its newest good archive), an archive (@17), or any tar file
    older: String,
    /// The newer one [default: the schedule's source as it is now]
    newer: Option<String>,
}

pub fn cmd_diff(context: &Context, args: &DiffArgs) -> Result<u8> {
    let older = select::archive(context, &args.older, None, None)?;
    let was = browse::members_by_path(&older)?;
    let is = match &args.newer {
        Some(newer) => browse::members_by_path(&select::archive(context, newer, None, None)?)?,
        None => {
            let store = context.open()?;
            source_now(context, &schedule_of(context, &store, &args.older)?, &was)?
        }
    };
    let mut documents: [Vec<Value>; 3] = Default::default();
    let mut lines = Vec::new();
    browse::compare(&was, &is, &mut |path, change| {
        let (at, word, what) = match change {
            Change::Added(_) => (0, "added", Vec::new()),
            Change::Removed(_) => (1, "removed", Vec::new()),
            Change::Changed(was, is) => (2, "changed", is.differences(was)),
        };
        if context.format == Format::Json {
            documents[at].push(change_json(path.as_bytes(), change, &what));
        } else {
            lines.extend(format!("{word}\t").bytes());
            lines.extend(render::printable_bytes(path.as_bytes()));
            lines.extend(if what.is_empty() { String::new() } else { format!("\t{}", what.join(",")) }.bytes());
            lines.push(b'\n');
        }
        Ok(())
    })?;
    if context.format == Format::Json {
        let [added, removed, changed] = documents;
        render::print_json(&json!({ "added": added, "removed": removed, "changed": changed }))?;
    } else {
        if lines.is_empty() {
            context.print_info("no difference");
        }
        render::print_bytes(&lines)?;
    }
    Ok(0)
}

fn schedule_of(context: &Context, store: &Store, what: &str) -> Result<ScheduleRow> {
    if select::names_a_file(context, what) {
        return Err(Error::usage(format!("{what} is a file: name what to compare it with")).hint("diff FILE NAME"));
    }
    match select::run_number(what) {
        Some(run) => {
            let archive = store.archive(run)?.ok_or_else(|| Error::not_found(format!("there is no archive {what}")))?;
            store.schedule(archive.schedule_id)
        }
        None => select::schedule_or_history(store, what),
    }
}

/// Returns what a run would archive now. Files of unchanged size whose time changed are read, so that only what really
/// changed counts as content.
fn source_now(context: &Context, row: &ScheduleRow, was: &MembersByPath) -> Result<MembersByPath> {
    let mut is = MembersByPath::new();
    let mut failed = None;
    let problems = backup::visit_source(&context.home, row, &mut |found| {
        let stat = &found.stat;
        let link_target = match found.kind {
            MemberKind::Symlink => match found.read_link() {
                Ok(target) => Some(target.into_boxed_slice()),
                Err(problem) => {
                    failed = Some(problem);
                    None
                }
            },
            _ => None,
        };
        let size = if found.kind == MemberKind::File { stat.size } else { 0 };
        let mut brief = MemberSummary {
            kind: found.kind,
            size,
            mode: stat.mode,
            owner: (stat.uid, stat.gid),
            modified: stat.modified,
            link_target,
            device_number: stat.device_number,
            digest: None,
        };
        if let Some(old) = was.get(&found.path).filter(|old| old.kind == MemberKind::File && old.size == size)
            && old.modified != brief.modified
        {
            let mut hasher = blake3::Hasher::new();
            if File::open(found.fs_path()).and_then(|file| hasher.update_reader(file).map(drop)).is_ok() {
                brief.digest = Some(*hasher.finalize().as_bytes());
            }
        }
        is.insert(found.path.clone(), brief);
    })?;
    for problem in problems.iter().chain(&failed) {
        context.warn(&format!("{}: {}", render::printable(&problem.path), problem.reason));
    }
    Ok(is)
}

fn change_json(path: &[u8], change: Change<'_>, what: &[&str]) -> Value {
    let mut object = Map::new();
    render::put_path(&mut object, "path", path);
    match change {
        Change::Added(brief) | Change::Removed(brief) => {
            object.insert("size".into(), json!(brief.size));
        }
        Change::Changed(was, is) => {
            object.insert("what".into(), json!(what));
            object.insert("size".into(), json!([was.size, is.size]));
        }
    }
    Value::Object(object)
}

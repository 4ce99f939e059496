//! `verify`: reads archive files back from disk and compares them with their digests.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::documents::{ErrorDocument, PathFields};
use super::render::{self, Format};
use super::signals::Signals;
use super::{Context, config, select};
use crate::archive_folder::{self, OrphanedSegment};
use crate::error::{Error, ErrorKind, Result};
use crate::maintenance::shared_files::separate_files;
use crate::maintenance::verify::{self, Findings};
use crate::schedule::{parse_age, parse_duration};
use crate::store::{Access, Archive, Health, Store};

#[derive(Args)]
pub struct VerifyArgs {
    /// Schedules, archives (@17) or tar files [default: every archive]
    #[arg(value_name = "NAME|@RUN|FILE")]
    what: Vec<OsString>,
    /// Verify only this share of the bytes, in per cent: those verified longest ago
    #[arg(long, value_name = "PCT", value_parser = clap::value_parser!(u8).range(1..=100))]
    sample: Option<u8>,
    /// Verify only archives that were not verified for this long: 30d
    #[arg(long, value_name = "AGE")]
    older_than: Option<String>,
    /// Begin no further archive after this long: 90m, 2h
    #[arg(long, value_name = "DURATION")]
    time_limit: Option<String>,
    /// Decoder threads [default: cores]
    #[arg(long, value_name = "N", value_parser = config::parse_threads)]
    threads: Option<usize>,
}

/// The result for one archive file.
struct Verified {
    /// Number of its run; `None` for a file that is not in the catalog.
    run: Option<i64>,
    path: PathBuf,
    result: Result<Findings>,
    /// The other archives whose file it is, if it is not good.
    same_file: Vec<Archive>,
}

impl Verified {
    fn new(run: Option<i64>, path: PathBuf, result: Result<Findings>) -> Verified {
        Verified { run, path, result, same_file: Vec::new() }
    }
}

pub fn cmd_verify(context: &Context, args: &VerifyArgs) -> Result<u8> {
    let older_than = args.older_than.as_deref().map(parse_age).transpose()?;
    let time_limit = args.time_limit.as_deref().map(parse_duration).transpose()?;
    let signals = Signals::cancel_on_first()?;
    let (files, words): (Vec<&OsString>, Vec<&OsString>) =
        args.what.iter().partition(|word| select::names_a_file(context, word));
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let (mut verified, mut orphans) = (Vec::new(), Vec::new());
    let mut store = None;
    if !words.is_empty() || files.is_empty() {
        let opened = store.insert(context.open()?);
        separate_files(&context.home, opened, None)?;
        let archives = select_archives(context, opened, &words, args.sample, older_than)?;
        verified.extend(verify_archives(context, opened, &archives, args.threads, time_limit, &signals)?);
        if args.what.is_empty() {
            let found = archive_folder::find_orphans(&context.home, opened)?;
            found.undecided.iter().for_each(|why| context.warn(why));
            print_orphans(context, &found.segments)?;
            orphans = found.segments;
        }
    } else if files.iter().any(|file| name_in_home(context, Path::new(file)).is_some()) {
        store = context.open_store(Access::Existing).ok();
        store = store.filter(|opened| separate_files(&context.home, opened, None).is_ok());
    }
    for (position, file) in files.iter().enumerate() {
        if let Some(interrupted) = interruption(&signals, files.len() - position) {
            let one = Verified::new(None, Path::new(file).to_owned(), Err(interrupted));
            print_verified(context, &one)?;
            verified.push(one);
            break;
        }
        verified.push(verify_path(context, store.as_ref(), Path::new(file), args.threads, &signals)?);
    }
    if let Some(store) = &store {
        context.refresh_stable_links(store, &store.schedules()?)?;
    }
    print_end(context, args, &verified, &orphans)?;
    Ok(exit_code(&verified))
}

/// Prints the document, or that there was nothing to verify.
fn print_end(context: &Context, args: &VerifyArgs, verified: &[Verified], orphans: &[OrphanedSegment]) -> Result<()> {
    match verified {
        // It is reported already, and the document is that of the only thing named.
        [Verified { result: Err(error), .. }] if context.format == Format::Json && args.what.len() == 1 => {
            render::print_json_error(error);
        }
        _ if context.format == Format::Json => {
            let orphaned = orphans.iter().map(orphan_document);
            render::print_json(&verified.iter().map(document).chain(orphaned).collect::<Vec<_>>())?;
        }
        [] => context.print_info("there is nothing to verify"),
        _ => {}
    }
    Ok(())
}

/// Returns the archives to verify, those verified longest ago first, each physical file once.
fn select_archives(
    context: &Context,
    store: &Store,
    words: &[Cow<'_, str>],
    sample: Option<u8>,
    older_than: Option<Duration>,
) -> Result<Vec<Archive>> {
    let mut archives = select::archives(store, words)?;
    let mut seen = BTreeSet::new();
    archives.retain(|archive| seen.insert(archive.file_key()));
    if let Some(age) = older_than {
        let limit = context.now().minus(age);
        archives.retain(|archive| archive.verified_at.is_none_or(|at| at <= limit));
    }
    archives.sort_by_key(|archive| (archive.verified_at, archive.run));
    if let Some(percent) = sample {
        let total: u128 = archives.iter().map(|archive| u128::from(archive.size)).sum();
        let wanted = total * u128::from(percent) / 100;
        let mut taken = 0_u128;
        archives.retain(|archive| {
            let take = taken < wanted || taken == 0;
            taken += u128::from(archive.size);
            take
        });
    }
    Ok(archives)
}

fn verify_archives(
    context: &Context,
    store: &Store,
    archives: &[Archive],
    threads: Option<usize>,
    time_limit: Option<Duration>,
    signals: &Signals,
) -> Result<Vec<Verified>> {
    let threads = config::threads(store, threads)?;
    let started = context.clock.monotonic();
    let mut verified = Vec::new();
    for (position, archive) in archives.iter().enumerate() {
        let path = context.home.backups().join(&archive.file_name);
        if let Some(interrupted) = interruption(signals, archives.len() - position) {
            let one = Verified::new(Some(archive.run), path, Err(interrupted));
            print_verified(context, &one)?;
            verified.push(one);
            break;
        }
        if time_limit.is_some_and(|limit| context.clock.monotonic().saturating_sub(started) >= limit) {
            let left = (archives.len() - position) as u64;
            context.print_info(&format!("the time limit is over: {} not verified", render::count(left, "archive")));
            break;
        }
        let result = verify::verify_archive(&context.home, store, archive, threads, &signals.cancel, context.now());
        let result = result.map_err(|error| signals.classify(error));
        // If this is not our archive folder, all of them would fail.
        if let Err(error) = &result
            && error.kind() == ErrorKind::Failed
            && archive_folder::ensure_ours(&context.home, store).is_err()
        {
            return result.map(|_| Vec::new());
        }
        let mut one = Verified::new(Some(archive.run), path, result);
        if one.result.as_ref().is_ok_and(|findings| !findings.is_good()) {
            one.same_file = store.archives(Some(archive.schedule_id))?;
            one.same_file.retain(|other| other.archive_file == archive.archive_file && other.run != archive.run);
        }
        print_verified(context, &one)?;
        verified.push(one);
    }
    Ok(verified)
}

/// Returns the error for a signal that came between two archives; `left` have not been verified.
fn interruption(signals: &Signals, left: usize) -> Option<Error> {
    let kind = signals.interruption()?;
    Some(Error::new(kind, format!("interrupted: {} not verified", render::count(left as u64, "archive"))))
}

/// Verifies a file: one of this home also against its catalog, `store`, any other by its own trailer.
fn verify_path(
    context: &Context,
    store: Option<&Store>,
    path: &Path,
    threads: Option<usize>,
    signals: &Signals,
) -> Result<Verified> {
    if let Some(store) = store
        && let Some(name) = name_in_home(context, path)
        && let Ok(Some(archive)) = store.archive_named(&name)
    {
        let mut verified = verify_archives(context, store, &[archive], threads, None, signals)?;
        if let Some(verified) = verified.pop() {
            return Ok(verified);
        }
    }
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let result = verify::verify_file(path, threads, &signals.cancel).map_err(|error| signals.classify(error));
    let verified = Verified::new(None, path.to_owned(), result);
    print_verified(context, &verified)?;
    Ok(verified)
}

/// Returns the name of a file in the archive folder of this home; `None` if it is not in that folder.
fn name_in_home(context: &Context, path: &Path) -> Option<String> {
    let whole = path.canonicalize().ok()?;
    Some(whole.strip_prefix(context.home.backups()).ok()?.to_str()?.to_owned())
}

fn print_orphans(context: &Context, orphans: &[OrphanedSegment]) -> Result<()> {
    for orphan in orphans {
        let path = render::printable(orphan.path.as_os_str().as_bytes());
        log::warn!("{path}: no archive refers to this segment");
        if context.format != Format::Json {
            let size = render::bytes(orphan.bytes);
            render::print_line(&format!("orphaned segment, to which no archive refers: {path} ({size})"))?;
        }
    }
    if !orphans.is_empty() {
        context.print_info("remove the orphaned segments with `backup-manager rescan --remove-orphans`");
    }
    Ok(())
}

fn print_verified(context: &Context, verified: &Verified) -> Result<()> {
    let path = render::printable(verified.path.as_os_str().as_bytes());
    match &verified.result {
        Ok(findings) if findings.is_good() && findings.refused_members.is_empty() => {
            log::info!("{path}: verified");
            if context.format != Format::Json && !context.quiet {
                render::print_line(&format!("good: {path} ({})", render::bytes(findings.bytes)))?;
            }
        }
        Ok(findings) => {
            log::error!("{path}: {}", findings.health.as_str());
            let is_refused = if findings.is_good() { ", but `restore` refuses members" } else { "" };
            let mut text = format!("{}{is_refused}: {path}\n", findings.health.as_str());
            for other in &verified.same_file {
                text += &format!("  the same file: {} (@{})\n", other.file_name, other.run);
            }
            for (member, reason) in &findings.refused_members {
                text += &format!("  refused member: {}: {reason}\n", render::printable(member));
            }
            findings.structure.iter().for_each(|line| text += &format!("  {}\n", render::escape_control(line)));
            for member in &findings.damaged_members {
                text += &format!("  damaged member: {}\n", render::printable(member));
            }
            if let Some(run) = verified.run.filter(|_| matches!(findings.health, Health::Damaged | Health::Missing)) {
                text += &format!("  next: `backup-manager repair @{run}`, if other archives have equal parts\n");
            }
            if context.format != Format::Json {
                render::print(&text)?;
            }
        }
        Err(error) => super::report(error),
    }
    Ok(())
}

/// What `verify --json` prints of each archive.
#[derive(Serialize)]
struct VerifiedDocument {
    /// The run that made it; null for a file that the database does not know.
    run: Option<i64>,
    /// `path`: the file.
    #[serde(flatten)]
    path: PathFields,
    #[serde(flatten)]
    result: VerifyResultDocument,
}

/// The findings, or why there are none.
#[derive(Serialize)]
#[serde(untagged)]
enum VerifyResultDocument {
    Findings {
        health: &'static str,
        /// Bytes read.
        bytes: u64,
        /// What is wrong with the archive as a whole.
        structure: Vec<String>,
        damaged_members: Vec<DamagedMemberDocument>,
        /// Members that `restore` refuses; only of an archive of another program.
        refused_members: Vec<RefusedMemberDocument>,
        /// The runs that made the other archives whose file it is, if it is not good.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        same_file: Vec<i64>,
    },
    Failed {
        error: String,
        failure: ErrorDocument,
    },
    /// A segment to which no archive refers; always true.
    Orphaned {
        orphaned: bool,
        /// Its size.
        bytes: u64,
    },
}

/// A member whose bytes are not those that were written.
#[derive(Serialize)]
struct DamagedMemberDocument {
    /// `path`: its path in the archive.
    #[serde(flatten)]
    path: PathFields,
}

/// A member that `restore` refuses.
#[derive(Serialize)]
struct RefusedMemberDocument {
    /// `path`: its name in the archive.
    #[serde(flatten)]
    path: PathFields,
    reason: String,
}

fn document(verified: &Verified) -> VerifiedDocument {
    let result = match &verified.result {
        Ok(findings) => {
            let members = findings.damaged_members.iter();
            VerifyResultDocument::Findings {
                health: findings.health.as_str(),
                bytes: findings.bytes,
                structure: findings.structure.clone(),
                damaged_members: members
                    .map(|path| DamagedMemberDocument { path: PathFields::new("path", path) })
                    .collect(),
                refused_members: findings
                    .refused_members
                    .iter()
                    .map(|(name, reason)| RefusedMemberDocument {
                        path: PathFields::new("path", name),
                        reason: reason.clone(),
                    })
                    .collect(),
                same_file: verified.same_file.iter().map(|other| other.run).collect(),
            }
        }
        Err(error) => VerifyResultDocument::Failed { error: error.to_string(), failure: error.into() },
    };
    let path = PathFields::new("path", verified.path.as_os_str().as_bytes());
    VerifiedDocument { run: verified.run, path, result }
}

fn orphan_document(orphan: &OrphanedSegment) -> VerifiedDocument {
    let path = PathFields::new("path", orphan.path.as_os_str().as_bytes());
    let result = VerifyResultDocument::Orphaned { orphaned: true, bytes: orphan.bytes };
    VerifiedDocument { run: None, path, result }
}

fn exit_code(verified: &[Verified]) -> u8 {
    let is_damaged = |one: &Verified| one.result.as_ref().is_ok_and(|f| !f.is_good() || !f.refused_members.is_empty());
    if verified.iter().any(is_damaged) {
        return ErrorKind::Damage.exit_code();
    }
    let first = verified.iter().find_map(|one| one.result.as_ref().err());
    first.map_or(0, |error: &Error| error.kind().exit_code())
}

//! `verify`: archive files are read back from disk.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::render::{self, Format};
use super::{Context, config, select};
use crate::archive_folder;
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::maintenance::verify::{self, Findings};
use crate::schedule::parse_age;
use crate::store::{Access, Archive, Store};

#[derive(Args)]
pub struct VerifyArgs {
    /// Schedules, archives (@17) or tar files [default: every archive]
    #[arg(value_name = "NAME|@RUN|FILE")]
    what: Vec<String>,
    /// Only so many per cent of the bytes: those read back longest ago
    #[arg(long, value_name = "PCT", value_parser = clap::value_parser!(u8).range(1..=100))]
    sample: Option<u8>,
    /// Only archives that were not read back for so long: 30d
    #[arg(long, value_name = "AGE")]
    older_than: Option<String>,
    /// Begin no further archive after so long: 90m, 2h
    #[arg(long, value_name = "AGE")]
    time_limit: Option<String>,
    /// Threads that decode [default: cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// What is told of one archive file.
struct Told {
    run: Option<i64>,
    path: String,
    result: Result<Findings>,
}

pub fn cmd_verify(context: &Context, args: &VerifyArgs) -> Result<u8> {
    let older_than = args.older_than.as_deref().map(parse_age).transpose()?;
    let time_limit = args.time_limit.as_deref().map(parse_age).transpose()?;
    let (files, words): (Vec<&String>, Vec<&String>) = args.what.iter().partition(|word| is_file(word));
    let mut told = Vec::new();
    if !words.is_empty() || files.is_empty() {
        let store = context.open()?;
        let archives = choose(context, &store, &words, args.sample, older_than)?;
        told.extend(verify_archives(context, &store, &archives, args.threads, time_limit)?);
    }
    for file in files {
        told.push(verify_path(context, Path::new(file), args.threads)?);
    }
    if context.format == Format::Json {
        render::print_json(&Value::from(told.iter().map(document).collect::<Vec<_>>()))?;
    } else if told.is_empty() {
        context.print_info("there is nothing to read back");
    }
    Ok(exit_code(&told))
}

/// A file is what is written like a path, or lies there and is no schedule's name by the look of it.
fn is_file(word: &str) -> bool {
    !word.starts_with('@') && (word.contains('/') || word.contains(".tar") || Path::new(word).is_file())
}

/// Returns the archives to read back, those read longest ago first, each physical file once.
fn choose(
    context: &Context,
    store: &Store,
    words: &[&String],
    sample: Option<u8>,
    older_than: Option<Duration>,
) -> Result<Vec<Archive>> {
    let mut archives = Vec::new();
    for word in words {
        match select::run_number(word) {
            Some(run) => archives.push(store.archive(run)?.ok_or_else(|| crate::maintenance::prune::no_archive(run))?),
            None => archives.extend(store.archives(Some(select::schedule_or_history(store, word)?.id))?),
        }
    }
    if words.is_empty() {
        archives = store.archives(None)?;
    }
    let mut seen = BTreeSet::new();
    archives.retain(|archive| seen.insert(archive.archive_file));
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
) -> Result<Vec<Told>> {
    let threads = config::threads(store, threads)?;
    let started = context.clock.monotonic();
    let cancel = CancelToken::new();
    let mut told = Vec::new();
    for (position, archive) in archives.iter().enumerate() {
        if time_limit.is_some_and(|limit| context.clock.monotonic().saturating_sub(started) >= limit) {
            let left = (archives.len() - position) as u64;
            context.print_info(&format!("the time is up: {} not read back", render::count(left, "archive")));
            break;
        }
        let result = verify::verify_archive(&context.home, store, archive, threads, &cancel, context.now());
        // Without the right folder there is nothing to say of any of them.
        if let Err(error) = &result
            && error.kind() == ErrorKind::Failed
            && archive_folder::ensure_ours(&context.home, store).is_err()
        {
            return result.map(|_| Vec::new());
        }
        let path = context.home.backups().join(&archive.file_name).display().to_string();
        let one = Told { run: Some(archive.run), path, result };
        tell(context, &one)?;
        told.push(one);
    }
    let notes = archive_folder::refresh_stable_links(&context.home, store, &store.schedules()?, context.now())?;
    notes.iter().for_each(|note| context.print_info(note));
    Ok(told)
}

/// A file of this home is compared with its catalog, too; any other proves itself.
fn verify_path(context: &Context, path: &Path, threads: Option<usize>) -> Result<Told> {
    if let Some((store, archive)) = known(context, path) {
        let mut told = verify_archives(context, &store, &[archive], threads, None)?;
        if let Some(told) = told.pop() {
            return Ok(told);
        }
    }
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let result = verify::verify_file(path, threads, &CancelToken::new());
    let told = Told { run: None, path: path.display().to_string(), result };
    tell(context, &told)?;
    Ok(told)
}

fn known(context: &Context, path: &Path) -> Option<(Store, Archive)> {
    let whole = path.canonicalize().ok()?;
    let below = whole.strip_prefix(context.home.backups()).ok()?.to_str()?.to_owned();
    let store = context.open_store(Access::Existing).ok()?;
    let archive = store.archive_named(&below).ok()??;
    Some((store, archive))
}

fn tell(context: &Context, told: &Told) -> Result<()> {
    match &told.result {
        Ok(findings) if findings.is_good() => {
            log::info!("{}: read back and found right", told.path);
            if context.format != Format::Json && !context.quiet {
                render::print_line(&format!("good: {} ({})", told.path, render::bytes(findings.bytes)))?;
            }
        }
        Ok(findings) => {
            log::error!("{}: {}", told.path, findings.health.as_str());
            let mut text = format!("{}: {}\n", findings.health.as_str(), told.path);
            findings.structure.iter().for_each(|line| text += &format!("  {}\n", render::escape_control(line)));
            for member in &findings.damaged_members {
                text += &format!("  damaged member: {}\n", render::printable(member));
            }
            if context.format != Format::Json {
                render::print(&text)?;
            }
        }
        Err(error) => super::report(error),
    }
    Ok(())
}

fn document(told: &Told) -> Value {
    let mut object = Map::new();
    object.insert("run".into(), json!(told.run));
    object.insert("path".into(), json!(told.path));
    match &told.result {
        Ok(findings) => {
            object.insert("health".into(), json!(findings.health.as_str()));
            object.insert("bytes".into(), json!(findings.bytes));
            object.insert("structure".into(), json!(findings.structure));
            let members: Vec<Value> = findings
                .damaged_members
                .iter()
                .map(|path| {
                    let mut member = Map::new();
                    render::put_path(&mut member, "path", path);
                    Value::Object(member)
                })
                .collect();
            object.insert("damaged_members".into(), Value::from(members));
        }
        Err(error) => drop(object.insert("error".into(), json!(error.to_string()))),
    }
    Value::Object(object)
}

fn exit_code(told: &[Told]) -> u8 {
    let is_damaged = |told: &Told| told.result.as_ref().is_ok_and(|findings| !findings.is_good());
    if told.iter().any(is_damaged) {
        return ErrorKind::Damage.exit_code();
    }
    let first = told.iter().find_map(|told| told.result.as_ref().err());
    first.map_or(0, |error: &Error| error.kind().exit_code())
}

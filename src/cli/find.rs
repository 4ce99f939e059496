//! `find`: finds files and the versions of a path in all archives.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::documents::{self, PathFields};
use super::ls::{kind_word, timestamp};
use super::render::{self, Format};
use super::{Context, select};
use crate::browse::Globs;
use crate::error::{Error, Result};
use crate::member::{MemberKind, MemberPath};
use crate::store::{PathOccurrence, Store};

#[derive(Args)]
pub struct FindArgs {
    /// Without / it matches names, with it whole paths in the archive: '*.odt', 'docs/**/letter*'
    #[arg(required_unless_present = "versions")]
    glob: Option<String>,
    /// The different contents of one path, with the archives that hold each
    #[arg(long, value_name = "PATH", conflicts_with = "glob")]
    versions: Option<PathBuf>,
    /// Only in archives of this schedule
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
}

#[derive(Args)]
pub struct VersionsArgs {
    /// The path whose different contents are listed
    path: PathBuf,
    /// Only in archives of this schedule
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
}

impl From<VersionsArgs> for FindArgs {
    fn from(VersionsArgs { path, schedule }: VersionsArgs) -> Self {
        FindArgs { glob: None, versions: Some(path), schedule }
    }
}

pub fn cmd_find(context: &Context, args: &FindArgs) -> Result<u8> {
    let store = context.open()?;
    let only = args.schedule.as_deref().map(|word| select::schedule_or_history(&store, word)).transpose()?;
    let only = only.map(|row| row.id);
    match (&args.versions, &args.glob) {
        (Some(path), _) => versions(context, &store, path, only),
        (None, Some(glob)) if glob.is_empty() => Err(Error::usage("the glob is empty").hint("quote it, like '*.odt'")),
        (None, Some(glob)) => find(context, &store, glob, only),
        (None, None) => Err(Error::usage("name a glob, or a path with --versions")),
    }
}

fn find(context: &Context, store: &Store, glob: &str, only: Option<i64>) -> Result<u8> {
    let mut found: Vec<PathOccurrence> = Vec::new();
    for path in matching(store, glob)? {
        found.extend(store.path_occurrences(&path, only)?);
    }
    if found.is_empty() {
        return Err(no_match(glob));
    }
    found.sort_by(|a, b| (Reverse(a.run), &a.entry.member.path).cmp(&(Reverse(b.run), &b.entry.member.path)));
    match context.format {
        Format::Json => {
            let documents = found.iter().map(|sighting| OccurrenceDocument::new(context, sighting));
            render::print_json(&documents.collect::<Vec<_>>())?;
        }
        Format::Plain => {
            let mut lines = Vec::new();
            for sighting in &found {
                let at = sighting.created_at.rfc3339(&context.zone);
                let size = sighting.entry.member.size;
                lines.extend(format!("@{}\t{}\t{at}\t{size}\t", sighting.run, sighting.schedule).bytes());
                lines.extend(render::printable_bytes(sighting.entry.member.path.as_bytes()));
                lines.push(b'\n');
            }
            render::print_bytes(&lines)?;
        }
        Format::Table => {
            let rows = found.iter().map(|sighting| {
                let member = &sighting.entry.member;
                vec![
                    format!("@{}", sighting.run),
                    sighting.schedule.clone(),
                    render::short_time(sighting.created_at, &context.zone),
                    render::bytes(member.size),
                    render::short_time(timestamp(member.modified), &context.zone),
                    render::printable(member.path.as_bytes()),
                ]
            });
            let headings = ["ARCHIVE", "NAME", "MADE", "SIZE", "CHANGED", "PATH"];
            render::print_table(&headings, rows.collect(), context.colour, "")?;
        }
    }
    Ok(0)
}

fn no_match(glob: &str) -> Error {
    Error::not_found(format!("no archive holds \"{glob}\"")).hint(match glob.contains('/') {
        true => format!("a glob with / matches whole paths: try '**/{}'", glob.trim_matches(['*', '/'])),
        false => format!("a glob without / matches whole names: try '*{}*'", glob.trim_matches('*')),
    })
}

/// Returns the paths in any archive that a glob matches.
fn matching(store: &Store, glob: &str) -> Result<Vec<MemberPath>> {
    let globs = Globs::parse(&[glob.to_owned()])?;
    let mut paths = Vec::new();
    store.paths(&mut |path| {
        if globs.matches(path) {
            paths.push(path.to_owned());
        }
    })?;
    paths.iter().map(|path| MemberPath::parse(path)).collect()
}

/// One content of a path and the archives that hold it.
struct Version {
    newest: PathOccurrence,
    oldest: PathOccurrence,
    archives: u64,
}

fn versions(context: &Context, store: &Store, written: &Path, only: Option<i64>) -> Result<u8> {
    let mut found = Vec::new();
    for path in member_paths(store, written)? {
        found.extend(store.path_occurrences(&path, only)?);
    }
    found.sort_by_key(|sighting| Reverse(sighting.run));
    let mut versions: Vec<Version> = Vec::new();
    for sighting in found {
        match versions.iter_mut().find(|version| has_same_content(&version.newest, &sighting)) {
            Some(version) => {
                version.archives += 1;
                version.oldest = sighting;
            }
            None => versions.push(Version { oldest: sighting.clone(), newest: sighting, archives: 1 }),
        }
    }
    if versions.is_empty() {
        let name = written.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        return Err(Error::not_found(format!("no archive holds {}", written.display()))
            .hint(format!("search by name: backup-manager find '{name}'")));
    }
    print_versions(context, &versions)?;
    Ok(0)
}

/// Returns the paths in archives that a path given on the command line may mean: an absolute one is looked up below
/// each source that contains it, and below the root.
fn member_paths(store: &Store, written: &Path) -> Result<Vec<MemberPath>> {
    use std::os::unix::ffi::OsStrExt;
    let mut paths = Vec::new();
    let mut add = |path: &Path| {
        let plain: PathBuf = path.components().filter(|c| *c != std::path::Component::CurDir).collect();
        if let Ok(path) = MemberPath::parse(plain.as_os_str().as_bytes())
            && !paths.contains(&path)
        {
            paths.push(path);
        }
    };
    if !written.is_absolute() {
        add(written);
        return Ok(paths);
    }
    for source in store.source_roots()? {
        let source = PathBuf::from(std::ffi::OsStr::from_bytes(&source));
        if let Some(below) = source.parent().and_then(|parent| written.strip_prefix(parent).ok()) {
            add(below);
        }
    }
    if let Ok(below) = written.strip_prefix("/") {
        add(below);
    }
    Ok(paths)
}

fn has_same_content(a: &PathOccurrence, b: &PathOccurrence) -> bool {
    let (one, other) = (&a.entry.member, &b.entry.member);
    one.kind == other.kind
        && match one.kind {
            MemberKind::File => {
                let known = a.entry.content_digest.is_some() && b.entry.content_digest.is_some();
                let same_times = (one.size, one.modified) == (other.size, other.modified);
                if known { a.entry.content_digest == b.entry.content_digest } else { same_times }
            }
            MemberKind::Folder => true,
            _ => one.link_target == other.link_target && one.device_number == other.device_number,
        }
}

fn print_versions(context: &Context, versions: &[Version]) -> Result<()> {
    let zone = &context.zone;
    if context.format == Format::Json {
        let documents = versions.iter().map(|version| VersionDocument::new(context, version));
        return render::print_json(&documents.collect::<Vec<_>>());
    }
    let rows = versions.iter().map(|version| {
        let (newest, oldest) = (&version.newest, &version.oldest);
        let member = &newest.entry.member;
        let plain = context.format == Format::Plain;
        let time = |at: crate::clock::Timestamp| if plain { at.rfc3339(zone) } else { render::short_time(at, zone) };
        vec![
            format!("@{}", newest.run),
            newest.schedule.clone(),
            time(timestamp(member.modified)),
            if plain { member.size.to_string() } else { render::bytes(member.size) },
            version.archives.to_string(),
            format!("@{}", oldest.run),
            time(oldest.created_at),
            time(newest.created_at),
        ]
    });
    if context.format == Format::Plain {
        let lines: String = rows.map(|row| row.join("\t") + "\n").collect();
        return render::print(&lines);
    }
    let headings = ["NEWEST", "NAME", "CHANGED", "SIZE", "ARCHIVES", "OLDEST", "FROM", "TO"];
    render::print_table(&headings, rows.collect(), context.colour, "")
}

/// A member and the archive that holds it.
#[derive(Serialize)]
struct OccurrenceDocument {
    /// The run of the archive.
    run: i64,
    /// Name of its schedule.
    name: String,
    /// When the archive was made.
    created: String,
    /// `path`: the path in the archive.
    #[serde(flatten)]
    path: PathFields,
    kind: &'static str,
    /// Bytes of its content.
    size: u64,
    modified: String,
    /// Digest of the content; only of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

impl OccurrenceDocument {
    fn new(context: &Context, found: &PathOccurrence) -> OccurrenceDocument {
        let member = &found.entry.member;
        OccurrenceDocument {
            run: found.run,
            name: found.schedule.clone(),
            created: documents::time(found.created_at, &context.zone),
            path: PathFields::new("path", member.path.as_bytes()),
            kind: kind_word(member.kind),
            size: member.size,
            modified: documents::time(timestamp(member.modified), &context.zone),
            blake3: found.entry.content_digest.map(documents::hex),
        }
    }
}

/// One content of a path.
#[derive(Serialize)]
struct VersionDocument {
    /// The newest archive that holds it.
    #[serde(flatten)]
    newest: OccurrenceDocument,
    /// The run of the oldest archive that holds it.
    oldest_run: i64,
    oldest_created: String,
    /// How many archives hold it.
    archives: u64,
}

impl VersionDocument {
    fn new(context: &Context, version: &Version) -> VersionDocument {
        VersionDocument {
            newest: OccurrenceDocument::new(context, &version.newest),
            oldest_run: version.oldest.run,
            oldest_created: documents::time(version.oldest.created_at, &context.zone),
            archives: version.archives,
        }
    }
}

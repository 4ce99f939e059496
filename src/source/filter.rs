//! The exclusions of a schedule.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::{Error, Result};
use crate::member::MemberPath;
use crate::schedule::Excludes;

/// Checks globs as written on the command line, without a source. The error names the invalid one.
pub fn check_patterns(globs: &[String]) -> Result<()> {
    compile(globs.iter().map(|glob| from_command_line(glob)), &SourceNames::default()).map(drop)
}

/// Checks names of files whose presence excludes a folder. The error names the invalid one.
pub fn check_marker_names(names: &[String]) -> Result<()> {
    match names.iter().find(|name| name.contains('/') || matches!(name.as_str(), "" | "." | "..")) {
        None => Ok(()),
        Some(name) => {
            Err(Error::usage(format!("\"{name}\" is not the name of a file")).hint("write a name without a folder"))
        }
    }
}

/// Returns why a pattern can match nothing, whatever the source holds; `None` if it can.
pub fn pattern_problem(glob: &str) -> Option<String> {
    let pattern = glob.strip_prefix('!').unwrap_or(glob);
    let quotes =
        ["'", "\"", "`"].into_iter().find(|q| pattern.len() > 1 && pattern.starts_with(q) && pattern.ends_with(q));
    let why = if pattern.trim().is_empty() {
        "it is empty"
    } else if pattern.starts_with("~/") {
        "`~` is not replaced by a home folder in it"
    } else if pattern.split('/').any(|part| matches!(part, "." | "..")) {
        "patterns match paths below the source, which have no part `.` or `..`"
    } else if quotes.is_some() {
        "the quotes are part of it"
    } else {
        return None;
    };
    Some(format!("the exclude pattern {glob} can match nothing: {why}"))
}

/// Decides by name and path what is excluded.
#[derive(Debug)]
pub(super) struct Filter {
    globs: Gitignore,
    /// Patterns that have matched nothing so far: as they were written, by the compiled form.
    unmatched: HashMap<String, String>,
    /// Excludes the content of folders with a valid `CACHEDIR.TAG`.
    pub(super) caches: bool,
    if_present: Vec<Box<[u8]>>,
}

impl Filter {
    /// Creates the filter of a source at `root`, named `root_name` in archives; `lines` are those of the schedule's
    /// exclude files.
    pub(super) fn new(root: &Path, root_name: &MemberPath, excludes: &Excludes, lines: &[String]) -> Result<Self> {
        let names = SourceNames::new(root, root_name);
        let globs = excludes.globs.iter().map(|glob| from_command_line(glob));
        let lines = lines.iter().map(|line| Ok(Cow::Borrowed(line.trim_start_matches('\u{feff}'))));
        check_marker_names(&excludes.if_present)?;
        let (globs, unmatched) = compile(globs.chain(lines), &names)?;
        Ok(Filter {
            globs,
            unmatched,
            caches: excludes.caches,
            if_present: excludes.if_present.iter().map(|name| name.as_bytes().into()).collect(),
        })
    }

    /// Returns whether the entry at this path below the root is excluded, with everything in it.
    pub(super) fn excludes(&mut self, relative: &[u8], is_folder: bool) -> bool {
        if self.globs.is_empty() {
            return false;
        }
        let matched = self.globs.matched(Path::new(OsStr::from_bytes(relative)), is_folder);
        if let Some(glob) = matched.inner().filter(|_| !self.unmatched.is_empty()) {
            self.unmatched.remove(glob.original());
        }
        matched.is_ignore()
    }

    /// Returns the patterns that matched nothing, as they were written, sorted.
    pub(super) fn into_unmatched(self) -> Vec<String> {
        let mut unmatched: Vec<String> = self.unmatched.into_values().collect();
        unmatched.sort();
        unmatched
    }

    /// Returns whether the content of a folder is excluded because of a name that it holds.
    pub(super) fn is_marked(&self, contains: impl Fn(&[u8]) -> bool) -> bool {
        self.if_present.iter().any(|name| contains(name))
    }
}

/// Escapes a leading `#`: it begins a comment in a file, and is an ordinary character on the command line.
fn from_command_line(glob: &str) -> Result<Cow<'_, str>> {
    match glob.trim() {
        "" => Err(Error::usage("an exclude pattern is empty").hint("leave it out, or write a glob such as *.tmp")),
        _ if glob.starts_with('#') => Ok(Cow::Owned(format!("\\{glob}"))),
        _ => Ok(Cow::Borrowed(glob)),
    }
}

/// The names that a source has in patterns besides the root of them.
#[derive(Default)]
struct SourceNames {
    /// Its absolute paths.
    paths: Vec<String>,
    /// Its name in archives, unless it holds an entry of that name, which a pattern would mean.
    member: Option<String>,
}

impl SourceNames {
    fn new(root: &Path, root_name: &MemberPath) -> Self {
        let resolved = fs::canonicalize(root).ok();
        let paths = [Some(root), resolved.as_deref()].into_iter().flatten().filter_map(Path::to_str);
        let member = std::str::from_utf8(root_name.as_bytes()).ok().filter(|name| {
            let inside = root.join(name).symlink_metadata();
            inside.is_err()
        });
        SourceNames {
            paths: paths.filter(|path| path.starts_with('/')).map(String::from).collect(),
            member: member.map(String::from),
        }
    }

    /// Converts a pattern that begins with the absolute path of the source, or with its name in archives as `ls` shows
    /// it, into one relative to the source, which has a leading `/`. Returns `None` if the pattern is the root itself.
    fn below_root<'g>(&self, glob: &'g str) -> Option<Cow<'g, str>> {
        let (not, pattern) = glob.strip_prefix('!').map_or(("", glob), |pattern| ("!", pattern));
        for path in &self.paths {
            match pattern.strip_prefix(path.trim_end_matches('/')) {
                Some("" | "/") => return None,
                Some(below) if below.starts_with('/') => return Some(Cow::Owned(format!("{not}{below}"))),
                _ => {}
            }
        }
        let below = self.member.as_deref().and_then(|name| pattern.strip_prefix(name));
        match below.filter(|below| below.starts_with('/') && below.len() > 1) {
            Some(below) => Some(Cow::Owned(format!("{not}{below}"))),
            None => Some(Cow::Borrowed(glob)),
        }
    }
}

/// Compiles patterns. Also returns them as written, by the compiled form.
fn compile<'g>(
    globs: impl Iterator<Item = Result<Cow<'g, str>>>,
    names: &SourceNames,
) -> Result<(Gitignore, HashMap<String, String>)> {
    let refuse = |glob: &str, why: String| {
        Error::usage(format!("\"{glob}\" is not an exclude pattern: {why}"))
            .hint("patterns are written as in a .gitignore file; a backslash takes a character as it is")
    };
    let mut builder = GitignoreBuilder::new("");
    let mut written = HashMap::new();
    for glob in globs {
        let glob = glob?;
        let below = names.below_root(&glob).ok_or_else(|| refuse(&glob, "it excludes the whole source".into()))?;
        builder.add_line(None, &below).map_err(|error| refuse(&glob, error.to_string()))?;
        // The builder ignores comments and removes blanks at the end, unless they are escaped.
        let line = if below.ends_with("\\ ") { &below } else { below.trim_end() };
        if !line.is_empty() && !line.starts_with('#') {
            written.insert(line.to_owned(), glob.to_string());
        }
    }
    let globs =
        builder.build().map_err(|error| Error::usage("the exclude patterns cannot be used together").because(error))?;
    Ok((globs, written))
}

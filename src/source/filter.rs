//! The exclusions of a schedule.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::{Error, Result};
use crate::schedule::Excludes;

/// Checks globs as written on the command line, without a source. The error names the invalid one.
pub fn check_patterns(globs: &[String]) -> Result<()> {
    compile(globs.iter().map(|glob| from_command_line(glob)), &[]).map(drop)
}

/// Decides by name and path what is excluded.
#[derive(Debug)]
pub(super) struct Filter {
    globs: Gitignore,
    /// Excludes the content of folders with a valid `CACHEDIR.TAG`.
    pub(super) caches: bool,
    if_present: Vec<Box<[u8]>>,
}

impl Filter {
    /// Creates the filter of a source at `root`; `lines` are those of the schedule's exclude files.
    pub(super) fn new(root: &Path, excludes: &Excludes, lines: &[String]) -> Result<Self> {
        let resolved = fs::canonicalize(root).ok();
        let roots: Vec<&str> =
            [Some(root), resolved.as_deref()].into_iter().flatten().filter_map(Path::to_str).collect();
        let globs = excludes.globs.iter().map(|glob| from_command_line(glob));
        let lines = lines.iter().map(|line| Ok(Cow::Borrowed(line.trim_start_matches('\u{feff}'))));
        for name in &excludes.if_present {
            if name.contains('/') || matches!(name.as_str(), "" | "." | "..") {
                return Err(Error::usage(format!("\"{name}\" is not the name of a file"))
                    .hint("--exclude-if-present takes a name without a folder"));
            }
        }
        Ok(Filter {
            globs: compile(globs.chain(lines), &roots)?,
            caches: excludes.caches,
            if_present: excludes.if_present.iter().map(|name| name.as_bytes().into()).collect(),
        })
    }

    /// Returns whether the entry at this path below the root is excluded, with everything in it.
    pub(super) fn excludes(&self, relative: &[u8], is_folder: bool) -> bool {
        !self.globs.is_empty() && self.globs.matched(Path::new(OsStr::from_bytes(relative)), is_folder).is_ignore()
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

fn compile<'g>(globs: impl Iterator<Item = Result<Cow<'g, str>>>, roots: &[&str]) -> Result<Gitignore> {
    let refuse = |glob: &str, why: String| {
        Error::usage(format!("\"{glob}\" is not an exclude pattern: {why}"))
            .hint("patterns are written as in a .gitignore file; a backslash takes a character as it is")
    };
    let mut builder = GitignoreBuilder::new("");
    for glob in globs {
        let glob = glob?;
        let below = below_root(&glob, roots).ok_or_else(|| refuse(&glob, "it excludes the whole source".into()))?;
        builder.add_line(None, &below).map_err(|error| refuse(&glob, error.to_string()))?;
    }
    builder.build().map_err(|error| Error::usage("the exclude patterns cannot be used together").because(error))
}

/// Converts a pattern with the absolute path of the source into one relative to the source, which has a leading `/`.
/// Returns `None` if the pattern is the root itself.
fn below_root<'g>(glob: &'g str, roots: &[&str]) -> Option<Cow<'g, str>> {
    let (not, pattern) = glob.strip_prefix('!').map_or(("", glob), |pattern| ("!", pattern));
    for root in roots.iter().filter(|root| root.starts_with('/')) {
        match pattern.strip_prefix(root.trim_end_matches('/')) {
            Some("" | "/") => return None,
            Some(below) if below.starts_with('/') => return Some(Cow::Owned(format!("{not}{below}"))),
            _ => {}
        }
    }
    Some(Cow::Borrowed(glob))
}
